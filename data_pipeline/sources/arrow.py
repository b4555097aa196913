"""Columns to rows: what parquet files and Arrow shards have in common.

Batches of a few rows are turned into Python values at a time, so memory depends on the size of the
rows, not of the file. A declared column that is missing or of a type that cannot be used is an
error of the recipe, whatever the policy for malformed records.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from data_pipeline.canonical import sha256_file
from data_pipeline.errors import DatasetError
from data_pipeline.sources.base import SourceFile
from data_pipeline.sources.records import Fields, Malformed, RecordSource, expect_unchanged, missing

BATCH_ROWS = 64


class ArrowSource(RecordSource):
    """Files of columns."""

    place = "row"

    @abstractmethod
    def _batches(self, file: SourceFile) -> Iterator[Any]:
        """Yield tables or record batches that hold the declared columns, in file order."""

    def _rows(self, file: SourceFile) -> Iterator[tuple[int, Mapping[str, Any] | Malformed | None]]:
        number, broken = 0, None
        try:
            for batch in self._batches(file):
                for row in rows(batch):
                    yield number, row
                    number += 1
        except FileNotFoundError:
            raise missing(file) from None
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            if getattr(error, "errno", None) is not None:  # the disk, not the file
                raise
            broken = Malformed(f"damaged file ({error}): the rest of it cannot be read")
        expect_unchanged(file, sha256_file(file.path))
        if broken is not None:
            yield number, broken


def rows(batch: Any) -> Iterator[Mapping[str, Any] | Malformed]:
    """Yield the rows of a batch; one with a string that is not UTF-8 is malformed.

    Batches are validated first: reading the strings of a damaged one can end the process.
    """
    found = _values(batch)
    if not isinstance(found, Malformed):
        yield from found
        return
    for position in range(batch.num_rows):
        row = _values(batch.slice(position, 1))
        yield row if isinstance(row, Malformed) else row[0]


def _values(batch: Any) -> list[dict[str, Any]] | Malformed:
    try:
        batch.validate(full=True)
        return list(batch.to_pylist())
    except (pa.ArrowInvalid, UnicodeDecodeError) as error:
        return Malformed(f"invalid UTF-8 or damaged values ({error})")


def columns(fields: Fields, schema: Any, path: Path | str) -> list[str]:
    """Return the top-level columns to read.

    Args:
        fields: The declared fields.
        schema: Arrow schema of the file.
        path: The file, for the error.

    Raises:
        DatasetError: A field that the schema does not have, or whose type cannot be used.
    """
    kinds: list[tuple[str | None, str, Callable[[Any], bool]]] = [
        (fields.text, "strings", _is_text),
        (fields.id, "strings or integers", _is_name),
        (fields.source, "strings", _is_string),
        *((name, "strings, numbers, booleans, lists or structs", _is_meta) for name in fields.meta),
    ]
    out: list[str] = []
    for field, wanted, accepts in kinds:
        if field is None:
            continue
        column, type_ = _resolve(schema, field)
        if type_ is None or not accepts(type_):
            found = f"the columns {schema.names}" if type_ is None else str(type_)
            raise DatasetError(
                f"{path}: expected {wanted} in the column {field!r}, found {found}; "
                "correct the recipe's fields, or cast the column"
            )
        out.append(column)
    return list(dict.fromkeys(out))


def _resolve(schema: Any, field: str) -> tuple[str, Any]:
    """Return the top-level column and the type of a field; None where there is no such field."""
    if field in schema.names:
        return field, schema.field(field).type
    first, *rest = field.split(".")
    type_ = schema.field(first).type if first in schema.names else None
    for part in rest:
        if type_ is None or not pa.types.is_struct(type_) or type_.get_field_index(part) < 0:
            return first, None
        type_ = type_.field(part).type
    return first, type_


def _is_string(type_: Any) -> bool:
    if pa.types.is_dictionary(type_):
        return _is_string(type_.value_type)
    types = pa.types
    return bool(types.is_string(type_) or types.is_large_string(type_) or types.is_null(type_)) or (
        bool(types.is_string_view(type_))
    )


def _is_text(type_: Any) -> bool:
    """Strings, and the binary columns that some writers put them in."""
    return _is_string(type_) or bool(pa.types.is_binary(type_) or pa.types.is_large_binary(type_))


def _is_name(type_: Any) -> bool:
    return _is_string(type_) or bool(pa.types.is_integer(type_))


def _is_meta(type_: Any) -> bool:
    types = pa.types
    if types.is_struct(type_):
        return all(_is_meta(type_.field(i).type) for i in range(type_.num_fields))
    if types.is_list(type_) or types.is_large_list(type_) or types.is_fixed_size_list(type_):
        return _is_meta(type_.value_type)
    return _is_name(type_) or bool(types.is_floating(type_) or types.is_boolean(type_))
