"""How a rung is laid out over a machine: the first layout that fits, in an order of preference.

The order is the strength of the promise first, cost second: the reference engine, elastic, without
and then with recomputed blocks, at the suite's quantum and then at smaller ones; then DeepSpeed at
a fixed layout: ZeRO-2, ZeRO-3, each with tensor parallelism over 1, 2, 4, 8 ranks. A layout that
the suite does not state changes nothing by itself: it has to be asked for with the overrides, and
another quantum or precision is another recipe. Where nothing fits the rung needs another machine.
What the configuration states (`engine`, `numerics.activation_checkpointing`,
`numerics.loss_chunk`, `hardware.ranks`) is kept.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass

from suite.config import RunConfig
from suite.memory import Memory, Split, rank_memory
from suite.plan_hardware import Hardware

_TENSOR = (1, 2, 4, 8)
_SHARDED_FAMILIES = ("gpt_neox",)  # what the DeepSpeed engine is tested with


@dataclass(frozen=True)
class Choice:
    """The layout of one rung.

    Attributes:
        split: the layout; the smallest one that was tried where none fits.
        memory: what one of its ranks needs.
        fits: whether that is within the machine's budget.
        overrides: Hydra overrides that ask for it, beyond what the suite states.
        why: one sentence.
    """

    split: Split
    memory: Memory
    fits: bool
    overrides: tuple[str, ...]
    why: str


def choose_split(config: RunConfig, parameters: int, hardware: Hardware) -> Choice:
    """The first layout that fits; the least demanding one, with `fits` false, where none does.

    Args:
        config: the rung.
        parameters: P, as they are in memory.
        hardware: the machine.
    """
    tried: list[Choice] = []
    for split, overrides, why in candidates(config, hardware):
        precision = "bf16-params" if _changes_precision(config, split) else None
        memory = rank_memory(
            config.rung.model.family,
            config.rung.model.hf,
            parameters,
            config.data.seq_len,
            precision or config.numerics.precision,
            split,
        )
        choice = Choice(split, memory, memory.peak <= hardware.budget, overrides, why)
        if choice.fits:
            return choice
        tried.append(choice)
    least = min(
        (choice for choice in tried if choice.split.quantum == config.numerics.quantum),
        key=lambda choice: choice.memory.peak,
    )
    why = f"No layout fits a device, of which {hardware.budget / 1e9:,.1f} GB may be planned with."
    return dataclasses.replace(least, overrides=(), why=why)


Layout = tuple[Split, tuple[str, ...], str]  # the layout, its overrides, its sentence


def candidates(config: RunConfig, hardware: Hardware) -> Iterator[Layout]:
    """Layouts in order of preference, each with its overrides and its sentence."""
    stated = config.numerics.quantum
    for kind in (_elastic, _fixed):
        for q in [stated, *_smaller(stated)]:
            changed = (f"numerics.quantum={q}",) if q != stated else ()
            note = f"; the quantum is cut from {stated} to {q}, another recipe" if changed else ""
            for split, overrides, why in kind(config, hardware, q):
                yield split, (*changed, *overrides), why + note + "."


def _elastic(config: RunConfig, hardware: Hardware, quantum: int) -> Iterator[Layout]:
    if _asks_for_deepspeed(config):
        return
    numerics = config.numerics
    ranks = min(hardware.count, config.data.batch_size // quantum)
    stated = numerics.activation_checkpointing
    every = Split("reference", ranks, 1, 1, stated, quantum, numerics.loss_chunk)
    where = f"on {ranks} rank{'s' if ranks > 1 else ''}, any number of which gives the same bits"
    yield every, (), f"The reference engine fits {where}"
    if stated == "none":
        blocks = dataclasses.replace(every, activation_checkpointing="blocks")
        asked = ("numerics.activation_checkpointing=blocks",)
        yield blocks, asked, f"The reference engine fits with blocks computed twice, {where}"


def _fixed(config: RunConfig, hardware: Hardware, quantum: int) -> Iterator[Layout]:
    if _asks_for_deepspeed(config):
        yield _stated(config, hardware, quantum)
        return
    model = config.rung.model
    if hardware.device == "cpu" or model.family not in _SHARDED_FAMILIES:
        return
    for tensor in _TENSOR:
        if hardware.count < tensor or int(model.hf["num_attention_heads"]) % tensor:
            continue
        ranks = _divisor(config.data.batch_size // quantum, hardware.count // tensor)
        chunk = config.numerics.loss_chunk
        for stage in (2, 3):
            split = Split("deepspeed", ranks, tensor, stage, "blocks", quantum, chunk)
            words: tuple[str, ...] = ("engine.name=deepspeed", f"engine.zero_stage={stage}")
            words += (f"engine.tensor_parallel={tensor}",) if tensor > 1 else ()
            words += (
                ("numerics.precision=bf16-params",) if _changes_precision(config, split) else ()
            )
            kind = f"ZeRO-{stage}" + (
                f" and tensor parallelism over {tensor}" if tensor > 1 else ""
            )
            yield (
                split,
                words,
                f"Its state outgrows a device, so {kind}: same bits on this layout only",
            )


def _asks_for_deepspeed(config: RunConfig) -> bool:
    engine = getattr(config, "engine", None)
    return engine is not None and engine.name == "deepspeed"


def _stated(config: RunConfig, hardware: Hardware, quantum: int) -> Layout:
    engine = getattr(config, "engine", None)
    assert engine is not None
    quanta = config.data.batch_size // quantum
    data_ranks = _divisor(quanta, max(1, hardware.count // engine.tensor_parallel))
    split = Split(
        "deepspeed",
        data_ranks,
        engine.tensor_parallel,
        engine.zero_stage,
        config.numerics.activation_checkpointing,
        quantum,
        config.numerics.loss_chunk,
    )
    return split, (), f"ZeRO-{engine.zero_stage} on {split.ranks} ranks, as the configuration asks"


def _changes_precision(config: RunConfig, split: Split) -> bool:
    """DeepSpeed holds bf16 weights beside fp32 ones; it has no autocast."""
    return split.engine == "deepspeed" and config.numerics.precision == "bf16"


def _smaller(quantum: int) -> list[int]:
    """Divisors of the quantum below it, the largest first: each divides the batch as well."""
    return [q for q in range(quantum - 1, 0, -1) if quantum % q == 0]


def _divisor(quanta: int, limit: int) -> int:
    """The largest number of ranks up to `limit` that share the quanta out evenly."""
    return next(n for n in range(min(limit, quanta), 0, -1) if quanta % n == 0)


def imbalance(num_quanta: int, data_ranks: int) -> float:
    """How much longer a step takes than with quanta shared out evenly: at least 1."""
    return math.ceil(num_quanta / data_ranks) * data_ranks / num_quanta
