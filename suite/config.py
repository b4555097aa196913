"""The run configuration: frozen, typed, and built once at the edge.

Hydra composes `sweeps/` into a mapping; `RunConfig.from_mapping` turns that mapping into these
dataclasses and refuses unknown keys, missing keys and values out of range by name. Nothing below
the entry point sees a `DictConfig`. `RunConfig.to_bytes` is what is stored in the run directory and
hashed.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.canonical import is_sha256_hex
from data_pipeline.orders import ORDERS
from suite.families import FAMILIES, problems

SCHEDULES = ("cosine-v1", "pythia-v1")
# "bf16" is autocast over fp32 weights; "bf16-params" computes on a bf16 copy of fp32 weights.
PRECISIONS = ("fp32", "bf16", "bf16-params")
REDUCTIONS = ("fixed64-v1",)
PROFILES = ("portable-x86", "native")
MODES = ("exact",)
ENGINES = ("reference", "deepspeed")
ZERO_STAGES = (0, 1, 2, 3)
ACTIVATION_CHECKPOINTING = ("none", "blocks")


class ConfigError(ValueError):
    """A configuration that cannot be run: names the key, the value and what is allowed."""


def _one_of(key: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{key}={value!r} is not known; allowed: {', '.join(allowed)}")


def _at_least(key: str, value: float, least: float) -> None:
    if not value >= least:
        raise ConfigError(f"{key}={value!r} is too small; expected at least {least}")


@dataclass(frozen=True)
class SuiteConfig:
    """A ladder on one data order; siblings may differ only in `axes` (dotted key prefixes)."""

    name: str
    hub_org: str
    ladder: tuple[str, ...] = ()
    axes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Seeds:
    """Init and dropout seeds of one rung.

    The data seed belongs to the suite: see `DataConfig.seed`.
    """

    init: int
    dropout: int


@dataclass(frozen=True)
class ModelConfig:
    """A stock `transformers` architecture and our named initialisation.

    `hf` are keyword arguments of the family's configuration class. `vocab_padding_multiple` rounds
    the rows of the embeddings up in memory; checkpoints keep `hf.vocab_size` rows.
    """

    family: str
    initialisation: str
    hf: Mapping[str, Any]
    vocab_padding_multiple: int = 1

    def __post_init__(self) -> None:
        _one_of("rung.model.family", self.family, tuple(FAMILIES))
        family = FAMILIES[self.family]
        _one_of("rung.model.initialisation", self.initialisation, family.initialisations)
        _at_least("rung.model.vocab_padding_multiple", self.vocab_padding_multiple, 1)
        found = problems(family, self.hf)
        if found:
            raise ConfigError("\n".join(f"rung.model.hf.{line}" for line in found))


@dataclass(frozen=True)
class RungConfig:
    """One model of the ladder with one set of seeds and its peak learning rate."""

    name: str
    model: ModelConfig
    seeds: Seeds
    lr: float


@dataclass(frozen=True)
class DataConfig:
    """What is read and in which order.

    `build` is the recipe of `suite.data.build`; it is no part of a run's identity, because
    `index_digest` stands for what it made.
    """

    dir: str
    index_digest: str | None
    order: str
    seed: int
    seq_len: int
    batch_size: int
    overlay: str | None
    build: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        _one_of("data.order", self.order, ORDERS)
        _at_least("data.seq_len", self.seq_len, 2)
        _at_least("data.batch_size", self.batch_size, 1)
        if self.overlay is not None and not is_sha256_hex(self.overlay):
            raise ConfigError(
                f"data.overlay={self.overlay!r}: expected null, or the digest of an overlay that "
                "lies in the suite directory as overlays/<digest>.json (`tripod overlay write`)"
            )


@dataclass(frozen=True)
class TrainConfig:
    """Optimizer and schedule: AdamW with decoupled decay on matrices, global-norm clipping."""

    steps: int
    schedule: str
    warmup_steps: int
    min_lr_ratio: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    clip: float

    def __post_init__(self) -> None:
        _one_of("train.schedule", self.schedule, SCHEDULES)
        _at_least("train.steps", self.steps, 1)
        _at_least("train.clip", self.clip, 1e-12)
        if not 0 <= self.warmup_steps < self.steps:
            raise ConfigError(
                f"train.warmup_steps={self.warmup_steps} must lie in [0, train.steps={self.steps})"
            )


@dataclass(frozen=True)
class NumericsConfig:
    """Everything that changes bits: part of the recipe, whatever the hardware.

    `activation_checkpointing` alone changes none: "blocks" trades a second forward for memory.
    `loss_chunk` is the number of tokens whose logits exist at a time; null: the whole quantum.
    """

    quantum: int
    precision: str
    reduction: str
    mode: str
    profile: str
    activation_checkpointing: str = "none"
    loss_chunk: int | None = None

    def __post_init__(self) -> None:
        _one_of("numerics.precision", self.precision, PRECISIONS)
        _one_of("numerics.reduction", self.reduction, REDUCTIONS)
        _one_of("numerics.mode", self.mode, MODES)
        _one_of("numerics.profile", self.profile, PROFILES)
        _at_least("numerics.quantum", self.quantum, 1)
        _one_of(
            "numerics.activation_checkpointing",
            self.activation_checkpointing,
            ACTIVATION_CHECKPOINTING,
        )
        if self.loss_chunk is not None:
            _at_least("numerics.loss_chunk", self.loss_chunk, 1)


@dataclass(frozen=True)
class EngineConfig:
    """Which engine computes the step; the fields after `name` are DeepSpeed's.

    The reference engine is the default and is in no record: a run whose `config.json` has no
    `engine` was configured for it. What each DeepSpeed layout promises: docs/deepspeed.md.

    Args:
        name: "reference" or "deepspeed".
        zero_stage: what is sharded over data-parallel ranks: 1 optimizer, 2 and gradients, 3 and
            weights.
        offload_optimizer: master weights, moments and update on the CPU.
        tensor_parallel: ranks that share one copy of the model.
        options: `zero_optimization` settings of DeepSpeed that trade memory for speed; see
            `suite.deepspeed_config`.
    """

    name: str = "reference"
    zero_stage: int = 1
    offload_optimizer: bool = False
    tensor_parallel: int = 1
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        _one_of("engine.name", self.name, ENGINES)
        if self.zero_stage not in ZERO_STAGES:
            raise ConfigError(
                f"engine.zero_stage={self.zero_stage!r} is not known; allowed: "
                f"{', '.join(map(str, ZERO_STAGES))}"
            )
        _at_least("engine.tensor_parallel", self.tensor_parallel, 1)
        if self.name == "reference" and not self._is_default():
            raise ConfigError(
                "engine.name='reference' has no settings of its own (it is sharded as ZeRO-1 on "
                "any number of ranks); leave the other keys of engine out, or set "
                "engine.name=deepspeed"
            )

    def _is_default(self) -> bool:
        settings = (self.zero_stage, self.offload_optimizer, self.tensor_parallel)
        return settings == (1, False, 1) and not self.options


@dataclass(frozen=True)
class RunConfig:
    """One rung, resolved. Hardware (how many ranks) is not part of it: it changes no bit."""

    suite: SuiteConfig
    rung: RungConfig
    data: DataConfig
    train: TrainConfig
    numerics: NumericsConfig
    checkpoints: Mapping[str, Any]
    engine: EngineConfig = dataclasses.field(default_factory=EngineConfig)

    def __post_init__(self) -> None:
        if self.data.batch_size % self.numerics.quantum:
            raise ConfigError(
                f"data.batch_size={self.data.batch_size} is not a multiple of numerics.quantum="
                f"{self.numerics.quantum}; every quantum must have the same shape"
            )
        if self.rung.model.family == "mamba" and self.numerics.precision == "bf16-params":
            raise ConfigError(
                "numerics.precision='bf16-params': the reference kernels of mamba in transformers "
                "mix fp32 states with the weights; use bf16 (autocast) or fp32"
            )
        if self.suite.ladder and self.rung.name not in self.suite.ladder:
            raise ConfigError(
                f"rung={self.rung.name!r} is not in suite {self.suite.name!r}; its rungs: "
                f"{', '.join(self.suite.ladder)}"
            )
        key = FAMILIES[self.rung.model.family].context
        context = self.rung.model.hf.get(key) if key else None
        if context is not None and context < self.data.seq_len:
            raise ConfigError(
                f"rung.model.hf.{key}={context} is shorter than data.seq_len={self.data.seq_len}"
            )

    @property
    def num_quanta(self) -> int:
        """V, the number of quanta in a global batch."""
        return self.data.batch_size // self.numerics.quantum

    @property
    def batch_tokens(self) -> int:
        """Target tokens per step."""
        return self.data.batch_size * self.data.seq_len

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> RunConfig:
        """Builds a config from plain nested mappings.

        Raises:
            ConfigError: an unknown or missing key, or a value of another type, named with its
            dotted path.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        result = _build(cls, {k: v for k, v in mapping.items() if k in known}, "")
        assert isinstance(result, cls)
        return result

    def to_record(self) -> dict[str, Any]:
        """The run's identity as plain mappings and lists.

        The ladder is not part of it, so a suite can grow; nor is the recipe of the dataset, whose
        digest stands for it; nor is the reference engine. Optional keys at their default are left
        out, so a run keeps its bytes when the configuration learns a new key.
        """
        record = {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)}
        for group, key in (("suite", "ladder"), ("suite", "axes"), ("data", "build")):
            record[group].pop(key, None)
        if self.engine.name == "reference":
            del record["engine"]
        return record

    def to_bytes(self) -> bytes:
        """The bytes of `config.json`.

        Sorted keys, no spaces, floats by `repr` (which round-trips).
        """
        text = json.dumps(self.to_record(), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return text.encode()


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        items = {f.name: (getattr(value, f.name), f.default) for f in dataclasses.fields(value)}
        return {name: _plain(item) for name, (item, default) in items.items() if item != default}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _build(kind: Any, value: Any, path: str) -> Any:
    if not dataclasses.is_dataclass(kind):
        return _convert(kind, value, path)
    if not isinstance(value, Mapping):
        raise ConfigError(f"{path}={value!r}: expected a group of keys")
    hints = typing.get_type_hints(kind)
    prefix = f"{path}." if path else ""
    unknown = sorted(set(value) - set(hints))
    if unknown:
        raise ConfigError(
            f"unknown key {prefix}{unknown[0]}; the keys of {path or 'the configuration'} are: "
            f"{', '.join(hints)}"
        )
    needed = [
        f.name
        for f in dataclasses.fields(kind)
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    missing = [name for name in needed if name not in value]
    if missing:
        raise ConfigError(f"missing key {prefix}{missing[0]}")
    built = {name: _build(hints[name], item, f"{prefix}{name}") for name, item in value.items()}
    return typing.cast(Any, kind)(**built)


T = typing.TypeVar("T")


def build(kind: type[T], value: Mapping[str, Any], path: str) -> T:
    """Builds a nested dataclass of this style from plain mappings.

    Args:
        kind: the dataclass.
        value: its keys.
        path: dotted path of the group, for messages.

    Raises:
        ConfigError: an unknown or missing key, or a value of another type, named with its path.
    """
    return typing.cast(T, _build(kind, value, path))


def _convert(kind: Any, value: Any, path: str) -> Any:
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        kind = next(arg for arg in typing.get_args(kind) if arg is not type(None))
        origin = typing.get_origin(kind)
    if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if origin is tuple and isinstance(value, (list, tuple)):
        return tuple(value)
    if origin is not None and issubclass(origin, Mapping) and isinstance(value, Mapping):
        return dict(value)
    if origin is None and isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    expected = getattr(kind, "__name__", str(kind))
    raise ConfigError(f"{path}={value!r}: expected {expected}")


def sibling_differences(
    records: Mapping[str, Mapping[str, Any]], axes: tuple[str, ...]
) -> list[str]:
    """Where rungs of one suite differ outside its declared axes.

    Args:
        records: rung name to `RunConfig.to_record()`.
        axes: dotted key prefixes that may differ.

    Returns:
        One line per undeclared difference, with both values; empty when the ladder is clean.
    """
    flat = {name: _flatten(record) for name, record in records.items()}
    names = list(flat)
    lines = []
    for key in sorted(set().union(*flat.values()) if flat else set()):
        if any(key == axis or key.startswith(f"{axis}.") for axis in axes):
            continue
        values = {name: flat[name].get(key) for name in names}
        odd = next((name for name in names if values[name] != values[names[0]]), None)
        if odd is not None:
            lines.append(f"{key}: {names[0]} has {values[names[0]]!r}, {odd} has {values[odd]!r}")
    return lines


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping):
        flat: dict[str, Any] = {}
        for key, item in value.items():
            flat.update(_flatten(item, f"{prefix}.{key}" if prefix else str(key)))
        return flat
    return {prefix: value}


def dataset_dir(config: RunConfig, run_dir: Path) -> Path:
    """The dataset directory of a run.

    `data.dir` is relative to the suite directory that holds the run.
    """
    return (run_dir.parent / config.data.dir).resolve()
