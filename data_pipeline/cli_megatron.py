"""`tripod data index-megatron`: make Megatron files a dataset without moving them."""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

from data_pipeline.megatron_build import MegatronPart, build_megatron_index, verify_megatron
from data_pipeline.megatron_index import NeoxPlan
from data_pipeline.megatron_notices import describe_megatron
from data_pipeline.megatron_schema import EOD_POLICIES
from data_pipeline.tokenizer import Tokenizer

Add = Callable[
    [str, Callable[[argparse.Namespace], int], str, str],
    argparse.ArgumentParser,
]
_EXAMPLE = (
    "data index-megatron pile/document --out runs/pile --preshuffled --vocab-size 50304 --eod 0 "
    "--eod-policy unknown"
)


def add_commands(add: Add) -> None:
    """Add ``data index-megatron``."""
    sub = add(
        "data index-megatron", run_index, "index Megatron .bin/.idx files where they lie", _EXAMPLE
    )
    sub.add_argument(
        "prefixes",
        nargs="+",
        metavar="PREFIX",
        help="path without .idx and .bin; shards <PREFIX>-00000-of-NNNNN.bin are found",
    )
    sub.add_argument("--out", type=Path, required=True, help="new dataset directory")
    sub.add_argument("--vocab-size", type=int, required=True, help="every id must be smaller")
    sub.add_argument("--eod", type=int, help="id of the end-of-document mark, if there is one")
    sub.add_argument(
        "--eod-policy",
        choices=EOD_POLICIES,
        default="unknown",
        help="whether the mark closes every document; checked against the ids (default: unknown)",
    )
    sub.add_argument("--tokenizer", type=Path, help="tokenizer.json of the ids, if it is known")
    how = sub.add_mutually_exclusive_group(required=True)
    how.add_argument("--split", help="neox-v1 with one data_path: its split, e.g. '969, 30, 1'")
    how.add_argument("--paths", action="store_true", help="neox-v1 with train_data_paths")
    how.add_argument(
        "--preshuffled", action="store_true", help="preshuffled-v1: items are the sequences"
    )
    sub.add_argument("--weights", help="with --paths: one weight each, by commas (default: 1.0)")
    sub.add_argument("--num-samples", type=int, help="neox-v1: train_iters times batch size")
    sub.add_argument("--epochs", type=int, help="neox-v1: train_epochs, instead of --num-samples")
    sub.add_argument("--seq-len", type=int, help="neox-v1: S, for example 2048")


def run_index(arguments: argparse.Namespace) -> int:
    """Hash the files, write the index and say what users must know of it."""
    weights = (arguments.weights or ",".join(["1.0"] * len(arguments.prefixes))).split(",")
    if len(weights) != len(arguments.prefixes):
        raise ValueError(
            f"--weights: expected {len(arguments.prefixes)}, found {len(weights)}; give one a file"
        )
    parts = [
        MegatronPart.of(prefix, weight=weight.strip())
        for prefix, weight in zip(arguments.prefixes, weights, strict=True)
    ]
    tokenizer = None if arguments.tokenizer is None else Tokenizer.load(arguments.tokenizer)
    total = sum(path.stat().st_size for part in parts for path in part.bins)
    index = build_megatron_index(
        arguments.out,
        parts,
        arguments.vocab_size,
        arguments.eod,
        arguments.eod_policy,
        _plan(arguments),
        tokenizer,
        progress_line(total),
    )
    print(f"index {index.digest}")
    for notice in describe_megatron(index):
        print(f"note: {notice}")
    return 0


def verify_lines(dataset_dir: str | Path, expected_digest: str | None = None) -> list[str]:
    """Verify a dataset of Megatron files; return the lines to print.

    Raises:
        DatasetError: The first difference.
    """
    index = verify_megatron(dataset_dir, expected_digest)
    notices = [f"note: {notice}" for notice in describe_megatron(index)]
    return [f"ok  {dataset_dir}: index {index.digest}", *notices]


def progress_line(total: int) -> Callable[[int], None]:
    """Report bytes read of ``total`` and the time left on stderr, once in two seconds."""
    begin = last = time.monotonic()
    done = 0

    def report(count: int) -> None:
        nonlocal done, last
        done += count
        now = time.monotonic()
        if now - last >= 2 and done:
            left = (now - begin) * (total - done) / done
            print(f"{done / 1e9:.1f} of {total / 1e9:.1f} GB, {left:.0f} s left", file=sys.stderr)
            last = now

    return report


def _plan(arguments: argparse.Namespace) -> NeoxPlan | None:
    if arguments.preshuffled:
        return None
    if arguments.seq_len is None or arguments.seq_len < 1:
        raise ValueError(f"--seq-len: expected S >= 1 for neox-v1, found {arguments.seq_len}")
    return NeoxPlan(arguments.split, arguments.num_samples, arguments.seq_len, arguments.epochs)
