"""A whole sweep of the smallest suite: the promises of the README, each also broken on purpose.

Trains the `smoke` suite twice: once in peace with two ranks, once killed with SIGKILL at three
moments drawn from a seed that is printed, with another number of ranks each time. One thread per
rank (the launcher sets it).
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

from checkpoints_manifest.store import rewind
from tests.suite.smoke import RUNGS, SAME_BYTES, flip, tripod

pytestmark = pytest.mark.slow


def test_a_sweep_ends_with_verified_order_a_local_hub_and_a_report(calm):
    suite, output = calm
    for rung in RUNGS:
        assert f"{rung}" in output
        assert (suite / "hub" / f"models--tripod--{rung}" / "refs" / "step4").exists()
    verification = json.loads((suite / "verification.json").read_text())
    assert all(verification[kind]["ok"] for kind in ("order", "checkpoints", "labels"))
    assert "tok/s" in output and "ETA" in output
    assert (suite / "report.html").stat().st_size > 10_000


def test_run_again_it_does_nothing_and_says_so(calm):
    suite, _ = calm
    before = {p: p.stat().st_mtime_ns for p in suite.rglob("*.safetensors")}
    again = tripod("sweep", "smoke", "--root", suite.parent)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("complete, nothing to do") == len(RUNGS)
    assert "verified before" in again.stdout
    assert {p: p.stat().st_mtime_ns for p in suite.rglob("*.safetensors")} == before


def test_seeds_differ_and_share_one_order(calm):
    suite, _ = calm
    first, second = ((suite / rung / "metrics.jsonl").read_text() for rung in RUNGS[:2])
    assert first != second
    assert len({(suite / rung / "order.log").read_bytes() for rung in RUNGS}) == 1


def test_clipping_fired(calm):
    lines = (calm[0] / "smoke-20k" / "metrics.jsonl").read_text().splitlines()
    assert any(json.loads(line)["clip_coef"] < 1 for line in lines)


def test_killed_at_three_random_moments_it_ends_in_the_same_bytes(calm, tmp_path):
    suite, _ = calm
    seed = random.SystemRandom().randrange(10**6)
    moments = random.Random(seed)
    print(f"seed of the kill moments: {seed}")
    other = tmp_path / "smoke"
    shutil.copytree(suite / "data", other / "data")
    killed = 0
    for ranks in (1, 2, 3):
        killed += kill_sweep(tmp_path, ranks, moments)
    assert killed == 3
    done = tripod("sweep", "smoke", "--root", tmp_path, "--ranks", 1)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    for rung in RUNGS:
        for name in SAME_BYTES:
            assert (other / rung / name).read_bytes() == (suite / rung / name).read_bytes(), (
                rung,
                name,
            )
        for path in sorted((suite / rung / "checkpoints").rglob("*")):
            twin = other / path.relative_to(suite)
            assert twin.exists(), twin
            if path.is_file():
                assert twin.read_bytes() == path.read_bytes(), path


def kill_sweep(root, ranks, moments):
    """Starts the sweep, waits for a random number of new steps, and kills its whole session."""
    log = root / "smoke"
    before, wait_for = steps_done(log), moments.randrange(3, 15)
    command = [sys.executable, "-m", "suite.cli", "sweep", "smoke"]
    sweep = subprocess.Popen(
        [*command, "--root", str(root), "--ranks", str(ranks)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 240
    while sweep.poll() is None and steps_done(log) < before + wait_for:
        assert time.monotonic() < deadline, "the sweep made no progress"
        time.sleep(0.02)
    time.sleep(moments.random() * 0.3)
    # Only the top process is killed: the kernel must take the launcher and the ranks with it.
    running = sweep.poll() is None
    sweep.send_signal(signal.SIGKILL)
    sweep.wait()
    return running


def steps_done(suite):
    return sum(path.stat().st_size // 32 for path in suite.glob("*/order.log"))


def test_verify_passes_on_the_finished_suite(calm):
    done = tripod("verify", "all", calm[0])
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("ok  ") == 3


def test_a_flipped_byte_in_a_shard_is_caught_by_verify_order_and_by_training(copy):
    shard = next((copy / "data" / "train").glob("*.bin"))
    flip(shard, 1001)
    done = tripod("verify", "order", copy)
    assert done.returncode != 0
    assert shard.name in done.stdout + done.stderr
    shutil.rmtree(copy / "smoke-60k" / "checkpoints" / "step24")
    resumed = tripod("train", "smoke", "smoke-60k", "--root", copy.parent)
    assert resumed.returncode == 2
    assert shard.name in resumed.stderr


@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.safetensors", "trainer_state.json"]
)
def test_a_flipped_byte_in_a_checkpoint_is_caught_by_verify_checkpoints(copy, name):
    flip(copy / "smoke-20k" / "checkpoints" / "step12" / name, -2)
    done = tripod("verify", "checkpoints", copy)
    assert done.returncode == 1
    assert "step12" in done.stdout and name in done.stdout


def test_a_flipped_byte_in_the_ledger_is_caught_by_verify_checkpoints(copy):
    ledger = copy / "smoke-20k" / "manifest.jsonl"
    data = ledger.read_bytes()
    flip(ledger, data.index(b'"weights_root":"', len(data) // 2) + 20)
    done = tripod("verify", "checkpoints", copy)
    assert done.returncode != 0
    assert "manifest.jsonl" in done.stdout + done.stderr or "ledger" in done.stdout + done.stderr


def test_order_log_of_another_order_is_caught_with_the_first_step_named(copy):
    flip(copy / "smoke-60k" / "order.log", 32 * 7 + 3)
    done = tripod("verify", "order", copy)
    assert done.returncode == 1
    assert "first divergence from the index at step 7" in done.stdout


def test_swapped_labels_are_caught_by_verify_labels(copy):
    refs = copy / "hub" / "models--tripod--smoke-20k" / "refs"
    a, b = (refs / "step6").read_text(), (refs / "step12").read_text()
    (refs / "step6").write_text(b)
    (refs / "step12").write_text(a)
    done = tripod("verify", "labels", copy)
    assert done.returncode == 1
    assert "step6 is not step 6" in done.stdout and "step12 is not step 12" in done.stdout


def test_a_corrupted_newest_checkpoint_stops_the_resume_and_is_named(calm, copy):
    run_dir = copy / "smoke-20k"
    rewind(run_dir, 12)
    flip(run_dir / "checkpoints" / "step12" / "model.safetensors", -3)
    earlier = (run_dir / "checkpoints" / "step6" / "model.safetensors").read_bytes()
    done = tripod("train", "smoke", "smoke-20k", "--root", copy.parent)
    assert done.returncode == 2
    assert "step12" in done.stderr and "sha256" in done.stderr
    assert (run_dir / "checkpoints" / "step6" / "model.safetensors").read_bytes() == earlier
    # The remedy that the message names works, and gives the same bits again.
    assert tripod("rewind", run_dir, "--step", 6).returncode == 0
    assert tripod("train", "smoke", "smoke-20k", "--root", copy.parent).returncode == 0
    for name in SAME_BYTES:
        assert (run_dir / name).read_bytes() == (calm[0] / "smoke-20k" / name).read_bytes()


def test_other_torch_on_resume_is_refused_and_named(copy):
    run_dir = copy / "smoke-20k"
    rewind(run_dir, 12)
    record = json.loads((run_dir / "numerics.json").read_text())
    (run_dir / "numerics.json").write_text(json.dumps({**record, "torch": "2.11.0"}))
    done = tripod("train", "smoke", "smoke-20k", "--root", copy.parent)
    assert done.returncode == 2
    assert "torch: expected '2.11.0'" in done.stderr


def test_another_tokenizer_is_refused(copy):
    rewind(copy / "smoke-20k", 12)
    tokenizer = copy / "data" / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text() + " ")
    done = tripod("train", "smoke", "smoke-20k", "--root", copy.parent)
    assert done.returncode == 2
    assert "tokenizer.json" in done.stderr


def test_another_index_than_the_suite_states_stops_the_run(copy):
    done = tripod(
        "train", "smoke", "smoke-20k", "--root", copy.parent, f"data.index_digest={'0' * 64}"
    )
    assert done.returncode == 2
    found = json.loads((copy / "smoke-20k" / "config.json").read_text())["data"]["index_digest"]
    assert "0" * 64 in done.stderr and found in done.stderr and "requirements.lock" in done.stderr


def test_two_trainings_in_one_directory_are_refused(copy):
    import fcntl

    run_dir = copy / "smoke-20k"
    rewind(run_dir, 12)
    with (run_dir / "lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = tripod("train", "smoke", "smoke-20k", "--root", copy.parent)
    assert done.returncode == 2
    assert "another process trains there" in done.stderr


def test_two_sweeps_of_one_suite_are_refused(copy):
    import fcntl

    with (copy / "sweep.lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = tripod("sweep", "smoke", "--root", copy.parent)
    assert done.returncode == 2
    assert "another sweep is running" in done.stderr


def test_a_full_disk_stops_before_training_and_names_the_numbers(
    calm, tmp_path, monkeypatch, capsys
):
    from suite import sweep
    from suite.cli import main

    monkeypatch.setattr(sweep, "free_bytes", lambda path: 1000)
    assert main(["sweep", "smoke", "--root", str(tmp_path)]) == 2
    assert "MB are free" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.safetensors"))


def test_status_and_batch_show_what_is_there(calm):
    suite, _ = calm
    rows = json.loads(tripod("status", suite, "--json").stdout)
    assert [(row["rung"], row["step"]) for row in rows] == [(rung, 24) for rung in RUNGS]
    batch = json.loads(tripod("batch", suite / "smoke-20k", "--step", 5, "--json").stdout)
    assert len(batch["rows"]) == batch["batch_size"] == 8
    assert all(row["documents"] for row in batch["rows"])


def test_a_revision_loads_in_transformers_by_name(calm):
    code = (
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "m = AutoModelForCausalLM.from_pretrained('tripod/smoke-60k', revision='step4')\n"
        "t = AutoTokenizer.from_pretrained('tripod/smoke-60k', revision='step4')\n"
        "print(m.num_parameters(), len(t('def f(x):')['input_ids']) > 0)"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(calm[0] / "hub")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["58240", "True"]


def test_bench_prints_the_ratio():
    done = tripod("bench", "step", "--rung", "smoke-20k", "--rounds", 1)
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()[2:]]
    assert rows and all(float(row[3]) > 0 for row in rows)
