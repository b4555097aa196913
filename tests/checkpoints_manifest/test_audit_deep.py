"""The deep audit: weights that are unique and wrong, on checkpoints of a small descent."""

import contextlib
import math

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from checkpoints_manifest.audit.deep import Sketch, Weights, choose, deep_audit, zero_pages

STEPS = (0, 1, 8, 100, 200, 300, 400)
SHAPES = {"gpt_neox.a.weight": (30, 20), "embed_out.weight": (50, 20), "norm.weight": (20,)}


def descent(seed=0, dtype=torch.float32):
    """Weights by step that move from a random start towards a random end, with noise."""
    generator = torch.Generator().manual_seed(seed)

    def draw():
        return {n: torch.randn(shape, generator=generator) for n, shape in SHAPES.items()}

    start, end, found = draw(), draw(), {}
    for step in STEPS:
        share = 0.8 * (1 - math.exp(-step / 150))
        noise = draw()
        found[step] = {
            n: ((1 - share) * start[n] + share * end[n] + 1e-3 * noise[n] * (step > 0)).to(dtype)
            for n in SHAPES
        }
    return found


def write(tmp_path, weights):
    for step, tensors in weights.items():
        folder = tmp_path / f"step{step}"
        folder.mkdir()
        save_file(tensors, folder / "model.safetensors")
    return [(f"step{step}", step) for step in weights]


def look(tmp_path, weights, loss=None):
    held = []

    @contextlib.contextmanager
    def fetch(name, paths=None):
        held.append(name)
        assert len(held) == 1
        yield tmp_path / name
        held.remove(name)

    found = deep_audit(write(tmp_path, weights), fetch, loss)
    assert held == []
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_sound_run_has_no_finding(tmp_path, dtype):
    assert look(tmp_path, descent(dtype=dtype), lambda d: 3 - int(d.name[4:]) / 400) == []


def test_a_step_of_another_time_is_not_between_its_neighbours(tmp_path):
    weights = descent()
    weights[100] = {name: tensor + 1e-4 for name, tensor in weights[400].items()}
    (finding,) = look(tmp_path, weights)
    assert finding.revisions == ("step100",)
    assert "not on the path of the others" in finding.message


def test_a_model_of_two_halves_is_not_between_its_neighbours(tmp_path):
    weights = descent()
    weights[200] = weights[200] | {"embed_out.weight": weights[0]["embed_out.weight"] + 1e-4}
    (finding,) = look(tmp_path, weights)
    assert finding.revisions == ("step200",)


def test_steps_that_do_not_descend_from_their_step_0_are_found(tmp_path):
    weights = descent()
    weights[0] = descent(seed=1)[0]
    found = look(tmp_path, weights)
    assert [f.revisions for f in found] == [("step0", "step1"), ("step0", "step8")]
    assert "step1 does not descend from step0" in found[0].message


def test_norms_numbers_and_losses_that_jump_are_found(tmp_path):
    weights = descent()
    weights[200] = {name: 1.5 * tensor for name, tensor in weights[200].items()}
    weights[400]["norm.weight"][3] = math.nan
    messages = [f.message for f in look(tmp_path, weights, lambda d: 9.0 * ("100" in d.name))]
    assert any("step400: its weights are not all finite" in m for m in messages)
    assert any("step200: its weights have norm" in m for m in messages)
    assert any("step100: loss 9.000, its neighbours' 0.000" in m for m in messages)


def test_equal_numbers_in_different_files_and_other_tensors_are_found(tmp_path):
    weights = descent()
    weights[8] = {name: tensor.half().float() for name, tensor in weights[8].items()}
    weights[1] = {name: tensor.half() for name, tensor in weights[8].items()}
    weights[300].pop("norm.weight")
    messages = [f.message for f in look(tmp_path, weights)]
    assert messages == [
        "step300: tensor norm.weight has None elements, in step0 it has 20",
        "step1 and step8 hold the same numbers",
    ]


def sketch(folder):
    return Sketch.of(folder.name, 0, Weights(folder))


def test_sketches_give_distances_of_large_weights_to_a_percent(tmp_path):
    generator = torch.Generator().manual_seed(3)
    one = {"w": torch.randn(1500, 1000, generator=generator)}
    two = {"w": one["w"] + 0.01 * torch.randn(1500, 1000, generator=generator)}
    write(tmp_path, {0: one, 1: two})
    found = [sketch(tmp_path / f"step{step}") for step in (0, 1)]
    expected = float((one["w"] - two["w"]).double().norm())
    assert found[0].distance(found[1]) == pytest.approx(expected, rel=0.02)
    assert found[0].norm == pytest.approx(float(one["w"].double().norm()), rel=1e-6)
    assert found[0].cosine(found[1]) == pytest.approx(1, abs=0.02)


def test_weights_in_older_files_are_read_without_running_code(tmp_path):
    (tmp_path / "old").mkdir()
    torch.save(descent()[0], tmp_path / "old" / "pytorch_model.bin")
    write(tmp_path, {0: descent()[0]})
    assert sketch(tmp_path / "old").distance(sketch(tmp_path / "step0")) == 0


def test_samples_hold_the_first_two_and_the_last():
    steps = [0, 1, 2, 4, *range(1000, 20_000, 1000)]
    assert choose(steps, 6)[:2] == [0, 1]
    assert choose(steps, 6)[-1] == 19_000
    assert len(choose(steps, 6)) == 6
    assert choose([3, 1], 6) == [1, 3]


def test_an_order_file_that_is_mostly_zeros_is_found(tmp_path):
    path = tmp_path / "shuffle_idx.npy"
    good = np.random.default_rng(0).permutation(200_000).astype("<u4").tobytes()
    path.write_bytes(good)
    assert zero_pages("main:shuffle_idx.npy", path) == []
    path.write_bytes(good[: len(good) // 50 * 4] + bytes(len(good) // 50 * 46))
    (finding,) = zero_pages("main:shuffle_idx.npy", path)
    assert "main:shuffle_idx.npy: 92% of it are zeros" in finding.message
