"""Index Megatron files where they lie, and verify such an index: every byte is read once.

Besides the digests one pass over the ids finds what the format does not say: whether every id lies
in the vocabulary, how often the end-of-document mark occurs, and how many items it closes. A
declared EOD policy that the ids contradict is refused.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline.canonical import canonical_json, sha256_file, sha256_hex
from data_pipeline.durable import write_bytes
from data_pipeline.errors import DatasetError
from data_pipeline.megatron import MegatronFiles, find_files, id_runs
from data_pipeline.megatron_index import (
    MegatronIndex,
    NeoxPlan,
    expect,
    locations_json,
    parse_index,
)
from data_pipeline.megatron_schema import EOD_POLICIES, SCHEMA
from data_pipeline.neox_maps import split_bounds
from data_pipeline.tokenizer import Tokenizer

_READ = 1 << 24
Progress = Callable[[int], None]


@dataclass(frozen=True)
class MegatronPart:
    """One file prefix: its name in the index, its weight as decimal text, and its files."""

    name: str
    weight: str
    idx: Path
    bins: Sequence[Path]

    @classmethod
    def of(cls, prefix: str | Path, name: str | None = None, weight: str = "1.0") -> "MegatronPart":
        """Find the files of a prefix, which also gives the name; see ``megatron.find_files``."""
        idx, bins = find_files(prefix)
        return cls(name or Path(prefix).name, weight, idx, bins)


def build_megatron_index(
    out: str | Path,
    parts: Sequence[MegatronPart],
    vocab_size: int,
    eod: int | None,
    eod_policy: str,
    plan: NeoxPlan | None,
    tokenizer: Tokenizer | None = None,
    progress: Progress | None = None,
) -> MegatronIndex:
    """Hash the files and write ``index.json`` and ``locations.json``.

    Args:
        out: The dataset directory, made if missing; the files stay where they are.
        parts: In the order of the GPT-NeoX config.
        vocab_size: Number of ids; every id must be smaller.
        eod: Id of the end-of-document mark, or None.
        eod_policy: ``appended`` (it closes every document), ``none`` or ``unknown``.
        plan: What GPT-NeoX was asked for; None for files that are read in file order.
        tokenizer: The tokenizer of the ids, if it is known; a copy is kept in ``out``.
        progress: Called with the number of bytes just read.

    Returns:
        The index.

    Raises:
        DatasetError: Files or declarations that contradict each other; nothing is written.
    """
    out = Path(out)
    if eod_policy not in EOD_POLICIES:
        raise DatasetError(f"eod_policy: expected one of {EOD_POLICIES}, found {eod_policy!r}")
    for part in parts:
        _expect_weight(part)
    opened = [MegatronFiles(part.idx, part.bins) for part in parts]
    types = sorted({files.dtype.name for files in opened})
    if len(types) != 1:
        raise DatasetError(
            f"expected one type of id in all parts, found {types}; index them apart, or write them "
            "again with one type"
        )
    data: dict[str, Any] = {
        "schema": SCHEMA,
        "dtype": types[0],
        "vocab_size": vocab_size,
        "eod": eod,
        "eod_policy": eod_policy,
        "tokenizer": _tokenizer_record(tokenizer),
        "neox": _neox_record(plan, parts, opened),
    }
    pairs = list(zip(parts, opened, strict=True))
    # What is declared is checked before hours of reading: a draft without digests must be valid.
    data["parts"] = [_part_record(part, files, _Scan.blank(files, eod)) for part, files in pairs]
    parse_index(str(out / "index.json"), canonical_json(data))
    scans = [_scan(files, eod, progress) for files in opened]
    for files, scan in zip(opened, scans, strict=True):
        _check_ids(files, scan, vocab_size, eod, eod_policy, plan is not None)
    data["parts"] = [
        _part_record(part, files, scan) for (part, files), scan in zip(pairs, scans, strict=True)
    ]
    for record, files in zip(data["parts"], opened, strict=True):
        record["idx"]["sha256"] = sha256_file(files.idx)
    _write(out, canonical_json(data), parts, tokenizer)
    return MegatronIndex.load(out)


def verify_megatron(
    dataset_dir: str | Path,
    expected_digest: str | None = None,
    contents: bool = True,
    progress: Progress | None = None,
) -> MegatronIndex:
    """Recompute what an index says.

    Args:
        dataset_dir: The dataset.
        expected_digest: Index digest that it must have.
        contents: False compares sizes, types, counts and everything in the ``.idx`` only, without
            reading the ids.
        progress: Called with the number of bytes just read.

    Returns:
        The index.

    Raises:
        DatasetError: The first difference: file, expected, found, remedy.
    """
    index = MegatronIndex.load(dataset_dir)
    where = index.storage.where("index.json")
    expect(where, "index digest", expected_digest or index.digest, index.digest)
    if index.data["tokenizer"] is not None:
        index.tokenizer()
    opened = [index.open_files(number) for number in range(len(index.data["parts"]))]
    if index.plan is not None:
        found = _neox_record(index.plan, index.data["parts"], opened)
        expect(where, "neox", index.data["neox"], found)
    if contents:
        for record, files in zip(index.data["parts"], opened, strict=True):
            _verify_contents(index, record, files, progress)
    return index


def _verify_contents(
    index: MegatronIndex, record: dict[str, Any], files: MegatronFiles, progress: Progress | None
) -> None:
    expect(files.idx, "sha256", record["idx"]["sha256"], sha256_file(files.idx))
    scan = _scan(files, index.eod, progress)
    for path, each, found in zip(files.bins, record["bins"], scan.sha256, strict=True):
        expect(path, "sha256", each["sha256"], found)
    expect(files.idx, "eod_count", record["eod_count"], scan.eod_count)
    expect(files.idx, "eod_closing", record["eod_closing"], scan.eod_closing)
    policy, has_plan = index.data["eod_policy"], index.plan is not None
    _check_ids(files, scan, index.vocab_size, index.eod, policy, has_plan)


@dataclass
class _Scan:
    """What one pass over the ids found; ``unclosed`` is the first item without a mark."""

    sha256: list[str] = field(default_factory=list)
    low: int = 0
    high: int = 0
    eod_count: int | None = None
    eod_closing: int | None = None
    unclosed: int | None = None

    @classmethod
    def blank(cls, files: MegatronFiles, eod: int | None) -> "_Scan":
        """What a scan looks like before it has begun."""
        count = None if eod is None else 0
        return cls(["0" * 64] * len(files.bins), eod_count=count, eod_closing=count)


def _scan(files: MegatronFiles, eod: int | None, progress: Progress | None) -> _Scan:
    found = _Scan.blank(files, eod)
    found.sha256 = []
    for start, ids in id_runs(_read_bytes(files.bins, found.sha256, progress), files.dtype):
        found.low = min(found.low, int(ids.min()))
        found.high = max(found.high, int(ids.max()))
        if found.eod_count is None or found.eod_closing is None:
            continue
        marks = ids == eod
        found.eod_count += int(np.count_nonzero(marks))
        ends = _item_ends(files, start, start + len(ids))
        closed = marks[ends - 1 - start]
        found.eod_closing += int(np.count_nonzero(closed))
        if found.unclosed is None and not closed.all():
            found.unclosed = files.item_at(int(ends[int(np.argmin(closed))]) - 1)
    return found


def _item_ends(files: MegatronFiles, start: int, end: int) -> npt.NDArray[np.int64]:
    """Ends of the items that hold ids, in ids, that lie in (start, end]."""
    first = files.item_at(start)
    last = files.item_at(end - 1)
    begins = np.asarray(files.pointers[first + 1 : last + 1]) // files.dtype.itemsize
    ends = np.unique(begins[begins > start])
    after = files.item_start(last + 1)
    return np.append(ends, after) if after == end else ends


def _read_bytes(
    paths: Sequence[Path], digests: list[str], progress: Progress | None
) -> Iterator[npt.NDArray[np.uint8]]:
    """Yield the bytes of the files in pieces; ``digests`` fills with their SHA-256."""
    for path in paths:
        digest = hashlib.sha256()
        with path.open("rb") as handle:
            while piece := handle.read(_READ):
                digest.update(piece)
                yield np.frombuffer(piece, dtype=np.uint8)
                if progress is not None:
                    progress(len(piece))
        digests.append(digest.hexdigest())


def _check_ids(
    files: MegatronFiles, scan: _Scan, vocab_size: int, eod: int | None, policy: str, items: bool
) -> None:
    """Compare the ids with what is declared; ``items`` says that an item is a document."""
    if scan.low < 0 or scan.high >= vocab_size:
        raise DatasetError(
            f"{files.idx}: expected ids in [0, {vocab_size}), found {scan.low}..{scan.high}; "
            "declare the vocabulary these ids were made with"
        )
    if policy == "appended" and items and scan.unclosed is not None:
        raise DatasetError(
            f"{files.idx}: expected id {eod} at the end of every item (policy 'appended'), found "
            f"another one at the end of item {scan.unclosed}; declare 'unknown', or 'none'"
        )
    if policy == "appended" and not items and not scan.eod_count and files.num_tokens:
        raise DatasetError(
            f"{files.idx}: expected id {eod} somewhere (policy 'appended'), found it nowhere; "
            "declare 'none' or 'unknown'"
        )
    if policy == "none" and scan.eod_count:
        raise DatasetError(
            f"{files.idx}: expected no id {eod} (policy 'none'), found {scan.eod_count} of them, "
            f"{scan.eod_closing} at the end of an item; declare 'appended' or 'unknown'"
        )


def _part_record(part: MegatronPart, files: MegatronFiles, scan: _Scan) -> dict[str, Any]:
    return {
        "name": part.name,
        "weight": part.weight,
        "idx": _file_record(files.idx, "0" * 64),
        "bins": [
            _file_record(path, digest) for path, digest in zip(files.bins, scan.sha256, strict=True)
        ],
        "items": files.num_items,
        "tokens": files.num_tokens,
        "eod_count": scan.eod_count,
        "eod_closing": scan.eod_closing,
    }


def _file_record(path: Path, sha256: str) -> dict[str, Any]:
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": sha256}


def _neox_record(
    plan: NeoxPlan | None,
    parts: Sequence[MegatronPart] | Sequence[dict[str, Any]],
    opened: Sequence[MegatronFiles],
) -> dict[str, Any] | None:
    if plan is None:
        return None
    weights = [float(p.weight if isinstance(p, MegatronPart) else p["weight"]) for p in parts]
    tokens = [files.num_tokens for files in opened]
    if plan.split is not None and len(opened) == 1:
        first, last = split_bounds(plan.split, opened[0].num_items)[:2]
        tokens = [opened[0].item_start(last) - opened[0].item_start(first)]
    epochs, samples = plan.of_parts(weights, tokens)
    return {
        "split": plan.split,
        "num_samples": plan.num_samples,
        "seq_len": plan.seq_len,
        "epochs": epochs,
        "samples": samples,
    }


def _expect_weight(part: MegatronPart) -> None:
    try:
        fine = 0.0 <= float(part.weight) < float("inf")
    except ValueError:
        fine = False
    if not fine:
        raise DatasetError(
            f"{part.name}: weight: expected a decimal number of at least 0, found {part.weight!r}"
        )


def _tokenizer_record(tokenizer: Tokenizer | None) -> dict[str, str] | None:
    if tokenizer is None:
        return None
    return {
        "sha256": sha256_hex(tokenizer.data),
        "conformance_sha256": tokenizer.conformance_sha256(),
    }


def _write(
    out: Path, data: bytes, parts: Sequence[MegatronPart], tokenizer: Tokenizer | None
) -> None:
    path = out / "index.json"
    if path.exists() and path.read_bytes() != data:
        raise DatasetError(
            f"{path}: expected no index or the same one, found another; write to a new directory"
        )
    out.mkdir(parents=True, exist_ok=True)
    directories = {
        part.name: {file.name: str(file.parent.resolve()) for file in [part.idx, *part.bins]}
        for part in parts
    }
    if tokenizer is not None:
        write_bytes(out / "tokenizer.json", tokenizer.data)
    write_bytes(out / "locations.json", locations_json(directories))
    write_bytes(path, data)
