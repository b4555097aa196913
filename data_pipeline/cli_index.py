"""`tripod data search-index`: suffix arrays for many searches of one dataset."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from data_pipeline.search_index import build_search_index
from data_pipeline.suffix_file import DIRECTORY

Add = Callable[[str, Callable[[argparse.Namespace], int], str, str], argparse.ArgumentParser]


def add_commands(add: Add) -> None:
    """Add ``data search-index``."""
    sub = add(
        "data search-index",
        run_search_index,
        "sort every shard, so that `seen` needs no pass over the data",
        "data search-index runs/nano/data",
    )
    sub.add_argument("dir", type=Path, help="a local dataset; needs the extra [search]")


def run_search_index(arguments: argparse.Namespace) -> int:
    """Write the files that are missing and check the others."""
    written, checked = build_search_index(arguments.dir, lambda line: print(line, file=sys.stderr))
    print(f"{arguments.dir / DIRECTORY}: {written} files written, {checked} found and checked")
    return 0
