"""Documents that contain text of an evaluation: a run of n words that stands in one of its texts.

Guarantees: a document is found exactly when one of its runs of n words, as ``words.py`` splits and
hashes them, has the hash of a run of an evaluation text; evaluation texts with fewer than n words
can match nothing and are counted. Memory: 16 bytes per run of the evaluation texts, per worker.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline.sources import Document, Source
from data_pipeline.words import ngram_hashes, words


@dataclass(frozen=True)
class Evaluations:
    """The runs of n words of all evaluation texts: sorted hashes and the text each stands in."""

    ngram: int
    hashes: npt.NDArray[np.uint64]
    texts: npt.NDArray[np.uint32]
    references: tuple[dict[str, Any], ...]
    record: dict[str, Any]

    @classmethod
    def read(cls, sources: Sequence[Source], ngram: int) -> "Evaluations":
        """Read the evaluation texts.

        Args:
            sources: Where they are.
            ngram: Words of a run.

        Raises:
            DatasetError: A source that cannot be read.
        """
        found: list[npt.NDArray[np.uint64]] = []
        references: list[dict[str, Any]] = []
        records: list[dict[str, Any]] = []
        for source in sources:
            counts = {file.name: Counter[str]() for file in source.files}
            for file in source.files:
                for document in source.read(file, counts[file.name]):
                    found.append(ngram_hashes(words(document.text), ngram))
                    references.append(reference(document))
            records += source.record(counts)
        flat = np.concatenate(found) if found else np.zeros(0, dtype=np.uint64)
        owners = np.repeat(np.arange(len(found), dtype=np.uint32), [len(one) for one in found])
        hashes, first = np.unique(flat, return_index=True)
        record = {
            "ngram": ngram,
            "ngrams": len(hashes),
            "sources": records,
            "texts": len(found),
            "texts_too_short": sum(1 for one in found if not len(one)),
        }
        return cls(ngram, hashes, owners[first], tuple(references), record)

    def hit(self, tokens: Sequence[str]) -> tuple[str, int] | None:
        """Return the first run of a document's words that is an evaluation's, and whose it is."""
        hashes = ngram_hashes(tokens, self.ngram)
        if not len(self.hashes) or not len(hashes):
            return None
        places = np.minimum(np.searchsorted(self.hashes, hashes), len(self.hashes) - 1)
        hits = np.flatnonzero(self.hashes[places] == hashes)
        if not hits.size:
            return None
        first = int(hits[0])
        ngram = " ".join(tokens[first : first + self.ngram])
        return ngram, int(self.texts[places[first]])


def reference(document: Document) -> dict[str, Any]:
    """Name a document: ``source``, ``name`` and, where it has them, ``record`` and ``id``."""
    named: dict[str, Any] = {"source": document.source, "name": document.name}
    if document.record is not None:
        named["record"] = document.record
    if document.id is not None:
        named["id"] = document.id
    return named
