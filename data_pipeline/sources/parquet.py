"""Parquet: one document per row, read in batches of a few rows; only the declared columns."""

from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow.parquet as pq

from data_pipeline.sources.arrow import BATCH_ROWS, ArrowSource, columns
from data_pipeline.sources.base import SourceFile
from data_pipeline.sources.files import chosen_files
from data_pipeline.sources.records import FIELD_KEYS
from data_pipeline.sources.spec import Spec

SUFFIXES = (".parquet",)
_PAGE_BUFFER = 1 << 20  # read pages as they are needed instead of whole column chunks


class ParquetSource(ArrowSource):
    """Parquet files below a directory."""

    kind = "parquet"

    def __init__(
        self, spec: Spec, workers: int = 1, known: Mapping[str, str] | None = None
    ) -> None:
        """Find and hash the files.

        Args:
            spec: ``root``; either ``files`` (paths relative to it) or ``include`` and ``exclude``
                (globs); the keys of ``records.FIELD_KEYS``.
            workers: Threads that hash.
            known: SHA-256 by file name from an earlier opening; see ``open_source``.

        Raises:
            DatasetError: A bad recipe, or a file whose name does not end with ``.parquet``.
        """
        spec.expect_keys(required=["root"], optional=["include", "exclude", "files", *FIELD_KEYS])
        name = spec.text("name", self.kind)
        super().__init__(spec, name, lambda: chosen_files(spec, name, SUFFIXES, workers, known))

    def _batches(self, file: SourceFile) -> Iterator[Any]:
        with pq.ParquetFile(file.path, pre_buffer=False, buffer_size=_PAGE_BUFFER) as opened:
            wanted = columns(self.fields, opened.schema_arrow, file.path)
            for group in range(opened.num_row_groups):  # a batch across two would need both whole
                yield from opened.iter_batches(
                    BATCH_ROWS, row_groups=[group], columns=wanted, use_threads=False
                )
