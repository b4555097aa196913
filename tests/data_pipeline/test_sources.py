import base64
import hashlib

import pytest

from data_pipeline.errors import DatasetError
from data_pipeline.sources import glob_regex, open_source, skip_reason


def record_hash(data: bytes) -> str:
    return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")


FILES = {
    "demo/__init__.py": b"",
    "demo/zeta.py": b"z = 1\r\n",
    "demo/alpha.py": "a = 'é'\n".encode(),
    "demo/Beta.py": b"b = 2\n",
    "demo/latin.py": b"# \xe9t\xe9\n",
    "demo/sub/tests/test_x.py": b"x = 3\n",
    "demo/sub/deep.py": b"d = 4\n",
    "demo/data.bin": b"\0",
}


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A wheel as an installer leaves it, on the path."""
    info = tmp_path / "demo-1.2.dist-info"
    info.mkdir()
    rows = ["demo-1.2.dist-info/RECORD,,", "demo/__pycache__/zeta.cpython-311.pyc,,"]
    for name, data in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        rows.append(f"{name},{record_hash(data)},{len(data)}")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: demo\nVersion: 1.2\n")
    (info / "RECORD").write_text("\n".join(rows) + "\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def packages(include=("demo/**/*.py",), exclude=("**/tests/**",), name="demo"):
    package = {"name": name, "include": list(include), "exclude": list(exclude)}
    return {"kind": "python_packages", "packages": [package]}


def test_documents_come_in_path_order_with_their_exact_text(installed):
    documents = list(open_source(packages()).documents())
    names = ["demo/Beta.py", "demo/alpha.py", "demo/sub/deep.py", "demo/zeta.py"]
    assert [document.name for document in documents] == names
    assert [document.text.encode() for document in documents] == [FILES[name] for name in names]
    assert {document.source for document in documents} == {"demo"}


def test_packages_come_as_listed(installed):
    spec = packages()
    spec["packages"].insert(
        0, {"name": "numpy", "include": ["numpy/version.py", "numpy/__config__.py"]}
    )
    sources = [document.source for document in open_source(spec).documents()]
    assert sources == ["numpy", "numpy", *["demo"] * 4]


def test_a_name_tells_two_sources_of_packages_apart_and_changes_nothing_else(installed):
    plain, named = open_source(packages()), open_source(packages() | {"name": "demos"})
    assert (plain.name, named.name) == ("python_packages", "demos")
    assert list(named.documents()) == list(plain.documents())
    (one,), (two,) = plain.record(), named.record()
    assert "part" not in one
    assert two == one | {"part": "demos"}
    with pytest.raises(DatasetError, match=r"source\.name .*expected a string"):
        open_source(packages() | {"name": 3})


def test_what_is_skipped_is_counted(installed):
    source = open_source(packages())
    for _ in range(2):  # the counts do not add up over passes
        list(source.documents())
        (record,) = source.record()
        assert record["version"] == "1.2"
        assert (record["files"], record["documents"]) == (6, 4)
        assert (record["skipped_empty"], record["skipped_not_utf8"]) == (1, 1)
        assert record["bytes"] == 7 + 9 + 6 + 6


def test_the_record_does_not_depend_on_the_place_or_on_what_was_not_read(installed):
    source = open_source(packages())
    list(source.documents())
    before = source.record()
    (installed / "demo" / "data.bin").write_bytes(b"other")
    assert str(installed) not in str(before)
    again = open_source(packages())
    list(again.documents())
    assert again.record() == before


def test_a_changed_file_is_named_with_both_digests_and_the_remedy(installed):
    (installed / "demo" / "zeta.py").write_bytes(b"z = 2\r\n")
    expected = hashlib.sha256(FILES["demo/zeta.py"]).hexdigest()
    with pytest.raises(DatasetError, match=r"zeta\.py") as error:
        list(open_source(packages()).documents())
    assert expected in str(error.value)
    assert hashlib.sha256(b"z = 2\r\n").hexdigest() in str(error.value)
    assert "pip install --force-reinstall --no-deps demo==1.2" in str(error.value)


def test_a_missing_file_is_named(installed):
    (installed / "demo" / "zeta.py").unlink()
    with pytest.raises(DatasetError, match=r"zeta\.py: file not found; reinstall"):
        list(open_source(packages()).documents())


def test_a_file_without_a_sha256_in_record_is_refused(installed):
    with pytest.raises(DatasetError, match="expected a sha256 in RECORD, found ''"):
        open_source(packages(include=["demo/**/*.pyc"]))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (packages(name="no-such-package"), "no-such-package: expected an installed"),
        (
            packages(include=["demo/*.rst"]),
            r"expected files matching \['demo/\*.rst'\], found none",
        ),
        ({"kind": "csv"}, "expected one of .*python_packages.*, found 'csv'"),
        ({"kind": "text_tree", "root": "/no/such/place"}, "expected a directory"),
    ],
)
def test_bad_recipes_say_what_is_wrong(installed, spec, message):
    with pytest.raises(DatasetError, match=message):
        open_source(spec)


def test_a_package_listed_twice_is_refused(installed):
    spec = packages()
    spec["packages"] *= 2
    with pytest.raises(DatasetError, match="found twice"):
        open_source(spec)


def test_a_tree_that_changes_while_it_is_read_is_noticed(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    source = open_source({"kind": "text_tree", "root": tmp_path})
    (tmp_path / "a.txt").write_text("two")
    with pytest.raises(DatasetError, match=r"a\.txt: expected sha256"):
        list(source.documents())


def test_the_place_of_a_tree_is_not_recorded(tmp_path):
    records = []
    for place in ("x", "y"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "a.txt").write_text("one")
        source = open_source({"kind": "text_tree", "root": tmp_path / place, "include": ["*.txt"]})
        list(source.documents())
        records.append(source.record())
    assert records[0] == records[1]


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("a/**/*.py", ["a/x.py", "a/b/x.py", "a/b/c/x.py"], ["b/a/x.py", "a/x.pyc", "ax.py"]),
        ("**/tests/**", ["tests/x", "a/tests/b/x"], ["a/xtests/x", "tests"]),
        ("*.py", ["x.py"], ["a/x.py", "x-py"]),
        ("a?.py", ["ab.py"], ["a.py", "a/.py"]),
        ("**", ["x", "a/b/c"], []),
        ("a+b.py", ["a+b.py"], ["aab.py"]),
    ],
)
def test_globs(pattern, yes, no):
    regex = glob_regex(pattern)
    assert [name for name in yes + no if regex.fullmatch(name)] == yes


@pytest.mark.parametrize("pattern", ["a/**.py", "[ab].py"])
def test_globs_that_mean_different_things_elsewhere_are_refused(pattern):
    with pytest.raises(ValueError, match="glob"):
        glob_regex(pattern)


def test_only_ascii_white_space_counts_as_empty():
    assert skip_reason(b"") == skip_reason(b" \t\r\n\x0b\x0c") == "empty"
    assert skip_reason("\u00a0".encode()) is None
    assert skip_reason(b"\xff") == "not_utf8"
