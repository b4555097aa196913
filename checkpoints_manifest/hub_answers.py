"""Answers and errors of a Hub: checked, and told apart.

What a server says is checked field by field (ValueError where it is not what it should be); what
goes wrong is the Hub's refusal, this machine's doing, or anything else, which may have had its
effect all the same.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import httpx2
from huggingface_hub.errors import HfHubHTTPError, XetDownloadError
from huggingface_hub.utils._http import parse_ratelimit_headers

_COMMIT, _SHA256 = re.compile("[0-9a-f]{40}"), re.compile("[0-9a-f]{64}")
_MAX_PAUSE = 3600.0
# What huggingface_hub lets through when an answer is not what it expects.
FAILED = (
    httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError, LookupError, TypeError,
    AttributeError, AssertionError, RuntimeError, XetDownloadError,
)  # fmt: skip
_THIS_MACHINE = {
    errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM, errno.EMFILE,
}  # fmt: skip


@dataclass(frozen=True)
class RemoteFile:
    """What the Hub says of a file: `blob` is git's id; `sha256` is that of an LFS object."""

    size: int
    blob: str
    sha256: str | None


@dataclass(frozen=True)
class Refs:
    """Branches and tags by name, to commits."""

    branches: dict[str, str]
    tags: dict[str, str]


def refusal_in(problem: BaseException | None) -> HfHubHTTPError | None:
    """The Hub's refusal that a problem comes from; an upload's is wrapped in another error."""
    while problem is not None and not isinstance(problem, HfHubHTTPError):
        problem = problem.__cause__
    return problem


def status_of(problem: Exception) -> int | None:
    """The HTTP status that a problem comes from."""
    refusal = refusal_in(problem)
    return None if refusal is None else int(refusal.response.status_code)


def asked_pause(problem: Exception) -> float:
    """Seconds that a 429 asks for; a minute where it names none."""
    refusal = refusal_in(problem)
    headers: Mapping[str, str] = {} if refusal is None else refusal.response.headers
    after = str(headers.get("Retry-After", "")).strip()
    if after.isascii() and after.isdigit():
        return min(float(after[:9]), _MAX_PAUSE)
    limits = parse_ratelimit_headers(headers)
    if limits is not None and limits.remaining == 0:
        return min(float(limits.reset_in_seconds), _MAX_PAUSE)
    return 60.0


def raise_if_local(problem: Exception) -> None:
    """Raises what is this machine's doing: a full disk, a file without permission."""
    found: BaseException | None = problem
    while found is not None:
        if isinstance(found, OSError) and found.errno in _THIS_MACHINE:
            raise found
        found = found.__cause__


def text_of(value: object) -> str:
    """A string; otherwise ValueError, as below."""
    if not isinstance(value, str):
        raise ValueError(f"expected a name, found {value!r:.100}")
    return value


def commit_id(value: object) -> str:
    """An id of git."""
    if not isinstance(value, str) or not _COMMIT.fullmatch(value):
        raise ValueError(f"expected a commit of 40 hexadecimal digits, found {value!r:.100}")
    return value


def date_of(value: object) -> datetime:
    """A moment, with its time zone."""
    return datetime.fromisoformat(text_of(value)).astimezone(UTC)


def remote_file(item: dict[str, Any]) -> RemoteFile:
    """A file of a listing."""
    lfs = item.get("lfs")
    size = item["size"] if lfs is None else lfs["size"]
    sha256 = None if lfs is None else text_of(lfs["oid"])
    if type(size) is not int or size < 0 or (sha256 and not _SHA256.fullmatch(sha256)):
        raise ValueError(f"expected size and sha256 of a file, found {item!r:.200}")
    return RemoteFile(size, commit_id(item["oid"]), sha256)
