"""`tripod data verify`, and the recipe files of `tripod data build`."""

import argparse
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_pipeline.errors import DatasetError

Add = Callable[[str, Callable[[argparse.Namespace], int], str, str], argparse.ArgumentParser]


def add_commands(add: Add) -> None:
    """Add ``data verify``."""
    sub = add(
        "data verify",
        run_verify,
        "recompute every digest, size, border and id of a dataset",
        "data verify data/web --text",
    )
    sub.add_argument("dir", type=Path)
    sub.add_argument("--text", action="store_true", help="also compare the text of every document")
    sub.add_argument("--expect", help="index digest to expect")


def load_recipe(path: Path) -> dict[str, Any]:
    """Read a recipe.

    Args:
        path: YAML of a recipe, or of a configuration that holds one under ``data.build``.

    Raises:
        DatasetError: No file, no YAML, or no mapping.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        found = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except (OSError, YAMLError, OmegaConfBaseException) as error:
        raise DatasetError(f"{path}: expected a recipe in YAML, found {error}") from error
    if isinstance(found, dict) and "data" in found:
        found = found["data"].get("build") if isinstance(found["data"], dict) else None
    if not isinstance(found, dict):
        raise DatasetError(f"{path}: expected a recipe (a mapping), found {found!r}")
    return {str(key): value for key, value in found.items()}


def run_verify(arguments: argparse.Namespace) -> int:
    """`tripod data verify`."""
    from data_pipeline.cli_megatron import verify_lines
    from data_pipeline.datasets import open_index
    from data_pipeline.index import verify_dataset
    from data_pipeline.megatron_index import MegatronIndex

    if isinstance(open_index(arguments.dir), MegatronIndex):
        if arguments.text:
            raise DatasetError(
                f"{arguments.dir}: --text compares ids with the text they were made from, and "
                "Megatron files keep none; leave it out"
            )
        print("\n".join(verify_lines(arguments.dir, arguments.expect)))
        return 0
    counts = Counter[str]()
    index = verify_dataset(arguments.dir, arguments.expect, arguments.text, counts)
    tokens = sum(index.num_tokens(split) for split in index.splits)
    print(f"ok  {arguments.dir}: {counts['documents']:,} documents, {tokens:,} tokens")
    if arguments.text:
        print(f"    text equal to its source: {counts['text_equal']:,} documents")
    if counts["text_changed_by_tokenizer"]:
        changed = index.data["policies"]["normalisation"]
        print(
            f"    text changed by the tokenizer ({changed}), so that only its ids could be "
            f"compared: {counts['text_changed_by_tokenizer']:,} documents"
        )
    print(f"    index digest {index.digest}")
    return 0
