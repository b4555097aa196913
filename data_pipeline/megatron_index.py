"""The index of Megatron files that are read in place: one digest for what they hold, not where.

A dataset of such files is a directory with ``index.json`` (schema ``megatron-index-v1``, canonical
JSON) and, where the files lie elsewhere, ``locations.json``. The index digest is the SHA-256 of
``index.json``: it covers every byte of every file, the policies that these formats leave unsaid,
and what GPT-NeoX was asked for (``split`` or several paths, samples, sequence length). Files are
named by base name only, so the same data in another place has the same digest.

Guarantees: opening checks the schema, every name and every size; ``verify_megatron`` recomputes
the rest. Specification: ``docs/spec/neox.md``.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema

from data_pipeline.canonical import canonical_json, sha256_hex
from data_pipeline.errors import DatasetError
from data_pipeline.megatron import MegatronFiles
from data_pipeline.megatron_schema import INDEX_SCHEMA, LOCATIONS, LOCATIONS_SCHEMA, SCHEMA
from data_pipeline.neox_maps import num_epochs, samples_of_parts, split_bounds
from data_pipeline.storage import Storage, open_storage
from data_pipeline.tokenizer import Tokenizer

SPLITS = ("train", "valid", "test")
_REBUILD = "restore the file from a copy, or index the files again (`tripod data index-megatron`)"


@dataclass(frozen=True)
class NeoxPlan:
    """What GPT-NeoX was asked for.

    ``split`` is its ``split`` string with one ``data_path``, or None for ``train_data_paths``;
    ``num_samples`` is train_iters · B, or None where ``train_epochs`` was given instead, which is
    then ``epochs``; ``seq_len`` is S.
    """

    split: str | None
    num_samples: int | None
    seq_len: int
    epochs: int | None = None

    def of_parts(self, weights: list[float], tokens: list[int]) -> tuple[list[int], list[int]]:
        """Return (epochs, samples) of every part.

        Args:
            weights: Of the parts, as given.
            tokens: Ids of every part that are trained on.

        Raises:
            DatasetError: A plan that GPT-NeoX could not carry out either.
        """
        if (self.num_samples is None) == (self.epochs is None):
            raise DatasetError(
                f"neox: expected num_samples (train_iters · batch) or epochs (train_epochs), found "
                f"{self.num_samples} and {self.epochs}; give one of them"
            )
        if self.split is not None and len(weights) != 1:
            raise DatasetError(
                f"neox: expected one file with a split (`data_path`), found {len(weights)}; "
                "leave the split out for `train_data_paths`"
            )
        for name, number in vars(self).items():
            if name != "split" and number is not None and number < 1:
                raise DatasetError(f"neox.{name}: expected at least 1, found {number}")
        if self.num_samples is None:
            epochs = [self.epochs or 1] * len(tokens)
        else:
            wanted = [self.num_samples]
            if self.split is None:
                wanted = samples_of_parts(weights, self.num_samples)[1]
            pairs = zip(tokens, wanted, strict=True)
            epochs = [num_epochs(count, self.seq_len, need) for count, need in pairs]
        samples = [
            max(0, (e * count - 1) // self.seq_len) for e, count in zip(epochs, tokens, strict=True)
        ]
        if min(samples) < 1:
            raise DatasetError(
                f"neox: expected at least {self.seq_len + 1} ids to train on in every part, found "
                f"{tokens}; use a shorter seq_len, another split or fewer parts"
            )
        return epochs, samples


@dataclass(frozen=True)
class MegatronIndex:
    """A parsed ``index.json`` of schema ``megatron-index-v1``."""

    storage: Storage
    digest: str
    data: dict[str, Any]
    directories: Mapping[str, Mapping[str, str]]

    @classmethod
    def load(cls, dataset_dir: str | Path) -> "MegatronIndex":
        """Read and check ``index.json`` and ``locations.json``; the files are not touched.

        Raises:
            DatasetError: No index, not canonical JSON, another schema, a name that is not a base
                name, or one used twice.
        """
        storage = open_storage(dataset_dir)
        where = storage.where("index.json")
        try:
            raw = storage.read("index.json")
        except FileNotFoundError:
            raise DatasetError(
                f"{where}: expected a dataset index, found no file; index the Megatron files first "
                "(`tripod data index-megatron`)"
            ) from None
        return cls(storage, sha256_hex(raw), parse_index(where, raw), _directories(storage))

    @property
    def root(self) -> Path:
        """The directory of a local dataset.

        Raises:
            DatasetError: The dataset lies behind a URL.
        """
        if not self.storage.is_local:
            raise DatasetError(
                f"{self.storage}: expected a local directory, found a URL; Megatron files are "
                "mapped where they lie: download them, or mount them"
            )
        return Path(str(self.storage))

    @property
    def vocab_size(self) -> int:
        """Number of ids, as declared."""
        return int(self.data["vocab_size"])

    @property
    def eod(self) -> int | None:
        """Id of the end-of-document mark, as declared; None where there is none."""
        return None if self.data["eod"] is None else int(self.data["eod"])

    @property
    def plan(self) -> NeoxPlan | None:
        """What GPT-NeoX was asked for; None for files that are read in file order."""
        neox = self.data["neox"]
        if neox is None:
            return None
        samples = neox["num_samples"]
        epochs = None if samples is not None else neox["epochs"][0]
        return NeoxPlan(neox["split"], samples, neox["seq_len"], epochs)

    @property
    def weights(self) -> list[float]:
        """Weights of the parts."""
        return [float(part["weight"]) for part in self.data["parts"]]

    def paths(self, part: int) -> tuple[Path, list[Path]]:
        """Return where the ``.idx`` and the ``.bin`` or its shards of a part lie."""
        record = self.data["parts"][part]
        places = self.directories.get(record["name"], {})

        def place(name: str) -> Path:
            return self.root / places.get(name, "") / name

        return place(record["idx"]["file"]), [place(each["file"]) for each in record["bins"]]

    def open_files(self, part: int) -> MegatronFiles:
        """Map the files of a part.

        Raises:
            DatasetError: A file that is missing or of another size, type or count than recorded.
        """
        record = self.data["parts"][part]
        idx, bins = self.paths(part)
        for path, each in zip([idx, *bins], [record["idx"], *record["bins"]], strict=True):
            _expect_size(path, each["bytes"])
        files = MegatronFiles(idx, bins)
        expect(idx, "type of an id", self.data["dtype"], files.dtype.name)
        expect(idx, "items", record["items"], files.num_items)
        expect(idx, "ids", record["tokens"], files.num_tokens)
        return files

    def item_range(self, split: str) -> tuple[int, int]:
        """Return the items [first, last) of a split, where the plan splits its one file.

        Raises:
            DatasetError: A split that this dataset does not have.
        """
        plan, items = self.plan, sum(part["items"] for part in self.data["parts"])
        names = SPLITS if plan is not None and plan.split is not None else SPLITS[:1]
        if split not in names:
            raise DatasetError(
                f"{self.storage.where('index.json')}: split: expected one of {list(names)}, found "
                f"{split!r}"
            )
        if plan is None or plan.split is None:
            return 0, items
        bounds = split_bounds(plan.split, items)
        place = SPLITS.index(split)
        return bounds[place], bounds[place + 1]

    def tokenizer(self) -> Tokenizer:
        """Load the tokenizer that was declared, checked against the index.

        Raises:
            DatasetError: None was declared, other bytes, or other ids for the conformance text.
        """
        record, where = self.data["tokenizer"], self.storage.where("tokenizer.json")
        if record is None:
            raise DatasetError(
                f"{where}: expected a declared tokenizer, found none: these files do not name one; "
                "index them again with `--tokenizer FILE`, or work with ids"
            )
        try:
            raw = self.storage.read("tokenizer.json")
        except FileNotFoundError:
            raise DatasetError(
                f"{where}: expected sha256 {record['sha256']}, found no file; {_REBUILD}"
            ) from None
        expect(where, "sha256", record["sha256"], sha256_hex(raw))
        tokenizer = Tokenizer(raw)
        fits = tokenizer.vocab_size <= self.vocab_size
        expect(where, f"a vocabulary of at most {self.vocab_size}", True, fits)
        found = tokenizer.conformance_sha256()
        expect(where, "sha256 of the conformance ids", record["conformance_sha256"], found)
        return tokenizer


def is_megatron(raw: bytes) -> bool:
    """Say whether the bytes of an ``index.json`` claim this schema."""
    try:
        data = json.loads(raw)
    except (ValueError, RecursionError):
        return False
    return isinstance(data, dict) and data.get("schema") == SCHEMA


def parse_index(where: str, raw: bytes) -> dict[str, Any]:
    """Return a checked ``index.json``; errors as of ``MegatronIndex.load``."""
    data = _parse(where, raw, INDEX_SCHEMA)
    _check_names(where, data)
    _check_numbers(where, data)
    return data


def expect(where: str | Path, what: str, expected: object, found: object) -> None:
    """Raise DatasetError where two values differ."""
    if found != expected:
        raise DatasetError(f"{where}: {what}: expected {expected!r}, found {found!r}; {_REBUILD}")


def _parse(where: str, raw: bytes, schema: Mapping[str, Any]) -> dict[str, Any]:
    try:
        data = json.loads(raw)
        canonical = canonical_json(data)
    except (ValueError, TypeError, RecursionError) as error:
        raise DatasetError(
            f"{where}: expected canonical JSON, found {error}; {_REBUILD}"
        ) from error
    if canonical != raw:
        raise DatasetError(
            f"{where}: expected canonical JSON (sorted unique keys, no spaces), found another "
            f"encoding of {len(raw)} bytes; {_REBUILD}"
        )
    problem = jsonschema.exceptions.best_match(
        jsonschema.Draft202012Validator(schema).iter_errors(data)
    )
    if problem is not None:
        raise DatasetError(f"{where}: at {problem.json_path}: {problem.message}; {_REBUILD}")
    return dict(data)


def _check_names(where: str, data: Mapping[str, Any]) -> None:
    """Base names only, each once; the schema's ``$`` alone would let a final newline through."""
    parts = [part["name"] for part in data["parts"]]
    groups = [parts]
    for part in data["parts"]:
        groups.append([part["idx"]["file"], *(each["file"] for each in part["bins"])])
    for names in groups:
        for name in names:
            if name.endswith("\n") or Path(name).name != name:
                raise DatasetError(
                    f"{where}: expected a base name, found {name!r}; "
                    "the index was not written by this project: do not use it"
                )
        if len(set(names)) != len(names):
            raise DatasetError(f"{where}: expected every name once, found {names}; {_REBUILD}")


def _check_numbers(where: str, data: Mapping[str, Any]) -> None:
    eod, policy = data["eod"], data["eod_policy"]
    if eod is not None and eod >= data["vocab_size"]:
        raise DatasetError(
            f"{where}: eod: expected an id below {data['vocab_size']}, found {eod}; {_REBUILD}"
        )
    if eod is None and policy == "appended":
        raise DatasetError(
            f"{where}: eod: expected an id with the policy 'appended', found null; {_REBUILD}"
        )
    for part in data["parts"]:
        for key in ("eod_count", "eod_closing"):
            expect(where, f"{key} of {part['name']!r} is null", eod is None, part[key] is None)
    neox = data["neox"]
    if neox is not None:
        for key in ("epochs", "samples"):
            expect(where, f"neox.{key}: entries", len(data["parts"]), len(neox[key]))
        if neox["num_samples"] is None:
            expect(where, "neox.epochs: different numbers", 1, len(set(neox["epochs"])))


def _directories(storage: Storage) -> dict[str, dict[str, str]]:
    try:
        raw = storage.read("locations.json")
    except FileNotFoundError:
        return {}
    return dict(_parse(storage.where("locations.json"), raw, LOCATIONS)["directories"])


def locations_json(directories: Mapping[str, Mapping[str, str]]) -> bytes:
    """Return the bytes of ``locations.json``: part name to file name to directory."""
    return canonical_json(
        {"schema": LOCATIONS_SCHEMA, "directories": {k: dict(v) for k, v in directories.items()}}
    )


def _expect_size(path: Path, expected: int) -> None:
    if not path.is_file():
        raise DatasetError(
            f"{path}: expected {expected} bytes, found no file; correct the directory in "
            "locations.json, or put the file back"
        )
    expect(path, "size in bytes", expected, path.stat().st_size)
