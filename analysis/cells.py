"""One file per (measure, rung, step): what makes the analysis resumable and its tables rebuildable.

A cell is a Parquet file ``cells/<measure>/<rung>/step{N}.parquet`` whose schema metadata holds its
key: the weights root it was computed from and the digest of everything else that decides it
(definition, probes or items). A cell with another key is stale and is computed again. Cells are
written atomically; tables are the concatenation of the cells in ladder and step order.
"""

import io
import json
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from analysis.rungs import Checkpoint
from data_pipeline.canonical import canonical_json
from data_pipeline.durable import write_bytes

_KEY = b"tripod"
KEY_COLUMNS = ["rung", "step", "tokens", "weights_root"]


@dataclass(frozen=True)
class CellKey:
    """What a cell was computed from."""

    weights_root: str
    inputs: str

    def to_bytes(self) -> bytes:
        """The key as it is stored in the file."""
        return canonical_json({"weights_root": self.weights_root, "inputs": self.inputs})


@dataclass(frozen=True)
class CellStore:
    """The cells of a suite's analysis directory."""

    root: Path

    def path(self, measure: str, checkpoint: Checkpoint) -> Path:
        """Where a cell is kept."""
        return self.root / "cells" / measure / checkpoint.rung / f"step{checkpoint.step}.parquet"

    def has(self, measure: str, checkpoint: Checkpoint, inputs: str) -> bool:
        """Whether a cell exists and was computed from these weights and inputs."""
        path = self.path(measure, checkpoint)
        if not path.exists():
            return False
        key = (pq.read_schema(path).metadata or {}).get(_KEY)
        return key == CellKey(checkpoint.weights_root, inputs).to_bytes()

    def write(self, measure: str, checkpoint: Checkpoint, inputs: str, rows: pd.DataFrame) -> None:
        """Write a cell; the columns of ``KEY_COLUMNS`` are put in front of ``rows``."""
        keyed = rows.copy()
        for place, (name, value) in enumerate(_key_values(checkpoint).items()):
            keyed.insert(place, name, value)
        key = CellKey(checkpoint.weights_root, inputs).to_bytes()
        path = self.path(measure, checkpoint)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, parquet_bytes(keyed, {_KEY: key}))

    def table(self, measure: str, checkpoints: list[Checkpoint]) -> pd.DataFrame:
        """Concatenate the cells of these checkpoints, in their order.

        Raises:
            FileNotFoundError: a cell is missing.
        """
        return pd.concat(
            [pd.read_parquet(self.path(measure, checkpoint)) for checkpoint in checkpoints],
            ignore_index=True,
        )


def _key_values(checkpoint: Checkpoint) -> dict[str, object]:
    values = (checkpoint.rung, checkpoint.step, checkpoint.tokens, checkpoint.weights_root)
    return dict(zip(KEY_COLUMNS, values, strict=True))


def parquet_bytes(table: pd.DataFrame, metadata: dict[bytes, bytes] | None = None) -> bytes:
    """Encode a table as Parquet (zstd), with extra schema metadata."""
    arrow = pa.Table.from_pandas(table, preserve_index=False)
    arrow = arrow.replace_schema_metadata({**(arrow.schema.metadata or {}), **(metadata or {})})
    sink = io.BytesIO()
    pq.write_table(arrow, sink, compression="zstd")
    return sink.getvalue()


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a table as Parquet, atomically, unless the same bytes are there."""
    data = parquet_bytes(table)
    if not path.exists() or path.read_bytes() != data:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, data)


def write_json(path: Path, record: object) -> None:
    """Write a JSON file (floats allowed), atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, json.dumps(record, sort_keys=True, default=str).encode())
