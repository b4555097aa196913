"""The exact step: quanta, integer reduction, canonical norm, sharded AdamW.

One forward and backward handles one quantum of q consecutive sequences, so shapes, and with them
kernels, never depend on the hardware split. A rank owns a contiguous block of quanta; any
assignment (`suite.assignment`) gives the same bits. Specification: docs/spec/exact-step.md.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from checkpoints_manifest.names import canonical_parameters, stored_state
from data_pipeline.digests import sequence_digests
from suite.adamw import Moments, adamw_v1
from suite.assignment import Assignment, contiguous
from suite.comm import Group
from suite.config import RunConfig
from suite.engine_record import ELASTIC, describe
from suite.layout import flatten_parameters, make_layout, point_parameters
from suite.loss import quantum_loss
from suite.models import build_model, checkpoint_blocks
from suite.noise import QuantumMeter
from suite.quantise import NonFiniteGradientError, range_limit, verified_quantiser
from suite.reduction import add_gradients, clip_gradient, mean_gradient

# Reads rows [first, last) of the present batch: int64 ids [last - first, S+1].
Reader = Callable[[int, int], np.ndarray]


@dataclass(frozen=True)
class StepResult:
    """What one update did; the same on every rank.

    `loss` is the mean over the batch in nats per token, `sequence_losses` its B terms (fp32 array),
    `sequence_digests` the digests of the ids that were fed to the model, in row order, `gradient`
    the `gradient-digest-v1` of the reduced gradient before clipping, `quantum_squares` the squared
    gradient norm of each quantum (fp64 [V]; empty where the engine does not measure it).
    """

    loss: float
    sequence_losses: np.ndarray
    sequence_digests: list[bytes]
    grad_norm: float
    clip_coef: float
    gradient: str
    quantum_squares: np.ndarray = field(default_factory=lambda: np.zeros(0))


class QuantumEngine(ABC):
    """What every engine shares: its quanta in order, row losses, digests of what was fed, refusal.

    A subclass computes one quantum's gradient (`_backward`) and, from what the quanta left behind,
    the update (`_update`).
    """

    config: RunConfig
    group: Group
    # Which quanta a rank computes, and what measures their norms, where the engine can.
    assignment: Assignment = staticmethod(contiguous)
    _meter: QuantumMeter | None = None

    def step(self, update: int, lr: float, read: Reader) -> StepResult:
        """Computes one update from its global batch; all ranks call it together.

        Raises:
            NonFiniteGradientError: before anything was changed, on every rank alike.
        """
        config = self.config
        quantum, rows = config.numerics.quantum, config.data.batch_size
        count = config.num_quanta
        # Slots per row: loss; per quantum: how many values fixed64-v1 cannot hold, and the squared
        # gradient norm. Disjoint, so the sum is exact.
        slots = torch.zeros(rows + 2 * count, dtype=torch.float64)
        digests = torch.zeros(rows, 32, dtype=torch.uint8)
        self._begin()
        for index in self._quanta(update - 1):
            first = index * quantum
            ids = torch.from_numpy(read(first, first + quantum))
            losses, bad = self._backward(ids, (update - 1) * rows + first)
            slots[first : first + quantum] = losses.double()
            slots[rows + index] = bad
            slots[rows + count + index] = self._meter.take() if self._meter else 0.0
            fed = b"".join(sequence_digests(ids.numpy()))
            digests[first : first + quantum] = torch.frombuffer(
                bytearray(fed), dtype=torch.uint8
            ).view(quantum, 32)
        slots, digests = self._merge(slots), self._merge(digests)
        row_losses, bad_values, squares = np.split(slots.numpy(), [rows, rows + count])
        if bad_values.any() or not np.isfinite(row_losses).all():
            raise non_finite(update, row_losses, bad_values)
        norm, coef, gradient = self._update(update, lr)
        return StepResult(
            loss=sum(row_losses.tolist()) / rows,
            sequence_losses=row_losses.astype(np.float32),
            sequence_digests=[bytes(row.tolist()) for row in digests],
            grad_norm=norm,
            clip_coef=coef,
            gradient=gradient,
            quantum_squares=squares if self._meter else np.zeros(0),
        )

    def _quanta(self, step: int) -> Sequence[int]:
        return self.assignment(step, self.group.rank, self.group.world, self.config.num_quanta)

    def _merge(self, values: torch.Tensor) -> torch.Tensor:
        return self.group.fill_slots(values)

    @abstractmethod
    def _begin(self) -> None:
        """Clears what the quanta of a step add to."""

    @abstractmethod
    def _backward(self, ids: torch.Tensor, position: int) -> tuple[torch.Tensor, int]:
        """Adds one quantum's gradient; returns its row losses and the out-of-range count.

        Args:
            ids: int64 [q, S+1].
            position: position in the run of its first row, t·B + row: the key of dropout.
        """

    @abstractmethod
    def _update(self, update: int, lr: float) -> tuple[float, float, str]:
        """Reduces, clips and updates; returns norm, clip coefficient and gradient digest."""


class ExactEngine(QuantumEngine):
    """The reference engine: one rank's model, optimizer shard and accumulator.

    Usage: `step(update, lr, read)` where `read(first_row, last_row)` gives ids [rows, S+1] of this
    step's batch. Any number of ranks gives the same bits.
    """

    promise = ELASTIC

    def __init__(self, config: RunConfig, group: Group) -> None:
        self.config, self.group = config, group
        self.description = describe(config.engine, group.world)
        self.model = build_model(config.rung.model, config.rung.seeds.init)
        if config.numerics.activation_checkpointing == "blocks":
            checkpoint_blocks(self.model)
        self.layout = make_layout(self.model, group.world)
        full = flatten_parameters(self.model, self.layout)
        self._parameters = canonical_parameters(self.model)
        low = group.rank * self.layout.shard
        # With bf16-params the forward reads a rounded copy, and only the shard is fp32.
        self._is_copy = config.numerics.precision == "bf16-params"
        self.weights = full[low : low + self.layout.shard]
        self.flat = full
        if self._is_copy:
            self.weights = self.weights.clone()
            self.flat = full.to(torch.bfloat16)
            point_parameters(self._parameters, self.layout, self.flat)
        self.moments = Moments(torch.zeros_like(self.weights), torch.zeros_like(self.weights))
        self._decayed = self.layout.decayed_spans(group.rank)
        quantise, self.quantiser_name = verified_quantiser(self.flat.device)
        self._quantise = self._meter = QuantumMeter(quantise)
        self._accumulator = torch.zeros(self.layout.padded, dtype=torch.int64)
        self._limit = range_limit(config.num_quanta)

    def _begin(self) -> None:
        self._accumulator.zero_()

    def _forward_backward(self, ids: torch.Tensor, position: int) -> torch.Tensor:
        """Leaves one quantum's gradient in the parameters; returns its row losses."""
        seed = self.config.rung.seeds.dropout
        with self.model.dropout_context.at(seed, position):  # type: ignore[operator, union-attr]
            loss = quantum_loss(self.model, ids, self.config.numerics)
            loss.objective.backward()  # type: ignore[no-untyped-call]
        return loss.sequences.detach()

    def _backward(self, ids: torch.Tensor, position: int) -> tuple[torch.Tensor, int]:
        """Adds one quantum's gradient to the accumulator.

        Returns its row losses and the out-of-range count.
        """
        losses = self._forward_backward(ids, position)
        bad = add_gradients(
            self._accumulator, self.layout, self._parameters, self._quantise, self._limit
        )
        return losses, bad

    @torch.no_grad()
    def _update(self, update: int, lr: float) -> tuple[float, float, str]:
        grad = mean_gradient(self._accumulator, self.layout, self.config.num_quanta, self.group)
        norm, coef, digest = clip_gradient(grad, self.layout, self.config.train.clip, self.group)
        adamw_v1(self.weights, grad, self.moments, self._decayed, update, lr, self.config.train)
        self._share_weights()
        return norm, coef, digest

    def _share_weights(self) -> None:
        """Gives every rank the weights that the forward reads, from the fp32 shards."""
        if self._is_copy or self.group.world > 1:
            self.flat.copy_(self.group.all_gather(self.weights.to(self.flat.dtype)))

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Canonical weights and moments by stored name.

        All ranks call it, every rank gets it.
        """
        full = self.group.all_gather(self.weights) if self._is_copy else self.flat
        weights = self._stored(full)
        moments = {}
        for kind in ("exp_avg", "exp_avg_sq"):
            full = self.group.all_gather(getattr(self.moments, kind))
            for name, view in self._stored(full).items():
                moments[f"{kind}.{name}"] = view
        return weights, moments

    def _stored(self, flat: torch.Tensor) -> dict[str, torch.Tensor]:
        """Views of a flat buffer by the names under which checkpoints store them."""
        return stored_state(self.model, self.layout.views(flat))

    def _flat_of(self, stored: dict[str, torch.Tensor]) -> torch.Tensor:
        """A flat fp32 buffer of stored tensors; zero in every padding."""
        flat = torch.zeros(self.layout.padded)
        for name, view in self._stored(flat).items():
            view.copy_(stored[name])
        return flat

    @torch.no_grad()
    def load_state(
        self, weights: dict[str, torch.Tensor], moments: dict[str, torch.Tensor]
    ) -> None:
        """Loads canonical weights and moments into this rank's layout."""
        low = self.group.rank * self.layout.shard
        mine = slice(low, low + self.layout.shard)
        full = self._flat_of(weights)
        self.weights.copy_(full[mine])
        self.flat.copy_(full)
        for kind in ("exp_avg", "exp_avg_sq"):
            named = {name: moments[f"{kind}.{name}"] for name in weights}
            getattr(self.moments, kind).copy_(self._flat_of(named)[mine])


def quanta_of(rank: int, world: int, num_quanta: int) -> range:
    """The contiguous block of quanta that a rank computes; blocks differ by at most one quantum."""
    return contiguous(0, rank, world, num_quanta)


def non_finite(
    update: int, row_losses: np.ndarray, bad_values: np.ndarray
) -> NonFiniteGradientError:
    """The refusal of a step, with the rows to look at.

    Args:
        update: 1-based.
        row_losses: [B].
        bad_values: gradient values of each quantum that cannot be held, [V].
    """
    rows = np.flatnonzero(~np.isfinite(row_losses)).tolist()
    quanta = np.flatnonzero(bad_values)
    size = len(row_losses) // len(bad_values)
    text = (
        f"update {update}: {int(bad_values.sum())} gradient values are NaN, Inf or beyond the "
        f"range of fixed64-v1, in quanta {quanta.tolist() or 'none'}; rows with a non-finite loss: "
        f"{rows or 'none'}. Nothing was updated. Look at the batch with `tripod batch RUN --step "
        f"{update - 1}`, then lower the learning rate or mend the data in a new run"
    )
    blamed = rows or [int(q) * size + row for q in quanta for row in range(size)]
    return NonFiniteGradientError(text, blamed)
