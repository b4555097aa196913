"""What a dataset is built from and how, checked before anything is read.

Guarantees: an unknown key, a missing one or a value out of its range is refused with its place;
``Recipe.identity`` is equal for two recipes exactly when they ask for the same dataset from the
same places (the name, which is for people, left out). Reference: ``docs/spec/index.md``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from data_pipeline.canonical import canonical_json
from data_pipeline.errors import DatasetError
from data_pipeline.mixture import parse_decimal

GROUP_BYTES = 1 << 30
BOS_POLICIES = ("none", "document")

_REQUIRED = ("name", "tokenizer", "heldout_permille", "shard_tokens")
_OPTIONAL = ("source", "sources", "group_bytes", "bos", "dedup", "decontaminate", "mixture")
_MARKS = ("eod", "bos")
_TOKENIZERS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "vocab_size": (("vocab_size", "train_bytes"), ()),
    "file": (("file",), _MARKS),
    "hub": (("hub", "revision"), _MARKS),
}


@dataclass(frozen=True)
class NearRule:
    """Near-duplicates: MinHash over runs of ``shingle`` words, found by bands, then compared."""

    threshold: Fraction = Fraction(4, 5)
    permutations: int = 128
    shingle: int = 5
    bands: int = 16

    @property
    def rows(self) -> int:
        """Values of a band."""
        return self.permutations // self.bands


@dataclass(frozen=True)
class DecontaminationRule:
    """Evaluation texts and the length, in words, of what a document may not share with them."""

    sources: tuple[Mapping[str, Any], ...]
    ngram: int = 13


@dataclass(frozen=True)
class MixtureRule:
    """How many tokens a run reads from each source: shares of ``tokens`` by weight."""

    tokens: int
    weights: Mapping[str, str]


@dataclass(frozen=True)
class Recipe:
    """A checked recipe."""

    name: str
    sources: tuple[Mapping[str, Any], ...]
    tokenizer: Mapping[str, Any]
    heldout_permille: int
    shard_tokens: int
    group_bytes: int
    bos: str
    exact: bool
    near: NearRule | None
    decontamination: DecontaminationRule | None
    mixture: MixtureRule | None
    identity: bytes

    @classmethod
    def parse(cls, spec: Mapping[str, Any]) -> "Recipe":
        """Check a recipe.

        Args:
            spec: ``{"name", "sources": [see sources.open_source] (or "source": one), "tokenizer",
                "heldout_permille", "shard_tokens"}`` and, where wanted, ``group_bytes``, ``bos``,
                ``dedup``, ``decontaminate`` and ``mixture``.

        Raises:
            DatasetError: The place, what was expected and what was found.
        """
        _keys("data.build", spec, _REQUIRED, _OPTIONAL)
        tokenizer = _tokenizer(spec["tokenizer"])
        dedup = spec.get("dedup") or {}
        _keys("data.build.dedup", dedup, (), ("exact", "near"))
        bos = spec.get("bos", "none")
        if bos not in BOS_POLICIES:
            raise DatasetError(f"data.build.bos: expected one of {BOS_POLICIES}, found {bos!r}")
        if (bos == "document") != ("bos" in tokenizer):
            raise DatasetError(
                f"data.build: expected tokenizer.bos (an id or a text) exactly when bos is "
                f"'document', found bos {bos!r} and tokenizer.bos {tokenizer.get('bos')!r}"
            )
        return cls(
            name=str(spec["name"]),
            sources=_sources("data.build", spec, "source", "sources"),
            tokenizer=tokenizer,
            heldout_permille=_integer("data.build", spec, "heldout_permille", 0, 999),
            shard_tokens=_integer("data.build", spec, "shard_tokens", 1),
            group_bytes=_integer("data.build", spec, "group_bytes", 1, default=GROUP_BYTES),
            bos=bos,
            exact=_flag("data.build.dedup", dedup, "exact"),
            near=_near(dedup.get("near")),
            decontamination=_decontamination(spec.get("decontaminate")),
            mixture=_mixture(spec.get("mixture")),
            identity=_identity(spec),
        )

    @property
    def trains_tokenizer(self) -> bool:
        """Whether the tokenizer is trained on the corpus."""
        return "vocab_size" in self.tokenizer


def _identity(spec: Mapping[str, Any]) -> bytes:
    try:
        return canonical_json({key: spec[key] for key in spec if key != "name"})
    except TypeError as error:
        raise DatasetError(f"data.build: {error}") from None


def _keys(
    place: str, found: Any, required: tuple[str, ...], optional: tuple[str, ...] = ()
) -> None:
    if not isinstance(found, Mapping):
        raise DatasetError(f"{place}: expected a mapping, found {found!r}")
    missing, unknown = set(required) - set(found), set(found) - {*required, *optional}
    if missing or unknown:
        raise DatasetError(
            f"{place}: expected the keys {sorted(required)} and at most {sorted(optional)}, found "
            f"{sorted(found)}; missing {sorted(missing)}, unknown {sorted(unknown)}"
        )


def _integer(
    place: str,
    found: Mapping[str, Any],
    key: str,
    low: int,
    high: int | None = None,
    default: int | None = None,
) -> int:
    value = found.get(key, default)
    if type(value) is not int or value < low or (high is not None and value > high):
        wanted = f">= {low}" if high is None else f"in {low}..{high}"
        raise DatasetError(f"{place}: expected {key} {wanted}, found {value!r}")
    return value


def _flag(place: str, found: Mapping[str, Any], key: str) -> bool:
    value = found.get(key, False)
    if type(value) is not bool:
        raise DatasetError(f"{place}.{key}: expected true or false, found {value!r}")
    return value


def _sources(
    place: str, spec: Mapping[str, Any], one: str, many: str
) -> tuple[Mapping[str, Any], ...]:
    if (one in spec) == (many in spec):
        raise DatasetError(
            f"{place}: expected either {one!r} or {many!r}, found "
            f"{'both' if one in spec else 'neither'}; missing {[] if one in spec else [many]}"
        )
    found = [spec[one]] if one in spec else spec[many]
    if not isinstance(found, list | tuple) or not found:
        raise DatasetError(f"{place}.{many}: expected a list of sources, found {found!r}")
    return tuple(found)


def _tokenizer(spec: Any) -> Mapping[str, Any]:
    known = sorted(_TOKENIZERS)
    kind = next((key for key in _TOKENIZERS if isinstance(spec, Mapping) and key in spec), None)
    if kind is None:
        raise DatasetError(f"data.build.tokenizer: expected one of the keys {known}, found {spec}")
    _keys("data.build.tokenizer", spec, *_TOKENIZERS[kind])
    return dict(spec)


def _near(spec: Any) -> NearRule | None:
    if spec is None:
        return None
    place = "data.build.dedup.near"
    _keys(place, spec, (), ("threshold", "permutations", "shingle", "bands"))
    rule = NearRule(
        threshold=parse_decimal(f"{place}.threshold", spec.get("threshold", "0.8")),
        permutations=_integer(place, spec, "permutations", 1, 4096, NearRule.permutations),
        shingle=_integer(place, spec, "shingle", 1, 1000, NearRule.shingle),
        bands=_integer(place, spec, "bands", 1, 4096, NearRule.bands),
    )
    if rule.permutations % rule.bands or not 0 < rule.threshold <= 1:
        raise DatasetError(
            f"{place}: expected a threshold in (0, 1] and bands that divide the permutations, "
            f"found {rule.threshold}, {rule.bands} and {rule.permutations}"
        )
    return rule


def _decontamination(spec: Any) -> DecontaminationRule | None:
    if spec is None:
        return None
    place = "data.build.decontaminate"
    _keys(place, spec, (), ("source", "sources", "ngram"))
    ngram = _integer(place, spec, "ngram", 1, 1000, DecontaminationRule.ngram)
    return DecontaminationRule(_sources(place, spec, "source", "sources"), ngram)


def _mixture(spec: Any) -> MixtureRule | None:
    if spec is None:
        return None
    place = "data.build.mixture"
    _keys(place, spec, ("tokens", "weights"))
    weights = spec["weights"]
    if not isinstance(weights, Mapping) or not weights:
        raise DatasetError(f"{place}.weights: expected a weight for each source, found {weights}")
    parsed = {key: parse_decimal(f"{place}.weights.{key}", weights[key]) for key in weights}
    if any(weight <= 0 for weight in parsed.values()):
        raise DatasetError(f"{place}.weights: expected positive weights, found {dict(weights)}")
    texts = {str(key): str(value) for key, value in weights.items()}
    return MixtureRule(_integer(place, spec, "tokens", 1), texts)
