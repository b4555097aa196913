import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.canonical import canonical_json
from data_pipeline.errors import DatasetError
from data_pipeline.index import token_dtype
from data_pipeline.shard_writer import ShardWriter
from data_pipeline.shards import TokenStream


@pytest.fixture(scope="module")
def stream(built):
    return TokenStream(built)


@pytest.fixture(scope="module")
def flat(built, stream):
    """The whole split, read without the package."""
    index = json.loads((built / "index.json").read_bytes())
    files = [built / shard["file"] for shard in index["splits"]["train"]["shards"]]
    assert len(files) > 3
    return np.concatenate([np.fromfile(file, "<u2") for file in files])


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_reads_cross_shard_borders(stream, flat, data):
    offset = data.draw(st.integers(0, len(flat)))
    count = data.draw(st.integers(0, len(flat) - offset))
    assert np.array_equal(stream.read(offset, count), flat[offset : offset + count])


@pytest.mark.parametrize("seq_len", [1, 7, 64, 500, 4000])
def test_sequences_tile_the_stream_with_one_id_of_overlap(stream, flat, seq_len):
    count = stream.num_sequences(seq_len)
    ids = stream.sequences(np.arange(count), seq_len)
    assert ids.shape == (count, seq_len + 1)
    assert ids.dtype == np.int64
    assert np.array_equal(ids[:, :-1].reshape(-1), flat[: count * seq_len])
    assert np.array_equal(ids[:, -1], flat[seq_len::seq_len][:count])
    assert len(flat) - 1 - seq_len < count * seq_len <= len(flat) - 1


def test_sequences_come_in_the_order_asked_for(stream):
    ids = stream.sequences([5, 0, 5], 64)
    assert np.array_equal(ids, stream.sequences([0, 5], 64)[[1, 0, 1]])


def test_a_stream_of_exactly_one_sequence(stream, flat):
    assert stream.num_sequences(len(flat) - 1) == 1
    assert stream.num_sequences(len(flat)) == 0
    assert np.array_equal(stream.sequences([0], len(flat) - 1)[0], flat)


def test_documents_tile_the_stream_and_hold_their_text(stream, corpus):
    tokenizer = stream.index.tokenizer()
    end = 0
    for number, document in enumerate(stream.documents()):
        assert (document.index, document.start) == (number, end)
        end = document.end
        ids = stream.read(document.start, end - document.start)
        assert np.flatnonzero(ids == stream.index.eod).tolist() == [len(ids) - 1]
        assert tokenizer.decode_bytes(ids[:-1]) == (corpus / document.name).read_bytes()
        for offset in (document.start, end - 1):
            assert stream.document_at(offset) == document
    assert end == stream.num_tokens
    assert number + 1 == stream.num_documents


def test_the_documents_of_a_range(stream):
    documents = list(stream.documents())
    start, end = documents[3].end - 1, documents[5].start + 1
    assert list(stream.documents_in(start, end)) == documents[3:6]


@pytest.mark.parametrize(
    "call",
    [
        lambda s: s.read(-1, 2),
        lambda s: s.read(0, s.num_tokens + 1),
        lambda s: s.sequences([s.num_sequences(64)], 64),
        lambda s: s.sequences([-1], 64),
        lambda s: s.document_at(s.num_tokens),
        lambda s: s.num_sequences(0),
    ],
)
def test_ranges_outside_the_stream_are_refused(stream, call):
    with pytest.raises(ValueError, match="expected"):
        call(stream)


def test_an_unknown_split_is_refused_with_the_names_that_exist(built):
    with pytest.raises(DatasetError, match=r"\['heldout', 'train'\], found test"):
        TokenStream(built, "test")


@pytest.mark.parametrize("suffix", ["bin", "docs"])
@pytest.mark.parametrize("change", [-2, 2, None])
def test_a_file_of_another_size_is_never_mapped(dataset, suffix, change):
    path = dataset / "train" / f"shard-00001.{suffix}"
    data = path.read_bytes()
    path.unlink()
    if change is not None:
        path.write_bytes((data + b"xx")[: len(data) + change])
    with pytest.raises(DatasetError, match=rf"shard-00001\.{suffix}: expected {len(data)} bytes"):
        TokenStream(dataset)


def test_lost_source_lines_are_noticed(dataset):
    path = dataset / "train" / "shard-00000.sources.jsonl"
    path.write_bytes(path.read_bytes().split(b"\n", 1)[1])
    with pytest.raises(DatasetError, match=r"sources\.jsonl: expected \d+ bytes, found"):
        TokenStream(dataset).document_at(0)


def test_large_vocabularies_take_four_bytes(dataset):
    assert [token_dtype(size) for size in (257, 65_536, 65_537)] == ["uint16", "uint16", "uint32"]
    root = dataset.parent / "wide"
    root.mkdir()
    source = {"source": "s", "name": "n", "bytes": 1, "sha256": "0" * 64}
    shards = {}
    for split in ("train", "heldout"):
        writer = ShardWriter(root, split, vocab_size=70_000, shard_tokens=10)
        for ids in ([69_999, 1], [2]):
            writer.add(np.array(ids, dtype=np.uint32), source)
        shards[split] = {"shards": [vars(shard) for shard in writer.close()]}
    index = json.loads((dataset / "index.json").read_bytes())
    index |= {"vocab_size": 70_000, "dtype": "uint32", "splits": shards}
    (root / "index.json").write_bytes(canonical_json(index))
    assert (root / "train" / "shard-00000.bin").stat().st_size == 20
    assert TokenStream(root).read(0, 5).tolist() == [69_999, 1, 0, 2, 0]


def test_a_document_larger_than_a_shard_gets_one_of_its_own(tmp_path):
    writer = ShardWriter(tmp_path, "train", vocab_size=300, shard_tokens=10)
    source = {"source": "s", "name": "n", "bytes": 1, "sha256": "0" * 64}
    for size in (3, 50, 4, 4, 4):
        writer.add(np.ones(size, dtype=np.uint32), source)
    assert [shard.tokens for shard in writer.close()] == [4, 51, 10, 5]
