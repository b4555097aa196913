"""One small suite, trained and analysed once; tests that change files take a copy."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.analysis.fixture_suite import make_suite

RUNGS = [("toy-8k", 8, 1, 0), ("toy-8k-seed1", 8, 1, 1), ("toy-50k", 32, 2, 0)]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Numbers depend on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained and published suite without tables; no test changes it."""
    return make_suite(tmp_path_factory.mktemp("runs") / "toy", RUNGS)


@pytest.fixture(scope="session")
def analysed(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same suite with tables and report; no test changes it."""
    from analysis.analyze import analyze_suite

    copy = tmp_path_factory.mktemp("analysed") / "toy"
    shutil.copytree(trained, copy, symlinks=True)
    analyze_suite(copy, progress=lambda line: None, workers=1)
    return copy
