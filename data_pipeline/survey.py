"""The first reading of a corpus: content hash, size and what the declared steps need to decide.

Guarantees: what is kept of a document has a fixed size in files on disk (32 bytes of digest, 8 of
size, and with near-duplicates 4 bytes a permutation), so memory does not grow with the corpus; the
survey of a group is there, complete and synced, exactly when its record is.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from data_pipeline.build_directory import BuildDirectory
from data_pipeline.canonical import canonical_json
from data_pipeline.contamination import Evaluations, reference
from data_pipeline.durable import fsync_directory, write_bytes
from data_pipeline.meter import Meter
from data_pipeline.near import Signatures, signatures
from data_pipeline.plan import Group, Plan
from data_pipeline.recipe import NearRule
from data_pipeline.sources import Document
from data_pipeline.words import words
from data_pipeline.workers import Workers, chunked

_CHUNK_CHARACTERS = 1 << 20
_CHUNK_DOCUMENTS = 1 << 10
_KEPT_MAPS = 512

Chunk = list[Document]


@dataclass(frozen=True)
class Surveyed:
    """What is kept of n documents: digests [n, 32], sizes [n], signatures [n, permutations]."""

    digests: bytes
    sizes: npt.NDArray[np.uint64]
    signatures: Signatures | None
    references: list[bytes] | None
    hits: list[tuple[int, str, int]]


@dataclass(frozen=True)
class SurveyTask:
    """Surveys a chunk of documents; picklable."""

    named: bool  # whether a step may leave documents out, which are then listed by name
    near: NearRule | None
    evaluations: Evaluations | None

    def __call__(self, chunk: Chunk) -> Surveyed:
        """Hash, and look for what the declared steps ask for."""
        data = [document.text.encode("utf-8") for document in chunk]
        split = [words(d.text) for d in chunk] if self.near or self.evaluations else []
        hits = []
        if self.evaluations is not None:
            found = [(place, self.evaluations.hit(one)) for place, one in enumerate(split)]
            hits = [(place, *hit) for place, hit in found if hit is not None]
        return Surveyed(
            digests=b"".join(hashlib.sha256(one).digest() for one in data),
            sizes=np.array([len(one) for one in data], dtype="<u8"),
            signatures=None if self.near is None else signatures(split, self.near),
            references=[canonical_json(reference(d)) for d in chunk] if self.named else None,
            hits=hits,
        )


def read_group(plan: Plan, group: Group, counts: dict[str, Counter[str]]) -> Iterator[Document]:
    """Yield the documents of a group in order, and count per file."""
    source = plan.sources[group.source]
    for file in plan.files(group):
        yield from source.read(file, counts.setdefault(file.name, Counter()))


def survey_group(
    plan: Plan, group: Group, place: BuildDirectory, pool: Workers[Chunk, Surveyed], meter: Meter
) -> None:
    """Survey one group.

    Args:
        plan: Sources and groups.
        group: The group.
        place: Where the build lies.
        pool: Workers with a ``SurveyTask``.
        meter: Told of every document.

    Raises:
        DatasetError: A source that cannot be read or is not what its record says.
        OSError: The disk is full.
    """
    place.survey(group.number, "json").parent.mkdir(exist_ok=True)
    counts: dict[str, Counter[str]] = {}
    documents, size = 0, 0
    with _SurveyFiles(place, group.number) as files:
        documents_read = read_group(plan, group, counts)
        for chunk, found in pool.map(
            chunked(documents_read, lambda d: len(d.text), _CHUNK_CHARACTERS, _CHUNK_DOCUMENTS)
        ):
            files.write(found, documents)
            documents += len(chunk)
            size += int(found.sizes.sum())
            meter.add(int(found.sizes.sum()))
    meter.advance(group.size)  # in bytes of the files: how much text is left is not known
    by_file = {name: dict(one) for name, one in counts.items()}
    record = {"documents": documents, "bytes": size, "counts": by_file}
    write_bytes(place.survey(group.number, "json"), canonical_json(record))


class _SurveyFiles:
    """The files of a group's survey, written from their beginning, synced at the end."""

    def __init__(self, place: BuildDirectory, group: int) -> None:
        self._place, self._group = place, group
        self._files: dict[str, BinaryIO] = {}
        self._reference_end = 0

    def __enter__(self) -> "_SurveyFiles":
        for suffix in ("sha256", "size", "minhash", "refs", "refends", "hits"):
            self._files[suffix] = self._place.survey(self._group, suffix).open("wb")
        return self

    def write(self, found: Surveyed, first: int) -> None:
        self._files["sha256"].write(found.digests)
        self._files["size"].write(found.sizes.tobytes())
        if found.signatures is not None:
            self._files["minhash"].write(found.signatures.tobytes())
        if found.references is not None:
            ends = np.cumsum([len(one) for one in found.references], dtype="<u8")
            self._files["refs"].write(b"".join(found.references))
            self._files["refends"].write((ends + np.uint64(self._reference_end)).tobytes())
            self._reference_end += int(ends[-1])
        for place, ngram, text in found.hits:
            line = canonical_json([first + place, ngram, text])
            self._files["hits"].write(line + b"\n")

    def __exit__(self, *error: object) -> None:
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
            file.close()
        fsync_directory(self._place.survey(self._group, "json").parent)


class Survey:
    """The surveys of all groups, as if they were one; documents are numbered through."""

    def __init__(self, place: BuildDirectory, groups: int) -> None:
        """Read the records.

        Raises:
            FileNotFoundError: A group that was not surveyed.
        """
        self._place = place
        self.records = [
            json.loads(place.survey(group, "json").read_bytes()) for group in range(groups)
        ]
        self.counts = [int(record["documents"]) for record in self.records]
        self.first = np.cumsum([0, *self.counts])
        self._map = lru_cache(maxsize=_KEPT_MAPS)(self._open)

    @property
    def documents(self) -> int:
        """Number of documents."""
        return int(self.first[-1])

    @property
    def size(self) -> int:
        """UTF-8 bytes of all documents."""
        return sum(int(record["bytes"]) for record in self.records)

    def file_counts(self, groups: Iterable[int]) -> dict[str, Counter[str]]:
        """What was read and skipped, by file, in these groups."""
        return {
            name: Counter(counts)
            for group in groups
            for name, counts in self.records[group]["counts"].items()
        }

    def digests(self, group: int) -> npt.NDArray[np.uint8]:
        """SHA-256 of every document of a group: uint8 [n, 32], mapped."""
        return self._map(group, "sha256", np.dtype(np.uint8), 32)

    def sizes(self, group: int) -> npt.NDArray[np.uint64]:
        """Bytes of every document of a group: uint64 [n], mapped."""
        return self._map(group, "size", np.dtype("<u8"), 1)[:, 0]

    def signatures(self, group: int, permutations: int) -> Signatures:
        """Signatures of a group: uint32 [n, permutations], mapped."""
        return self._map(group, "minhash", np.dtype("<u4"), permutations)

    @cached_property
    def prefixes(self) -> npt.NDArray[np.uint64]:
        """First 8 bytes of every SHA-256, big-endian: uint64 [documents]."""
        out = np.empty(self.documents, dtype=np.uint64)
        for group, first in enumerate(self.first[:-1].tolist()):
            words_ = np.ascontiguousarray(self.digests(group)[:, :8]).view(">u8")[:, 0]
            out[first : first + len(words_)] = words_
        return out

    @cached_property
    def all_sizes(self) -> npt.NDArray[np.uint64]:
        """Bytes of every document: uint64 [documents]."""
        groups = range(len(self.counts))
        return np.concatenate([np.zeros(0, dtype=np.uint64), *(self.sizes(g) for g in groups)])

    def hits(self) -> Iterator[tuple[int, str, int]]:
        """Yield (document, n-gram, evaluation text) of every document with evaluation text."""
        for group, first in enumerate(self.first[:-1].tolist()):
            with self._place.survey(group, "hits").open("rb") as lines:
                for line in lines:
                    place, ngram, text = json.loads(line)
                    yield first + place, ngram, text

    def digest(self, document: int) -> bytes:
        """SHA-256 of a document by number."""
        group, place = self.locate(document)
        return bytes(self.digests(group)[place])

    def reference(self, document: int) -> dict[str, Any]:
        """Name a document by number: source, name, and record and id where it has them."""
        group, place = self.locate(document)
        ends = self._map(group, "refends", np.dtype("<u8"), 1)[:, 0]
        start = int(ends[place - 1]) if place else 0
        with self._place.survey(group, "refs").open("rb") as handle:
            handle.seek(start)
            return dict(json.loads(handle.read(int(ends[place]) - start)))

    def part(self, group: int) -> slice:
        """The numbers of the documents of a group."""
        return slice(int(self.first[group]), int(self.first[group + 1]))

    def locate(self, document: int) -> tuple[int, int]:
        """Group of a document, and its place there."""
        group = int(np.searchsorted(self.first, document, side="right")) - 1
        return group, document - int(self.first[group])

    def _open(
        self, group: int, suffix: str, dtype: "np.dtype[Any]", width: int
    ) -> npt.NDArray[Any]:
        path, count = self._place.survey(group, suffix), self.counts[group]
        if not count:
            return np.zeros((0, width), dtype=dtype)
        return np.memmap(path, dtype, mode="r", shape=(count, width))
