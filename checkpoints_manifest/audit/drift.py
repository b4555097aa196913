"""Audit of everything beside the weights: one tokenizer, one configuration, no lost content."""

from __future__ import annotations

import functools
import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator

from checkpoints_manifest.audit.snapshot import (
    Finding,
    RepoSnapshot,
    signatures,
    step_list,
    weights_of,
)

TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "tokenizer.model",
)  # fmt: skip
CONFIG = ("config.json", "generation_config.json")
# Keys of a configuration that say who wrote it, not what the model is.
_WRITER_KEYS = ("transformers_version", "_name_or_path")
# Zeros are hashed to be compared; a file above this size would take seconds.
_MAX_ZEROS, _MAX_ZERO_WEIGHTS = 2 << 30, 64 << 20
_BLOCK = bytes(1 << 20)


def config_drift(snapshot: RepoSnapshot) -> Iterator[Finding]:
    """Tokenizer and configuration are one file in every step and on main."""
    for kind, paths in (("tokenizer-drift", TOKENIZER), ("config-drift", CONFIG)):
        for path in paths:
            yield from _path_drift(snapshot, kind, path)


def _path_drift(snapshot: RepoSnapshot, kind: str, path: str) -> Iterator[Finding]:
    names = [*snapshot.steps, *(["main"] if signatures(snapshot.revisions.get("main", {})) else [])]
    holders: dict[str | None, list[str]] = defaultdict(list)
    for name in names:
        item = snapshot.revisions[name].get(path)
        holders[_meaning(snapshot, item[1]) if item else None].append(name)
    usual = max(holders, key=lambda meaning: (len(holders[meaning]), meaning is not None))
    most = step_list(holders[usual], 3)
    for meaning, others in holders.items():
        if meaning == usual:
            continue
        if meaning is None:
            message = f"{path} is missing in {step_list(others)}; {most} have it"
        elif usual is None:
            message = f"{path} is in {step_list(others)} and missing in {most}"
        else:
            changed = _changed_keys(
                snapshot.text(holders[usual][0], path), snapshot.text(others[0], path)
            )
            message = f"{path} of {step_list(others)} is not that of {most}{changed}"
        yield Finding(kind, tuple(others), message)


def _meaning(snapshot: RepoSnapshot, digest: str) -> str:
    """What is equal for configurations that differ only in who wrote them; else the digest."""
    found = _object(snapshot.texts.get(digest))
    if found is None:
        return digest
    kept = {key: value for key, value in found.items() if key not in _WRITER_KEYS}
    return json.dumps(kept, sort_keys=True)


def _object(text: bytes | None) -> dict[str, object] | None:
    try:
        found = json.loads(text) if text is not None else None
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _changed_keys(usual: bytes | None, other: bytes | None) -> str:
    one, two = _object(usual), _object(other)
    if one is None or two is None:
        return ""
    keys = sorted(k for k in {*one, *two} if one.get(k) != two.get(k) and k not in _WRITER_KEYS)
    parts = [f"{key:.40}: {one.get(key)!r:.40} and {two.get(key)!r:.40}" for key in keys[:4]]
    return f" ({'; '.join(parts)})"


def zeroed_files(snapshot: RepoSnapshot) -> Iterator[Finding]:
    """Files whose digest is that of as many zeros: order files, shards, anything."""
    seen: dict[tuple[int, str], str] = {}
    for name, files in snapshot.revisions.items():
        for path, (size, digest) in files.items():
            limit = _MAX_ZERO_WEIGHTS if weights_of({path: (size, digest)}) else _MAX_ZEROS
            if (size, digest) in seen or not 0 < size <= limit:
                continue
            if digest in _digests_of_zeros(size):
                seen[size, digest] = path
                yield Finding(
                    "zeroed-file", (name,),
                    f"{name}: {path} is {size:,} bytes of zeros: its content was lost",
                )  # fmt: skip


@functools.cache
def _digests_of_zeros(size: int) -> tuple[str, str]:
    """SHA-256 and git's blob id of so many zero bytes."""
    whole = hashlib.sha256()
    blob = hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
    for start in range(0, size, len(_BLOCK)):
        block = _BLOCK[: min(len(_BLOCK), size - start)]
        whole.update(block)
        blob.update(block)
    return whole.hexdigest(), blob.hexdigest()
