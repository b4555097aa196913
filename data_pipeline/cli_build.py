"""`tripod data build` and `tripod data verify`: datasets from the command line."""

import argparse
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from data_pipeline.errors import DatasetError

Run = Callable[[argparse.Namespace], int]
SuiteRecipe = Callable[[str], Mapping[str, Any]]


class Add(Protocol):
    """Adds a command to the table of ``tripod``."""

    def __call__(self, name: str, run: Run, text: str, example: str) -> argparse.ArgumentParser:
        """Add one; see ``suite.command_line``."""
        ...


def add_commands(add: Add, suite_recipe: SuiteRecipe | None = None) -> None:
    """Add ``data build`` and ``data verify``.

    Args:
        add: The table.
        suite_recipe: Returns the recipe of a suite by its name; without it, only files are known.
    """
    sub = add(
        "data build",
        lambda arguments: _build(arguments, suite_recipe),
        "build a dataset from a recipe; the same command goes on with a build that was interrupted",
        "data build recipe.yaml --out data/web --workers 8",
    )
    sub.add_argument("recipe", help="a YAML file, or the name of a suite")
    sub.add_argument("--out", type=Path, required=True, help="the directory to create")
    sub.add_argument(
        "--workers", type=int, default=1, help="processes (default: 1); changes no bit"
    )
    sub = add(
        "data verify",
        _verify,
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


def _build(arguments: argparse.Namespace, suite_recipe: SuiteRecipe | None) -> int:
    from data_pipeline.build import build_dataset

    path = Path(arguments.recipe)
    if suite_recipe is not None and not path.is_file() and path.suffix not in (".yaml", ".yml"):
        recipe = suite_recipe(arguments.recipe)
    else:
        recipe = load_recipe(path)
    build_dataset(recipe, arguments.out, arguments.workers, progress=_say)
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from data_pipeline.index import verify_dataset

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


def _say(line: str) -> None:
    print(line, flush=True)
