"""The shard index: one canonical JSON file whose SHA-256 names a whole dataset.

Guarantees: ``index_digest`` covers the tokenizer, every token, every document border, the source
of every document, and the policies; a changed byte anywhere in the dataset either changes the
digest or is reported by ``verify_dataset`` with the file, what was expected, what was found and
what to do. File names follow from the position of a shard, so an index can never point outside its
directory.

Specification: ``docs/spec/index.md``.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np

from data_pipeline.canonical import canonical_json, sha256_hex
from data_pipeline.errors import DatasetError
from data_pipeline.index_schema import INDEX_SCHEMA, SCHEMA, SPLIT_RULE, SPLITS
from data_pipeline.mixture import MixtureV1, Part, parse_decimal, share_tokens
from data_pipeline.shard_checks import REBUILD, ShardFormat, expect, verify_removed, verify_shard
from data_pipeline.shard_record import Shard, in_heldout, shard_file, token_dtype
from data_pipeline.storage import Storage, open_storage
from data_pipeline.tokenizer import Tokenizer

__all__ = [
    "Shard",
    "ShardIndex",
    "build_index",
    "in_heldout",
    "shard_file",
    "token_dtype",
    "verify_dataset",
]


@dataclass(frozen=True)
class ShardIndex:
    """A parsed ``index.json``."""

    storage: Storage
    digest: str
    data: dict[str, Any]
    splits: Mapping[str, tuple[Shard, ...]]

    @classmethod
    def load(cls, dataset_dir: str | Path) -> "ShardIndex":
        """Read and check ``index.json``; shards are not touched.

        Raises:
            DatasetError: No index, not canonical JSON, another schema, or a file name that is not
                the one its position gives.
        """
        storage = open_storage(dataset_dir)
        where = storage.where("index.json")
        try:
            raw = storage.read("index.json")
        except FileNotFoundError:
            raise DatasetError(
                f"{where}: expected a dataset index, found no file; "
                "build the dataset first (`tripod data build`)"
            ) from None
        return cls.parse(storage, raw)

    @classmethod
    def parse(cls, storage: Storage, raw: bytes) -> "ShardIndex":
        """Check the bytes of the ``index.json`` of a storage; errors as ``load``."""
        where = storage.where("index.json")
        data = _parse(where, raw)
        return cls(storage, sha256_hex(raw), data, _shards(where, data))

    @property
    def root(self) -> Path:
        """The directory of a local dataset.

        Raises:
            DatasetError: The dataset lies behind a URL.
        """
        if not self.storage.is_local:
            raise DatasetError(f"{self.storage}: expected a local directory; download it first")
        return Path(str(self.storage))

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        return int(self.data["vocab_size"])

    @property
    def eod(self) -> int:
        """Id that closes every document."""
        return int(self.data["eod"])

    @property
    def bos(self) -> int | None:
        """Id that begins every document, or None."""
        found = self.data["bos"]
        return None if found is None else int(found)

    @property
    def dtype(self) -> "np.dtype[Any]":
        """Little-endian type of the ids in the shards."""
        return np.dtype(str(self.data["dtype"])).newbyteorder("<")

    def num_tokens(self, split: str = "train") -> int:
        """Tokens of a split, end-of-document marks included."""
        return sum(shard.tokens for shard in self.splits[split])

    def tokenizer(self) -> Tokenizer:
        """Load the tokenizer, checked against the index.

        Raises:
            DatasetError: Other bytes, or other ids for the conformance text.
        """
        path = self.storage.where("tokenizer.json")
        record = self.data["tokenizer"]
        try:
            data = self.storage.read("tokenizer.json")
        except FileNotFoundError:
            raise DatasetError(
                f"{path}: expected sha256 {record['sha256']}, found no file; {REBUILD}"
            ) from None
        expect(path, "sha256", record["sha256"], sha256_hex(data))
        tokenizer = Tokenizer(data, self.eod, self.bos)
        normalisation = self.data["policies"]["normalisation"]
        expect(path, "normalisation", normalisation, tokenizer.normalisation)
        expect(path, "vocabulary size", self.vocab_size, tokenizer.vocab_size)
        expected, found = record["conformance_sha256"], tokenizer.conformance_sha256()
        if found != expected:
            raise DatasetError(
                f"{path}: expected sha256 {expected} of the ids of the conformance text, found "
                f"{found}: this version of tokenizers encodes differently; install the pinned one"
            )
        return tokenizer

    def mixture(self, seq_len: int) -> MixtureV1 | None:
        """Return the mixture of the training split at one sequence length; None without one.

        Raises:
            ValueError: As ``MixtureV1``.
        """
        if self.data["mixture"] is None:
            return None
        starts = [0, *accumulate(shard.tokens for shard in self.splits["train"])]
        parts = []
        for part in self.data["mixture"]["parts"]:
            first, last = part["shards"]
            offset, end = starts[first], starts[last + 1]
            parts.append(Part(offset, end - offset, part["tokens"]))
        return MixtureV1(parts, seq_len, self.digest)


def build_index(
    tokenizer: Tokenizer,
    heldout_permille: int,
    splits: Mapping[str, Sequence[Shard]],
    sources: Sequence[Mapping[str, Any]],
    steps: Sequence[Mapping[str, Any]] = (),
    mixture: Mapping[str, Any] | None = None,
) -> bytes:
    """Return the bytes of ``index.json``.

    Args:
        tokenizer: The tokenizer of the shards.
        heldout_permille: Held-out documents per thousand.
        splits: Shards of ``train`` and ``heldout``, in stream order.
        sources: ``Source.record()`` of every source.
        steps: Records of what was left out, in the order the steps were taken.
        mixture: ``{"rule", "parts": [{"name", "weight", "tokens", "shards": [first, last]}]}``.
    """
    return canonical_json(
        {
            "schema": SCHEMA,
            "dtype": token_dtype(tokenizer.vocab_size),
            "bos": tokenizer.bos,
            "eod": tokenizer.eod,
            "mixture": mixture,
            "policies": {
                "bos": "none" if tokenizer.bos is None else "document",
                "eod": "append",
                "normalisation": tokenizer.normalisation,
                "special_tokens_in_text": "ordinary",
            },
            "sources": list(sources),
            "split": {"rule": SPLIT_RULE, "heldout_permille": heldout_permille},
            "splits": {name: {"shards": [vars(s) for s in splits[name]]} for name in SPLITS},
            "steps": list(steps),
            "tokenizer": {
                "sha256": sha256_hex(tokenizer.data),
                "conformance_sha256": tokenizer.conformance_sha256(),
            },
            "vocab_size": tokenizer.vocab_size,
        }
    )


def verify_dataset(
    dataset_dir: str | Path,
    expected_digest: str | None = None,
    text: bool = False,
    counts: Counter[str] | None = None,
) -> ShardIndex:
    """Recompute every digest, size and offset of a dataset.

    Args:
        dataset_dir: The dataset.
        expected_digest: Index digest that it must have, for example the one stated by a suite.
        text: Also decode every document and compare it with the SHA-256 of its source text, which
            proves that tokens and text are the same thing. Documents that a tokenizer with a
            normaliser changed are compared with the SHA-256 of what it made of them, and counted.
        counts: Filled with ``documents`` and, for ``text``, ``text_equal`` and
            ``text_changed_by_tokenizer``.

    Returns:
        The index.

    Raises:
        DatasetError: The first difference: file, expected, found, remedy.
    """
    index = ShardIndex.load(dataset_dir)
    if expected_digest is not None and index.digest != expected_digest:
        raise DatasetError(
            f"{index.root / 'index.json'}: expected index digest {expected_digest}, found "
            f"{index.digest}; the data was built from other package versions, another recipe or "
            "another tokenizers version: install the pinned packages and build it again in a new "
            "directory, or state the new digest if the change is meant"
        )
    tokenizer = index.tokenizer()
    permille = index.data["split"]["heldout_permille"]
    form = ShardFormat(
        index.root, index.dtype, index.vocab_size, index.eod, index.bos, int(permille)
    )
    counted = Counter[str]() if counts is None else counts
    for split, shards in index.splits.items():
        for shard in shards:
            verify_shard(form, split, shard, tokenizer if text else None, counted)
    for step in index.data["steps"]:
        verify_removed(index.root, step["removed"])
    return index


def _parse(path: str, raw: bytes) -> dict[str, Any]:
    try:
        data = json.loads(raw)
        canonical = canonical_json(data)
    except (ValueError, TypeError) as error:
        raise DatasetError(f"{path}: expected canonical JSON, found {error}; {REBUILD}") from error
    if canonical != raw:
        raise DatasetError(
            f"{path}: expected canonical JSON (sorted unique keys, no spaces), found another "
            f"encoding of {len(raw)} bytes; {REBUILD}"
        )
    problem = jsonschema.exceptions.best_match(
        jsonschema.Draft202012Validator(INDEX_SCHEMA).iter_errors(data)
    )
    if problem is not None:
        raise DatasetError(f"{path}: at {problem.json_path}: {problem.message}; {REBUILD}")
    if data["dtype"] != token_dtype(data["vocab_size"]):
        raise DatasetError(
            f"{path}: expected dtype {token_dtype(data['vocab_size'])} for {data['vocab_size']} "
            f"ids, found {data['dtype']}; {REBUILD}"
        )
    bos = data["bos"]
    expect(path, "eod below vocab_size", True, data["eod"] < data["vocab_size"])
    expect(path, "bos policy", "none" if bos is None else "document", data["policies"]["bos"])
    expect(path, "bos another id below vocab_size", True, bos is None or _is_bos(data))
    return dict(data)


def _is_bos(data: Mapping[str, Any]) -> bool:
    return bool(data["bos"] < data["vocab_size"] and data["bos"] != data["eod"])


def _expect_mixture(path: str, data: Mapping[str, Any], train: Sequence[Shard]) -> None:
    """Refuse parts that are not, one after the other, the training split, or other shares."""
    if data["mixture"] is None:
        return
    parts = data["mixture"]["parts"]
    borders = [part["shards"] for part in parts]
    firsts = [0, *(last + 1 for _, last in borders[:-1])]
    expect(path, "first shards of the mixture", firsts, [first for first, _ in borders])
    whole = all(first <= last for first, last in borders) and borders[-1][1] == len(train) - 1
    expect(path, "mixture of all training shards", True, whole)
    weights = [parse_decimal(f"{path}: mixture", part["weight"]) for part in parts]
    expect(path, "positive weights", True, min(weights) > 0)
    tokens = [part["tokens"] for part in parts]
    expect(path, "tokens by largest remainder", share_tokens(weights, sum(tokens)), tokens)


def _shards(path: str, data: Mapping[str, Any]) -> dict[str, tuple[Shard, ...]]:
    splits = {
        split: tuple(Shard(**shard) for shard in data["splits"][split]["shards"])
        for split in SPLITS
    }
    for split, shards in splits.items():
        for number, shard in enumerate(shards):
            if shard.file != shard_file(split, number):
                raise DatasetError(
                    f"{path}: expected file {shard_file(split, number)!r}, found {shard.file!r}; "
                    "the index was not written by this project: do not use it"
                )
    _expect_mixture(path, data, splits["train"])
    return splits
