"""Publishing to the loopback Hub: complete or absent, once, true, the same after any failure."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from checkpoints_manifest.errors import CheckpointError
from checkpoints_manifest.gitobjects import blob_id, lfs_pointer, tree_id
from checkpoints_manifest.hub import LocalHub
from checkpoints_manifest.manifest import Ledger, record_digest
from checkpoints_manifest.pacer import Pacer
from checkpoints_manifest.publish import Options, dry_run, publish
from checkpoints_manifest.publish_dataset import dataset_changes, publish_dataset
from checkpoints_manifest.published import BRANCH, parse_commits, parse_publication
from checkpoints_manifest.remote import Remote
from checkpoints_manifest.run_files import LOGS, RunFiles
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
from tests.loopback.fixtures import serving
from tests.loopback.server import TOKEN

REPO = "org/toy-1"
ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with serving(tmp_path / "loopback", monkeypatch) as served:
        yield served


@pytest.fixture
def run_dir(tmp_path):
    return make_run(tmp_path / "suite")


def remote(hub, repo=REPO, kind="model", **more):
    return Remote(repo, kind, endpoint=hub.endpoint, token=TOKEN, pacer=quick_pacer(), **more)


def go(hub, run_dir, check=true_label, say=lambda line: None, **options):
    return publish(RunFiles.read(run_dir), remote(hub), check, Options(**options), say)


def trees(hub, repo=REPO):
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


def own_commits(hub):
    repository = hub.repository("model", REPO)
    return {
        branch: [title for _, _, title in repository.history(repository.refs("heads")[branch])]
        for branch in (BRANCH, "main")
    }


WHOLE = {
    BRANCH: [f"{REPO} step{step}" for step in STEPS[::-1]] + ["initial commit"],
    "main": ["4 steps", "initial commit"],
}


def test_every_step_is_a_revision_with_the_files_of_the_ledger(hub, run_dir):
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


def test_main_holds_ledger_card_logs_and_the_last_step(hub, run_dir):
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


def test_trees_are_those_of_the_local_hub(hub, run_dir, tmp_path):
    """Commits cannot agree (a server writes its own author and date); what they hold does."""
    go(hub, run_dir)
    run, local = RunFiles.read(run_dir), LocalHub(tmp_path / "local")
    repository = hub.repository("model", REPO)
    for record in run.records:
        name = f"step{record['step']}"
        run.export(record, tmp_path / name, with_state=False)
        commit = local.publish(REPO, name, tmp_path / name)
        snapshot = local.repository(REPO) / "snapshots" / commit
        ids = {
            path.name: blob_id(lfs_pointer(sha256_file(path), path.stat().st_size))
            if path.suffix == ".safetensors"
            else blob_id(path.read_bytes())
            for path in snapshot.iterdir()
        }
        tree = repository.git("rev-parse", f"refs/heads/{name}^{{tree}}").decode().strip()
        assert tree == tree_id(ids)


def test_published_again_nothing_changes(hub, run_dir):
    first = go(hub, run_dir, tag="v1")
    before, hub.requests[:] = trees(hub), []
    second = go(hub, run_dir, tag="v1")
    assert (second.new, second.main, second.digest) == ((), first.main, first.digest)
    assert trees(hub) == before and own_commits(hub) == WHOLE
    # The tag is asked for again, and exists; nothing else is asked to change.
    assert [(path, status) for _, path, status in hub.changes()] == [
        (f"/api/models/{REPO}/tag/{first.main}", 409)
    ]


def test_steps_trained_later_go_on_top_and_old_lines_stay(hub, run_dir):
    first = go(hub, run_dir)
    old = hub.repository("model", REPO)
    before = old.blob(old.tree(first.main)["commits.jsonl"].blob)
    save_step(run_dir, 5, random_weights(5))
    done = go(hub, run_dir)
    assert (done.new, done.steps) == ((5,), (*STEPS, 5))
    after = old.blob(old.tree(done.main)["commits.jsonl"].blob)
    assert after.startswith(before) and after.count(b"\n") == 5


def test_with_state_each_revision_can_be_trained_on_from(hub, run_dir):
    go(hub, run_dir, with_state=True)
    repository = hub.repository("model", REPO)
    heads = repository.refs("heads")
    for record in Ledger(run_dir / "manifest.jsonl").records():
        tree = repository.tree(heads[f"step{record['step']}"])
        assert {item["path"] for item in record["files"]} <= set(tree)
    assert "optimizer.safetensors" not in repository.tree(heads["main"])
    # Steps published with state stay so; without the option they are not published again.
    assert go(hub, run_dir).new == ()


def test_a_dry_run_names_everything_and_changes_nothing(hub, run_dir):
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


def test_without_a_check_of_labels_nothing_is_published(hub, run_dir):
    with pytest.raises(CheckpointError, match="no check of their labels"):
        go(hub, run_dir, check=None)
    assert hub.changes() == []


def test_a_false_label_stops_everything_and_all_of_them_are_named(hub, run_dir):
    def check(step):
        return f"row 3 has loss 1.5 instead of 2.5 at {step}" if step in (1, 4) else None

    with pytest.raises(CheckpointError, match=r"step1: row 3[^\0]*step4: row 3"):
        go(hub, run_dir, check=check)
    assert hub.changes() == []


def test_labels_are_checked_for_new_steps_only(hub, run_dir):
    go(hub, run_dir)
    save_step(run_dir, 5, random_weights(5))
    asked = []
    go(hub, run_dir, check=lambda step: asked.append(step))
    assert asked == [5]


def test_damaged_weights_are_not_published(hub, run_dir):
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
def test_a_request_that_fails_makes_no_difference(hub, two_steps, place, fault, wanted):
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
def wanted(hub, two_steps, wanted_trees):
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


def test_what_the_hub_asks_for_in_retry_after_is_waited(hub, two_steps):
    clock = [0.0]
    slept = []

    def sleep(seconds):
        slept.append(seconds)
        clock[0] += seconds

    paced = Remote(
        REPO, endpoint=hub.endpoint, token=TOKEN, pacer=Pacer(clock=lambda: clock[0], sleep=sleep)
    )
    hub.faults.add("POST", "/commit/", answer=too_many("1234"))
    publish(RunFiles.read(two_steps), paced, true_label, Options(), lambda line: None)
    assert max(slept) == 1234


def test_a_hub_that_keeps_failing_ends_in_an_error_that_says_how_to_go_on(hub, two_steps):
    hub.faults.add("POST", "/commit/", times=1000, answer=broken())
    with pytest.raises(CheckpointError, match=r"could not commit to checkpoints .*goes on from"):
        go(hub, two_steps)
    hub.faults.clear()
    go(hub, two_steps)
    assert own_commits(hub)[BRANCH] == WHOLE[BRANCH][2:]


# Somebody else.


@pytest.mark.parametrize("branch", [BRANCH, "main"])
def test_another_writers_commit_is_seen_and_left_alone(hub, two_steps, branch):
    def intrude():
        hub.repository("model", REPO).commit(branch, {"theirs": b"x"}, (), "theirs")

    hub.faults.add("POST", f"/commit/{branch}", before=intrude)
    with pytest.raises(CheckpointError, match="somebody else"):
        go(hub, two_steps)
    assert own_commits(hub)[branch][0] == "theirs"
    if branch == BRANCH:
        with pytest.raises(CheckpointError, match="expected"):
            go(hub, two_steps)
    else:
        assert go(hub, two_steps).steps == STEPS[:2]


def test_another_publisher_of_the_same_run_is_no_stranger(hub, two_steps, tmp_path):
    """Two machines publish copies of one run at once: the second finds its commit made."""
    twin = make_run(tmp_path / "twin", STEPS[:2])
    hub.faults.add("POST", "/commit/checkpoints", before=lambda: go(hub, twin))
    assert go(hub, two_steps).steps == STEPS[:2]
    assert own_commits(hub)[BRANCH] == WHOLE[BRANCH][2:]


def test_a_branch_that_exists_elsewhere_is_not_taken_for_ours(hub, two_steps):
    """409 on create_branch says that the name exists, not where it points."""

    def intrude():
        repository = hub.repository("model", REPO)
        repository.set_ref("heads", "step1", repository.refs("heads")["main"])

    hub.faults.add("POST", "/branch/step1", before=intrude)
    with pytest.raises(CheckpointError, match="expected branch step1 at"):
        go(hub, two_steps)


def test_a_moved_branch_or_tag_is_found(hub, two_steps):
    go(hub, two_steps, tag="v1")
    repository = hub.repository("model", REPO)
    heads = repository.refs("heads")
    repository.git("update-ref", "refs/tags/v1", heads["step0"])
    with pytest.raises(CheckpointError, match="expected tag v1"):
        go(hub, two_steps, tag="v1")
    repository.git("update-ref", "refs/heads/step1", heads["step0"])
    with pytest.raises(CheckpointError, match="somebody moved it"):
        go(hub, two_steps)


def test_a_deleted_branch_is_made_again_where_it_was(hub, two_steps):
    go(hub, two_steps)
    repository = hub.repository("model", REPO)
    before = trees(hub)
    repository.delete_ref("heads", "step0")
    assert go(hub, two_steps).new == ()
    assert trees(hub) == before


def test_another_run_is_refused(hub, run_dir, tmp_path):
    go(hub, run_dir)
    other = make_run(tmp_path / "other", weights=lambda step: random_weights(step + 90))
    with pytest.raises(CheckpointError, match="does not belong to this ledger"):
        go(hub, other)
    fewer = make_run(tmp_path / "fewer", STEPS[:2])
    with pytest.raises(CheckpointError, match="ledger"):
        go(hub, fewer)


def test_a_model_from_elsewhere_is_not_overwritten(hub, run_dir):
    remote(hub).create(private=False)
    hub.repository("model", REPO).commit("main", {"model.safetensors": b"x" * 300}, (), "theirs")
    with pytest.raises(CheckpointError, match="not published from a ledger"):
        go(hub, run_dir)


def test_a_hub_that_stores_other_bytes_is_found_before_the_branch_exists(hub, two_steps):
    def swap(answer):
        repository = hub.repository("model", REPO)
        head = repository.refs("heads")[BRANCH]
        repository.git("update-ref", f"refs/heads/{BRANCH}", f"{head}~1")
        other = repository.commit(BRANCH, {"model.safetensors": b"y" * 300}, (), "swapped")
        return Answer(200, answer.body.replace(head.encode(), other.encode()))

    hub.faults.add("POST", "/commit/checkpoints", mangle=swap)
    with pytest.raises(CheckpointError, match="the Hub states"):
        go(hub, two_steps)
    assert "step0" not in hub.repository("model", REPO).refs("heads")


# The token.


def test_without_a_login_nothing_is_tried(hub, two_steps, monkeypatch):
    monkeypatch.setattr("checkpoints_manifest.remote.get_token", lambda: None)
    anonymous = Remote(REPO, endpoint=hub.endpoint, pacer=quick_pacer())
    with pytest.raises(CheckpointError, match="hf auth login"):
        publish(RunFiles.read(two_steps), anonymous, true_label, Options())
    assert hub.requests == []


def test_a_token_that_may_not_write_is_an_error_with_a_remedy(hub, two_steps):
    other = Remote(REPO, endpoint=hub.endpoint, token="hf_other", pacer=quick_pacer())
    with pytest.raises(CheckpointError, match="hf auth login") as caught:
        publish(RunFiles.read(two_steps), other, true_label, Options())
    assert "hf_other" not in str(caught.value)


def test_the_token_is_in_nothing_that_is_written_or_said(hub, run_dir, capfd, caplog):
    caplog.set_level("DEBUG")
    said = []
    # A Hub that sends back what it was sent.
    echo = Answer(500, f"bad header: Bearer {TOKEN}".encode())
    hub.faults.add("POST", "/commit/", answer=echo, times=1000)
    with pytest.raises(CheckpointError, match="bad header") as caught:
        go(hub, run_dir, say=said.append)
    hub.faults.clear()
    go(hub, run_dir, say=said.append, tag="v1")
    publish_dataset(RunFiles.read(run_dir), remote(hub, kind="dataset"), "mit", False)
    out, err = capfd.readouterr()
    own_logs = "".join(r.getMessage() for r in caplog.records if r.name.startswith("checkpoints"))
    assert TOKEN not in "".join([str(caught.value), *said, out, own_logs])
    assert TOKEN not in err
    written = [p for top in (run_dir.parent, hub.root) for p in top.rglob("*") if p.is_file()]
    assert len(written) > 30
    assert not [path for path in written if TOKEN.encode() in path.read_bytes()]
    for (_, _), repository in hub.repositories.items():
        everything = repository.git("cat-file", "--batch-all-objects", "--batch", "--buffer")
        assert TOKEN.encode() not in everything


# Killed.

KILLS = {
    "before the first branch": ("POST", "/branch/checkpoints", 0, "before"),
    "inside an upload": ("PUT", "/lfs/object/", 1, "before"),
    "before a commit": ("POST", "/commit/checkpoints", 1, "before"),
    "after a commit": ("POST", "/commit/checkpoints", 1, "after"),
    "after the first commit": ("POST", "/commit/checkpoints", 0, "after"),
    "after a branch": ("POST", "/branch/step", 1, "after"),
    "before main": ("POST", "/commit/main", 0, "before"),
    "after main": ("POST", "/commit/main", 0, "after"),
    "before the tag": ("POST", "/tag/", 0, "before"),
}


def child(hub, run_dir, home):
    command = [sys.executable, "-m", "tests.checkpoints_manifest.publishable"]
    return subprocess.Popen(
        [*command, str(run_dir), hub.endpoint, REPO, "", "v1"], cwd=ROOT,
        env={**os.environ, **hub.environment(home)}, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("place", KILLS)
def test_a_killed_publisher_run_again_ends_in_the_same_refs(
    hub, two_steps, tmp_path, place, wanted
):
    method, path, skip, when = KILLS[place]
    started = []

    def kill():
        started[0].send_signal(signal.SIGKILL)
        started[0].wait()

    hub.faults.add(method, path, skip=skip, **{when: kill})
    started.append(child(hub, two_steps, tmp_path / "home"))
    started[0].communicate(timeout=120)
    assert started[0].returncode == -signal.SIGKILL
    go(hub, two_steps, tag="v1")
    assert trees(hub) == wanted
    assert own_commits(hub) == {BRANCH: WHOLE[BRANCH][2:], "main": ["2 steps", "initial commit"]}
    assert not list(two_steps.glob(".publish-*"))


def test_two_publishers_of_one_run_directory_exclude_each_other(hub, two_steps):
    run = RunFiles.read(two_steps)
    with run.one_publisher(), pytest.raises(CheckpointError, match="another process"):
        go(hub, two_steps)


# The dataset.


def test_the_dataset_repository_holds_index_order_and_logs(hub, run_dir):
    run = RunFiles.read(run_dir)
    data = remote(hub, "org/toy-data", "dataset")
    assert len(dataset_changes(run, data, "mit")) == 8 and hub.changes() == []
    commit = publish_dataset(run, data, "mit", private=False)
    tree = hub.repository("dataset", "org/toy-data").tree(commit)
    logs = {f"runs/toy-1/{name}" for name in LOGS}
    (leaves,) = (name for name in tree if name.startswith("leaves/"))
    assert set(tree) == logs | {
        leaves,
        "index.json",
        "tokenizer.json",
        "README.md",
        ".gitattributes",
    }
    assert tree["runs/toy-1/sequence_loss.f32"].size == 4 * 2 * 4
    assert publish_dataset(run, data, "mit", private=False) == commit
    assert dataset_changes(run, data, "mit") == []


def test_another_dataset_is_not_overwritten(hub, run_dir, tmp_path):
    data = remote(hub, "org/toy-data", "dataset")
    publish_dataset(RunFiles.read(run_dir), data, "mit", private=False)
    other = RunFiles.read(make_run(tmp_path / "other", (0,), tokenizer=b"{}"))
    with pytest.raises(CheckpointError, match="another dataset"):
        publish_dataset(other, data, "mit", private=False)
