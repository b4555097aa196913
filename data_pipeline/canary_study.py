"""What a canary study declares, and the contents of its canaries.

A study is JSON (``docs/spec/overlay.md``): a key, a window of steps, the probability with which a
canary is planted at all, and groups of canaries of one type with so many canaries for each number
of copies. Contents depend on the key, the group and the canary's number only: not on whether it is
planted, so planted canaries and held-out ones are exchangeable.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline.canonical import is_sha256_hex
from data_pipeline.draws import Draws
from data_pipeline.errors import DatasetError

STUDY_SCHEMA = "canary-study-v1"
SPACINGS = ("even", "random")
SECRET, INDEX = "{secret}", "{index}"
_MAX_DIGITS = 18
_MAX_COPIES = 1 << 20

Encode = Callable[[str], npt.NDArray[np.integer[Any]]]

_TYPE_KEYS = {
    "random_ids": ("length",),
    "random_text": ("words", "word_list"),
    "template": ("templates", "digits"),
    "natural": ("texts",),
}


@dataclass(frozen=True)
class Group:
    """Canaries of one type; ``copies`` maps copies to the number of canaries that get so many."""

    name: str
    type: Mapping[str, Any]
    copies: Mapping[int, int]
    spacing: str
    first_step: int
    last_step: int
    include_permille: int

    @property
    def size(self) -> int:
        """Canaries of the group."""
        return sum(self.copies.values())


@dataclass(frozen=True)
class Study:
    """A checked study; ``record`` is the JSON it was read from."""

    record: Mapping[str, Any]
    key: bytes
    groups: tuple[Group, ...]

    @classmethod
    def parse(cls, record: Any) -> "Study":
        """Check a study.

        Raises:
            DatasetError: A key or value that is not what the schema says.
        """
        keys = ("schema", "key", "first_step", "last_step", "include_permille", "groups")
        _expect_keys("study", record, keys)
        if record["schema"] != STUDY_SCHEMA or not isinstance(record["groups"], list):
            raise DatasetError(
                f"study: expected schema {STUDY_SCHEMA} and a list of groups, found "
                f"{record['schema']!r}"
            )
        if not is_sha256_hex(record["key"]):
            raise DatasetError(
                "study: key: expected 64 hex digits; `openssl rand -hex 32` makes one"
            )
        groups = tuple(_group(record, group) for group in record["groups"])
        names = [group.name for group in groups]
        if len(set(names)) != len(names):
            raise DatasetError(f"study: expected groups of different names, found {names}")
        return cls(record, bytes.fromhex(record["key"]), groups)


@dataclass(frozen=True)
class Content:
    """What a canary says: its ids, and where it was made of text, text and secret digits."""

    ids: tuple[int, ...]
    text: str | None
    secret: str | None


def contents(
    study: Study, group: Group, vocab_size: int, eod: int | None, encode: Encode
) -> list[Content]:
    """Return the contents of a group's canaries, numbered as the group numbers them.

    Texts and templates are dealt to the canaries in a keyed order, so that how often a text is
    planted does not depend on where it stands in the list.

    Args:
        study: The study.
        group: One of its groups.
        vocab_size: Random ids are below it.
        eod: End-of-document id, which is never drawn.
        encode: Ids of a text.
    """
    dealt = Draws(study.key, "deal", group.name).shuffled(group.size)
    return [_content(study, group, number, vocab_size, eod, encode) for number in dealt]


def _content(
    study: Study, group: Group, number: int, vocab_size: int, eod: int | None, encode: Encode
) -> Content:
    kind, draws = group.type["kind"], Draws(study.key, "content", group.name, number)
    if kind == "random_ids":
        known = [eod] if eod is not None and eod < vocab_size else []
        drawn = [draws.below(vocab_size - len(known)) for _ in range(group.type["length"])]
        return Content(tuple(i + (bool(known) and i >= known[0]) for i in drawn), None, None)
    if kind == "template":
        secret = f"{draws.below(10 ** group.type['digits']):0{group.type['digits']}d}"
        return with_secret(group, number, secret, encode)
    if kind == "random_text":
        words = group.type["word_list"]
        text = " ".join(words[draws.below(len(words))] for _ in range(group.type["words"]))
    else:
        text = group.type["texts"][number]
    return Content(tuple(int(i) for i in encode(text)), text, None)


def with_secret(group: Group, number: int, secret: str, encode: Encode) -> Content:
    """Return canary ``number`` of a template group with the digits ``secret``."""
    templates = group.type["templates"]
    template = templates[number % len(templates)]
    text = template.replace(INDEX, str(number)).replace(SECRET, secret)
    return Content(tuple(int(i) for i in encode(text)), text, secret)


def _group(study: Mapping[str, Any], record: Any) -> Group:
    required = ("name", "type", "copies", "spacing")
    optional = ("first_step", "last_step", "include_permille")
    _expect_keys("study: group", record, required, optional)
    name = record["name"]
    place = f"study: group {name!r}"
    if type(name) is not str or not name or "/" in name:
        raise DatasetError(f"{place}: expected a name without '/'")
    values = {key: record.get(key, study[key]) for key in optional}
    first, last = values["first_step"], values["last_step"]
    if type(first) is not int or type(last) is not int or not 0 <= first < last:
        raise DatasetError(
            f"{place}: expected 0 <= first_step < last_step, found [{first!r}, {last!r})"
        )
    _expect_int(place, "include_permille", values["include_permille"], 0, 1000)
    if record["spacing"] not in SPACINGS:
        raise DatasetError(
            f"{place}: spacing: expected one of {SPACINGS}, found {record['spacing']!r}"
        )
    group = Group(
        name, record["type"], _copies(place, record["copies"]), record["spacing"], **values
    )
    _check_type(place, group)
    return group


def _copies(place: str, record: Any) -> dict[int, int]:
    if not isinstance(record, dict) or not record:
        raise DatasetError(f"{place}: copies: expected {{copies: canaries}}, found {record!r}")
    found = {}
    for copies, canaries in record.items():
        if not copies.isdecimal() or str(int(copies)) != copies or int(copies) > _MAX_COPIES:
            raise DatasetError(
                f"{place}: copies: expected a decimal of at most {_MAX_COPIES}, found {copies!r}"
            )
        _expect_int(place, f"canaries of {copies} copies", canaries, 1, _MAX_COPIES)
        found[int(copies)] = canaries
    return dict(sorted(found.items()))


def _check_type(place: str, group: Group) -> None:
    record = group.type
    kind = record.get("kind") if isinstance(record, dict) else None
    if kind not in _TYPE_KEYS:
        raise DatasetError(f"{place}: kind: expected one of {sorted(_TYPE_KEYS)}, found {kind!r}")
    _expect_keys(f"{place}: type {kind}", record, ("kind", *_TYPE_KEYS[kind]))
    if kind == "random_ids":
        _expect_int(place, "length", record["length"], 1, 1 << 20)
    elif kind == "random_text":
        _expect_int(place, "words", record["words"], 1, 1 << 20)
        _expect_texts(place, "word_list", record["word_list"], 2)
    elif kind == "template":
        _expect_int(place, "digits", record["digits"], 1, _MAX_DIGITS)
        _check_templates(place, record["templates"], group.size)
    else:
        _expect_texts(place, "texts", record["texts"], group.size)


def _check_templates(place: str, templates: Any, canaries: int) -> None:
    """One context a canary: a second secret in it would spoil the rank of the first."""
    _expect_texts(place, "templates", templates, 1)
    if any(template.count(SECRET) != 1 for template in templates):
        raise DatasetError(f"{place}: templates: expected {SECRET} once in each of them")
    if len(templates) < canaries and not all(INDEX in template for template in templates):
        raise DatasetError(
            f"{place}: templates: expected one for each of the {canaries} canaries, found "
            f"{len(templates)}: write more, or put {INDEX} before {SECRET} in each"
        )


def _expect_texts(place: str, name: str, found: Any, least: int) -> None:
    good = isinstance(found, list) and all(type(text) is str and text for text in found)
    if not good or len(set(found)) != len(found) or len(found) < least:
        size = len(found) if isinstance(found, list) else type(found).__name__
        raise DatasetError(
            f"{place}: {name}: expected at least {least} different, non-empty strings, found {size}"
        )


def _expect_int(place: str, name: str, found: Any, low: int, high: int) -> None:
    if type(found) is not int or not low <= found <= high:
        raise DatasetError(
            f"{place}: {name}: expected an integer in [{low}, {high}], found {found!r}"
        )


def _expect_keys(
    place: str, record: Any, required: Sequence[str], optional: Sequence[str] = ()
) -> None:
    found = set(record) if isinstance(record, dict) else None
    if found is None or not set(required) <= found <= {*required, *optional}:
        what = sorted(found) if found is not None else type(record).__name__
        extra = f" and possibly {sorted(optional)}" if optional else ""
        raise DatasetError(f"{place}: expected the keys {sorted(required)}{extra}, found {what}")
