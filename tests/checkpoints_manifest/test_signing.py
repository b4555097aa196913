"""Signatures over the ledger. Needs model-signing: installed here, or in another environment.

Without both these tests are skipped, and the reason says so.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from checkpoints_manifest.signing import sign_ledger, verify_signature
from tests.checkpoints_manifest.conftest import flip, save

ROOT = Path(__file__).parents[2]
PYTHON = os.environ.get("TRIPOD_SIGNING_PYTHON") or (
    sys.executable if importlib.util.find_spec("model_signing") else None
)
needs_package = pytest.mark.skipif(
    PYTHON is None,
    reason="SIGNATURES ARE NOT TESTED: model-signing is not installed here and "
    "TRIPOD_SIGNING_PYTHON names no environment that has it",
)


def there(code, *arguments):
    """Runs code where the package is; returns the error's message, or an empty string."""
    program = (
        "import sys; from pathlib import Path\n"
        "from checkpoints_manifest.errors import CheckpointError\n"
        "from checkpoints_manifest.signing import sign_ledger, verify_signature\n"
        "paths = [Path(a) for a in sys.argv[1:]]\n"
        f"try:\n    {code}\nexcept CheckpointError as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [PYTHON, "-c", program, *map(str, arguments)], capture_output=True, text=True,
        check=False, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def sign(run_dir, key):
    return there("sign_ledger(*paths)", run_dir, key)


def verify(run_dir, key):
    return there("verify_signature(*paths)", run_dir, key)


def make_keys(folder, name):
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    command = ["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", private]
    subprocess.run(command, check=True, capture_output=True)
    command = ["openssl", "ec", "-in", private, "-pubout", "-out", public]
    subprocess.run(command, check=True, capture_output=True)
    return private, public


@pytest.fixture
def keys(tmp_path):
    return make_keys(tmp_path, "mine")


@needs_package
def test_a_signed_ledger_verifies_with_our_command_and_with_theirs(run_dir, keys):
    private, public = keys
    assert sign(run_dir, private) == ""
    assert verify(run_dir, public) == ""
    assert not (run_dir / ".manifest.jsonl.sig.tmp").exists()
    theirs = subprocess.run(
        [PYTHON, "-m", "model_signing", "verify", "key", run_dir / "manifest.jsonl", "--signature",
         run_dir / "manifest.jsonl.sig", "--public_key", public],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert theirs.returncode == 0, theirs.stderr


@needs_package
@pytest.mark.parametrize("place", ["manifest.jsonl", "manifest.jsonl.sig"])
def test_a_changed_ledger_or_signature_is_refused(run_dir, keys, place):
    private, public = keys
    sign(run_dir, private)
    flip(run_dir / place, 40)
    assert "is not a signature over" in verify(run_dir, public)


@needs_package
def test_a_ledger_that_grew_must_be_signed_again(run_dir, keys):
    private, public = keys
    sign(run_dir, private)
    save(run_dir, 5)
    assert "must be signed again" in verify(run_dir, public)
    sign(run_dir, private)
    assert verify(run_dir, public) == ""


@needs_package
def test_another_key_is_refused_and_bad_keys_are_named(run_dir, keys, tmp_path):
    private, public = keys
    sign(run_dir, private)
    assert "by the holder of" in verify(run_dir, make_keys(tmp_path, "other")[1])
    assert "could not be signed with" in sign(run_dir, public)
    assert "could not be signed with" in sign(run_dir, tmp_path / "none.pem")
    assert "is not a signature over" in verify(run_dir, tmp_path / "none.pem")
    assert verify(run_dir, public) == ""
    (run_dir / "manifest.jsonl.sig").unlink()
    assert "is missing; sign the run" in verify(run_dir, public)
    (run_dir / "manifest.jsonl").unlink()
    assert "holds no checkpoint" in sign(run_dir, private)


def test_without_the_package_it_is_said_what_to_install(run_dir, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "model_signing", None)
    for act in (sign_ledger, verify_signature):
        with pytest.raises(RuntimeError, match=r"tripod-suite\[signing\]"):
            act(run_dir, tmp_path / "key.pem")
