"""`tripod plan --measure`: what this machine reaches, so that hours are not a guess.

Each rung that fits the machine at hand is built in a process of its own under the run's numerics,
and some sequences go forward and backward; operations over seconds over the stated peak is the
utilisation that the plan is then made with. Fewer sequences than a quantum are used where a quantum
would take long. One rank is timed: contention between ranks, the reduction and the update are not.
Run as `python -m suite.plan_measure FILE ROWS DEVICE` it is that process.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from suite.config import RunConfig
from suite.flops import forward_flops
from suite.launch import die_with_parent
from suite.numerics import profile_environment
from suite.plan import RungPlan, SuitePlan
from suite.plan_hardware import Hardware, machine_memory

_SECONDS = 20.0  # of one timing; a rung that takes longer for one sequence is not measured
_ROUNDS = 2


def measure(plan: SuitePlan) -> dict[str, float]:
    """Utilisation by rung, for every rung: those too large get that of the largest measured.

    Raises:
        RuntimeError: no rung could be measured here; says why.
    """
    device = "cuda" if plan.hardware.device == "cuda" and cuda_devices() else "cpu"
    found: dict[str, float] = {}
    skipped: dict[str, str] = {}
    for name, rung in sorted(plan.rungs.items(), key=lambda item: item[1].flops):
        rows = rows_to_time(rung, plan.hardware)
        if plan.hardware.device != device:
            skipped[name] = "the plan is for CUDA and there is none here"
        elif not rung.choice.fits or rung.choice.memory.peak > machine_memory() * 0.8:
            skipped[name] = "it does not fit in the memory here"
        elif rows == 0:
            skipped[name] = f"one sequence would take more than {_SECONDS:.0f} s"
        else:
            found[name] = _timed(rung, rows, device, plan.hardware)
    if not found:
        name, why = next(iter(skipped.items()))
        raise RuntimeError(
            f"--measure: no rung of {plan.suite} can be timed here ({name}: {why}); leave it out, "
            "or measure pythia-laptop with hardware=cpu"
        )
    last = list(found.values())[-1]
    return {name: found.get(name, last) for name in plan.rungs}


def rows_to_time(rung: RungPlan, hardware: Hardware) -> int:
    """Sequences of one timing: the largest divisor of the quantum within the time; 0 where none."""
    quantum, length = rung.choice.split.quantum, rung.config.data.seq_len
    seconds = rung.flops / rung.tokens * length / hardware.rate(rung.config.numerics.precision)
    return next(
        (q for q in range(quantum, 0, -1) if quantum % q == 0 and q * seconds < _SECONDS), 0
    )


def cuda_devices() -> int:
    """CUDA devices that torch sees."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _timed(rung: RungPlan, rows: int, device: str, hardware: Hardware) -> float:
    numerics = rung.config.numerics
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "config.json"
        path.write_bytes(rung.config.to_bytes())
        done = subprocess.run(
            [sys.executable, "-m", "suite.plan_measure", str(path), str(rows), device],
            env=profile_environment(numerics.profile),
            capture_output=True,
            text=True,
            preexec_fn=die_with_parent,
            check=False,
        )
    if done.returncode:
        raise RuntimeError(f"--measure stopped at {rung.name}:\n{done.stderr[-2000:]}")
    seconds = float(json.loads(done.stdout.splitlines()[-1])["seconds"])
    peak = hardware.rate(numerics.precision) / hardware.utilisation
    model = rung.config.rung.model
    per_token = forward_flops(model.family, model.hf, rung.config.data.seq_len).training
    return min(1.0, per_token * rows * rung.config.data.seq_len / seconds / peak)


def seconds_per_backward(config: RunConfig, rows: int, device: str) -> float:
    """The faster of some forwards and backwards of `rows` sequences, after one that warms up."""
    import torch

    from suite.loss import quantum_loss
    from suite.models import build_model

    model = build_model(config.rung.model, config.rung.seeds.init).to(device)
    generator = torch.Generator().manual_seed(0)
    vocabulary = int(config.rung.model.hf["vocab_size"])
    ids = torch.randint(0, vocabulary, (rows, config.data.seq_len + 1), generator=generator)
    ids = ids.to(device)
    taken = []
    for _ in range(_ROUNDS + 1):
        started = time.perf_counter()
        with model.dropout_context.at(0, 0):  # type: ignore[operator, union-attr]
            quantum_loss(model, ids, config.numerics).objective.backward()  # type: ignore[no-untyped-call]
        if device == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - started)
    return min(taken[1:])


def main(arguments: list[str]) -> int:
    """Times one rung and prints the seconds as JSON."""
    from suite.numerics import apply_determinism

    mapping: Mapping[str, object] = json.loads(Path(arguments[0]).read_text())
    apply_determinism()
    seconds = seconds_per_backward(RunConfig.from_mapping(mapping), int(arguments[1]), arguments[2])
    print(json.dumps({"seconds": seconds}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
