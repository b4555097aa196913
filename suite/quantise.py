"""`fixed64-v1`: gradients as 64-bit integers, so that their sum does not depend on any order.

Each quantum's gradient g is added to an int64 accumulator as rint(g·2^44), ties to even, after a
range check that also catches NaN and Inf. The product with a power of two is exact in fp32. Integer
addition is associative: rank count, assignment, bucket size and collective algorithm cannot change
a bit. See docs/spec/exact-step.md.

Two forms give the same bits: a C kernel compiled once per machine (about 1 ns an element), and an
eager form in blocks for machines without a C compiler or for other devices. `verified_quantiser`
compares them at every start, and stops when they differ: a stale or miscompiled kernel must not
train a model.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

SCALE_BITS = 44
SCALE = float(2**SCALE_BITS)
_BLOCK = 1 << 16
_FLAGS = ("-O3", "-fPIC", "-shared", "-fno-math-errno", "-ffp-contract=off")

Quantiser = Callable[[torch.Tensor, torch.Tensor, float], int]


class NonFiniteGradientError(FloatingPointError):
    """A gradient was NaN, Inf or too large for `fixed64-v1`.

    The step was stopped before the update. `rows` are the rows of the batch to look at.
    """

    def __init__(self, message: str, rows: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.rows = tuple(rows)


def range_limit(num_quanta: int) -> float:
    """Bound on |g|·2^44 for one quantum.

    2^(62 - ceil(log2 V)), so that V of them cannot overflow int64.
    """
    if num_quanta < 1:
        raise ValueError(f"num_quanta={num_quanta} must be at least 1")
    return float(2 ** (62 - (num_quanta - 1).bit_length()))


def quantise_add_eager(acc: torch.Tensor, grad: torch.Tensor, limit: float) -> int:
    """Adds rint(grad·2^44) to `acc` in blocks that stay in cache.

    Args:
        acc: int64, flat, contiguous; updated in place.
        grad: fp32 of the same number of elements.
        limit: from `range_limit`.

    Returns:
        How many values were out of range (they add nothing).
    """
    flat = grad.reshape(-1)
    bad = 0
    for start in range(0, flat.numel(), _BLOCK):
        scaled = flat[start : start + _BLOCK] * SCALE
        in_range = scaled.abs() < limit
        outside = in_range.numel() - int(in_range.sum())
        if outside:
            bad += outside
            scaled = torch.where(in_range, scaled, torch.zeros_like(scaled))
        acc[start : start + _BLOCK].add_(scaled.round_().to(torch.int64))
    return bad


def _cache_directory() -> Path:
    base = os.environ.get("TRIPOD_CACHE") or os.environ.get("XDG_CACHE_HOME")
    return Path(base or Path.home() / ".cache") / "tripod" / "kernels"


def _compile(compiler: str, source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        built = Path(scratch) / "kernel.so"
        command = [compiler, *_FLAGS, str(source), "-lm", "-o", str(built)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
        built.replace(target)


def native_quantiser() -> Quantiser | None:
    """The compiled kernel for CPU tensors, built on first use; None without a C compiler."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return None
    source = Path(__file__).with_name("quantise.c")
    # The version line is part of the key: another compiler may give another kernel.
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True)
    key = "\0".join((source.read_text(), *_FLAGS, version.stdout, platform.machine()))
    library = _cache_directory() / f"quantise-{hashlib.sha256(key.encode()).hexdigest()[:24]}.so"
    if not library.exists():
        _compile(compiler, source, library)
    function = ctypes.CDLL(str(library)).tripod_quantise_add
    function.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_float)
    function.restype = ctypes.c_int64

    def quantise(acc: torch.Tensor, grad: torch.Tensor, limit: float) -> int:
        grad = grad.contiguous()
        if acc.dtype != torch.int64 or grad.dtype != torch.float32 or acc.numel() != grad.numel():
            raise ValueError(
                f"expected int64 and fp32 of one size, found {acc.dtype}, {grad.dtype}"
            )
        return int(function(acc.data_ptr(), grad.data_ptr(), grad.numel(), limit))

    return quantise


def _check_values() -> torch.Tensor:
    """Ties, signs, denormals, exact and inexact values, and enough length for every vector tail."""
    halves = (torch.arange(-4099, 4100, dtype=torch.float32) + 0.5) * 2.0**-SCALE_BITS
    ramp = torch.arange(-100_003, 100_003, dtype=torch.float32) * 1.1920929e-07
    odd = torch.tensor(
        [0.0, -0.0, 1e-45, -1e-45, 1.1754944e-38, 3.0e-14, -2.9e-14, 1.0, -7.25, 511.0]
    )
    return torch.cat([halves, ramp, ramp * 1e-7, odd])


def verified_quantiser(device: torch.device | str = "cpu") -> tuple[Quantiser, str]:
    """The quantiser to train with, checked against the eager form, and its name.

    The name is "native-c" or "eager".

    Raises:
        RuntimeError: the compiled kernel and the eager form differ in any bit.
    """
    native = native_quantiser() if torch.device(device).type == "cpu" else None
    if native is None:
        if torch.device(device).type == "cpu":
            print(
                "tripod: no C compiler found (cc); the eager quantiser gives the same bits, slower",
                file=sys.stderr,
            )
        return quantise_add_eager, "eager"
    check_equal(native)
    return native, "native-c"


def check_equal(quantiser: Quantiser) -> None:
    """Compares a quantiser with the eager form on values chosen to break one.

    Raises RuntimeError on a difference.
    """
    values = torch.cat([_check_values(), torch.tensor([float("nan"), float("inf"), -1e30])])
    limit = range_limit(1024)
    found, expected = (torch.full((values.numel(),), 5, dtype=torch.int64) for _ in range(2))
    bad_found = quantiser(found, values, limit)
    bad_expected = quantise_add_eager(expected, values, limit)
    differing = int((found != expected).sum())
    if differing or bad_found != bad_expected:
        raise RuntimeError(
            f"the compiled quantiser differs from the eager one in {differing} of "
            f"{values.numel()} values "
            f"(out of range: expected {bad_expected}, found {bad_found}); delete "
            f"{_cache_directory()} and start again"
        )
