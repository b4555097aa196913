"""Which files a source reads: found by globs below a root, in one order, hashed.

Guarantees: the files and their order depend on the names below the root only: code-point order of
the POSIX path. A file outside the root is never read, a symbolic link that would lead there is
refused, and so is a name that cannot be written in a line of UTF-8.
"""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from data_pipeline.canonical import sha256_file
from data_pipeline.errors import DatasetError
from data_pipeline.sources.base import SourceFile
from data_pipeline.sources.spec import Spec


def chosen_files(
    spec: Spec,
    name: str,
    suffixes: tuple[str, ...],
    workers: int,
    known: Mapping[str, str] | None,
) -> list[SourceFile]:
    """Find the files of a recipe: the ``files`` it lists, or those that its globs match.

    Raises:
        DatasetError: Both are given, nothing is found, or a file has another suffix.
    """
    root = spec.root()
    if "files" in spec:
        if "include" in spec or "exclude" in spec:
            raise spec.fail("files", "files, or include and exclude", "both", "choose one")
        listed = spec.texts("files")
        if not listed:
            raise spec.fail("files", "at least one path", [])
        files = listed_files(name, root, listed, workers=workers, known=known)
    else:
        include = spec.texts("include", tuple(f"**/*{suffix}" for suffix in suffixes))
        exclude, each = spec.texts("exclude"), "include" in spec
        files = find_files(name, root, include, exclude, each=each, workers=workers, known=known)
    for file in files:
        if not file.name.endswith(suffixes):
            raise DatasetError(
                f"{file.path}: expected a name that ends with {' or '.join(suffixes)}, found "
                f"{file.name!r}; rename it, or exclude it from {spec.kind}"
            )
    return files


def find_files(
    source: str,
    root: Path,
    include: Sequence[str],
    exclude: Sequence[str] = (),
    *,
    each: bool = True,
    workers: int = 1,
    known: Mapping[str, str] | None = None,
) -> list[SourceFile]:
    """Find and hash the files below ``root`` that match an include glob and no exclude glob.

    Args:
        source: What the files' ``source`` is.
        root: The directory.
        include: Globs over POSIX paths relative to ``root``; see ``glob_regex``.
        exclude: Globs of paths to leave out.
        each: Every include glob has to match a file; otherwise one of them.
        workers: Threads that hash.
        known: SHA-256 by name; such files are not hashed, and there must be no others.

    Raises:
        DatasetError: A glob that matches nothing, a bad file name, a link that leaves the root, or
            files other than the known ones.
    """
    names = _select(root, include, exclude, each)
    for name in names:
        _expect_inside(root, name)
    return hash_files(source, root, names, workers, known)


def listed_files(
    source: str,
    root: Path,
    names: Sequence[str],
    *,
    workers: int = 1,
    known: Mapping[str, str] | None = None,
) -> list[SourceFile]:
    """Hash the files that are named, in code-point order; see ``find_files``.

    Raises:
        DatasetError: See ``expect_listed`` and ``hash_files``.
    """
    expect_listed(root, names)
    return hash_files(source, root, sorted(names), workers, known)


def expect_listed(root: Path, names: Sequence[str]) -> None:
    """Check files that something names.

    Raises:
        DatasetError: A name that is no plain relative POSIX path, or no file below ``root``.
    """
    for name in names:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or str(path) != name or not path.parts:
            raise DatasetError(
                f"{root}: expected files by their plain path relative to it, found {name!r}; "
                "write it without a leading /, . and .."
            )
        _expect_nameable(root, name)
        if not (root / name).is_file():
            raise DatasetError(
                f"{root / name}: expected a file, found none; restore it, or name "
                "the files that are there"
            )
        _expect_inside(root, name)


def hash_files(
    source: str,
    root: Path,
    names: Sequence[str],
    workers: int = 1,
    known: Mapping[str, str] | None = None,
) -> list[SourceFile]:
    """Size and hash files below ``root``, in the order given.

    Raises:
        DatasetError: ``known`` names other files.
    """
    if known is not None and set(known) != set(names):
        missing, extra = sorted(set(known) - set(names)), sorted(set(names) - set(known))
        raise DatasetError(
            f"{root}: expected the {len(known)} files of the plan, found {len(names)} (missing "
            f"{missing[:3]}, not in the plan {extra[:3]}); restore them, or plan the build again"
        )
    digests = known if known is not None else _hash(root, names, workers)
    return [
        SourceFile(source, name, root / name, (root / name).stat().st_size, digests[name])
        for name in names
    ]


def _hash(root: Path, names: Sequence[str], workers: int) -> dict[str, str]:
    with ThreadPoolExecutor(max_workers=workers) as pool:  # hashlib releases the interpreter lock
        return dict(zip(names, pool.map(lambda name: sha256_file(root / name), names), strict=True))


def _select(root: Path, include: Sequence[str], exclude: Sequence[str], each: bool) -> list[str]:
    wanted, found = selector(include, exclude), _walk(root, exclude)
    names = sorted(name for name in found if wanted(name))
    regexes = {pattern: glob_regex(pattern) for pattern in include}
    idle = [p for p, regex in regexes.items() if not any(map(regex.fullmatch, found))]
    if not names or (each and idle):
        raise DatasetError(
            f"{root}: expected files matching {idle if names else list(include)}, found none; "
            "correct the globs or the root"
        )
    for name in names:
        _expect_nameable(root, name)
    return names


def _walk(root: Path, exclude: Sequence[str]) -> list[str]:
    """List the files below ``root`` by POSIX path; linked directories inside it are read once."""
    out, excluded = [], selector(exclude, ())
    for directory, children, files in os.walk(root, onerror=_raise):
        place = Path(directory).relative_to(root)
        for child in children:
            path, name = Path(directory, child), (place / child).as_posix()
            if path.is_symlink() and not excluded(name) and not excluded(f"{name}/-"):
                _expect_inside(root, name)
        out += [(place / file).as_posix() for file in files if _is_file(Path(directory, file))]
    return out


def _raise(error: OSError) -> None:
    raise error


def _is_file(path: Path) -> bool:
    return path.is_file() or path.is_symlink()  # a link to nothing is reported, not passed over


def _expect_nameable(root: Path, name: str) -> None:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        found = "bytes that are not UTF-8"
    else:
        if "\n" not in name and "\r" not in name:
            return
        found = "a line break"
    raise DatasetError(
        f"{root}: expected file names in UTF-8 on one line, found {found} in {os.fsencode(name)!r};"
        " rename the file or exclude it"
    )


def _expect_inside(root: Path, name: str) -> None:
    path, base = root / name, root.resolve()
    target = path.resolve()
    if target != base and base not in target.parents:
        raise DatasetError(
            f"{path}: expected a file below {root}, found a symbolic link that leaves it, to "
            f"{target}; copy the file, exclude it, or choose a root that holds both"
        )
    if not target.exists():
        raise DatasetError(
            f"{path}: expected a file, found a symbolic link to nothing; restore or exclude it"
        )


def glob_regex(pattern: str) -> re.Pattern[str]:
    """Translate a glob over POSIX paths: ``*`` and ``?`` stay inside a part, ``**`` crosses parts.

    Raises:
        DatasetError: ``**`` beside other characters in a part, or a character class.
    """
    if "[" in pattern or "]" in pattern:
        raise DatasetError(f"glob {pattern!r}: character classes are not supported; list the names")
    parts = pattern.split("/")
    out = ""
    for position, part in enumerate(parts):
        last = position == len(parts) - 1
        if part == "**":
            out += ".*" if last else "(?:[^/]+/)*"
        elif "**" in part:
            raise DatasetError(f"glob {pattern!r}: ** must be a part of its own, like a/**/*.py")
        else:
            out += re.escape(part).replace(r"\*", "[^/]*").replace(r"\?", "[^/]")
            out += "" if last else "/"
    return re.compile(out, re.DOTALL)


def selector(include: Sequence[str], exclude: Sequence[str]) -> Callable[[str], bool]:
    """Return a test that is true for a path matching an include and no exclude."""
    yes, no = [glob_regex(p) for p in include], [glob_regex(p) for p in exclude]

    def wanted(name: str) -> bool:
        return any(p.fullmatch(name) for p in yes) and not any(p.fullmatch(name) for p in no)

    return wanted
