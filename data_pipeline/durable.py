"""Writes that are complete or absent, and still there after a power cut.

Guarantees, on a POSIX file system: after a call returns, its effect survives a crash of the
process or of the machine; if a call raises or the process dies inside it, readers see either what
was there before or the new content, never a part of it. Space is reserved before the first byte is
written, so a full disk is reported before anything changes. (``append_line`` is the exception: a
crash of the machine can leave a torn last line, which readers must recognise by its missing
newline.)

Does not guarantee: mutual exclusion between two writers of one path; take a lock for that.
"""

import contextlib
import errno
import os
import secrets
import shutil
from pathlib import Path


def fsync_directory(path: str | Path) -> None:
    """Make the names inside a directory (creations, renames, removals) durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: str | Path, data: bytes | bytearray | memoryview, mode: int = 0o644) -> None:
    """Replace or create a file atomically and durably.

    Args:
        path: The file. Its directory must exist.
        data: The whole new content.
        mode: Permission bits, set exactly (the umask does not apply).

    Raises:
        OSError: Anything the file system refuses, ENOSPC included; the old content is untouched and
            the temporary file is gone.
    """
    path = Path(path)
    view = memoryview(data).cast("B")
    # The suffix is a name only, no bit of any result depends on it.
    tmp = path.with_name(f".{path.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        descriptor = os.open(tmp, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            reserve(descriptor, len(view))
            write_all(descriptor, view)
            os.fchmod(descriptor, mode)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        tmp.replace(path)
    except OSError:
        with contextlib.suppress(FileNotFoundError):
            tmp.unlink()
        raise
    fsync_directory(path.parent)


def publish_directory(tmp: str | Path, final: str | Path) -> None:
    """Give a finished directory its final name, atomically and durably.

    Every file and directory below ``tmp`` is synced, then ``tmp`` is renamed and the parent synced.

    Args:
        tmp: Directory on the same file system as ``final``.
        final: The new name. It must not exist, except as an empty directory.

    Raises:
        OSError: ``final`` exists and is not empty (ENOTEMPTY or EEXIST), or another refusal of the
            file system; ``tmp`` is then left as it was.
    """
    tmp, final = Path(tmp), Path(final)
    for directory, _, names in os.walk(tmp, topdown=False):
        for name in names:
            _fsync_file(Path(directory) / name)
        fsync_directory(directory)
    tmp.rename(final)
    fsync_directory(final.parent)
    if tmp.parent.resolve() != final.parent.resolve():
        fsync_directory(tmp.parent)


def append_line(path: str | Path, line: bytes) -> None:
    """Append one line with a single write, then sync; the file is created when missing.

    Args:
        path: The log file.
        line: The line; a newline is added when it does not end with one.

    Raises:
        ValueError: ``line`` has a newline before its end.
        OSError: The write was refused or cut short (ENOSPC); what was appended is removed again.
    """
    path = Path(path)
    line = line if line.endswith(b"\n") else line + b"\n"
    if b"\n" in line[:-1]:
        raise ValueError(f"expected one line for {path}, found a newline inside it; split it first")
    created = not path.exists()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        size = os.fstat(descriptor).st_size
        try:
            written = os.write(descriptor, line)
            if written != len(line):
                raise OSError(errno.ENOSPC, "no space left to append a whole line", str(path))
            os.fsync(descriptor)
        except OSError:
            os.ftruncate(descriptor, size)
            raise
    finally:
        os.close(descriptor)
    if created:
        fsync_directory(path.parent)


def free_bytes(path: str | Path) -> int:
    """Return the bytes an unprivileged process may still write on the file system of ``path``.

    The nearest existing parent answers for a path that does not exist yet.
    """
    path = Path(path).absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def reserve(descriptor: int, size: int) -> None:
    """Reserve ``size`` bytes for an open file, so that ENOSPC comes before any byte is written.

    A file system without preallocation is left to fail in the write itself.
    """
    if size == 0 or not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise


def write_all(descriptor: int, data: bytes | bytearray | memoryview) -> None:
    """Write all of ``data``, continuing after short writes."""
    view = memoryview(data).cast("B")
    while view:
        view = view[os.write(descriptor, view) :]


def _fsync_file(path: Path) -> None:
    if path.is_symlink():
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
