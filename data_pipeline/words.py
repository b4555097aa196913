"""Words and n-grams of a text as 64-bit hashes, to find near-duplicates and evaluation text by.

Guarantees: the result depends on the text only, not on the Unicode tables of a Python version, a
hash seed or a machine. Letters A to Z count as a to z; what separates words is every ASCII
character that is neither letter nor digit, general punctuation (U+2000 to U+206F), the rest of
Latin-1 below U+00C0, and CJK and full-width punctuation. Han characters and kana, which are
written without spaces, are a word each; every other run of characters is one word.

Does not guarantee: that different n-grams have different hashes (chance of a false hit: number of
n-grams on the one side times that on the other, over 2^64).
"""

import hashlib
import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

U64Array = npt.NDArray[np.uint64]

_WORD = re.compile(
    "[0-9a-z\u00c0-\u1fff\u2070-\u2e7f\ua000-\uf8ff\ufb00-\ufeff"
    "\uff10-\uff19\uff21-\uffff\U00010000-\U0001ffff]+"
    "|[\u2e80-\u2fff\u3040-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)
_MULTIPLIER = 0x9E3779B97F4A7C15
_KEPT_HASHES = 1 << 18


class _Table(dict[str, int]):
    """Hashes of the words met so far: the same few thousand words make up most text."""

    def __missing__(self, word: str) -> int:
        if len(self) >= _KEPT_HASHES:
            self.clear()
        digest = hashlib.blake2b(word.encode("utf-8"), digest_size=8).digest()
        self[word] = value = int.from_bytes(digest, "little")
        return value


_table = _Table()


def words(text: str) -> list[str]:
    """Return the words of a text, as the module docstring defines them."""
    return _WORD.findall(text.encode("utf-8").lower().decode("utf-8"))


def ngram_hashes(tokens: Sequence[str], n: int) -> U64Array:
    """Return the hash of every run of n words, in order.

    Args:
        tokens: k words.
        n: At least 1.

    Returns:
        uint64 [max(0, k - n + 1)]: the sum over j < n of h(word j) · m^(n-1-j) modulo 2^64, with
        h the 8 bytes of BLAKE2b-64 read as a little-endian integer and m = 0x9e3779b97f4a7c15.
    """
    if n < 1:
        raise ValueError(f"expected n >= 1, found {n}")
    size = len(tokens) - n + 1
    if size < 1:
        return np.zeros(0, dtype=np.uint64)
    hashes = np.fromiter(map(_table.__getitem__, tokens), dtype=np.uint64, count=len(tokens))
    total = np.zeros(size, dtype=np.uint64)
    for place in range(n):
        total = total * np.uint64(_MULTIPLIER) + hashes[place : place + size]
    return total
