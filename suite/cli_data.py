"""`tripod data build`: a recipe file, or the dataset of a suite, here or as tasks of a cluster."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

Add = Callable[[str, Callable[[argparse.Namespace], int], str, str], argparse.ArgumentParser]


def add_commands(add: Add) -> None:
    """Add `data build`."""
    sub = add(
        "data build",
        run_build,
        "build a dataset, or go on with a build that was interrupted",
        "data build recipe.yaml --out data/web --workers 8",
    )
    sub.add_argument("recipe", help="a recipe in YAML, or the name of a suite")
    sub.add_argument("overrides", nargs="*", help="Hydra overrides of a suite: pile=/path/document")
    sub.add_argument("--out", type=Path, help="the directory to create (a suite knows its own)")
    sub.add_argument("--root", type=Path, default=Path("runs"), help="where suites live")
    sub.add_argument("--workers", type=int, help="processes (default: one a core); changes no bit")
    sub.add_argument(
        "--launcher",
        metavar="NAME",
        help="run shard groups of a suite's data as tasks: joblib, submitit_slurm, ...",
    )


def run_build(arguments: argparse.Namespace) -> int:
    """`tripod data build`."""
    from data_pipeline.build import build_dataset
    from data_pipeline.cli_build import load_recipe
    from suite.build_data import build_with_launcher, say
    from suite.data import ensure_dataset
    from suite.launch import default_ranks
    from suite.sweep import compose_suite
    from suite.train import suite_names

    workers = arguments.workers or default_ranks()
    if arguments.recipe not in suite_names():
        if arguments.out is None or arguments.launcher is not None:
            raise ValueError(
                f"{arguments.recipe!r} is no suite, so --out is needed and --launcher unknown; the "
                f"suites are: {', '.join(suite_names())}"
            )
        build_dataset(load_recipe(Path(arguments.recipe)), arguments.out, workers, say)
        return 0
    root = arguments.root.resolve()
    config = next(iter(compose_suite(arguments.recipe, root, arguments.overrides).rungs.values()))
    if arguments.out is not None:
        build_dataset(dict(config.data.build), arguments.out, workers, say)
        return 0
    directory = root / config.suite.name / config.data.dir
    if arguments.launcher is not None and arguments.overrides:
        raise ValueError("--launcher: expected no overrides, its tasks read the suite's own recipe")
    if arguments.launcher is not None and not (directory / "index.json").exists():
        recipe = dict(config.data.build)
        build_with_launcher(config.suite.name, root, arguments.launcher, workers, recipe)
    print(f"index {ensure_dataset(config, root, workers).data.index_digest}")
    return 0
