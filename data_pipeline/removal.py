"""Which documents the declared steps leave out, and the lists that say so.

Steps, in this order: documents with evaluation text; exact duplicates (equal SHA-256, the first
stays); near-duplicates (``near.py``, the first stays). A document that one step left out is not
looked at by the next.

Guarantees: decided in one place from the surveys of all groups, so the result does not depend on
workers or groups; memory of some tens of bytes a document. Every document left out is a line of
``removed/<step>.jsonl`` that names it, why, and the document that stays or the words that were
found.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline.build_directory import BuildDirectory
from data_pipeline.canonical import canonical_json
from data_pipeline.contamination import Evaluations
from data_pipeline.durable import fsync_directory, write_bytes
from data_pipeline.near import ALGORITHM, Signatures, near_duplicates
from data_pipeline.recipe import NearRule, Recipe
from data_pipeline.survey import Survey

Mask = npt.NDArray[np.bool_]


def decide(
    place: BuildDirectory, survey: Survey, recipe: Recipe, evaluations: Evaluations | None
) -> None:
    """Write the lists, the mask of the documents that stay, and last the record of the steps.

    Raises:
        OSError: The disk is full.
    """
    kept = np.ones(survey.documents, dtype=np.bool_)
    steps: list[dict[str, Any]] = []
    (place.root / "removed").mkdir(exist_ok=True)
    if evaluations is not None:
        lines = _contaminated(survey, evaluations)
        removed = _remove(place, survey, "decontaminate", lines, kept)
        steps.append({"step": "decontaminate", **evaluations.record, "removed": removed})
    if recipe.exact:
        lines = _twins(survey, exact_duplicates(survey, kept))
        steps.append({"step": "exact", "removed": _remove(place, survey, "exact", lines, kept)})
    if recipe.near is not None:
        table = _Table(survey, recipe.near.permutations)
        found = near_duplicates(table, np.flatnonzero(kept), recipe.near)
        removed = _remove(place, survey, "near", _twins(survey, found), kept)
        steps.append({"step": "near", **_near_record(recipe.near), "removed": removed})
    write_bytes(place.kept, kept.tobytes())
    write_bytes(place.decisions, canonical_json({"steps": steps}))


def exact_duplicates(survey: Survey, kept: Mask) -> Iterator[tuple[int, int]]:
    """Yield (document, first document with the same SHA-256) for every repeat, by number.

    Args:
        survey: Digests of all documents.
        kept: The documents to look at.
    """
    numbers = np.flatnonzero(kept)
    prefixes = survey.prefixes[numbers]
    order = np.argsort(prefixes, kind="stable")
    same = np.flatnonzero(prefixes[order][1:] == prefixes[order][:-1])
    repeated = np.zeros(len(numbers), dtype=np.bool_)
    repeated[same], repeated[same + 1] = True, True
    first: dict[bytes, int] = {}
    for document in np.sort(numbers[order[repeated]]).tolist():
        digest = survey.digest(document)
        if digest in first:
            yield document, first[digest]
        else:
            first[digest] = document


def _contaminated(survey: Survey, evaluations: Evaluations) -> Iterator[tuple[int, dict[str, Any]]]:
    for document, ngram, text in survey.hits():
        yield document, {"ngram": ngram, "evaluation": evaluations.references[text]}


def _twins(
    survey: Survey, pairs: Iterator[tuple[int, int]]
) -> Iterator[tuple[int, dict[str, Any]]]:
    for document, twin in pairs:
        yield document, {"kept": _named(survey, twin)}


def _named(survey: Survey, document: int) -> dict[str, Any]:
    digest = survey.digest(document).hex()
    return {"document": document, "sha256": digest, **survey.reference(document)}


def _remove(
    place: BuildDirectory,
    survey: Survey,
    step: str,
    found: Iterator[tuple[int, Mapping[str, Any]]],
    kept: Mask,
) -> dict[str, Any]:
    """Write the list of one step, take its documents from ``kept``, and return its record."""
    file = f"removed/{step}.jsonl"
    digest, documents, size = hashlib.sha256(), 0, 0
    numbers = []
    path = place.root / file
    with path.open("wb") as lines:
        for document, why in found:
            bytes_ = int(survey.all_sizes[document])
            record = {"bytes": bytes_, "reason": step, **_named(survey, document), **why}
            line = canonical_json(record) + b"\n"
            lines.write(line)
            digest.update(line)
            numbers.append(document)
            documents, size = documents + 1, size + bytes_
        lines.flush()
        os.fsync(lines.fileno())
    fsync_directory(path.parent)
    kept[numbers] = False
    return {"documents": documents, "bytes": size, "file": file, "sha256": digest.hexdigest()}


def _near_record(rule: NearRule) -> dict[str, Any]:
    return {
        "algorithm": ALGORITHM,
        "bands": rule.bands,
        "permutations": rule.permutations,
        "shingle": rule.shingle,
        "threshold": f"{rule.threshold.numerator}/{rule.threshold.denominator}",
    }


class _Table:
    """The signatures of all groups by document number, read where they lie."""

    def __init__(self, survey: Survey, permutations: int) -> None:
        self._survey, self._permutations = survey, permutations

    def __getitem__(self, key: tuple[npt.NDArray[np.int64], slice]) -> Signatures:
        """Rows of ascending document numbers, some columns."""
        documents, columns = key
        borders = np.searchsorted(documents, self._survey.first)
        parts = [
            self._survey.signatures(group, self._permutations)[
                documents[start:end] - self._survey.first[group], columns
            ]
            for group, (start, end) in enumerate(pairwise(borders.tolist()))
            if end > start
        ]
        return np.concatenate(parts)


def kept_mask(path: Path, documents: int) -> Mask:
    """Read the mask that ``decide`` wrote: bool [documents]."""
    return np.fromfile(path, dtype=np.bool_, count=documents)
