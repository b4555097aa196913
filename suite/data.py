"""The dataset of a suite: built once, checked against the digest that the suite file states."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_pipeline.build import build_dataset
from data_pipeline.datasets import notices, open_index
from data_pipeline.megatron_build import MegatronPart, build_megatron_index
from data_pipeline.megatron_index import NeoxPlan
from data_pipeline.tokenizer import Tokenizer
from suite.config import ConfigError, RunConfig

_MEGATRON_KEYS = ("parts", "vocab_size", "eod", "eod_policy", "neox", "tokenizer")
_PLAN_KEYS = ("split", "num_samples", "seq_len", "epochs")


class IndexDigestError(RuntimeError):
    """The dataset is not the one the suite was written for."""


def ensure_dataset(config: RunConfig, root: Path, workers: int = 2) -> RunConfig:
    """Builds the dataset when it is missing and returns the config with its index digest filled in.

    Args:
        config: a run of the suite.
        root: directory that holds the suites.
        workers: processes for tokenization; the result does not depend on it.

    Raises:
        ConfigError: there is no dataset and no recipe to build it from.
        IndexDigestError: the suite file states another digest.
    """
    directory = root / config.suite.name / config.data.dir
    if not (directory / "index.json").exists():
        if not config.data.build:
            raise ConfigError(
                f"{directory}: expected a dataset, found none, and data.build is empty; build it "
                "(`tripod data build`, `tripod data index-megatron`), or state a recipe"
            )
        directory.parent.mkdir(parents=True, exist_ok=True)
        build(config.data.build, directory, workers)
    index = open_index(directory)
    for notice in notices(index):
        _say(f"note: {notice}")
    found, expected = index.digest, config.data.index_digest
    if expected is not None and expected != found:
        raise IndexDigestError(
            f"suite {config.suite.name!r} expects the data index {expected}, but {directory} has "
            f"{found}. Likely reasons: another version of a package that the corpus is read from "
            "(compare with requirements.lock; `make setup` installs the pins), or a changed "
            f"recipe. Remove {directory} and build again"
        )
    return dataclasses.replace(config, data=dataclasses.replace(config.data, index_digest=found))


def build(recipe: Mapping[str, Any], directory: Path, workers: int) -> None:
    """Builds a dataset from `data.build`: a recipe of text, or `megatron` files where they lie.

    Raises:
        ConfigError: keys of `data.build.megatron` that are unknown or missing.
        DatasetError: see `data_pipeline.build.build_dataset` and `build_megatron_index`.
    """
    if "megatron" not in recipe:
        build_dataset(dict(recipe), directory, workers=workers, progress=_say)
        return
    files = {"tokenizer": None, **recipe["megatron"]}
    _expect_keys("data.build.megatron", files, _MEGATRON_KEYS)
    plan = files["neox"]
    if plan is not None:
        _expect_keys("data.build.megatron.neox", plan, _PLAN_KEYS)
        plan = NeoxPlan(**plan)
    build_megatron_index(
        directory,
        [MegatronPart.of(**part) for part in files["parts"]],
        files["vocab_size"],
        files["eod"],
        files["eod_policy"],
        plan,
        None if files["tokenizer"] is None else Tokenizer.load(files["tokenizer"]),
    )


def _expect_keys(place: str, found: Mapping[str, Any], keys: tuple[str, ...]) -> None:
    if set(found) != set(keys):
        raise ConfigError(f"{place}: expected the keys {list(keys)}, found {sorted(found)}")


def _say(message: str) -> None:
    print(f"data: {message}", file=sys.stdout, flush=True)
