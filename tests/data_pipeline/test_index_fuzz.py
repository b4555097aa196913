"""Damaged datasets: whatever was changed, the answer is a clear error and never another dataset."""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.build import build_dataset
from data_pipeline.canonical import canonical_json
from data_pipeline.errors import DatasetError
from data_pipeline.index import verify_dataset
from data_pipeline.shards import TokenStream
from tests.data_pipeline.conftest import recipe


@pytest.fixture(scope="module")
def good(corpus, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("fuzz") / "data"
    spec = recipe(corpus) | {"dedup": {"exact": True}, "mixture": None}
    spec["mixture"] = {"tokens": 9_000, "weights": {"text": "1"}}
    build_dataset(spec, out)
    return out


@pytest.fixture
def copy(good, tmp_path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "data"))


def files(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file())


def damage(draw: random.Random, data: bytes) -> bytes:
    """One of: cut, grown, a bit flipped, two places swapped, a piece repeated or zeroed."""
    kind = draw.randrange(6)
    place, other = sorted(draw.randrange(len(data) + 1) for _ in range(2))
    if kind == 0:
        return data[:place]
    if kind == 1:
        return data + draw.randbytes(draw.randrange(1, 9))
    if kind == 2 and data:
        place = min(place, len(data) - 1)
        return data[:place] + bytes([data[place] ^ 1 << draw.randrange(8)]) + data[place + 1 :]
    if kind == 3:
        return data[other:] + data[place:other] + data[:place]
    if kind == 4:
        return data[:other] + data[place:other] + data[other:]
    return data[:place] + bytes(other - place) + data[other:]


@pytest.mark.parametrize("seed", range(4))
def test_random_damage_to_any_file_is_refused(copy, seed):
    draw = random.Random(seed)
    digest = verify_dataset(copy).digest
    for _ in range(40):
        path = draw.choice(files(copy))
        before = path.read_bytes()
        after = damage(draw, before)
        if after == before:
            continue
        path.write_bytes(after)
        with pytest.raises(DatasetError) as error:
            verify_dataset(copy, digest)
        assert len(str(error.value)) < 2_000
        path.write_bytes(before)
    assert verify_dataset(copy, digest).digest == digest


def test_swapped_files_are_refused(copy):
    for suffix in ("bin", "docs", "sources.jsonl"):
        a, b = (copy / "train" / f"shard-{k:05d}.{suffix}" for k in range(2))
        a_data, b_data = a.read_bytes(), b.read_bytes()
        a.write_bytes(b_data)
        b.write_bytes(a_data)
        with pytest.raises(DatasetError, match=rf"shard-00000\.{suffix}"):
            verify_dataset(copy)
        a.write_bytes(a_data)
        b.write_bytes(b_data)


def leaves(value: object, path: tuple = ()) -> list[tuple]:
    if isinstance(value, dict):
        return [found for key in value for found in leaves(value[key], (*path, key))]
    if isinstance(value, list):
        return [found for k, item in enumerate(value) for found in leaves(item, (*path, k))]
    return [path]


def replaced(value: object, path: tuple, new: object) -> object:
    if not path:
        return new
    made = dict(value) if isinstance(value, dict) else list(value)
    made[path[0]] = replaced(made[path[0]], path[1:], new)
    return made


HOSTILE = [
    "../../etc/passwd", "train/../../shard-00000.bin", "/dev/zero", "", None, -1, 0, 1 << 70, True,
    [], {}, "uint32", "train/shard-00000.bin\x00",
]  # fmt: skip


def test_every_field_of_the_index_replaced_by_hostile_values_is_refused(copy):
    """Alone or with a fitting digest: no value may crash a reader or lead it out of the dataset."""
    path = copy / "index.json"
    index = json.loads(path.read_bytes())
    draw, accepted = random.Random(0), []
    for place in leaves(index):
        for value in draw.sample(HOSTILE, 5):
            changed = canonical_json(replaced(index, place, value))
            if changed == canonical_json(index):
                continue
            path.write_bytes(changed)
            try:
                verify_dataset(copy, text=True)
            except DatasetError:
                continue
            accepted.append((place, value))
    # What the recipe declares is recorded, not recomputed: it changes the digest and nothing else.
    assert {place[0] for place, _ in accepted} <= {"sources", "mixture"}


def test_a_dtype_that_is_not_that_of_the_vocabulary_is_refused(copy):
    path = copy / "index.json"
    index = json.loads(path.read_bytes())
    path.write_bytes(canonical_json(index | {"dtype": "uint32"}))
    with pytest.raises(DatasetError, match="expected dtype uint16 for 300 ids, found uint32"):
        TokenStream(copy)
    path.write_bytes(canonical_json(index | {"dtype": "uint32", "vocab_size": 70_000}))
    with pytest.raises(DatasetError, match=r"shard-00000\.bin.*expected \d+ bytes"):
        TokenStream(copy)


@pytest.mark.parametrize(
    "line",
    [
        b"not json",
        b"[]",
        b'{"bytes":"5","name":"n","sha256":"%s","source":"s"}' % (b"0" * 64),
        b'{"bytes":5,"name":"n","sha256":5,"source":"s"}',
        b'{"bytes":5,"meta":[],"name":"n","sha256":"%s","source":"s"}' % (b"0" * 64),
        b'{"bytes":5,"extra":1,"name":"n","sha256":"%s","source":"s"}' % (b"0" * 64),
        b'{"bytes":5,"name":"n","sha256":"xyz","source":"s"}',
    ],
)
def test_a_record_of_another_form_is_refused_even_when_all_digests_fit(copy, resign, line):
    sources = copy / "train" / "shard-00000.sources.jsonl"
    rest = sources.read_bytes().split(b"\n", 1)[1]
    sources.write_bytes(line + b"\n" + rest)
    docs = copy / "train" / "shard-00000.docs"
    rows = np.fromfile(docs, "<u8").reshape(-1, 2)
    rows[:, 1] = np.cumsum([len(part) + 1 for part in sources.read_bytes().split(b"\n")[:-1]])
    rows.tofile(docs)
    resign(copy)
    with pytest.raises(DatasetError, match=r"sources\.jsonl: line 1"):
        verify_dataset(copy)
