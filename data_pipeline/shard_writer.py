"""Documents to shards: ids, document borders and source records, each shard durable when it closes.

Guarantees: a shard is closed before the document that would make it too long, so shards depend on
the documents and the limit only; its files are on disk, synced, before ``on_shard`` is told of it.
A writer that is given the shards an earlier one finished goes on after them.
"""

from array import array
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline.canonical import canonical_json, sha256_hex
from data_pipeline.durable import write_bytes
from data_pipeline.errors import DatasetError
from data_pipeline.shard_record import Shard, shard_file, token_dtype
from data_pipeline.tokenizer import EOD


class ShardWriter:
    """Writes one split. Memory: the ids and records of one shard."""

    def __init__(
        self,
        root: Path,
        split: str,
        vocab_size: int,
        shard_tokens: int,
        eod: int = EOD,
        bos: int | None = None,
        finished: Sequence[Shard] = (),
        on_shard: Callable[[Shard], None] | None = None,
    ) -> None:
        """Prepare to write below ``root / split``.

        Args:
            root: Directory of the dataset.
            split: ``train`` or ``heldout``.
            vocab_size: Number of ids; it decides their type.
            shard_tokens: Limit of a shard; a longer document has a shard of its own.
            eod: Id that closes every document.
            bos: Id that begins every document, or None.
            finished: Shards that are there already.
            on_shard: Called with every shard once its files are durable.
        """
        self._root, self._split, self._limit = root, split, shard_tokens
        self._dtype = np.dtype(token_dtype(vocab_size)).newbyteorder("<")
        self._marks = {eod, *(() if bos is None else (bos,))}
        self._begin = np.array([] if bos is None else [bos], dtype=self._dtype).tobytes()
        self._close = np.array([eod], dtype=self._dtype).tobytes()
        self._shards = list(finished)
        self._told = on_shard or (lambda shard: None)
        self._clear()
        (root / split).mkdir(parents=True, exist_ok=True)

    def _clear(self) -> None:
        self._ids, self._lines = bytearray(), bytearray()
        self._rows = array("Q")

    @property
    def _tokens(self) -> int:
        return len(self._ids) // self._dtype.itemsize

    def add(self, ids: npt.NDArray[np.unsignedinteger[Any]], record: Mapping[str, Any]) -> None:
        """Append a document.

        Args:
            ids: Its ids, without the marks, which are added here.
            record: ``source``, ``name``, ``bytes`` and ``sha256`` of its text; where there is more
                to say ``record``, ``id`` and ``meta``.

        Raises:
            DatasetError: A mark among the ids, or a record that canonical JSON cannot hold.
        """
        for mark in self._marks:
            if bool((ids == mark).any()):
                raise DatasetError(
                    f"{record['source']} {record['name']}: expected a text that encodes without "
                    f"the mark {mark}, found it; mark that token as special in tokenizer.json"
                )
        size = (len(self._begin) + len(self._close)) // self._dtype.itemsize + len(ids)
        if self._rows and self._tokens + size > self._limit:
            self._flush()
        self._ids += self._begin + ids.astype(self._dtype).tobytes() + self._close
        self._lines += self._line(record)
        self._rows.extend((self._tokens, len(self._lines)))

    def _line(self, record: Mapping[str, Any]) -> bytes:
        try:
            return canonical_json(record) + b"\n"
        except (TypeError, ValueError) as error:
            raise DatasetError(
                f"{record['source']} {record['name']}: expected a record of strings and integers, "
                f"found {error}; keep other fields out of the metadata"
            ) from error

    def close(self) -> tuple[Shard, ...]:
        """Write what is left and return all shards in stream order."""
        if self._rows:
            self._flush()
        return tuple(self._shards)

    def _flush(self) -> None:
        docs = np.array(self._rows, dtype="<u8").tobytes()
        shard = Shard(
            file=shard_file(self._split, len(self._shards)),
            tokens=self._tokens,
            documents=len(self._rows) // 2,
            sha256=sha256_hex(self._ids),
            docs_sha256=sha256_hex(docs),
            sources_sha256=sha256_hex(self._lines),
        )
        write_bytes(self._root / shard.file, self._ids)
        write_bytes(self._root / shard.docs_file, docs)
        write_bytes(self._root / shard.sources_file, self._lines)
        self._shards.append(shard)
        self._clear()
        self._told(shard)
