"""What verification recomputes of one shard: every digest, size, border, id and record.

Guarantees: a shard that passes is the one its record names, holds ids of the vocabulary only, has
its marks where documents begin and end and nowhere else, and its records are in canonical form and
on the right side of the split. With a tokenizer the text of its documents is compared as far as
the tokenizer lets it be: all of it where decoding is exact; else the documents whose decoded text
has the recorded SHA-256 are equal. The others are counted, after their decoded text was compared
with the SHA-256 that the build recorded of it (``decoded_sha256``), or, where it recorded none, was
encoded to the same ids again.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline.canonical import canonical_json, sha256_file, sha256_hex
from data_pipeline.errors import DatasetError
from data_pipeline.shard_record import Shard, in_heldout
from data_pipeline.tokenizer import Tokenizer

REBUILD = "restore the file from a copy, or delete the dataset and build it again"

_HEX = re.compile(r"[0-9a-f]{64}")
_KEYS = {"bytes": int, "name": str, "sha256": str, "source": str}
_OPTIONAL_KEYS = {"decoded_sha256": str, "id": str, "meta": dict, "record": int}


@dataclass(frozen=True)
class ShardFormat:
    """What all shards of a dataset have in common."""

    root: Path
    dtype: "np.dtype[Any]"
    vocab_size: int
    eod: int
    bos: int | None
    heldout_permille: int


def verify_shard(
    form: ShardFormat, split: str, shard: Shard, tokenizer: Tokenizer | None, counts: Counter[str]
) -> None:
    """Verify one shard.

    Args:
        form: What all shards have in common.
        split: The split it belongs to.
        shard: Its record.
        tokenizer: The tokenizer of the dataset when the text is to be compared.
        counts: ``documents`` is increased, and with a tokenizer ``text_equal`` and
            ``text_changed_by_tokenizer``.

    Raises:
        DatasetError: The first difference: file, expected, found, remedy.
    """
    path, docs = form.root / shard.file, form.root / shard.docs_file
    expect_size(path, shard.tokens * form.dtype.itemsize)
    expect_size(docs, shard.documents * 16)
    for file, digest in (
        (path, shard.sha256),
        (docs, shard.docs_sha256),
        (form.root / shard.sources_file, shard.sources_sha256),
    ):
        expect_sha256(file, digest)
    ids, rows = np.memmap(path, form.dtype, mode="r"), np.fromfile(docs, "<u8").reshape(-1, 2)
    ends = rows[:, 0]
    increasing = bool(np.all(ends[1:] > ends[:-1])) and int(ends[0]) > 0
    expect(docs, "strictly increasing ends", True, increasing)
    expect(docs, "last end", shard.tokens, int(ends[-1]))
    _verify_ids(form, path, ids, ends)
    counts["documents"] += shard.documents
    _verify_records(form, split, shard, ids, rows, tokenizer, counts)


def _verify_ids(
    form: ShardFormat, path: Path, ids: npt.NDArray[Any], ends: npt.NDArray[np.uint64]
) -> None:
    expect(path, f"largest id below {form.vocab_size}", True, int(ids.max()) < form.vocab_size)
    closed = bool(np.array_equal(np.flatnonzero(ids == form.eod) + 1, ends))
    expect(path, f"id {form.eod} at the end of every document and nowhere else", True, closed)
    if form.bos is not None:
        begun = bool(np.array_equal(np.flatnonzero(ids == form.bos)[1:], ends[:-1]))
        begun = begun and int(ids[0]) == form.bos
        expect(path, f"id {form.bos} at the start of every document and nowhere else", True, begun)


def _verify_records(
    form: ShardFormat,
    split: str,
    shard: Shard,
    ids: npt.NDArray[Any],
    rows: npt.NDArray[np.uint64],
    tokenizer: Tokenizer | None,
    counts: Counter[str],
) -> None:
    path, docs = form.root / shard.sources_file, form.root / shard.docs_file
    start, line_start, number = 0, 0, -1
    with path.open("rb") as lines:
        for number, line in enumerate(lines):
            expect(path, f"number of lines at most {shard.documents}", True, number < len(rows))
            end, line_end = (int(value) for value in rows[number])
            expect(docs, f"end of line {number + 1} in bytes", line_start + len(line), line_end)
            record = _source_line(form, split, path, number, line)
            if tokenizer is not None:
                inner = ids[start + (form.bos is not None) : end - 1]
                counts[_compare_text(form, shard, number, record, inner, tokenizer)] += 1
            start, line_start = end, line_end
    expect(path, "number of lines", shard.documents, number + 1)


def _compare_text(
    form: ShardFormat,
    shard: Shard,
    number: int,
    record: Mapping[str, Any],
    ids: npt.NDArray[Any],
    tokenizer: Tokenizer,
) -> str:
    data = tokenizer.decode_bytes(ids)
    found, decoded = sha256_hex(data), record.get("decoded_sha256")
    if found == record["sha256"] and decoded is None:
        return "text_equal"
    place = f"sha256 of the text of document {number} ({record['name']})"
    path = form.root / shard.file
    if tokenizer.is_exact:
        expect(path, place, record["sha256"], found)
    if decoded is not None:
        expect(path, f"decoded_{place}", decoded, found)
        return "text_changed_by_tokenizer"
    try:
        again = tokenizer.encode(data.decode("utf-8"))
    except UnicodeDecodeError:
        again = np.zeros(0, dtype=np.uint32)
    same = bool(np.array_equal(again, ids))
    place = f"ids of document {number} ({record['name']}) that their own text encodes to"
    expect(path, place, True, same)
    return "text_changed_by_tokenizer"


def _source_line(
    form: ShardFormat, split: str, path: Path, number: int, line: bytes
) -> dict[str, Any]:
    place = f"line {number + 1}"
    try:
        record = json.loads(line)
        canonical = canonical_json(record) + b"\n"
    except (ValueError, TypeError) as error:
        raise DatasetError(f"{path}: {place}: expected JSON, found {error}; {REBUILD}") from error
    expect(path, f"{place}, canonical JSON", canonical, line)
    expect(path, f"{place}, an object", True, isinstance(record, dict))
    expect(path, f"{place}, keys", sorted(_KEYS), sorted(set(record) - set(_OPTIONAL_KEYS)))
    for key, value in record.items():
        wanted = (_KEYS | _OPTIONAL_KEYS)[key]
        expect(path, f"{place}, type of {key}", wanted.__name__, type(value).__name__)
    expect(path, f"{place}, sha256 of 64 hex digits", True, bool(_HEX.fullmatch(record["sha256"])))
    decoded = record.get("decoded_sha256", "0" * 64)
    hexadecimal = bool(_HEX.fullmatch(decoded)) and decoded != record["sha256"]
    expect(path, f"{place}, decoded_sha256 of 64 hex digits, another one", True, hexadecimal)
    expect(path, f"{place}, bytes not negative", True, record["bytes"] >= 0)
    heldout = in_heldout(record["sha256"], form.heldout_permille)
    expect(path, f"{place}, split by content", "heldout" if heldout else "train", split)
    return dict(record)


def verify_removed(root: Path, removed: Mapping[str, Any]) -> None:
    """Verify the list of documents that a step left out: digest, lines and their form.

    Raises:
        DatasetError: The first difference.
    """
    path = root / str(removed["file"])
    expect_sha256(path, str(removed["sha256"]))
    number, size = 0, 0
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                size += int(json.loads(line)["bytes"])
            except (ValueError, TypeError, KeyError) as error:
                raise DatasetError(
                    f"{path}: line {number}: expected a record with its bytes, found {error!r}; "
                    f"{REBUILD}"
                ) from error
    expect(path, "number of lines", removed["documents"], number)
    expect(path, "sum of bytes", removed["bytes"], size)


def expect(path: Path | str, what: str, expected: object, found: object) -> None:
    """Compare.

    Raises:
        DatasetError: They differ; the message names the file, both and the remedy.
    """
    if found != expected:
        raise DatasetError(f"{path}: {what}: expected {expected!r}, found {found!r}; {REBUILD}")


def expect_size(path: Path, expected: int) -> None:
    """Compare the size of a file in bytes; errors as ``expect``."""
    if not path.is_file():
        raise DatasetError(f"{path}: expected {expected} bytes, found no file; {REBUILD}")
    expect(path, "size in bytes", expected, path.stat().st_size)


def expect_sha256(path: Path, expected: str) -> None:
    """Compare the SHA-256 of a file; errors as ``expect``."""
    if not path.is_file():
        raise DatasetError(f"{path}: expected sha256 {expected}, found no file; {REBUILD}")
    expect(path, "sha256", expected, sha256_file(path))
