"""Uniform integers from SHA-256: every draw is a function of a key, a label and a number.

There is no generator whose state could be anywhere else: draw k of a label is the same whatever was
drawn before under other labels, on every machine and for ever.
"""

import hashlib
import struct
from typing import Any

from data_pipeline.canonical import canonical_json

_DOMAIN = b"draws-v1\0"
_RANGE = 1 << 64


class Draws:
    """The draws of one label under one key."""

    def __init__(self, key: bytes, *label: Any) -> None:
        """Bind key and label.

        Args:
            key: 32 bytes.
            label: Strings and integers; two different lists are two different labels.

        Raises:
            ValueError: A key of another length.
        """
        if len(key) != 32:
            raise ValueError(f"expected a key of 32 bytes, found {len(key)}")
        self._head = _DOMAIN + key + hashlib.sha256(canonical_json(label)).digest()
        self._next = 0

    def below(self, n: int) -> int:
        """Return the next draw, uniform in [0, n): values above the last multiple of n are skipped.

        Raises:
            ValueError: ``n`` is not in [1, 2^64].
        """
        if not 1 <= n <= _RANGE:
            raise ValueError(f"expected n in [1, 2^64], found {n}")
        while True:
            value = self._word()
            if value < _RANGE - _RANGE % n:
                return value % n

    def shuffled(self, n: int) -> list[int]:
        """Return 0..n-1 in an order that is uniform over all orders (Fisher and Yates)."""
        order = list(range(n))
        for last in range(n - 1, 0, -1):
            other = self.below(last + 1)
            order[last], order[other] = order[other], order[last]
        return order

    def _word(self) -> int:
        digest = hashlib.sha256(self._head + struct.pack("<Q", self._next)).digest()
        self._next += 1
        return int.from_bytes(digest[:8], "little")
