"""Byte streams that are decompressed as they are read, hashed on the way, and never cut unnoticed.

Guarantees: memory does not depend on the size of the file. A stream that ends inside a gzip member
or a zstd frame, or is damaged, raises ``BrokenStream`` after the whole lines before that were read.
The readers of ``gzip`` and ``zstandard`` do less: one loses the lines that it read ahead, the other
takes a file that was cut for a file that ended.
"""

import hashlib
import io
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol

import zstandard

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst")
READ_BYTES = 1 << 20
# A zstd block of 4 bytes can stand for 128 KiB, so 4 KiB of input is at most 128 MiB of output;
# usual text gives some 20 KiB. Measured as fast as larger pieces.
_INPUT_BYTES = 1 << 12
# Frames written with --long=31 need it; the window is only as large as the frame says.
_ZSTD_MAX_WINDOW = 1 << 31
_GZIP = 16 + zlib.MAX_WBITS


class BrokenStream(ValueError):
    """The rest of a stream cannot be read; the message says why."""


class HashedFile(io.RawIOBase):
    """A file whose bytes are hashed as they are read, each of them once and in order."""

    def __init__(self, path: Path | str) -> None:
        """Open the file."""
        self._file = Path(path).open("rb", buffering=0)  # noqa: SIM115 - closed by close()
        self._sha256 = hashlib.sha256()

    def readable(self) -> bool:
        """Say that it can be read."""
        return True

    def readinto(self, buffer: "WriteableBuffer") -> int:
        """Read into ``buffer``; 0 at the end."""
        view = memoryview(buffer).cast("B")
        count = self._file.readinto(view) or 0
        self._sha256.update(view[:count])
        return count

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()

    def sha256(self) -> str:
        """Read what is left and return the SHA-256 of the whole file in hex."""
        while self.read(READ_BYTES):
            pass
        return self._sha256.hexdigest()


class _Frame(Protocol):
    """What zlib and zstandard call a decompression object: one gzip member or zstd frame."""

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, /) -> bytes: ...


class Frames(io.RawIOBase):
    """The decompressed bytes of gzip members or zstd frames, one after the other."""

    def __init__(
        self, raw: BinaryIO, name: str, new_frame: Callable[[], _Frame], padding: bytes
    ) -> None:
        """Read from ``raw``, which has to outlive this.

        Args:
            raw: The file.
            name: The format, for errors.
            new_frame: Starts a frame.
            padding: Bytes that may stand between frames and mean nothing.
        """
        self._raw, self._name, self._new_frame, self._padding = raw, name, new_frame, padding
        self._left = memoryview(b"")
        self._pieces = self._decompressed()

    def readable(self) -> bool:
        """Say that it can be read."""
        return True

    def readinto(self, buffer: "WriteableBuffer") -> int:
        """Read into ``buffer``; 0 at the end.

        Raises:
            BrokenStream: The end lies inside a frame, or a frame is damaged.
        """
        view = memoryview(buffer).cast("B")
        if not self._left:
            self._left = memoryview(next(self._pieces, b""))
        count = min(len(view), len(self._left))
        view[:count], self._left = self._left[:count], self._left[count:]
        return count

    def _decompressed(self) -> Iterator[bytes]:
        """Yield pieces that are not empty."""
        frame: _Frame | None = None
        while data := self._raw.read(_INPUT_BYTES):
            while data:
                if frame is None:
                    data = data.lstrip(self._padding)
                    frame = self._new_frame() if data else None
                    continue
                try:
                    if piece := frame.decompress(data):
                        yield piece
                except (zstandard.ZstdError, zlib.error) as error:
                    raise BrokenStream(f"damaged {self._name} data ({error})") from None
                data = b""
                if frame.eof:
                    data, frame = frame.unused_data, None
        if frame is not None:
            raise BrokenStream(f"the {self._name} stream is cut off")


def decompressed(raw: BinaryIO, name: str) -> BinaryIO:
    """Return the decompressed bytes of ``raw``, by the suffix of ``name``."""
    if name.endswith(".gz"):
        return io.BufferedReader(Frames(raw, "gzip", _gzip_member, b"\0"), READ_BYTES)
    if name.endswith(".zst"):
        return io.BufferedReader(Frames(raw, "zstd", _zstd_frame, b""), READ_BYTES)
    return raw


def _gzip_member() -> _Frame:
    return zlib.decompressobj(_GZIP)


def _zstd_frame() -> _Frame:
    frame: _Frame = zstandard.ZstdDecompressor(max_window_size=_ZSTD_MAX_WINDOW).decompressobj()
    return frame


def lines(stream: BinaryIO, limit: int) -> Iterator[tuple[bytes | None, bool]]:
    r"""Yield (line without its ``\n``, whether it ended with one); None for one over ``limit``.

    Raises:
        BrokenStream: The rest of the stream cannot be read.
    """
    while line := stream.readline(limit + 1):
        ended = line.endswith(b"\n")
        if len(line) > limit and not ended:
            yield None, _skip_line(stream)
        else:
            yield line[:-1] if ended else line, ended


def _skip_line(stream: BinaryIO) -> bool:
    """Read to the end of the line in pieces; say whether it ended with a line feed."""
    while piece := stream.readline(READ_BYTES):
        if piece.endswith(b"\n"):
            return True
    return False
