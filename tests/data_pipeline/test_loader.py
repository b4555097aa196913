import gc
import multiprocessing
import resource
import threading
from collections import deque
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.digests import sequence_digests
from data_pipeline.gather import gather_rows, will_need
from data_pipeline.loader import Loader, rank_rows
from data_pipeline.order import OrderV1

S, B = 16, 24


class Reader:
    """Batches of a stream in memory under order-v1; remembers what was asked of it."""

    batch_size = B

    def __init__(self, seq_len=S, batch_size=B):
        self.seq_len, self.batch_size = seq_len, batch_size
        ids = np.random.RandomState(0).randint(0, 60_000, 5000).astype(np.uint16)
        self.starts = np.array([0, 1700, 3100, 5000])
        self.shards = [ids[a:b] for a, b in [(0, 1700), (1700, 3100), (3100, 5000)]]
        self.order = OrderV1((len(ids) - 1) // seq_len, "00" * 32, 5)
        self.read, self.advised, self.fail = deque(maxlen=99), deque(maxlen=99), {}

    def offsets(self, step, rows):
        numbers = self.order.sequences(step * self.batch_size, self.batch_size)
        return (numbers if rows is None else numbers[list(rows)]) * self.seq_len

    def ids(self, step, rows=None):
        self.read.append(step)
        if step in self.fail:
            raise self.fail[step]
        offsets = self.offsets(step, rows)
        return gather_rows(self.shards.__getitem__, self.starts, offsets, self.seq_len + 1)

    def will_need(self, step, rows=None):
        self.advised.append(step)
        will_need(self.shards.__getitem__, self.starts, self.offsets(step, rows), self.seq_len + 1)


@pytest.fixture
def reader():
    return Reader()


@pytest.mark.parametrize("workers", [0, 1, 2, 5])
@pytest.mark.parametrize("ahead", [1, 2, 7])
def test_batches_are_those_of_the_reader_for_any_number_of_workers(reader, workers, ahead):
    with Loader(reader, workers=workers, ahead=ahead, digests=True) as loader:
        for step, batch in zip(range(40), loader.steps(0), strict=False):
            expected = Reader().ids(step)
            assert batch.step == step
            assert np.array_equal(batch.ids, expected)
            assert list(batch.digests) == sequence_digests(expected)


@pytest.mark.parametrize("workers", [0, 2])
def test_threads_that_hash_change_no_digest(workers):
    wide = Reader(batch_size=100)
    with Loader(wide, workers=workers, digests=True, threads=3) as loader:
        for batch in loader.steps(0, 4):
            assert list(batch.digests) == sequence_digests(wide.ids(batch.step))


@pytest.mark.parametrize("world", range(1, 9))
def test_ranks_and_gradient_parts_joined_are_the_batch(world):
    for parts in (1, 2, 3, B):
        joined = []
        for rank in range(world):
            for part in range(parts):
                rows = rank_rows(B, rank, world, part, parts)
                with Loader(Reader(), rows, workers=rank % 3, digests=True) as loader:
                    joined.append(loader.batch(7))
        whole = Reader().ids(7)
        assert np.array_equal(np.concatenate([batch.ids for batch in joined]), whole)
        assert [d for batch in joined for d in batch.digests] == sequence_digests(whole)


@pytest.mark.parametrize("workers", [0, 2])
def test_any_step_is_reached_at_once_and_in_any_order(reader, workers):
    steps = [10**9, 0, 3, 2, 1, 10**6, 10**6 + 1, 10**6 + 5, 10**6 + 2, 3]
    with Loader(reader, workers=workers, ahead=2) as loader:
        for step in steps:
            assert np.array_equal(loader.batch(step).ids, Reader().ids(step))
    assert len(reader.read) <= 3 * len(steps)


def test_no_batch_beyond_the_last_step_is_read_or_asked_for(reader):
    with Loader(reader, workers=2, ahead=4, read_ahead=True) as loader:
        assert [batch.step for batch in loader.steps(5, 9)] == [5, 6, 7, 8]
        assert list(loader.steps(9, 9)) == []
    assert sorted(reader.read) == [5, 6, 7, 8] == sorted(reader.advised)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_step_is_asked_of_the_kernel_once_and_before_it_is_read(reader, workers):
    with Loader(reader, workers=workers, ahead=2, read_ahead=True) as loader:
        list(loader.steps(0, 10))
    assert list(reader.advised) == list(range(10))
    quiet = Reader()
    with Loader(quiet, workers=workers, read_ahead=False) as loader:
        list(loader.steps(0, 10))
    assert not quiet.advised


@pytest.mark.parametrize("workers", [0, 2])
def test_the_kernel_is_asked_only_while_reading_waits_for_the_disk(reader, monkeypatch, workers):
    """Steps 20 to 29 wait unless they were asked for; a wait is remembered for 256 steps."""
    waits = [0]
    ids = reader.ids
    reader.advised = deque()

    def wait_where_cold(step, rows=None):
        waits[0] += 20 <= step < 30 and step not in reader.advised
        return ids(step, rows)

    monkeypatch.setattr(reader, "ids", wait_where_cold)
    monkeypatch.setattr("data_pipeline.loader._waits_for_disk", lambda: waits[0])
    with Loader(reader, workers=workers, ahead=2) as loader:
        list(loader.steps(0, 20 - 2))
        assert not reader.advised
        list(loader.steps(18, 400))
    assert 1 <= waits[0] <= 5
    assert 30 in reader.advised and 299 not in reader.advised


def test_what_fails_in_a_worker_is_raised_at_its_step_and_can_be_tried_again(reader):
    reader.fail[3] = OSError("disk on fire")
    with Loader(reader, workers=2, ahead=3) as loader:
        assert [loader.batch(step).step for step in range(3)] == [0, 1, 2]
        with pytest.raises(OSError, match="disk on fire"):
            loader.batch(3)
        del reader.fail[3]
        assert np.array_equal(loader.batch(3).ids, Reader().ids(3))
        assert loader.batch(4).step == 4


def test_read_ahead_that_fails_is_raised_at_its_step(reader, monkeypatch):
    def will_need(step, rows=None):
        if step == 2:
            raise OSError("no such shard")

    monkeypatch.setattr(reader, "will_need", will_need)
    with Loader(reader, workers=1, ahead=2, read_ahead=True) as loader:
        assert [loader.batch(step).step for step in range(2)] == [0, 1]
        with pytest.raises(OSError, match="no such shard"):
            loader.batch(2)


def loader_threads():
    return [t for t in threading.enumerate() if t.name.startswith("tripod-loader")]


def test_no_thread_is_left_after_close_and_a_closed_loader_says_so(reader):
    loader = Loader(reader, workers=3, ahead=6)
    assert loader_threads() == []  # nothing starts before the first batch
    loader.batch(0)
    assert loader_threads()
    loader.close()
    loader.close()
    assert loader_threads() == []
    with pytest.raises(RuntimeError, match="expected an open loader"):
        loader.batch(1)


def test_an_exception_in_the_with_block_ends_the_workers(reader):
    with pytest.raises(ZeroDivisionError), Loader(reader, workers=2) as loader:
        loader.batch(0)
        raise ZeroDivisionError
    assert loader_threads() == []


def child(loader, queue):
    queue.put((loader.batch(4).ids, len(loader_threads())))


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning")
def test_a_forked_process_starts_its_own_workers(reader):
    with Loader(reader, workers=1, ahead=2) as loader:
        loader.batch(3)
        context = multiprocessing.get_context("fork")
        queue = context.Queue()
        process = context.Process(target=child, args=(loader, queue))
        process.start()
        ids, threads = queue.get(timeout=60)
        process.join(60)
        assert process.exitcode == 0
        assert threads == 1
        assert np.array_equal(ids, Reader().ids(4))
        assert np.array_equal(loader.batch(4).ids, ids)


def resident():
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_memory_is_flat_over_two_thousand_batches():
    """Two thousand batches of 49 kB: one in five kept would be 20 MB."""
    sizes = []
    with Loader(Reader(seq_len=256), workers=2, ahead=3, digests=True) as loader:
        for batch in loader.steps(0, 2000):
            if batch.step % 400 == 399:
                gc.collect()
                sizes.append(resident())
    assert max(sizes) - sizes[0] < 5 << 20


def test_the_state_of_random_generators_is_neither_read_nor_changed(reader):
    with Loader(reader, workers=2) as loader:
        np.random.seed(1)
        before, first = np.random.get_state()[1].copy(), loader.batch(0).ids
        assert np.array_equal(np.random.get_state()[1], before)
    np.random.seed(2)
    with Loader(Reader(), workers=1) as loader:
        assert np.array_equal(loader.batch(0).ids, first)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"workers": -1}, "workers >= 0"),
        ({"ahead": -1}, "ahead >= 0"),
        ({"ahead": 0}, "at least 1 with workers"),
        ({"rows": range(20, 25)}, r"rows in \[0, 24\)"),
        ({"rows": range(-1, 5)}, r"rows in \[0, 24\)"),
    ],
)
def test_bad_arguments_are_refused(reader, arguments, message):
    with pytest.raises(ValueError, match=message):
        Loader(reader, **arguments)


@pytest.mark.parametrize("arguments", [(-1, 4), (4, 4), (0, 4, 2, 2), (0, 4, -1, 2), (0, 0)])
def test_rows_of_a_rank_that_does_not_exist_are_refused(arguments):
    with pytest.raises(ValueError, match="expected rank in"):
        rank_rows(B, *arguments)
    with pytest.raises(ValueError, match="step >= 0"):
        Loader(Reader(), workers=0).batch(-1)


def test_the_rows_of_ranks_and_parts_are_a_partition_in_order():
    for batch_size in (1, 2, 7, 24, 1024):
        for world in range(1, 9):
            for parts in (1, 2, 5):
                rows = [
                    row
                    for rank in range(world)
                    for part in range(parts)
                    for row in rank_rows(batch_size, rank, world, part, parts)
                ]
                assert rows == list(range(batch_size))
