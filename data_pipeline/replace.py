"""Other text in place of chosen documents, as an overlay: what would the model be without them?

Every exposure of a document in a range of steps gets its entries, in every row that holds a part of
it, border ids included; nothing else changes. The new text takes exactly the ids that the old one
took, because the order is fixed: a longer one is cut, a shorter one is filled up by a declared
policy, and the document's end mark stays where it is.

Policies: ``repeat`` writes an end mark and the text again, as often as it fits (the last time cut);
``eod`` fills with end marks.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from data_pipeline.canary_study import Encode
from data_pipeline.errors import DatasetError
from data_pipeline.overlay import DOCUMENT, Binding, Entry, Overlay, entry_place
from data_pipeline.protocols import DocumentRef, Ids, Order

FILLS = ("repeat", "eod")


class Documents(Protocol):
    """What is needed of a stream."""

    def document(self, index: int) -> DocumentRef:
        """Return the document with this number."""
        ...

    def read(self, offset: int, count: int) -> Ids:
        """Return ids of the stream."""
        ...


def replace_documents(
    stream: Documents,
    order: Order,
    binding: Binding,
    texts: Mapping[int, str],
    upto_step: int,
    encode: Encode,
    fill: str = "repeat",
    from_step: int = 0,
) -> Overlay:
    """Make the overlay that reads other texts in place of documents.

    Args:
        stream: The documents.
        order: Which rows hold them, and when those are read.
        binding: The reading.
        texts: New text by the number of the document in the stream.
        upto_step: Exposures in steps below it are replaced.
        encode: Ids of a text, by the tokenizer of the dataset.
        fill: ``repeat`` or ``eod``, for a text shorter than the document.
        from_step: Exposures in steps below it are left alone.

    Returns:
        An overlay of kind ``document``; an entry's name is ``document <number>``.

    Raises:
        DatasetError: An unknown policy, a text without ids, or no exposure in these steps.
        ValueError: A document that the stream does not have.
    """
    if fill not in FILLS:
        raise DatasetError(f"fill: expected one of {FILLS}, found {fill!r}")
    if binding.eod is None:
        raise DatasetError("expected a dataset with an end-of-document id, found none")
    replaced = range(from_step * binding.batch_size, upto_step * binding.batch_size)
    entries: list[Entry] = []
    for number, text in texts.items():
        document = stream.document(number)
        start, end = document.start, document.end
        marked = int(stream.read(end - 1, 1)[0]) == binding.eod
        ids = fit(encode(text), end - start - marked, binding.eod, fill)
        name = f"document {number}"
        for sequence, column in order.holding(start, start + ids.size) if ids.size else []:
            first, last = max(column, 0), min(column + ids.size, order.seq_len + 1)
            piece = tuple(ids[first - column : last - column].tolist())
            for position in order.positions_of(sequence, replaced.stop):
                if position in replaced:
                    entries.append(Entry(position, first, piece, DOCUMENT, name))
    if not entries:
        raise DatasetError(
            f"expected a document that is read in steps [{from_step}, {upto_step}), found none "
            f"of {sorted(texts)}; name other steps or documents"
        )
    return Overlay(binding, sorted(entries, key=entry_place))


def fit(ids: npt.NDArray[np.integer[Any]], size: int, eod: int, fill: str) -> Ids:
    """Cut ids to ``size``, or fill them up by the policy.

    Raises:
        DatasetError: No ids.
    """
    if not len(ids):
        raise DatasetError("expected a text with at least one id to put in place of a document")
    out = np.full(size, eod, dtype=np.int64)
    period = len(ids) + 1 if fill == "repeat" else max(size, 1)
    for start in range(0, size, period):
        piece = ids[: size - start]
        out[start : start + len(piece)] = piece
    return out
