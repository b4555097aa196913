import json
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.build import build_dataset
from data_pipeline.canonical import canonical_json, sha256_file, sha256_hex
from data_pipeline.errors import DatasetError
from data_pipeline.index import ShardIndex, in_heldout, verify_dataset

FILES = [
    "tokenizer.json",
    *(
        f"{shard}.{suffix}"
        for shard in ("train/shard-00001", "heldout/shard-00000")
        for suffix in ("bin", "docs", "sources.jsonl")
    ),
]


def edit(root: Path, change) -> None:
    index = json.loads((root / "index.json").read_bytes())
    change(index)
    (root / "index.json").write_bytes(canonical_json(index))


def test_a_good_dataset_passes_and_its_digest_is_the_sha256_of_the_index(built):
    index = verify_dataset(built, text=True)
    assert index.digest == sha256_file(built / "index.json")
    assert verify_dataset(built, expected_digest=index.digest).data == index.data
    assert (index.vocab_size, index.eod, index.dtype.str) == (300, 0, "<u2")


def test_another_digest_than_the_expected_one_stops_with_both(built):
    found = ShardIndex.load(built).digest
    with pytest.raises(DatasetError, match=f"digest {'0' * 64}, found {found}"):
        verify_dataset(built, expected_digest="0" * 64)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("place", [0, -1, 0.5])
def test_a_flipped_bit_anywhere_is_found_and_the_file_named(dataset, file, place):
    path = dataset / file
    data = bytearray(path.read_bytes())
    data[int(place * len(data)) if place == 0.5 else place] ^= 1
    path.write_bytes(data)
    with pytest.raises(DatasetError, match=file) as error:
        verify_dataset(dataset)
    assert all(word in str(error.value) for word in ("expected", "found", "build it again"))


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("how", ["truncated", "longer", "missing"])
def test_a_file_of_another_size_is_found_and_named(dataset, file, how):
    path = dataset / file
    data = path.read_bytes()
    path.unlink()
    if how != "missing":
        path.write_bytes(data[:-1] if how == "truncated" else data + b"\n")
    with pytest.raises(DatasetError, match=file):
        verify_dataset(dataset)


def test_a_flipped_bit_in_the_index_is_found_or_changes_the_digest(dataset):
    path = dataset / "index.json"
    data = path.read_bytes()
    digest = ShardIndex.load(dataset).digest
    for place in range(0, len(data), 7):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(DatasetError, match=r"index\.json|shard-|tokenizer\.json"):
            verify_dataset(dataset, expected_digest=digest)


def change_tokenizer(dataset, data: bytes) -> None:
    """Another tokenizer, with an index that claims it."""
    (dataset / "tokenizer.json").write_bytes(data)
    edit(dataset, lambda index: index["tokenizer"].update(sha256=sha256_hex(data)))


def test_another_tokenizer_is_found(dataset, tmp_path, spec):
    spec["tokenizer"]["train_bytes"] = 9_000
    build_dataset(spec, tmp_path / "other")
    other = (tmp_path / "other" / "tokenizer.json").read_bytes()
    (dataset / "tokenizer.json").write_bytes(other)
    with pytest.raises(DatasetError, match=r"tokenizer\.json: sha256: expected"):
        verify_dataset(dataset)
    change_tokenizer(dataset, other)
    with pytest.raises(DatasetError, match="text of document 0"):
        verify_dataset(dataset, text=True)


def test_a_tokenizer_that_encodes_differently_is_found(dataset):
    """What a change of the library would look like: the file fits, the ids do not."""
    data = (dataset / "tokenizer.json").read_bytes()
    other = json.loads(data)
    other["model"]["merges"] = []
    change_tokenizer(dataset, json.dumps(other).encode())
    with pytest.raises(DatasetError, match="ids of the conformance text"):
        verify_dataset(dataset)


def test_a_tokenizer_of_another_size_is_found(dataset, tmp_path, spec):
    spec["tokenizer"]["vocab_size"] = 310
    build_dataset(spec, tmp_path / "other")
    change_tokenizer(dataset, (tmp_path / "other" / "tokenizer.json").read_bytes())
    with pytest.raises(DatasetError, match="vocabulary size: expected 300, found 310"):
        verify_dataset(dataset)


@pytest.mark.parametrize(
    "name",
    [
        "../train/shard-00000.bin",
        "/etc/passwd",
        "train/../../x/shard-00000.bin",
        "train/shard-00000.bin\n",
        "heldout/shard-00000.bin",
        "train/shard-00001.bin",
        "train\\shard-00000.bin",
    ],
)
def test_an_index_cannot_name_other_files(dataset, name):
    def change(index):
        index["splits"]["train"]["shards"][0]["file"] = name

    edit(dataset, change)
    with pytest.raises(DatasetError, match=r"index\.json"):
        ShardIndex.load(dataset)


@pytest.mark.parametrize(
    "change",
    [
        lambda index: index.update(schema="index-v2"),
        lambda index: index.update(extra=1),
        lambda index: index.pop("policies"),
        lambda index: index["policies"].update(eod="none"),
        lambda index: index.update(dtype="uint32"),
        lambda index: index["splits"]["train"]["shards"][0].update(tokens=-1),
        lambda index: index["splits"]["train"]["shards"][0].update(sha256="XY"),
        lambda index: index["splits"].update(test={"shards": []}),
    ],
)
def test_an_index_of_another_form_is_refused(dataset, change):
    edit(dataset, change)
    with pytest.raises(DatasetError, match=r"index\.json"):
        ShardIndex.load(dataset)


@pytest.mark.parametrize(
    "rewrite",
    [
        lambda data: data + b"\n",
        lambda data: data.replace(b'"eod":0', b'"eod": 0', 1),
        lambda data: b'{"dtype":"uint16",' + data[1:],
        lambda data: data.replace(b'"eod":0', b'"eod":0.0', 1),
        lambda data: data[:-1],
        lambda data: b"\xff" + data,
    ],
)
def test_an_index_in_another_encoding_is_refused(dataset, rewrite):
    path = dataset / "index.json"
    path.write_bytes(rewrite(path.read_bytes()))
    with pytest.raises(DatasetError, match="expected canonical JSON"):
        ShardIndex.load(dataset)


def test_no_dataset_at_all_says_how_to_build_one(tmp_path):
    with pytest.raises(DatasetError, match="build the dataset first"):
        ShardIndex.load(tmp_path)


def rewrite_ids(root, change):
    path = root / "train" / "shard-00000.bin"
    ids = np.fromfile(path, "<u2")
    change(ids)
    ids.tofile(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda ids: ids.__setitem__(3, 300), "largest id below 300"),
        (lambda ids: ids.__setitem__(3, 0), "at the end of every document and nowhere else"),
        (lambda ids: ids.__setitem__(-1, 5), "at the end of every document and nowhere else"),
    ],
)
def test_wrong_ids_are_found_even_when_all_digests_were_made_to_fit(
    dataset, resign, change, message
):
    rewrite_ids(dataset, change)
    resign(dataset)
    with pytest.raises(DatasetError, match=message):
        verify_dataset(dataset)


def test_tokens_that_are_not_the_text_are_found_when_text_is_checked(dataset, resign):
    rewrite_ids(dataset, lambda ids: ids.__setitem__(3, ids[3] + 1))
    resign(dataset)
    verify_dataset(dataset)
    with pytest.raises(DatasetError, match=r"text of document 0 \(part0/"):
        verify_dataset(dataset, text=True)


def test_a_heldout_document_in_the_training_split_is_found(dataset, resign):
    heldout = (dataset / "heldout" / "shard-00000.sources.jsonl").read_bytes().split(b"\n")[0]
    path = dataset / "train" / "shard-00000.sources.jsonl"
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([heldout, *lines[1:]]))
    resign(dataset)
    with pytest.raises(DatasetError, match="split by content: expected 'heldout', found 'train'"):
        verify_dataset(dataset)


@pytest.mark.parametrize("ends", ["swapped", "last", "lines"])
def test_wrong_document_borders_are_found(dataset, resign, ends):
    path = dataset / "train" / "shard-00000.docs"
    data = np.fromfile(path, "<u8").reshape(-1, 2)
    if ends == "swapped":
        data[[0, 1], 0] = data[[1, 0], 0]
    elif ends == "last":
        data[-1, 0] += 1
    else:
        data[0, 1] += 1
    data.tofile(path)
    resign(dataset)
    with pytest.raises(DatasetError, match=r"shard-00000\.docs: (strictly|last|end of line 1)"):
        verify_dataset(dataset)


def test_exact_duplicates_fall_on_one_side(built):
    names = {}
    for split in ("train", "heldout"):
        for path in sorted((built / split).glob("*.jsonl")):
            for line in path.read_text().splitlines():
                record = json.loads(line)
                names[record["name"]] = (split, record["sha256"])
    assert names["part0/doc000.txt"] == names["part2/zz_copy.txt"]
    assert {split for split, _ in names.values()} == {"train", "heldout"}


def test_the_split_is_the_first_64_bits_of_the_content_digest():
    assert in_heldout("0000000000000013" + "f" * 48, 20)
    assert not in_heldout("0000000000000014" + "0" * 48, 20)
    assert in_heldout("00000000000003e8" + "f" * 48, 1)
    assert not in_heldout("0" * 64, 0)
