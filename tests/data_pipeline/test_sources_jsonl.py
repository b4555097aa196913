import gzip
import hashlib
import itertools
import json
import pickle
import tracemalloc
from collections import Counter

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.errors import DatasetError
from data_pipeline.sources import COUNTS, Document, open_source
from data_pipeline.sources.jsonl import MAX_DEPTH

SUFFIXES = ["jsonl", "jsonl.gz", "jsonl.zst"]


def compress(data, suffix):
    if suffix.endswith("gz"):
        return gzip.compress(data, mtime=0)
    return zstandard.compress(data) if suffix.endswith("zst") else data


def write(root, data, suffix="jsonl", name="a"):
    path = root / f"{name}.{suffix}"
    path.write_bytes(compress(data, suffix))
    return path


def jsonl(*rows):
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def opened(root, **keys):
    return open_source({"kind": "jsonl", "root": str(root), **keys})


def texts(source):
    return [document.text for document in source.documents()]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_record_becomes_a_document_with_the_declared_fields(tmp_path, suffix):
    row = {
        "content": "é\n",
        "key": 17,
        "set": {"name": "wiki"},
        "n": 3,
        "x": 0.1,
        "tags": ["b", 1.5, None],
        "ok": True,
        "none": None,
        "other": "not declared",
    }
    write(tmp_path, jsonl(row), suffix)
    source = opened(
        tmp_path,
        name="corpus",
        text_field="content",
        id_field="key",
        source_field="set.name",
        meta_fields=["n", "x", "tags", "ok", "none", "absent", "set"],
    )
    meta = {"n": 3, "x": "0.1", "tags": '["b","1.5",null]', "ok": "true", "set": '{"name":"wiki"}'}
    assert list(source.documents()) == [
        Document("wiki", f"a.{suffix}", "é\n", record=0, id="17", meta=meta)
    ]
    (record,) = source.record()
    assert record == {
        "kind": "jsonl",
        "name": "corpus",
        "fields": {
            "text": "content",
            "id": "key",
            "meta": ["n", "x", "tags", "ok", "none", "absent", "set"],
            "source": "set.name",
        },
        "malformed": "stop",
        "max_record_bytes": 1 << 28,
        "files": 1,
        "files_sha256": record["files_sha256"],
        "documents": 1,
        "bytes": 3,
        "skipped_empty": 0,
        "skipped_malformed": 0,
        "skipped_not_utf8": 0,
    }


def test_the_vector_of_the_specification(tmp_path):
    row = {"n": 3, "x": 0.1, "t": ["b", 1.5, None], "ok": True, "none": None, "o": {"k": "é"}}
    write(tmp_path, jsonl({"text": "a", **row}))
    (document,) = opened(tmp_path, meta_fields=list(row)).documents()
    meta = {"n": 3, "x": "0.1", "t": '["b","1.5",null]', "ok": "true", "o": '{"k":"é"}'}
    assert document.meta == meta


def test_a_key_that_holds_the_dots_comes_before_nested_keys(tmp_path):
    write(tmp_path, jsonl({"a.b": "whole", "a": {"b": "nested"}}, {"a": {"b": "nested"}}))
    assert texts(opened(tmp_path, text_field="a.b")) == ["whole", "nested"]


def test_files_come_by_code_point_and_records_in_file_order(tmp_path):
    (tmp_path / "a").mkdir()
    for name in ("b", "B", "a/z", "a-z", "é"):
        write(tmp_path, jsonl({"text": f"{name}0"}, {"text": f"{name}1"}), name=name)
    documents = list(opened(tmp_path).documents())
    assert [d.name for d in documents[::2]] == [
        "B.jsonl",
        "a-z.jsonl",
        "a/z.jsonl",
        "b.jsonl",
        "é.jsonl",
    ]
    assert [d.record for d in documents] == [0, 1] * 5
    assert {d.source for d in documents} == {"jsonl"}


def test_what_holds_nothing_is_counted_and_keeps_its_number(tmp_path):
    write(tmp_path, b'{"text": " \\t"}\n\n \r\n{"text": "a"}\r\n{"text": "\\u00a0"}')
    source = opened(tmp_path)
    counts = Counter()
    (file,) = source.files
    documents = list(source.read(file, counts))
    assert [(d.record, d.text) for d in documents] == [(3, "a"), (4, "\u00a0")]
    assert counts == {"documents": 2, "bytes": 3, "skipped_empty": 3}
    assert source.record({file.name: counts})[0]["skipped_empty"] == 3


MALFORMED = {
    b'{"text": "a"': "line 2: bad JSON at character 12: Expecting ',' delimiter",
    b"{'text': 'a'}": "line 2: bad JSON at character 1: Expecting property name",
    b'{"text": "a"} x': "line 2: bad JSON at character 14: Extra data",
    b'{"text": "a\tb"}': "line 2: bad JSON at character 11: Invalid control character",
    b'{"text": "a", "n": NaN}': "line 2: bad JSON: NaN is no JSON number",
    b'{"text": "a", "n": ' + b"1" * 5000 + b"}": "line 2: bad JSON: Exceeds the limit",
    b'["text"]': "line 2: expected a JSON object, found list",
    b"null": "line 2: expected a JSON object, found NoneType",
    b'{"txt": "a"}': "line 2: expected a string in 'text', found no such field",
    b'{"text": null}': "line 2: expected a string in 'text', found null",
    b'{"text": 5}': "line 2: expected a string in 'text', found 5",
    b'{"text": ["a"]}': "line 2: expected a string in 'text', found a list",
    b'{"text": "\xff"}': "line 2: invalid UTF-8 at byte 10 of the line",
    b'{"text": "a\\ud800b"}': "line 2: lone surrogate in 'text' at character 1",
    b'\xef\xbb\xbf{"text": "a"}': "line 2: bad JSON: a byte order mark before the object",
    b'{"text": "' + b"a" * 6000 + b'"}': "line 2: longer than max_record_bytes, 6000",
    b'{"text": "a", "n": ' + b"[" * 256 + b"]" * 256 + b"}": "line 2: bad JSON: nested deeper",
    b'{"text": "a", "n": ' + b"[" * 2950 + b"]" * 2950 + b"}": "line 2: bad JSON: nested deeper",
}


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("line", MALFORMED, ids=lambda line: line[:20].decode("latin1"))
def test_a_malformed_record_stops_with_file_line_and_reason_or_is_counted(tmp_path, line, suffix):
    good = jsonl({"text": "before"}), jsonl({"text": "after"})
    path = write(tmp_path, good[0] + line + b"\n" + good[1], suffix)
    read = opened(tmp_path, max_record_bytes=6000).documents()
    assert next(read).text == "before"
    with pytest.raises(DatasetError) as error:
        next(read)
    assert str(error.value).startswith(f"{path}, {MALFORMED[line]}")
    assert "malformed: skip" in str(error.value)
    source = opened(tmp_path, max_record_bytes=6000, malformed="skip")
    assert [(d.text, d.record) for d in source.documents()] == [("before", 0), ("after", 2)]
    (record,) = source.record()
    assert (record["malformed"], record["skipped_malformed"]) == ("skip", 1)


def test_nesting_up_to_the_limit_is_read(tmp_path):
    depth = MAX_DEPTH - 1  # and the record itself
    write(tmp_path, b'{"text": "[{", "n": ' + b"[" * depth + b"]" * depth + b"}\n")
    assert texts(opened(tmp_path)) == ["[{"]


@pytest.mark.parametrize("length", [99, 100])
def test_a_record_may_be_as_long_as_declared(tmp_path, length):
    line = json.dumps({"text": ""}).encode()
    write(tmp_path, line[:-2] + b"a" * (length - len(line)) + b'"}\n')
    assert len(texts(opened(tmp_path, max_record_bytes=length))) == 1
    with pytest.raises(DatasetError, match=f"line 1: longer than max_record_bytes, {length - 1}"):
        texts(opened(tmp_path, max_record_bytes=length - 1))


@pytest.mark.parametrize(
    ("keys", "row", "reason"),
    [
        ({"id_field": "id"}, {}, "expected a string or an integer in 'id', found no such field"),
        ({"id_field": "id"}, {"id": ""}, "expected a string or an integer in 'id', found ''"),
        ({"id_field": "id"}, {"id": True}, "in 'id', found a boolean"),
        ({"id_field": "id"}, {"id": "\ud800"}, "lone surrogate in 'id'"),
        ({"source_field": "s"}, {"s": 1}, "expected a string in 's', found 1"),
        ({"source_field": "s.t"}, {"s": "t"}, "in 's.t', found no such field"),
        ({"meta_fields": ["m"]}, {"m": "\ud800"}, "metadata field 'm' has a lone surrogate"),
        ({"meta_fields": ["m"]}, {"m": ["\ud800"]}, "metadata field 'm' has a lone surrogate"),
    ],
)
def test_a_declared_field_that_cannot_be_used_is_malformed(tmp_path, keys, row, reason):
    write(tmp_path, jsonl({"text": "a", **row}))
    with pytest.raises(DatasetError, match=reason):
        texts(opened(tmp_path, **keys))
    assert texts(opened(tmp_path, malformed="skip", **keys)) == []


def test_a_torn_last_line_is_said_to_be_torn(tmp_path):
    path = write(tmp_path, b'{"text": "a"}\n{"text": "b')
    with pytest.raises(DatasetError) as error:
        texts(opened(tmp_path))
    assert str(error.value).startswith(f"{path}, line 2: bad JSON")
    assert "in a last line that is cut off" in str(error.value)
    assert texts(opened(tmp_path, malformed="skip")) == ["a"]


MANY = [f"document {i} " + "é" * (i % 50) for i in range(5000)]


@pytest.mark.parametrize("suffix", SUFFIXES[1:])
@pytest.mark.parametrize("keep", [0.5, 0.99999])
def test_a_truncated_stream_gives_its_whole_lines_and_is_then_malformed(tmp_path, suffix, keep):
    data = compress(jsonl(*({"text": text} for text in MANY)), suffix)
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(data[: int(len(data) * keep)])
    source = opened(tmp_path, malformed="skip")
    found = texts(source)
    assert found == MANY[: len(found)]
    assert len(found) > len(MANY) * keep * 0.5
    assert source.record()[0]["skipped_malformed"] == 1
    with pytest.raises(DatasetError) as error:
        texts(opened(tmp_path))
    place = f"{path}, line {len(found) + 1}: the {'gzip' if suffix.endswith('gz') else 'zstd'}"
    assert str(error.value).startswith(place + " stream is cut off: the rest of the file")


@pytest.mark.parametrize("suffix", SUFFIXES[1:])
def test_every_truncation_is_noticed(tmp_path, suffix):
    data = b"".join(compress(jsonl({"text": text}), suffix) for text in ("one", "two"))
    borders = {0, len(compress(jsonl({"text": "one"}), suffix))}  # between members: a whole file
    path = tmp_path / f"a.{suffix}"
    for length in range(len(data)):
        path.write_bytes(data[:length])
        source = opened(tmp_path, malformed="skip")
        texts(source)
        assert source.record()[0]["skipped_malformed"] == (length not in borders), length


@pytest.mark.parametrize("suffix", SUFFIXES[1:])
def test_damaged_streams_and_trailing_rubbish_are_noticed(tmp_path, suffix):
    whole = compress(jsonl({"text": "one"}), suffix)
    damaged = bytearray(compress(jsonl(*({"text": text} for text in MANY)), suffix))
    damaged[len(damaged) // 2] ^= 0x55
    for data in (bytes(damaged), whole + b"rubbish"):
        (tmp_path / f"a.{suffix}").write_bytes(data)
        with pytest.raises(DatasetError):
            texts(opened(tmp_path))
    (tmp_path / f"a.{suffix}").write_bytes(whole + b"rubbish")
    source = opened(tmp_path, malformed="skip")
    assert texts(source) == ["one"]
    assert source.record()[0]["skipped_malformed"] == 1


@pytest.mark.parametrize("suffix", SUFFIXES[1:])
def test_members_and_frames_follow_one_another(tmp_path, suffix):
    data = jsonl(*({"text": text} for text in MANY[:200]))
    cuts = [0, 1, 1, 40, 5000, len(data)]
    pieces = [compress(data[a:b], suffix) for a, b in itertools.pairwise(cuts)]
    if suffix.endswith("zst"):
        pieces.insert(2, b"\x50\x2a\x4d\x18\x04\0\0\0skip")  # a skippable frame, as pzstd writes
        pieces.append(zstandard.ZstdCompressor(write_checksum=True).compress(b""))
    else:
        pieces.append(b"\0" * 5000)  # padding, as tape and disk images leave it
    (tmp_path / f"a.{suffix}").write_bytes(b"".join(pieces))
    assert texts(opened(tmp_path)) == MANY[:200]


def test_windows_above_the_library_default_are_read(tmp_path):
    parameters = zstandard.ZstdCompressionParameters(window_log=28, compression_level=1)
    frame = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    data = frame.compress(jsonl({"text": "one"})) + frame.flush()
    (tmp_path / "a.jsonl.zst").write_bytes(data)
    with pytest.raises(zstandard.ZstdError):  # what is guarded against
        zstandard.ZstdDecompressor().decompressobj().decompress(data)
    assert texts(opened(tmp_path)) == ["one"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_that_changes_after_opening_is_an_error_under_any_policy(tmp_path, suffix):
    write(tmp_path, jsonl({"text": "one"}), suffix)
    source = opened(tmp_path, malformed="skip")
    path = write(tmp_path, jsonl({"text": "two"}), suffix)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(DatasetError, match=f"expected sha256 {source.files[0].sha256}") as error:
        texts(source)
    assert found in str(error.value)
    path.unlink()
    with pytest.raises(DatasetError, match="file not found; restore it"):
        texts(source)


def endless(path, suffix, megabytes):
    """Write a file of about ``megabytes`` of records that compress very well."""
    block = jsonl(*({"text": f"{i} " + "word " * 200} for i in range(1000)))
    packed = compress(block, suffix)
    with path.open("wb") as handle:
        for _ in range(megabytes * 1_000_000 // len(block)):
            handle.write(packed)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_memory_does_not_depend_on_the_size_of_the_file(tmp_path, suffix):
    endless(tmp_path / f"a.{suffix}", suffix, 60)
    source = opened(tmp_path)
    tracemalloc.start()
    counts = Counter()
    for _ in source.read(source.files[0], counts):
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert counts["bytes"] > 55_000_000
    assert peak < 8_000_000


def test_a_line_that_is_too_long_is_passed_over_without_holding_it(tmp_path):
    block = zstandard.compress(b"a" * 1_000_000)
    with (tmp_path / "a.jsonl.zst").open("wb") as handle:
        handle.write(zstandard.compress(b'{"text": "'))
        for _ in range(60):
            handle.write(block)
        handle.write(zstandard.compress(b'"}\n{"text": "after"}\n'))
    source = opened(tmp_path, malformed="skip", max_record_bytes=100_000)
    tracemalloc.start()
    assert texts(source) == ["after"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8_000_000


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_first_document_does_not_wait_for_the_rest(tmp_path, suffix):
    first = compress(jsonl({"text": "first"}, *({"text": "x" * 1000} for _ in range(2000))), suffix)
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(first + b"\xff" * 4_000_000)  # reading on would fail
    read = opened(tmp_path).documents()
    assert next(read).text == "first"
    with pytest.raises(DatasetError):
        list(read)


def test_a_source_can_be_sent_to_another_process(tmp_path):
    write(tmp_path, jsonl({"text": "one"}))
    source = pickle.loads(pickle.dumps(opened(tmp_path)))
    assert texts(source) == ["one"]


def test_counts_of_files_add_up_in_the_record_however_they_were_read(tmp_path):
    for name in "abc":
        write(tmp_path, jsonl({"text": name}, {"text": ""}, {"text": 1}), name=name)
    source = opened(tmp_path, malformed="skip")
    list(source.documents())
    whole = source.record()
    counts = {file.name: Counter() for file in source.files}
    for file in reversed(source.files):
        list(source.read(file, counts[file.name]))
    assert source.record(counts) == whole
    assert {key: whole[0][key] for key in COUNTS} == {
        "bytes": 3,
        "documents": 3,
        "skipped_empty": 3,
        "skipped_malformed": 3,
        "skipped_not_utf8": 0,
    }


TEXTS = st.lists(st.text(st.characters(exclude_categories=["Cs"])).filter(lambda t: t.strip()))


@settings(max_examples=60, deadline=None)
@given(TEXTS, st.sampled_from(SUFFIXES), st.booleans(), st.booleans())
def test_any_texts_come_back_identical(tmp_path_factory, found, suffix, ascii_only, closed):
    root = tmp_path_factory.mktemp("texts")
    rows = [json.dumps({"text": text}, ensure_ascii=ascii_only).encode() for text in found]
    write(root, b"\n".join(rows) + (b"\n" if closed else b""), suffix)
    assert texts(opened(root)) == found
