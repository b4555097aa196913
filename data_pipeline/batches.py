"""Batches by step number: no state, no iterator, nothing to save and nothing to restore.

Guarantees: ``ids(step)`` depends on the dataset, S, B, the order and the seed only; asking for
some rows reads only those rows, so any split of the batch over ranks gives the same rows.
"""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline.errors import DatasetError
from data_pipeline.order import NAME, OrderV1
from data_pipeline.shards import TokenStream


class BatchReader:
    """The training batches of one dataset under one order."""

    def __init__(
        self,
        dataset_dir: str | Path,
        seq_len: int,
        batch_size: int,
        seed: int,
        order: str = NAME,
    ) -> None:
        """Open the training split.

        Args:
            dataset_dir: The dataset.
            seq_len: S, the inputs of a sequence.
            batch_size: B, the sequences of a step.
            seed: The data seed.
            order: ``order-v1``.

        Raises:
            DatasetError: An unknown order, or a dataset whose files are not there.
            ValueError: A size below 1, or too little text for one sequence.
        """
        if order != NAME:
            raise DatasetError(f"data.order: expected one of ['{NAME}'], found {order!r}")
        if batch_size < 1:
            raise ValueError(f"expected batch_size >= 1, found {batch_size}")
        self.stream = TokenStream(dataset_dir)
        self.seq_len, self.batch_size = seq_len, batch_size
        self.num_sequences = self.stream.num_sequences(seq_len)
        self.order = OrderV1(self.num_sequences, self.stream.index.digest, seed)

    def sequences(self, step: int) -> npt.NDArray[np.int64]:
        """Return the sequence numbers of step ``step`` (0-based) in row order: [B]."""
        return self.order.step_sequences(step, self.batch_size)

    def ids(self, step: int, rows: slice | range | None = None) -> npt.NDArray[np.int64]:
        """Return token ids of a step.

        Args:
            step: 0-based.
            rows: Rows of the batch; all of them by default.

        Returns:
            int64 [n, S+1]: inputs are columns 0..S-1, targets columns 1..S.

        Raises:
            ValueError: A negative step, or rows outside the batch.
        """
        chosen = range(self.batch_size)[rows] if isinstance(rows, slice) else rows
        wanted = np.arange(self.batch_size) if chosen is None else np.array(chosen, dtype=np.int64)
        if wanted.size and not 0 <= int(wanted.min()) <= int(wanted.max()) < self.batch_size:
            raise ValueError(f"expected rows in [0, {self.batch_size}), found {rows}")
        return self.stream.sequences(self.sequences(step)[wanted], self.seq_len)

    def describe(self, step: int) -> list[dict[str, Any]]:
        """Say which documents the rows of a step hold.

        Returns:
            Per row ``{"row", "sequence", "documents"}``; each document is ``{"source", "name",
            "start", "end", "offset"}``, where [start, end) are columns of the row's S+1 ids and
            ``offset`` is how many ids of the document come before this row.
        """
        return [
            {"row": row, "sequence": number, "documents": self._documents(number)}
            for row, number in enumerate(self.sequences(step).tolist())
        ]

    def _documents(self, sequence: int) -> list[dict[str, Any]]:
        first = sequence * self.seq_len
        last = first + self.seq_len + 1
        return [
            {
                "source": document.source,
                "name": document.name,
                "start": max(document.start, first) - first,
                "end": min(document.end, last) - first,
                "offset": max(first - document.start, 0),
            }
            for document in self.stream.documents_in(first, last)
        ]
