"""`tripod batch`, `tripod seen`, `tripod locate` and `tripod data describe`.

A place is a run (a directory with ``config.json``) or a dataset, a directory or a URL; a dataset
needs ``--seq-len``, ``--batch-size`` and ``--seed`` to say how it is read.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from data_pipeline import batch_view, locate, seen
from data_pipeline.batches import BatchReader
from data_pipeline.cli_reading import add_reading, open_reading
from data_pipeline.datasets import Index, notices, open_index, open_stream
from data_pipeline.describe import describe
from data_pipeline.errors import DatasetError
from data_pipeline.exposures import Exposures, one_pass
from data_pipeline.index import ShardIndex
from data_pipeline.megatron_index import SPLITS as MEGATRON_SPLITS
from data_pipeline.protocols import Ids, Stream

Add = Callable[[str, Callable[[argparse.Namespace], int], str, str], argparse.ArgumentParser]


def add_commands(add: Add) -> None:
    """Add the commands of this module to the command line."""
    sub = add(
        "batch",
        run_batch,
        "show what a step reads: documents, text, digests",
        "batch runs/nano/nano-1m --step 7 --rows 0:4 --decode",
    )
    _add_place(sub)
    sub.add_argument(
        "--step", type=int, required=True, help="0-based step: update step+1 consumes it"
    )
    sub.add_argument("--rows", type=_rows, metavar="A:B", help="rows [A, B) only, or one row")
    sub.add_argument("--decode", action="store_true", help="print the text too")

    sub = add(
        "seen",
        run_seen,
        "list every exposure of a text: step, row, columns, document",
        'seen runs/nano/nano-1m "def main(" --upto 100',
    )
    _add_place(sub)
    sub.add_argument("text", help="literal text; case and white space count")
    _add_upto(sub)
    sub.add_argument("--heldout", action="store_true", help="also search the held-out split")
    sub.add_argument(
        "--limit", type=int, default=seen.LIMIT, help=f"places at most (default: {seen.LIMIT})"
    )
    sub.add_argument(
        "--fetch-all", action="store_true", help="search behind a URL, which fetches every shard"
    )
    sub.add_argument(
        "--index",
        choices=("auto", "none"),
        default="auto",
        help="use the files of `data search-index` where they are (default), or do not",
    )

    sub = add(
        "locate",
        run_locate,
        "where a document lies and when it was read",
        "locate runs/nano/nano-1m --document sympy:core/add.py",
    )
    _add_place(sub)
    sub.add_argument(
        "--document",
        required=True,
        metavar="ID",
        help="number, source:name[:record], the source's id, or sha256 of the text",
    )
    _add_upto(sub)

    describe_command(add)


def describe_command(add: Add) -> None:
    """Add ``data describe``."""
    sub = add(
        "data describe",
        run_describe,
        "tables and figures of a dataset: sources, lengths, duplicates, token frequencies",
        "data describe runs/nano/data --out describe --seq-len 256",
    )
    sub.add_argument("dataset", help="directory or URL")
    sub.add_argument("--out", type=Path, help="directory for Parquet, CSV and SVG files")
    sub.add_argument("--seq-len", type=int, action="append", default=[], help="may be repeated")


def _add_place(sub: argparse.ArgumentParser) -> None:
    add_reading(sub)
    sub.add_argument("--json", action="store_true", help="print JSON")


def _add_upto(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--upto",
        type=int,
        metavar="STEP",
        help="count steps below this one (default: all of the run's; one pass over a dataset)",
    )


def _rows(text: str) -> range:
    """Read ``A:B`` or ``A``."""
    first, colon, end = text.partition(":")
    try:
        rows = range(int(first), int(end) if colon else int(first) + 1)
    except ValueError:
        rows = range(0)
    if not rows or rows[0] < 0:
        raise argparse.ArgumentTypeError(f"expected rows A:B with 0 <= A < B, found {text!r}")
    return rows


def open_place(arguments: argparse.Namespace) -> tuple[BatchReader, int]:
    """Open a run or a dataset; errors as of ``open_reading``.

    Returns:
        Its reader, and the steps to look at by default: those the run was asked to train, or one
        pass over a dataset.
    """
    reader = open_reading(arguments)
    config = Path(arguments.place) / "config.json"
    if config.is_file():
        return reader, int(json.loads(config.read_bytes())["train"]["steps"])
    return reader, one_pass(reader.order, reader.batch_size)


def run_batch(arguments: argparse.Namespace) -> int:
    """Print what a step reads."""
    reader, _ = open_place(arguments)
    tokenizer = reader.stream.index.tokenizer() if arguments.decode else None
    view = batch_view.view_batch(reader, arguments.step, arguments.rows, tokenizer)
    _print(arguments, view, batch_view.as_text(view))
    return 0


def run_seen(arguments: argparse.Namespace) -> int:
    """Print every exposure of a text; status 1 when the answer is not complete."""
    reader, steps = open_place(arguments)
    index = reader.stream.index
    if isinstance(index, ShardIndex) and not index.storage.is_local and not arguments.fetch_all:
        size = reader.stream.num_tokens * index.dtype.itemsize
        raise DatasetError(
            f"{arguments.place}: a search reads every shard, {size / 1e9:.3f} GB over the network; "
            "ask for it with --fetch-all, or search a copy"
        )
    upto = steps if arguments.upto is None else arguments.upto
    answer = seen.seen(
        arguments.text,
        seen.TextFinder(reader.stream, use_index=arguments.index == "auto"),
        reader.order,
        reader.batch_size,
        upto,
        extra=replaced_rows(reader, upto),
        heldout=_heldout(reader) if arguments.heldout else None,
        limit=arguments.limit,
    )
    _print(arguments, answer.record(), seen.as_text(answer))
    return 0 if answer.complete else 1


def replaced_rows(reader: BatchReader, upto_step: int) -> Iterator[tuple[int, Ids]]:
    """Yield (position, ids [S+1] as read) of the rows that the reader's overlay touches."""
    if reader.overlay is None:
        return
    for position, _ in reader.overlay.rows_touching(0, upto_step * reader.batch_size):
        step, row = divmod(position, reader.batch_size)
        yield position, reader.ids(step, range(row, row + 1))[0]


def run_locate(arguments: argparse.Namespace) -> int:
    """Print where documents lie and when they were read."""
    reader, steps = open_place(arguments)
    upto = steps if arguments.upto is None else arguments.upto
    exposures = Exposures(reader.order, reader.batch_size, upto)
    found = [
        locate.locate(document, exposures)
        for document in locate.find_documents(reader.stream, arguments.document)
    ]
    text = "\n".join(locate.as_text(one) for one in found)
    _print(arguments, [one.record() for one in found], text)
    return 0


def run_describe(arguments: argparse.Namespace) -> int:
    """Print the main tables of a dataset and write all of them."""
    index = open_index(arguments.dataset)
    splits = {name: open_stream(arguments.dataset, name) for name in _splits(index)}
    found = describe(
        {name: stream for name, stream in splits.items() if stream.num_tokens},
        arguments.seq_len,
        None if index.data["tokenizer"] is None else index.tokenizer(),
        notices(index),
    )
    for name in ("sources", "lengths", "duplicates", "sequences"):
        if len(found.tables[name]):
            print(f"{name}\n{found.tables[name].to_string(index=False)}\n")
    for notice in found.notices:
        print(f"note: {notice}")
    if arguments.out is not None:
        found.save(arguments.out)
        print(f"tables and figures: {arguments.out}", file=sys.stderr)
    return 0


def _splits(index: Index) -> tuple[str, ...]:
    """The splits that a dataset has, ``train`` first."""
    if isinstance(index, ShardIndex):
        return tuple(sorted(index.splits, key=lambda name: name != "train"))
    return MEGATRON_SPLITS if index.plan is not None and index.plan.split else ("train",)


def _heldout(reader: BatchReader) -> Stream:
    """The split that is kept from training: ``heldout``, or ``valid`` of Megatron files."""
    names = _splits(reader.stream.index)
    if len(names) == 1:
        raise DatasetError(
            f"{reader.stream.index.storage}: expected a held-out split, found {names[0]} only; "
            "leave out --heldout"
        )
    return open_stream(str(reader.stream.index.storage), names[1])


def _print(arguments: argparse.Namespace, record: Any, text: str) -> None:
    print(json.dumps(record) if arguments.json else text)
