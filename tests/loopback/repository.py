"""One repository of the loopback Hub: a bare git repository, driven through git's plumbing."""

import os
import re
import subprocess
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

POINTER = re.compile(
    rb"version https://git-lfs\.github\.com/spec/v1\noid sha256:([0-9a-f]{64})\nsize ([0-9]+)\n"
)
COMMIT = re.compile(r"[0-9a-f]{40}")
INITIAL_ATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"


@dataclass(frozen=True)
class Entry:
    """A file of a tree; `sha256` and `size` are the object's where `blob` is an LFS pointer."""

    path: str
    blob: str
    size: int
    sha256: str | None
    pointer_size: int


class Repository:
    """Refs, trees and commits of the repository at a path, made where there is none."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock = threading.RLock()
        self._trees: dict[str, dict[str, Entry]] = {}
        self._histories: dict[str, list[tuple[str, str, str]]] = {}
        if path.exists():
            return
        path.mkdir(parents=True)
        self.git("init", "-q", "--bare", "--initial-branch=main", ".")
        self.commit("main", {".gitattributes": INITIAL_ATTRIBUTES}, (), "initial commit")

    def git(self, *arguments: str, data: bytes = b"", **environment: str) -> bytes:
        done = subprocess.run(
            ["git", *arguments], cwd=self.path, input=data, capture_output=True, check=False,
            env={**os.environ, "GIT_DIR": str(self.path), **environment},
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"git {' '.join(arguments)}: {done.stderr.decode()}")
        return done.stdout

    def refs(self, kind: str) -> dict[str, str]:
        """Names to commits; kind is `heads` or `tags`."""
        line_format = "%(refname:strip=2) %(objectname)"
        lines = self.git("for-each-ref", f"--format={line_format}", f"refs/{kind}").decode()
        return dict(line.split(" ") for line in lines.splitlines())

    def resolve(self, revision: str) -> str | None:
        if COMMIT.fullmatch(revision):
            if revision not in self._trees:
                try:
                    self.git("cat-file", "-e", f"{revision}^{{commit}}")
                except RuntimeError:
                    return None
            return revision
        return self.refs("heads").get(revision) or self.refs("tags").get(revision)

    def set_ref(self, kind: str, name: str, commit: str) -> None:
        self.git("update-ref", f"refs/{kind}/{name}", commit, "0" * 40)

    def delete_ref(self, kind: str, name: str) -> None:
        self.git("update-ref", "-d", f"refs/{kind}/{name}")

    def blob(self, oid: str) -> bytes:
        return self.git("cat-file", "blob", oid)

    def tree(self, commit: str) -> dict[str, Entry]:
        if commit not in self._trees:
            lines = self.git("ls-tree", "-r", "-l", "-z", commit).decode().split("\0")[:-1]
            self._trees[commit] = {entry.path: entry for entry in map(self._entry, lines)}
        return self._trees[commit]

    def _entry(self, line: str) -> Entry:
        meta, path = line.split("\t", 1)
        _, _, blob, size = meta.split()
        if int(size) < 200 and (pointer := POINTER.fullmatch(self.blob(blob))):
            return Entry(path, blob, int(pointer[2]), pointer[1].decode(), int(size))
        return Entry(path, blob, int(size), None, 0)

    def history(self, commit: str) -> list[tuple[str, str, str]]:
        """Commits, newest first: id, date as the Hub writes it, title."""
        if commit not in self._histories:
            text = self.git(
                "log", "--date=format-local:%Y-%m-%dT%H:%M:%S.000Z", "--format=%H%x00%cd%x00%s",
                "--first-parent", commit, TZ="UTC",
            ).decode()  # fmt: skip
            self._histories[commit] = [tuple(line.split("\0")) for line in text.splitlines()]
        return self._histories[commit]

    def commit(
        self, branch: str, files: dict[str, bytes], deleted: tuple[str, ...], message: str
    ) -> str:
        """Adds a commit to a branch; the first one creates it."""
        who = {
            f"GIT_{role}_{key}": value
            for role in ("AUTHOR", "COMMITTER")
            for key, value in (("NAME", "loopback"), ("EMAIL", "hub@localhost"))
        }
        parent = self.refs("heads").get(branch)
        with tempfile.TemporaryDirectory() as scratch:
            index = {"GIT_INDEX_FILE": f"{scratch}/index"}
            if parent:
                self.git("read-tree", parent, **index)
            lines = [f"0 {'0' * 40}\t{path}" for path in deleted]
            for number, data in enumerate(files.values()):
                Path(scratch, str(number)).write_bytes(data)
            named = "".join(f"{scratch}/{number}\n" for number in range(len(files)))
            made = self.git(
                "hash-object", "-w", "--no-filters", "--stdin-paths", data=named.encode()
            )
            blobs = made.decode().split()
            lines += [f"100644 {b}\t{path}" for b, path in zip(blobs, files, strict=True)]
            data = "".join(f"{line}\0" for line in lines).encode()
            self.git("update-index", "-z", "--add", "--index-info", data=data, **index)
            tree = self.git("write-tree", **index).decode().strip()
        parents = ("-p", parent) if parent else ()
        made = self.git("commit-tree", tree, *parents, data=message.encode(), **who)
        commit = made.decode().strip()
        self.git("update-ref", f"refs/heads/{branch}", commit, parent or "0" * 40)
        return commit
