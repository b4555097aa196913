"""Views of a dataset behind a URL fetch what they show and not the corpus."""

import pytest

from data_pipeline.batch_view import view_batch
from data_pipeline.batches import BatchReader
from data_pipeline.build import build_dataset
from data_pipeline.cli_views import run_seen
from data_pipeline.errors import DatasetError
from data_pipeline.exposures import Exposures
from data_pipeline.locate import find_documents, locate
from data_pipeline.seen import TextFinder, seen
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
        fetch_all = False

    with pytest.raises(DatasetError, match="--fetch-all"):
        run_seen(Arguments)


def test_a_server_without_byte_ranges_is_refused(big, serve):
    with pytest.raises(DatasetError, match="byte ranges"):
        view_batch(opened(serve(big, ranges=False).url), 0)
