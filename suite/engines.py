"""What the trainer asks of an engine, and which engine a run gets."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from suite.assignment import Assignment
from suite.comm import Group
from suite.config import RunConfig
from suite.engine import ExactEngine, Reader, StepResult

Tensors = dict[str, torch.Tensor]


class Engine(Protocol):
    """One rank of whatever computes the steps; all ranks call its methods together.

    `assignment` says which quanta a rank computes, where that changes no bit.
    `promise` is "elastic" (one digest on any number of ranks) or "fixed-layout" (the same bits
    again, interrupted or not, on the same layout). `description` is the manifest's `engine` field,
    `quantiser_name` which form of the quantiser runs ("none" where there is none).
    """

    config: RunConfig
    group: Group
    assignment: Assignment
    promise: str
    description: dict[str, Any]
    quantiser_name: str

    def step(self, update: int, lr: float, read: Reader) -> StepResult:
        """Computes one update (1-based) from its global batch.

        Raises:
            NonFiniteGradientError: before anything was changed, on every rank alike.
        """

    def state(self) -> tuple[Tensors, Tensors]:
        """Canonical fp32 weights, and moments as `exp_avg.<name>` and `exp_avg_sq.<name>`."""

    def load_state(self, weights: Tensors, moments: Tensors) -> None:
        """Loads a canonical state, whatever engine or layout wrote it."""


def make_engine(config: RunConfig, group: Group) -> Engine:
    """The engine that a configuration names, at its initial weights.

    Raises:
        ConfigError: the engine refuses this run; carries every reason.
        EngineError: the engine is not installed; carries the remedy.
    """
    if config.engine.name == "deepspeed":
        # Only here: the package imports and trains without DeepSpeed.
        from suite.deepspeed_engine import DeepSpeedEngine

        return DeepSpeedEngine.make(config, group)
    return ExactEngine(config, group)
