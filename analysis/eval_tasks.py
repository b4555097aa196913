"""Local lm-eval tasks made from held-out documents.

The tasks are declared in ``analysis/tasks/*.yaml``; this module writes their items
(``tripod-items-v1``) and, beside them, the same YAML with the path of the items added, so that the
lm-eval command line can run them too::

    lm_eval --model hf --model_args pretrained=tripod/nano-1m,revision=step64 \
        --include_path runs/nano/analysis/tasks/<digest> --tasks tripod_continuation

Guarantees: items are a function of the held-out split and the sizes; which excerpt is taken is
decided by SHA-256, not by a random generator. The directory is named by the digest of everything in
it, so no cache can confuse two versions.
"""

import hashlib
import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from analysis.rungs import AnalysisError, SuiteDir
from data_pipeline.canonical import canonical_json, sha256_hex
from data_pipeline.durable import write_bytes
from data_pipeline.shards import TokenStream

NAME = "tripod-items-v1"
TASKS = ("tripod_continuation", "tripod_heldout_ppl")
DECLARATIONS = Path(__file__).parent / "tasks"


@dataclass(frozen=True)
class ItemSizes:
    """Numbers of items and characters.

    Attributes:
        continuation: multiple-choice items. ppl: excerpts for perplexity.
        context_chars, choice_chars, ppl_chars: lengths in characters.
    """

    continuation: int = 128
    ppl: int = 32
    context_chars: int = 96
    choice_chars: int = 40
    ppl_chars: int = 240


@dataclass(frozen=True)
class EvalTasks:
    """Where the tasks of a suite are and what names them."""

    directory: Path
    digest: str


def write_tasks(suite: SuiteDir, sizes: ItemSizes | None = None) -> EvalTasks:
    """Write the items and YAML of a suite's tasks, unless they are there.

    Raises:
        AnalysisError: too little held-out text.
    """
    sizes = sizes or ItemSizes()
    documents = heldout_texts(suite)
    items = {
        "tripod_continuation": continuation_items(documents, sizes),
        "tripod_heldout_ppl": ppl_items(documents, sizes),
    }
    lines = {task: _jsonl(items[task]) for task in TASKS}
    yaml = {task: (DECLARATIONS / f"{task}.yaml").read_bytes() for task in TASKS}
    parts = [NAME, asdict(sizes)]
    parts += [sha256_hex(data) for task in TASKS for data in (lines[task], yaml[task])]
    digest = sha256_hex(canonical_json(parts))
    directory = suite.tables / "tasks" / digest[:16]
    directory.mkdir(parents=True, exist_ok=True)
    for task in TASKS:
        data_file = directory / f"{task}.jsonl"
        _write_if_other(data_file, lines[task])
        _write_if_other(directory / f"{task}.yaml", yaml[task] + _dataset_kwargs(data_file))
    return EvalTasks(directory, digest)


def _write_if_other(path: Path, data: bytes) -> None:
    if not path.exists() or path.read_bytes() != data:
        write_bytes(path, data)


def _dataset_kwargs(data_file: Path) -> bytes:
    kwargs = {
        "data_files": {"test": str(data_file)},
        "cache_dir": str(data_file.parent / "cache"),
    }
    return f"dataset_kwargs: {json.dumps(kwargs)}\n".encode()


def _jsonl(items: Sequence[dict[str, object]]) -> bytes:
    return b"".join(canonical_json(item) + b"\n" for item in items)


def heldout_texts(suite: SuiteDir) -> list[tuple[str, str]]:
    """The held-out documents as (name, text), in the order of the split."""
    stream = TokenStream(suite.dataset, "heldout")
    tokenizer = stream.index.tokenizer()
    texts = []
    for document in stream.documents():
        ids = stream.read(document.start, document.end - document.start - 1)
        name = f"{document.source}/{document.name}"
        texts.append((name, tokenizer.decode_bytes(ids).decode("utf-8")))
    return texts


def continuation_items(
    documents: Sequence[tuple[str, str]], sizes: ItemSizes
) -> list[dict[str, object]]:
    """Multiple-choice items with keys document, context, choices (4), label.

    Args:
        documents: (name, text) of held-out documents.
        sizes: how many and how long.

    Raises:
        AnalysisError: fewer than two documents are long enough.
    """
    length = sizes.context_chars + sizes.choice_chars
    excerpts = _excerpts(documents, sizes.continuation, length, "continuation")
    if len({name for name, _ in excerpts}) < 2:
        raise AnalysisError(
            f"expected at least two held-out documents of {4 * length} characters, found "
            f"{len({name for name, _ in excerpts})}; raise data.build.heldout_permille"
        )
    cuts = [(name, *_cut(text, sizes)) for name, text in excerpts]
    return [_continuation_item(index, cuts) for index in range(len(cuts))]


def _cut(text: str, sizes: ItemSizes) -> tuple[str, str]:
    """Cut an excerpt before white space, so that no word is split between prompt and answer."""
    spaces = [m.start() for m in re.finditer(r"(?<=\S)\s", text[: sizes.context_chars])]
    cut = spaces[-1] if spaces else sizes.context_chars
    return text[:cut], text[cut : cut + sizes.choice_chars]


def _continuation_item(index: int, cuts: Sequence[tuple[str, str, str]]) -> dict[str, object]:
    name, context, truth = cuts[index]
    others: list[str] = []
    for place in range(1, len(cuts)):
        other_name, _, other = cuts[(index + place * _stride(len(cuts))) % len(cuts)]
        if other_name != name and other != truth and other not in others:
            others.append(other)
        if len(others) == 3:
            break
    if len(others) < 3:
        raise AnalysisError(
            f"expected three distractors from other held-out documents for {name}, found "
            f"{len(others)}; raise data.build.heldout_permille"
        )
    label = _pick(4, "label", str(index), name)
    choices = [*others[:label], truth, *others[label:]]
    return {"document": name, "context": context, "choices": choices, "label": label}


def _stride(n: int) -> int:
    """A step that visits all n places and mixes documents: about n/φ, coprime to n."""
    step = max(1, round(n * 0.6180339887))
    while math.gcd(step, n) != 1:
        step += 1
    return step


def ppl_items(documents: Sequence[tuple[str, str]], sizes: ItemSizes) -> list[dict[str, object]]:
    """Excerpts with keys document and text.

    Raises:
        AnalysisError: no document is long enough.
    """
    excerpts = _excerpts(documents, sizes.ppl, sizes.ppl_chars, "ppl")
    return [{"document": name, "text": text} for name, text in excerpts]


def _excerpts(
    documents: Sequence[tuple[str, str]], count: int, length: int, use: str
) -> list[tuple[str, str]]:
    """Take ``count`` excerpts that start a line, spread over the documents as evenly as possible.

    The first 2·length characters of a document are left out: they are mostly licence headers, which
    training has seen many times.
    """
    usable = [(name, text) for name, text in documents if len(text) >= 4 * length]
    usable.sort(key=lambda document: hashlib.sha256(f"{use}\0{document[0]}".encode()).digest())
    if not usable:
        raise AnalysisError(
            f"expected held-out documents of at least {4 * length} characters, found none; "
            "raise data.build.heldout_permille"
        )
    found: list[tuple[str, str]] = []
    for index in range(count):
        name, text = usable[index % len(usable)]
        starts = [m.end() for m in re.finditer(r"\n(?=[^\s])", text)]
        starts = [s for s in starts if 2 * length <= s <= len(text) - length] or [2 * length]
        start = starts[_pick(len(starts), use, str(index), name)]
        excerpt = (name, text[start : start + length])
        if excerpt not in found:
            found.append(excerpt)
    return found


def _pick(n: int, *key: str) -> int:
    digest = hashlib.sha256("\0".join([NAME, *key]).encode()).digest()
    return int.from_bytes(digest[:8], "little") % n
