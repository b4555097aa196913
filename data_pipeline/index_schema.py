"""JSON Schema of ``index.json``, schema ``index-v1``."""

from typing import Any

SCHEMA = "index-v1"
SPLITS = ("train", "heldout")
SPLIT_RULE = "content-sha256-mod-1000"

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
        "file": {"type": "string", "pattern": r"^(train|heldout)/shard-[0-9]{5}\.bin$"},
        "tokens": _POSITIVE,
        "documents": _POSITIVE,
        "sha256": _SHA256,
        "docs_sha256": _SHA256,
        "sources_sha256": _SHA256,
    }
)
_SPLIT = _record({"shards": {"type": "array", "items": _SHARD}})
_SOURCE = _record(
    {
        "kind": {"enum": ["python_package", "text_tree"]},
        "name": _TEXT,
        "version": _TEXT,
        "files": _POSITIVE,
        "files_sha256": _SHA256,
        "documents": _COUNT,
        "bytes": _COUNT,
        "skipped_empty": _COUNT,
        "skipped_not_utf8": _COUNT,
    },
    optional=("version",),
)

INDEX_SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": SCHEMA,
    **_record(
        {
            "schema": {"const": SCHEMA},
            "dtype": {"enum": ["uint16", "uint32"]},
            "eod": {"const": 0},
            "policies": _record(
                {
                    "bos": {"const": "none"},
                    "eod": {"const": "append"},
                    "normalisation": {"const": "none"},
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
            "tokenizer": _record({"sha256": _SHA256, "conformance_sha256": _SHA256}),
            "vocab_size": {"type": "integer", "minimum": 257, "maximum": 1 << 31},
        }
    ),
}
