import hashlib
import tracemalloc
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.errors import DatasetError
from data_pipeline.sources import Document, open_source


def write(root, columns, name="a", **options):
    path = root / f"{name}.parquet"
    pq.write_table(pa.table(columns), path, **options)
    return path


def opened(root, **keys):
    return open_source({"kind": "parquet", "root": str(root), **keys})


def texts(source):
    return [document.text for document in source.documents()]


def test_a_row_becomes_a_document_with_the_declared_columns(tmp_path):
    write(
        tmp_path,
        {
            "content": ["a", "b"],
            "key": pa.array([7, 8], pa.int64()),
            "set": [{"name": "wiki", "year": 2020}, {"name": "code", "year": None}],
            "score": [0.1, None],
            "tags": [["x"], []],
            "image": [b"\xff", b"\xff"],  # not declared, not read
        },
    )
    source = opened(
        tmp_path,
        name="corpus",
        text_field="content",
        id_field="key",
        source_field="set.name",
        meta_fields=["set.year", "score", "tags"],
    )
    assert list(source.documents()) == [
        Document(
            "wiki", "a.parquet", "a", 0, "7", {"set.year": 2020, "score": "0.1", "tags": '["x"]'}
        ),
        Document("code", "a.parquet", "b", 1, "8", {"tags": "[]"}),
    ]
    (record,) = source.record()
    assert (record["kind"], record["name"], record["malformed"]) == ("parquet", "corpus", "stop")
    assert record["fields"]["meta"] == ["set.year", "score", "tags"]
    assert (record["files"], record["documents"], record["bytes"]) == (1, 2, 2)


def test_rows_are_numbered_through_row_groups_and_files_come_in_order(tmp_path):
    for name in "ba":
        write(tmp_path, {"text": [f"{name}{i}" for i in range(300)]}, name, row_group_size=70)
    documents = list(opened(tmp_path).documents())
    assert [d.text for d in documents] == [f"{name}{i}" for name in "ab" for i in range(300)]
    assert [d.record for d in documents] == [*range(300)] * 2


@pytest.mark.parametrize(
    "type_",
    [
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.binary(),
        pa.large_binary(),
        pa.dictionary(pa.int32(), pa.string()),
    ],
    ids=str,
)
def test_every_type_that_writers_give_text_is_read(tmp_path, type_):
    values = ["é", "", "é", "b"]
    raw = [v.encode() for v in values] if "binary" in str(type_) else values
    if pa.types.is_dictionary(type_):
        column = pa.array(raw).dictionary_encode()
    else:
        column = pa.array(raw, type_)
    write(tmp_path, {"text": column})
    source = opened(tmp_path)
    assert texts(source) == ["é", "é", "b"]
    assert source.record()[0]["skipped_empty"] == 1


def not_utf8():
    """A string column with a value that is not UTF-8, as careless writers make it."""
    return pa.array([b"before", b"\xff", b"after"], pa.binary()).view(pa.string())


@pytest.mark.parametrize(
    ("column", "reason"),
    [
        (pa.array(["before", None, "after"]), "row 1: expected a string in 'text', found null"),
        (pa.array([b"before", b"a\xff", b"after"]), "row 1: invalid UTF-8 in 'text' at byte 1"),
        (not_utf8(), "row 1: invalid UTF-8 or damaged values ("),
    ],
)
def test_a_malformed_row_stops_with_file_row_and_reason_or_is_counted(tmp_path, column, reason):
    path = write(tmp_path, {"text": column})
    with pytest.raises(DatasetError) as error:
        texts(opened(tmp_path))
    assert str(error.value).startswith(f"{path}, {reason}")
    source = opened(tmp_path, malformed="skip")
    assert [(d.text, d.record) for d in source.documents()] == [("before", 0), ("after", 2)]
    assert source.record()[0]["skipped_malformed"] == 1


@pytest.mark.parametrize(
    ("keys", "found"),
    [
        ({"text_field": "n"}, "expected strings in the column 'n', found int64"),
        ({"text_field": "nope"}, r"in the column 'nope', found the columns \['text', 'n', 's'"),
        ({"text_field": "s.nope"}, "in the column 's.nope', found the columns"),
        ({"id_field": "s"}, "expected strings or integers in the column 's', found struct"),
        ({"source_field": "n"}, "expected strings in the column 'n', found int64"),
        ({"meta_fields": ["when"]}, r"in the column 'when', found timestamp\[ms\]"),
        ({"meta_fields": ["s"]}, "in the column 's', found struct<t: binary>"),
    ],
)
def test_a_column_that_cannot_be_used_is_refused_under_any_policy(tmp_path, keys, found):
    write(
        tmp_path,
        {
            "text": ["a"],
            "n": [1],
            "s": [{"t": b"x"}],
            "when": pa.array([0], pa.timestamp("ms")),
        },
    )
    with pytest.raises(DatasetError, match=found):
        texts(opened(tmp_path, malformed="skip", **keys))


def test_truncated_and_damaged_files_are_malformed(tmp_path):
    path = write(tmp_path, {"text": [f"text {i}" for i in range(2000)]}, row_group_size=500)
    whole = path.read_bytes()
    for data in (b"", whole[:4], whole[: len(whole) // 2], whole[:-1]):
        path.write_bytes(data)
        with pytest.raises(DatasetError, match=r"a\.parquet, row 0: damaged file \("):
            texts(opened(tmp_path))
        source = opened(tmp_path, malformed="skip")
        assert texts(source) == []
        assert source.record()[0]["skipped_malformed"] == 1


def test_a_damaged_page_loses_the_rest_of_the_file_and_says_where(tmp_path):
    values = [f"text {i}" for i in range(2000)]
    path = write(tmp_path, {"text": values}, row_group_size=500, use_dictionary=False)
    start = pq.ParquetFile(path).metadata.row_group(2).column(0).data_page_offset
    data = bytearray(path.read_bytes())
    data[start : start + 12] = b"\xff" * 12
    path.write_bytes(data)
    with pytest.raises(DatasetError, match=r"row 1000: damaged file"):
        texts(opened(tmp_path))
    assert texts(opened(tmp_path, malformed="skip")) == values[:1000]


def test_a_file_that_changes_after_opening_is_an_error_under_any_policy(tmp_path):
    path = write(tmp_path, {"text": ["one"]})
    source = opened(tmp_path, malformed="skip")
    for data in (b"no parquet", write(tmp_path, {"text": ["two"]}).read_bytes()):
        path.write_bytes(data)
        with pytest.raises(DatasetError, match=f"expected sha256 {source.files[0].sha256}") as e:
            texts(source)
        assert hashlib.sha256(data).hexdigest() in str(e.value)
    path.unlink()
    with pytest.raises(DatasetError, match="file not found; restore it"):
        texts(source)


def test_memory_does_not_depend_on_the_size_of_a_row_group(tmp_path):
    row = "word " * 200
    with pq.ParquetWriter(tmp_path / "a.parquet", pa.schema({"text": pa.string()})) as writer:
        column = pa.array([f"{i} {row}" for i in range(60_000)])
        writer.write_table(pa.table({"text": column}), row_group_size=60_000)
        del column
    source = opened(tmp_path)
    counts, before, peak = Counter(), pa.total_allocated_bytes(), 0
    tracemalloc.start()
    for _ in source.read(source.files[0], counts):
        peak = max(peak, pa.total_allocated_bytes() - before)
    python_peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert counts["bytes"] > 60_000_000
    assert peak < 16_000_000
    assert python_peak < 8_000_000


def test_the_first_document_does_not_wait_for_the_rest(tmp_path):
    values = ["first", *(f"{i} " + "x" * 1000 for i in range(3000))]
    path = write(tmp_path, {"text": values}, row_group_size=1000, use_dictionary=False)
    start = pq.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
    data = bytearray(path.read_bytes())
    data[start : start + 12] = b"\xff" * 12  # reading on would fail
    path.write_bytes(data)
    read = opened(tmp_path).documents()
    assert next(read).text == "first"
    with pytest.raises(DatasetError, match="row 1000"):
        list(read)


TEXTS = st.lists(st.text(st.characters(exclude_categories=["Cs"])).filter(lambda t: t.strip()))


@settings(max_examples=40, deadline=None)
@given(TEXTS, st.sampled_from(["none", "snappy", "zstd"]), st.integers(1, 100))
def test_any_texts_come_back_identical(tmp_path_factory, found, compression, group):
    root = tmp_path_factory.mktemp("texts")
    column = pa.array(found, pa.string())
    write(root, {"text": column}, compression=compression, row_group_size=group)
    assert texts(opened(root)) == found
