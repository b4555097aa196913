"""One shard as the index records it, and the rules that follow from a position or a content.

Guarantees: file names follow from the split and the number of a shard alone, so a record can never
point outside its dataset; the side of the held-out split follows from the text alone.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Shard:
    """One shard: ``file`` is relative to the dataset; ends and sources lie beside it."""

    file: str
    tokens: int
    documents: int
    sha256: str
    docs_sha256: str
    sources_sha256: str

    @property
    def docs_file(self) -> str:
        """Little-endian u64 [documents, 2]: its end in the shard's ids, its line's end in bytes."""
        return self.file.removesuffix(".bin") + ".docs"

    @property
    def sources_file(self) -> str:
        """One canonical JSON line per document: source, name, bytes, sha256, and more if known."""
        return self.file.removesuffix(".bin") + ".sources.jsonl"


def shard_file(split: str, number: int) -> str:
    """Name of a shard, relative to the dataset."""
    return f"{split}/shard-{number:05d}.bin"


def in_heldout(content_sha256: str, heldout_permille: int) -> bool:
    """Say on which side a document falls, from its content alone: duplicates fall on one side."""
    return int(content_sha256[:16], 16) % 1000 < heldout_permille


def token_dtype(vocab_size: int) -> str:
    """Name of the smallest type for the ids: uint16 up to 65,536 of them, else uint32."""
    return "uint16" if vocab_size <= 1 << 16 else "uint32"
