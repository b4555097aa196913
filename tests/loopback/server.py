"""The loopback Hub over HTTP: routes, faults, and a log of what was asked."""

import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from tests.loopback.endpoints import Endpoints, Refusal
from tests.loopback.faults import Answer, Fault, Faults

TOKEN = "hf_dummy_token_of_the_tests"
_ID = r"(?P<id>[\w.-]+/[\w.-]+)"
_API = rf"/api/(?P<kind>model|dataset)s/{_ID}"
_REVISION = r"(?P<revision>[^/]+)"
_ROUTES = [
    ("POST", r"/api/repos/create", Endpoints.create),
    ("POST", r"/api/validate-yaml", Endpoints.validate_yaml),
    ("GET", rf"{_API}/refs", Endpoints.refs),
    ("GET", rf"{_API}/commits/{_REVISION}", Endpoints.commits),
    ("GET", rf"{_API}/tree/{_REVISION}(?P<path>/.*)?", Endpoints.tree),
    ("POST", rf"{_API}/paths-info/{_REVISION}", Endpoints.paths_info),
    ("POST", rf"{_API}/branch/(?P<name>[^/]+)", Endpoints.create_branch),
    ("DELETE", rf"{_API}/branch/(?P<name>[^/]+)", Endpoints.delete_branch),
    ("POST", rf"{_API}/tag/{_REVISION}", Endpoints.create_tag),
    ("POST", rf"{_API}/preupload/{_REVISION}", Endpoints.preupload),
    ("POST", rf"{_API}/commit/{_REVISION}", Endpoints.commit),
    ("GET", rf"{_API}(?:/revision/{_REVISION})?", Endpoints.info),
    ("POST", rf"/(?P<dataset>datasets/)?{_ID}\.git/info/lfs/objects/batch", Endpoints.lfs_batch),
    ("PUT", r"/lfs/object/(?P<oid>[0-9a-f]{64})", Endpoints.put_object),
    ("PUT", r"/lfs/part/(?P<oid>[0-9a-f]{64})/(?P<part>\d+)", Endpoints.put_part),
    ("POST", r"/lfs/complete/(?P<oid>[0-9a-f]{64})", Endpoints.complete),
    ("POST", r"/lfs/verify", Endpoints.verify_object),
    (
        "GET",
        rf"/(?P<dataset>datasets/)?{_ID}/resolve/{_REVISION}/(?P<path>.+)",
        Endpoints.resolve,
    ),
]
# Signed addresses, which carry no token on the real Hub either.
_OPEN = re.compile(r"/lfs/(object|part|complete)/")


class LoopbackHub(Endpoints):
    """A Hub in this process; a context manager. What lies at `root` is served again.

    Attributes:
        faults: what goes wrong.
        requests: (method, path, status) of every request, in order of answers.
    """

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.faults = Faults()
        self.requests: list[tuple[str, str, int]] = []
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._http.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> "LoopbackHub":
        self._thread.start()
        return self

    def __exit__(self, *problem: object) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def environment(self, home: Path) -> dict[str, str]:
        """Variables for a client in another process: this Hub, no Xet, nothing of the user's."""
        return {
            "HF_ENDPOINT": self.endpoint, "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HOME": str(home),
            "HF_HUB_CACHE": str(home / "hub"), "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }  # fmt: skip

    def changes(self) -> list[tuple[str, str, int]]:
        """Requests that may have changed something."""
        return [item for item in self.requests if item[0] not in ("GET", "HEAD")]


def _handler(hub: LoopbackHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        # Answers go out in one packet each; with Nagle's algorithm each would wait 40 ms.
        disable_nagle_algorithm = True
        wbufsize = 1 << 16

        def serve(self) -> None:
            parts = urlsplit(self.path)
            fault = hub.faults.strike(self.command, parts.path)
            body = self.read_body(fault.cut_upload)
            if body is None:
                self.hang_up()
                return
            if fault.before:
                fault.before()
            answer = fault.answer or self.route(parts.path, parse_qs(parts.query), body)
            if fault.after:
                fault.after()
            if fault.mangle:
                answer = fault.mangle(answer)
            hub.requests.append((self.command, parts.path, answer.status))
            self.send(answer, fault)

        do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = serve

        def read_body(self, cut: int | None) -> bytes | None:
            if self.headers.get("Transfer-Encoding") == "chunked":
                blocks = []
                while size := int(self.rfile.readline(), 16):
                    blocks.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(blocks)
            length = int(self.headers.get("Content-Length", 0))
            if cut is not None:
                self.rfile.read(min(cut, length))
                return None
            data = self.rfile.read(length)
            return data if len(data) == length else None

        def route(self, path: str, query: dict[str, list[str]], body: bytes) -> Answer:
            method = "GET" if self.command == "HEAD" else self.command
            try:
                known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
                if method != "GET" and not known and not _OPEN.match(path):
                    raise Refusal(401, "Invalid username or password.")
                for name, pattern, serve in _ROUTES:
                    if name == method and (match := re.fullmatch(pattern, path)):
                        return serve(hub, match, query, body, self.headers)
                raise Refusal(404, f"no endpoint {self.command} {path}")
            except Refusal as refusal:
                return refusal.answer

        def send(self, answer: Answer, fault: Fault) -> None:
            if fault.cut_answer == -1:
                self.hang_up()
                return
            self.send_response(answer.status)
            for name, text in answer.headers.items():
                self.send_header(name, text)
            size = len(answer.body) if answer.declared is None else answer.declared
            self.send_header("Content-Length", str(size))
            self.end_headers()
            if self.command != "HEAD":
                cut = len(answer.body) if fault.cut_answer is None else fault.cut_answer
                self.wfile.write(answer.body[:cut])
            if fault.cut_answer is not None:
                self.hang_up()

        def hang_up(self) -> None:
            self.wfile.flush()
            self.close_connection = True

        def log_message(self, *arguments: object) -> None:
            """Nothing: the requests are in `hub.requests`."""

        def handle(self) -> None:
            try:
                super().handle()
            except (ConnectionError, BrokenPipeError):
                self.close_connection = True

        def finish(self) -> None:
            try:
                super().finish()
            except (ConnectionError, BrokenPipeError):
                self.close_connection = True

    return Handler
