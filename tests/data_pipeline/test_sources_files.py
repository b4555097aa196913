import hashlib
import os

import pytest

from data_pipeline import sources
from data_pipeline.errors import DatasetError
from data_pipeline.sources import KINDS, open_source


def write(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('{"text": "a"}\n')


def opened(root, kind="jsonl", workers=1, known=None, **keys):
    return open_source({"kind": kind, "root": str(root), **keys}, workers=workers, known=known)


def names(source):
    return [file.name for file in source.files]


def test_files_have_their_size_and_sha256_before_they_are_read(tmp_path):
    write(tmp_path, "a.jsonl", "b.jsonl")
    one, many = opened(tmp_path), opened(tmp_path, workers=4)
    assert one.files == many.files
    data = (tmp_path / "a.jsonl").read_bytes()
    assert one.files[0].size == len(data)
    assert one.files[0].sha256 == hashlib.sha256(data).hexdigest()
    assert one.files[0].path == tmp_path / "a.jsonl"


def test_what_is_left_out_does_not_matter(tmp_path):
    write(tmp_path, "a.jsonl", "x/b.jsonl", "x/notes.txt", "x/tmp/c.jsonl")
    assert names(opened(tmp_path, exclude=["**/tmp/**"])) == ["a.jsonl", "x/b.jsonl"]
    assert names(opened(tmp_path, include=["x/*.jsonl"])) == ["x/b.jsonl"]


def test_texts_of_a_tree_come_back_identical(tmp_path):
    texts = ["\r\n\u2028é\x00", "\ufeffa", "e\u0301", " a ", "\U0001f469\u200d\U0001f4bb"]
    for number, text in enumerate(texts):
        (tmp_path / f"{number}.txt").write_bytes(text.encode())
    assert [d.text for d in opened(tmp_path, kind="text_tree").documents()] == texts


def test_listed_files_come_by_code_point_too(tmp_path):
    write(tmp_path, "a.jsonl", "b.jsonl", "c.jsonl")
    assert names(opened(tmp_path, files=["c.jsonl", "a.jsonl"])) == ["a.jsonl", "c.jsonl"]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"include": ["**/*.jsonl", "b/*.jsonl"]}, r"matching \['b/\*.jsonl'\], found none"),
        ({"include": ["*.gz"]}, r"matching \['\*.gz'\], found none"),
        ({"exclude": ["**"]}, "expected files matching .* found none"),
        ({"include": ["**"]}, r"ends with \.jsonl or .* found 'notes.txt'"),
        ({"include": ["a**"]}, "glob 'a"),
        ({"files": ["absent.jsonl"]}, "absent.jsonl: expected a file, found none"),
        ({"files": ["../a.jsonl"]}, "by their plain path relative to it, found '../a.jsonl'"),
        ({"files": ["./a.jsonl"]}, "plain path"),
        ({"files": ["/etc/passwd"]}, "plain path"),
        ({"files": ["a.jsonl", "a.jsonl"]}, "expected every entry once"),
        ({"files": []}, "expected at least one path"),
        ({"files": ["a.jsonl"], "include": ["**"]}, "choose one"),
        ({"include": "**/*.jsonl"}, r"expected a list of strings, found '\*\*/\*.jsonl'"),
        ({"include": [1]}, "expected a list of strings"),
        ({"meta_fields": ["a", "a"]}, "meta_fields .* expected every entry once"),
        ({"text_field": ""}, "text_field .* expected a string, found ''"),
        ({"id_field": 3}, "id_field .* expected a string, found 3"),
        ({"malformed": "warn"}, r"expected one of \['stop', 'skip'\], found 'warn'"),
        ({"max_record_bytes": 0}, "an integer of at least 1, found 0"),
        ({"max_record_bytes": True}, "an integer of at least 1, found True"),
        ({"name": ""}, "name .* expected a string"),
        ({"text": "content", "id": "x"}, r"'text_field'\]; missing \[\], unknown \['id', 'text'\]"),
    ],
)
def test_bad_recipes_name_the_key_and_what_was_expected(tmp_path, keys, message):
    write(tmp_path, "a.jsonl", "notes.txt")
    with pytest.raises(DatasetError, match=message):
        opened(tmp_path, **keys)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_kind_lists_its_keys(kind):
    with pytest.raises(DatasetError, match=r"expected"):
        open_source({"kind": kind})
    with pytest.raises(DatasetError, match=r"unknown \['colour'\]"):
        open_source({"kind": kind, "colour": 1, **({"path": "x"} if kind == "hf_dataset" else {})})


def test_a_kind_that_is_not_known_is_refused_with_those_that_are():
    with pytest.raises(DatasetError, match=r"expected one of \['hf_dataset', 'jsonl'.*found 'csv'"):
        open_source({"kind": "csv"})
    with pytest.raises(DatasetError, match="found None"):
        open_source({"root": "."})


def test_a_recipe_is_checked_before_files_are_hashed(tmp_path, monkeypatch):
    write(tmp_path, "a.jsonl")
    monkeypatch.setattr(sources.files, "sha256_file", lambda path: pytest.fail("hashed"))
    with pytest.raises(DatasetError, match="malformed"):
        opened(tmp_path, malformed="warn")


class TestNames:
    @pytest.mark.parametrize(
        ("name", "found"),
        [(b"a\nb.jsonl", "a line break"), (b"a\xff.jsonl", "bytes that are not UTF-8")],
    )
    def test_names_that_no_line_of_utf8_can_hold_are_refused(self, tmp_path, name, found):
        write(tmp_path, "a.jsonl")
        (tmp_path / os.fsdecode(name)).write_text("")
        with pytest.raises(DatasetError, match=f"found {found} in .*rename the file or exclude it"):
            opened(tmp_path)
        assert names(opened(tmp_path, include=["a.jsonl"])) == ["a.jsonl"]


class TestLinks:
    @pytest.fixture
    def root(self, tmp_path):
        write(tmp_path, "outside/secret.jsonl", "root/a.jsonl", "root/real/b.jsonl")
        return tmp_path / "root"

    def test_a_file_link_that_leaves_the_root_is_refused(self, root):
        (root / "link.jsonl").symlink_to("../outside/secret.jsonl")
        for keys in ({}, {"files": ["link.jsonl"]}):
            with pytest.raises(DatasetError, match="found a symbolic link that leaves it, to /"):
                opened(root, **keys)
        with pytest.raises(DatasetError, match="leaves it"):
            opened(root, kind="text_tree")
        assert names(opened(root, exclude=["link.jsonl"])) == ["a.jsonl", "real/b.jsonl"]

    def test_a_directory_link_that_leaves_the_root_is_refused(self, root):
        (root / "link").symlink_to("../outside")
        with pytest.raises(DatasetError, match="leaves it"):
            opened(root)
        with pytest.raises(DatasetError, match="leaves it"):
            opened(root, files=["link/secret.jsonl"])
        assert names(opened(root, exclude=["link/**"])) == ["a.jsonl", "real/b.jsonl"]

    def test_links_inside_the_root_are_followed_for_files_only(self, root):
        (root / "c.jsonl").symlink_to("real/b.jsonl")
        (root / "again").symlink_to("real")  # its files are read where they are
        assert names(opened(root)) == ["a.jsonl", "c.jsonl", "real/b.jsonl"]

    def test_a_link_to_nothing_is_refused(self, root):
        (root / "c.jsonl").symlink_to("absent")
        with pytest.raises(DatasetError, match="a symbolic link to nothing"):
            opened(root)

    def test_the_root_itself_may_be_a_link(self, root):
        (root.parent / "link").symlink_to(root)
        assert names(opened(root.parent / "link")) == ["a.jsonl", "real/b.jsonl"]


class TestKnownFiles:
    """The tasks of one build hash the corpus once."""

    def test_known_files_are_not_hashed_again_but_checked_as_they_are_read(
        self, tmp_path, monkeypatch
    ):
        write(tmp_path, "a.jsonl", "b.jsonl")
        known = {file.name: file.sha256 for file in opened(tmp_path).files}
        monkeypatch.setattr(sources.files, "sha256_file", lambda path: pytest.fail("hashed"))
        source = opened(tmp_path, known=known)
        assert len(list(source.documents())) == 2
        (tmp_path / "b.jsonl").write_text('{"text": "b"}\n')
        with pytest.raises(DatasetError, match=r"b\.jsonl: expected sha256"):
            list(source.documents())

    def test_other_files_than_the_known_ones_are_an_error(self, tmp_path):
        write(tmp_path, "a.jsonl", "b.jsonl")
        known = {"a.jsonl": "0" * 64, "c.jsonl": "0" * 64}
        with pytest.raises(DatasetError, match=r"missing \['c.jsonl'\], not in the plan \['b.json"):
            opened(tmp_path, known=known)
