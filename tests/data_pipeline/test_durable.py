import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from data_pipeline import durable


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def fail_with(monkeypatch, function, code=errno.ENOSPC):
    def refuse(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, function, refuse)


def test_write_replaces_the_content_and_sets_the_mode(tmp_path):
    path = tmp_path / "x"
    durable.write_bytes(path, b"old")
    durable.write_bytes(path, b"new" * 100_000, mode=0o640)
    assert path.read_bytes() == b"new" * 100_000
    assert path.stat().st_mode & 0o777 == 0o640
    assert names(tmp_path) == ["x"]


def test_an_empty_file_can_be_written(tmp_path):
    durable.write_bytes(tmp_path / "x", b"")
    assert (tmp_path / "x").read_bytes() == b""


@pytest.mark.parametrize("function", ["posix_fallocate", "write", "fchmod", "fsync", "rename"])
def test_a_full_disk_at_any_moment_leaves_the_old_content_and_no_rest(
    tmp_path, monkeypatch, function
):
    path = tmp_path / "x"
    durable.write_bytes(path, b"old")
    with monkeypatch.context() as patch:
        # Path.replace calls os.replace
        fail_with(patch, {"rename": "replace"}.get(function, function))
        with pytest.raises(OSError, match="No space"):
            durable.write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["x"]


def test_space_is_reserved_before_the_first_byte_is_written(tmp_path, monkeypatch):
    fail_with(monkeypatch, "posix_fallocate")
    monkeypatch.setattr(os, "write", lambda *args: pytest.fail("wrote before reserving"))
    with pytest.raises(OSError, match="No space"):
        durable.write_bytes(tmp_path / "x", b"new")


def test_a_file_system_without_preallocation_still_works(tmp_path, monkeypatch):
    fail_with(monkeypatch, "posix_fallocate", errno.EOPNOTSUPP)
    durable.write_bytes(tmp_path / "x", b"new")
    assert (tmp_path / "x").read_bytes() == b"new"


@pytest.mark.parametrize("function", ["posix_fallocate", "write", "fsync", "replace"])
def test_a_process_that_dies_inside_a_write_leaves_the_old_content(tmp_path, function):
    path = tmp_path / "x"
    path.write_bytes(b"old")
    code = (
        "import os, sys\n"
        "from data_pipeline import durable\n"
        f"os.{function} = lambda *a, **k: os._exit(9)\n"
        "durable.write_bytes(sys.argv[1], b'new')\n"
    )
    result = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert result.returncode == 9
    assert path.read_bytes() == b"old"


def test_short_writes_are_continued(tmp_path, monkeypatch):
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:3]))
    durable.write_bytes(tmp_path / "x", b"0123456789")
    assert (tmp_path / "x").read_bytes() == b"0123456789"


def test_a_directory_is_published_whole(tmp_path):
    tmp = tmp_path / "tmp"
    (tmp / "sub").mkdir(parents=True)
    (tmp / "sub" / "file").write_bytes(b"x")
    durable.publish_directory(tmp, tmp_path / "final")
    assert (tmp_path / "final" / "sub" / "file").read_bytes() == b"x"
    assert not tmp.exists()


def test_every_file_is_synced_before_the_rename(tmp_path, monkeypatch):
    tmp = tmp_path / "tmp"
    (tmp / "sub").mkdir(parents=True)
    for name in ("a", "sub/b"):
        (tmp / name).write_bytes(b"x")
    synced = []
    fsync = os.fsync

    def record(descriptor):
        synced.append((os.fstat(descriptor).st_ino, (tmp_path / "final").exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    durable.publish_directory(tmp, tmp_path / "final")
    before = {inode for inode, renamed in synced if not renamed}
    after = {inode for inode, renamed in synced if renamed}
    inside = [tmp_path / "final" / name for name in (".", "a", "sub", "sub/b")]
    assert before == {path.stat().st_ino for path in inside}
    assert after == {tmp_path.stat().st_ino}


def test_publishing_never_replaces_a_directory_with_content(tmp_path):
    for name in ("tmp", "final"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_bytes(b"x")
    with pytest.raises(OSError):
        durable.publish_directory(tmp_path / "tmp", tmp_path / "final")
    assert names(tmp_path / "final") == ["final"]
    assert names(tmp_path / "tmp") == ["tmp"]


def test_lines_are_appended_in_order(tmp_path):
    for line in (b"one", b"two\n", b""):
        durable.append_line(tmp_path / "log", line)
    assert (tmp_path / "log").read_bytes() == b"one\ntwo\n\n"


def test_two_lines_at_once_are_refused(tmp_path):
    with pytest.raises(ValueError, match="newline inside"):
        durable.append_line(tmp_path / "log", b"one\ntwo")
    assert not (tmp_path / "log").exists()


def test_a_line_that_was_cut_short_is_removed_again(tmp_path, monkeypatch):
    durable.append_line(tmp_path / "log", b"one")
    write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda fd, data: write(fd, data[:2]))
        with pytest.raises(OSError, match="no space"):
            durable.append_line(tmp_path / "log", b"two")
    assert (tmp_path / "log").read_bytes() == b"one\n"


def test_free_bytes_of_a_path_that_does_not_exist_yet(tmp_path):
    assert durable.free_bytes(tmp_path / "a" / "b") > 0
