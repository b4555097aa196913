"""A small dataset made of text that every machine writes alike, and ways to damage a copy of it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.build import build_dataset
from data_pipeline.canonical import canonical_json, sha256_file

WORDS = [
    "order", "step", "shard", "token", "digest", "résumé", "数据",
    "loss", "Θ", "batch", "seed", "quantum", "rung", "suite",
]  # fmt: skip


def write_corpus(root: Path, files: int = 40) -> None:
    """Text files of about 600 bytes, one exact duplicate, one empty, one that is not UTF-8."""
    for number in range(files):
        words = [WORDS[(number * 7 + k * k) % len(WORDS)] + str(k % 10) for k in range(90)]
        path = root / f"part{number % 3}" / f"doc{number:03d}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# {number}\n" + " ".join(words) + "\n<|endoftext|>\n", encoding="utf-8")
    shutil.copy(root / "part0" / "doc000.txt", root / "part2" / "zz_copy.txt")
    (root / "part1" / "empty.txt").write_bytes(b" \n\t")
    (root / "part1" / "latin1.txt").write_bytes(b"\xe9t\xe9")


def recipe(root: Path) -> dict[str, Any]:
    return {
        "name": "test",
        "source": {"kind": "text_tree", "root": str(root), "include": ["**/*.txt"]},
        "tokenizer": {"vocab_size": 300, "train_bytes": 20_000},
        "heldout_permille": 200,
        "shard_tokens": 2_000,
    }


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("corpus")
    write_corpus(root)
    return root


@pytest.fixture
def spec(corpus: Path) -> dict[str, Any]:
    return recipe(corpus)


@pytest.fixture(scope="session")
def built(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset that no test changes."""
    out = tmp_path_factory.mktemp("built") / "data"
    build_dataset(recipe(corpus), out)
    return out


@pytest.fixture
def dataset(built: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(built, tmp_path / "data"))


@pytest.fixture
def resign() -> Callable[[Path], None]:
    """Rewrite the digests of an index, as somebody would who changes files on purpose."""

    def sign(root: Path) -> None:
        index = json.loads((root / "index.json").read_bytes())
        for split in index["splits"].values():
            for shard in split["shards"]:
                stem = shard["file"].removesuffix(".bin")
                shard["sha256"] = sha256_file(root / f"{stem}.bin")
                shard["docs_sha256"] = sha256_file(root / f"{stem}.docs")
                shard["sources_sha256"] = sha256_file(root / f"{stem}.sources.jsonl")
        (root / "index.json").write_bytes(canonical_json(index))

    return sign
