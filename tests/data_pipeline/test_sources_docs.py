"""The examples of docs/data.md can be opened as they stand."""

import re
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
import zstandard

from data_pipeline.sources import KINDS, open_source

PAGE = Path(__file__).parents[2] / "docs" / "data.md"
RECIPES = [
    yaml.safe_load(block)["source"]
    for block in re.findall(r"```yaml\n(source:.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
]


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for place in ("pile/train", "web", "books/drafts"):
        (tmp_path / "corpus" / place).mkdir(parents=True)
    root = Path("corpus")
    line = b'{"text": "a", "meta": {"pile_set_name": "wiki"}}\n'
    (root / "pile" / "train" / "0.jsonl.zst").write_bytes(zstandard.compress(line))
    row = {"content": ["a"], "id": [1], "url": ["b"], "language_score": [0.25]}
    pq.write_table(pa.table(row), root / "web" / "0.parquet")
    (root / "books" / "a.txt").write_text("a")
    (root / "books" / "drafts" / "b.txt").write_text("b")
    stories = datasets.DatasetDict({"train": datasets.Dataset.from_dict({"text": ["a"]})})
    stories.save_to_disk(root / "stories")


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe["kind"])
def test_an_example_opens_and_is_read(corpus, recipe):
    source = open_source(recipe)
    if "dataset" not in recipe:  # the Hub is not asked
        documents = list(source.documents())
        assert documents
        assert recipe["kind"] == "python_packages" or [d.text for d in documents] == ["a"]


def test_every_kind_has_an_example():
    assert {recipe["kind"] for recipe in RECIPES} == set(KINDS)
