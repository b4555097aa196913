"""A loopback Hub and this process as its client; test modules make their `hub` fixture of it."""

import time
from contextlib import contextmanager

import huggingface_hub.constants
from huggingface_hub.utils import close_session

from tests.loopback.server import LoopbackHub


@contextmanager
def serving(root, monkeypatch):
    """A loopback Hub, and this process as its client: on line, without Xet, waits cut short."""
    cache = root.parent / "client-cache"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    sleep = time.sleep
    # The client's own retries wait 1, 2, 4 ... seconds; a millisecond will do.
    monkeypatch.setattr(time, "sleep", lambda seconds: sleep(min(seconds, 0.001)))
    with LoopbackHub(root) as served:
        yield served
    close_session()
