"""The same step hosted on DeepSpeed: its sharding, its communication, our order, state and update.

Elastic layouts (ZeRO-0, ZeRO-1): each quantum's gradient goes into our int64 accumulator, integers
are reduced, and DeepSpeed gets the clipped mean gradient: digest-equal to the reference engine on
any number of ranks. Fixed layouts (ZeRO-2, ZeRO-3, optimizer offload, tensor parallelism):
DeepSpeed adds floats at every quantum; rerun and resume give the same bits on the same layout only.
docs/deepspeed.md has the table. The package works without DeepSpeed; only this engine needs it.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch._C._distributed_c10d import HashStore

from checkpoints_manifest.names import canonical_parameters, stored_state
from suite.assignment import contiguous
from suite.comm import Group
from suite.config import NumericsConfig, RunConfig
from suite.deepspeed_config import check_supported, deepspeed_config
from suite.deepspeed_optimizer import KINDS, AdamWV1
from suite.deepspeed_state import MASTER, CanonicalState, TensorSplit
from suite.engine import QuantumEngine
from suite.engine_record import ELASTIC, EngineError, describe, promise_of
from suite.layout import make_layout
from suite.loss import quantum_loss
from suite.models import build_model, checkpoint_blocks
from suite.noise import QuantumMeter
from suite.quantise import NonFiniteGradientError, range_limit, verified_quantiser
from suite.reduction import add_gradients, clip_gradient, mean_gradient

_REMEDY = (
    "install the pinned one (`make setup`, or `pip install --no-deps -r requirements.lock`), or "
    "use engine.name=reference"
)


def import_deepspeed() -> ModuleType:
    """DeepSpeed for CPU ranks, quiet, without its shared-memory kernels.

    Raises:
        EngineError: it is missing or does not import; says why and what to do.
    """
    # Without it DeepSpeed looks for a GPU, which a CPU run must not use.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    try:
        import deepspeed
        from deepspeed.runtime import bf16_optimizer
        from deepspeed.utils import logger
    except Exception as error:
        raise EngineError(
            f"engine.name=deepspeed needs DeepSpeed, which does not import here "
            f"({type(error).__name__}: {error}); {_REMEDY}"
        ) from error
    logger.setLevel(logging.ERROR)
    bf16_optimizer.see_memory_usage = lambda *_, **__: None  # prints, whatever the log level
    # They are compiled on first use where a compiler is found, and add floats in an order of their
    # own: the bits would depend on whether the machine has one.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    module: ModuleType = deepspeed
    return module


class _WithLoss(nn.Module):
    """The model and its loss as one module, because DeepSpeed looks at what the forward returns."""

    def __init__(self, model: nn.Module, numerics: NumericsConfig) -> None:
        super().__init__()
        self.model, self._numerics = model, numerics
        self.config = model.config  # tensor parallelism reads the widths here

    def forward(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        loss = quantum_loss(self.model, ids, self._numerics)
        return loss.sequences, loss.objective


class DeepSpeedEngine(QuantumEngine):
    """What both kinds share: building the engine, the canonical state. See `make`."""

    def __init__(self, config: RunConfig, group: Group) -> None:
        check_supported(config, group.world)
        self.config, self.group = config, group
        self.promise = promise_of(config.engine)
        self.description = describe(config.engine, group.world)
        self.quantiser_name = "none"
        deepspeed = import_deepspeed()
        if not dist.is_initialized():  # a group of one has no process group of its own
            os.environ.setdefault("LOCAL_RANK", "0")
            dist.init_process_group("gloo", rank=0, world_size=1, store=HashStore())
        model = build_model(config.rung.model, config.rung.seeds.init)
        if config.numerics.activation_checkpointing == "blocks":
            checkpoint_blocks(model)
        self.model = model
        self.layout = make_layout(model, group.world)
        weights = {name: p.detach().clone() for name, p in canonical_parameters(model).items()}
        self._optimizer: AdamWV1
        self.engine: Any = deepspeed.initialize(
            model=_WithLoss(model, config.numerics),
            optimizer=lambda _: self._make_optimizer(model),
            config=deepspeed_config(config, group.world),
            dist_init_required=False,
        )[0]
        self._parameters = canonical_parameters(model)
        self._place(weights)
        # DeepSpeed took its masters from rounded weights; these are the ones of the record.
        self._state.write(MASTER, weights)
        self._state.refresh()

    @staticmethod
    def make(config: RunConfig, group: Group) -> DeepSpeedEngine:
        """The engine for a layout.

        Raises:
            ConfigError: DeepSpeed cannot compute this under our promises.
            EngineError: DeepSpeed is not there.
        """
        kind = ElasticDeepSpeed if promise_of(config.engine) == ELASTIC else FixedLayoutDeepSpeed
        return kind(config, group)

    def _make_optimizer(self, model: nn.Module) -> AdamWV1:
        # Called by DeepSpeed after tensor parallelism has cut the parameters, before ZeRO does.
        parameters = canonical_parameters(model)
        self._local_shapes = {name: tuple(p.shape) for name, p in parameters.items()}
        self._optimizer = AdamWV1(parameters, self.config.train, self.promise != ELASTIC)
        return self._optimizer

    def _place(self, weights: Mapping[str, torch.Tensor]) -> None:
        tensor_world = self.config.engine.tensor_parallel
        self._tensor_rank, tensor_group = 0, None
        if tensor_world > 1:
            from deepspeed.utils import groups

            self._tensor_rank = groups.get_tensor_model_parallel_rank()
            tensor_group = groups.get_tensor_model_parallel_group()
        splits = {
            name: TensorSplit.of(
                name, tuple(full.shape), self._local_shapes[name],
                self._tensor_rank, tensor_world, tensor_group,
            )
            for name, full in weights.items()
        }  # fmt: skip
        self._state = CanonicalState(
            self.engine,
            self._optimizer,
            self._parameters,
            splits,
            self.config.engine.zero_stage,
        )

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Fp32 weights and moments by stored name; all ranks call it, every rank gets it."""
        moments = {
            f"{kind}.{name}": tensor.contiguous()
            for kind in KINDS
            for name, tensor in stored_state(self.model, self._state.read(kind)).items()
        }
        weights = stored_state(self.model, self._state.read(MASTER))
        return {name: tensor.contiguous() for name, tensor in weights.items()}, moments

    def load_state(
        self, weights: Mapping[str, torch.Tensor], moments: Mapping[str, torch.Tensor]
    ) -> None:
        """Loads stored weights and moments, from whatever engine or layout they came."""
        self._state.write(MASTER, self._canonical(weights))
        for kind in KINDS:
            named = {name: moments[f"{kind}.{name}"] for name in weights}
            self._state.write(kind, self._canonical(named))
        self._state.refresh()

    def _canonical(self, stored: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Whole tensors by canonical name; the rows of vocabulary padding are zero."""
        whole = {slot.name: torch.zeros(slot.shape) for slot in self.layout.slots}
        for name, view in stored_state(self.model, whole).items():
            view.copy_(stored[name])
        return whole

    def close(self) -> None:
        """Lets go of hooks and buffers; the engine cannot be used afterwards."""
        self.engine.destroy()

    def _forward_backward(self, ids: torch.Tensor, position: int) -> torch.Tensor:
        """One quantum's forward and backward through DeepSpeed; returns its row losses."""
        seed = self.config.rung.seeds.dropout
        with self.model.dropout_context.at(seed, position):  # type: ignore[operator, union-attr]
            sequences, objective = self.engine(ids)
            # A new tensor: given the very one that the engine returned, DeepSpeed 0.19 would
            # divide by the number of quanta twice.
            self.engine.backward(objective * 1.0)
        losses: torch.Tensor = sequences.detach()
        return losses


class ElasticDeepSpeed(DeepSpeedEngine):
    """ZeRO-0 and ZeRO-1 with the integer reduction injected."""

    def __init__(self, config: RunConfig, group: Group) -> None:
        super().__init__(config, group)
        quantise, self.quantiser_name = verified_quantiser("cpu")
        self._quantise = self._meter = QuantumMeter(quantise)
        self._limit = range_limit(config.num_quanta)
        self._accumulator = torch.zeros(self.layout.padded, dtype=torch.int64)
        self._took_over = False
        self._reduced: dict[str, torch.Tensor] = {}
        zero = self.engine.optimizer
        self._is_bf16 = hasattr(zero, "update_hp_grads")
        if self._is_bf16:
            # Quanta go into the accumulator instead of its fp32 buffer.
            zero.update_hp_grads = lambda **_: None
            self.engine.buffered_allreduce_fallback = self._hand_over_bf16
        elif config.engine.zero_stage == 1:
            zero.average_tensor = self._already_mean
        else:
            self.engine.buffered_allreduce_fallback = self._already_mean

    def _begin(self) -> None:
        self._accumulator.zero_()
        # No quantum is the last for DeepSpeed: it must reduce nothing before the integers are.
        self.engine.set_gradient_accumulation_boundary(False)

    def _backward(self, ids: torch.Tensor, position: int) -> tuple[torch.Tensor, int]:
        losses = self._forward_backward(ids, position)
        bad = add_gradients(
            self._accumulator, self.layout, self._parameters, self._quantise, self._limit
        )
        return losses, bad

    @torch.no_grad()
    def _update(self, update: int, lr: float) -> tuple[float, float, str]:
        grad = mean_gradient(self._accumulator, self.layout, self.config.num_quanta, self.group)
        norm, coef, digest = clip_gradient(grad, self.layout, self.config.train.clip, self.group)
        self._reduced = self.layout.views(self.group.all_gather(grad))
        if not self._is_bf16:
            for name, parameter in self._parameters.items():
                parameter.grad = self._reduced[name].clone()
        self._optimizer.prepare(update, lr)
        self.engine.set_gradient_accumulation_boundary(True)
        self._took_over = False
        self.engine.allreduce_gradients()
        if not self._took_over:
            raise EngineError(
                f"DeepSpeed {self.description['version']} reduces gradients by another way than "
                f"the one that is replaced; nothing was updated; {_REMEDY}"
            )
        self.engine.step()
        return norm, coef, digest

    def _already_mean(self, *_: Any, **__: Any) -> None:
        """In place of DeepSpeed's averaging: what it was handed is the mean over all ranks."""
        self._took_over = True

    def _hand_over_bf16(self, **_: Any) -> None:
        """In place of DeepSpeed's all-reduce: fills its fp32 gradients with the reduced ones."""
        self._took_over = True
        zero = self.engine.optimizer
        names = {id(parameter): name for name, parameter in self._parameters.items()}
        for index, members in enumerate(zero.bf16_groups):
            for place, parameter in enumerate(members):
                reduced = self._reduced[names[id(parameter)]]
                zero.fp32_groups_gradients[index][place].copy_(reduced.reshape(-1))
                zero.fp32_groups_has_gradients[index][place] = True


class FixedLayoutDeepSpeed(DeepSpeedEngine):
    """Layouts where DeepSpeed adds floats at every quantum."""

    def _quanta(self, step: int) -> range:
        # Whatever the assignment: DeepSpeed's sums depend on it.
        world = self.group.world // self.config.engine.tensor_parallel
        return contiguous(step, self._data_rank(), world, self.config.num_quanta)

    def _data_rank(self) -> int:
        from deepspeed.utils import groups

        return int(groups._get_data_parallel_rank())

    def _begin(self) -> None:
        self._left = len(self._quanta(0))

    def _merge(self, values: torch.Tensor) -> torch.Tensor:
        # Ranks that share one copy of the model read the same rows; one of them reports.
        return super()._merge(values if self._tensor_rank == 0 else torch.zeros_like(values))

    def _backward(self, ids: torch.Tensor, position: int) -> tuple[torch.Tensor, int]:
        self._left -= 1
        self.engine.set_gradient_accumulation_boundary(self._left == 0)
        return self._forward_backward(ids, position), 0

    def _update(self, update: int, lr: float) -> tuple[float, float, str]:
        self._optimizer.prepare(update, lr)
        self.engine.step()
        if not self.engine.was_step_applied():
            raise NonFiniteGradientError(
                f"update {update}: a gradient is NaN or Inf. Nothing was updated. Look at the "
                f"batch with `tripod batch RUN --step {update - 1}`, then lower the learning rate "
                "or mend the data in a new run"
            )
        norm = float(self.engine.get_global_grad_norm())
        coef = float(np.float32(min(1.0, self.config.train.clip / (norm + 1e-6))))
        return norm, coef, self._gradient_digest()

    def _gradient_digest(self) -> str:
        """`gradient-digest-layout-v1`: over the shards of the clipped gradient, in rank order."""
        mine = torch.frombuffer(bytearray(self._optimizer.gradient_digest()), dtype=torch.uint8)
        return hashlib.sha256(self.group.all_gather(mine).numpy().tobytes()).hexdigest()
