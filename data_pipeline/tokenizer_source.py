"""The tokenizer a recipe names: trained on the corpus, a file, or a file of the Hub.

Guarantees: a Hub file is named by a commit, never by a branch, so the same recipe gives the same
bytes; whatever the origin, the bytes become part of the dataset and its digest.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_pipeline.errors import DatasetError
from data_pipeline.tokenizer import EOD_TEXT, Tokenizer

_COMMIT = re.compile(r"[0-9a-f]{40}")


def open_tokenizer(spec: Mapping[str, Any]) -> Tokenizer:
    """Open a tokenizer that exists.

    Args:
        spec: ``{"file": path}`` or ``{"hub": "org/name", "revision": 40 hex digits}``, with
            ``eod`` (default ``<|endoftext|>``) and ``bos`` as in ``Tokenizer``.

    Raises:
        DatasetError: A file that is not there, a revision that is not a commit, or a Hub that
            cannot be reached and has nothing in its cache; and as ``Tokenizer``.
    """
    path = Path(spec["file"]) if "file" in spec else _from_hub(spec["hub"], spec["revision"])
    if not path.is_file():
        raise DatasetError(f"{path}: expected a tokenizer.json, found no file; correct the recipe")
    return Tokenizer.load(path, spec.get("eod", EOD_TEXT), spec.get("bos"))


def _from_hub(name: str, revision: str) -> Path:
    from huggingface_hub import hf_hub_download

    if not _COMMIT.fullmatch(revision):
        raise DatasetError(
            f"tokenizer.revision: expected a commit (40 hex digits), found {revision!r}; "
            "a branch moves: give the commit it stands at"
        )
    try:
        return Path(hf_hub_download(name, "tokenizer.json", revision=revision))
    except OSError as error:
        raise DatasetError(
            f"tokenizer {name} at {revision}: expected its tokenizer.json, found "
            f"{type(error).__name__}: {str(error)[:200]}; correct the name, connect, or give a file"
        ) from error
