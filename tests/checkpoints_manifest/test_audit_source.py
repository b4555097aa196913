"""Snapshots: what an audit reads of a Hub over HTTP and of a local Hub's directory."""

import pytest

from checkpoints_manifest.audit import audit
from checkpoints_manifest.audit.report import AuditReport
from checkpoints_manifest.audit.source import (
    local_repositories,
    snapshot_local,
    snapshot_remote,
)
from checkpoints_manifest.errors import CheckpointError
from checkpoints_manifest.hub import LocalHub
from checkpoints_manifest.publish import Options, publish
from checkpoints_manifest.remote import Remote
from checkpoints_manifest.run_files import RunFiles
from tests.checkpoints_manifest.publishable import STEPS, make_run, quick_pacer, true_label
from tests.loopback.fixtures import serving
from tests.loopback.server import TOKEN

REPO = "org/toy-1"
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with serving(tmp_path / "loopback", monkeypatch) as served:
        yield served


def remote(server, repo=REPO):
    return Remote(repo, endpoint=server.endpoint, token=TOKEN, pacer=quick_pacer())


@pytest.fixture
def published(hub, tmp_path):
    run_dir = make_run(tmp_path / "suite")
    publish(RunFiles.read(run_dir), remote(hub), true_label, Options(tag="v1"), lambda line: None)
    return hub


def repository(server):
    return server.repository("model", REPO)


def look(server, details=True):
    return audit(snapshot_remote(remote(server), details))


def amend(server, branch, files, deleted=()):
    """Somebody writes to a branch behind the publisher's back."""
    repository(server).commit(branch, files, deleted, "fix")


def pointer(tree, path):
    entry = tree[path]
    return (
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{entry.sha256}\n"
        f"size {entry.size}\n"
    ).encode()


def copy_weights(server, source, target):
    heads = repository(server).refs("heads")
    tree = repository(server).tree(heads[source])
    amend(server, target, {"model.safetensors": pointer(tree, "model.safetensors")})


def move(server, name, commit):
    repository(server).git("update-ref", f"refs/heads/{name}", commit)


@pytest.mark.parametrize("details", [False, True])
def test_a_published_run_has_no_finding(published, details):
    snapshot = snapshot_remote(remote(published), details)
    report = AuditReport.of(snapshot)
    assert report.findings == ()
    assert report.schedule.words == "the ledger on main"
    assert list(snapshot.steps.values()) == list(STEPS)
    assert len(snapshot.history) == len(STEPS) + 1


def test_no_weights_are_downloaded(published):
    published.requests.clear()
    snapshot_remote(remote(published), details=True)
    asked = [path for _, path, _ in published.requests]
    assert not [path for path in asked if "safetensors" in path or "/lfs/" in path]
    assert {method for method, _, _ in published.requests} == {"GET"}
    published.requests.clear()
    snapshot_remote(remote(published))
    files = [path.rsplit("/", 1)[1] for _, path, _ in published.requests if "/resolve/" in path]
    assert files == ["manifest.jsonl", "commits.jsonl"]


FAULTS = {
    "duplicate branch": (lambda s: copy_weights(s, "step1", "step2"),
                         {"duplicate-weights", "ledger"}),
    "missing branch": (lambda s: repository(s).delete_ref("heads", "step2"), {"missing-step"}),
    "moved branch": (lambda s: move(s, "step2", repository(s).refs("heads")["step1"]),
                     {"duplicate-weights", "renamed-step", "ledger"}),
    "main behind": (lambda s: copy_weights(s, "step1", "main"), {"main-not-last"}),
    "no weights": (lambda s: amend(s, "step1", {}, ("model.safetensors",)),
                   {"unreadable-step", "ledger"}),
    "other configuration": (lambda s: amend(s, "step1", {"config.json": b"{}"}),
                            {"config-drift", "ledger"}),
    "ledger cut": (lambda s: amend(s, "main", {"manifest.jsonl": b'{"step":0'}), {"ledger"}),
    "zeroed order": (lambda s: amend(s, "main", {"run/order.log": bytes(32 * 6)}),
                     {"zeroed-file", "ledger"}),
    "order mostly zeros": (
        lambda s: amend(s, "main", {"run/order.log": bytes(32 * 5) + b"\1" * 32}), {"ledger"}
    ),
    "stray branch": (lambda s: move(s, "fix-2", repository(s).refs("heads")["step1"]),
                     {"other-branch"}),
    "padded name": (lambda s: move(s, "step04", repository(s).refs("heads")["step4"]),
                    {"odd-name"}),
    "step of nobody": (lambda s: move(s, "step9", repository(s).refs("heads")["step4"]),
                       {"duplicate-weights", "ledger", "renamed-step"}),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_what_somebody_does_to_a_published_run_is_found(published, name):
    change, expected = FAULTS[name]
    change(published)
    found = {finding.kind for finding in look(published)}
    assert found == expected


def test_a_repository_that_is_not_there_is_an_error(hub):
    with pytest.raises(CheckpointError, match="there is no repository org/nothing"):
        snapshot_remote(remote(hub, "org/nothing"))


@pytest.fixture
def local(tmp_path):
    run_dir = make_run(tmp_path / "suite")
    run, hub = RunFiles.read(run_dir), LocalHub(tmp_path / "hub")
    for record in run.records:
        files = tmp_path / f"files-{record['step']}"
        run.export(record, files, with_state=False)
        hub.publish(REPO, f"step{record['step']}", files)
    hub.set_main(REPO, f"step{STEPS[-1]}")
    return hub


def test_a_local_hub_has_no_finding(local):
    assert local_repositories(local.root) == [REPO]
    snapshot = snapshot_local(local.root, REPO)
    assert set(snapshot.revisions) == {"main", *(f"step{step}" for step in STEPS)}
    assert audit(snapshot) == []


def test_renamed_moved_and_broken_revisions_of_a_local_hub_are_found(local):
    refs = local.repository(REPO) / "refs"
    saved = (refs / "step2").read_text()
    (refs / "step2").rename(refs / "step3")
    assert {f.kind for f in audit(snapshot_local(local.root, REPO))} == {"renamed-step"}
    (refs / "step3").rename(refs / "step2")
    (refs / "step2").write_text((refs / "step1").read_text())
    found = {f.kind for f in audit(snapshot_local(local.root, REPO))}
    assert found == {"duplicate-weights", "renamed-step"}
    (refs / "step2").write_text(saved)
    link = local.repository(REPO) / "snapshots" / saved / "model.safetensors"
    link.resolve().unlink()
    (finding,) = audit(snapshot_local(local.root, REPO))
    assert "model.safetensors has no content" in finding.message
    (refs / "step2").write_text("junk")
    with pytest.raises(CheckpointError, match="expected a commit, found 'junk'"):
        snapshot_local(local.root, REPO)
    with pytest.raises(CheckpointError, match="holds no repository"):
        snapshot_local(local.root, "org/other")
