"""What goes wrong on the loopback Hub, told per request by a test."""

import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class Answer:
    """An HTTP answer; `declared` is the Content-Length sent (None: that of the body)."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    declared: int | None = None


@dataclass
class Fault:
    """What happens to the requests that match, after the first `skip` of them, `times` times.

    Attributes:
        method, path: the method and a regular expression that the path must contain.
        answer: sent instead of doing what was asked.
        before, after: called before the request has its effect, and after it, before the answer.
        mangle: changes the answer.
        cut_answer: bytes of the answer's body that arrive before the connection breaks; -1: not
            even the status line.
        cut_upload: bytes of the request's body that arrive before the connection breaks.
    """

    method: str
    path: str
    skip: int = 0
    times: int = 1
    answer: Answer | None = None
    before: Callable[[], None] | None = None
    after: Callable[[], None] | None = None
    mangle: Callable[[Answer], Answer] | None = None
    cut_answer: int | None = None
    cut_upload: int | None = None
    seen: int = 0

    def strikes(self, method: str, path: str) -> bool:
        if method != self.method or not re.search(self.path, path):
            return False
        self.seen += 1
        return self.skip < self.seen <= self.skip + self.times


class Faults:
    """The faults that a test has asked for; at most one strikes a request."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []
        self._lock = threading.Lock()

    def add(self, method: str, path: str, **what: object) -> Fault:
        fault = Fault(method, path, **what)
        with self._lock:
            self._faults.append(fault)
        return fault

    def clear(self) -> None:
        with self._lock:
            self._faults.clear()

    def strike(self, method: str, path: str) -> Fault:
        with self._lock:
            for fault in self._faults:
                if fault.strikes(method, path):
                    return fault
        return Fault(method, path)


def too_many(retry_after: str) -> Answer:
    return Answer(429, b"rate limit for repository commits", {"Retry-After": retry_after})


def broken(status: int = 500) -> Answer:
    return Answer(status, b"Internal Server Error")
