"""The dataset of a suite, built by tasks through a Hydra launcher or in one process: same bytes."""

import json

import pytest

from data_pipeline.index import ShardIndex
from suite.build_data import run_stage
from suite.config import ConfigError
from suite.data import build
from tests.suite.smoke import tripod


def mapping(root, stage, group=None):
    recipe = {
        "name": "tiny",
        "source": {"kind": "text_tree", "root": str(root / "text"), "include": ["**"]},
        "tokenizer": {"vocab_size": 262, "train_bytes": 100_000},
        "heldout_permille": 100,
        "shard_tokens": 4000,
        "group_bytes": 4000,
    }
    return {
        "root": str(root), "suite": {"name": "tiny"}, "data": {"dir": "data", "build": recipe},
        "stage": stage, "group": group, "workers": 1,
    }  # fmt: skip


@pytest.fixture
def root(tmp_path):
    (tmp_path / "text").mkdir()
    for number in range(12):
        words = " ".join(f"word{(number * k) % 17} token{k % 5}" for k in range(80))
        (tmp_path / "text" / f"{number:02d}.txt").write_text(f"{number}\n{words}\n")
    return tmp_path


def test_stages_by_group_in_any_order_give_the_dataset_of_one_process(root, capsys):
    run_stage(mapping(root, "plan"))
    count = int(capsys.readouterr().out.split()[0])
    assert count > 2
    for group in reversed(range(count)):
        run_stage(mapping(root, "survey", group))
    run_stage(mapping(root, "prepare"))
    for group in (*range(1, count), 0):
        run_stage(mapping(root, "encode", group))
    run_stage(mapping(root, "finish"))
    build(mapping(root, "plan")["data"]["build"], root / "alone", workers=1)
    assert ShardIndex.load(root / "tiny" / "data").digest == ShardIndex.load(root / "alone").digest


def test_a_stage_that_needs_a_group_or_does_not_exist_is_refused(root):
    with pytest.raises(ConfigError, match="needs a group"):
        run_stage(mapping(root, "survey"))
    with pytest.raises(ConfigError, match="stage='train' is not known"):
        run_stage(mapping(root, "train"))


@pytest.mark.slow
def test_a_launcher_builds_what_the_suite_states(tmp_path):
    done = tripod("data", "build", "smoke", "--root", tmp_path, "--launcher", "joblib")
    assert done.returncode == 0, done.stdout + done.stderr
    index = json.loads((tmp_path / "smoke" / "data" / "index.json").read_bytes())
    assert index["schema"] == "index-v1"
    assert f"index {ShardIndex.load(tmp_path / 'smoke' / 'data').digest}" in done.stdout


def test_what_is_no_suite_needs_a_place(tmp_path):
    done = tripod("data", "build", tmp_path / "recipe.yaml")
    assert done.returncode == 2 and "is no suite, so --out is needed" in done.stderr
