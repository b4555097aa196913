"""One sweep of the smallest suite, trained once for every test that looks at a finished suite."""

import shutil

import pytest

from tests.suite.smoke import tripod


@pytest.fixture(scope="session")
def calm(tmp_path_factory):
    """The `smoke` suite, trained in peace with two ranks: its directory and the sweep's output."""
    root = tmp_path_factory.mktemp("calm")
    done = tripod("sweep", "smoke", "--root", root, "--ranks", 2)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return root / "smoke", done.stdout


@pytest.fixture
def copy(calm, tmp_path):
    """A copy of the finished suite that a test may damage."""
    target = tmp_path / "smoke"
    shutil.copytree(calm[0], target, symlinks=True)
    return target
