"""Views of a dataset behind a URL fetch what they show and not the corpus."""

import json

import numpy as np
import pytest

from data_pipeline import shards
from data_pipeline.batch_view import view_batch
from data_pipeline.batches import BatchReader
from data_pipeline.build import build_dataset
from data_pipeline.cli_views import add_commands, run_seen
from data_pipeline.errors import DatasetError
from data_pipeline.exposures import Exposures
from data_pipeline.locate import find_documents, locate
from data_pipeline.search import find_ids
from data_pipeline.seen import TextFinder, seen
from data_pipeline.storage import RemoteStorage
from tests.data_pipeline.command import run_command
from tests.data_pipeline.conftest import recipe, write_corpus
from tests.data_pipeline.test_storage import serve

__all__ = ["serve"]


@pytest.fixture(scope="module")
def big(tmp_path_factory):
    """A dataset of some hundred kilobytes: much more than what a view needs."""
    root = tmp_path_factory.mktemp("big")
    write_corpus(root / "text", files=400)
    build_dataset(recipe(root / "text") | {"shard_tokens": 60_000}, root / "data")
    return root / "data"


def opened(url):
    return BatchReader(url, 64, 4, 0)


def corpus_bytes(root):
    return sum(path.stat().st_size for path in (root / "train").iterdir())


def test_batch_fetches_its_rows_and_records_only(big, serve):
    server = serve(big)
    reader = opened(server.url)
    opening = server.sent
    assert opening <= 2 * (big / "index.json").stat().st_size
    view = view_batch(reader, 3)
    documents = sum(len(row["documents"]) for row in view["rows"])
    # Rows, one record a document, and blocks of 4 KiB of the table of documents.
    fetched = server.sent - opening
    assert fetched <= 4 * 65 * 2 + documents * 400 + 12 * 4096
    assert fetched < corpus_bytes(big) / 5
    assert view == view_batch(BatchReader(big, 64, 4, 0), 3)


def test_locate_by_number_fetches_less_than_a_shard(big, serve):
    server = serve(big)
    reader = opened(server.url)
    before = server.sent
    (document,) = find_documents(reader.stream, "117")
    found = locate(document, Exposures(reader.order, 4, 50))
    assert server.sent - before <= 400 + 3 * 4096
    local = BatchReader(big, 64, 4, 0)
    assert found == locate(find_documents(local.stream, "117")[0], Exposures(local.order, 4, 50))


def test_locate_by_name_fetches_records_and_no_ids(big, serve):
    server = serve(big)
    reader = opened(server.url)
    before = server.sent
    name = "text:" + next(iter(BatchReader(big, 64, 4, 0).stream.documents())).name
    source = reader.stream.document(0).source
    found = find_documents(reader.stream, name.replace("text:", f"{source}:", 1))
    records = sum(path.stat().st_size for path in (big / "train").glob("*.sources.jsonl"))
    tables = sum(path.stat().st_size for path in (big / "train").glob("*.docs"))
    assert found[0].index == 0
    assert server.sent - before <= records + tables + 3 * 4096


def test_seen_behind_a_url_equals_seen_in_the_directory(big, serve):
    local, remote = BatchReader(big, 64, 4, 0), opened(serve(big).url)
    answers = [seen("# 11", TextFinder(one.stream), one.order, 4, 50) for one in (local, remote)]
    assert answers[0].record() == answers[1].record()
    assert answers[0].count >= 1


def test_a_search_behind_a_url_must_be_asked_for(big, serve):
    class Arguments:
        place, text, upto = serve(big).url, "token", None
        seq_len, batch_size, seed, order, overlay = 64, 4, 0, "order-v1", None
        fetch_all, index = False, "auto"

    with pytest.raises(DatasetError, match="--fetch-all"):
        run_seen(Arguments)


def test_seen_fetch_all_reads_in_blocks_and_equals_the_directory(big, serve, monkeypatch, capsys):
    monkeypatch.setattr(shards, "REMOTE_BLOCK", 4_000)
    place = ["--seq-len", "64", "--batch-size", "4", "--seed", "0", "--json", "--heldout"]
    asked = []
    read_range = RemoteStorage.read_range

    def noted(self, file, start, end):
        asked.append((file, end - start))
        return read_range(self, file, start, end)

    monkeypatch.setattr(RemoteStorage, "read_range", noted)
    answers = []
    for where, more in ((big, []), (serve(big).url, ["--fetch-all"])):
        run_command(only_seen, "seen", "", where, "tep3 o", *place, *more)
        answers.append(json.loads(capsys.readouterr().out))
    assert answers[0] == answers[1]
    assert answers[0]["count"] >= 10 and answers[0]["heldout"]
    sizes = [size for file, size in asked if file.endswith(".bin")]
    assert max(sizes) == 4_000
    assert sum(size == 4_000 for size in sizes) > 30


def only_seen(add):
    """``run_command`` takes names of two words."""
    add_commands(lambda name, *rest: add(f"{name} " if name == "seen" else name, *rest))


def test_remote_pieces_are_the_local_ones_in_blocks(big, serve, monkeypatch):
    monkeypatch.setattr(shards, "REMOTE_BLOCK", 1_000)
    local, remote = (opened(place).stream for place in (big, serve(big).url))
    pieces = list(remote.pieces())
    assert max(ids.nbytes for _, ids in pieces) == 1_000
    assert [start for start, _ in pieces[1:]] == [start + len(ids) for start, ids in pieces[:-1]]
    ids = np.concatenate([ids for _, ids in pieces])
    assert np.array_equal(ids, local.read(0, local.num_tokens))
    pattern = ids[498:503]  # over the border of two blocks
    assert 498 in find_ids(remote, pattern)
    assert np.array_equal(find_ids(remote, pattern), find_ids(local, pattern))


def test_a_server_without_byte_ranges_is_refused(big, serve):
    with pytest.raises(DatasetError, match="byte ranges"):
        view_batch(opened(serve(big, ranges=False).url), 0)
