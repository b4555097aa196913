"""What a dataset holds, in tables and figures: sources, document lengths, duplicates, ids.

Guarantees: exact counts over every document and id of a split, in one pass over each file; tables
and figures have the same bytes for the same dataset. Memory: under 150 bytes a document,
the records of one shard and one array of the vocabulary. Measure with
``python -m data_pipeline.bench.describe``.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from data_pipeline.exposures import document_label
from data_pipeline.protocols import DocumentRef, Stream

QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
ALL = "(all)"
Lengths = npt.NDArray[np.int64]
_CHUNK = 1 << 22
_GROUPS = 20


@dataclass(frozen=True)
class Description:
    """Tables by name; columns are said in ``docs/views.md``."""

    tables: dict[str, pd.DataFrame]
    notices: list[str]

    def save(self, directory: str | Path) -> list[Path]:
        """Write every table as Parquet and CSV, and the figures as SVG; return the files."""
        from data_pipeline.describe_plots import plot

        out = Path(directory)
        out.mkdir(parents=True, exist_ok=True)
        files = []
        for name, table in self.tables.items():
            files += [out / f"{name}.parquet", out / f"{name}.csv"]
            table.to_parquet(files[-2], index=False)
            table.to_csv(files[-1], index=False, lineterminator="\n")
        notices = out / "notices.txt"
        notices.write_text("".join(f"{one}\n" for one in self.notices), encoding="utf-8")
        return [*files, notices, *plot(self.tables, out)]


def describe(
    splits: dict[str, Stream],
    seq_lens: Sequence[int] = (),
    tokenizer: Any = None,
    notices: Iterable[str] = (),
) -> Description:
    """Count everything.

    Args:
        splits: Streams by name, for example ``train`` and ``heldout``.
        seq_lens: Sequence lengths S to count whole sequences for.
        tokenizer: ``decode_bytes(ids)``, for the text beside each id; none leaves it out.
        notices: What users of this kind of dataset must know; kept with the tables.
    """
    documents = {name: _read_documents(stream) for name, stream in splits.items()}
    groups, duplicates = _duplicates(splits, documents)
    tables = {
        "sources": _sources(documents),
        "lengths": _quantiles(documents),
        "length_histogram": _histogram(documents),
        "duplicates": duplicates,
        "duplicate_groups": groups,
        "tokens": _tokens(splits, tokenizer),
        "sequences": _sequences(splits, seq_lens),
    }
    return Description(tables, [*notices, *_own_notices(tables)])


@dataclass(frozen=True)
class _Documents:
    """Per document: number of its source, its ids, and 16 bytes of the SHA-256 of its text."""

    names: list[str]
    sources: npt.NDArray[np.int32]
    tokens: npt.NDArray[np.int64]
    contents: npt.NDArray[np.uint64]


def _read_documents(stream: Stream) -> _Documents:
    count = stream.num_documents
    numbers: dict[str, int] = defaultdict(lambda: len(numbers))
    sources, tokens = np.zeros(count, dtype=np.int32), np.zeros(count, dtype=np.int64)
    contents = np.zeros((count, 2), dtype="<u8")
    for place, one in enumerate(stream.documents()):
        sources[place], tokens[place] = numbers[one.source], one.end - one.start
        if one.sha256:
            contents[place] = np.frombuffer(bytes.fromhex(one.sha256[:32]), dtype="<u8")
    return _Documents(list(numbers), sources, tokens, contents)


def _by_source(documents: _Documents) -> Iterator[tuple[str, Lengths]]:
    """The lengths of the documents of every source, by name."""
    order = np.argsort(documents.sources, kind="stable")
    borders = np.searchsorted(documents.sources[order], np.arange(len(documents.names) + 1))
    lengths = documents.tokens[order]
    for number in sorted(range(len(documents.names)), key=documents.names.__getitem__):
        yield documents.names[number], lengths[borders[number] : borders[number + 1]]


def _sources(documents: dict[str, _Documents]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "split": split,
                "source": source,
                "documents": len(lengths),
                "tokens": int(lengths.sum()),
                "mean_tokens": float(lengths.mean()),
                "share_of_tokens": float(lengths.sum() / known.tokens.sum()),
            }
            for split, known in documents.items()
            for source, lengths in _by_source(known)
        ]
    )


def _quantiles(documents: dict[str, _Documents]) -> pd.DataFrame:
    rows = []
    for split, known in documents.items():
        for source, lengths in [(ALL, known.tokens), *_by_source(known)]:
            values = np.quantile(lengths, QUANTILES)
            named = {f"q{100 * q:g}": v for q, v in zip(QUANTILES, values.tolist(), strict=True)}
            rows.append({"split": split, "source": source, "documents": len(lengths), **named})
    return pd.DataFrame(rows)


def _histogram(documents: dict[str, _Documents]) -> pd.DataFrame:
    """Documents by powers of two of their ids: [from_tokens, below_tokens)."""
    rows = []
    for split, known in documents.items():
        bins = np.frexp(known.tokens.astype(np.float64))[1]  # 0 for 0, k for [2^(k-1), 2^k)
        for number in np.unique(bins).tolist():
            inside = known.tokens[bins == number]
            rows.append(
                {
                    "split": split,
                    "from_tokens": (1 << number) >> 1,
                    "below_tokens": 1 << number,
                    "documents": len(inside),
                    "tokens": int(inside.sum()),
                }
            )
    return pd.DataFrame(rows)


def _duplicates(
    splits: dict[str, Stream], documents: dict[str, _Documents]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The largest groups of documents with equal text, and how many there are by split."""
    groups, totals = [], []
    for name, known in documents.items():
        numbers = np.flatnonzero(known.contents.any(axis=1))
        keys = known.contents[numbers]
        _, first, counts = np.unique(keys, axis=0, return_index=True, return_counts=True)
        repeated = counts > 1
        tokens, extra = known.tokens[numbers[first]], (counts - 1) * repeated
        totals.append(
            {
                "split": name,
                "documents": len(known.tokens),
                "with_digest": len(keys),
                "distinct": len(counts),
                "groups": int(repeated.sum()),
                "extra_documents": int(extra.sum()),
                "extra_tokens": int((extra * tokens).sum()),
            }
        )
        largest = np.argsort(-counts, kind="stable")[:_GROUPS]
        chosen = {int(numbers[first[g]]): int(counts[g]) for g in largest if counts[g] > 1}
        groups += _named(name, splits[name], chosen)
    columns = ["split", "copies", "tokens", "sha256", "first_document", "first_index"]
    table = pd.DataFrame(groups, columns=columns)
    return table.sort_values(["split", "copies", "first_index"], ascending=[True, False, True]), (
        pd.DataFrame(totals)
    )


def _named(split: str, stream: Stream, chosen: dict[int, int]) -> list[dict[str, Any]]:
    return [
        {
            "split": split,
            "copies": chosen[one.index],
            "tokens": one.end - one.start,
            "sha256": one.sha256,
            "first_document": document_label(one),
            "first_index": one.index,
        }
        for one in _documents_numbered(stream, chosen)
    ]


def _documents_numbered(stream: Stream, numbers: Iterable[int]) -> Iterable[DocumentRef]:
    wanted = set(numbers)
    if not wanted:
        return []
    return [one for one in stream.documents() if one.index in wanted]


def _tokens(splits: dict[str, Stream], tokenizer: Any) -> pd.DataFrame:
    """How often each id occurs, by split; ids that never occur are left out."""
    tables = []
    for name, stream in splits.items():
        counts = np.zeros(0, dtype=np.int64)
        for _, ids in stream.pieces():
            for start in range(0, len(ids), _CHUNK):
                more = np.bincount(ids[start : start + _CHUNK], minlength=len(counts))
                more[: len(counts)] += counts
                counts = more
        used = np.flatnonzero(counts)
        table = pd.DataFrame({"split": name, "id": used, "count": counts[used]})
        table = table.sort_values(["count", "id"], ascending=[False, True], ignore_index=True)
        table["share"] = table["count"] / max(1, int(counts.sum()))
        if tokenizer is not None:
            table["text"] = [
                tokenizer.decode_bytes(np.array([one])).decode("utf-8", "backslashreplace")
                for one in table["id"]
            ]
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def _sequences(splits: dict[str, Stream], seq_lens: Sequence[int]) -> pd.DataFrame:
    rows = [
        {
            "split": name,
            "seq_len": seq_len,
            "sequences": max(0, (stream.num_tokens - 1) // seq_len),
            "tokens": stream.num_tokens,
            "documents": stream.num_documents,
        }
        for name, stream in splits.items()
        for seq_len in seq_lens
    ]
    return pd.DataFrame(rows, columns=["split", "seq_len", "sequences", "tokens", "documents"])


def _own_notices(tables: dict[str, pd.DataFrame]) -> list[str]:
    notices = []
    for row in tables["duplicates"].to_dict("records"):
        if row["with_digest"] < row["documents"]:
            notices.append(
                f"{row['split']}: {row['documents'] - row['with_digest']} documents have no digest "
                "of their text; duplicates among them are not counted"
            )
        if row["extra_documents"]:
            notices.append(
                f"{row['split']}: {row['extra_documents']} documents repeat the text of another "
                f"one ({row['extra_tokens']} tokens)"
            )
    return notices
