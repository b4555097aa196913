"""JSON Schema of ``index.json``, schema ``index-v1``."""

from typing import Any

SCHEMA = "index-v1"
SPLITS = ("train", "heldout")
SPLIT_RULE = "content-sha256-mod-1000"
STEPS = ("decontaminate", "exact", "near")

_SHA256 = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
_COUNT = {"type": "integer", "minimum": 0}
_POSITIVE = {"type": "integer", "minimum": 1}
_TEXT = {"type": "string", "minLength": 1}


def _record(properties: dict[str, Any], optional: tuple[str, ...] = ()) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": [key for key in properties if key not in optional],
        "additionalProperties": False,
    }


_SHARD = _record(
    {
        "file": {"type": "string", "pattern": r"^(train|heldout)/shard-[0-9]{5,9}\.bin$"},
        "tokens": _POSITIVE,
        "documents": _POSITIVE,
        "sha256": _SHA256,
        "docs_sha256": _SHA256,
        "sources_sha256": _SHA256,
    }
)
_SPLIT = _record({"shards": {"type": "array", "items": _SHARD}})
# What a source says of itself is its own; `kind` and `name` always stand there.
_SOURCE = {
    "type": "object",
    "properties": {"kind": _TEXT, "name": _TEXT},
    "required": ["kind", "name"],
}
_STEP = {
    "type": "object",
    "properties": {
        "step": {"enum": list(STEPS)},
        "removed": _record(
            {
                "documents": _COUNT,
                "bytes": _COUNT,
                "file": {"type": "string", "pattern": r"^removed/[a-z]+\.jsonl$"},
                "sha256": _SHA256,
            }
        ),
    },
    "required": ["step", "removed"],
}
_PART = _record(
    {
        "name": _TEXT,
        "weight": {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?$"},
        "tokens": _COUNT,
        "shards": {"type": "array", "items": _COUNT, "minItems": 2, "maxItems": 2},
    }
)
_MIXTURE = _record(
    {"rule": {"const": "mixture-v1"}, "parts": {"type": "array", "items": _PART, "minItems": 1}}
)

INDEX_SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": SCHEMA,
    **_record(
        {
            "schema": {"const": SCHEMA},
            "dtype": {"enum": ["uint16", "uint32"]},
            "bos": {"anyOf": [{"type": "null"}, _COUNT]},
            "eod": _COUNT,
            "mixture": {"anyOf": [{"type": "null"}, _MIXTURE]},
            "policies": _record(
                {
                    "bos": {"enum": ["none", "document"]},
                    "eod": {"const": "append"},
                    "normalisation": _TEXT,
                    "special_tokens_in_text": {"const": "ordinary"},
                }
            ),
            "sources": {"type": "array", "items": _SOURCE, "minItems": 1},
            "split": _record(
                {
                    "rule": {"const": SPLIT_RULE},
                    "heldout_permille": {"type": "integer", "minimum": 0, "maximum": 999},
                }
            ),
            "splits": _record(dict.fromkeys(SPLITS, _SPLIT)),
            "steps": {"type": "array", "items": _STEP},
            "tokenizer": _record({"sha256": _SHA256, "conformance_sha256": _SHA256}),
            "vocab_size": {"type": "integer", "minimum": 2, "maximum": 1 << 31},
        }
    ),
}
