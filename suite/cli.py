"""`tripod`: one command.

Thin over the packages. Exit status: 0 done, 1 a check failed, 2 the request cannot be carried out,
75 asked to stop by a signal, everything saved: the same command carries on.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

from checkpoints_manifest import cli_audit, cli_hub
from data_pipeline import cli_build, cli_index, cli_megatron, cli_overlays, cli_proofs, cli_views
from suite import cli_data, cli_plan, cli_publish
from suite.command_line import CommandTable

_EPILOG = """examples:
  tripod sweep nano                      train, verify, publish locally, evaluate, report
  tripod verify all runs/nano            recompute every digest, the token order and the labels
  tripod batch runs/nano/nano-1m --step 7
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line, one subcommand a line."""
    parser = argparse.ArgumentParser(
        prog="tripod",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = CommandTable(parser).add
    sub = add(
        "sweep", _sweep, "bring a suite to its report; does only what is missing", "sweep nano"
    )
    sub.add_argument("suite")
    sub.add_argument(
        "--root", type=Path, default=Path("runs"), help="where suites live (default: runs)"
    )
    sub.add_argument(
        "--ranks", type=int, help="ranks per run (default: one per core); changes no bit"
    )
    _add_accept(sub)
    sub.add_argument(
        "overrides", nargs="*", help="Hydra overrides for every rung, e.g. train.steps=50"
    )

    sub = add("train", _train, "train one rung of a suite", "train nano nano-1m")
    sub.add_argument("suite")
    sub.add_argument("rung")
    sub.add_argument("--root", type=Path, default=Path("runs"))
    sub.add_argument("--ranks", type=int)
    sub.add_argument(
        "--prepare",
        action="store_true",
        help="write data and run directory and stop: ranks are started by torchrun or srun "
        "(docs/running.md)",
    )
    _add_accept(sub)
    sub.add_argument("overrides", nargs="*")

    sub = add(
        "verify all", _verify, "order, checkpoints and labels, recomputed", "verify all runs/nano"
    )
    _add_verify_arguments(sub)
    for kind, text in (
        ("checkpoints", "recompute every file digest, tensor root, ledger link and chain"),
        ("labels", "checkpoint N's loss on the next batch is what the trainer logged"),
    ):
        sub = add(f"verify {kind}", _verify, text, f"verify {kind} runs/nano")
        _add_verify_arguments(sub)
        if kind == "checkpoints":
            cli_audit.add_level_flag(sub)
    cli_proofs.add_commands(add)
    cli_overlays.add_commands(add)

    cli_plan.add_commands(add)
    cli_data.add_commands(add)
    cli_build.add_commands(add)
    cli_megatron.add_commands(add)

    cli_views.add_commands(add)
    cli_index.add_commands(add)

    sub = add("status", _status, "rungs of a suite: step, loss, checkpoints", "status runs/nano")
    sub.add_argument("path", type=Path)
    sub.add_argument("--json", action="store_true")

    sub = add(
        "rewind",
        _rewind,
        "set the checkpoints after a step aside, to train on from it",
        "rewind runs/nano/nano-1m --step 64",
    )
    sub.add_argument("run_dir", type=Path)
    sub.add_argument("--step", type=int, required=True, help="a step in the ledger")

    sub = add(
        "replay",
        _replay,
        "recompute steps from a checkpoint and compare every digest on the way",
        "replay runs/nano/nano-1m --from 64 --to 128",
    )
    sub.add_argument("run_dir", type=Path)
    sub.add_argument("--from", type=int, dest="first", help="a step with a checkpoint")
    sub.add_argument("--to", type=int, dest="last", help="any later step that was trained")
    sub.add_argument(
        "--spot-check", type=int, metavar="K", help="replay K segments drawn by --seed"
    )
    sub.add_argument("--seed", type=int, default=0, help="names the draw (default: 0)")
    sub.add_argument("--ranks", type=int, default=1, help="ranks that compute; changes no bit")

    sub = add(
        "checkpoint",
        _checkpoint,
        "any step of a run, recomputed where it was never saved; the local Hub gets it too",
        "checkpoint runs/nano/nano-1m --step 77",
    )
    sub.add_argument("run_dir", type=Path)
    sub.add_argument("--step", type=int, required=True)
    sub.add_argument("--ranks", type=int, default=1, help="ranks that compute; changes no bit")

    cli_publish.add_commands(add)
    cli_hub.add_commands(add)
    cli_audit.add_commands(add)

    sub = add(
        "report",
        _report,
        "evaluate what is missing and rebuild tables and report",
        "report runs/nano",
    )
    sub.add_argument("path", type=Path)

    sub = add("bench", _bench, "measure the cost of exactness on this machine", "bench step")
    sub.add_argument("what", choices=["step"])
    sub.add_argument("--rung", default="nano-1m")
    sub.add_argument("--rounds", type=int, default=5)
    return parser


def _add_accept(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--accept-numerics-change",
        dest="accept",
        action="append_const",
        const="numerics",
        default=[],
        help="go on under another numerics record; the ledger says so from this step on",
    )
    sub.add_argument(
        "--accept-engine-change",
        dest="accept",
        action="append_const",
        const="engine",
        help="go on with another engine or layout; every record says so from this step on",
    )


def _add_verify_arguments(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("paths", nargs="+", type=Path, help="suite or run directories")
    sub.add_argument("--json", action="store_true", help="print the verdicts as JSON")


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Parses the command line; Hydra overrides (`key=value`) may stand after options too."""
    parser = build_parser()
    arguments, rest = parser.parse_known_args(argv)
    takes_overrides = hasattr(arguments, "overrides")
    odd = [word for word in rest if word.startswith("-") or "=" not in word or not takes_overrides]
    if odd:
        parser.error(f"unrecognized arguments: {' '.join(odd)}")
    if rest:
        arguments.overrides = [*arguments.overrides, *rest]
    return arguments


def main(argv: list[str] | None = None) -> int:
    """Entry point of the console script."""
    from data_pipeline.errors import DatasetError
    from suite.launch import RunFailedError
    from suite.signals import INTERRUPTED, RunInterruptedError

    arguments = parse(argv)
    try:
        return int(arguments.run(arguments))
    except RunInterruptedError as error:
        print(f"tripod: {error}", file=sys.stderr)
        return INTERRUPTED
    except (DatasetError, RunFailedError, OSError, ValueError, RuntimeError) as error:
        print(f"tripod: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("tripod: interrupted; the same command carries on", file=sys.stderr)
        return 130


def _sweep(arguments: argparse.Namespace) -> int:
    from suite.sweep import sweep

    return sweep(
        arguments.suite,
        arguments.root,
        arguments.overrides,
        arguments.ranks,
        tuple(arguments.accept),
    )


def _train(arguments: argparse.Namespace) -> int:
    from suite.data import ensure_dataset
    from suite.launch import launch, prepare
    from suite.operation import Operation
    from suite.sweep import compose_suite
    from suite.train import compose

    plan = compose_suite(arguments.suite, arguments.root, arguments.overrides)
    if arguments.rung not in plan.rungs:
        raise ValueError(
            f"suite {arguments.suite!r} has no rung {arguments.rung!r}; its rungs: "
            f"{', '.join(plan.rungs)}"
        )
    config = ensure_dataset(plan.rungs[arguments.rung], arguments.root.resolve())
    composed = compose(arguments.suite, arguments.rung, arguments.overrides)
    operation = Operation.of_composed(composed)
    run_dir, accept = plan.run_dir(arguments.rung), (*arguments.accept, *composed["accept"])
    if arguments.prepare:
        prepare(config, run_dir, dataclasses.replace(operation, accept=accept))
        print(f"ready: start ranks with `python -m suite.rank {run_dir}` (docs/running.md)")
        return 0
    launch(config, run_dir, arguments.ranks, accept, operation)
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from suite.verify import KINDS, run_dirs_of, verify_all, verify_kind

    run_dirs = [run for path in arguments.paths for run in run_dirs_of(path)]
    kind = arguments.subcommand
    kinds = KINDS if kind == "all" else (kind,)
    level = getattr(arguments, "level", "chain")
    if not arguments.json:
        return 0 if all(v.ok for v in verify_all(run_dirs, kinds, level)) else 1
    verdicts = [verify_kind(kind, run_dirs, level) for kind in kinds]
    print(
        json.dumps(
            [
                {"name": v.name, "ok": v.ok, "detail": v.detail, "failures": v.failures}
                for v in verdicts
            ]
        )
    )
    return 0 if all(v.ok for v in verdicts) else 1


def _status(arguments: argparse.Namespace) -> int:
    from suite.status import suite_status

    rows = suite_status(arguments.path)
    if arguments.json:
        print(json.dumps(rows))
        return 0
    for row in rows:
        loss = "-" if row["loss"] is None else f"{row['loss']:.4f}"
        print(
            f"{row['rung']:<18} step {row['step']:>6}/{row['steps']}  loss {loss}  checkpoints "
            f"{row['checkpoints']}" + (f"  stopped: {row['failure']}" if row["failure"] else "")
        )
    return 0


def _rewind(arguments: argparse.Namespace) -> int:
    from checkpoints_manifest.store import rewind
    from suite.lock import lock_run

    lock_run(arguments.run_dir)
    aside = rewind(arguments.run_dir, arguments.step)
    print(f"{arguments.run_dir.name} stands at step {arguments.step}; later checkpoints: {aside}")
    return 0


def _replay(arguments: argparse.Namespace) -> int:
    from suite.replay import random_segments, replay, segment_of

    run_dir, count = arguments.run_dir, arguments.spot_check
    if count is None:
        segments = [segment_of(run_dir, arguments.first, arguments.last)]
    elif arguments.first is None and arguments.last is None:
        segments = random_segments(run_dir, count, arguments.seed)
    else:
        raise ValueError("--spot-check draws its own segments; leave --from and --to out")
    verdict = replay(run_dir, segments, arguments.ranks)
    print(f"{'ok  ' if verdict.ok else 'FAIL'} {verdict.detail}")
    for failure in verdict.failures:
        print(f"     {failure}")
    return 0 if verdict.ok else 1


def _checkpoint(arguments: argparse.Namespace) -> int:
    from suite.any_step import checkpoint_at

    directory, new = checkpoint_at(arguments.run_dir, arguments.step, arguments.ranks)
    print(f"step {arguments.step}: {directory}" + (" (recomputed)" if new else ""))
    return 0


def _report(arguments: argparse.Namespace) -> int:
    from suite.sweep import analyze

    analyze(arguments.path.resolve())
    print(f"report: {arguments.path / 'report.html'}")
    return 0


def _bench(arguments: argparse.Namespace) -> int:
    from suite.bench import bench_step

    return bench_step(arguments.rung, arguments.rounds)


if __name__ == "__main__":
    raise SystemExit(main())
