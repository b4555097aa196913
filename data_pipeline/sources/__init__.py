"""Where documents come from: files of many kinds, read in one fixed order.

Guarantees: the same recipe over the same files gives the same documents in the same order on every
machine, one file at a time and as a stream. Every file is checked against its SHA-256 as it is
read. What is left out (nothing but white space, not UTF-8, malformed) is counted and recorded,
never dropped in silence. Text is not normalised in any way.

    source = open_source({"kind": "jsonl", "root": "corpus", "text_field": "content"})
    for document in source.documents(): ...

How records become documents: ``docs/spec/sources.md``. For users: ``docs/data.md``.
"""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from data_pipeline.errors import DatasetError
from data_pipeline.sources.base import COUNTS, Document, Source, SourceFile
from data_pipeline.sources.files import glob_regex
from data_pipeline.sources.spec import Spec
from data_pipeline.sources.text import skip_reason

__all__ = [
    "COUNTS",
    "KINDS",
    "Document",
    "Source",
    "SourceFile",
    "glob_regex",
    "open_source",
    "skip_reason",
]

# By name, so that a build from text does not wait for the import of pyarrow and datasets.
KINDS = {
    "hf_dataset": "huggingface:open_huggingface",
    "jsonl": "jsonl:JsonlSource",
    "parquet": "parquet:ParquetSource",
    "python_packages": "packages:PackageSource",
    "text_tree": "text:TreeSource",
}


def open_source(
    spec: Mapping[str, Any], *, workers: int = 1, known: Mapping[str, str] | None = None
) -> Source:
    """Open the source that a recipe names: find its files and hash them.

    Args:
        spec: ``{"kind": one of KINDS, ...}``; each kind's class says which keys it takes.
        workers: Threads that hash files.
        known: SHA-256 by file name from an earlier opening, so that the tasks of one build do not
            hash the corpus again. The files must be the same; their bytes are still checked as
            they are read.

    Raises:
        DatasetError: An unknown kind or key (the message lists the known ones), a value of a wrong
            type, or files that are not as the recipe says.
    """
    kind = spec.get("kind")
    if kind not in KINDS:
        raise DatasetError(f"source.kind: expected one of {sorted(KINDS)}, found {kind!r}")
    module, _, name = KINDS[kind].partition(":")
    opened = getattr(import_module(f"data_pipeline.sources.{module}"), name)
    source = opened(Spec(spec), workers, known)
    assert isinstance(source, Source)
    return source
