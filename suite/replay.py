"""`tripod replay`: recompute steps a..b from checkpoint a and compare every digest on the way.

Compared per step: the leaf of the ids that were fed, and the line of the metrics log (loss, norm,
clipping, learning rate, digest of the reduced gradient) byte for byte. At every checkpoint passed:
the roots of weights and moments. Equality is a proof, by anyone, that these steps computed what the
run says; one rank can replay what many trained. A difference names the first step, what differed,
and at a checkpoint the first tensor.

Runs as ranks of its own (`suite.replay_worker`) under the run's numerics; another numerics record
is refused with the differing fields named.
"""

from __future__ import annotations

import itertools
import json
import random
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from checkpoints_manifest.errors import CheckpointError
from checkpoints_manifest.store import ledger_of
from suite.engine_record import computed_by
from suite.launch import die_with_parent
from suite.numerics import profile_environment
from suite.verify_order import Verdict, load_config


@dataclass(frozen=True)
class Segment:
    """Updates first+1 .. last, recomputed from checkpoint `first`."""

    first: int
    last: int

    def __str__(self) -> str:
        return f"{self.first}..{self.last}"


def saved_steps(run_dir: Path) -> list[int]:
    """Steps whose full state is in the ledger, ascending.

    Raises:
        CheckpointError: there is none.
    """
    steps = [int(record["step"]) for record in ledger_of(run_dir).records()]
    if not steps:
        raise CheckpointError(f"{run_dir} has no checkpoint to replay from; train the run first")
    return steps


def segment_of(run_dir: Path, first: int | None, last: int | None) -> Segment:
    """The segment that a request means; the whole run when both ends are left out.

    Raises:
        ValueError: `first` is no saved step, or the segment is empty or leaves the log.
    """
    steps = saved_steps(run_dir)
    first = steps[0] if first is None else first
    last = steps[-1] if last is None else last
    if first not in steps:
        near = max((step for step in steps if step <= first), default=steps[0])
        raise ValueError(
            f"--from {first}: expected a step with a checkpoint ({', '.join(map(str, steps))}), "
            f"found none; the nearest before it is {near}"
        )
    logged = (run_dir / "order.log").stat().st_size // 32
    if not first < last <= logged:
        raise ValueError(
            f"--to {last}: expected a step in ({first}, {logged}], the steps this run has trained"
        )
    return Segment(first, last)


def random_segments(run_dir: Path, count: int, seed: int) -> list[Segment]:
    """`count` different segments between neighbouring checkpoints; all where there are fewer.

    Args:
        run_dir: the run.
        count: how many.
        seed: names the choice, so that others can repeat it.
    """
    steps = saved_steps(run_dir)
    segments = [Segment(a, b) for a, b in itertools.pairwise(steps)]
    chosen = random.Random(seed).sample(range(len(segments)), min(count, len(segments)))
    return [segments[i] for i in sorted(chosen)]


def replay(
    run_dir: Path, segments: Sequence[Segment], ranks: int = 1, save_to: Path | None = None
) -> Verdict:
    """Recomputes segments of a run.

    Args:
        run_dir: the run; its dataset must be at hand.
        segments: what to recompute.
        ranks: how many ranks compute; changes no bit. Steps that were computed at a fixed layout
            are recomputed on as many ranks as it has, whatever is asked.
        save_to: where to write the state at the end of the last segment as a checkpoint, if it
            compared equal; see `suite.any_step`.

    Raises:
        RuntimeError: the replay could not run (other numerics or DeepSpeed, missing data, a change
            of engine inside a segment); carries the reason.
    """
    config = load_config(run_dir)
    failures: list[str] = []
    for segment in segments:
        layout = computed_by(run_dir, segment.first, segment.last).get("ranks")
        command = _command(run_dir, segment, layout or min(ranks, config.num_quanta), save_to)
        done = subprocess.run(
            command,
            env=profile_environment(config.numerics.profile),
            capture_output=True,
            text=True,
            preexec_fn=die_with_parent,
            check=False,
        )
        results = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        if done.returncode or len(results) != 1:
            raise RuntimeError(
                f"replay of {run_dir.name} {segment} could not run:\n{_reason(done.stderr)}"
            )
        failures += results[0]["failures"]
    steps = sum(segment.last - segment.first for segment in segments)
    detail = (
        f"{run_dir.name}: {steps} steps recomputed ({', '.join(map(str, segments))}), order, loss, "
        "gradient and state compared"
    )
    return Verdict("replay", tuple(failures), detail)


def _command(run_dir: Path, segment: Segment, ranks: int, save_to: Path | None) -> list[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    return [
        sys.executable,
        *(launcher if ranks > 1 else []),
        "-m",
        "suite.replay_worker",
        str(run_dir),
        str(segment.first),
        str(segment.last),
        *([str(save_to)] if save_to else []),
    ]


def _reason(stderr: str, most: int = 20) -> str:
    """The first error of a worker, all lines of its message; or the end of its output."""
    lines = stderr.strip().splitlines()
    errors = [n for n, line in enumerate(lines) if "Error: " in line and not line.startswith(" ")]
    if not errors:
        return "\n".join(lines[-15:])
    message = lines[errors[0] : errors[0] + most]
    # After the message: the other ranks and torchrun.
    other = re.compile(r"Traceback |\[rank|[EWI]\d{4} |=====|$")
    end = next((n for n, line in enumerate(message) if n and other.match(line)), len(message))
    return "\n".join(message[:end])
