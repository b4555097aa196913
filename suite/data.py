"""The dataset of a suite: built once, checked against the digest that the suite file states."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

from data_pipeline.build import build_dataset
from data_pipeline.index import ShardIndex
from suite.config import RunConfig


class IndexDigestError(RuntimeError):
    """The dataset is not the one the suite was written for."""


def ensure_dataset(config: RunConfig, root: Path, workers: int = 2) -> RunConfig:
    """Builds the dataset when it is missing and returns the config with its index digest filled in.

    Args:
        config: a run of the suite.
        root: directory that holds the suites.
        workers: processes for tokenization; the result does not depend on it.

    Raises:
        IndexDigestError: the suite file states another digest.
    """
    directory = root / config.suite.name / config.data.dir
    if not (directory / "index.json").exists():
        directory.parent.mkdir(parents=True, exist_ok=True)
        build_dataset(dict(config.data.build), directory, workers=workers, progress=_say)
    found = ShardIndex.load(directory).digest
    expected = config.data.index_digest
    if expected is not None and expected != found:
        raise IndexDigestError(
            f"suite {config.suite.name!r} expects the data index {expected}, but {directory} has "
            f"{found}. Likely reasons: "
            "another version of a package that the corpus is read from (compare with "
            "requirements.lock; `make setup` "
            f"installs the pins), or a changed recipe. Remove {directory} and build again"
        )
    return dataclasses.replace(config, data=dataclasses.replace(config.data, index_digest=found))


def _say(message: str) -> None:
    print(f"data: {message}", file=sys.stdout, flush=True)
