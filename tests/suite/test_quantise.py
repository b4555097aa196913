"""`fixed64-v1`: exact, associative, checked at every start, and closed to NaN."""

import os

import pytest
import torch

from suite import quantise
from suite.quantise import (
    check_equal,
    native_quantiser,
    quantise_add_eager,
    range_limit,
    verified_quantiser,
)

UNIT = 2.0**-44
LIMIT = range_limit(8)


def quantised(quantiser, *grads, limit=LIMIT):
    acc = torch.zeros(grads[0].numel(), dtype=torch.int64)
    bad = sum(quantiser(acc, grad, limit) for grad in grads)
    return acc, bad


def quantisers():
    native = native_quantiser()
    return [quantise_add_eager] + ([native] if native else [])


@pytest.mark.parametrize("quantiser", quantisers())
def test_ties_go_to_even_and_signs_survive(quantiser):
    grads = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, 3.0, -7.0, 0.0, -0.0]) * UNIT
    acc, bad = quantised(quantiser, grads)
    assert acc.tolist() == [0, 2, 2, 0, -2, 3, -7, 0, 0]
    assert bad == 0


@pytest.mark.parametrize("quantiser", quantisers())
def test_any_order_of_quanta_gives_the_same_sum(quantiser):
    generator = torch.Generator().manual_seed(0)
    grads = [torch.randn(10_007, generator=generator) * 10.0**-i for i in range(8)]
    forward, _ = quantised(quantiser, *grads)
    backward, _ = quantised(quantiser, *reversed(grads))
    assert torch.equal(forward, backward)
    # The negative control: the same sum in fp32 depends on the order.
    assert not torch.equal(sum(grads), sum(reversed(grads)))


@pytest.mark.parametrize("quantiser", quantisers())
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_values_out_of_range_are_counted_and_add_nothing(quantiser, value):
    acc, bad = quantised(quantiser, torch.tensor([1.0, value, 2.0]))
    assert bad == 1
    assert acc.tolist() == [2**44, 0, 2**45]


def test_limit_leaves_room_for_every_quantum():
    for quanta in (1, 2, 3, 8, 1000, 1024):
        assert quanta * range_limit(quanta) <= 2**62
    with pytest.raises(ValueError, match="num_quanta=0"):
        range_limit(0)


def test_a_compiler_is_present_and_its_kernel_equals_the_eager_form():
    native = native_quantiser()
    if native is None:
        assert verified_quantiser()[1] == "eager"
    else:
        check_equal(native)
        assert verified_quantiser()[1] == "native-c"


def test_a_kernel_that_leaves_half_of_the_values_out_stops_the_start():
    def broken(acc, grad, limit):
        half = grad.clone()
        half[1::2] = 0
        return quantise_add_eager(acc, half, limit)

    with pytest.raises(RuntimeError, match="differs from the eager one"):
        check_equal(broken)


def test_without_a_compiler_the_eager_form_runs_with_a_notice(monkeypatch, capsys):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(quantise.shutil, "which", lambda name: None)
    quantiser, name = verified_quantiser()
    assert (quantiser, name) == (quantise_add_eager, "eager")
    assert "no C compiler" in capsys.readouterr().err


def test_a_failing_compiler_is_reported_with_its_output(monkeypatch, tmp_path):
    compiler = tmp_path / "cc"
    compiler.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && echo broken 1 && exit 0\n'
        "echo no such flag >&2; exit 3\n"
    )
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", os.fspath(compiler))
    monkeypatch.setenv("TRIPOD_CACHE", os.fspath(tmp_path / "cache"))
    with pytest.raises(RuntimeError, match="no such flag"):
        native_quantiser()


def test_wrong_dtypes_are_refused():
    native = native_quantiser()
    if native is not None:
        with pytest.raises(ValueError, match="float64"):
            native(torch.zeros(2, dtype=torch.int64), torch.zeros(2, dtype=torch.float64), 1.0)
