"""Batches read ahead of the trainer: the ids of step t, and their digests, when they are asked for.

Guarantees: the batch of a step is that of ``BatchReader.ids``, whatever the number of workers, of
steps ahead, of ranks or of parts that a batch is cut into; there is no random generator and no
state to save, and step t is reached in the same time from anywhere. At most ``ahead`` + 1 batches
are held, so memory does not grow with the run. What fails in a worker is raised where its batch is
asked for, and the step can be asked for again. ``close`` (or leaving the ``with`` block) returns
when no worker runs.

Workers are threads: copying and hashing release the interpreter lock, and nothing is copied between
processes. A forked process starts its own threads at its first batch; fork before the first batch
where possible, since a thread may hold a lock of the C library at that moment.

    with Loader(reader, rows=rank_rows(1024, rank, world_size), digests=True) as loader:
        for batch in loader.steps(first, last):
            ...
"""

import os
import resource
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from data_pipeline.digests import sequence_digests
from data_pipeline.protocols import Ids

_COLD_STEPS = 256  # read ahead for so long after a wait; then one step finds out again


class Batches(Protocol):
    """What a loader reads: ``BatchReader``, or anything whose steps can be asked for in any order.

    ``ids`` is called from several threads at once.
    """

    batch_size: int

    def ids(self, step: int, rows: range | None = None) -> Ids:
        """Return ids [n, S+1] of the rows of a step, all B by default."""
        ...

    def will_need(self, step: int, rows: range | None = None) -> None:
        """Start to read the files of these rows, without waiting for them."""
        ...


@dataclass(frozen=True)
class Batch:
    """``ids`` [n, S+1] of the rows asked for of one step; ``digests`` are theirs, or empty."""

    step: int
    ids: Ids
    digests: tuple[bytes, ...] = ()


def rank_rows(batch_size: int, rank: int, world_size: int, part: int = 0, parts: int = 1) -> range:
    """Return the rows of one rank, or of one of the parts it accumulates gradients over.

    Ranks in order, and within a rank its parts in order, cover the batch row by row; sizes differ
    by at most one.

    Args:
        batch_size: B.
        rank: In [0, world_size).
        world_size: Ranks that share the batch.
        part: In [0, parts).
        parts: Parts of a rank's rows.

    Raises:
        ValueError: A rank or part out of its range.
    """
    if not 0 <= rank < world_size or not 0 <= part < parts:
        raise ValueError(
            f"expected rank in [0, {world_size}) and part in [0, {parts}), found {rank} and {part}"
        )
    own = _cut(range(batch_size), rank, world_size)
    return _cut(own, part, parts)


def _cut(rows: range, number: int, count: int) -> range:
    return rows[len(rows) * number // count : len(rows) * (number + 1) // count]


class Loader:
    """The rows of one rank, a few steps ahead of the one that is asked for."""

    def __init__(
        self,
        reader: Batches,
        rows: range | None = None,
        workers: int = 1,
        ahead: int = 2,
        digests: bool = False,
        read_ahead: bool | None = None,
        threads: int = 1,
    ) -> None:
        """Start nothing yet: the first batch does.

        Args:
            reader: What is read.
            rows: Rows of every batch, all of them by default; see ``rank_rows``.
            workers: Threads that prepare batches; with 0 the caller does, step by step.
            ahead: Batches that are prepared beyond the one asked for; at least 1 with workers.
            digests: Also compute the digest of every row.
            read_ahead: Ask the kernel for the files of a step before it is prepared: about five
                times the speed where the data is colder than memory. By default only while reading
                has to wait for the disk, since asking costs as much as copying where it has not.
            threads: Threads that compute the digests of one batch, beside the workers; a rank that
                shares its machine with others wants one.

        Raises:
            ValueError: A negative number of workers or steps, rows outside the batch, or no thread.
        """
        rows = range(reader.batch_size) if rows is None else rows
        if workers < 0 or ahead < min(workers, 1):
            raise ValueError(
                "expected workers >= 0 and ahead >= 0 (at least 1 with workers), found "
                f"{workers} and {ahead}"
            )
        if threads < 1:
            raise ValueError(f"expected threads >= 1, found {threads}")
        if len(rows) and not 0 <= min(rows) <= max(rows) < reader.batch_size:
            raise ValueError(f"expected rows in [0, {reader.batch_size}), found {rows}")
        self._reader, self._rows = reader, rows
        self._workers, self._ahead = workers, ahead
        self._digests, self._read_ahead, self._threads = digests, read_ahead, threads
        self._cold_until = 0  # the step up to which the data is taken to be colder than memory
        self._closed = False
        self._begin_process()

    def _begin_process(self) -> None:
        self._process = os.getpid()
        self._pool: ThreadPoolExecutor | None = None
        self._pending: dict[int, Future[Batch]] = {}
        self._advice: dict[int, Future[None]] = {}
        self._advised = range(0)

    def batch(self, step: int) -> Batch:
        """Return the batch of ``step`` (0-based); a step out of turn is a seek.

        Raises:
            ValueError: A negative step.
            RuntimeError: The loader is closed.
            Exception: Whatever reading it raised.
        """
        return self._batch(step, None)

    def steps(self, first: int, stop: int | None = None) -> Iterator[Batch]:
        """Yield the batches of steps [first, stop), or without end; nothing beyond is prepared."""
        step = first
        while stop is None or step < stop:
            yield self._batch(step, stop)
            step += 1

    def close(self) -> None:
        """Wait for the workers to end and drop what they prepared; closing twice is fine."""
        self._closed = True
        if self._pool is not None and self._process == os.getpid():
            self._pool.shutdown(wait=True, cancel_futures=True)
        self._pool, self._pending, self._advice = None, {}, {}

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _batch(self, step: int, stop: int | None) -> Batch:
        if step < 0:
            raise ValueError(f"expected step >= 0, found {step}")
        if self._closed:
            raise RuntimeError("expected an open loader, found a closed one; make another")
        if self._process != os.getpid():
            self._begin_process()
        end = step + 1 + self._ahead
        window = range(step, end if stop is None else min(end, stop))
        # One step further is asked of the kernel, so that it is read before it is prepared.
        advised = range(step, end + 1 if stop is None else min(end + 1, stop))
        if self._read_ahead is False or (self._read_ahead is None and step >= self._cold_until):
            advised = range(0)
        if self._workers == 0:
            return self._prepare_here(step, advised)
        self._schedule(window, advised)
        if step in self._advice:
            self._advice[step].result()
        return self._pending.pop(step).result()

    def _prepare_here(self, step: int, advised: range) -> Batch:
        known, self._advised = self._advised, advised
        for one in advised:
            if one not in known:
                self._reader.will_need(one, self._rows)
        return self._prepare(step)

    def _schedule(self, window: range, advised: range) -> None:
        """Have the steps of the window read ahead and prepared; forget all others."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._workers, thread_name_prefix="tripod-loader")
        for pending, wanted in ((self._pending, window), (self._advice, advised)):
            for step in [step for step in pending if step not in wanted]:
                pending.pop(step).cancel()
        for step in advised:
            if step not in self._advice:
                self._advice[step] = self._pool.submit(self._reader.will_need, step, self._rows)
        for step in window:
            if step not in self._pending:
                self._pending[step] = self._pool.submit(self._prepare, step)

    def _prepare(self, step: int) -> Batch:
        faults = _waits_for_disk()
        ids = self._reader.ids(step, self._rows)
        if _waits_for_disk() > faults:
            self._cold_until = step + _COLD_STEPS
        digests = sequence_digests(ids, self._threads) if self._digests else ()
        return Batch(step, ids, tuple(digests))


def _waits_for_disk() -> int:
    """How often this process has waited for a page of a mapped file (major faults)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_majflt
