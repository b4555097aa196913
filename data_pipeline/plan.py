"""Which files are built together: the groups that a build is made, resumed and spread over by.

Guarantees: groups follow from the list of files and ``group_bytes`` alone. A group is a run of
files of one source, closed when their sizes reach ``group_bytes``; every group begins new shards,
so groups can be built in any order, by any processes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from data_pipeline.canonical import canonical_json, sha256_hex
from data_pipeline.errors import DatasetError
from data_pipeline.recipe import Recipe
from data_pipeline.sources import Source, SourceFile, open_source
from data_pipeline.tokenizer import Tokenizer
from data_pipeline.tokenizer_source import open_tokenizer


@dataclass(frozen=True)
class Group:
    """Files [first, end) of the source with this number in the recipe; ``size`` in bytes."""

    number: int
    source: int
    first: int
    end: int
    size: int


@dataclass(frozen=True)
class Plan:
    """The opened sources of a recipe and their groups, in document order."""

    recipe: Recipe
    sources: tuple[Source, ...]
    groups: tuple[Group, ...]
    evaluations: tuple[Source, ...]
    tokenizer: Tokenizer | None  # where the recipe names a file

    @classmethod
    def make(
        cls, recipe: Recipe, workers: int = 1, known: Sequence[Mapping[str, str]] | None = None
    ) -> "Plan":
        """Open the sources and group their files.

        Args:
            recipe: The recipe.
            workers: Threads that hash files.
            known: SHA-256 by file name for every source, so that files are not hashed again.

        Raises:
            DatasetError: A source or tokenizer that cannot be opened, or weights of a mixture that
                do not name the sources.
        """
        hashes = [None] * len(recipe.sources) if known is None else known
        sources = tuple(
            open_source(spec, workers=workers, known=files)
            for spec, files in zip(recipe.sources, hashes, strict=True)
        )
        groups: list[Group] = []
        for number, source in enumerate(sources):
            for first, end, size in _runs([file.size for file in source.files], recipe.group_bytes):
                groups.append(Group(len(groups), number, first, end, size))
        _expect_names(recipe, [source.name for source in sources])
        rule = recipe.decontamination
        evaluations = tuple(open_source(spec) for spec in (rule.sources if rule else ()))
        tokenizer = open_tokenizer(recipe.tokenizer) if "file" in recipe.tokenizer else None
        return cls(recipe, sources, tuple(groups), evaluations, tokenizer)

    def files(self, group: Group) -> tuple[SourceFile, ...]:
        """The files of a group, in reading order."""
        return self.sources[group.source].files[group.first : group.end]

    def sources_sha256(self) -> str:
        """SHA-256 over the name, size and SHA-256 of every file that is read, in order."""
        files: list[list[str | int]] = [
            [number, file.source, file.name, file.size, file.sha256]
            for number, source in enumerate((*self.sources, *self.evaluations))
            for file in source.files
        ]
        if self.tokenizer is not None:
            files.append(["tokenizer", sha256_hex(self.tokenizer.data)])
        return sha256_hex(canonical_json(files))


def _runs(sizes: Sequence[int], limit: int) -> list[tuple[int, int, int]]:
    """Cut into (first, end, size) runs, each closed by the file that takes it to ``limit``."""
    runs, first, size = [], 0, 0
    for place, one in enumerate(sizes, 1):
        size += one
        if size >= limit or place == len(sizes):
            runs.append((first, place, size))
            first, size = place, 0
    return runs


def _expect_names(recipe: Recipe, names: Sequence[str]) -> None:
    if recipe.mixture is None:
        return
    wanted = sorted(recipe.mixture.weights)
    if sorted(names) != wanted:
        raise DatasetError(
            f"data.build.mixture.weights: expected one weight for each source name "
            f"{sorted(names)}, found {wanted}; names must differ"
        )
