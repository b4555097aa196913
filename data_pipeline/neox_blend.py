"""Which file a sample comes from when GPT-NeoX blends several (``BlendableDataset``).

Position k takes the next sample of the file that lags most behind its share of max(k, 1) samples,
in float64, the first of equals. That is a recurrence: it is walked once, as far as it is asked
for, in blocks of 65,536 positions (about 3 M positions/s for two files), and kept: one byte a
position and one count a file and block. For one file nothing is walked or kept.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_BLOCK = 1 << 16
Ids = npt.NDArray[np.int64]


class Blend:
    """The files of positions [0, ``size``)."""

    def __init__(self, weights: Sequence[float], size: int) -> None:
        """Start the walk; ``weights`` are the shares of the files, which are normalised again."""
        values = np.array(weights, dtype=np.float64)
        values /= np.sum(values)
        self.size = size
        self._weights: list[float] = values.tolist()
        self._taken = [0] * len(self._weights)
        self._blocks: list[npt.NDArray[np.uint8]] = []
        self._counts = [list(self._taken)]  # of every file before every block

    def files(self, first: int, count: int) -> tuple[npt.NDArray[np.uint8], Ids]:
        """Return (file, its running number) of the positions [first, first + count).

        The caller keeps them below ``size``.
        """
        if len(self._weights) == 1:
            return np.zeros(count, dtype=np.uint8), np.arange(first, first + count, dtype=np.int64)
        if count == 0:
            return np.zeros(0, dtype=np.uint8), np.zeros(0, dtype=np.int64)
        begin, end = first // _BLOCK, (first + count - 1) // _BLOCK + 1
        self._walk(end)
        chosen = np.concatenate(self._blocks[begin:end])
        numbers = np.empty(len(chosen), dtype=np.int64)
        for file, before in enumerate(self._counts[begin]):
            mask = chosen == file
            numbers[mask] = np.arange(before, before + int(mask.sum()))
        place = first - begin * _BLOCK
        return chosen[place : place + count], numbers[place : place + count]

    def position_of(self, file: int, number: int, below: int) -> int | None:
        """Return the position below ``below`` that takes sample ``number`` of a file, or None."""
        below = min(below, self.size)
        if len(self._weights) == 1:
            return number if number < below else None
        self._walk(-(-below // _BLOCK))
        low, high = 0, len(self._blocks)
        while low < high:
            middle = (low + high) // 2
            if self._counts[middle + 1][file] > number:
                high = middle
            else:
                low = middle + 1
        if low == len(self._blocks):
            return None
        inside = np.flatnonzero(self._blocks[low] == file)[number - self._counts[low][file]]
        position = low * _BLOCK + int(inside)
        return position if position < below else None

    def _walk(self, blocks: int) -> None:
        weights, taken, files = self._weights, self._taken, range(1, len(self._weights))
        while len(self._blocks) < blocks:
            first = len(self._blocks) * _BLOCK
            chosen = bytearray(min(_BLOCK, self.size - first))
            for place in range(len(chosen)):
                wanted = float(max(first + place, 1))
                best, most = 0, weights[0] * wanted - taken[0]
                for file in files:
                    lag = weights[file] * wanted - taken[file]
                    if lag > most:
                        best, most = file, lag
                chosen[place] = best
                taken[best] += 1
            self._blocks.append(np.frombuffer(chosen, dtype=np.uint8))
            self._counts.append(list(taken))
