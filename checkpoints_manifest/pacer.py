"""How fast a publisher may go: limits as sliding windows, on a clock that the caller gives.

The Hub allows 128 commits an hour to a repository and, to a free account, 1,000 calls in five
minutes (docs/publishing.md names the sources). A window counts what was done in the last so many
seconds; nothing is done that would go over. What the Hub answers goes before what is computed here:
`back_off` lets nothing through until the time it named.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Limit:
    """At most `count` in any `seconds`."""

    count: int
    seconds: float


HUB_LIMITS = {"commit": Limit(128, 3600.0), "call": Limit(1000, 300.0)}


class Pacer:
    """Sliding windows by kind of action.

    Args:
        limits: by kind.
        clock: seconds, never going back.
        sleep: waits so many seconds.
    """

    def __init__(
        self,
        limits: Mapping[str, Limit] = HUB_LIMITS,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._limits, self._clock, self._sleep = dict(limits), clock, sleep
        self._done: dict[str, deque[float]] = {kind: deque() for kind in limits}
        self._not_before = clock()
        # Downloads run in threads; who waits for a window makes the others wait behind it.
        self._lock = threading.RLock()

    def seed(self, kind: str, ages: Iterable[float]) -> None:
        """Counts what an earlier process did: seconds since each action."""
        now = self._clock()
        times = [*self._done[kind], *(now - max(age, 0.0) for age in ages)]
        self._done[kind] = deque(sorted(times))

    def delay(self, kind: str, count: int = 1) -> float:
        """Seconds until `count` actions of a kind may be done."""
        return max(self._ready(kind, count, self._clock()) - self._clock(), 0.0)

    def take(self, kind: str, count: int = 1) -> float:
        """Waits until `count` actions may be done, and counts them; returns the seconds waited."""
        waited = 0.0
        with self._lock:
            while (seconds := self.delay(kind, count)) > 0:
                self._sleep(seconds)
                waited += seconds
            self._done[kind].extend([self._clock()] * count)
        return waited

    def back_off(self, seconds: float) -> None:
        """Lets nothing through for so many seconds."""
        self._not_before = max(self._not_before, self._clock() + seconds)

    def rest(self, seconds: float) -> None:
        """Waits, whatever the windows say: between two attempts."""
        self._sleep(seconds)

    def eta(self, work: Mapping[str, int]) -> float:
        """Seconds that the limits impose before the last of `work` (count by kind) is done."""
        now = self._clock()
        longest = self._not_before - now
        for kind, count in work.items():
            limit = self._limits[kind]
            recent = [done for done in self._done[kind] if done > now - limit.seconds]
            # Each full window after the first costs its length; a started one counts from its
            # oldest action.
            over = len(recent) + count - limit.count
            if over <= 0:
                continue
            rounds, place = divmod(over - 1, limit.count)
            times = recent + [now] * count
            longest = max(longest, times[place] - now + (rounds + 1) * limit.seconds)
        return max(longest, 0.0)

    def _ready(self, kind: str, count: int, now: float) -> float:
        limit, done = self._limits[kind], self._done[kind]
        if count > limit.count:
            raise ValueError(f"{count} {kind}s at once can never be done: the limit is {limit}")
        while done and done[0] + limit.seconds <= now:
            done.popleft()
        over = len(done) + count - limit.count
        free = done[over - 1] + limit.seconds if over > 0 else now
        return max(free, self._not_before)


def spell(seconds: float) -> str:
    """A duration for people: `45 s`, `1 h 12 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
