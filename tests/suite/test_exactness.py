"""One digest for any number of ranks, with clipping seen to fire; and what others do, seen to fail.

Needs one thread per rank (the launcher sets it). V = 12 quanta, so 5 ranks get unequal shares.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from suite.comm import Group
from suite.engine import ExactEngine, quanta_of
from suite.numerics import profile_environment
from suite.quantise import NonFiniteGradientError
from tests.suite.rank_scenarios import UPDATES, batch_of, config_for, run, state_digest

WORLDS = (1, 3, 4, 5)
ROOT = Path(__file__).parents[2]


def launch(world, *arguments, threads="1", module="tests.suite.rank_scenarios"):
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={world}",
    ]
    environment = {
        **profile_environment("portable-x86"),
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
    }
    done = subprocess.run(
        [*command, "-m", module, *arguments],
        capture_output=True,
        text=True,
        env=environment,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))


@pytest.fixture(scope="module")
def results():
    return {world: launch(world) for world in WORLDS}


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_one_digest_for_any_number_of_ranks(results, precision):
    assert {result["threads"] for result in results.values()} == {1}
    assert all(result[f"clipped-{precision}"] == UPDATES for result in results.values())
    assert len({result[f"exact-{precision}"] for result in results.values()}) == 1


@pytest.mark.slow
def test_controls_are_seen_to_fail(results):
    assert len({result["float-sum"] for result in results.values()}) > 1
    assert len({result["shard-norm"] for result in results.values()}) > 1
    assert results[1]["exact-fp32"] != results[1]["exact-bf16"]
    # Another quantum is another recipe, though it is one digest for any number of ranks too.
    assert results[1]["doubled-quantum"] != results[1]["exact-fp32"]
    assert len({result["doubled-quantum"] for result in results.values()}) == 1


@pytest.mark.slow
def test_another_thread_count_gives_other_bits(results):
    """Why the guard exists: fp32 with two threads trains another model."""
    other = launch(1, "fp32-only", threads="2")
    assert other["threads"] == 2
    assert other["exact-fp32"] != results[1]["exact-fp32"]


def test_quanta_are_shared_out_completely_for_any_number_of_ranks():
    for quanta in (1, 5, 12, 16):
        for world in (1, 2, 3, 5, 7):
            shares = [list(quanta_of(rank, world, quanta)) for rank in range(world)]
            assert [q for share in shares for q in share] == list(range(quanta))
            assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_state_moves_to_another_engine_and_continues_to_the_same_bits():
    config, group = config_for("fp32"), Group(0, 1)
    whole = ExactEngine(config, group)
    run(whole, range(1, 5))
    first, second = ExactEngine(config, group), ExactEngine(config, group)
    run(first, range(1, 3))
    second.load_state(*first.state())
    run(second, range(3, 5))
    assert state_digest(whole) == state_digest(second)


def test_one_flipped_bit_in_the_state_changes_the_digest():
    engine = ExactEngine(config_for("fp32"), Group(0, 1))
    run(engine, range(1, 2))
    before = state_digest(engine)
    engine.moments.exp_avg.view(torch.int32)[7] ^= 1
    assert state_digest(engine) != before


def test_a_non_finite_loss_stops_before_the_update():
    config, group = config_for("fp32"), Group(0, 1)
    engine = ExactEngine(config, group)
    run(engine, range(1, 2))
    engine.layout.views(engine.flat)["embed_out.weight"][3].fill_(float("nan"))
    before = state_digest(engine)
    with pytest.raises(NonFiniteGradientError, match=r"update 2: .*Nothing was updated"):
        run(engine, range(2, 3))
    assert state_digest(engine) == before


def test_losses_are_those_of_the_model():
    config = config_for("fp32")
    engine = ExactEngine(config, Group(0, 1))
    batch = batch_of(1)
    ids = torch.from_numpy(batch)
    with torch.no_grad():
        expected = engine.model(input_ids=ids[:, :-1], labels=None).logits
    logp = expected.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    result = engine.step(1, 0.0, lambda a, b: batch[a:b])
    np.testing.assert_allclose(result.sequence_losses, -logp.mean(1).numpy(), rtol=1e-5)
    assert result.loss == pytest.approx(float(-logp.mean()), rel=1e-6)
