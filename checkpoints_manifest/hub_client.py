"""The HTTP client that huggingface_hub uses on our behalf, with bounds on what a server may send.

huggingface_hub reads any answer whole into memory and waits for ever. Here an answer may have
so many bytes and no compression (a small one can unpack to a large one), and a connection that
says nothing for ten minutes is given up.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import httpx2
from huggingface_hub.utils import _http as client

MAX_ANSWER_BYTES = 64 << 20
_CONNECT_SECONDS, _SILENCE_SECONDS = 30.0, 600.0
_limit: ContextVar[int] = ContextVar("bytes that an answer may have", default=MAX_ANSWER_BYTES)


class AnswerRefusedError(httpx2.HTTPError):
    """The server sent more than an answer may have, or sent it compressed."""


@contextmanager
def answers_up_to(size: int) -> Iterator[None]:
    """Bounds answers to requests of this thread; error answers may have a megabyte all the same."""
    token = _limit.set(max(size, 1 << 20))
    try:
        yield
    finally:
        _limit.reset(token)


class _Bounded(httpx2.SyncByteStream):
    def __init__(self, stream: httpx2.SyncByteStream, limit: int) -> None:
        self._stream, self._limit = stream, limit

    def __iter__(self) -> Iterator[bytes]:
        left = self._limit
        for block in self._stream:
            left -= len(block)
            if left < 0:
                raise AnswerRefusedError(f"the answer has more than {self._limit:,} bytes")
            yield block

    def close(self) -> None:
        self._stream.close()


def _bound(response: httpx2.Response) -> None:
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise AnswerRefusedError("the answer is compressed, which was not asked for")
    if isinstance(response.stream, httpx2.SyncByteStream):
        response.stream = _Bounded(response.stream, _limit.get())


def _bounded_client() -> httpx2.Client:
    made = client.default_client_factory()
    made.timeout = httpx2.Timeout(_SILENCE_SECONDS, connect=_CONNECT_SECONDS, pool=None)
    made.headers["Accept-Encoding"] = "identity"
    hooks = made.event_hooks
    made.event_hooks = {**hooks, "response": [*hooks.get("response", []), _bound]}
    return made


def use_bounded_client() -> None:
    """Makes huggingface_hub use the bounded client, unless the user has set one of their own."""
    if client._GLOBAL_CLIENT_FACTORY is client.default_client_factory:
        client.set_client_factory(_bounded_client)
