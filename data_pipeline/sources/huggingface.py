"""Hugging Face ``datasets``: a directory that ``save_to_disk`` wrote, or a name on the Hub.

On disk, the Arrow shards are the files: hashed, memory-mapped, read in batches of a few rows.

By name, the revision is a full commit, so it names the bytes, but the files are not at hand. What
was read is hashed instead: ``records_sha256`` in the index is the SHA-256 over the canonical JSON
of every document. What ``datasets`` makes of a file (types, decoding) is then part of the source.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa

from data_pipeline.canonical import canonical_json, sha256_hex
from data_pipeline.errors import DatasetError
from data_pipeline.sources.arrow import BATCH_ROWS, ArrowSource, columns
from data_pipeline.sources.base import Document, Source, SourceFile
from data_pipeline.sources.files import expect_listed, hash_files
from data_pipeline.sources.records import FIELD_KEYS, Malformed, RecordSource
from data_pipeline.sources.spec import Spec

_ARROW_END = b"\xff\xff\xff\xff\0\0\0\0"
_DIGEST = "records_sha256"


def open_huggingface(
    spec: Spec, workers: int = 1, known: Mapping[str, str] | None = None
) -> Source:
    """Open a dataset by ``path`` on disk or by its name on the Hub, ``dataset``.

    Raises:
        DatasetError: Both or neither, or what the two classes raise.
    """
    if ("path" in spec) == ("dataset" in spec):
        raise spec.fail(
            "path",
            "either path (a directory of save_to_disk) or dataset (owner/name on the Hub)",
            "both" if "path" in spec else "neither",
        )
    return DiskDataset(spec, workers, known) if "path" in spec else HubDataset(spec)


class DiskDataset(ArrowSource):
    """A ``Dataset``, or one split of a ``DatasetDict``, as ``save_to_disk`` leaves it."""

    kind = "hf_dataset"

    def __init__(
        self, spec: Spec, workers: int = 1, known: Mapping[str, str] | None = None
    ) -> None:
        """Find and hash the Arrow shards.

        Args:
            spec: ``path``; ``split`` where the directory holds several; the keys of
                ``records.FIELD_KEYS``.
            workers: Threads that hash.
            known: SHA-256 by file name from an earlier opening; see ``open_source``.

        Raises:
            DatasetError: A bad recipe, or a directory that ``save_to_disk`` did not write.
        """
        spec.expect_keys(required=["path"], optional=["split", *FIELD_KEYS])
        root, name = spec.root("path"), spec.text("name", self.kind)
        shards = _shards(spec, root)
        expect_listed(root, shards)
        super().__init__(spec, name, lambda: hash_files(name, root, shards, workers, known))

    def _batches(self, file: SourceFile) -> Iterator[Any]:
        try:
            opened = datasets.Dataset.from_file(str(file.path))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise pa.ArrowInvalid(f"schema or features cannot be read: {error}") from error
        wanted = columns(self.fields, opened.data.schema, file.path)
        view = opened.select_columns(wanted).with_format("arrow")
        yield from view.iter(batch_size=BATCH_ROWS)
        if not _is_closed(Path(file.path)):
            raise pa.ArrowInvalid("the Arrow stream has no end mark: the file is cut off")


class HubDataset(RecordSource):
    """One split of a dataset on the Hub, at one commit, streamed."""

    kind = "hf_dataset"

    def __init__(self, spec: Spec) -> None:
        """Check the recipe; nothing is fetched before the first document is asked for.

        Args:
            spec: ``dataset`` (owner/name), ``revision`` (40 hex digits), ``split``; optional
                ``config``; ``streaming`` (default true; false downloads to the cache of
                ``datasets`` first and reads the same records); the keys of
                ``records.FIELD_KEYS``.

        Raises:
            DatasetError: A bad recipe, a revision that can move, or a name that is also a
                directory here, which ``datasets`` would read instead.
        """
        required = ["dataset", "revision", "split"]
        spec.expect_keys(required=required, optional=["config", "streaming", *FIELD_KEYS])
        self.dataset, self.split = _hub_name(spec), spec.text("split")
        self.config, self.revision = spec.optional_text("config"), _commit(spec)
        self.streaming = spec.flag("streaming", True)
        name = spec.text("name", self.dataset)
        super().__init__(spec, name, lambda: [self._file(name)])

    def read(self, file: SourceFile, counts: Counter[str]) -> Iterator[Document]:
        """Yield the documents and count the digest over them; see ``Source.read``."""
        digest = hashlib.sha256()
        for document in super().read(file, counts):
            digest.update(canonical_json(_canonical(document)) + b"\n")
            yield document
        counts[f"{_DIGEST}:{digest.hexdigest()}"] += 1  # a counter can cross processes

    def _rows(self, file: SourceFile) -> Iterator[tuple[int, Mapping[str, Any] | Malformed | None]]:
        number = 0
        try:
            for row in self._load():
                yield number, row
                number += 1
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
            raise DatasetError(
                f"{file.path}, record {number}: expected a record from datasets "
                f"{datasets.__version__}, found {type(error).__name__}: {error}; check dataset, "
                "config, split and fields and the network, log in where access is gated, or "
                "download it, save_to_disk it and use path"
            ) from error

    def _load(self) -> Any:
        rows = datasets.load_dataset(
            self.dataset,
            name=self.config,
            split=self.split,
            revision=self.revision,
            streaming=self.streaming,
        )
        names = rows.column_names or []
        wanted = [f if f in names else f.split(".")[0] for f in self.fields.all]
        return rows.select_columns(list(dict.fromkeys(wanted)))

    def _file(self, source: str) -> SourceFile:
        place = f"{self.config or 'default'}/{self.split}"
        return SourceFile(
            source=source,
            name=f"{self.dataset}/{place}",
            path=f"hf://datasets/{self.dataset}@{self.revision}#{place}",
            size=0,
            sha256=sha256_hex(canonical_json(self._identity())),
        )

    def _identity(self) -> dict[str, Any]:
        config = {} if self.config is None else {"config": self.config}
        return {
            "dataset": self.dataset,
            "revision": self.revision,
            "split": self.split,
            **config,
        }

    def _declared(self) -> dict[str, Any]:
        return {**self._identity(), **super()._declared()}

    def _totals(self, files: Any, counts: Mapping[str, Counter[str]], *keys: Any) -> dict[str, Any]:
        (file,) = self.files
        digests = {k for k in counts.get(file.name, {}) if k.startswith(f"{_DIGEST}:")}
        if len(digests) != 1:
            raise DatasetError(
                f"{file.path}: expected one digest over the records, found {sorted(digests)}; "
                + (
                    "the Hub gave different records in two passes: build again"
                    if digests
                    else "read the source to its end before it is recorded"
                )
            )
        return {
            **super()._totals(files, counts, *keys),
            _DIGEST: digests.pop().partition(":")[2],
        }


def _shards(spec: Spec, root: Path) -> list[str]:
    """Return the shards in the order of ``state.json``, relative to ``root``."""
    splits = root / "dataset_dict.json"
    if splits.is_file():
        names = _json(splits).get("splits", [])
        split = spec.choice("split", "", names)
        prefix = f"{split}/"
    elif "split" in spec:
        raise spec.fail("split", "no split: the directory holds one dataset", spec.text("split"))
    else:
        prefix = ""
    state = _json(root / prefix / "state.json")
    try:
        shards = [f"{prefix}{shard['filename']}" for shard in state["_data_files"]]
    except (KeyError, TypeError):
        shards = []
    if not shards or state.get("_indices_data_files"):
        raise DatasetError(
            f"{root / prefix / 'state.json'}: expected a list of Arrow shards and no indices, "
            f"found {len(shards)} shards; write the dataset with save_to_disk"
        )
    return shards


def _json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_bytes()))
    except (FileNotFoundError, ValueError, TypeError) as error:
        raise DatasetError(
            f"{path}: expected a file of save_to_disk, found {error}; "
            "give the directory that save_to_disk wrote"
        ) from error


def _is_closed(path: Path) -> bool:
    with path.open("rb") as handle:
        handle.seek(-min(len(_ARROW_END), path.stat().st_size), 2)
        return handle.read() == _ARROW_END


def _hub_name(spec: Spec) -> str:
    name = spec.text("dataset")
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name, re.ASCII):
        raise spec.fail("dataset", "owner/name", name)
    if Path(name).exists():
        raise spec.fail(
            "dataset",
            "a name on the Hub only",
            f"{name}, which is a path here",
            "run from another directory, or use path",
        )
    return name


def _commit(spec: Spec) -> str:
    revision = spec.text("revision")
    if not re.fullmatch("[0-9a-f]{40}", revision):
        raise spec.fail(
            "revision", "a full commit, 40 hex digits", revision, "branches and tags can move"
        )
    return revision


def _canonical(document: Document) -> dict[str, Any]:
    return {
        "id": document.id,
        "meta": document.meta,
        "record": document.record,
        "source": document.source,
        "text": document.text,
    }
