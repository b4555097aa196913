"""`noise-v1`: the gradient noise scale, from the quanta of a step and nothing more.

A step has V gradients of q sequences each, and their mean over B = V·q. With |g|^2 the mean squared
norm of the first and |G|^2 the squared norm of the second (before clipping),

    signal = (B |G|^2 - q |g|^2) / (B - q)        estimates the squared norm of the true gradient
    noise  = (|g|^2 - |G|^2) / (1/q - 1/B)        estimates the trace of a sequence's covariance
    scale  = noise / signal                       in sequences: the "simple" noise scale

(McCandlish et al. 2018, arXiv 1812.06162, appendix A.1). Both are unbiased and noisy: average them
over steps before taking the ratio. Each quantum's norm is that of its own tensors, added in fp64 in
canonical order, so a line has the same bytes on any number of ranks. `scale` is null where the
signal is lost in the noise.
"""

from __future__ import annotations

import json

import numpy as np
import torch

from suite.quantise import Quantiser

NAME = "noise-v1"
_ALIGNED = 64


class QuantumMeter:
    """A quantiser that also adds up the squared norm of the quantum that passes through it.

    Args:
        quantise: what it stands in for.
    """

    def __init__(self, quantise: Quantiser) -> None:
        self._quantise, self._square = quantise, 0.0

    def __call__(self, acc: torch.Tensor, grad: torch.Tensor, limit: float) -> int:
        """As the quantiser."""
        flat = grad.detach().reshape(-1).float()
        if flat.data_ptr() % _ALIGNED:
            # BLAS may add in another order where memory is not aligned.
            flat = flat.clone()
        self._square += float(torch.dot(flat, flat))
        return self._quantise(acc, grad, limit)

    def take(self) -> float:
        """The squared norm since the last call."""
        square, self._square = self._square, 0.0
        return square


def noise_line(update: int, squares: np.ndarray, grad_norm: float, batch_size: int) -> bytes:
    """One line of `noise.jsonl`.

    Args:
        update: 1-based.
        squares: squared gradient norm of each quantum, [V] with V > 1.
        grad_norm: norm of the mean gradient before clipping.
        batch_size: B.
    """
    quantum = batch_size / len(squares)
    small, big = sum(squares.tolist()) / len(squares), grad_norm * grad_norm
    signal = (batch_size * big - quantum * small) / (batch_size - quantum)
    noise = (small - big) / (1.0 / quantum - 1.0 / batch_size)
    record = {
        "step": update,
        "estimator": NAME,
        "quantum_square": small,
        "batch_square": big,
        "signal": signal,
        "noise": noise,
        "scale": noise / signal if signal > 0 else None,
    }
    return json.dumps(record, separators=(",", ":"), allow_nan=False).encode() + b"\n"
