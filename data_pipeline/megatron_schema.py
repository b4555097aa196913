"""JSON Schema of ``index.json``, schema ``megatron-index-v1``, and of ``locations.json``."""

from typing import Any

SCHEMA = "megatron-index-v1"
LOCATIONS_SCHEMA = "megatron-locations-v1"
EOD_POLICIES = ("appended", "none", "unknown")

_SHA256 = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
_COUNT = {"type": "integer", "minimum": 0}
_POSITIVE = {"type": "integer", "minimum": 1}
_COUNT_OR_NULL = {"anyOf": [_COUNT, {"type": "null"}]}
_NAME = {"type": "string", "pattern": r"^[^/\\\u0000-\u001f\u007f]{1,255}$"}


def _record(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _file(suffix: str) -> dict[str, Any]:
    # A base name: no separator, and not "." or ".." because of the suffix.
    name = {"type": "string", "pattern": rf"^[^/\\\u0000-\u001f\u007f]{{1,250}}\.{suffix}$"}
    return _record({"file": name, "bytes": _COUNT, "sha256": _SHA256})


_PART = _record(
    {
        "name": _NAME,
        "weight": {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?$"},
        "idx": _file("idx"),
        "bins": {"type": "array", "items": _file("bin"), "minItems": 1},
        "items": _COUNT,
        "tokens": _COUNT,
        "eod_count": _COUNT_OR_NULL,
        "eod_closing": _COUNT_OR_NULL,
    }
)
_PER_PART = {"type": "array", "items": _POSITIVE, "minItems": 1}
_NEOX = _record(
    {
        "split": {"type": ["string", "null"]},
        "num_samples": {"anyOf": [_POSITIVE, {"type": "null"}]},
        "seq_len": _POSITIVE,
        "epochs": _PER_PART,
        "samples": _PER_PART,
    }
)

INDEX_SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": SCHEMA,
    **_record(
        {
            "schema": {"const": SCHEMA},
            "dtype": {"enum": ["uint8", "int8", "int16", "int32", "int64", "uint16"]},
            "vocab_size": {"type": "integer", "minimum": 1, "maximum": 1 << 31},
            "eod": _COUNT_OR_NULL,
            "eod_policy": {"enum": list(EOD_POLICIES)},
            "tokenizer": {
                "anyOf": [
                    _record({"sha256": _SHA256, "conformance_sha256": _SHA256}),
                    {"type": "null"},
                ]
            },
            "parts": {"type": "array", "items": _PART, "minItems": 1, "maxItems": 254},
            "neox": {"anyOf": [_NEOX, {"type": "null"}]},
        }
    ),
}

_DIRECTORIES = {
    "type": "object",
    "additionalProperties": {"type": "string", "pattern": r"^[^\u0000]+$"},
}
LOCATIONS: dict[str, Any] = _record(
    {
        "schema": {"const": LOCATIONS_SCHEMA},
        "directories": {"type": "object", "additionalProperties": _DIRECTORIES},
    }
)
