"""Where the files of a dataset lie: a directory, or a URL that answers byte ranges.

Guarantees: readers get exactly the bytes they ask for and, over a network, ask for no others; a
file that is missing, shorter or longer than its record is an error that names both sizes. Does not
check contents: that is ``index.verify_dataset``.

URLs go through fsspec, so ``https://``, ``hf://`` and whatever else it knows work alike.
"""

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from data_pipeline.errors import DatasetError

_RESTORE = "restore it from a copy, or delete the dataset and build it again"
_BLOCK = 1 << 12  # bytes fetched at once where single values are looked up


class Array(Protocol):
    """What a mapped file and a remote one have in common; slices are NumPy arrays."""

    def __len__(self) -> int: ...

    def __getitem__(self, key: Any, /) -> Any: ...


class LocalStorage:
    """A directory; arrays are memory maps."""

    is_local = True

    def __init__(self, root: Path) -> None:
        """Read below ``root``."""
        self.root = root

    def __str__(self) -> str:
        return str(self.root)

    def where(self, file: str) -> str:
        """The path of a file, for messages."""
        return str(self.root / file)

    def read(self, file: str) -> bytes:
        """Return a whole file.

        Raises:
            FileNotFoundError: There is none.
        """
        return (self.root / file).read_bytes()

    def read_range(self, file: str, start: int, end: int) -> bytes:
        """Return bytes [start, end) of a file, fewer where it ends before."""
        with (self.root / file).open("rb") as handle:
            handle.seek(start)
            return handle.read(end - start)

    def check(self, file: str, size: int) -> None:
        """Compare the size of a file with its record.

        Raises:
            DatasetError: Another size, or no file.
        """
        path = self.root / file
        found = path.stat().st_size if path.is_file() else None
        if found != size:
            raise DatasetError(_size_message(str(path), size, found))

    def array(self, file: str, dtype: "np.dtype[Any]", shape: tuple[int, ...]) -> Array:
        """Map a file that holds an array of this type and shape; sizes as in ``check``."""
        self.check(file, _nbytes(dtype, shape))
        return np.memmap(self.root / file, dtype, mode="r", shape=shape).view(np.ndarray)


class RemoteStorage:
    """A URL; arrays fetch the byte ranges that are asked for."""

    is_local = False

    def __init__(self, url: str) -> None:
        """Read below ``url``; nothing is asked of the server yet."""
        import fsspec

        self.root = url.rstrip("/")
        self._fs, _ = fsspec.core.url_to_fs(self.root)

    def __str__(self) -> str:
        return self.root

    def where(self, file: str) -> str:
        """The URL of a file, for messages."""
        return f"{self.root}/{file}"

    def read(self, file: str) -> bytes:
        """Return a whole file.

        Raises:
            FileNotFoundError: There is none.
        """
        return bytes(self._fs.cat_file(self.where(file)))

    def check(self, file: str, size: int) -> None:
        """Compare the size of a file with its record: one request, no content.

        Raises:
            DatasetError: Another size, or no file.
        """
        where = self.where(file)
        try:
            info = self._fs.info(where)
        except FileNotFoundError:
            raise DatasetError(_size_message(where, size, None)) from None
        if info["size"] != size:
            raise DatasetError(_size_message(where, size, info["size"]))

    def array(self, file: str, dtype: "np.dtype[Any]", shape: tuple[int, ...]) -> Array:
        """An array of this type and shape whose parts are fetched when they are indexed."""
        self.check(file, _nbytes(dtype, shape))
        return RangeArray(self, file, dtype, shape)

    def read_range(self, file: str, start: int, end: int) -> bytes:
        """Return bytes [start, end) of a file.

        Raises:
            DatasetError: The server sent another number of bytes.
        """
        data = bytes(self._fs.cat_file(self.where(file), start=start, end=end))
        if len(data) != end - start:
            raise DatasetError(
                f"{self.where(file)}: expected bytes [{start}, {end}), found {len(data)} bytes; "
                "serve the dataset with a server that answers byte ranges, or download it"
            )
        return data


class RangeArray:
    """An array in a remote file: rows by slice or by number."""

    def __init__(
        self, storage: RemoteStorage, file: str, dtype: "np.dtype[Any]", shape: tuple[int, ...]
    ) -> None:
        """Describe the array; nothing is fetched."""
        self._storage, self._file, self.dtype, self.shape = storage, file, dtype, shape
        self._row_bytes = _nbytes(dtype, shape[1:])
        self._rows_per_block = max(1, _BLOCK // self._row_bytes)
        self._block = lru_cache(maxsize=64)(self._fetch_block)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: int | slice) -> Any:
        if isinstance(key, slice):
            start, stop, step = key.indices(len(self))
            if step != 1:
                raise IndexError(f"expected a slice of step 1, found {key}")
            return self._rows(start, max(start, stop))
        number = range(len(self))[key]
        block, place = divmod(number, self._rows_per_block)
        return self._block(block)[place]

    def __iter__(self) -> Iterator[Any]:
        for number in range(len(self)):
            yield self[number]

    def _fetch_block(self, number: int) -> npt.NDArray[Any]:
        first = number * self._rows_per_block
        return self._rows(first, min(first + self._rows_per_block, len(self)))

    def _rows(self, start: int, stop: int) -> npt.NDArray[Any]:
        if start == stop:
            return np.empty((0, *self.shape[1:]), self.dtype)
        size = self._row_bytes
        data = self._storage.read_range(self._file, start * size, stop * size)
        return np.frombuffer(data, self.dtype).reshape(-1, *self.shape[1:])


Storage = LocalStorage | RemoteStorage


def open_storage(place: str | Path) -> Storage:
    """Open a directory or a URL (anything with ``://``)."""
    text = str(place)
    return RemoteStorage(text) if "://" in text else LocalStorage(Path(place))


def _nbytes(dtype: "np.dtype[Any]", shape: tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=np.int64)) * dtype.itemsize


def _size_message(where: str, expected: int, found: int | None) -> str:
    return (
        f"{where}: expected {expected} bytes, found {'no file' if found is None else found}; "
        f"{_RESTORE}"
    )
