import json

import pytest

from data_pipeline.build import build_dataset
from data_pipeline.cli_build import add_commands, load_recipe
from data_pipeline.errors import DatasetError
from data_pipeline.index import ShardIndex
from tests.data_pipeline.command import run_command


def test_a_recipe_file_is_built_and_verified(spec, tmp_path, capsys):
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps({"data": {"seed": 0, "build": spec}}))
    build_dataset(load_recipe(path), tmp_path / "out")
    digest = ShardIndex.load(tmp_path / "out").digest
    verify = ("data", "verify", tmp_path / "out")
    assert run_command(add_commands, *verify, "--text", "--expect", digest) == 0
    told = capsys.readouterr().out
    assert f"index digest {digest}" in told
    assert "text equal to its source: 41 documents" in told
    with pytest.raises(DatasetError, match="expected index digest"):
        run_command(add_commands, *verify, "--expect", "0" * 64)


@pytest.mark.parametrize("text", ["- a\n", "a: [1\n", "data: {seed: 1}\n", "a: ${b}\n"])
def test_a_file_that_holds_no_recipe_is_refused(tmp_path, text):
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(DatasetError, match=r"r\.yaml: expected a recipe"):
        load_recipe(tmp_path / "r.yaml")
