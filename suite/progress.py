"""One progress line: rung, step, loss, tokens/s, ETA."""

from __future__ import annotations

import sys
import time

from suite.config import RunConfig


def progress_line(
    rung: str, step: int, steps: int, loss: float, tokens_per_s: float, eta_s: float
) -> str:
    """The line as users see it."""
    minutes, seconds = divmod(round(eta_s), 60)
    return (
        f"{rung:<18} step {step:>6}/{steps}  loss {loss:7.4f}  {tokens_per_s:>9,.0f} tok/s  "
        f"ETA {minutes:d}:{seconds:02d}"
    )


class Progress:
    """Prints the line: rewritten in place on a terminal, every tenth of the run elsewhere."""

    def __init__(self, config: RunConfig, first_step: int, enabled: bool) -> None:
        self.rung, self.steps = config.rung.name, config.train.steps
        self.first, self.batch_tokens = first_step, config.batch_tokens
        self.enabled, self.tty = enabled, sys.stdout.isatty()
        self.started = self.shown = time.perf_counter()
        self._open = False

    def update(self, step: int, loss: float) -> None:
        """Shows that `step` updates are done."""
        now = time.perf_counter()
        due = now - self.shown > 0.5 if self.tty else step % max(1, self.steps // 10) == 0
        if not self.enabled or not (due or step == self.steps):
            return
        self.shown = now
        rate = (step - self.first) / max(now - self.started, 1e-9)
        line = progress_line(
            self.rung, step, self.steps, loss, rate * self.batch_tokens, (self.steps - step) / rate
        )
        print(f"\r{line}\033[K" if self.tty else line, end="" if self.tty else "\n", flush=True)
        self._open = self.tty

    def finish(self) -> None:
        """Ends the line."""
        if self._open:
            print(flush=True)
