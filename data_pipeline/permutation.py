"""PRP v1: a keyed permutation of the integers 0..N-1 that needs no table.

An 8-round Feistel network over the smallest domain 2^(2w) >= N, cycle-walked back into [0, N),
with round keys by SHA-256. Any position and its inverse are computed alone, in constant memory,
with integer operations only, so the result cannot depend on a library's random generator, on
floating point or on the length of a run. Formula and test vectors: ``docs/spec/permutation.md``.

Guarantees: a bijection for every N in [1, 2^62], tested where published index permutations failed
(N = 2^k and 2^k ± 1). Does not guarantee: secrecy. It is not a cipher.
"""

import hashlib
import struct

import numpy as np
import numpy.typing as npt

U64Array = npt.NDArray[np.uint64]

ROUNDS = 8
MAX_SIZE = 1 << 62
_DOMAIN = b"prp/feistel/v1\0"
_BLOCK = 1 << 17  # indices that are walked together: the long tail of a walk costs calls, not work
_CHUNK = 1 << 14  # indices of one pass: four arrays of 128 kB stay in the second-level cache
_FEW = 8  # measured: down from here Python's integers are faster than calls of NumPy
_MULTIPLIER_1, _MULTIPLIER_2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_64_BITS = (1 << 64) - 1


def _constant(value: int) -> U64Array:
    """An array without dimensions: NumPy takes it as it is, a scalar it converts at every call."""
    return np.array(value, dtype=np.uint64)


_MIX_1, _MIX_2 = _constant(_MULTIPLIER_1), _constant(_MULTIPLIER_2)
_30, _27 = _constant(30), _constant(27)


def _round_keys(size: int, seed: bytes, epoch: int) -> tuple[int, ...]:
    head = _DOMAIN + seed + struct.pack("<QQ", size, epoch)
    digests = (hashlib.sha256(head + struct.pack("<I", r)).digest() for r in range(ROUNDS))
    return tuple(int.from_bytes(digest[:8], "little") for digest in digests)


class Permutation:
    """One permutation π of 0..n-1, named by (n, seed, epoch)."""

    def __init__(self, n: int, seed: bytes, epoch: int) -> None:
        """Derive the round keys.

        Args:
            n: Number of elements, 1 to 2^62.
            seed: 32 bytes.
            epoch: 0 to 2^64 - 1; every epoch is another permutation.

        Raises:
            ValueError: An argument out of its range.
        """
        if not 1 <= n <= MAX_SIZE:
            raise ValueError(f"expected n in [1, 2^62], found {n}")
        if len(seed) != 32:
            raise ValueError(f"expected a seed of 32 bytes, found {len(seed)}; use order_seed()")
        if not 0 <= epoch < 1 << 64:
            raise ValueError(f"expected epoch in [0, 2^64), found {epoch}")
        self.n = n
        keys = _round_keys(n, seed, epoch)
        self._forward, self._inverse = keys, keys[::-1]
        self._constants = {k: tuple(map(_constant, k)) for k in (self._forward, self._inverse)}
        half_bits = (max(2, (n - 1).bit_length()) + 1) // 2
        self._half_bits = half_bits
        self._w, self._shift = _constant(half_bits), _constant(64 - half_bits)
        self._mask = _constant((1 << half_bits) - 1)

    def forward(self, x: npt.ArrayLike) -> U64Array:
        """Return π(x) for every element.

        Args:
            x: Integers in [0, n), of any shape.

        Returns:
            uint64 array of the same shape.

        Raises:
            ValueError: An element outside [0, n), or not an integer.
        """
        return self._apply(x, self._forward)

    def inverse(self, y: npt.ArrayLike) -> U64Array:
        """Return the x with π(x) = y for every element; arguments and errors as ``forward``."""
        # The network swaps the halves at its end, so reversing the keys inverts it.
        return self._apply(y, self._inverse)

    def _apply(self, x: npt.ArrayLike, keys: tuple[int, ...]) -> U64Array:
        values = _as_uint64(x, self.n)
        flat = values.reshape(-1)
        out = np.empty_like(flat)
        for start in range(0, flat.size, _BLOCK):
            out[start : start + _BLOCK] = self._walk(flat[start : start + _BLOCK], keys)
        return out.reshape(values.shape)

    def _walk(self, x: U64Array, keys: tuple[int, ...]) -> U64Array:
        """Repeat the network on the elements that left [0, n): at most 4 times on average."""
        out = self._network(x, keys)
        outside = np.flatnonzero(out >= self.n)
        while outside.size > _FEW:
            again = self._network(out[outside], keys)
            out[outside] = again
            outside = outside[again >= self.n]
        for place in outside.tolist():
            out[place] = self._walk_one(int(out[place]), keys)
        return out

    def _network(self, x: U64Array, keys: tuple[int, ...]) -> U64Array:
        out = np.empty_like(x)
        for start in range(0, x.size, _CHUNK):
            self._rounds(x[start : start + _CHUNK], keys, out[start : start + _CHUNK])
        return out

    def _rounds(self, x: U64Array, keys: tuple[int, ...], out: U64Array) -> None:
        """Eight rounds, in place: the round function is the splitmix64 finaliser modulo 2^64.

        The finaliser's last step, ``z ^= z >> 31``, is left out: only the top w <= 31 bits of z are
        used, and none of the bits that it changes is among them.
        """
        left, right = x >> self._w, x & self._mask
        z, shifted = np.empty_like(x), np.empty_like(x)
        for key in self._constants[keys]:
            np.bitwise_xor(right, key, z)
            np.right_shift(z, _30, shifted)
            np.bitwise_xor(z, shifted, z)
            np.multiply(z, _MIX_1, z)
            np.right_shift(z, _27, shifted)
            np.bitwise_xor(z, shifted, z)
            np.multiply(z, _MIX_2, z)
            np.right_shift(z, self._shift, z)
            np.bitwise_xor(left, z, left)
            left, right = right, left
        np.left_shift(right, self._w, right)
        np.bitwise_or(right, left, out)

    def _walk_one(self, x: int, keys: tuple[int, ...]) -> int:
        """The same for one number that left [0, n), in Python's integers: no call overhead."""
        w, shift = self._half_bits, 64 - self._half_bits
        mask = (1 << w) - 1
        while x >= self.n:
            left, right = x >> w, x & mask
            for key in keys:
                z = right ^ key
                z = ((z ^ (z >> 30)) * _MULTIPLIER_1) & _64_BITS
                z = ((z ^ (z >> 27)) * _MULTIPLIER_2) & _64_BITS
                left, right = right, left ^ (z >> shift)
            x = (right << w) | left
        return x


def _as_uint64(x: npt.ArrayLike, n: int) -> U64Array:
    values = np.asarray(x)
    if values.size == 0:
        return np.zeros(values.shape, dtype=np.uint64)
    if not np.issubdtype(values.dtype, np.integer):
        raise ValueError(f"expected integers in [0, {n}), found dtype {values.dtype}")
    low, high = int(values.min()), int(values.max())
    if low < 0 or high >= n:
        raise ValueError(f"expected integers in [0, {n}), found {low if low < 0 else high}")
    return values.astype(np.uint64)
