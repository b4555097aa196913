import itertools
import json
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_pipeline.canonical import canonical_json, sha256_file
from data_pipeline.errors import DatasetError
from data_pipeline.megatron import DTYPES, MegatronFiles, find_files, write_megatron
from data_pipeline.megatron_build import MegatronPart, build_megatron_index, verify_megatron
from data_pipeline.megatron_index import MegatronIndex, NeoxPlan, is_megatron
from data_pipeline.megatron_notices import describe_megatron
from data_pipeline.megatron_stream import MegatronStream

ITEMS = [[1, 2, 3], [4, 5], [65000, 7, 8, 9]]
FLAT = list(itertools.chain(*ITEMS))
BIN = "01000200030004000500e8fd070008000900"
IDX = (
    "4d4d494449445800000100000000000000080300000000000000040000000000000003000000020000000400000000"
    "0000000000000006000000000000000a00000000000000000000000000000001000000000000000200000000000000"
    "0300000000000000"
)


def cut(prefix: Path, sizes: list[int], last: int | None = None) -> None:
    """Replace the .bin by shards of these sizes; the rest goes to the last one."""
    whole = prefix.with_name(prefix.name + ".bin")
    data = whole.read_bytes()
    whole.unlink()
    ends = [*np.cumsum(sizes).tolist(), len(data)]
    for number, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
        name = f"{prefix.name}-{number:05d}-of-{last or len(sizes):05d}.bin"
        prefix.with_name(name).write_bytes(data[start:end])


def index(root: Path, items=ITEMS, plan=None, policy="unknown", eod=0, dtype="uint16", **more):
    root.mkdir(exist_ok=True)
    write_megatron(root / "text", items, dtype)
    part = MegatronPart.of(root / "text")
    return build_megatron_index(root / "data", [part], 65_536, eod, policy, plan, **more)


def read_all(files: MegatronFiles) -> list[int]:
    out = np.empty(files.num_tokens, dtype=np.int64)
    files.read_into(0, out)
    return out.tolist()


def test_the_writer_gives_the_published_bytes(tmp_path):
    write_megatron(tmp_path / "text", ITEMS, "uint16")
    assert (tmp_path / "text.bin").read_bytes().hex() == BIN
    assert (tmp_path / "text.idx").read_bytes().hex() == IDX


def test_the_published_bytes_are_read(tmp_path):
    (tmp_path / "text.bin").write_bytes(bytes.fromhex(BIN))
    (tmp_path / "text.idx").write_bytes(bytes.fromhex(IDX))
    files = MegatronFiles.open(tmp_path / "text")
    assert (files.num_items, files.num_tokens, files.dtype.name) == (3, 9, "uint16")
    assert files.sizes.tolist() == [3, 2, 4]
    assert files.document_index.tolist() == [0, 1, 2, 3]
    assert read_all(files) == FLAT


@pytest.mark.parametrize("name", sorted(np.dtype(name).name for name in DTYPES.values()))
def test_every_integer_type_makes_the_round_trip(tmp_path, name):
    limits = np.iinfo(name)
    items = [[limits.min, 5], [], [limits.max]]
    assert read_all(write_megatron(tmp_path / "text", items, name)) == [limits.min, 5, limits.max]
    with pytest.raises(ValueError, match="expected ids in"):
        write_megatron(tmp_path / "text", [[limits.min - 1]], name)
    with pytest.raises(ValueError, match="expected integer ids"):
        write_megatron(tmp_path / "text", [[0.5]], name)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    st.lists(st.lists(st.integers(0, 2**31 - 1), max_size=6), max_size=6),
    st.lists(st.integers(0, 20), max_size=6),
    st.data(),
)
def test_shards_cut_anywhere_read_as_one_even_inside_an_id(tmp_path, items, sizes, data):
    root = tmp_path / "cut"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    write_megatron(root / "text", items, "int32")
    total = 4 * sum(map(len, items))
    kept = [min(size, total) for size in sizes]
    while sum(kept) > total:
        kept.pop()
    cut(root / "text", kept)
    files = MegatronFiles.open(root / "text")
    flat = list(itertools.chain(*items))
    assert read_all(files) == flat
    runs = list(files.segments())
    assert [int(v) for _, ids in runs for v in ids] == flat
    assert [start for start, _ in runs] == [0, *np.cumsum([len(i) for _, i in runs])][: len(runs)]
    if flat:
        start = data.draw(st.integers(0, len(flat) - 1))
        out = np.empty(data.draw(st.integers(0, len(flat) - start)), dtype=np.int64)
        files.read_into(start, out)
        assert out.tolist() == flat[start : start + len(out)]


@pytest.mark.parametrize("last", [20, 21])
def test_both_ways_of_numbering_shards_are_found(tmp_path, last):
    write_megatron(tmp_path / "document", [range(100)], "uint16")
    cut(tmp_path / "document", [7] * 20, last)
    write_megatron(tmp_path / "document-of", [[1]], "uint16")
    idx, bins = find_files(tmp_path / "document")
    assert (idx.name, len(bins)) == ("document.idx", 21)
    assert [path.name[9:14] for path in bins] == [f"{k:05d}" for k in range(21)]
    assert read_all(MegatronFiles(idx, bins)) == list(range(100))


@pytest.mark.parametrize("how", ["first", "middle", "two totals", "whole too", "none", "no idx"])
def test_missing_and_doubled_files_are_named(tmp_path, how):
    write_megatron(tmp_path / "text", [range(100)], "uint16")
    whole = (tmp_path / "text.bin").read_bytes()
    cut(tmp_path / "text", [40, 40])
    if how == "whole too":
        (tmp_path / "text.bin").write_bytes(whole)
    elif how == "two totals":
        (tmp_path / "text-00003-of-00009.bin").write_bytes(b"")
    elif how == "none":
        for path in tmp_path.glob("*.bin"):
            path.unlink()
    elif how == "no idx":
        (tmp_path / "text.idx").unlink()
    else:
        (tmp_path / f"text-0000{'01'[how == 'middle']}-of-00002.bin").unlink()
    with pytest.raises(DatasetError, match=r"text\.(bin|idx): expected .*found"):
        find_files(tmp_path / "text")


def test_a_missing_last_shard_is_seen_by_the_number_of_bytes(tmp_path):
    write_megatron(tmp_path / "text", [range(100)], "uint16")
    cut(tmp_path / "text", [40, 40])
    (tmp_path / "text-00002-of-00002.bin").unlink()
    with pytest.raises(
        DatasetError, match=r"expected 200 bytes of uint16 ids in its \.bin, found 80"
    ):
        MegatronFiles.open(tmp_path / "text")


BROKEN = {
    "empty": (lambda d: b"", "first 9 bytes"),
    "other magic": (lambda d: b"TNTIDX\0\0" + d[8:], "first 9 bytes"),
    "header cut": (lambda d: d[:20], "size in bytes: expected at least 34"),
    "version": (lambda d: d[:9] + struct.pack("<Q", 2) + d[17:], "version: expected 1, found 2"),
    "big-endian version": (lambda d: d[:9] + struct.pack(">Q", 1) + d[17:], "version"),
    "float": (lambda d: d[:17] + b"\6" + d[18:], "code 6|6, a float"),
    "unknown type": (lambda d: d[:17] + b"\x09" + d[18:], "type code"),
    "wider type": (lambda d: d[:17] + b"\4" + d[18:], "pointer of item 1: expected 12, found 6"),
    "cut": (lambda d: d[:-1], "size in bytes"),
    "longer": (lambda d: d + b"\0", "size in bytes"),
    "modes": (lambda d: d + b"\0\0\0", "one mode byte an item"),
    "more items": (lambda d: d[:18] + struct.pack("<Q", 4) + d[26:], "size in bytes"),
    "huge count": (lambda d: d[:18] + b"\xff" * 8 + d[26:], "size in bytes"),
    "negative length": (lambda d: d[:34] + struct.pack("<i", -3) + d[38:], "length of item 0"),
    "other length": (lambda d: d[:34] + struct.pack("<i", 4) + d[38:], "pointer of item 1"),
    "last length": (lambda d: d[:42] + struct.pack("<i", 5) + d[46:], "expected 20 bytes"),
    "first pointer": (lambda d: d[:46] + struct.pack("<q", 2) + d[54:], "pointer of item 0"),
    "swapped pointers": (lambda d: d[:46] + d[54:62] + d[46:54] + d[62:], "pointer of item 0"),
    "document start": (lambda d: d[:70] + struct.pack("<q", 1) + d[78:], "first entry"),
    "document order": (
        lambda d: d[:78] + struct.pack("<q", 3) + d[86:],
        "document index: expected",
    ),
    "document end": (lambda d: d[:94] + struct.pack("<q", 4), "at most 3, found 4"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_idx_is_refused_with_file_and_reason(tmp_path, how):
    change, message = BROKEN[how]
    write_megatron(tmp_path / "text", ITEMS, "uint16")
    path = tmp_path / "text.idx"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(DatasetError, match=message) as error:
        MegatronFiles.open(tmp_path / "text")
    assert "text.idx" in str(error.value)
    assert all(word in str(error.value) for word in ("expected", "found", "again"))


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.data())
def test_a_fuzzed_idx_is_refused_or_says_the_same_lengths(tmp_path, data):
    path = tmp_path / "text.idx"
    if not path.exists():
        write_megatron(tmp_path / "text", ITEMS, "uint16")
    broken = bytearray.fromhex(IDX)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(broken) - 1))
        broken[place] = data.draw(st.integers(0, 255))
    kept = data.draw(st.one_of(st.just(len(broken)), st.integers(0, len(broken))))
    path.write_bytes(bytes(broken[:kept]))
    try:
        files = MegatronFiles.open(tmp_path / "text")
    except DatasetError as error:
        assert "text.idx" in str(error)
    else:
        # Only what no order uses may differ: the document index, and the sign of the type.
        assert files.dtype.itemsize == 2
        assert files.sizes.tolist() == [3, 2, 4]
        assert files.pointers.tolist() == [0, 6, 10]


@pytest.mark.parametrize("how", ["cut", "longer", "swapped"])
def test_a_bin_of_another_size_is_refused(tmp_path, how):
    write_megatron(tmp_path / "text", ITEMS, "uint16")
    write_megatron(tmp_path / "other", [[1]], "uint16")
    path = tmp_path / "text.bin"
    data = path.read_bytes()
    other = (tmp_path / "other.bin").read_bytes()
    path.write_bytes({"cut": data[:-1], "longer": data + b"\0\0", "swapped": other}[how])
    with pytest.raises(DatasetError, match="expected 18 bytes of uint16 ids"):
        MegatronFiles.open(tmp_path / "text")


def test_the_stream_reads_items_as_documents_empty_ones_too(tmp_path):
    items = [[], [1, 2, 3], [], [], [4], [5, 6], []]
    index(tmp_path / "a", items)
    stream = MegatronStream(tmp_path / "a" / "data")
    assert (stream.num_tokens, stream.num_documents) == (6, 7)
    assert [(d.start, d.end) for d in stream.documents()] == [
        (0, 0), (0, 3), (3, 3), (3, 3), (3, 4), (4, 6), (6, 6)
    ]  # fmt: skip
    assert [stream.document_at(k).record for k in range(6)] == [1, 1, 1, 4, 5, 5]
    assert [d.index for d in stream.documents_in(1, 5)] == [1, 4, 5]
    assert list(stream.documents_in(3, 3)) == []
    first = stream.document(1)
    assert (first.source, first.name, first.record, first.sha256) == ("text", "text", 1, "")
    assert stream.read(2, 3).tolist() == [3, 4, 5]
    for call in (
        lambda: stream.read(2, 5),
        lambda: stream.read(-1, 1),
        lambda: stream.document_at(6),
        lambda: stream.document(7),
    ):
        with pytest.raises(ValueError, match="expected"):
            call()


def test_parts_join_to_one_stream(tmp_path):
    files = {"b": [[1, 2], [3]], "a": [[]], "c": [[4], [5, 6, 7]]}
    parts = []
    for name, items in files.items():
        write_megatron(tmp_path / name, items, "uint16")
        parts.append(MegatronPart.of(tmp_path / name, name=f"source {name}"))
    cut(tmp_path / "c", [3])
    parts[-1] = MegatronPart.of(tmp_path / "c", name="source c")
    build_megatron_index(tmp_path / "data", parts, 8, None, "unknown", None)
    stream = MegatronStream(tmp_path / "data")
    assert stream.read(0, 7).tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert [(d.source, d.record, d.index) for d in stream.documents()] == [
        ("source b", 0, 0), ("source b", 1, 1), ("source a", 0, 2),
        ("source c", 0, 3), ("source c", 1, 4),
    ]  # fmt: skip
    assert stream.document_at(3).source == "source c"
    assert [d.index for d in stream.documents_in(1, 5)] == [0, 1, 3, 4]
    assert [(start, ids.tolist()) for start, ids in stream.pieces()] == [
        (0, [1, 2, 3]), (3, [4]), (4, [5]), (5, [6, 7])
    ]  # fmt: skip
    assert stream.sequences([0, 2], 2).tolist() == [[1, 2, 3], [5, 6, 7]]


def test_the_same_data_elsewhere_has_the_same_digest(tmp_path):
    first, second = index(tmp_path / "a"), index(tmp_path / "b")
    assert first.digest == second.digest == sha256_file(tmp_path / "a" / "data" / "index.json")
    assert is_megatron((tmp_path / "a" / "data" / "index.json").read_bytes())
    (tmp_path / "b").rename(tmp_path / "moved")
    with pytest.raises(DatasetError, match=r"correct the directory in locations\.json"):
        verify_megatron(tmp_path / "moved" / "data")
    for path in tmp_path.glob("moved/text.*"):
        shutil.move(path, tmp_path / "moved" / "data")
    (tmp_path / "moved" / "data" / "locations.json").unlink()
    assert verify_megatron(tmp_path / "moved" / "data", first.digest).digest == first.digest


def test_shards_and_the_whole_have_other_digests_and_equal_streams(tmp_path):
    whole = index(tmp_path / "a")
    root = tmp_path / "b"
    root.mkdir()
    write_megatron(root / "text", ITEMS, "uint16")
    cut(root / "text", [5, 4])
    part = MegatronPart.of(root / "text")
    cut_up = build_megatron_index(root / "data", [part], 65_536, 0, "unknown", None)
    assert whole.digest != cut_up.digest
    streams = [MegatronStream(tmp_path / name / "data").read(0, 9) for name in "ab"]
    assert np.array_equal(*streams)


@pytest.mark.parametrize("file", ["text.bin", "text.idx"])
@pytest.mark.parametrize("place", [0, -1, 0.5])
def test_a_flipped_bit_anywhere_is_found_by_verification(tmp_path, file, place):
    index(tmp_path, plan=NeoxPlan("1", 1, 2))
    path = tmp_path / file
    data = bytearray(path.read_bytes())
    data[int(len(data) * place) if place == 0.5 else place] ^= 1
    path.write_bytes(data)
    with pytest.raises(DatasetError, match=file):
        verify_megatron(tmp_path / "data")


def test_quick_verification_finds_sizes_and_lengths_but_not_ids(tmp_path):
    index(tmp_path)
    path = tmp_path / "text.bin"
    path.write_bytes(bytes([255]) + path.read_bytes()[1:])
    verify_megatron(tmp_path / "data", contents=False)
    with pytest.raises(DatasetError, match=r"text\.bin: sha256: expected"):
        verify_megatron(tmp_path / "data")
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(DatasetError, match=r"text\.bin: size in bytes"):
        verify_megatron(tmp_path / "data", contents=False)


def test_another_digest_than_the_expected_one_stops(tmp_path):
    index(tmp_path)
    with pytest.raises(DatasetError, match="index digest: expected '00"):
        verify_megatron(tmp_path / "data", "0" * 64)


def edit(root: Path, change) -> None:
    path = root / "data" / "index.json"
    data = json.loads(path.read_bytes())
    change(data)
    path.write_bytes(canonical_json(data))


@pytest.mark.parametrize(
    "name",
    ["../text.bin", "/etc/x.bin", "a/b.bin", "a\\b.bin", "text.bin\n", ".bin", "text", "x\0.bin"],
)
def test_an_index_names_files_by_base_name_only(tmp_path, name):
    index(tmp_path)
    edit(tmp_path, lambda data: data["parts"][0]["bins"][0].update(file=name))
    with pytest.raises(DatasetError, match=r"index\.json"):
        MegatronIndex.load(tmp_path / "data")


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.update(schema="megatron-index-v2"),
        lambda data: data.update(extra=1),
        lambda data: data.pop("eod_policy"),
        lambda data: data.update(eod_policy="perhaps"),
        lambda data: data.update(eod=65_536),
        lambda data: data.update(eod=None),
        lambda data: data.update(eod=None, eod_policy="appended"),
        lambda data: data.update(dtype="float32"),
        lambda data: data.update(parts=[]),
        lambda data: data["parts"].append(data["parts"][0]),
        lambda data: data["parts"][0].update(weight=1),
        lambda data: data["parts"][0].update(weight="-1"),
        lambda data: data["parts"][0].update(weight="1e999x"),
        lambda data: data["parts"][0].update(name="a/b"),
        lambda data: data["parts"][0].update(name="a\n"),
        lambda data: data["parts"][0].update(eod_count=None),
        lambda data: data["parts"][0]["bins"].append(data["parts"][0]["bins"][0]),
        lambda data: data["neox"].update(epochs=[1, 1]),
        lambda data: data["neox"].update(seq_len=0),
        lambda data: data["neox"].update(num_samples=1.5),
    ],
)
def test_an_index_of_another_form_is_refused(tmp_path, change):
    index(tmp_path, plan=NeoxPlan("1", 1, 2))
    path = tmp_path / "data" / "index.json"
    data = json.loads(path.read_bytes())
    change(data)
    path.write_bytes(json.dumps(data, sort_keys=True, separators=(",", ":")).encode())
    with pytest.raises(DatasetError, match=r"index\.json"):
        MegatronIndex.load(tmp_path / "data")


@pytest.mark.parametrize("change", [{"epochs": [2]}, {"samples": [5]}, {"num_samples": 50}])
def test_numbers_that_do_not_follow_from_the_files_are_found(tmp_path, change):
    from data_pipeline.neox import NeoxOrder

    index(tmp_path, plan=NeoxPlan("1", 1, 2))
    edit(tmp_path, lambda data: data["neox"].update(change))
    with pytest.raises(DatasetError, match="neox"):
        verify_megatron(tmp_path / "data", contents=False)
    with pytest.raises(DatasetError, match="neox"):
        NeoxOrder(MegatronStream(tmp_path / "data"), 2, 0)


@pytest.mark.parametrize("raw", [b"{}", b"[]", b"\xff", b'{"directories":{"text":{"a":1}}}'])
def test_broken_locations_are_refused(tmp_path, raw):
    index(tmp_path)
    (tmp_path / "data" / "locations.json").write_bytes(raw)
    with pytest.raises(DatasetError, match=r"locations\.json"):
        MegatronStream(tmp_path / "data")


@pytest.mark.parametrize(
    ("items", "policy", "plan", "message"),
    [
        ([[5, 0], [6], [0]], "appended", NeoxPlan("1", 1, 1), "at the end of item 1"),
        ([[5, 0], [6, 0, 7]], "appended", NeoxPlan("1", 1, 1), "at the end of item 1"),
        ([[5, 1], [6, 2]], "appended", None, "found it nowhere"),
        ([[5, 0], [6, 2]], "none", None, "found 1 of them, 1 at the end"),
    ],
)
def test_a_declared_policy_that_the_ids_contradict_is_refused(
    tmp_path, items, policy, plan, message
):
    with pytest.raises(DatasetError, match=message):
        index(tmp_path, items, plan, policy)
    assert not (tmp_path / "data").exists()


def test_what_the_ids_say_about_marks_is_counted_across_shards(tmp_path):
    items = [[], [5, 0], [], [0], [6, 0, 7], [], [8, 0, 0], []]
    root = tmp_path
    for sizes in ([], [3], [1] * 10, [2] * 9, [18]):
        for path in root.glob("text*.bin"):
            path.unlink()
        write_megatron(root / "text", items, "uint16")
        cut(root / "text", sizes)
        shutil.rmtree(root / "data", ignore_errors=True)
        found = build_megatron_index(
            root / "data", [MegatronPart.of(root / "text")], 9, 0, "unknown", None
        )
        part = found.data["parts"][0]
        assert (part["eod_count"], part["eod_closing"]) == (5, 3)


def test_ids_outside_the_vocabulary_are_refused(tmp_path):
    write_megatron(tmp_path / "text", [[1, -1]], "int32")
    parts = [MegatronPart.of(tmp_path / "text")]
    with pytest.raises(DatasetError, match=r"expected ids in \[0, 9\), found -1..1"):
        build_megatron_index(tmp_path / "data", parts, 9, None, "unknown", None)
    write_megatron(tmp_path / "text", [[1, 9]], "int32")
    with pytest.raises(DatasetError, match=r"found 0\.\.9"):
        build_megatron_index(tmp_path / "data", parts, 9, None, "unknown", None)


def test_parts_of_different_types_are_refused(tmp_path):
    for name, dtype in (("a", "uint16"), ("b", "int32")):
        write_megatron(tmp_path / name, [[1]], dtype)
    parts = [MegatronPart.of(tmp_path / name) for name in "ab"]
    with pytest.raises(DatasetError, match="one type of id"):
        build_megatron_index(tmp_path / "data", parts, 9, None, "unknown", None)


def test_another_index_is_never_overwritten(tmp_path):
    first = index(tmp_path)
    assert index(tmp_path).digest == first.digest
    with pytest.raises(DatasetError, match="write to a new directory"):
        index(tmp_path, policy="appended", plan=None, items=[[1, 0]])


def test_the_tokenizer_is_kept_and_checked(tmp_path, built):
    from data_pipeline.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(built / "tokenizer.json")
    found = index(tmp_path, tokenizer=tokenizer)
    assert found.tokenizer().data == tokenizer.data
    (tmp_path / "data" / "tokenizer.json").write_bytes(tokenizer.data + b" ")
    with pytest.raises(DatasetError, match=r"tokenizer\.json: sha256"):
        verify_megatron(tmp_path / "data")
    (tmp_path / "data" / "tokenizer.json").unlink()
    with pytest.raises(DatasetError, match="found no file"):
        verify_megatron(tmp_path / "data")


def test_no_declared_tokenizer_says_so(tmp_path):
    with pytest.raises(DatasetError, match="these files do not name one"):
        index(tmp_path).tokenizer()


def test_a_url_is_refused_because_files_are_mapped(tmp_path, monkeypatch):
    found = index(tmp_path)
    monkeypatch.setattr(type(found.storage), "is_local", False)
    with pytest.raises(DatasetError, match="download them, or mount them"):
        found.open_files(0)


def test_notices_say_what_the_files_do_not(tmp_path):
    def notices(name, **more):
        return " ".join(describe_megatron(index(tmp_path / name, **more)))

    unknown = notices("a")
    assert "EOD unknown" in unknown
    assert "id 0 occurs 0 times and closes 0 of 3 items" in unknown
    assert "no id 0 at all in the deduplicated preshuffled set" in unknown
    assert "Items are sequences in reading order, not documents" in unknown
    assert "No EOD: no mark stands between documents" in notices("b", policy="none")
    assert "EOD" not in notices("c", policy="appended", items=[[1, 0]])
    one = notices("d", plan=NeoxPlan("1", 3, 2))
    assert "epochs" not in one
    two = notices("e", plan=NeoxPlan("1", 5, 2))
    assert "E = 2 epochs in one joint shuffle: there is no clean first epoch" in two
    given = notices("f", plan=NeoxPlan(None, None, 2, 3))
    assert "E = 3" in given
    assert "After" not in given


def test_the_notice_has_pythias_shares(monkeypatch):
    from data_pipeline.megatron_notices import _times_seen

    text = _times_seen(0.7242, 2)
    assert "7.6% of the documents have been read 0 times, 39.9% once and 52.4%" in text
