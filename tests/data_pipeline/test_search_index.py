import json
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline import search_index, suffix_file
from data_pipeline.cli_index import add_commands
from data_pipeline.cli_views import add_commands as add_views
from data_pipeline.errors import DatasetError
from data_pipeline.orders import FlatOrder
from data_pipeline.search import Frequencies
from data_pipeline.search_index import build_search_index, places_in
from data_pipeline.seen import TextFinder, seen
from data_pipeline.shards import TokenStream
from data_pipeline.suffix_file import Suffixes, write_suffixes
from data_pipeline.text_search import TextPattern
from tests.data_pipeline.command import run_command
from tests.data_pipeline.memory import MemoryStream
from tests.data_pipeline.test_search import cut_streams
from tests.data_pipeline.test_seen import cuts_of
from tests.data_pipeline.test_text_search import VOCABULARY

SHA = "ab" * 32


def written(directory, ids, name="x"):
    path = directory / f"{name}.sa"
    write_suffixes(path, ids, SHA)
    return Suffixes(path, SHA, len(ids))


def test_the_vector_of_the_specification(tmp_path):
    found = written(tmp_path, np.array([3, 1, 3, 1, 2], "<u2"))
    assert found.run(0, 5).tolist() == [3, 1, 4, 2, 0]


class Files:
    """The index of a stream in memory."""

    def __init__(self, directory, stream):
        pieces = enumerate(stream.pieces())
        self._open = {start: written(directory, ids, str(n)) for n, (start, ids) in pieces}
        self.used = 0

    def places(self, start, ids, pattern):
        found = places_in(self._open[start], ids, pattern)
        self.used += found is not None
        return found


@pytest.fixture
def eager(monkeypatch):
    """Use the index wherever it can be used, and narrow as far as it goes."""
    monkeypatch.setattr(search_index, "_FEW", 0)
    monkeypatch.setattr(search_index, "_PLACES_A_NARROWING", 0)
    monkeypatch.setattr(search_index, "_SHARE", 1)


@settings(max_examples=200, deadline=None)
@given(ids=st.lists(st.integers(0, 3), min_size=1, max_size=60), high=st.booleans())
@pytest.mark.parametrize("dtype", ["<u2", "<u4"])
def test_the_file_lists_places_in_the_order_of_their_ids(tmp_path_factory, dtype, ids, high):
    array = np.array(ids, dtype) + (250 if high else 0)  # ids of one byte and of two
    found = written(tmp_path_factory.mktemp("sa"), array.astype(dtype)).run(0, len(ids))
    assert found.tolist() == sorted(range(len(ids)), key=lambda place: ids[place:])


@settings(max_examples=300, deadline=None)
@given(cut=cut_streams(high=9), text=st.text("ab", min_size=1, max_size=6), eager=st.booleans())
def test_search_by_the_files_equals_the_scan(tmp_path_factory, cut, text, eager):
    stream = MemoryStream(cut[1])
    pattern = TextPattern(text.encode(), VOCABULARY, Frequencies(stream))
    files = Files(tmp_path_factory.mktemp("sa"), stream)
    with pytest.MonkeyPatch.context() as patch:
        if eager:
            patch.setattr(search_index, "_FEW", 0)
            patch.setattr(search_index, "_PLACES_A_NARROWING", 0)
        patch.setattr(search_index, "_SHARE", 1)
        assert list(pattern.search(stream, files)) == list(pattern.search(stream))


def test_long_and_repeated_ids_are_found_as_by_the_scan(tmp_path, eager):
    random = np.random.RandomState(3)
    pieces = [random.randint(0, 10, 5_000), np.full(3_000, 3), random.randint(1, 5, 5_000)]
    stream = MemoryStream(pieces)
    files = Files(tmp_path, stream)
    for size in (1, 2, 3, 5, 9, 30, 200):
        for _ in range(15):
            text = bytes(random.choice(list(b"ab"), size))
            if size > 9:
                text = b"ab" * (size // 2)
            pattern = TextPattern(text, VOCABULARY, Frequencies(stream))
            assert list(pattern.search(stream, files)) == list(pattern.search(stream))
    assert files.used > 200


@pytest.fixture
def indexed(dataset):
    build_search_index(dataset)
    return dataset


def test_seen_gives_the_same_answer_with_and_without_the_files(indexed, corpus, monkeypatch):
    stream, heldout = TokenStream(indexed), TokenStream(indexed, "heldout")
    order = FlatOrder(stream, 64, seed=3)
    finders = [TextFinder(stream, use_index=use) for use in (True, False)]
    used = []
    monkeypatch.setattr(
        search_index,
        "places_in",
        lambda *arguments: used.append(places_in(*arguments)) or used[-1],
    )
    texts = [
        *cuts_of(corpus, stream, 60),
        "t",
        "or",
        "Θ",
        "Θ4 ",
        "\n",
        "not there",
        "<|endoftext|>",
    ]
    for text in texts:
        for limit in (3, 100_000):
            one, two = (
                seen(text, finder, order, 8, 40, heldout=heldout, limit=limit).record()
                for finder in finders
            )
            assert one == two, text
    assert sum(places is not None for places in used) > 100


def test_the_command_builds_once_and_then_checks(dataset, capsys):
    assert run_command(add_commands, "data", "search-index", dataset) == 0
    files = sorted((dataset / "search").iterdir())
    before = [path.read_bytes() for path in files]
    shards = len(list(dataset.glob("*/*.bin")))
    assert f"{shards} files written, 0 found" in capsys.readouterr().out
    assert run_command(add_commands, "data", "search-index", dataset) == 0
    assert f"0 files written, {shards} found" in capsys.readouterr().out
    assert [path.read_bytes() for path in sorted((dataset / "search").iterdir())] == before


def first_file(root):
    stream = TokenStream(root)
    return suffix_file.suffix_file(root, stream.index.splits["train"][0].sha256)


def flip(data, place):
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def rewritten(data, **changes):
    record = json.loads(data[: suffix_file.HEADER_BYTES]) | changes
    header = suffix_file.canonical_json(record).ljust(suffix_file.HEADER_BYTES, b"\n")
    return header + data[suffix_file.HEADER_BYTES :]


DAMAGE = {
    "empty": lambda data: b"",
    "truncated": lambda data: data[:-4],
    "longer": lambda data: data + b"\0\0\0\0",
    "header": lambda data: flip(data, 3),
    "table": lambda data: flip(data, suffix_file.HEADER_BYTES + 5),
    "entries": lambda data: flip(data, suffix_file.HEADER_BYTES + 32 + 40),
    "stale": lambda data: rewritten(data, shard_sha256=SHA),
    "schema": lambda data: rewritten(data, schema="search-index-v0"),
    "tokens": lambda data: rewritten(data, tokens=7),
    "no version": lambda data: rewritten(data, library_version=None),
    "unknown key": lambda data: rewritten(data, more=1),
    "another file": lambda data: b"\x00" * len(data),
    "a list": lambda data: b"[]".ljust(len(data), b"\n"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_wrong_file_is_refused_and_names_the_remedy(indexed, damage):
    path = first_file(indexed)
    path.write_bytes(damage(path.read_bytes()))
    place = [str(indexed), "digest1", "--seq-len", "64", "--batch-size", "4", "--seed", "0"]
    with pytest.raises(DatasetError, match=r"\.sa: .*expected .*found .*seen --index none"):
        run_command(with_spare_name(add_views), "seen", "", *place)
    assert run_command(with_spare_name(add_views), "seen", "", *place, "--index", "none") == 0
    with pytest.raises(DatasetError, match="data search-index"):
        build_search_index(indexed)


def with_spare_name(add_commands):
    """``run_command`` takes names of two words."""

    def adds(add):
        add_commands(lambda name, *rest: add(name if " " in name else f"{name} ", *rest))

    return adds


def test_a_shard_without_a_file_is_scanned(indexed, corpus):
    first_file(indexed).unlink()
    stream = TokenStream(indexed)
    finders = [TextFinder(stream, use_index=use) for use in (True, False)]
    for text in cuts_of(corpus, stream, 20):
        one, two = (list(finder.places(finder.patterns(text)[0])) for finder in finders)
        assert one == two != []


def test_a_damaged_shard_is_not_sorted(dataset):
    shard = dataset / "train" / "shard-00000.bin"
    shard.write_bytes(flip(shard.read_bytes(), 100))
    with pytest.raises(DatasetError, match=r"\.bin: sha256: expected"):
        build_search_index(dataset)
    assert list((dataset / "search").iterdir()) == []


def test_without_the_library_the_command_says_what_to_install(dataset, monkeypatch):
    monkeypatch.setattr(suffix_file, "LIBRARY", "no-such-package-anywhere")
    with pytest.raises(DatasetError, match=r"pip install 'tripod-suite\[search\]'"):
        run_command(add_commands, "data", "search-index", dataset)


def test_searching_needs_no_library(indexed, monkeypatch):
    monkeypatch.setitem(sys.modules, "pydivsufsort", None)
    finder = TextFinder(TokenStream(indexed))
    assert list(finder.places(finder.patterns("digest1")[0]))


def test_an_interrupted_write_leaves_no_file(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(suffix_file, "write_all", full)
    with pytest.raises(OSError, match="No space"):
        write_suffixes(tmp_path / "x.sa", np.arange(100, dtype="<u2"), SHA)
    assert list(tmp_path.iterdir()) == []
