"""A dataset behind a URL reads like the directory, by byte ranges."""

import http.server
import threading
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.batches import BatchReader
from data_pipeline.errors import DatasetError
from data_pipeline.shards import TokenStream


class RangeServer(http.server.ThreadingHTTPServer):
    """Serves a directory on loopback; counts the bytes of bodies it sends."""

    daemon_threads = True

    def __init__(self, root: Path, ranges: bool = True) -> None:
        self.root, self.ranges, self.sent = root, ranges, 0
        super().__init__(("127.0.0.1", 0), _Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: RangeServer

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        path = self.server.root / self.path.lstrip("/")
        if not path.is_file():
            self.send_error(404)
            return
        data, status = path.read_bytes(), 200
        total, wanted = len(data), self.headers.get("Range")
        if wanted and self.server.ranges:
            first, last = wanted.removeprefix("bytes=").split("-")
            data, status = data[int(first) : int(last) + 1], 206
        self.send_response(status)
        if self.server.ranges:
            self.send_header("Accept-Ranges", "bytes")
        if status == 206:
            self.send_header("Content-Range", f"bytes {wanted[6:]}/{total}")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.server.sent += len(data)
            self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        """Nothing: the test counts bytes instead."""


@pytest.fixture
def serve():
    servers = []

    def start(root: Path, ranges: bool = True) -> RangeServer:
        servers.append(RangeServer(root, ranges))
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_dataset_behind_a_url_reads_like_the_directory(built, serve):
    local, remote = BatchReader(built, 64, 4, 0), BatchReader(serve(built).url, 64, 4, 0)
    for step in (0, 7):
        assert np.array_equal(remote.ids(step), local.ids(step))
        assert remote.describe(step) == local.describe(step)
    assert remote.chain_start() == local.chain_start()
    tokens = remote.stream.num_tokens
    assert np.array_equal(remote.stream.read(0, tokens), local.stream.read(0, tokens))
    assert list(remote.stream.documents()) == list(local.stream.documents())


def test_only_the_bytes_that_are_needed_are_fetched(built, serve):
    server = serve(built)
    reader = BatchReader(server.url, 64, 4, 0)
    opened = server.sent
    assert opened == (built / "index.json").stat().st_size
    reader.ids(3, range(1))
    assert server.sent - opened <= 2 * 65 * reader.stream.index.dtype.itemsize


def test_a_server_without_byte_ranges_is_refused(built, serve):
    with pytest.raises(
        DatasetError, match=r"expected bytes \[0, 2\), found \d+ bytes; serve the dataset"
    ):
        TokenStream(serve(built, ranges=False).url).read(0, 1)


def test_a_remote_shard_of_another_size_is_refused(dataset, serve):
    shard = next((dataset / "train").glob("*.bin"))
    shard.write_bytes(shard.read_bytes()[:-2])
    stream = TokenStream(serve(dataset).url)
    with pytest.raises(DatasetError, match=r"shard-\d+\.bin: expected \d+ bytes, found"):
        list(stream.pieces())


def test_no_dataset_behind_a_url_is_named(tmp_path, serve):
    with pytest.raises(DatasetError, match=r"index\.json: expected a dataset index, found no file"):
        TokenStream(serve(tmp_path).url)
