"""Publishing to the loopback Hub: complete or absent, once, true, and the same after any failure."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from checkpoints_manifest.errors import CheckpointError
from checkpoints_manifest.manifest import Ledger, record_digest
from checkpoints_manifest.published import BRANCH, parse_commits, parse_publication
from checkpoints_manifest.publish import Options, dry_run, publish
from checkpoints_manifest.publish_dataset import dataset_changes, publish_dataset
from checkpoints_manifest.remote import Remote
from checkpoints_manifest.run_files import RunFiles
from data_pipeline.canonical import sha256_file
from tests.checkpoints_manifest.conftest import flip
from tests.checkpoints_manifest.publishable import (
    STEPS,
    make_run,
    quick_pacer,
    random_weights,
    save_step,
    true_label,
)
from tests.loopback.faults import Answer, broken, too_many
from tests.loopback.fixtures import hub  # noqa: F401
from tests.loopback.server import TOKEN

REPO = "org/toy-1"
ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=")


@pytest.fixture
def run_dir(tmp_path):
    return make_run(tmp_path / "suite")


def remote(hub, repo=REPO, kind="model", **more):  # noqa: F811
    return Remote(repo, kind, endpoint=hub.endpoint, token=TOKEN, pacer=quick_pacer(), **more)


def go(hub, run_dir, check=true_label, say=lambda line: None, **options):  # noqa: F811
    return publish(RunFiles.read(run_dir), remote(hub), check, Options(**options), say)


def trees(hub, repo=REPO):  # noqa: F811
    """What a reader sees: branches and tags to the files they hold, as git ids."""
    repository = hub.repository("model", repo)
    found = {}
    for kind in ("heads", "tags"):
        for name, commit in repository.refs(kind).items():
            files = {e.path: e.blob for e in repository.tree(commit).values()}
            # These name commits, which hold dates.
            for dated in ("README.md", "commits.jsonl", "publication.json"):
                if name not in (f"step{step}" for step in STEPS):
                    files.pop(dated, None)
            found[kind, name] = files
    return found


def own_commits(hub):  # noqa: F811
    repository = hub.repository("model", REPO)
    return {
        branch: [title for _, _, title in repository.history(repository.refs("heads")[branch])]
        for branch in (BRANCH, "main")
    }


WHOLE = {
    BRANCH: [f"{REPO} step{step}" for step in STEPS[::-1]] + ["initial commit"],
    "main": ["4 steps", "initial commit"],
}


def test_every_step_is_a_revision_with_the_files_of_the_ledger(hub, run_dir):  # noqa: F811
    done = go(hub, run_dir, tag="v1")
    assert done.new == done.steps == STEPS
    repository = hub.repository("model", REPO)
    subprocess.run(["git", "fsck", "--strict"], cwd=repository.path, check=True)
    heads = repository.refs("heads")
    assert set(heads) == {"main", BRANCH, *(f"step{step}" for step in STEPS)}
    assert own_commits(hub) == WHOLE
    assert repository.refs("tags") == {"v1": heads["main"]} and done.main == heads["main"]
    for record in Ledger(run_dir / "manifest.jsonl").records():
        tree = repository.tree(heads[f"step{record['step']}"])
        stated = {item["path"]: item["sha256"] for item in record["files"]}
        assert tree["model.safetensors"].sha256 == stated["model.safetensors"]
        assert json.loads(repository.blob(tree["checkpoint_manifest.json"].blob)) == record
        assert "optimizer.safetensors" not in tree


def test_main_holds_ledger_card_logs_and_the_last_step(hub, run_dir):  # noqa: F811
    done = go(hub, run_dir, dataset="org/toy-data")
    repository = hub.repository("model", REPO)
    tree = repository.tree(done.main)

    def read(name):
        data = tree[name].sha256 and hub.object_path(tree[name].sha256).read_bytes()
        return data or repository.blob(tree[name].blob)

    assert read("manifest.jsonl") == (run_dir / "manifest.jsonl").read_bytes()
    records = Ledger(run_dir / "manifest.jsonl").records()
    lines = parse_commits(read("commits.jsonl"), records, "main")
    heads = repository.refs("heads")
    assert [(line.step, line.commit) for line in lines] == [
        (step, heads[f"step{step}"]) for step in STEPS
    ]
    assert done.digest == lines[-1].digest
    publication = parse_publication(read("publication.json"), "main")
    assert set(publication) == set(tree) - {"publication.json"}
    last = run_dir / "checkpoints" / "step4" / "model.safetensors"
    assert tree["model.safetensors"].sha256 == sha256_file(last)
    # The run was two steps further when it was published; the record of step 4 ends at 4.
    assert read("run/order.log") == (run_dir / "order.log").read_bytes()[: 4 * 32]
    card = read("README.md").decode()
    for text in (done.digest, record_digest(records[-1]), heads["step2"], "org/toy-data"):
        assert text in card
    assert b"<svg" in read("loss.svg")


def test_published_again_nothing_changes(hub, run_dir):  # noqa: F811
    first = go(hub, run_dir, tag="v1")
    before, hub.requests[:] = trees(hub), []
    second = go(hub, run_dir, tag="v1")
    assert (second.new, second.main, second.digest) == ((), first.main, first.digest)
    assert trees(hub) == before and own_commits(hub) == WHOLE
    # The tag is asked for again, and exists; nothing else is asked to change.
    assert [(path, status) for _, path, status in hub.changes()] == [
        (f"/api/models/{REPO}/tag/{first.main}", 409)
    ]


def test_steps_trained_later_go_on_top_and_old_lines_stay(hub, run_dir):  # noqa: F811
    first = go(hub, run_dir)
    old = hub.repository("model", REPO)
    before = old.blob(old.tree(first.main)["commits.jsonl"].blob)
    save_step(run_dir, 5, random_weights(5))
    done = go(hub, run_dir)
    assert (done.new, done.steps) == ((5,), (*STEPS, 5))
    after = old.blob(old.tree(done.main)["commits.jsonl"].blob)
    assert after.startswith(before) and after.count(b"\n") == 5


def test_with_state_each_revision_can_be_trained_on_from(hub, run_dir):  # noqa: F811
    go(hub, run_dir, with_state=True)
    repository = hub.repository("model", REPO)
    heads = repository.refs("heads")
    for record in Ledger(run_dir / "manifest.jsonl").records():
        tree = repository.tree(heads[f"step{record['step']}"])
        assert {item["path"] for item in record["files"]} <= set(tree)
    assert "optimizer.safetensors" not in repository.tree(heads["main"])
    # Steps published with state stay so; without the option they are not published again.
    assert go(hub, run_dir).new == ()


def test_a_dry_run_names_everything_and_changes_nothing(hub, run_dir):  # noqa: F811
    lines = []
    run = RunFiles.read(run_dir)
    planned = dry_run(run, remote(hub), true_label, Options(tag="v1"), lines.append)
    assert planned == STEPS and hub.changes() == [] and not hub.repositories
    text = "\n".join(lines)
    for step in STEPS:
        assert f"would commit step{step} to checkpoints: 9 files" in text
        assert f"would create branch step{step}" in text
    assert "would create the public model repository" in text and "tag v1" in text
    go(hub, run_dir, tag="v1")
    hub.requests.clear()
    lines.clear()
    assert dry_run(run, remote(hub), true_label, Options(tag="v1"), lines.append) == ()
    assert hub.changes() == []
    assert lines == [f"{hub.endpoint}/{REPO}: 4 steps published, nothing else to do"]


# The label gate.


def test_without_a_check_of_labels_nothing_is_published(hub, run_dir):  # noqa: F811
    with pytest.raises(CheckpointError, match="no check of their labels"):
        go(hub, run_dir, check=None)
    assert hub.changes() == []


def test_a_false_label_stops_everything_and_all_of_them_are_named(hub, run_dir):  # noqa: F811
    def check(step):
        return f"row 3 has loss 1.5 instead of 2.5 at {step}" if step in (1, 4) else None

    with pytest.raises(CheckpointError, match=r"step1: row 3[^\0]*step4: row 3"):
        go(hub, run_dir, check=check)
    assert hub.changes() == []


def test_labels_are_checked_for_new_steps_only(hub, run_dir):  # noqa: F811
    go(hub, run_dir)
    save_step(run_dir, 5, random_weights(5))
    asked = []
    go(hub, run_dir, check=lambda step: asked.append(step))
    assert asked == [5]


def test_damaged_weights_are_not_published(hub, run_dir):  # noqa: F811
    flip(run_dir / "checkpoints" / "step2" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"step2.*sha256"):
        go(hub, run_dir)
    assert set(hub.repository("model", REPO).refs("heads")) == {"main", BRANCH, "step0", "step1"}


@pytest.mark.parametrize(
    "name", ["config.json", "numerics.json", "environment.json", "order.log", "metrics.jsonl"]
)
def test_side_files_of_another_run_are_not_published(run_dir, name):
    flip(run_dir / name, offset=1)
    with pytest.raises(CheckpointError, match=name):
        RunFiles.read(run_dir)


def test_another_dataset_is_refused(run_dir):
    (run_dir.parent / "data" / "tokenizer.json").write_bytes(b"{}")
    with pytest.raises(CheckpointError, match="not the dataset of toy-1"):
        RunFiles.read(run_dir)


# Failing requests.

CHANGING = {
    "create": r"/api/repos/create",
    "yaml": r"/api/validate-yaml",
    "preupload": r"/preupload/",
    "batch": r"/objects/batch",
    "upload": r"/lfs/object/",
    "verify": r"/lfs/verify",
    "commit": r"/commit/checkpoints",
    "branch": r"/branch/step",
    "first branch": r"/branch/checkpoints",
    "main": r"/commit/main",
    "tag": r"/tag/",
}
READING = {"refs": r"/refs$", "commits": r"/commits/", "tree": r"/tree/"}
FAULTS = {
    "500": {"answer": broken()},
    "503 twice": {"answer": broken(503), "times": 2},
    "429": {"answer": too_many("17")},
    "429 for ever longer": {"answer": too_many("nonsense")},
    "answer lost": {"cut_answer": -1},
    "half an answer": {"cut_answer": 5},
    "cut upload": {"cut_upload": 3},
    "not JSON": {"mangle": lambda answer: Answer(200, b"<html>")},
    "another type": {"mangle": lambda answer: Answer(200, b"[1, null]")},
    "empty object": {"mangle": lambda answer: Answer(200, b"{}")},
}


PAIRS = [("commit", fault) for fault in FAULTS] + [
    (place, fault)
    for place in (*CHANGING, *READING)
    for fault in ("500", "answer lost", "another type")
    if place != "commit"
]


@pytest.mark.parametrize(("place", "fault"), PAIRS)
def test_a_request_that_fails_makes_no_difference(hub, two_steps, place, fault, wanted):  # noqa: F811
    path = (CHANGING | READING)[place]
    method = "GET" if place in READING else "PUT" if place == "upload" else "POST"
    once = place in ("create", "main", "tag", "first branch")
    hub.faults.add(method, path, skip=0 if once else 1, **FAULTS[fault])
    go(hub, two_steps, tag="v1")
    assert trees(hub) == wanted
    assert own_commits(hub) == {BRANCH: WHOLE[BRANCH][2:], "main": ["2 steps", "initial commit"]}


@pytest.fixture
def two_steps(tmp_path):
    return make_run(tmp_path / "suite", STEPS[:2])


@pytest.fixture(scope="module")
def wanted_trees():
    return {}


@pytest.fixture
def wanted(hub, two_steps, wanted_trees):  # noqa: F811
    """What an undisturbed publisher makes, computed once."""
    if not wanted_trees:
        go(hub, two_steps, tag="v1")
        wanted_trees.update(trees(hub))
        hub.repositories.clear()
        for path in (hub.root / "models").rglob("*.git"):
            path.rename(hub.root / "first.git")
        for path in (hub.root / "objects").iterdir():
            path.unlink()
    return dict(wanted_trees)
