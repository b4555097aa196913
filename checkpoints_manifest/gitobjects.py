"""Real git object ids without git.

Blobs, Git LFS pointers, flat trees and commits (SHA-1, as the Hub uses).

Dates and authors are fixed, so the same files in the same order give the same commit on every
machine, and a local Hub and a remote one agree.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

AUTHOR = "Tripod <tripod@localhost> 0 +0000"


def _object_id(kind: str, data: bytes) -> str:
    return hashlib.sha1(f"{kind} {len(data)}\0".encode() + data, usedforsecurity=False).hexdigest()


def blob_id(data: bytes) -> str:
    """Id of a file's blob."""
    return _object_id("blob", data)


def lfs_pointer(sha256: str, size: int) -> bytes:
    """The pointer file that git stores in place of a large file."""
    return (
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
    )


def tree_id(blobs: Mapping[str, str]) -> str:
    """Id of a flat tree of regular files: name to blob id."""
    parts = [
        b"100644 " + name.encode() + b"\0" + bytes.fromhex(blobs[name])
        for name in sorted(blobs, key=str.encode)
    ]
    return _object_id("tree", b"".join(parts))


def commit_id(tree: str, parent: str | None, message: str) -> str:
    """Id of a commit with at most one parent."""
    lines = [f"tree {tree}", *([f"parent {parent}"] if parent else [])]
    lines += [f"author {AUTHOR}", f"committer {AUTHOR}", "", message]
    return _object_id("commit", "\n".join(lines).encode() + b"\n")
