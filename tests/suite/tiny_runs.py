"""Runs of a few thousand parameters on a dataset of a few kilobytes, started as users start them.

A start is a process of its own (`python -m tests.suite.tiny_runs RUN RANKS OPERATION`), so that a
test can kill it or send it a signal.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from suite.config import RunConfig
from suite.data import build
from suite.heartbeat import read_beats
from suite.launch import RunFailedError, launch
from suite.operation import Operation
from suite.signals import INTERRUPTED, RunInterruptedError
from suite.train import compose

STEPS = 48
# What two trainings of one run must agree on, byte for byte.
SAME_BYTES = (
    "metrics.jsonl", "order.log", "sequence_loss.f32", "manifest.jsonl", "config.json",
    "numerics.json", "noise.jsonl", "spikes.jsonl",
)  # fmt: skip


def build_suite(suite_dir):
    """A dataset that is built in a second."""
    text = suite_dir / "text"
    text.mkdir(parents=True)
    for number in range(24):
        words = " ".join(f"word{(number * k) % 23} token{k % 7}" for k in range(120))
        (text / f"{number:02d}.txt").write_text(f"{number}\n{words}\n")
    recipe = {
        "name": "tiny",
        "source": {"kind": "text_tree", "root": str(text), "include": ["**"]},
        "tokenizer": {"vocab_size": 262, "train_bytes": 100_000},
        "heldout_permille": 100,
        "shard_tokens": 4000,
    }
    build(recipe, suite_dir / "data", workers=1)
    return json.loads((suite_dir / "data" / "index.json").read_text())


def tiny_config(suite_dir, *overrides):
    """V = 6 quanta of one sequence of 16 tokens; about 13 thousand parameters; clipping fires."""
    from data_pipeline.datasets import open_index

    mapping = compose(
        "smoke",
        "smoke-20k",
        [
            f"data.index_digest={open_index(suite_dir / 'data').digest}",
            "data.dir=data", "data.seq_len=16", "data.batch_size=6", "numerics.quantum=1",
            f"train.steps={STEPS}", "checkpoints.every=16", "rung.model.hf.vocab_size=262",
            "rung.model.hf.hidden_size=16", *overrides,
        ],
    )  # fmt: skip
    return RunConfig.from_mapping(mapping)


def start(run_dir, ranks, *overrides, **operation):
    """Starts a run in a process of its own."""
    shutil.rmtree(run_dir / "heartbeat", ignore_errors=True)
    return subprocess.Popen(
        [
            sys.executable, "-m", "tests.suite.tiny_runs", str(run_dir), str(ranks),
            json.dumps(operation), *overrides,
        ],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finish(process, timeout=120):
    """Waits for a start; returns (exit status, everything it said)."""
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out + err


def train(run_dir, ranks, *overrides, **operation):
    """Starts a run and waits for it."""
    return finish(start(run_dir, ranks, *overrides, **operation))


def steps_done(run_dir):
    """Updates done, by the heartbeats of the newest start."""
    return max((beat.step for beat in read_beats(run_dir).values()), default=0)


def wait_until(condition, process, seconds=120):
    """Waits for something to become true while a start lives; returns whether it still does."""
    deadline = time.monotonic() + seconds
    while process.poll() is None and not condition():
        assert time.monotonic() < deadline, "the run made no progress"
        time.sleep(0.003)
    return process.poll() is None


def kill(process, run_dir):
    """Kills the launcher alone; the kernel must take torchrun and the ranks along."""
    process.send_signal(signal.SIGKILL)
    process.communicate()
    pids = [beat.pid for beat in read_beats(run_dir).values()]
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline, "ranks outlived their launcher"
        time.sleep(0.05)


def differing_files(one, other):
    """Files in which two finished runs differ, checkpoints included."""
    names = [*SAME_BYTES]
    names += [str(p.relative_to(one)) for p in (one / "checkpoints").rglob("*") if p.is_file()]
    return [n for n in names if (one / n).read_bytes() != (other / n).read_bytes()]


def main():
    run_dir, ranks, operation = Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])
    accept = tuple(operation.pop("accept", ()))
    config = tiny_config(run_dir.parent, *sys.argv[4:])
    try:
        launch(config, run_dir, ranks, accept, Operation.from_mapping(operation))
    except RunInterruptedError as error:
        print(error, file=sys.stderr)
        return INTERRUPTED
    except RunFailedError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    sys.exit(main())
