"""Recipe to dataset.

Guarantees: equal recipes and equal sources give byte-identical datasets, whatever the number of
workers or threads. The result appears under its name complete or not at all; a killed build leaves
nothing that a reader could take for a dataset, and the next build clears it away.

    build_dataset({"name": ..., "source": ..., "tokenizer": {...}, ...}, Path("data"))
"""

import contextlib
import fcntl
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline.canonical import sha256_hex
from data_pipeline.durable import publish_directory, write_bytes
from data_pipeline.errors import DatasetError
from data_pipeline.index import Shard, build_index, in_heldout
from data_pipeline.index_schema import SPLITS
from data_pipeline.shards import ShardWriter
from data_pipeline.sources import Document, Source, open_source
from data_pipeline.tokenizer import Tokenizer, train_bpe

Progress = Callable[[str], None]

_RECIPE_KEYS = {"name", "source", "tokenizer", "heldout_permille", "shard_tokens"}
_TOKENIZER_KEYS = {"vocab_size", "train_bytes"}


@dataclass(frozen=True)
class _Surveyed:
    """Content hash and size of one document."""

    sha256: str
    size: int


def build_dataset(
    spec: Mapping[str, Any], out: Path, workers: int = 1, progress: Progress | None = None
) -> str:
    """Build a dataset directory.

    Args:
        spec: ``{"name", "source": see sources.open_source, "tokenizer": {"vocab_size",
            "train_bytes"}, "heldout_permille", "shard_tokens"}``. ``name`` is for people; it does
            not enter the index.
        out: The directory to create.
        workers: Threads that encode text. Any number gives the same bytes.
        progress: Called with a line of text now and then.

    Returns:
        The index digest.

    Raises:
        DatasetError: A bad recipe, a source that is not what its record says, a dataset that
            exists, or another build that is running.
        OSError: The disk is full; ``out`` does not exist then.
    """
    _check_recipe(spec)
    say = progress or (lambda line: None)
    permille = spec["heldout_permille"]
    with _building(out) as tmp:
        source = open_source(spec["source"])
        survey = [_Surveyed(_sha256(d), len(d.text.encode())) for d in source.documents()]
        say(f"{spec['name']}: {len(survey)} documents, {sum(s.size for s in survey):,} bytes")
        tokenizer = _train(source, survey, permille, spec["tokenizer"], say)
        write_bytes(tmp / "tokenizer.json", tokenizer.data)
        splits = _encode(source, survey, tokenizer, tmp, spec, workers, say)
        index = build_index(tokenizer, permille, splits, source.record())
        write_bytes(tmp / "index.json", index)
        publish_directory(tmp, out)
    digest = sha256_hex(index)
    say(f"{spec['name']}: {_tokens(splits):,} tokens, index digest {digest}")
    return digest


def _check_recipe(spec: Mapping[str, Any]) -> None:
    for place, keys, found in (
        ("data.build", _RECIPE_KEYS, set(spec)),
        ("data.build.tokenizer", _TOKENIZER_KEYS, set(spec.get("tokenizer", ()))),
    ):
        if found != keys:
            raise DatasetError(
                f"{place}: expected the keys {sorted(keys)}, found {sorted(found)}; "
                f"missing {sorted(keys - found)}, unknown {sorted(found - keys)}"
            )
    if not 0 <= spec["heldout_permille"] <= 999 or spec["shard_tokens"] < 1:
        raise DatasetError(
            "data.build: expected heldout_permille in 0..999 and shard_tokens >= 1, found "
            f"{spec['heldout_permille']} and {spec['shard_tokens']}"
        )


@contextlib.contextmanager
def _building(out: Path) -> Iterator[Path]:
    """Give an empty directory beside ``out``, locked by this process, removed on failure."""
    _expect_absent(out)
    tmp = out.parent / f".{out.name}.building"
    tmp.mkdir(parents=True, exist_ok=True)
    lock = os.open(tmp, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _lock(lock, tmp, out)
        for left_over in tmp.iterdir():  # of a build that was killed
            shutil.rmtree(left_over) if left_over.is_dir() else left_over.unlink()
        try:
            yield tmp
        finally:
            if tmp.exists():
                shutil.rmtree(tmp)
    finally:
        os.close(lock)


def _lock(lock: int, tmp: Path, out: Path) -> None:
    """Take the lock, and make sure that ``tmp`` is still the directory that was locked."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise DatasetError(f"{out}: another process is building it; wait for it to end") from None
    if not tmp.exists() or os.fstat(lock).st_ino != tmp.stat().st_ino:
        raise DatasetError(f"{out}: another process built it just now; run the command again")


def _expect_absent(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DatasetError(
            f"{out}: expected no dataset, found one; verify it (`tripod data verify`), or delete "
            "it to build it again"
        )


def _sha256(document: Document) -> str:
    return sha256_hex(document.text.encode("utf-8"))


def _train(
    source: Source,
    survey: list[_Surveyed],
    permille: int,
    recipe: Mapping[str, Any],
    say: Progress,
) -> Tokenizer:
    """Train on training documents only, chosen by content hash up to ``train_bytes``."""
    chosen = training_sample(survey, permille, recipe["train_bytes"])
    size = sum(survey[i].size for i in chosen)
    say(f"tokenizer: training {recipe['vocab_size']} ids on {size:,} bytes")
    texts = (d.text for i, d in enumerate(source.documents()) if i in chosen)
    return train_bpe(texts, recipe["vocab_size"])


def training_sample(survey: list[_Surveyed], permille: int, train_bytes: int) -> set[int]:
    """Choose the tokenizer's training documents: in order of content hash while they fit.

    The hash makes it a random sample of the training split that does not depend on document order.
    """
    train = (i for i, s in enumerate(survey) if not in_heldout(s.sha256, permille))
    chosen: set[int] = set()
    for i in sorted(train, key=lambda i: (survey[i].sha256, i)):
        train_bytes -= survey[i].size
        if train_bytes < 0:
            break
        chosen.add(i)
    return chosen


def _encode(
    source: Source,
    survey: list[_Surveyed],
    tokenizer: Tokenizer,
    tmp: Path,
    spec: Mapping[str, Any],
    workers: int,
    say: Progress,
) -> dict[str, tuple[Shard, ...]]:
    vocab, limit = tokenizer.vocab_size, spec["shard_tokens"]
    writers = {split: ShardWriter(tmp, split, vocab, limit) for split in SPLITS}
    total, done, shown = sum(s.size for s in survey), 0, 0
    encoded = _ordered_map(lambda d: (d, tokenizer.encode(d.text)), source.documents(), workers)
    for expected, (document, ids) in zip(survey, encoded, strict=True):
        record = _document_record(document, expected)
        heldout = in_heldout(record["sha256"], spec["heldout_permille"])
        writers["heldout" if heldout else "train"].add(ids, record)
        done += expected.size
        if 10 * done // total > shown:
            shown = 10 * done // total
            say(f"encoding: {done:,} of {total:,} bytes")
    return {split: writer.close() for split, writer in writers.items()}


def _document_record(document: Document, expected: _Surveyed) -> dict[str, Any]:
    found = _sha256(document)
    if found != expected.sha256:
        raise DatasetError(
            f"{document.source} {document.name}: expected sha256 {expected.sha256}, found {found}; "
            "the source changed during the build: build again"
        )
    return {
        "source": document.source,
        "name": document.name,
        "bytes": expected.size,
        "sha256": found,
    }


_Encoded = tuple[Document, npt.NDArray[np.uint32]]


def _ordered_map(
    function: Callable[[Document], _Encoded], documents: Iterable[Document], workers: int
) -> Iterator[_Encoded]:
    """Apply ``function`` in threads, results in input order, at most 8·workers in flight."""
    pending: deque[Future[_Encoded]] = deque()
    with ThreadPoolExecutor(max_workers=workers) as pool:
        for document in documents:
            pending.append(pool.submit(function, document))
            if len(pending) >= 8 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _tokens(splits: Mapping[str, Iterable[Shard]]) -> int:
    return sum(shard.tokens for shards in splits.values() for shard in shards)
