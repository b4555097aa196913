import argparse
import json

import pytest

from data_pipeline.cli_build import add_commands, load_recipe
from data_pipeline.errors import DatasetError
from data_pipeline.index import ShardIndex


def parser(suite_recipe=None) -> argparse.ArgumentParser:
    top = argparse.ArgumentParser()
    commands = top.add_subparsers()

    def add(name, run, text, example):
        sub = commands.add_parser(name.replace(" ", "-"), help=text)
        sub.set_defaults(run=run)
        return sub

    add_commands(add, suite_recipe)
    return top


def run(*words: object, suite_recipe=None) -> int:
    arguments = parser(suite_recipe).parse_args([str(word) for word in words])
    return arguments.run(arguments)


def test_a_recipe_file_is_built_and_verified(spec, tmp_path, capsys):
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps({"data": {"seed": 0, "build": spec}}))
    assert run("data-build", path, "--out", tmp_path / "out") == 0
    digest = ShardIndex.load(tmp_path / "out").digest
    assert f"index digest {digest}" in capsys.readouterr().out
    assert run("data-verify", tmp_path / "out", "--text", "--expect", digest) == 0
    told = capsys.readouterr().out
    assert "ok" in told
    assert "text equal to its source: 41 documents" in told
    with pytest.raises(DatasetError, match="expected index digest"):
        run("data-verify", tmp_path / "out", "--expect", "0" * 64)


def test_the_name_of_a_suite_is_asked_for_its_recipe(spec, tmp_path):
    asked = []

    def suite_recipe(name):
        asked.append(name)
        return spec

    assert run("data-build", "nano", "--out", tmp_path / "out", suite_recipe=suite_recipe) == 0
    assert asked == ["nano"]
    with pytest.raises(DatasetError, match="expected a recipe in YAML"):
        run("data-build", "nano", "--out", tmp_path / "other")


@pytest.mark.parametrize("text", ["- a\n", "a: [1\n", "data: {seed: 1}\n", "a: ${b}\n"])
def test_a_file_that_holds_no_recipe_is_refused(tmp_path, text):
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(DatasetError, match=r"r\.yaml: expected a recipe"):
        load_recipe(tmp_path / "r.yaml")
