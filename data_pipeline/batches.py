"""Batches by step number: no state, no iterator, nothing to save and nothing to restore.

Guarantees: ``ids(step)`` depends on the dataset, S, B, the order, the seed and the overlay only;
asking for some rows reads only those rows, so any split of the batch over ranks gives the same
rows.
"""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline.datasets import open_stream
from data_pipeline.digests import chain_start
from data_pipeline.order import NAME
from data_pipeline.orders import open_order
from data_pipeline.overlay import Overlay


class BatchReader:
    """The training batches of one dataset under one order."""

    def __init__(
        self,
        dataset: str | Path,
        seq_len: int,
        batch_size: int,
        seed: int,
        order: str = NAME,
        overlay: str | Path | None = None,
    ) -> None:
        """Open the training split.

        Args:
            dataset: The dataset, a directory or a URL.
            seq_len: S, the inputs of a sequence.
            batch_size: B, the sequences of a step.
            seed: The data seed.
            order: One of ``orders.ORDERS``.
            overlay: File of an overlay that replaces parts of rows, or None.

        Raises:
            DatasetError: An unknown order, a dataset whose files are not there, or an overlay of
                another reading.
            ValueError: A size below 1, or too little text for one sequence.
        """
        if batch_size < 1:
            raise ValueError(f"expected batch_size >= 1, found {batch_size}")
        self.stream = open_stream(dataset)
        self.seq_len, self.batch_size, self.seed = seq_len, batch_size, seed
        self.order = open_order(order, self.stream, seq_len, seed)
        self.num_sequences = self.order.num_sequences
        self.overlay = None if overlay is None else Overlay.load(overlay)
        if self.overlay is not None:
            index = self.stream.index
            self.overlay.expect(
                index.digest, order, seed, seq_len, batch_size, index.vocab_size, index.eod
            )

    def chain_start(self) -> bytes:
        """C_{-1}: the digest of everything that decides what is read."""
        overlay = None if self.overlay is None else self.overlay.digest
        digest = self.stream.index.digest
        return chain_start(
            digest, self.seq_len, self.batch_size, self.order.name, self.seed, overlay
        )

    def sequences(self, step: int) -> npt.NDArray[np.int64]:
        """Return the sequence numbers of step ``step`` (0-based) in row order: [B]."""
        return self.order.sequences(step * self.batch_size, self.batch_size)

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
        wanted = self._wanted(rows)
        ids = self.order.rows(self.sequences(step)[wanted])
        if self.overlay is not None:
            ids = self.overlay.apply_in_place(step * self.batch_size + wanted, ids)
        return ids

    def will_need(self, step: int, rows: slice | range | None = None) -> None:
        """Start to read the files of these rows, without waiting for them; as ``ids``."""
        sequences = self.sequences(step)[self._wanted(rows)].tolist()
        spans = [span for sequence in sequences for span in self.order.spans(sequence)]
        self.stream.will_need(spans)

    def _wanted(self, rows: slice | range | None) -> npt.NDArray[np.int64]:
        chosen = range(self.batch_size)[rows] if isinstance(rows, slice) else rows
        wanted = np.arange(self.batch_size) if chosen is None else np.array(chosen, dtype=np.int64)
        if wanted.size and not 0 <= int(wanted.min()) <= int(wanted.max()) < self.batch_size:
            raise ValueError(f"expected rows in [0, {self.batch_size}), found {rows}")
        return wanted

    def describe(self, step: int) -> list[dict[str, Any]]:
        """Say which documents the rows of a step hold.

        Returns:
            Per row ``{"row", "sequence", "documents"}``; each document is ``{"source", "name",
            "record", "id", "start", "end", "offset"}``, where [start, end) are columns of the row's
            S+1 ids and ``offset`` is how many ids of the document come before this row. With an
            overlay a row that it touches also has ``"overlay"``, the names of its entries; the
            documents are those of the index.
        """
        return [
            self._described(step, row, number)
            for row, number in enumerate(self.sequences(step).tolist())
        ]

    def _described(self, step: int, row: int, sequence: int) -> dict[str, Any]:
        found = {"row": row, "sequence": sequence, "documents": self._documents(sequence)}
        if self.overlay is not None:
            entries = self.overlay.entries_at(step * self.batch_size + row)
            if entries:
                found["overlay"] = [entry.name for entry in entries]
        return found

    def _documents(self, sequence: int) -> list[dict[str, Any]]:
        described, column = [], 0
        for first, last in self.order.spans(sequence):
            for document in self.stream.documents_in(first, last):
                described.append(
                    {
                        "source": document.source,
                        "name": document.name,
                        "record": document.record,
                        "id": document.id,
                        "start": column + max(document.start, first) - first,
                        "end": column + min(document.end, last) - first,
                        "offset": max(first - document.start, 0),
                    }
                )
            column += last - first
        return described
