"""How a command line names a reading: by a run directory, or by a dataset and sizes."""

import argparse
from pathlib import Path

from data_pipeline.batches import BatchReader
from data_pipeline.errors import DatasetError
from data_pipeline.order import NAME
from data_pipeline.reading import Reading


def add_reading(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that ``open_reading`` reads."""
    parser.add_argument(
        "place", help="a run directory, or a dataset (directory or URL) with the options below"
    )
    parser.add_argument("--seq-len", type=int, help="S, the inputs of a sequence")
    parser.add_argument("--batch-size", type=int, help="B, the sequences of a step")
    parser.add_argument("--seed", type=int, help="the data seed")
    parser.add_argument("--order", default=NAME, help=f"name of the order (default: {NAME})")
    parser.add_argument("--overlay", type=Path, help="file of an overlay (default: none)")


def open_reading(arguments: argparse.Namespace) -> BatchReader:
    """Open the reading that a command line names.

    Raises:
        DatasetError: A dataset without S, B or seed, a run with them, or no dataset.
    """
    sizes = {name: getattr(arguments, name) for name in ("seq_len", "batch_size", "seed")}
    given = [name for name, value in sizes.items() if value is not None]
    if (Path(arguments.place) / "config.json").is_file():
        if given or arguments.overlay is not None:
            raise DatasetError(
                f"{arguments.place}: expected no sizes, seed or overlay for a run, which has its "
                "own, found some; leave them out or name the dataset"
            )
        return Reading.of_run(arguments.place).reader()
    if len(given) != len(sizes):
        raise DatasetError(
            f"{arguments.place}: expected a run directory, or a dataset with --seq-len, "
            f"--batch-size and --seed, found {given or 'none of these'}"
        )
    return Reading(
        arguments.place, **sizes, order=arguments.order, overlay=arguments.overlay
    ).reader()
