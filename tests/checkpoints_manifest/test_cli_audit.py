"""The commands: what they print, their exit status, and that they need nothing but their help."""

import argparse
import json

import pytest

from checkpoints_manifest.audit import RepoSnapshot
from checkpoints_manifest.cli_audit import _remote_fetch, add_commands, add_level_flag
from checkpoints_manifest.errors import CheckpointError
from checkpoints_manifest.hub import LocalHub
from checkpoints_manifest.publish import Options, publish
from checkpoints_manifest.run_files import RunFiles
from tests.checkpoints_manifest.conftest import flip
from tests.checkpoints_manifest.publishable import STEPS, make_run, true_label
from tests.checkpoints_manifest.test_audit_source import (
    REPO,
    amend,
    copy_weights,
    remote,
    repository,
)
from tests.loopback.fixtures import serving

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with serving(tmp_path / "loopback", monkeypatch) as served:
        yield served


def run(*words):
    parsers, names = {}, []

    def add(name, act, text, example):
        parser = parsers[name] = argparse.ArgumentParser(prog=f"tripod {name}", description=text)
        parser.set_defaults(run=act)
        names.append(name)
        return parser

    add_commands(add)
    assert names == ["audit", "hub gc", "sign", "verify signature"]
    words = [str(word) for word in words]
    name = next(name for name in names if words[: len(name.split())] == name.split())
    arguments = parsers[name].parse_args(words[len(name.split()) :])
    return arguments.run(arguments)


@pytest.fixture
def run_dir(tmp_path):
    return make_run(tmp_path / "suite")


@pytest.fixture
def published(hub, run_dir):
    publish(RunFiles.read(run_dir), remote(hub), true_label, Options(), lambda line: None)
    return hub


@pytest.fixture
def local(run_dir, tmp_path):
    run, hub = RunFiles.read(run_dir), LocalHub(run_dir.parent / "hub")
    for record in run.records:
        files = tmp_path / f"files-{record['step']}"
        run.export(record, files, with_state=False)
        hub.publish(REPO, f"step{record['step']}", files)
    hub.set_main(REPO, f"step{STEPS[-1]}")
    return hub


def test_an_audit_over_http_exits_with_its_verdict(published, capsys, tmp_path):
    words = ("audit", REPO, "--endpoint", published.endpoint, "--details")
    assert run(*words) == 0
    assert "ok   org/toy-1: 4 steps; the ledger on main; nothing found" in capsys.readouterr().out
    copy_weights(published, "step1", "step2")
    page = tmp_path / "audit.html"
    assert run(*words, "--json", "--html", page) == 1
    found = json.loads(capsys.readouterr().out)["repositories"][0]["findings"]
    assert {f["kind"] for f in found} == {"duplicate-weights", "ledger"}
    assert "2 steps serve the same weights: step1, step2" in page.read_text()


def test_a_deep_audit_downloads_samples_and_checks_their_bytes(published, capsys, tmp_path):
    words = ("audit", REPO, "--endpoint", published.endpoint, "--deep", "3")
    assert run(*words) == 1
    # Weights of this fixture are drawn anew at each step: no descent at all.
    assert "step1 does not descend from step0" in capsys.readouterr().out
    tree = repository(published).tree(repository(published).refs("heads")["step1"])
    published.corrupt_object(tree["model.safetensors"].sha256)
    assert run(*words) == 1
    assert "step1: model.safetensors has not the SHA-256" in capsys.readouterr().out


def test_a_deep_audit_finds_an_order_file_that_lost_most_of_its_content(published, capsys):
    amend(published, "main", {"order/shuffle_idx.npy": b"\1" * 4096 + bytes(12 * 4096)})
    assert run("audit", REPO, "--endpoint", published.endpoint, "--deep", "2") == 1
    assert "main:order/shuffle_idx.npy: 92% of it are zeros" in capsys.readouterr().out


@pytest.mark.parametrize("path", ["../out.safetensors", "/abs.safetensors", "a/../../b"])
def test_a_deep_audit_writes_nothing_outside_its_folder(path):
    snapshot = RepoSnapshot("org/x", {"step0": {path: (1, "0" * 64)}}, {"step0": "0" * 40})
    with (
        pytest.raises(CheckpointError, match="expected a path inside the repository"),
        _remote_fetch(None, snapshot)("step0", [path]),
    ):
        pass


def test_a_local_hub_is_audited_by_its_directory(local, capsys):
    assert run("audit", local.root) == 0
    assert run("audit", local.root, "--schedule", "0,1,2,3,4") == 1
    assert "no revision step3; expected (declared: 0,1,2,3,4)" in capsys.readouterr().out
    with pytest.raises(CheckpointError, match="holds no model"):
        run("audit", local.root.parent)
    with pytest.raises(ValueError, match="expected a schedule like"):
        run("audit", local.root, "--schedule", "sometimes")


def test_runs_that_share_weights_are_found_between_repositories(local, capsys, tmp_path):
    other = LocalHub(local.root)
    for step in STEPS:
        other.publish("org/toy-2", f"step{step}", tmp_path / f"files-{step}")
    other.set_main("org/toy-2", f"step{STEPS[-1]}")
    page = tmp_path / "audit.html"
    assert run("audit", local.root, "--html", page) == 1
    assert "FAIL between repositories: shared-between-runs" in capsys.readouterr().out
    assert "Between the repositories" in page.read_text()


def test_gc_says_what_it_would_do_and_does_it(local, capsys):
    (local.repository(REPO) / "refs" / "step1").unlink()
    assert run("hub", "gc", local.root, "--dry-run") == 0
    out = capsys.readouterr().out
    assert "org/toy-1: would remove 1 snapshots, 2 blobs" in out
    assert run("hub", "gc", local.root) == 0
    # The weights stay: the ledger of the run beside the Hub names them.
    blobs = local.repository(REPO) / "blobs"
    assert len([p for p in blobs.iterdir() if len(p.name) == 64]) == len(STEPS)
    with pytest.raises(CheckpointError, match="holds no model"):
        run("hub", "gc", local.root.parent)


def test_signing_prints_and_fails_as_it_should(run_dir, capsys, monkeypatch):
    import checkpoints_manifest.cli_audit as cli

    monkeypatch.setattr(cli, "sign_ledger", lambda path, key, password: path / "manifest.jsonl.sig")
    assert run("sign", run_dir, "--key", "mine.pem") == 0
    assert f"signed, {len(STEPS)} checkpoints" in capsys.readouterr().out

    def refuse(path, key):
        raise CheckpointError("not his")

    monkeypatch.setattr(cli, "verify_signature", refuse)
    assert run("verify", "signature", run_dir, "--key", "none.pub") == 1
    assert "FAIL not his" in capsys.readouterr().out
    monkeypatch.setattr(cli, "verify_signature", lambda path, key: None)
    assert run("verify", "signature", run_dir, "--key", "mine.pub") == 0
    flip(run_dir / "manifest.jsonl", 400)
    with pytest.raises(CheckpointError, match=r"manifest\.jsonl line"):
        run("sign", run_dir, "--key", "none.pem")


def test_the_level_flag():
    parser = argparse.ArgumentParser()
    add_level_flag(parser)
    assert parser.parse_args([]).level == "chain"
    assert parser.parse_args(["--level", "bytes"]).level == "bytes"
