"""One side of ``fetch.py``, in a process of its own: reads shuffled sequences as a library does.

Runs in the environment of its library, so it imports nothing of this package but for our own sides.
Asked in lines of JSON on standard input, answers in lines of JSON. Every side gives int64 arrays
[B, S+1] of the same tokens, in a shuffled order of its own.
"""

import contextlib
import ctypes
import gc
import importlib.machinery
import json
import mmap
import os
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Batches = Iterator[npt.NDArray[np.int64]]


class Side:
    """The data of one side below ``root``; ``tokens.bin`` is the stream, S ids a sequence."""

    def __init__(self, root: Path, seq_len: int) -> None:
        """Nothing is opened yet."""
        self.root, self.seq_len = root, seq_len
        self.tokens = root / "tokens.bin"
        self.sequences = (self.tokens.stat().st_size // 2 - 1) // seq_len

    def windows(self) -> npt.NDArray[np.uint16]:
        """Every sequence as [S+1], over a fresh memory map."""
        ids = np.memmap(self.tokens, np.uint16, mode="r")
        shape, step = (self.sequences, self.seq_len + 1), self.seq_len * 2
        return np.ndarray(shape, np.uint16, ids.data, 0, (step, 2))

    def shuffled(self, batch: int, seed: int) -> list[npt.NDArray[np.int64]]:
        """The numbers of a permutation, a batch at a time."""
        order = np.random.RandomState(seed).permutation(self.sequences)
        return [order[i : i + batch] for i in range(0, len(order) - batch + 1, batch)]

    def files(self) -> list[Path]:
        """What a run reads."""
        return [self.tokens]

    def prepare(self) -> None:
        """Write the library's own format, once."""

    def batches(self, batch: int, seed: int) -> Batches:
        """Open everything anew and yield batches."""
        raise NotImplementedError


class Own(Side):
    """A side with a directory of its own."""

    def own(self) -> Path:
        """The directory."""
        return self.root / type(self).__name__

    def files(self) -> list[Path]:
        """Everything in it."""
        return [path for path in self.own().rglob("*") if path.is_file()]


class Tripod(Side):
    """Ours: the loader without workers; the kernel is asked one step ahead."""

    digests, workers, threads = False, 0, 1

    def files(self) -> list[Path]:
        """The shards of the dataset."""
        return [path for path in (self.root / "dataset").rglob("*") if path.is_file()]

    def batches(self, batch: int, seed: int) -> Batches:
        """Through ``BatchReader`` and ``Loader``, as the trainer does."""
        from data_pipeline.batches import BatchReader
        from data_pipeline.loader import Loader

        reader = BatchReader(self.root / "dataset", self.seq_len, batch, seed)
        ahead, digests = max(1, self.workers), self.digests
        with Loader(
            reader, workers=self.workers, ahead=ahead, digests=digests, threads=self.threads
        ) as loader:
            for one in loader.steps(0, self.sequences // batch):
                yield one.ids


class TripodDigests(Tripod):
    """The same with the SHA-256 of every sequence, in the same thread."""

    digests = True


class TripodDigestsThreads(Tripod):
    """The same, two threads hash."""

    digests, threads = True, 2


class TripodDigestsWorkers(Tripod):
    """The same with two worker threads."""

    digests, workers = True, 2


class NeoX(Side):
    """GPT-NeoX: document, sample and shuffle index, then the pieces of each sample."""

    def prepare(self) -> None:
        """Build the three arrays from the document sizes, as ``_build_index_mappings`` does."""
        sizes = np.load(self.root / "sizes.npy")
        random = np.random.RandomState(1234)
        documents = np.arange(len(sizes), dtype=np.int32)
        random.shuffle(documents)
        ends = np.cumsum(sizes[documents])
        borders = np.arange(self.sequences + 1, dtype=np.int64) * self.seq_len
        slots = np.searchsorted(ends, borders, side="right")
        offsets = borders - (ends[slots] - sizes[documents][slots])
        shuffle = np.arange(self.sequences, dtype=np.uint32)
        random.shuffle(shuffle)
        for name, array in (
            ("doc", documents),
            ("sample", np.stack([slots, offsets], axis=1).astype(np.int32)),
            ("shuffle", shuffle),
        ):
            np.save(self.root / f"neox_{name}.npy", array)
        np.save(self.root / "neox_pointers.npy", np.concatenate(([0], np.cumsum(sizes)[:-1])) * 2)

    def batches(self, batch: int, seed: int) -> Batches:
        """``GPT2Dataset.__getitem__`` sample by sample, then the collation."""
        sizes, pointers = np.load(self.root / "sizes.npy"), np.load(self.root / "neox_pointers.npy")
        doc, sample, shuffle = (
            np.load(self.root / f"neox_{name}.npy", mmap_mode="r")
            for name in ("doc", "sample", "shuffle")
        )
        buffer = memoryview(np.memmap(self.tokens, mode="r", order="C"))  # type: ignore[arg-type]

        def get(index: int, offset: int = 0, length: int | None = None) -> npt.NDArray[np.uint16]:
            length = int(sizes[index]) - offset if length is None else length
            start = int(pointers[index]) + offset * 2
            return np.frombuffer(buffer, dtype=np.uint16, count=length, offset=start)

        def item(position: int) -> npt.NDArray[np.int64]:
            number = shuffle[position]
            (first, begin), (last, end) = sample[number], sample[number + 1]
            if first == last:
                parts = [get(doc[first], begin, end - begin + 1)]
            else:
                parts = [get(doc[first], begin)]
                parts += [get(doc[i]) for i in range(first + 1, last)]
                parts.append(get(doc[last], 0, end + 1))
            return np.array(np.concatenate(parts), dtype=np.int64)

        for first in range(0, self.sequences - batch, batch):
            yield np.stack([item(position) for position in range(first, first + batch)])


class TorchData(Side):
    """``StatefulDataLoader`` over a map-style dataset of the memory map, no worker processes."""

    def batches(self, batch: int, seed: int) -> Batches:
        """Default collation."""
        import torch
        from torchdata.stateful_dataloader import StatefulDataLoader

        windows = self.windows()

        class Windows(torch.utils.data.Dataset[Any]):
            def __len__(self) -> int:
                return len(windows)

            def __getitem__(self, index: int) -> Any:
                return torch.from_numpy(windows[index].astype(np.int64))

        order = np.concatenate(self.shuffled(batch, seed)).tolist()
        for one in StatefulDataLoader(Windows(), batch, sampler=order, num_workers=0):
            yield one.numpy()


class HFDatasets(Own):
    """Arrow on disk, NumPy format, ``dataset[indices]``."""

    def prepare(self) -> None:
        """``save_to_disk``."""
        import datasets

        kind = datasets.Value("uint16")
        features = datasets.Features({"ids": datasets.Sequence(kind, length=self.seq_len + 1)})
        data = datasets.Dataset.from_dict({"ids": self.windows()}, features=features)
        data.save_to_disk(str(self.own()))

    def batches(self, batch: int, seed: int) -> Batches:
        """One indexing call a batch."""
        import datasets

        data = datasets.load_from_disk(str(self.own())).with_format("numpy")
        for indices in self.shuffled(batch, seed):
            yield np.asarray(data[indices]["ids"]).astype(np.int64)


class LitData(Own):
    """``StreamingDataLoader`` with its own shuffle, local chunks, no worker processes."""

    def prepare(self) -> None:
        """``optimize`` into 64 MB chunks."""
        import litdata

        inputs = list(range(self.sequences))
        output = str(self.own())
        litdata.optimize(self.read, inputs, output, num_workers=1, chunk_bytes="64MB")

    def read(self, index: int) -> npt.NDArray[np.uint16]:
        """One sample."""
        return np.array(self.windows()[index])

    def batches(self, batch: int, seed: int) -> Batches:
        """Collated to int64 by the default collation of NumPy arrays."""
        import litdata

        data = litdata.StreamingDataset(str(self.own()), shuffle=True, seed=seed, drop_last=True)
        for one in litdata.StreamingDataLoader(data, batch_size=batch, num_workers=0):
            if len(one) == batch:
                yield np.asarray(one).astype(np.int64)


class Mosaic(Own):
    """MDS shards, local, ``dataset[index]`` (faster here than its own loader)."""

    def prepare(self) -> None:
        """``MDSWriter``, shards of 64 MB."""
        _without_torchvision()
        from streaming import MDSWriter

        columns = {"ids": f"ndarray:uint16:{self.seq_len + 1}"}
        with MDSWriter(out=str(self.own()), columns=columns, size_limit=1 << 26) as writer:
            for window in self.windows():
                writer.write({"ids": np.array(window)})

    def batches(self, batch: int, seed: int) -> Batches:
        """Sample by sample, then stacked."""
        _without_torchvision()
        from streaming import StreamingDataset

        data = StreamingDataset(local=str(self.own()), shuffle=False, batch_size=batch)
        for indices in self.shuffled(batch, seed):
            yield np.stack([data[int(i)]["ids"] for i in indices]).astype(np.int64)


_TORCHVISION_NAMES = ("VisionDataset", "to_tensor", "transforms", "datasets", "functional")


def _without_torchvision() -> None:
    """Stand in for torchvision, which streaming imports for images and which must match torch."""
    for name in ("", ".transforms", ".transforms.functional", ".datasets"):
        module = types.ModuleType("torchvision" + name)
        module.__spec__ = importlib.machinery.ModuleSpec(module.__name__, None)
        module.__dict__.update(dict.fromkeys(_TORCHVISION_NAMES, object), __path__=[])
        sys.modules.setdefault("torchvision" + name, module)


SIDES = {
    "ours": Tripod,
    "ours, digests": TripodDigests,
    "ours, digests, 2 threads": TripodDigestsThreads,
    "ours, digests, 2 workers": TripodDigestsWorkers,
    "GPT-NeoX three indexes": NeoX,
    "torchdata StatefulDataLoader": TorchData,
    "HF datasets (Arrow)": HFDatasets,
    "litdata StreamingDataLoader": LitData,
    "mosaicml-streaming": Mosaic,
}


def run(side: Side, batch: int, most: int, cold: bool, seed: int) -> dict[str, Any]:
    """Time up to ``most`` batches, opened anew, with the files in memory or out of it."""
    for path in side.files():
        _warm_or_drop(path, cold)
    resident = _resident(side.files()) if cold else 1.0
    times, tokens = [], 0
    batches = side.batches(batch, seed)
    next(batches)  # imports, opens files, starts threads
    for _ in range(most):
        start = time.perf_counter()
        ids = next(batches, None)
        seconds = time.perf_counter() - start
        if ids is None:
            break
        if ids.dtype != np.int64 or ids.shape != (batch, side.seq_len + 1):
            raise ValueError(f"expected int64 {(batch, side.seq_len + 1)}, found {ids.shape}")
        times.append(seconds)
        tokens += ids.size
    batches.close()  # type: ignore[attr-defined]
    del batches, ids
    gc.collect()  # pages that a process has mapped cannot be dropped from memory
    return {"times": times, "tokens": tokens, "resident": resident}


def _resident(paths: list[Path]) -> float:
    """The share of the files that is in memory (mincore)."""
    call = ctypes.CDLL(None).mincore
    found = pages = 0
    for path in paths:
        if path.stat().st_size:
            ids = np.memmap(path, np.uint8, mode="r")
            states = np.zeros(-(-ids.size // mmap.PAGESIZE), np.uint8)
            call(*(ctypes.c_void_p(a) for a in (ids.ctypes.data, ids.size, states.ctypes.data)))
            found, pages = found + int((states & 1).sum()), pages + states.size
    return found / max(1, pages)


def _warm_or_drop(path: Path, cold: bool) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if cold:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        else:
            while os.read(descriptor, 1 << 24):
                pass
    finally:
        os.close(descriptor)


def main() -> None:
    """Answer until standard input ends."""
    name, root, seq_len = sys.argv[1:]
    side = SIDES[name](Path(root), int(seq_len))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries that print do not disturb the answers
    for line in sys.stdin:
        request = json.loads(line)
        with contextlib.redirect_stdout(sys.stderr):
            if request == "prepare":
                side.prepare()
                os.sync()
                answer: dict[str, Any] = {"files": len(side.files())}
            else:
                answer = run(side, **request)
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
