"""The DeepSpeed engine keeps what it promises on each layout, and what it cannot keep it refuses.

Elastic layouts give the reference engine's digest on 1, 2 and 3 ranks; fixed layouts the same bits
again in another process, and after a stop. Where DeepSpeed does not import these tests fail with
the remedy, unless TRIPOD_NO_DEEPSPEED says that this environment has none.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from checkpoints_manifest.manifest import Ledger
from checkpoints_manifest.store import latest_complete_step, steps_on_disk
from checkpoints_manifest.verify import verify_checkpoints
from suite.numerics import profile_environment
from tests.suite.deepspeed_scenarios import IN_FP32_TOO, LAYOUTS, UPDATES
from tests.suite.smoke import SAME_BYTES, tripod
from tests.suite.tiny_families import HF

pytestmark = [pytest.mark.deepspeed, pytest.mark.slow]
SCRIPT = Path(__file__).with_name("deepspeed_scenarios.py")
FIXED = [*(f"{name}-bf16-params" for name in LAYOUTS), *(f"{name}-fp32" for name in IN_FP32_TOO)]


@pytest.fixture(scope="module", autouse=True)
def deepspeed_is_here():
    if os.environ.get("TRIPOD_NO_DEEPSPEED"):
        pytest.skip("TRIPOD_NO_DEEPSPEED is set: this environment has no DeepSpeed")
    from suite.deepspeed_engine import import_deepspeed

    import_deepspeed()


def scenarios(world, *arguments):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*command, f"--nproc-per-node={world}", str(SCRIPT), *map(str, arguments)],
        capture_output=True, text=True, check=False,
        env={**profile_environment("portable-x86"), "PYTHONPATH": str(SCRIPT.parents[2])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))


@pytest.fixture(scope="module")
def elastic():
    return {world: scenarios(world, "elastic") for world in (1, 2, 3)}


@pytest.fixture(scope="module")
def fixed(tmp_path_factory):
    """Two launches on two ranks; the second continues from the states that the first left."""
    directory = tmp_path_factory.mktemp("states")
    return [scenarios(2, "fixed", directory) for _ in range(2)]


@pytest.mark.parametrize(
    ("layout", "precision"), [("zero1", "bf16-params"), ("zero0", "fp32"), ("zero1", "fp32")]
)
def test_elastic_layouts_give_the_digest_of_the_reference_on_any_number_of_ranks(
    elastic, layout, precision
):
    assert {result["threads"] for result in elastic.values()} == {1}
    assert all(result[f"clipped-{precision}"] == UPDATES for result in elastic.values())
    digests = {result[f"{layout}-{precision}"] for result in elastic.values()}
    assert digests == {result[f"reference-{precision}"] for result in elastic.values()}
    assert len(digests) == 1


@pytest.mark.parametrize("family", sorted(HF))
def test_every_family_gives_the_digest_of_the_reference_on_any_number_of_ranks(elastic, family):
    """With dropout, vocabulary padding, chunked loss and activation checkpointing."""
    digests = {result[f"zero1-{family}"] for result in elastic.values()}
    assert digests == {result[f"reference-{family}"] for result in elastic.values()}
    assert len(digests) == 1


@pytest.mark.parametrize("key", ["1-bf16-params", "0-fp32", "1-fp32"])
def test_the_reference_engine_continues_what_an_elastic_layout_began(elastic, key):
    precision = key.split("-", 1)[1]
    for result in elastic.values():
        assert result[f"handed-over-{key}"] == result[f"reference-{precision}"]


@pytest.mark.parametrize("key", ["1-bf16-params", "0-fp32", "1-fp32"])
def test_a_deepspeed_that_reduces_by_another_way_is_stopped_before_the_update(elastic, key):
    for result in elastic.values():
        assert result[f"bypassed-{key}"].startswith("nothing changed: DeepSpeed 0.")


def test_control_float_sums_give_another_model_on_another_number_of_ranks(elastic):
    assert len({result["float-sum"] for result in elastic.values()}) > 1
    assert elastic[1]["reference-fp32"] != elastic[1]["reference-bf16-params"]


@pytest.mark.parametrize("layout", FIXED)
def test_a_fixed_layout_gives_the_same_bits_again_and_after_a_stop(fixed, layout):
    first, second = (launch[layout] for launch in fixed)
    assert first["promise"] == "fixed-layout"
    assert first["clipped"] == UPDATES
    # Uninterrupted twice, resumed in the same process, resumed in another process.
    assert {first["whole"], first["resumed"], second["whole"], second["resumed"]} == {
        first["whole"]
    }


def test_zero3_of_another_family_gives_the_same_bits_again(fixed):
    assert len({digest for launch in fixed for digest in launch["zero3-llama"]}) == 1


@pytest.mark.parametrize("layout", FIXED)
def test_a_fixed_layout_computes_the_gradient_of_the_reference_but_for_rounding(fixed, layout):
    """A gradient divided once too often by the number of quanta or ranks shows in the norm only."""
    precision = "bf16-params" if layout.endswith("bf16-params") else "fp32"
    tolerance = 5e-3 if precision == "bf16-params" else 1e-5
    assert fixed[0][layout]["norms"] == pytest.approx(
        fixed[0][f"norms-{precision}"], rel=tolerance
    )  # fmt: skip


@pytest.mark.parametrize("layout", FIXED)
def test_an_infinite_gradient_on_one_data_parallel_rank_stops_before_the_update(fixed, layout):
    assert fixed[0][layout]["non-finite"].startswith("nothing changed: update 4: a gradient is NaN")


# --- whole runs ---

SETTINGS = ["train.steps=12", "checkpoints.every=2", "numerics.precision=bf16-params"]
ZERO3 = ["engine.name=deepspeed", "engine.zero_stage=3"]


def command(root, *overrides, ranks=2):
    words = ["train", "smoke", "smoke-20k", "--root", root, "--ranks", ranks, *SETTINGS, *overrides]
    return [sys.executable, "-m", "suite.cli", *map(str, words)]


def train(root, *overrides, ranks=2):
    return tripod(*command(root, *overrides, ranks=ranks)[3:])


def killed_after(step, root, *overrides):
    """Starts a run and kills it, with everything it started, once checkpoint `step` is there."""
    run = root / "smoke" / "smoke-20k"
    process = subprocess.Popen(
        command(root, *overrides), start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 300
    while not (run / "checkpoints" / f"step{step}" / "manifest.json").exists():
        assert process.poll() is None, (run / "train.log").read_text()[-2000:]
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(1)  # the kernel kills the ranks when their parent is gone
    return run


@pytest.fixture(scope="module")
def zero3_runs(tmp_path_factory):
    """A ZeRO-3 run trained in peace, and one killed after checkpoint 4."""
    root = tmp_path_factory.mktemp("zero3")
    done = train(root / "calm", *ZERO3)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (root / "killed" / "smoke").mkdir(parents=True)
    shutil.copytree(root / "calm" / "smoke" / "data", root / "killed" / "smoke" / "data")
    return root / "calm" / "smoke" / "smoke-20k", killed_after(4, root / "killed", *ZERO3)


@pytest.fixture
def killed(zero3_runs, tmp_path):
    """A copy of the killed run that a test may continue: the root and the run."""
    shutil.copytree(zero3_runs[1].parents[1], tmp_path / "copy", symlinks=True)
    return tmp_path / "copy", tmp_path / "copy" / "smoke" / "smoke-20k"


def test_a_killed_zero3_run_ends_as_the_uninterrupted_one_byte_for_byte(zero3_runs, killed):
    calm, (root, run) = zero3_runs[0], killed
    assert latest_complete_step(run) < 12
    done = train(root, *ZERO3)
    assert done.returncode == 0, done.stderr[-2000:]
    for name in SAME_BYTES:
        assert (run / name).read_bytes() == (calm / name).read_bytes(), name
    assert verify_checkpoints(run).findings == ()
    labels = tripod("verify", "labels", run)
    assert labels.returncode == 0, labels.stdout
    # Asked for one rank, a replay takes the recorded two.
    replayed = tripod("replay", run, "--from", 4, "--to", 8, "--ranks", 1)
    assert replayed.returncode == 0, replayed.stdout + replayed.stderr


def test_another_number_of_ranks_or_engine_is_refused_until_accepted(killed):
    root, run = killed
    before = (run / "manifest.jsonl").read_bytes()
    for overrides, ranks, words in (
        (ZERO3, 1, ["ranks: expected 2, found 1"]),
        ([], 2, ["name: expected 'deepspeed', found 'reference'", "zero_stage: expected 3"]),
        ([*ZERO3, "engine.offload_optimizer=true"], 2, ["offload_optimizer: expected False"]),
    ):
        done = train(root, *overrides, ranks=ranks)
        assert done.returncode != 0
        for word in [*words, "--accept-engine-change"]:
            assert word in done.stderr
    assert (run / "manifest.jsonl").read_bytes() == before


def test_a_zero3_checkpoint_continues_in_the_reference_engine_and_the_manifest_says_so(killed):
    root, run = killed
    # On disk, and by the next start in the ledger too, however late the kill came.
    step = max(steps_on_disk(run))
    done = train(root, "--accept-engine-change")
    assert done.returncode == 0, done.stderr[-2000:]
    # The change is settled: the same command without `accept` has nothing more to do.
    assert train(root).returncode == 0
    engines = {
        record["step"]: record["engine"] for record in Ledger(run / "manifest.jsonl").records()
    }
    assert engines[step]["name"] == "deepspeed"
    assert (engines[step]["zero_stage"], engines[step]["ranks"]) == (3, 2)
    assert engines[12] == {"name": "reference", "promise": "elastic", "since": step}
    assert verify_checkpoints(run).findings == ()
    across = tripod("replay", run, "--from", 0, "--to", 12)
    assert across.returncode != 0
    assert f"changed at step {step}" in across.stdout + across.stderr
    for first, last in ((step - 2, step), (step, 12)):
        replayed = tripod("replay", run, "--from", first, "--to", last)
        assert replayed.returncode == 0, replayed.stdout + replayed.stderr
