"""`hub gc`: what a ref or a ledger needs stays, readers see no gap, the Hub's scanner agrees."""

import contextlib
import hashlib
import itertools
import os
import shutil
import signal
import threading
import time

import pytest
from huggingface_hub import scan_cache_dir

from checkpoints_manifest.errors import CheckpointError
from checkpoints_manifest.hub import LocalHub
from checkpoints_manifest.hub_gc import collect_garbage
from checkpoints_manifest.run_files import RunFiles
from tests.checkpoints_manifest.publishable import make_run

REPO = "org/toy-1"


def put(hub, scratch, step, **changed):
    files = scratch / f"files-{step}"
    shutil.rmtree(files, ignore_errors=True)
    files.mkdir(parents=True)
    content = {"model.safetensors": f"weights {step}" * 500, "config.json": "{}"} | changed
    for name, text in content.items():
        (files / name).write_text(text)
    return hub.publish(REPO, f"step{step}", files)


@pytest.fixture
def hub(tmp_path):
    found = LocalHub(tmp_path / "hub")
    for step in (0, 1, 4):
        put(found, tmp_path, step)
    found.set_main(REPO, "step4")
    return found


def content(hub):
    return {
        path.relative_to(hub.root): path.read_bytes()
        for path in hub.root.rglob("*")
        if path.is_file() and ".locks" not in path.parts
    }


def place(hub, *names):
    return hub.repository(REPO).joinpath(*names)


def test_a_hub_in_which_everything_is_needed_stays_as_it_is(hub):
    before = content(hub)
    garbage = collect_garbage(hub, REPO)
    assert garbage.paths == ()
    assert content(hub) == before
    assert not scan_cache_dir(hub.root).warnings


def test_what_a_removed_ref_leaves_goes_and_the_rest_stays(hub):
    before = content(hub)
    commit = hub.commit_of(REPO, "step1")
    place(hub, "refs", "step1").unlink()
    planned = collect_garbage(hub, REPO, dry_run=True)
    assert place(hub, "snapshots", commit).is_dir()
    done = collect_garbage(hub, REPO)
    assert done == planned
    assert done.snapshots == (place(hub, "snapshots", commit),)
    # The weights; the configuration is another step's too.
    assert [path.read_bytes() for path in done.blobs if path.exists()] == []
    assert len(done.blobs) == 1
    after = content(hub)
    names = ("config.json", "model.safetensors")
    links = [place(hub, "snapshots", commit, name) for name in names]
    gone = [*done.blobs, place(hub, "refs", "step1"), *links]
    assert set(before) - set(after) == {path.relative_to(hub.root) for path in gone}
    assert all(after[path] == before[path] for path in after)
    found = scan_cache_dir(hub.root)
    assert not found.warnings
    (repository,) = found.repos
    assert {r for revision in repository.revisions for r in revision.refs} == {
        "step0", "step4", "main",
    }  # fmt: skip


def test_a_killed_publishers_leftovers_go(hub, tmp_path):
    from checkpoints_manifest import hub as module

    child = os.fork()
    if child == 0:
        module._set_ref = lambda *arguments: os._exit(9)
        put(hub, tmp_path, 8)
        os._exit(0)
    os.waitpid(child, 0)
    place(hub, "blobs", ".tmp-abc-1").write_bytes(b"x")
    place(hub, "refs", ".step9.tmp-1-ab").write_bytes(b"")
    place(hub, ".tmp-gc-abc").mkdir()
    before = {path for path in content(hub) if "step" in path.name}
    garbage = collect_garbage(hub, REPO)
    assert len(garbage.snapshots) == len(garbage.blobs) == 1
    assert len(garbage.temporary) == 3
    assert not any(path.exists() for path in garbage.paths)
    assert {path for path in content(hub) if "step" in path.name} == before - {
        path.relative_to(hub.root) for path in garbage.temporary
    }
    assert put(hub, tmp_path, 8) == hub.commit_of(REPO, "step8")


def test_removing_a_linked_blob_leaves_the_runs_file_and_frees_nothing(hub, tmp_path):
    place(hub, "refs", "step1").unlink()
    garbage = collect_garbage(hub, REPO)
    assert garbage.freed_bytes == 0
    assert (tmp_path / "files-1" / "model.safetensors").read_text() == "weights 1" * 500


def test_blobs_that_a_ledger_names_stay(tmp_path):
    run_dir = make_run(tmp_path / "suite")
    run, hub = RunFiles.read(run_dir), LocalHub(tmp_path / "hub")
    for record in run.records:
        files = tmp_path / f"files-{record['step']}"
        run.export(record, files, with_state=False)
        hub.publish(REPO, f"step{record['step']}", files)
    for ref in list(place(hub, "refs").iterdir()):
        ref.unlink()
    weights = {i["sha256"] for r in run.records for i in r["files"] if i["path"].startswith("mod")}
    ledger = run_dir / "manifest.jsonl"
    planned = {path.name for path in collect_garbage(hub, REPO, dry_run=True).blobs}
    kept = {path.name for path in collect_garbage(hub, REPO, [ledger], dry_run=True).blobs}
    assert weights <= planned
    assert planned - kept == weights
    ledger.write_bytes(ledger.read_bytes().replace(b'"step":1,', b'"step":9,'))
    with pytest.raises(CheckpointError, match="chain is broken"):
        collect_garbage(hub, REPO, [ledger])


def test_a_ledger_inside_a_kept_snapshot_protects_too(hub, tmp_path):
    run_dir = make_run(tmp_path / "suite")
    ledger = (run_dir / "manifest.jsonl").read_bytes()
    sha256 = RunFiles.read(run_dir).records[0]["files"][0]["sha256"]
    place(hub, "blobs", sha256).write_bytes(b"named by a ledger only")
    assert [path.name for path in collect_garbage(hub, REPO, dry_run=True).blobs] == [sha256]
    put(hub, tmp_path, 8, **{"manifest.jsonl": ledger.decode()})
    assert collect_garbage(hub, REPO).blobs == ()


@pytest.mark.parametrize("text", ["", "junk", "a" * 39, "../../../../etc"])
def test_a_ref_that_cannot_be_read_stops_everything(hub, text):
    place(hub, "refs", "step1").write_text(text)
    before = content(hub)
    with pytest.raises(CheckpointError, match="expected a commit"):
        collect_garbage(hub, REPO)
    assert content(hub) == before
    with pytest.raises(CheckpointError, match="holds no repository"):
        collect_garbage(hub, "org/none")


def test_nothing_outside_the_repository_is_removed(hub, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("x")
    stray = place(hub, "snapshots", "f" * 40)
    stray.symlink_to(outside)
    place(hub, "blobs", "odd").symlink_to(outside / "file")
    collect_garbage(hub, REPO)
    assert (outside / "file").read_text() == "x"
    assert not stray.is_symlink()


@pytest.mark.parametrize("name", ["unlink", "rename", "rmdir"])
def test_killed_at_any_removal_the_next_one_finishes(hub, tmp_path, name, monkeypatch):
    for step in (0, 1):
        place(hub, "refs", f"step{step}").unlink()
    garbage = collect_garbage(hub, REPO, dry_run=True)
    real = getattr(os, name)

    def die_at(at):
        calls = itertools.count(1)

        def counted(*arguments, **keywords):
            return os._exit(9) if next(calls) == at else real(*arguments, **keywords)

        monkeypatch.setattr(os, name, counted)

    for at in range(1, 4):
        child = os.fork()
        if child == 0:
            die_at(at)
            collect_garbage(hub, REPO)
            os._exit(0)
        os.waitpid(child, 0)
        assert not scan_cache_dir(hub.root).warnings
    collect_garbage(hub, REPO)
    assert not any(path.exists() for path in garbage.paths)
    assert not list(hub.repository(REPO).glob(".tmp-*"))
    assert place(hub, "refs", "step4").exists()
    put(hub, tmp_path, 8)


def read_until_told(hub, tell):
    """A reader: every ref leads to a whole snapshot whose weights are those of its step."""
    reads = 0
    while True:
        for ref in place(hub, "refs").glob("step*"):
            snapshot = place(hub, "snapshots", ref.read_text())
            text = (snapshot / "model.safetensors").read_text()
            expected = f"weights {ref.name.removeprefix('step')}" * 500
            blob = (snapshot / "model.safetensors").resolve().name
            if text != expected or hashlib.sha256(text.encode()).hexdigest() != blob:
                os._exit(1)
            if (snapshot / "config.json").read_text() != "{}":
                os._exit(2)
            reads += 1
        os.write(tell, b".")


@contextlib.contextmanager
def readers(hub, count):
    """Reading processes; after the block, none of them may have found anything wrong."""
    read_end, tell = os.pipe()
    children = []
    try:
        for _ in range(count):
            child = os.fork()
            if child == 0:
                # Whatever ends it, even an exception, it must not run the rest of the test.
                with contextlib.ExitStack() as stack:
                    stack.callback(os._exit, 3)
                    read_until_told(hub, tell)
            children.append(child)
        yield
        assert len(os.read(read_end, 1 << 16)) > count
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
        ends = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert ends == [-signal.SIGKILL] * count


@contextlib.contextmanager
def collecting(hub):
    """Collects garbage all the time, in a thread."""
    done, problems = threading.Event(), []

    def collect():
        while not done.is_set():
            try:
                collect_garbage(hub, REPO)
            except (CheckpointError, OSError) as error:
                problems.append(error)
                return

    collector = threading.Thread(target=collect)
    collector.start()
    try:
        yield
    finally:
        done.set()
        collector.join()
    assert problems == []


def test_readers_see_whole_revisions_while_others_publish_and_collect(hub, tmp_path):
    step, until = 5, time.monotonic() + 1.5
    with readers(hub, 2), collecting(hub):
        while time.monotonic() < until or step < 8:
            # A snapshot without a ref, as a killed writer leaves it, and then the whole step.
            stray = place(hub, "snapshots", hashlib.sha1(str(step).encode()).hexdigest())
            stray.mkdir()
            with contextlib.suppress(FileNotFoundError):
                (stray / "config.json").symlink_to("../../blobs/none")
            put(hub, tmp_path, step)
            hub.set_main(REPO, f"step{step}")
            step += 1
    collect_garbage(hub, REPO)
    found = scan_cache_dir(hub.root)
    assert not found.warnings
    (repository,) = found.repos
    assert len(repository.revisions) == step - 5 + 3
