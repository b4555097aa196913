"""Progress lines: how much is done, how fast, and how long it will take."""

import time
from collections.abc import Callable

Progress = Callable[[str], None]

_EVERY_SECONDS = 5.0


class Meter:
    """Tells the progress of one stage, at most every few seconds and once at its end."""

    def __init__(self, say: Progress, stage: str, work: int) -> None:
        """Start the clock.

        Args:
            say: Called with a line of text.
            stage: What is being done.
            work: All there is to do, in the unit of ``advance``.
        """
        self._say, self._stage, self._work = say, stage, work
        self._done = self._size = self._tokens = 0
        self._start = self._told = time.monotonic()

    def add(self, size: int, tokens: int = 0) -> None:
        """Count ``size`` bytes of text and the tokens made of them."""
        self._size += size
        self._tokens += tokens
        if time.monotonic() - self._told >= _EVERY_SECONDS:
            self.tell()

    def advance(self, work: int) -> None:
        """Count finished work, by which the time that is left is told."""
        self._done += work

    def tell(self) -> None:
        """Say how far it is."""
        self._told = time.monotonic()
        seconds = max(self._told - self._start, 1e-9)
        line = f"{self._stage}: {self._size:,} bytes of text, {self._size / seconds / 1e6:.1f} MB/s"
        if self._tokens:
            line += f", {self._tokens / seconds:,.0f} tokens/s"
        if self._done:
            left = seconds * (self._work - self._done) / self._done
            line += f", {100 * self._done // self._work} % done, {_duration(left)} left"
        self._say(line)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
