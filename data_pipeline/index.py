"""The shard index: one canonical JSON file whose SHA-256 names a whole dataset.

Guarantees: ``index_digest`` covers the tokenizer, every token, every document border, the source
of every document, and the policies; a changed byte anywhere in the dataset either changes the
digest or is reported by ``verify_dataset`` with the file, what was expected, what was found and
what to do. File names follow from the position of a shard, so an index can never point outside its
directory.

Specification: ``docs/spec/index.md``.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np

from data_pipeline.canonical import canonical_json, sha256_file, sha256_hex
from data_pipeline.errors import DatasetError
from data_pipeline.index_schema import INDEX_SCHEMA, SCHEMA, SPLIT_RULE, SPLITS
from data_pipeline.storage import Storage, open_storage
from data_pipeline.tokenizer import EOD, Tokenizer

POLICIES = {
    "bos": "none",
    "eod": "append",
    "normalisation": "none",
    "special_tokens_in_text": "ordinary",
}
_REBUILD = "restore the file from a copy, or delete the dataset and build it again"


@dataclass(frozen=True)
class Shard:
    """One shard: ``file`` is relative to the dataset; ends and sources lie beside it."""

    file: str
    tokens: int
    documents: int
    sha256: str
    docs_sha256: str
    sources_sha256: str

    @property
    def docs_file(self) -> str:
        """Little-endian u64 [documents, 2]: its end in the shard's ids, its line's end in bytes."""
        return self.file.removesuffix(".bin") + ".docs"

    @property
    def sources_file(self) -> str:
        """One canonical JSON line per document: source, name, bytes, sha256."""
        return self.file.removesuffix(".bin") + ".sources.jsonl"


def shard_file(split: str, number: int) -> str:
    """Name of a shard, relative to the dataset."""
    return f"{split}/shard-{number:05d}.bin"


def in_heldout(content_sha256: str, heldout_permille: int) -> bool:
    """Say on which side a document falls, from its content alone: duplicates fall on one side."""
    return int(content_sha256[:16], 16) % 1000 < heldout_permille


def token_dtype(vocab_size: int) -> str:
    """Name of the smallest type for the ids: uint16 up to 65,536 of them, else uint32."""
    return "uint16" if vocab_size <= 1 << 16 else "uint32"


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
                f"{path}: expected sha256 {record['sha256']}, found no file; {_REBUILD}"
            ) from None
        _expect(path, "sha256", record["sha256"], sha256_hex(data))
        tokenizer = Tokenizer(data)
        _expect(path, "vocabulary size", self.vocab_size, tokenizer.vocab_size)
        expected, found = record["conformance_sha256"], tokenizer.conformance_sha256()
        if found != expected:
            raise DatasetError(
                f"{path}: expected sha256 {expected} of the ids of the conformance text, found "
                f"{found}: this version of tokenizers encodes differently; install the pinned one"
            )
        return tokenizer


def build_index(
    tokenizer: Tokenizer,
    heldout_permille: int,
    splits: Mapping[str, Sequence[Shard]],
    sources: Sequence[Mapping[str, Any]],
) -> bytes:
    """Return the bytes of ``index.json``.

    Args:
        tokenizer: The tokenizer of the shards.
        heldout_permille: Held-out documents per thousand.
        splits: Shards of ``train`` and ``heldout``, in stream order.
        sources: ``Source.record()``.
    """
    return canonical_json(
        {
            "schema": SCHEMA,
            "dtype": token_dtype(tokenizer.vocab_size),
            "eod": EOD,
            "policies": POLICIES,
            "sources": list(sources),
            "split": {"rule": SPLIT_RULE, "heldout_permille": heldout_permille},
            "splits": {name: {"shards": [vars(s) for s in splits[name]]} for name in SPLITS},
            "tokenizer": {
                "sha256": sha256_hex(tokenizer.data),
                "conformance_sha256": tokenizer.conformance_sha256(),
            },
            "vocab_size": tokenizer.vocab_size,
        }
    )


def verify_dataset(
    dataset_dir: str | Path, expected_digest: str | None = None, text: bool = False
) -> ShardIndex:
    """Recompute every digest, size and offset of a dataset.

    Args:
        dataset_dir: The dataset.
        expected_digest: Index digest that it must have, for example the one stated by a suite.
        text: Also decode every document and compare it with the SHA-256 of its source text, which
            proves that tokens and text are the same thing (about 10 M tokens/s).

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
    for split, shards in index.splits.items():
        for shard in shards:
            _verify_shard(index, split, shard, tokenizer if text else None)
    return index


def _parse(path: str, raw: bytes) -> dict[str, Any]:
    try:
        data = json.loads(raw)
        canonical = canonical_json(data)
    except (ValueError, TypeError) as error:
        raise DatasetError(f"{path}: expected canonical JSON, found {error}; {_REBUILD}") from error
    if canonical != raw:
        raise DatasetError(
            f"{path}: expected canonical JSON (sorted unique keys, no spaces), found another "
            f"encoding of {len(raw)} bytes; {_REBUILD}"
        )
    problem = jsonschema.exceptions.best_match(
        jsonschema.Draft202012Validator(INDEX_SCHEMA).iter_errors(data)
    )
    if problem is not None:
        raise DatasetError(f"{path}: at {problem.json_path}: {problem.message}; {_REBUILD}")
    if data["dtype"] != token_dtype(data["vocab_size"]):
        raise DatasetError(
            f"{path}: expected dtype {token_dtype(data['vocab_size'])} for {data['vocab_size']} "
            f"ids, found {data['dtype']}; {_REBUILD}"
        )
    return dict(data)


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
    return splits


def _verify_shard(index: ShardIndex, split: str, shard: Shard, tokenizer: Tokenizer | None) -> None:
    path, docs = index.root / shard.file, index.root / shard.docs_file
    sources = index.root / shard.sources_file
    _expect_size(path, shard.tokens * index.dtype.itemsize)
    _expect_size(docs, shard.documents * 16)
    _expect_sha256(path, shard.sha256)
    _expect_sha256(docs, shard.docs_sha256)
    _expect_sha256(sources, shard.sources_sha256)
    ids, rows = np.memmap(path, index.dtype, mode="r"), np.fromfile(docs, "<u8").reshape(-1, 2)
    ends, line_ends = rows[:, 0], rows[:, 1]
    increasing = bool(np.all(np.diff(ends.astype(np.int64), prepend=0) > 0))
    _expect(docs, "strictly increasing ends", True, increasing)
    _expect(docs, "last end", shard.tokens, int(ends[-1]))
    _expect(path, f"largest id below {index.vocab_size}", True, int(ids.max()) < index.vocab_size)
    closed = bool(np.array_equal(np.flatnonzero(ids == index.eod) + 1, ends))
    _expect(path, f"id {index.eod} at the end of every document and nowhere else", True, closed)
    lines = sources.read_bytes().split(b"\n")
    _expect(sources, "number of lines", shard.documents, len(lines) - 1)
    found = np.cumsum([len(line) + 1 for line in lines[:-1]])
    _expect(docs, "ends of the lines", True, bool(np.array_equal(found, line_ends)))
    starts = [0, *ends.tolist()]
    for number, line in enumerate(lines[:-1]):
        record = _source_line(index, split, sources, number, line)
        if tokenizer is not None:
            data = tokenizer.decode_bytes(ids[starts[number] : starts[number + 1] - 1])
            place = f"sha256 of the text of document {number} ({record['name']})"
            _expect(path, place, record["sha256"], sha256_hex(data))


def _source_line(
    index: ShardIndex, split: str, path: Path, number: int, line: bytes
) -> dict[str, Any]:
    record = json.loads(line)
    place = f"line {number + 1}"
    _expect(path, f"{place}, keys", ["bytes", "name", "sha256", "source"], sorted(record))
    _expect(path, f"{place}, canonical JSON", canonical_json(record), line)
    heldout = in_heldout(record["sha256"], index.data["split"]["heldout_permille"])
    _expect(path, f"{place}, split by content", "heldout" if heldout else "train", split)
    return dict(record)


def _expect(path: Path | str, what: str, expected: object, found: object) -> None:
    if found != expected:
        raise DatasetError(f"{path}: {what}: expected {expected!r}, found {found!r}; {_REBUILD}")


def _expect_size(path: Path, expected: int) -> None:
    if not path.is_file():
        raise DatasetError(f"{path}: expected {expected} bytes, found no file; {_REBUILD}")
    _expect(path, "size in bytes", expected, path.stat().st_size)


def _expect_sha256(path: Path, expected: str) -> None:
    if not path.is_file():
        raise DatasetError(f"{path}: expected sha256 {expected}, found no file; {_REBUILD}")
    _expect(path, "sha256", expected, sha256_file(path))
