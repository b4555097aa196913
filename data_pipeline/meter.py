"""Progress lines: how much is done, how fast, and how long it will take."""

import time
from collections.abc import Callable

Progress = Callable[[str], None]

_EVERY_SECONDS = 5.0


class Meter:
    """Tells the progress of one stage, at most every few seconds and once at its end."""

    def __init__(self, say: Progress, stage: str, total_bytes: int, done_bytes: int = 0) -> None:
        """Start the clock; ``done_bytes`` of the total were done by an earlier process."""
        self._say, self._stage, self._total = say, stage, total_bytes
        self._done, self._before = done_bytes, done_bytes
        self._tokens = 0
        self._start = self._told = time.monotonic()

    def add(self, size: int, tokens: int = 0) -> None:
        """Count ``size`` bytes of text and the tokens made of them."""
        self._done += size
        self._tokens += tokens
        if time.monotonic() - self._told >= _EVERY_SECONDS:
            self.tell()

    def tell(self) -> None:
        """Say how far it is."""
        self._told = time.monotonic()
        seconds = max(self._told - self._start, 1e-9)
        rate = (self._done - self._before) / seconds
        line = f"{self._stage}: {self._done:,} of {self._total:,} bytes, {rate / 1e6:.1f} MB/s"
        if self._tokens:
            line += f", {self._tokens / seconds:,.0f} tokens/s"
        if rate > 0 and self._done < self._total:
            line += f", {_duration((self._total - self._done) / rate)} left"
        self._say(line)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
