"""One function over many inputs, in worker processes, results in input order.

Guarantees: results come in the order of the inputs whatever the number of workers; at most
2·workers + 2 inputs are in flight, so memory is bounded by their size; an exception in a worker is
raised here, and so is a worker that died; workers end with the process that started them, even
when it is killed. Workers are spawned, never forked: forking is unsafe beside threads. As with
every spawned process, a script that calls this with workers needs ``if __name__ == "__main__":``.
"""

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import connection, get_context, parent_process
from typing import Any, Generic, TypeVar

Input = TypeVar("Input")
Output = TypeVar("Output")

_task: Callable[[Any], Any] | None = None


def chunked(
    items: Iterable[Input], size: Callable[[Input], int], limit: int, most: int
) -> Iterator[list[Input]]:
    """Cut a stream into lists of bounded size; an item over the limit stands alone.

    Args:
        items: The stream.
        size: Size of an item.
        limit: Largest sum of sizes of a list.
        most: Largest number of items of a list.
    """
    chunk: list[Input] = []
    total = 0
    for item in items:
        if chunk and (total + size(item) > limit or len(chunk) == most):
            yield chunk
            chunk, total = [], 0
        chunk.append(item)
        total += size(item)
    if chunk:
        yield chunk


class Workers(Generic[Input, Output]):
    """A task, bound to processes that end with the ``with`` block."""

    def __init__(self, task: Callable[[Input], Output], workers: int) -> None:
        """Prepare.

        Args:
            task: A function or object that can be pickled; each worker gets one copy, once.
            workers: Number of processes; with 1 the task runs in this one.

        Raises:
            ValueError: ``workers`` is below 1.
        """
        if workers < 1:
            raise ValueError(f"expected workers >= 1, found {workers}")
        self._task, self._workers = task, workers
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> "Workers[Input, Output]":
        if self._workers > 1:
            self._pool = ProcessPoolExecutor(
                self._workers, get_context("spawn"), _start_worker, (self._task,)
            )
        return self

    def __exit__(self, *error: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def map(self, inputs: Iterable[Input]) -> Iterator[tuple[Input, Output]]:
        """Yield every input with its output, in order."""
        if self._pool is None:
            for one in inputs:
                yield one, self._task(one)
            return
        pending: deque[tuple[Input, Future[Output]]] = deque()
        for one in inputs:
            pending.append((one, self._pool.submit(_run, one)))
            if len(pending) > 2 * self._workers + 1:
                done, future = pending.popleft()
                yield done, future.result()
        while pending:
            done, future = pending.popleft()
            yield done, future.result()


def _start_worker(task: Callable[[Any], Any]) -> None:
    global _task
    _task = task
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's; it ends its workers
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A pool's workers wait for ever on a parent that was killed: they hold both pipe ends."""
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def _run(one: Any) -> Any:
    assert _task is not None
    return _task(one)
