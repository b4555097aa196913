"""The exact step: quanta, integer reduction, canonical norm, sharded AdamW.

One forward and backward handles one quantum of q consecutive sequences, so shapes, and with them
kernels, never depend on the hardware split. A rank owns a contiguous block of quanta; any
assignment gives the same bits. Specification: docs/spec/exact-step.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from checkpoints_manifest.names import canonical_parameters, stored_state
from data_pipeline.digests import sequence_digests
from suite.adamw import Moments, adamw_v1
from suite.comm import Group
from suite.config import RunConfig
from suite.gradient_digest import gradient_digest
from suite.layout import flatten_parameters, make_layout
from suite.loss import quantum_loss
from suite.models import build_model, checkpoint_blocks
from suite.norm import chunk_sums, norm_from_chunks
from suite.quantise import SCALE_BITS, NonFiniteGradientError, range_limit, verified_quantiser

# Reads rows [first, last) of the present batch: int64 ids [last - first, S+1].
Reader = Callable[[int, int], np.ndarray]


@dataclass(frozen=True)
class StepResult:
    """What one update did; the same on every rank.

    `loss` is the mean over the batch in nats per token, `sequence_losses` its B terms (fp32 array),
    `sequence_digests` the digests of the ids that were fed to the model, in row order, `gradient`
    the `gradient-digest-v1` of the reduced gradient before clipping.
    """

    loss: float
    sequence_losses: np.ndarray
    sequence_digests: list[bytes]
    grad_norm: float
    clip_coef: float
    gradient: str


class ExactEngine:
    """One rank's model, optimizer shard and accumulator.

    Usage: `step(update, lr, read)` where `read(first_row, last_row)` gives ids [rows, S+1] of this
    step's batch.
    """

    def __init__(self, config: RunConfig, group: Group) -> None:
        self.config, self.group = config, group
        self.model = build_model(config.rung.model, config.rung.seeds.init)
        if config.numerics.activation_checkpointing == "blocks":
            checkpoint_blocks(self.model)
        self.layout = make_layout(self.model, group.world)
        self.flat = flatten_parameters(self.model, self.layout)
        self._parameters = canonical_parameters(self.model)
        low = group.rank * self.layout.shard
        self.weights = self.flat[low : low + self.layout.shard]
        self.moments = Moments(torch.zeros_like(self.weights), torch.zeros_like(self.weights))
        self._decayed = self.layout.decayed_spans(group.rank)
        self._quantise, self.quantiser_name = verified_quantiser(self.flat.device)
        self._accumulator = torch.zeros(self.layout.padded, dtype=torch.int64)
        self._limit = range_limit(config.num_quanta)

    def step(self, update: int, lr: float, read: Reader) -> StepResult:
        """Computes one update from its global batch; all ranks call it together.

        Raises:
            NonFiniteGradientError: before anything was changed, on every rank alike.
        """
        config, group = self.config, self.group
        quantum, rows = config.numerics.quantum, config.data.batch_size
        # Slots per row: loss; and one flag for values that fixed64-v1 cannot hold. Disjoint, so the
        # sum is exact.
        slots = torch.zeros(rows + 1, dtype=torch.float64)
        digests = torch.zeros(rows, 32, dtype=torch.uint8)
        self._accumulator.zero_()
        for index in quanta_of(group.rank, group.world, config.num_quanta):
            first = index * quantum
            ids = torch.from_numpy(read(first, first + quantum))
            losses, bad = self._backward(ids, (update - 1) * rows + first)
            slots[first : first + quantum] = losses.double()
            slots[rows] += bad
            fed = b"".join(sequence_digests(ids.numpy()))
            digests[first : first + quantum] = torch.frombuffer(
                bytearray(fed), dtype=torch.uint8
            ).view(quantum, 32)
        slots, digests = group.fill_slots(slots), group.fill_slots(digests)
        row_losses = slots[:rows].numpy()
        if slots[rows] or not np.isfinite(row_losses).all():
            raise NonFiniteGradientError(_non_finite(update, row_losses, int(slots[rows])))
        norm, coef, gradient = self._update(update, lr)
        return StepResult(
            loss=sum(row_losses.tolist()) / rows,
            sequence_losses=row_losses.astype(np.float32),
            sequence_digests=[bytes(row.tolist()) for row in digests],
            grad_norm=norm,
            clip_coef=coef,
            gradient=gradient,
        )

    def _forward_backward(self, ids: torch.Tensor, position: int) -> torch.Tensor:
        """Leaves one quantum's gradient in the parameters; returns its row losses.

        Args:
            ids: int64 [q, S+1].
            position: position in the run of its first row, t·B + row: the key of dropout.
        """
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
        bad = 0
        for slot in self.layout.slots:
            grad = self._parameters[slot.name].grad
            if grad is not None:  # a parameter without a gradient adds zero
                part = self._accumulator[slot.start : slot.start + slot.size]
                bad += self._quantise(part, grad, self._limit)
                self._parameters[slot.name].grad = None
        return losses, bad

    @torch.no_grad()
    def _update(self, update: int, lr: float) -> tuple[float, float, str]:
        total = self.group.reduce_scatter_int64(self._accumulator, self.layout.shard)
        scale = 2.0**-SCALE_BITS / self.config.num_quanta
        grad = total.to(torch.float64).mul_(scale).to(torch.float32)
        digest = gradient_digest(grad, self.layout.size, self.group)
        sums = self.group.all_gather(chunk_sums(grad))
        norm = norm_from_chunks(sums[: self.layout.num_chunks])
        clip = self.config.train.clip
        coef = float(np.float32(min(1.0, clip / (norm + 1e-6))))
        if coef < 1.0:
            grad.mul_(coef)
        adamw_v1(self.weights, grad, self.moments, self._decayed, update, lr, self.config.train)
        if self.group.world > 1:
            self.flat.copy_(self.group.all_gather(self.weights))
        return norm, coef, digest

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Canonical weights and moments by stored name.

        All ranks call it, every rank gets it.
        """
        weights = self._stored(self.flat)
        moments = {}
        for kind in ("exp_avg", "exp_avg_sq"):
            full = self.group.all_gather(getattr(self.moments, kind))
            for name, view in self._stored(full).items():
                moments[f"{kind}.{name}"] = view
        return weights, moments

    def _stored(self, flat: torch.Tensor) -> dict[str, torch.Tensor]:
        """Views of a flat buffer by the names under which checkpoints store them."""
        return stored_state(self.model, self.layout.views(flat))

    @torch.no_grad()
    def load_state(
        self, weights: dict[str, torch.Tensor], moments: dict[str, torch.Tensor]
    ) -> None:
        """Loads canonical weights and moments into this rank's layout."""
        for name, view in self._stored(self.flat).items():
            view.copy_(weights[name])
        low = self.group.rank * self.layout.shard
        for kind in ("exp_avg", "exp_avg_sq"):
            full = torch.zeros(self.layout.padded)
            for name, view in self._stored(full).items():
                view.copy_(moments[f"{kind}.{name}"])
            getattr(self.moments, kind).copy_(full[low : low + self.layout.shard])


def quanta_of(rank: int, world: int, num_quanta: int) -> range:
    """The contiguous block of quanta that a rank computes; blocks differ by at most one quantum."""
    return range(rank * num_quanta // world, (rank + 1) * num_quanta // world)


def _non_finite(update: int, row_losses: np.ndarray, bad: int) -> str:
    rows = np.flatnonzero(~np.isfinite(row_losses)).tolist()
    return (
        f"update {update}: {bad} gradient values are NaN, Inf or beyond the range of fixed64-v1; "
        f"rows with a non-finite "
        f"loss: {rows or 'none'}. Nothing was updated. Look at the batch with `tripod batch RUN "
        f"--step {update - 1}`, "
        "then lower the learning rate or mend the data in a new run"
    )
