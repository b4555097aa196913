"""What an audit looks at and what it says: plain data, no bytes of weights.

A digest is what the Hub states for a file: the SHA-256 of an LFS object, git's blob id of any
other. Equal digests mean equal bytes as far as the Hub tells the truth; `tripod pull` and
`tripod verify` hash bytes themselves.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

# Path to (size in bytes, digest); size GONE where a file is named but its content is not there.
Files = Mapping[str, tuple[int, str]]
GONE = -1

# How suites name their revisions; the step is the group. The one that fits most branches is used.
PATTERNS = {
    "step{N}": r"step(0|[1-9]\d*)",
    "step{N}-tokens{T}B": r"step(0|[1-9]\d*)-tokens\d+B",
    "stage{K}-step{N}-tokens{T}B": r"stage\d+-step(0|[1-9]\d*)-tokens\d+B",
    "step_{N}": r"step_(0|[1-9]\d*)",
    "step-{N}": r"step-(0|[1-9]\d*)",
    "global_step{N}": r"global_step(0|[1-9]\d*)",
    "checkpoint-{N}": r"checkpoint-(0|[1-9]\d*)",
    "checkpoint_{N}": r"checkpoint_(0|[1-9]\d*)",
}
_WEIGHTS = re.compile(
    r"(?:.*\.safetensors|(?:pytorch_)?model.*\.(?:bin|pt|pth)|.*\.(?:msgpack|h5))"
)
_STATE = re.compile(r"(?:optimizer|optim|scheduler|rng|scaler|training_args).*")


@dataclass(frozen=True)
class RepoSnapshot:
    """The state of one repository at one moment.

    Attributes:
        name: for messages, org/name.
        revisions: branch or tag to its files.
        commits: branch or tag to its commit, where known.
        titles: branch or tag to the title of its commit, where known.
        texts: contents of small files by their digest, as far as they were read.
        history: commits of the branch that steps are on, oldest first, where known.
    """

    name: str
    revisions: Mapping[str, Files]
    commits: Mapping[str, str] = field(default_factory=dict)
    titles: Mapping[str, str] = field(default_factory=dict)
    texts: Mapping[str, bytes] = field(default_factory=dict)
    history: tuple[str, ...] = ()

    @cached_property
    def pattern(self) -> str:
        """The key of `PATTERNS` that most revisions follow."""
        return max(PATTERNS, key=lambda p: sum(bool(_step(p, name)) for name in self.revisions))

    @cached_property
    def steps(self) -> dict[str, int]:
        """Revision to step, ascending by step; only revisions named by `pattern`."""
        found = {name: _step(self.pattern, name) for name in self.revisions}
        return dict(
            sorted(
                ((name, int(match[1])) for name, match in found.items() if match),
                key=lambda item: (item[1], item[0]),
            )
        )

    def text(self, revision: str, path: str) -> bytes | None:
        """A small file's bytes; None where it is missing or was not read."""
        item = self.revisions.get(revision, {}).get(path)
        return self.texts.get(item[1]) if item else None


def _step(pattern: str, name: str) -> re.Match[str] | None:
    return re.fullmatch(PATTERNS[pattern], name, re.ASCII)


def weights_of(files: Files) -> dict[str, dict[str, tuple[int, str]]]:
    """Weight files by format (the suffix), optimizer state left out: suffix to path to file."""
    found: dict[str, dict[str, tuple[int, str]]] = {}
    for path, item in sorted(files.items()):
        base = path.rsplit("/", 1)[-1]
        # Weights of a model lie at the top; folders hold other exports (ONNX, adapters).
        if base == path and _WEIGHTS.fullmatch(base) and not _STATE.fullmatch(base):
            found.setdefault(base.rsplit(".", 1)[-1], {})[path] = item
    return found


def signatures(files: Files) -> dict[str, tuple[str, ...]]:
    """Format to the digests of its weight files, in order of path: equal ones are equal weights."""
    return {
        suffix: tuple(digest for _, digest in found.values())
        for suffix, found in weights_of(files).items()
    }


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        kind: one of `checkpoints_manifest.audit.KINDS`.
        revisions: those concerned, steps ascending.
        message: what was expected and what is there.
    """

    kind: str
    revisions: tuple[str, ...]
    message: str


def step_list(revisions: Sequence[str], limit: int = 8) -> str:
    """Names for a message: all of a few, the first and last of many."""
    if len(revisions) <= limit:
        return ", ".join(revisions)
    return f"{', '.join(revisions[: limit - 1])} ... {revisions[-1]} ({len(revisions)} revisions)"
