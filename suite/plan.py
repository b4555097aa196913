"""`tripod plan`: what every rung of a suite takes on a machine, before anything is computed.

Parameters are counted on the meta device from the very model class that would be trained.
Operations are those of `suite.flops`, memory that of `suite.memory`, the layout that of
`suite.plan_split`. Hours are operations, recomputation included, over peak times utilisation: as
good as that one number, which the hardware file states and `--measure` replaces. Nothing here
writes, and nothing needs the hardware that is planned for.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from checkpoints_manifest.schedule import checkpoint_steps
from data_pipeline.canonical import sha256_hex
from suite.config import ModelConfig, RunConfig
from suite.flops import ForwardFlops, forward_flops, six_nd
from suite.plan_hardware import Hardware
from suite.plan_split import Choice, choose_split, imbalance
from suite.plan_storage import Storage, plan_storage


@dataclass(frozen=True)
class Parameters:
    """Parameter counts of one model.

    Attributes:
        total: as a checkpoint stores them; tied matrices once.
        embedding: of the matrices with one row for each id.
        active: of `total`, those that one token meets (fewer than all with experts).
        in_memory: with the rows of vocabulary padding.
    """

    total: int
    embedding: int
    active: int
    in_memory: int

    @property
    def non_embedding(self) -> int:
        """All but the embeddings."""
        return self.total - self.embedding


@dataclass(frozen=True)
class RungPlan:
    """One rung on one machine.

    `step_seconds` is one update, `device_hours` and `wall_hours` the whole run; `utilisation` is
    what they were computed with and `measured` says whether it was measured here.
    """

    name: str
    config: RunConfig
    parameters: Parameters
    tokens: int
    flops_6nd: float
    flops: float
    choice: Choice
    utilisation: float
    measured: bool
    step_seconds: float
    device_hours: float
    wall_hours: float
    cost: float | None
    storage: Storage
    config_digest: str


@dataclass(frozen=True)
class SuitePlan:
    """All rungs of a suite on one machine; `notes` are what its file says about itself."""

    suite: str
    hardware_name: str
    hardware: Hardware
    rungs: dict[str, RungPlan]
    notes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def local_bytes(self) -> int:
        """Checkpoints of all rungs, full state."""
        return sum(rung.storage.local_bytes for rung in self.rungs.values())


def count_parameters(model: ModelConfig) -> Parameters:
    """Counts a model's parameters by building it on the meta device; nothing is allocated."""
    text = json.dumps(dict(model.hf), sort_keys=True)
    return _count(model.family, text, model.vocab_padding_multiple)


@functools.lru_cache(maxsize=512)
def _count(family: str, hf_json: str, padding: int) -> Parameters:
    from checkpoints_manifest.names import VOCABULARY, canonical_parameters
    from suite.families import FAMILIES
    from suite.models import empty_model

    hf = json.loads(hf_json)
    named = canonical_parameters(empty_model(FAMILIES[family], hf, device="meta"))
    vocabulary = {name: p for name, p in named.items() if name in VOCABULARY}
    experts = sum(p.numel() for name, p in named.items() if ".mlp.experts." in name)
    total = sum(p.numel() for p in named.values())
    rows = next(iter(vocabulary.values())).shape[0]
    padded = -(-rows // padding) * padding - rows
    idle = (
        experts - experts * hf["num_experts_per_tok"] // hf["num_local_experts"] if experts else 0
    )
    return Parameters(
        total=total,
        embedding=sum(p.numel() for p in vocabulary.values()),
        active=total - idle,
        in_memory=total + sum(padded * p.shape[1] for p in vocabulary.values()),
    )


def plan_rung(
    config: RunConfig,
    hardware: Hardware,
    state_every: int = 1,
    utilisation: float | None = None,
) -> RungPlan:
    """Plans one rung.

    Args:
        config: the rung.
        hardware: the machine.
        state_every: every so-manieth checkpoint keeps the full state, in the thinned layout.
        utilisation: measured share of the peak; None: what the hardware states.
    """
    parameters = count_parameters(config.rung.model)
    choice = choose_split(config, parameters.in_memory, hardware)
    model = config.rung.model
    per_token = forward_flops(model.family, model.hf, config.data.seq_len)
    tokens = config.train.steps * config.batch_tokens
    reached = utilisation or hardware.utilisation
    work = per_token.training + recomputed(per_token, choice)
    rate = hardware.rate(config.numerics.precision) / hardware.utilisation * reached
    quanta = config.data.batch_size // choice.split.quantum
    uneven = imbalance(quanta, choice.split.data_ranks)
    step_seconds = work * config.batch_tokens * uneven / (rate * choice.split.ranks)
    hours = step_seconds * config.train.steps / 3600.0
    device_hours = hours * choice.split.ranks
    price = hardware.price_per_device_hour
    steps = checkpoint_steps(dict(config.checkpoints), config.train.steps)
    return RungPlan(
        name=config.rung.name,
        config=config,
        parameters=parameters,
        tokens=tokens,
        flops_6nd=six_nd(parameters.active, tokens),
        flops=per_token.training * tokens,
        choice=choice,
        utilisation=reached,
        measured=utilisation is not None,
        step_seconds=step_seconds,
        device_hours=device_hours,
        wall_hours=hours,
        cost=None if price is None else price * device_hours,
        storage=plan_storage(steps, parameters.total, state_every),
        config_digest=sha256_hex(config.to_bytes()),
    )


def recomputed(per_token: ForwardFlops, choice: Choice) -> float:
    """Operations a token that are done twice to save memory."""
    extra = 0.0
    if choice.split.activation_checkpointing == "blocks":
        extra += per_token.layers + per_token.attention
    if choice.split.loss_chunk is not None:
        extra += per_token.head
    return extra


def plan_suite(
    suite: str,
    overrides: list[str] | None = None,
    state_every: int = 1,
    utilisation: Mapping[str, float] | None = None,
) -> SuitePlan:
    """Plans every rung of a suite on the hardware that the overrides name (default: cpu).

    Args:
        suite: its name.
        overrides: Hydra overrides for every rung, `hardware=h100x8` among them.
        state_every: see `plan_rung`.
        utilisation: measured shares of the peak, by rung.

    Raises:
        ConfigError: an unknown suite, a configuration that cannot be, or siblings that differ.
    """
    from suite.sweep import compose_suite

    return plan_of(
        compose_suite(suite, Path("runs"), overrides).rungs,
        suite,
        overrides,
        state_every,
        utilisation,
    )


def plan_of(
    rungs: Mapping[str, RunConfig],
    suite: str,
    overrides: list[str] | None = None,
    state_every: int = 1,
    utilisation: Mapping[str, float] | None = None,
) -> SuitePlan:
    """Plans rungs that are composed already; see `plan_suite`."""
    from suite.train import compose

    mapping = compose(suite, next(iter(rungs)), overrides)
    hardware = Hardware.from_mapping(mapping["hardware"])
    reached = utilisation or {}
    return SuitePlan(
        suite=suite,
        hardware_name=hardware_name(overrides),
        hardware=hardware,
        rungs={
            name: plan_rung(config, hardware, state_every, reached.get(name))
            for name, config in rungs.items()
        },
        notes={
            key: mapping[key] for key in ("deviations", "not_repeated", "about") if key in mapping
        },
    )


def hardware_name(overrides: list[str] | None) -> str:
    """The hardware file that overrides name; `cpu` is the default of `sweeps/config.yaml`."""
    named = [word.partition("=")[2] for word in overrides or [] if word.startswith("hardware=")]
    return named[-1] if named else "cpu"
