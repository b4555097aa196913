"""The two commands as a user runs them: another process, configured by environment alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from checkpoints_manifest.verify import verify_checkpoints
from tests.checkpoints_manifest.publishable import make_run
from tests.loopback.fixtures import serving
from tests.loopback.server import TOKEN

ROOT = Path(__file__).parents[2]
DRIVER = """
import argparse, sys
from pathlib import Path
from checkpoints_manifest import cli_hub
from checkpoints_manifest.errors import CheckpointError
parser = argparse.ArgumentParser()
commands = parser.add_subparsers()
def add(name, run, text, example):
    sub = commands.add_parser(name, help=text)
    sub.set_defaults(run=run)
    return sub
cli_hub.add_commands(add)
sub = add("publish", lambda a: cli_hub.publish_to(a, lambda step: None), "", "")
sub.add_argument("path", type=Path)
cli_hub.add_publish_options(sub)
arguments = parser.parse_args()
try:
    sys.exit(arguments.run(arguments))
except CheckpointError as error:
    sys.exit(f"tripod: {error}")
"""


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with serving(tmp_path / "loopback", monkeypatch) as served:
        yield served


@pytest.fixture
def tripod(hub, tmp_path):
    def run(*arguments, **environment):
        done = subprocess.run(
            [sys.executable, "-c", DRIVER, *map(str, arguments)], cwd=ROOT, text=True,
            capture_output=True, check=False,
            env={**os.environ, **hub.environment(tmp_path / "home"), **environment},
        )  # fmt: skip
        assert TOKEN not in done.stdout + done.stderr
        return done

    return run


@pytest.mark.slow
def test_a_run_is_published_with_its_dataset_and_pulled_by_a_stranger(hub, tripod, tmp_path):
    run_dir = make_run(tmp_path / "suite", (0, 1))
    wanted = ("publish", run_dir, "--to", "org/toy-1", "--dataset-to", "org/data", "--with-state",
              "--tag", "v1")  # fmt: skip
    plan = tripod(*wanted, "--dry-run")
    assert plan.returncode == 0 and hub.changes() == [], plan.stderr
    assert "would commit step1" in plan.stdout and "datasets/org/data" in plan.stdout
    done = tripod(*wanted, "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["new"] == facts["steps"] == [0, 1]
    # A clean client: no login, another home.
    pulled = tripod(
        "pull", "org/toy-1", "--to", tmp_path / "to", "--with-state", "--revision", "v1",
        "--expect", facts["digest"], HF_TOKEN="", HF_HOME=str(tmp_path / "stranger"),
    )  # fmt: skip
    assert pulled.returncode == 0, pulled.stderr
    assert "2 steps as published, 2 new" in pulled.stdout
    assert verify_checkpoints(tmp_path / "to" / "toy-1").findings == ()
    # No byte of the token on this disk, but where the test itself lies.
    for top in ("suite", "to", "home", "stranger", "loopback"):
        for path in (tmp_path / top).rglob("*"):
            if path.is_file():
                assert TOKEN.encode() not in path.read_bytes(), path
    refused = tripod("publish", run_dir, "--to", "org/toy-1", HF_TOKEN="", HF_HOME=str(tmp_path))
    assert refused.returncode == 1 and "hf auth login" in refused.stderr
    offline = tripod("pull", "org/toy-1", "--to", tmp_path / "x", HF_HUB_OFFLINE="1")
    assert offline.returncode == 1 and "offline mode" in offline.stderr.lower()
