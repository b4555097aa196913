"""The second reading of a corpus: text to ids to shards, one group at a time.

Guarantees: a text that is not the one that was surveyed stops the build; every shard has a record
that is written once the shard is durable, and a group that was interrupted goes on after its
records: documents of finished shards are read again but not encoded again.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline.build_directory import BuildDirectory
from data_pipeline.canonical import canonical_json, sha256_hex
from data_pipeline.contamination import reference
from data_pipeline.durable import write_bytes
from data_pipeline.errors import DatasetError
from data_pipeline.fast_tokenizer import Encoder, encoder_for
from data_pipeline.index_schema import SPLITS
from data_pipeline.meter import Meter
from data_pipeline.plan import Group, Plan
from data_pipeline.removal import Mask
from data_pipeline.shard_record import Shard, in_heldout, shard_file, token_dtype
from data_pipeline.shard_writer import ShardWriter
from data_pipeline.sources import Document
from data_pipeline.survey import Survey, read_group
from data_pipeline.tokenizer import Tokenizer
from data_pipeline.workers import Workers, chunked

_CHUNK_BYTES = 1 << 20
_CHUNK_DOCUMENTS = 1 << 10


@dataclass(frozen=True)
class Wanted:
    """A document to encode: its split, and the SHA-256 and size that the survey found."""

    document: Document
    split: str
    sha256: bytes
    size: int


Chunk = list[Wanted]
# Ids, and the SHA-256 (hex) of the text they decode to where it is not the text that was encoded.
Encoded = list[tuple[npt.NDArray[Any], str | None]]


@dataclass(frozen=True)
class EncodeTask:
    """Encodes a chunk of documents; picklable."""

    tokenizer: bytes
    eod: int
    bos: int | None
    dtype: str

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "EncodeTask":
        """The task for this tokenizer."""
        dtype = token_dtype(tokenizer.vocab_size)
        return cls(tokenizer.data, tokenizer.eod, tokenizer.bos, dtype)

    def __call__(self, chunk: Chunk) -> Encoded:
        """Return the ids of every document, and what became of its text.

        Raises:
            DatasetError: A text that is not the one that was surveyed.
        """
        for wanted in chunk:
            found = hashlib.sha256(wanted.document.text.encode("utf-8")).digest()
            if found != wanted.sha256:
                raise DatasetError(
                    f"{wanted.document.source} {wanted.document.name}: expected sha256 "
                    f"{wanted.sha256.hex()}, found {found.hex()}; the source changed during the "
                    "build: build again"
                )
        tokenizer, encoder = made_encoder(self.tokenizer, self.eod, self.bos)
        texts = [wanted.document.text for wanted in chunk]
        return [
            (ids.astype(self.dtype), _decoded_sha256(tokenizer, text, ids))
            for text, ids in zip(texts, encoder.encode_batch(texts), strict=True)
        ]


@lru_cache(maxsize=4)
def made_encoder(tokenizer: bytes, eod: int, bos: int | None) -> tuple[Tokenizer, Encoder]:
    """Return the tokenizer of a file and its encoder, made once in a process."""
    made = Tokenizer(tokenizer, eod, bos)
    return made, encoder_for(made)


def _decoded_sha256(tokenizer: Tokenizer, text: str, ids: npt.NDArray[Any]) -> str | None:
    """SHA-256 (hex) of the decoded ids where they do not spell the text, else None."""
    if tokenizer.is_exact_for(text):
        return None
    decoded = tokenizer.decode_bytes(ids)
    return None if decoded == text.encode("utf-8") else sha256_hex(decoded)


def encode_group(
    plan: Plan,
    group: Group,
    place: BuildDirectory,
    survey: Survey,
    kept: Mask,
    tokenizer: Tokenizer,
    pool: Workers[Chunk, Encoded],
    meter: Meter,
) -> None:
    """Write the shards of one group.

    Args:
        plan: Sources and groups.
        group: The group.
        place: Where the build lies.
        survey: The surveys of all groups.
        kept: The documents of this group that stay: bool [documents of the group].
        tokenizer: The tokenizer.
        pool: Workers with an ``EncodeTask`` of this tokenizer.
        meter: Told of every document that is encoded.

    Raises:
        DatasetError: A source that changed since it was surveyed.
        OSError: The disk is full.
    """
    root = place.group(group.number)
    root.mkdir(parents=True, exist_ok=True)
    finished = {split: _finished(place, group.number, split, tokenizer) for split in SPLITS}
    writers = {
        split: ShardWriter(
            root,
            split,
            tokenizer.vocab_size,
            plan.recipe.shard_tokens,
            tokenizer.eod,
            tokenizer.bos,
            finished[split],
            lambda shard: write_bytes(root / _record_file(shard.file), canonical_json(vars(shard))),
        )
        for split in SPLITS
    }
    done = {split: sum(s.documents for s in shards) for split, shards in finished.items()}
    wanted = _wanted(plan, group, survey, kept, done)
    inputs = chunked(wanted, lambda one: one.size, _CHUNK_BYTES, _CHUNK_DOCUMENTS)
    for chunk, encoded in pool.map(inputs):
        for one, (ids, decoded) in zip(chunk, encoded, strict=True):
            writers[one.split].add(ids, _record(one, decoded))
        size = sum(one.size for one in chunk)
        meter.advance(size)
        meter.add(size, sum(len(ids) for ids, _ in encoded))
    record = {split: [vars(s) for s in writer.close()] for split, writer in writers.items()}
    write_bytes(root / "record.json", canonical_json(record))


def group_record(place: BuildDirectory, group: int) -> dict[str, tuple[Shard, ...]] | None:
    """The shards of a finished group by split, with the names they have within the group."""
    path = place.group(group) / "record.json"
    if not path.is_file():
        return None
    record = json.loads(path.read_bytes())
    return {split: tuple(Shard(**shard) for shard in record[split]) for split in SPLITS}


def _record_file(shard: str) -> str:
    return shard.removesuffix(".bin") + ".json"


def _finished(
    place: BuildDirectory, group: int, split: str, tokenizer: Tokenizer
) -> tuple[Shard, ...]:
    """The shards of an interrupted group whose records are there and whose sizes fit."""
    root, width = place.group(group), np.dtype(token_dtype(tokenizer.vocab_size)).itemsize
    shards: list[Shard] = []
    while (path := root / _record_file(shard_file(split, len(shards)))).is_file():
        shard = Shard(**json.loads(path.read_bytes()))
        sizes = {shard.file: shard.tokens * width, shard.docs_file: shard.documents * 16}
        for file, size in sizes.items():
            found = (root / file).stat().st_size if (root / file).is_file() else None
            if found != size:
                raise DatasetError(
                    f"{root / file}: expected {size} bytes of a finished shard, found {found}; "
                    f"delete {place.root} to start over"
                )
        shards.append(shard)
    return tuple(shards)


def _wanted(
    plan: Plan, group: Group, survey: Survey, kept: Mask, done: dict[str, int]
) -> Iterator[Wanted]:
    """Yield the documents that stay and lie in no finished shard."""
    digests, sizes = survey.digests(group.number), survey.sizes(group.number)
    ignored: dict[str, Counter[str]] = {}
    number = -1
    for number, document in enumerate(read_group(plan, group, ignored)):
        if number >= len(kept):
            break
        if not kept[number]:
            continue
        digest = digests[number].tobytes()
        heldout = in_heldout(digest.hex(), plan.recipe.heldout_permille)
        split = "heldout" if heldout else "train"
        if done[split]:
            done[split] -= 1
            continue
        yield Wanted(document, split, digest, int(sizes[number]))
    if number + 1 != len(kept):
        raise DatasetError(
            f"source {plan.sources[group.source].name}: expected {len(kept)} documents in files "
            f"{group.first} to {group.end - 1}, found "
            f"{'more' if number >= len(kept) else number + 1}; the source changed during the "
            "build: build again"
        )


def _record(wanted: Wanted, decoded: str | None) -> dict[str, Any]:
    """The line of ``.sources.jsonl`` of a document."""
    record = reference(wanted.document)
    record |= {"bytes": wanted.size, "sha256": wanted.sha256.hex()}
    if wanted.document.meta:
        record["meta"] = dict(wanted.document.meta)
    if decoded is not None:
        record["decoded_sha256"] = decoded
    return record
