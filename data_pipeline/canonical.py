"""Canonical JSON and SHA-256: how every record of this project is turned into bytes and named.

Guarantees: equal records give equal bytes on every machine and Python version. There is exactly
one encoding: object keys sorted by code point, no spaces, UTF-8 without escapes for non-ASCII
text, integers in decimal. Floats are refused, because their shortest decimal form is a convention
of the writer; write a float as a string.

Does not guarantee: RFC 8785 compatibility for keys outside the Basic Multilingual Plane (that RFC
sorts by UTF-16 code unit).
"""

import hashlib
import json
from pathlib import Path
from typing import Any


def canonical_json(obj: Any) -> bytes:
    """Encode a record of dicts, lists, tuples, strings, integers, booleans and None.

    Args:
        obj: The record. A tuple is written as a list.

    Returns:
        UTF-8 bytes without a trailing newline.

    Raises:
        TypeError: A float, a key that is not a string, or any other type; the message says where.
        ValueError: A string with a lone surrogate, which has no UTF-8 encoding.
    """
    _check(obj, "$")
    text = json.dumps(
        obj, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return text.encode("utf-8")


def _check(obj: Any, place: str) -> None:
    if obj is None or type(obj) in (bool, int, str):
        return
    if isinstance(obj, float):
        raise TypeError(
            f"canonical JSON has no floats: found {obj!r} at {place}; write it as a string"
        )
    if isinstance(obj, dict):
        for key, value in obj.items():
            if type(key) is not str:
                raise TypeError(
                    f"canonical JSON keys are strings: found {type(key).__name__} {key!r} "
                    f"at {place}; convert the key to str"
                )
            _check(value, f"{place}.{key}")
    elif isinstance(obj, list | tuple):
        for position, value in enumerate(obj):
            _check(value, f"{place}[{position}]")
    else:
        raise TypeError(
            f"canonical JSON cannot hold {type(obj).__name__} at {place}; "
            "use dict, list, str, int, bool or None"
        )


def sha256_hex(data: bytes | bytearray | memoryview) -> str:
    """Return the SHA-256 of ``data`` as 64 lower-case hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def is_sha256_hex(found: object) -> bool:
    """Say whether it is a SHA-256 as 64 lower-case hexadecimal digits."""
    return isinstance(found, str) and len(found) == 64 and set(found) <= set("0123456789abcdef")


def sha256_file(path: str | Path) -> str:
    """Return the SHA-256 of a file's bytes, read in pieces.

    Raises:
        OSError: The file cannot be read.
    """
    with Path(path).open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
