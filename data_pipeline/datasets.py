"""A dataset of any kind: shards of our own (``index-v1``), or Megatron files where they lie.

The schema in ``index.json`` says which; these functions are the one place that asks.
"""

from pathlib import Path

from data_pipeline.index import ShardIndex, verify_dataset
from data_pipeline.megatron_build import verify_megatron
from data_pipeline.megatron_index import MegatronIndex, is_megatron
from data_pipeline.megatron_notices import describe_megatron
from data_pipeline.megatron_stream import MegatronStream
from data_pipeline.shards import TokenStream
from data_pipeline.storage import open_storage

Index = ShardIndex | MegatronIndex
AnyStream = TokenStream | MegatronStream


def open_index(place: str | Path) -> Index:
    """Open the index of a dataset.

    Args:
        place: A directory, or a URL of shards of our own.

    Raises:
        DatasetError: No index there, or a broken one.
    """
    storage = open_storage(place)
    try:
        raw = storage.read("index.json")
    except FileNotFoundError:
        return ShardIndex.load(place)  # which names what is missing and what to do
    return MegatronIndex.load(place) if is_megatron(raw) else ShardIndex.parse(storage, raw)


def open_stream(place: str | Path, split: str = "train") -> AnyStream:
    """Open one split of a dataset; errors as of ``TokenStream`` and ``MegatronStream``."""
    index = open_index(place)
    if isinstance(index, MegatronIndex):
        return MegatronStream(place, split)
    return TokenStream(place, split, index)


def verify_any(place: str | Path, expected_digest: str | None = None) -> Index:
    """Recompute every digest of a dataset.

    Raises:
        DatasetError: The first difference: file, expected, found, remedy.
    """
    if isinstance(open_index(place), MegatronIndex):
        return verify_megatron(place, expected_digest)
    return verify_dataset(place, expected_digest)


def notices(index: Index) -> list[str]:
    """What users of a dataset must know of it, in sentences; nothing for most."""
    return describe_megatron(index) if isinstance(index, MegatronIndex) else []
