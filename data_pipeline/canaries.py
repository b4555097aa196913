"""canary-plan-v1: which canary is planted where, decided before training and in public.

A plan is a pure function of a study, a reading and its tokenizer: contents, who is planted and at
which position and column all follow from the study's key by hashing (``draws.py``). So the SHA-256
of the plan can be published before training, and after it anybody can make the plan again and see
that nothing was chosen by hand.

Guarantees: every canary is planted or held out by a draw of its own with the declared probability,
which touches neither its content nor any other canary: held-out ones are perfect non-members.
A canary's copies stand in its window of steps, at most one canary in a row, whole, at columns
1..S, so that each of its ids is a target.

Does not guarantee: that a text given by the user is not in the corpus (`tripod seen` answers that),
or that the key was not tried until the draws pleased: commit to the key before the index exists, or
take it from a public source of randomness.
"""

import dataclasses
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import sqrt
from pathlib import Path
from typing import Any

from data_pipeline.canary_study import Content, Encode, Group, Study, contents, with_secret
from data_pipeline.canonical import canonical_json, sha256_hex
from data_pipeline.draws import Draws
from data_pipeline.errors import DatasetError
from data_pipeline.overlay import CANARY, Binding, Entry, Overlay, entry_place

SCHEMA = "canary-plan-v1"


@dataclass(frozen=True)
class Canary:
    """One canary: planted at ``placements`` (position, column), held out when there are none.

    ``copies`` is what it was assigned; a held-out canary keeps its assignment.
    """

    name: str
    group: str
    copies: int
    included: bool
    ids: tuple[int, ...]
    text: str | None
    secret: str | None
    placements: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class CanaryPlan:
    """A study carried out for one reading."""

    study: Study
    binding: Binding
    canaries: tuple[Canary, ...]

    @classmethod
    def load(cls, path: str | Path, encode: Encode) -> "CanaryPlan":
        """Read a plan and make it again from its study: nothing in it can be chosen by hand.

        Args:
            path: The file.
            encode: Ids of a text, by the tokenizer of the plan's dataset.

        Raises:
            DatasetError: No plan, or one that its study does not give.
        """
        path = Path(path)
        try:
            raw = path.read_bytes()
            record = json.loads(raw)
            study, binding = Study.parse(record["study"]), Binding(**record["binding"])
            plan = plan_canaries(study, binding, encode)
        except FileNotFoundError:
            raise DatasetError(f"{path}: expected a canary plan, found no file") from None
        except DatasetError as error:
            raise DatasetError(f"{path}: {error}") from None
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DatasetError(f"{path}: expected a canary plan, found {error!r}") from error
        if plan.data != raw:
            raise DatasetError(
                f"{path}: expected the plan that its study gives, sha256 {plan.digest}, found "
                f"{sha256_hex(raw)}: it was changed by hand, or made with another tokenizer"
            )
        return plan

    @cached_property
    def data(self) -> bytes:
        """The bytes to publish: canonical JSON."""
        return canonical_json(
            {
                "schema": SCHEMA,
                "study": self.study.record,
                "binding": dataclasses.asdict(self.binding),
                "canaries": [vars(canary) for canary in self.canaries],
            }
        )

    @property
    def digest(self) -> str:
        """SHA-256 of ``data``: the commitment. The key in it keeps the contents from guessing."""
        return sha256_hex(self.data)

    def overlay(self) -> Overlay:
        """Return the overlay that plants the plan."""
        entries = [
            Entry(position, column, canary.ids, CANARY, canary.name)
            for canary in self.canaries
            for position, column in canary.placements
        ]
        return Overlay(self.binding, sorted(entries, key=entry_place), self.digest)

    def group(self, name: str) -> Group:
        """Return a group by name."""
        return next(group for group in self.study.groups if group.name == name)


def plan_canaries(study: Study, binding: Binding, encode: Encode) -> CanaryPlan:
    """Carry out a study for a reading.

    Args:
        study: What is planted, how often and when.
        binding: The reading.
        encode: Ids of a text, by the tokenizer of the dataset.

    Returns:
        The plan; equal arguments give equal bytes.

    Raises:
        DatasetError: A canary longer than S ids, with an end-of-document mark or equal to another
            one, or a window with too few rows.
    """
    taken: dict[int, set[int]] = defaultdict(set)
    canaries = []
    for group in study.groups:
        made = contents(study, group, binding.vocab_size, binding.eod, encode)
        assigned = [copies for copies, count in group.copies.items() for _ in range(count)]
        for number, (copies, content) in enumerate(zip(assigned, made, strict=True)):
            name = f"{group.name}/{number:05d}"
            canaries.append(_canary(study, group, name, copies, content, binding, taken))
    _check_different(canaries)
    return CanaryPlan(study, binding, tuple(canaries))


def _canary(
    study: Study,
    group: Group,
    name: str,
    copies: int,
    content: Content,
    binding: Binding,
    taken: dict[int, set[int]],
) -> Canary:
    if not 1 <= len(content.ids) <= binding.seq_len or binding.eod in content.ids:
        raise DatasetError(
            f"canary {name}: expected 1 to {binding.seq_len} ids (the targets of a row) without an "
            f"end-of-document mark, found {len(content.ids)} ids; shorten it"
        )
    drawn = Draws(study.key, "include", name).below(1000) < group.include_permille
    included = drawn and copies > 0
    places = _places(study, group, name, copies, len(content.ids), binding, taken)
    return Canary(
        name=name,
        group=group.name,
        copies=copies,
        included=included,
        ids=content.ids,
        text=content.text,
        secret=content.secret,
        placements=tuple(places) if included else (),
    )


def _places(
    study: Study,
    group: Group,
    name: str,
    copies: int,
    length: int,
    binding: Binding,
    taken: dict[int, set[int]],
) -> Iterator[tuple[int, int]]:
    """Yield (position, column) of every copy: the step by spacing, row and column uniformly.

    ``taken`` holds the rows in use by step. A step without a free row hands over to the next one
    of the window that has one.
    """
    draws = Draws(study.key, "place", name)
    window, rows = group.last_step - group.first_step, binding.batch_size
    phase = draws.below(window)
    for copy in range(copies):
        even = group.spacing == "even"
        offset = (copy * window + phase) // copies if even else draws.below(window)
        after = (group.first_step + (offset + k) % window for k in range(window))
        step = next((step for step in after if len(taken[step]) < rows), None)
        if step is None:
            raise DatasetError(
                f"canary {name}: expected a free row in steps [{group.first_step}, "
                f"{group.last_step}), found all {window * rows} taken; plant fewer copies or widen "
                "the window"
            )
        row = _nth_free(taken[step], draws.below(rows - len(taken[step])))
        taken[step].add(row)
        yield step * rows + row, 1 + draws.below(binding.seq_len + 1 - length)


def _nth_free(taken: set[int], n: int) -> int:
    """Return the n-th row, from zero, that is not taken."""
    for row in sorted(taken):
        n += row <= n
    return n


def _check_different(canaries: Sequence[Canary]) -> None:
    seen: dict[tuple[int, ...], str] = {}
    for canary in canaries:
        other = seen.setdefault(canary.ids, canary.name)
        if other != canary.name:
            raise DatasetError(
                f"canaries {other} and {canary.name}: expected different ids, found equal ones; "
                "make them longer or more varied"
            )


def secret_candidates(
    plan: CanaryPlan, canary: Canary, count: int, encode: Encode
) -> list[Content]:
    """Return a template canary with other secrets, to rank its own among (Carlini et al. 2019).

    With R candidates of which the model gives k - 1 a lower loss than the canary's own, the
    exposure is log2(R + 1) - log2(k).

    Args:
        plan: The plan.
        canary: One of its canaries, of a template group.
        count: Number of candidates, fewer than there are secrets.
        encode: As for ``plan_canaries``.

    Returns:
        ``count`` different contents, drawn without the canary's own secret.

    Raises:
        DatasetError: Not a template canary, or too many candidates.
    """
    group = plan.group(canary.group)
    digits = group.type.get("digits")
    if canary.secret is None or digits is None or not 0 <= count < 10**digits:
        raise DatasetError(
            f"canary {canary.name}: expected a template canary and fewer candidates than secrets, "
            f"found {count} candidates of {digits} digits"
        )
    draws = Draws(plan.study.key, "candidates", canary.name)
    secrets: dict[str, None] = {}
    while len(secrets) < count:
        secret = f"{draws.below(10**digits):0{digits}d}"
        if secret != canary.secret:
            secrets[secret] = None
    number = content_number(plan, canary)
    return [with_secret(group, number, secret, encode) for secret in secrets]


def content_number(plan: CanaryPlan, canary: Canary) -> int:
    """Return the number of a canary's text or template within its group."""
    group = plan.group(canary.group)
    dealt = Draws(plan.study.key, "deal", group.name).shuffled(group.size)
    return dealt[int(canary.name.removeprefix(f"{group.name}/"))]


def describe_plan(plan: CanaryPlan) -> dict[str, Any]:
    """Count what a plan plants.

    Returns:
        ``groups``: one record per group and number of copies with ``canaries``, ``included``,
        ``held_out``, ``expected`` (included on average), ``z`` (standard deviations between the
        two), ``planted`` (copies in all), ``ids`` planted, ``first_step``, ``last_step`` and
        ``mean_gap`` (steps between copies of one canary); and over all ``rows`` touched, ``ids``
        replaced and their ``share`` of the ids read in the planted steps' span.
    """
    groups = [
        _describe_cell(plan, group, copies)
        for group in plan.study.groups
        for copies in group.copies
    ]
    positions = [position for canary in plan.canaries for position, _ in canary.placements]
    ids = sum(len(canary.ids) * len(canary.placements) for canary in plan.canaries)
    batch = plan.binding.batch_size
    steps = max(positions) // batch - min(positions) // batch + 1 if positions else 0
    read = steps * batch * (plan.binding.seq_len + 1)
    return {
        "digest": plan.digest,
        "overlay": plan.overlay().digest,
        "groups": groups,
        "rows": len(positions),
        "ids": ids,
        "share": ids / read if read else 0.0,
    }


def _describe_cell(plan: CanaryPlan, group: Group, copies: int) -> dict[str, Any]:
    cell = [c for c in plan.canaries if c.group == group.name and c.copies == copies]
    included = [canary for canary in cell if canary.included]
    p = group.include_permille / 1000 if copies else 0.0
    spread = sqrt(len(cell) * p * (1 - p))
    batch = plan.binding.batch_size
    steps = [[position // batch for position, _ in c.placements] for c in included]
    every = [step for one in steps for step in one]
    gaps = [b - a for one in steps for a, b in pairwise(sorted(one))]
    return {
        "group": group.name,
        "type": group.type["kind"],
        "copies": copies,
        "canaries": len(cell),
        "included": len(included),
        "held_out": len(cell) - len(included),
        "expected": len(cell) * p,
        "z": (len(included) - len(cell) * p) / spread if spread else 0.0,
        "planted": len(every),
        "ids": sum(len(c.ids) * len(c.placements) for c in included),
        "first_step": min(every, default=None),
        "last_step": max(every, default=None),
        "mean_gap": sum(gaps) / len(gaps) if gaps else None,
    }
