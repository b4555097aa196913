"""`tripod audit --deep`: do the weights themselves look like one run? On a few downloaded samples.

Metadata cannot see weights that are unique and wrong. These checks compare samples: they lie on one
path (of three steps the outer two are not much nearer to each other than to the middle one), norms
move smoothly, the first steps descend from step 0, every number is finite, and, where the caller
can compute it, the loss moves smoothly too. They are tests of plausibility, with thresholds below;
only replaying a step proves it.

One sample is on disk at a time: what is kept of it is a linear sketch (random signs, folded to
65,536 numbers), from which distances between any two come to within half a percent. Reads
safetensors, and `.bin` files through torch.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from checkpoints_manifest.audit.snapshot import Finding
from checkpoints_manifest.errors import CheckpointError
from checkpoints_manifest.tensor_digest import read_header

Array = npt.NDArray[np.float32]


class Fetch(Protocol):
    """Gives a directory with a revision's files for as long as the context lasts."""

    def __call__(
        self, name: str, paths: Sequence[str] | None = None
    ) -> AbstractContextManager[Path]:
        """Files of a revision; its weights where `paths` is None."""


# Two steps are at least this share as far apart as any two between them.
ON_PATH = 0.7
# Room for a norm beyond its neighbours', as a share of it, and for a loss, in nats.
NORM_ROOM, LOSS_ROOM = 0.05, 0.25
# Steps up to this one have most of the direction of step 0; unrelated starts have none of it.
EARLY_STEP, EARLY_COSINE = 64, 0.5
# Zeroed pages of a file of token order: a real one has next to none.
PAGE, ZERO_SHARE = 4096, 0.02
_FOLD, _BLOCK = 1 << 16, 1 << 22
_NUMPY = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


class Weights:
    """The floating-point tensors of one checkpoint, read one at a time.

    Args:
        directory: holds `*.safetensors`, or `pytorch_model*.bin`.

    Raises:
        CheckpointError: no weights, or a broken header.
    """

    def __init__(self, directory: Path) -> None:
        self._places: dict[str, tuple[Path, str, int, int]] = {}
        self._loaded: dict[str, Array] = {}
        files = sorted(directory.glob("model*.safetensors"))
        for path in files:
            entries, base = read_header(path)
            for name, (dtype, _, start, stop) in entries.items():
                if dtype in _NUMPY:
                    self._places[name] = (path, dtype, base + start, stop - start)
        if not files:
            self._load_bins(directory)
        if not self._places and not self._loaded:
            raise CheckpointError(f"{directory} holds no weights that can be read")

    def _load_bins(self, directory: Path) -> None:
        import torch

        for path in sorted(directory.glob("pytorch_model*.bin")):
            for name, tensor in torch.load(path, map_location="cpu", weights_only=True).items():
                if tensor.is_floating_point():
                    self._loaded[name] = tensor.float().flatten().numpy()

    @property
    def sizes(self) -> dict[str, int]:
        """Elements by name."""
        found = {name: array.size for name, array in self._loaded.items()}
        for name, (_, dtype, _, size) in self._places.items():
            found[name] = size // np.dtype(_NUMPY[dtype]).itemsize
        return dict(sorted(found.items()))

    def tensor(self, name: str) -> Array:
        """A tensor's elements as float32, flat."""
        if name in self._loaded:
            return self._loaded[name]
        path, dtype, start, size = self._places[name]
        with path.open("rb") as file:
            file.seek(start)
            raw = np.frombuffer(file.read(size), _NUMPY[dtype])
        if dtype == "BF16":
            return (raw.astype(np.uint32) << 16).view(np.float32)
        return raw.astype(np.float32)


@dataclass(frozen=True)
class Sketch:
    """What is kept of a sample.

    Attributes:
        name: the revision.
        step: its step.
        sizes: elements by tensor.
        norm: Euclidean norm of all weights.
        folded: float64 [65536]; its products estimate those of the weights.
    """

    name: str
    step: int
    sizes: dict[str, int]
    norm: float
    folded: npt.NDArray[np.float64]

    @classmethod
    def of(cls, name: str, step: int, weights: Weights) -> Sketch:
        """Folds all weights, with signs that depend on a tensor's name alone."""
        folded, square = np.zeros(_FOLD), 0.0
        for tensor in weights.sizes:
            # A key of its own per tensor: equal names get equal signs in every checkpoint.
            rng = np.random.Generator(np.random.Philox(key=_key(tensor)))
            values = weights.tensor(tensor)
            for start in range(0, values.size, _BLOCK):
                block = values[start : start + _BLOCK].astype(np.float64)
                square += float(block @ block)
                padded = np.zeros(-(-block.size // _FOLD) * _FOLD)
                padded[: block.size] = block
                signs = np.unpackbits(np.frombuffer(rng.bytes(padded.size // 8), np.uint8))
                folded += (padded * (2.0 * signs - 1.0)).reshape(-1, _FOLD).sum(axis=0)
        return cls(name, step, weights.sizes, math.sqrt(square), folded)

    def distance(self, other: Sketch) -> float:
        """Estimate of the Euclidean distance."""
        return float(np.linalg.norm(self.folded - other.folded))

    def cosine(self, other: Sketch) -> float:
        """Estimate of the cosine of the angle."""
        return float(self.folded @ other.folded) / max(self.norm * other.norm, 1e-300)


def _key(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:16], "little")


def choose(steps: Sequence[int], count: int) -> list[int]:
    """Steps to look at: the first two and the last, the others spread evenly over the list."""
    ordered = sorted(set(steps))
    if len(ordered) <= count:
        return ordered
    places = np.linspace(1, len(ordered) - 1, count - 1).round().astype(int)
    return [ordered[0], *(ordered[place] for place in places)]


def deep_audit(
    revisions: Sequence[tuple[str, int]],
    fetch: Fetch,
    loss: Callable[[Path], float] | None = None,
) -> list[Finding]:
    """Compares samples with each other.

    Args:
        revisions: name and step, steps rising.
        fetch: gives a revision's files.
        loss: mean loss of the model in a directory on any fixed text, in nats.
    """
    findings: list[Finding] = []
    sketches: list[Sketch] = []
    losses: list[tuple[str, float]] = []
    for name, step in revisions:
        try:
            with fetch(name) as directory:
                sketch = Sketch.of(name, step, Weights(directory))
                if loss is not None:
                    losses.append((name, loss(directory)))
        except CheckpointError as error:
            findings.append(Finding("deep", (name,), f"{name}: {error}"))
            continue
        problem = _unusable(sketch, sketches)
        if problem is None:
            sketches.append(sketch)
        else:
            findings.append(Finding("deep", (name,), f"{name}: {problem}"))
    findings += [*_equal(sketches), *_lineage(sketches)]
    off_path = _on_path(sketches)
    odd = {name for finding in off_path for name in finding.revisions}
    # A neighbour of a wrong step is not itself odd.
    norms = _norms([sketch for sketch in sketches if sketch.name not in odd])
    return findings + off_path + norms + _losses(losses)


def _unusable(sketch: Sketch, before: Sequence[Sketch]) -> str | None:
    if not math.isfinite(sketch.norm):
        return "its weights are not all finite"
    if before and before[0].sizes != sketch.sizes:
        one, two = before[0].sizes, sketch.sizes
        odd = next(name for name in sorted({*one, *two}) if one.get(name) != two.get(name))
        return (
            f"tensor {odd} has {two.get(odd)} elements, in {before[0].name} it has {one.get(odd)}"
        )
    return None


def _equal(sketches: Sequence[Sketch]) -> list[Finding]:
    return [
        Finding("deep", (a.name, b.name), f"{a.name} and {b.name} hold the same numbers")
        for a, b in combinations(sketches, 2)
        if a.distance(b) == 0
    ]


def _lineage(sketches: Sequence[Sketch]) -> list[Finding]:
    return [
        Finding(
            "deep", (a.name, b.name),
            f"{b.name} does not descend from {a.name}: the cosine between their weights is "
            f"{a.cosine(b):.3f}, expected {EARLY_COSINE} or more",
        )
        for a, b in combinations(sketches, 2)
        if a.step == 0 and b.step <= EARLY_STEP and a.cosine(b) < EARLY_COSINE
    ]  # fmt: skip


def _on_path(sketches: Sequence[Sketch]) -> list[Finding]:
    """Takes out, one by one, the sample that most of the broken triples have in common."""
    apart = {(a.name, b.name): a.distance(b) for a, b in combinations(sketches, 2)}
    broken = {
        (a.name, b.name, c.name): apart[a.name, c.name]
        for a, b, c in combinations(sketches, 3)
        if apart[a.name, c.name] < ON_PATH * max(apart[a.name, b.name], apart[b.name, c.name])
    }
    findings = []
    while broken:
        # Of a single triple the middle one: it is far from both others.
        counts = {
            s.name: sum((s.name in t) + (s.name == t[1]) / 2 for t in broken) for s in sketches
        }
        worst = max(counts, key=lambda name: counts[name])
        a, b, c = next(triple for triple in broken if worst in triple)
        findings.append(
            Finding(
                "deep", (worst,),
                f"{worst} is not on the path of the others: {a} and {c} are {apart[a, c]:.4g} "
                f"apart, but {b} is {apart[a, b]:.4g} from {a} and {apart[b, c]:.4g} from {c}",
            )
        )  # fmt: skip
        broken = {triple: value for triple, value in broken.items() if worst not in triple}
    return findings


def _norms(sketches: Sequence[Sketch]) -> list[Finding]:
    findings = []
    for before, sketch, after in zip(sketches, sketches[1:], sketches[2:], strict=False):
        left, norm, right = before.norm, sketch.norm, after.norm
        room = max(NORM_ROOM * norm, 2 * abs(right - left))
        if norm > max(left, right) + room or norm < min(left, right) - room:
            findings.append(
                Finding(
                    "deep", (sketch.name,),
                    f"{sketch.name}: its weights have norm {norm:.4g}, its neighbours' {left:.4g} "
                    f"and {right:.4g}",
                )
            )  # fmt: skip
    return findings


def _losses(losses: list[tuple[str, float]]) -> list[Finding]:
    findings = []
    for (_, left), (name, value), (_, right) in zip(losses, losses[1:], losses[2:], strict=False):
        room = max(LOSS_ROOM, abs(right - left))
        if not min(left, right) - room <= value <= max(left, right) + room:
            findings.append(
                Finding(
                    "deep", (name,),
                    f"{name}: loss {value:.3f}, its neighbours' {left:.3f} and {right:.3f}",
                )
            )  # fmt: skip
    return findings


def zero_pages(name: str, path: Path) -> list[Finding]:
    """Whether a file of token order has lost part of its content.

    Args:
        name: revision and path, for the message.
        path: the file.
    """
    count = zeros = 0
    with path.open("rb") as file:
        while page := file.read(PAGE):
            count += 1
            zeros += not any(page)
    if count and zeros / count > ZERO_SHARE:
        share = f"{zeros / count:.0%} of it are zeros"
        return [Finding("zeroed-file", (name.split(":")[0],), f"{name}: {share}")]
    return []
