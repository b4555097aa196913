"""Text to ids on disk: our encoder against both batch calls of ``tokenizers``, one thread each.

Every side encodes the same documents, writes the ids as uint16 (uint32 where the vocabulary needs
it) and hashes what it wrote; the hashes must agree. Text is that of the Python packages installed
here, or of ``--text``.

python -m data_pipeline.bench.tokenization          (about 2 minutes)
python -m data_pipeline.bench.tokenization --tokenizer tokenizer.json --text FILE.jsonl
"""

import argparse
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline.bench.common import interleaved, machine, table
from data_pipeline.fast_tokenizer import encoder_for
from data_pipeline.index import token_dtype
from data_pipeline.tokenizer import Tokenizer, train_bpe

_GROUP = 64  # documents of one call


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokenizer", type=Path, help="a tokenizer.json; trained here by default")
    parser.add_argument("--vocab", type=int, default=16_000)
    parser.add_argument("--text", type=Path, help='jsonl with "text"; installed packages otherwise')
    parser.add_argument("--megabytes", type=float, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    texts = _texts(arguments.text, int(arguments.megabytes * 1e6))
    if arguments.tokenizer is not None:
        tokenizer = Tokenizer.load(arguments.tokenizer)
    else:
        tokenizer = train_bpe(texts, arguments.vocab)
    print(machine(), "\n")
    _compare(tokenizer, texts, arguments.rounds)
    return 0


def _compare(tokenizer: Tokenizer, texts: list[str], rounds: int) -> None:
    encoder = encoder_for(tokenizer)
    if encoder.notice is not None:
        print(encoder.notice, "\n")
    hf = tokenizer._hf
    dtype = np.dtype(token_dtype(tokenizer.vocab_size))
    sides: dict[str, Callable[[Sequence[str]], list[Any]]] = {
        f"ours ({encoder.engine})": encoder.encode_batch,
        "tokenizers encode_batch": lambda batch: [
            e.ids for e in hf.encode_batch(batch, add_special_tokens=False)
        ],
        "tokenizers encode_batch_fast": lambda batch: [
            e.ids for e in hf.encode_batch_fast(batch, add_special_tokens=False)
        ],
    }
    digests: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as scratch:

        def run(name: str) -> None:
            digests[name] = _write(sides[name], texts, Path(scratch) / "ids", dtype)

        found = interleaved({name: partial(run, name) for name in sides}, rounds)
    if len(set(digests.values())) != 1:
        raise SystemExit(f"the ids differ: {digests}")
    size = sum(len(text.encode()) for text in texts)
    slowest = found["tokenizers encode_batch"][0]
    rows = [
        [name, f"{size / median / 1e6:.2f}", f"{slowest / median:.2f}"]
        for name, (median, _) in found.items()
    ]
    print(
        f"{len(texts):,} documents, {size / 1e6:.1f} MB, vocabulary {tokenizer.vocab_size:,}, "
        f"sha256 of the ids {next(iter(digests.values()))[:16]} on all sides\n"
    )
    print(table(["", "MB/s", "× encode_batch"], rows))


def _write(
    encode: Callable[[Sequence[str]], list[Any]],
    texts: list[str],
    path: Path,
    dtype: "np.dtype[Any]",
) -> str:
    digest = hashlib.sha256()
    with path.open("wb") as handle:
        for first in range(0, len(texts), _GROUP):
            for ids in encode(texts[first : first + _GROUP]):
                data = _narrow(ids, dtype).tobytes()
                digest.update(data)
                handle.write(data)
        handle.flush()
        os.fsync(handle.fileno())
    return digest.hexdigest()


def _narrow(ids: Any, dtype: "np.dtype[Any]") -> npt.NDArray[Any]:
    return np.asarray(ids).astype(dtype)


def _texts(path: Path | None, limit: int) -> list[str]:
    """Texts of about ``limit`` bytes together, in a fixed order."""
    texts, size = [], 0
    for text in _records(path) if path is not None else _package_texts():
        texts.append(text)
        size += len(text)
        if size >= limit:
            return texts
    return texts


def _records(path: Path) -> list[str]:
    with path.open(encoding="utf-8") as handle:
        return [json.loads(line)["text"] for line in handle]


def _package_texts() -> list[str]:
    roots = [Path(str(module.__file__)).parent for module in (np, json)]
    files = sorted(file for root in roots for file in root.rglob("*.py"))
    extra = sorted(roots[0].parent.glob("sympy/**/*.py"))
    texts = [file.read_text("utf-8", errors="ignore") for file in files + extra]
    return [text for text in texts if text]


if __name__ == "__main__":
    sys.exit(main())
