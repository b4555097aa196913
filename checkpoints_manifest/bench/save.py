"""What saving costs the training loop, beside other savers, on one state in one process.

    python -m checkpoints_manifest.bench.save [--megabytes 48] [--rounds 7] [--dir .]

Prints a Markdown table of medians. Stall: until the call returns and the trainer may change its
tensors. Total: until everything that the saver does is done; only ours and torch DCP sync to disk,
only ours digests and reads back. The savers take turns, so that noise of the machine meets all
alike. State: fp32 weights and two moments, on the CPU or, with `--device cuda`, on the GPU.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from checkpoints_manifest.async_store import AsyncSaver
from checkpoints_manifest.store import save_checkpoint
from checkpoints_manifest.tensor_digest import file_digests
from checkpoints_manifest.writing import CHECKPOINTS, MODEL, OPTIMIZER
from data_pipeline.canonical import sha256_file

Tensors = dict[str, torch.Tensor]
# Starts a save and returns what waits for its end, or None where there is nothing to wait for.
Saver = Callable[[Path, Tensors, Tensors], Callable[[], object] | None]
_DIGEST = "0" * 64
_FIELDS = {
    "suite": "bench", "rung": "bench", "tokens": 0,
    "order": {"name": "order-v1", "index_digest": _DIGEST, "chain": _DIGEST},
    "numerics": _DIGEST, "config": _DIGEST, "environment": _DIGEST, "metrics": _DIGEST,
}  # fmt: skip
MEMCPY, OURS = "copy into preallocated memory (floor)", "tripod, asynchronous"


def make_state(megabytes: float, device: str = "cpu") -> tuple[Tensors, Tensors]:
    """Weights and moments of so many MB (10^6 bytes) in all, in tensors of at most 4 MB."""
    elements = int(megabytes * 1e6) // 12
    sizes = [min(1 << 20, elements - start) for start in range(0, elements, 1 << 20)]
    weights = {f"layer.{i:04}.weight": torch.randn(n, device=device) for i, n in enumerate(sizes)}
    moments = {
        f"{kind}.{name}": torch.rand_like(tensor)
        for kind in ("exp_avg", "exp_avg_sq")
        for name, tensor in weights.items()
    }
    return weights, moments


def savers(weights: Tensors, moments: Tensors) -> dict[str, Saver]:
    """Every saver that can be imported, by name for the table."""
    from safetensors.torch import save_file
    from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
    from torch.distributed.checkpoint.state_dict_saver import async_save
    from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

    host = {
        n: torch.empty_like(t, device="cpu").fill_(0) for n, t in {**weights, **moments}.items()
    }
    if torch.cuda.is_available():
        host = {name: tensor.pin_memory() for name, tensor in host.items()}
    # Its buffers are kept between saves, as ours are.
    pinned = torch.cuda.is_available()
    stager = DefaultStager(
        StagingOptions(
            use_pinned_memory=pinned, use_shared_memory=False, use_async_staging=False,
            use_non_blocking_copy=pinned,
        )
    )  # fmt: skip

    def copy(place: Path, w: Tensors, m: Tensors) -> None:
        for name, tensor in (*w.items(), *m.items()):
            host[name].copy_(tensor, non_blocking=True)
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    def torch_save(place: Path, w: Tensors, m: Tensors) -> None:
        torch.save({"weights": w, "moments": m}, place / "state.pt")

    def torch_save_synced(place: Path, w: Tensors, m: Tensors) -> None:
        torch_save(place, w, m)
        with (place / "state.pt").open("rb") as file:
            os.fsync(file.fileno())

    def safetensors(place: Path, w: Tensors, m: Tensors) -> None:
        save_file(w, place / MODEL)
        save_file(m, place / OPTIMIZER)

    def dcp_sync(place: Path, w: Tensors, m: Tensors) -> None:
        dcp_save({**w, **m}, checkpoint_id=place / "dcp", no_dist=True)

    def dcp_async(place: Path, w: Tensors, m: Tensors) -> Callable[[], object]:
        made: Any = async_save(
            {**w, **m}, checkpoint_id=place / "dcp", no_dist=True, async_stager=stager
        )
        return made.result  # type: ignore[no-any-return]

    def ours_sync(place: Path, w: Tensors, m: Tensors) -> None:
        save_checkpoint(place, 1, w, m, {}, _FIELDS)

    saver = AsyncSaver(Path())
    saver.reserve(weights, moments)

    def ours(place: Path, w: Tensors, m: Tensors) -> Callable[[], object]:
        saver.run_dir = place
        saver.save(1, w, m, {}, _FIELDS)
        return saver.drain

    found: dict[str, Saver] = {
        MEMCPY: copy,
        OURS: ours,
        "tripod, synchronous": ours_sync,
        "torch.save": torch_save,
        "torch.save and fsync": torch_save_synced,
        "safetensors": safetensors,
        "torch DCP, synchronous": dcp_sync,
        "torch DCP, asynchronous": dcp_async,
    }
    if importlib.util.find_spec("deepspeed"):
        found["DeepSpeed's checkpoint engine"] = _deepspeed()
    return found


def _deepspeed() -> Saver:
    from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import (
        TorchCheckpointEngine,
    )

    engine = TorchCheckpointEngine()

    def save(place: Path, w: Tensors, m: Tensors) -> None:
        engine.save({"module": w, "optimizer": m}, str(place / "state.pt"))
        engine.commit("step1")

    return save


def measure(megabytes: float, rounds: int, folder: Path, device: str = "cpu") -> dict[str, Any]:
    """Medians of (stall, total) in seconds by saver, and bytes a second of verifying."""
    weights, moments = make_state(megabytes, device)
    chosen = savers(weights, moments)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in chosen}
    # One round more than is counted: the first one allocates and warms up.
    for turn in range(rounds + 1):
        for name, save in chosen.items():
            place = Path(tempfile.mkdtemp(dir=folder))
            started = time.perf_counter()
            wait = save(place, weights, moments)
            stall = time.perf_counter() - started
            if wait is not None:
                wait()
            total = time.perf_counter() - started
            if turn:
                times[name].append((stall, total))
            if name == OURS:
                speed = _verify_speed(place / CHECKPOINTS / "step1")
            shutil.rmtree(place)
    medians = {
        name: tuple(statistics.median(column) for column in zip(*rows, strict=True))
        for name, rows in times.items()
    }
    return {"seconds": medians, "verify": speed}


def _verify_speed(checkpoint: Path) -> dict[str, float]:
    """Bytes per second of one core (CPU time), files in the page cache."""
    paths = [checkpoint / name for name in (MODEL, OPTIMIZER)]
    size = sum(path.stat().st_size for path in paths)
    found = {}
    readers: dict[str, Callable[[Path], object]] = {"bytes": sha256_file, "tensors": file_digests}
    for level, read in readers.items():
        started = time.process_time()
        for path in paths:
            read(path)
        found[level] = size / max(time.process_time() - started, 1e-9)
    return found


def table(result: dict[str, Any]) -> str:
    """Markdown."""
    floor = result["seconds"][MEMCPY][0]
    lines = ["| saver | stall, ms | stall / copy | total, ms |", "|---|---|---|---|"]
    for name, (stall, total) in sorted(result["seconds"].items(), key=lambda item: item[1][0]):
        lines.append(
            f"| {name} | {stall * 1e3:.1f} | {stall / floor:.2f} | "
            f"{'' if name == MEMCPY else f'{total * 1e3:.0f}'} |"
        )
    speeds = ", ".join(f"{level} {rate / 1e9:.2f}" for level, rate in result["verify"].items())
    return "\n".join(lines) + f"\n\nVerifying, GB/s of one core: {speeds}."


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=float, default=48.0)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--dir", type=Path, default=Path())
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.dir, prefix="bench-save-") as folder:
        result = measure(arguments.megabytes, arguments.rounds, Path(folder), arguments.device)
    print(
        f"{arguments.megabytes:g} MB of fp32 state, {arguments.rounds} rounds, torch "
        f"{torch.__version__}, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}\n"
    )
    print(table(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
