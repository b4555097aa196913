"""The shards of all groups, in order and under their final names, with the index.

Guarantees: files are renamed, never copied, and the index is written last, so an assembly that was
killed is taken up by the next; a shard that is neither in its group nor in its place is an error.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_pipeline.build_directory import BuildDirectory
from data_pipeline.durable import fsync_directory, write_bytes
from data_pipeline.encode import group_record
from data_pipeline.errors import DatasetError
from data_pipeline.index import build_index
from data_pipeline.index_schema import SPLITS
from data_pipeline.mixture import RULE, parse_decimal, share_tokens
from data_pipeline.plan import Plan
from data_pipeline.shard_record import Shard, shard_file
from data_pipeline.survey import Survey
from data_pipeline.tokenizer import Tokenizer


def assemble(plan: Plan, place: BuildDirectory, survey: Survey, tokenizer: Tokenizer) -> None:
    """Fill ``place.final`` with the dataset.

    Raises:
        DatasetError: A group that is not built, or a part of the mixture without training shards.
    """
    groups = [_built(place, group.number) for group in plan.groups]
    train_shards = [0] * len(plan.sources)
    splits: dict[str, tuple[Shard, ...]] = {}
    for split in SPLITS:
        (place.final / split).mkdir(parents=True, exist_ok=True)
        shards: list[Shard] = []
        for group, record in zip(plan.groups, groups, strict=True):
            for shard in record[split]:
                final = replace(shard, file=shard_file(split, len(shards)))
                _move(place.group(group.number), shard, place.final, final)
                shards.append(final)
                train_shards[group.source] += split == "train"
        fsync_directory(place.final / split)
        splits[split] = tuple(shards)
    steps = json.loads(place.decisions.read_bytes())["steps"]
    _move_lists(place, steps)
    mixture = _mixture(plan, train_shards)
    write_bytes(place.final / "tokenizer.json", tokenizer.data)
    permille = plan.recipe.heldout_permille
    index = build_index(tokenizer, permille, splits, _sources(plan, survey), steps, mixture)
    write_bytes(place.final / "index.json", index)


def _built(place: BuildDirectory, group: int) -> dict[str, tuple[Shard, ...]]:
    record = group_record(place, group)
    if record is None:
        raise DatasetError(f"{place.root}: expected group {group} to be built; build it first")
    return record


def _move(source: Path, shard: Shard, target: Path, final: Shard) -> None:
    names = ("file", "docs_file", "sources_file")
    for name in names:
        old, new = source / getattr(shard, name), target / getattr(final, name)
        if old.is_file():
            old.rename(new)
        elif not new.is_file():
            raise DatasetError(
                f"{old}: expected a finished shard, found no file; delete the directory of the "
                "build to start over"
            )


def _move_lists(place: BuildDirectory, steps: Sequence[dict[str, Any]]) -> None:
    for step in steps:
        old, new = place.root / step["removed"]["file"], place.final / step["removed"]["file"]
        new.parent.mkdir(exist_ok=True)
        if old.is_file():
            old.rename(new)
        elif not new.is_file():
            raise DatasetError(
                f"{old}: expected the list of a step, found no file; delete the directory of the "
                "build to start over"
            )
        fsync_directory(new.parent)


def _sources(plan: Plan, survey: Survey) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    for number, source in enumerate(plan.sources):
        groups = (group.number for group in plan.groups if group.source == number)
        records += source.record(survey.file_counts(groups))
    return records


def _mixture(plan: Plan, train_shards: Iterable[int]) -> dict[str, Any] | None:
    """The record of the mixture: parts in the order of the sources."""
    rule = plan.recipe.mixture
    if rule is None:
        return None
    names = [source.name for source in plan.sources]
    weights = [rule.weights[name] for name in names]
    fractions = [parse_decimal("data.build.mixture", weight) for weight in weights]
    tokens = share_tokens(fractions, rule.tokens)
    parts, first = [], 0
    for name, weight, share, count in zip(names, weights, tokens, train_shards, strict=True):
        if not count:
            raise DatasetError(
                f"data.build.mixture: expected training documents in source {name!r}, found none"
            )
        shards = [first, first + count - 1]
        parts.append({"name": name, "weight": weight, "tokens": share, "shards": shards})
        first += count
    return {"rule": RULE, "parts": parts}
