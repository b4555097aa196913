"""`tripod verify order`, `tripod verify promise`, `tripod prove step|check|promise`."""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.canonical import canonical_json
from data_pipeline.cli_reading import add_reading, open_reading
from data_pipeline.digests import sequence_digests
from data_pipeline.durable import write_bytes
from data_pipeline.errors import DatasetError
from data_pipeline.leaves import expected_leaves
from data_pipeline.promise import Promise, check_against_promise, load_promise, save_promise
from data_pipeline.prove import Proof, check_step_proof, load_proof, order_of, prove_step
from data_pipeline.run_dir import RunOrder, find_runs
from data_pipeline.verify_runs import has_data, open_reader, verify_order

Add = Callable[[str, Callable[[argparse.Namespace], int], str, str], argparse.ArgumentParser]


def add_commands(add: Add) -> None:
    """Add the commands of this module to the command line."""
    sub = add(
        "verify order",
        run_verify_order,
        "compare what runs read, step by step; names the first divergence",
        "verify order runs/nano --against-index",
    )
    sub.add_argument("paths", nargs="+", type=Path, help="run or suite directories")
    data = sub.add_mutually_exclusive_group()
    data.add_argument(
        "--against-index",
        action="store_true",
        default=None,
        help="recompute every leaf from the shards (default: where the datasets are at hand)",
    )
    data.add_argument(
        "--without-data",
        action="store_false",
        dest="against_index",
        help="read nothing but the run directories: O(steps)",
    )
    sub.add_argument("--json", action="store_true", help="print the verdict as JSON")

    sub = add(
        "verify promise",
        run_verify_promise,
        "compare runs with a published order, without data",
        "verify promise order/nano runs/nano/nano-1m",
    )
    sub.add_argument("promise", type=Path, help="directory with order.json and order.log")
    sub.add_argument("paths", nargs="+", type=Path, help="run or suite directories")
    sub.add_argument("--json", action="store_true", help="print the result as JSON")

    sub = add(
        "prove promise",
        run_promise,
        "compute and write the order that a run must follow, to publish it before training",
        "prove promise data --seq-len 512 --batch-size 64 --seed 0 --steps 1000 --out order/nano",
    )
    add_reading(sub)
    sub.add_argument("--steps", type=int, required=True, help="number of steps to promise")
    sub.add_argument("--out", type=Path, required=True, help="directory to make")

    sub = add(
        "prove step",
        run_prove_step,
        "write a proof of what a run read at one step",
        "prove step runs/nano/nano-1m --step 7 --sequences --out step7.json",
    )
    sub.add_argument("run_dir", type=Path)
    sub.add_argument("--step", type=int, required=True, help="0-based")
    sub.add_argument(
        "--checkpoint", type=int, help="prove against this one (default: the next in the ledger)"
    )
    sub.add_argument(
        "--sequences", action="store_true", help="open the leaf: needs the dataset of the run"
    )
    sub.add_argument(
        "--from-start", action="store_true", help="carry the earlier leaves, to bind the order too"
    )
    sub.add_argument("--out", type=Path, help="file to write (default: standard output)")

    sub = add(
        "prove check",
        run_check,
        "check a proof against the chain of a checkpoint you trust",
        "prove check step7.json --chain 9f86d0... ",
    )
    sub.add_argument("proof", type=Path)
    trust = sub.add_mutually_exclusive_group(required=True)
    trust.add_argument("--chain", help="order.chain of the checkpoint's manifest: 64 hex digits")
    trust.add_argument(
        "--run", dest="trusted_run", type=Path, help="a run directory whose ledger is trusted"
    )
    trust.add_argument("--promise", type=Path, help="a published order that is trusted")
    sub.add_argument(
        "--ids", type=Path, help="JSON with the ids that were read: {row: [S+1 ids]} or [B, S+1]"
    )
    sub.add_argument("--json", action="store_true", help="print what is shown as JSON")


def run_verify_order(arguments: argparse.Namespace) -> int:
    """`tripod verify order`."""
    runs, recompute = _runs(arguments.paths), arguments.against_index
    verdict = verify_order(runs, has_data(runs) if recompute is None else recompute, _say)
    if arguments.json:
        _print_json(
            {
                "name": "order",
                "ok": verdict.ok,
                "detail": verdict.detail,
                "failures": list(verdict.failures),
            }
        )
    else:
        _print_result("order: " + verdict.detail, list(verdict.failures))
    return 0 if verdict.ok else 1


def run_verify_promise(arguments: argparse.Namespace) -> int:
    """`tripod verify promise`."""
    promise = load_promise(arguments.promise)
    failures = []
    runs = [RunOrder.load(path) for path in _runs(arguments.paths)]
    for run in runs:
        found = [
            *run.check_checkpoints(),
            *check_against_promise(promise, run.order, run.log),
        ]
        failures += [f"{run.name}: {failure}" for failure in found]
    detail = f"{len(runs)} runs against the promise {promise.digest} of {promise.steps} steps"
    if arguments.json:
        _print_json({"ok": not failures, "detail": detail, "failures": failures})
    else:
        _print_result(detail, failures)
    return 1 if failures else 0


def run_promise(arguments: argparse.Namespace) -> int:
    """`tripod prove promise`."""
    if arguments.steps < 1:
        raise DatasetError(f"--steps: expected at least 1, found {arguments.steps}")
    reader = open_reading(arguments)
    promise = Promise(order_of(reader), expected_leaves(reader, arguments.steps))
    save_promise(promise, arguments.out)
    print(f"{arguments.out}: {promise.steps} steps, chain {promise.record['chain']}")
    print(f"commit to it by publishing the SHA-256 of order.json: {promise.digest}")
    return 0


def run_prove_step(arguments: argparse.Namespace) -> int:
    """`tripod prove step`."""
    run = RunOrder.load(arguments.run_dir)
    step = arguments.step
    checkpoint = arguments.checkpoint
    if checkpoint is None:
        checkpoint = run.checkpoint_after(step)
    if checkpoint not in run.checkpoints:
        raise DatasetError(
            f"{run.path}: expected a checkpoint after step {step} to prove it against, found "
            f"{sorted(run.checkpoints)}"
        )
    sequences = None
    if arguments.sequences:
        sequences = sequence_digests(open_reader(run).ids(step))
    proof = prove_step(run.log, run.order, step, checkpoint, sequences, arguments.from_start)
    data = canonical_json(proof)
    if arguments.out is None:
        print(data.decode())
        return 0
    write_bytes(arguments.out, data)
    print(f"{arguments.out}: {len(data):,} bytes; check it against the chain of step{checkpoint}")
    return 0


def run_check(arguments: argparse.Namespace) -> int:
    """`tripod prove check`: a proof that fails is status 1, one that cannot be read status 2."""
    proof = load_proof(arguments.proof.read_bytes())
    chain = _trusted_chain(arguments, proof)
    ids, rows = _read_ids(arguments.ids) if arguments.ids else (None, None)
    try:
        shown = check_step_proof(proof, chain, ids, rows)
    except DatasetError as error:
        if arguments.json:
            _print_json({"ok": False, "failures": [str(error)]})
        else:
            _print_result(f"proof of step {proof['step']}", [str(error)])
        return 1
    if arguments.json:
        _print_json({"ok": True, "failures": [], **vars(shown), "leaf": proof["leaf"]})
        return 0
    print(
        f"ok    leaf {proof['leaf']} lies where step {shown.step} lies below the chain of "
        f"checkpoint {shown.checkpoint}"
    )
    for known, what in (
        (shown.leaf_opened, "the leaf is of this step and of rows with these digests"),
        (shown.order_bound, f"the chain starts from {proof['order']}"),
        (bool(shown.rows), f"rows {', '.join(map(str, shown.rows)) or 'none'} are these ids"),
    ):
        print(f"      {'shown    ' if known else 'not shown'}  {what}")
    return 0


def _trusted_chain(arguments: argparse.Namespace, proof: Proof) -> bytes:
    checkpoint = proof["checkpoint"]
    if arguments.chain is not None:
        found = arguments.chain
    elif arguments.trusted_run is not None:
        run = RunOrder.load(arguments.trusted_run)
        if checkpoint not in run.checkpoints:
            raise DatasetError(
                f"{run.path}: expected checkpoint step{checkpoint} in its ledger, found "
                f"{sorted(run.checkpoints)}"
            )
        found = run.checkpoints[checkpoint]
    else:
        found = load_promise(arguments.promise).chain_at(checkpoint).hex()
    try:
        return bytes.fromhex(found)
    except ValueError:
        raise DatasetError(f"expected a chain of 64 hex digits, found {found!r}") from None


def _read_ids(path: Path) -> tuple["np.ndarray[Any, np.dtype[np.int64]]", list[int] | None]:
    data = json.loads(path.read_bytes())
    try:
        if isinstance(data, dict):
            return np.array(list(data.values()), dtype=np.int64), [int(row) for row in data]
        return np.array(data, dtype=np.int64), None
    except (ValueError, TypeError, OverflowError) as error:
        raise DatasetError(f"{path}: expected rows of integers, found {error}") from None


def _runs(paths: list[Path]) -> list[Path]:
    return [run for path in paths for run in find_runs(path)]


def _print_result(detail: str, failures: list[str]) -> None:
    print(f"{'FAIL' if failures else 'ok  '}  {detail}")
    for failure in failures:
        print(f"      {failure.replace(chr(10), chr(10) + '      ')}")


def _print_json(record: dict[str, Any]) -> None:
    print(json.dumps(record))


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
