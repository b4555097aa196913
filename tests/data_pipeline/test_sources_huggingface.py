import json
import shutil
from collections import Counter

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.canonical import canonical_json, sha256_hex
from data_pipeline.errors import DatasetError
from data_pipeline.sources import Document, open_source

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ROWS = [{"text": f"text {i}", "id": i, "info": {"lang": "de" if i % 3 else "en"}} for i in range(9)]


@pytest.fixture(autouse=True)
def quiet(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    datasets.disable_progress_bars()


@pytest.fixture
def saved(tmp_path):
    root = tmp_path / "saved"
    datasets.Dataset.from_list(ROWS).save_to_disk(root, num_shards=2)
    return root


def on_disk(root, **keys):
    return open_source({"kind": "hf_dataset", "path": str(root), **keys})


def texts(source):
    return [document.text for document in source.documents()]


class TestOnDisk:
    def test_shards_are_files_in_the_order_of_the_dataset(self, saved):
        source = on_disk(
            saved, name="corpus", id_field="id", source_field="info.lang", meta_fields=["info"]
        )
        names = ["data-00000-of-00002.arrow", "data-00001-of-00002.arrow"]
        assert [file.name for file in source.files] == names
        documents = list(source.documents())
        assert [d.text for d in documents] == datasets.load_from_disk(saved)["text"][:]
        assert [d.record for d in documents] == [0, 1, 2, 3, 4, 0, 1, 2, 3]
        assert documents[1] == Document("de", names[0], "text 1", 1, "1", {"info": '{"lang":"de"}'})
        (record,) = source.record()
        assert (record["kind"], record["name"], record["files"]) == ("hf_dataset", "corpus", 2)
        assert record["documents"] == 9

    def test_a_split_of_several_has_to_be_named(self, tmp_path):
        splits = {name: datasets.Dataset.from_dict({"text": [name]}) for name in ("train", "test")}
        datasets.DatasetDict(splits).save_to_disk(tmp_path / "saved")
        source = on_disk(tmp_path / "saved", split="test")
        assert texts(source) == ["test"]
        assert source.files[0].name == "test/data-00000-of-00001.arrow"
        with pytest.raises(DatasetError, match=r"expected one of \['train', 'test'\], found ''"):
            on_disk(tmp_path / "saved")

    def test_a_split_of_one_dataset_is_refused(self, saved):
        with pytest.raises(DatasetError, match="the directory holds one dataset"):
            on_disk(saved, split="train")

    def test_what_save_to_disk_did_not_write_is_refused(self, tmp_path, saved):
        with pytest.raises(DatasetError, match="expected a file of save_to_disk"):
            on_disk(tmp_path)
        state = json.loads((saved / "state.json").read_bytes())
        for name, found in (
            ("../a.arrow", "plain path"),
            ("/a.arrow", "plain path"),
            ("absent.arrow", "expected a file, found none"),
        ):
            state["_data_files"][0]["filename"] = name
            (saved / "state.json").write_text(json.dumps(state))
            with pytest.raises(DatasetError, match=found):
                on_disk(saved)
        for files in ([], None, ["a.arrow"], [{}]):
            (saved / "state.json").write_text(json.dumps({"_data_files": files}))
            with pytest.raises(DatasetError, match="expected a list of Arrow shards"):
                on_disk(saved)

    def test_a_malformed_row_stops_with_file_row_and_reason_or_is_counted(self, tmp_path):
        root = tmp_path / "saved"
        datasets.Dataset.from_dict({"text": ["a", None, "c"]}).save_to_disk(root)
        with pytest.raises(DatasetError, match=r"00001\.arrow, row 1: expected a string in 'text'"):
            texts(on_disk(root))
        source = on_disk(root, malformed="skip")
        assert texts(source) == ["a", "c"]
        assert source.record()[0]["skipped_malformed"] == 1

    def test_a_shard_that_is_cut_is_noticed_even_between_batches(self, tmp_path):
        root = tmp_path / "saved"
        datasets.Dataset.from_list(ROWS).save_to_disk(root)
        (path,) = root.glob("*.arrow")
        whole = path.read_bytes()
        for length in (0, len(whole) // 2, len(whole) - 8, len(whole) - 1):
            path.write_bytes(whole[:length])
            with pytest.raises(DatasetError, match="damaged file"):
                texts(on_disk(root))
            source = on_disk(root, malformed="skip")
            texts(source)
            assert source.record()[0]["skipped_malformed"] == 1

    def test_a_shard_that_changes_after_opening_is_an_error(self, saved):
        source = on_disk(saved, malformed="skip")
        first, second = (file.path for file in source.files)
        shutil.copy(first, second)
        with pytest.raises(DatasetError, match="expected sha256"):
            texts(source)

    @settings(max_examples=15, deadline=None)
    @given(
        st.lists(
            st.text(st.characters(exclude_categories=["Cs"])).filter(lambda t: t.strip()),
            min_size=1,
        )
    )
    def test_any_texts_come_back_identical(self, tmp_path_factory, found):
        root = tmp_path_factory.mktemp("texts") / "saved"
        datasets.Dataset.from_dict({"text": found}).save_to_disk(root)
        assert texts(on_disk(root)) == found


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A dataset of two files as the Hub would hold it, behind the real streaming reader.

    The stand-in turns the name on the Hub into the directory and does nothing else: resolving a
    name needs the network. What it was asked for is kept.
    """
    root = tmp_path / "hub"
    root.mkdir()
    for part, rows in enumerate((ROWS[:5], ROWS[5:])):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (root / f"train-{part}.jsonl").write_text(lines)
    asked = []
    real = datasets.load_dataset

    def load_dataset(dataset, **options):
        asked.append((dataset, dict(options)))
        assert options.pop("revision") == COMMIT
        return real(str(root), **options)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return root, asked


def by_name(**keys):
    spec = {"dataset": "owner/corpus", "revision": COMMIT, "split": "train", **keys}
    return open_source({"kind": "hf_dataset", **spec})


class TestByName:
    @pytest.mark.parametrize("streaming", [True, False])
    def test_records_are_read_at_the_commit_and_hashed(self, hub, streaming):
        fields = {"id_field": "id", "source_field": "info.lang", "meta_fields": ["info"]}
        source = by_name(streaming=streaming, **fields)
        assert hub[1] == []  # opening asks for nothing
        documents = list(source.documents())
        assert [d.text for d in documents] == [row["text"] for row in ROWS]
        assert documents[1] == Document(
            "de", "owner/corpus/default/train", "text 1", 1, "1", {"info": '{"lang":"de"}'}
        )
        options = {"name": None, "split": "train", "revision": COMMIT, "streaming": streaming}
        assert hub[1] == [("owner/corpus", options)]
        lines = b"".join(
            canonical_json(
                {
                    "id": str(row["id"]),
                    "meta": {"info": canonical_json(row["info"]).decode()},
                    "record": number,
                    "source": row["info"]["lang"],
                    "text": row["text"],
                }
            )
            + b"\n"
            for number, row in enumerate(ROWS)
        )
        identity = {"dataset": "owner/corpus", "revision": COMMIT, "split": "train"}
        (record,) = source.record()
        assert record["records_sha256"] == sha256_hex(lines)
        assert {key: record[key] for key in identity} == identity
        assert (record["kind"], record["name"]) == ("hf_dataset", "owner/corpus")
        assert (record["files"], record["documents"]) == (1, 9)
        assert source.files[0].sha256 == sha256_hex(canonical_json(identity))

    def test_the_first_document_does_not_wait_for_the_rest(self, hub):
        (hub[0] / "train-1.jsonl").write_text("{no json")
        read = by_name().documents()
        assert next(read).text == "text 0"
        with pytest.raises(DatasetError, match=r"@0123.*#default/train, record 5: expected a"):
            list(read)

    def test_the_digest_crosses_processes_as_a_count(self, hub):
        source = by_name()
        (file,) = source.files
        counts = Counter()
        list(source.read(file, counts))
        sent = Counter(json.loads(json.dumps(counts)))
        assert source.record({file.name: sent}) == source.record({file.name: counts})

    def test_two_passes_that_differ_are_noticed(self, hub):
        source = by_name()
        (file,) = source.files
        counts = Counter()
        list(source.read(file, counts))
        (hub[0] / "train-1.jsonl").write_text('{"text": "other"}\n')
        list(source.read(file, counts))
        with pytest.raises(DatasetError, match="different records in two passes"):
            source.record({file.name: counts})

    def test_a_source_that_was_not_read_to_its_end_has_no_record(self, hub):
        source = by_name()
        next(source.documents())
        with pytest.raises(DatasetError, match="read the source to its end"):
            source.record()

    def test_a_malformed_record_stops_or_is_counted(self, hub):
        (hub[0] / "train-1.jsonl").write_text('{"text": null}\n{"text": "z"}\n')
        with pytest.raises(DatasetError, match="#default/train, record 5: expected a string"):
            texts(by_name())
        source = by_name(malformed="skip")
        assert texts(source)[-1] == "z"
        assert source.record()[0]["skipped_malformed"] == 1

    def test_a_field_that_is_not_there_is_named_with_the_columns(self, hub):
        with pytest.raises(DatasetError, match=r"nope.*Columns in the dataset: \['text'"):
            texts(by_name(text_field="nope"))

    def test_a_dataset_that_cannot_be_reached_says_what_to_do(self):
        with pytest.raises(DatasetError, match="check dataset, config, split"):
            texts(by_name())

    @pytest.mark.parametrize(
        ("keys", "message"),
        [
            ({"revision": "main"}, "a full commit, 40 hex digits, found 'main'; branches and"),
            ({"revision": COMMIT[:39]}, "a full commit"),
            ({"dataset": "corpus"}, "expected owner/name, found 'corpus'"),
            ({"dataset": "../corpus"}, "expected owner/name, found '../corpus'"),
            ({"streaming": "yes"}, "expected true or false, found 'yes'"),
            ({"path": "x"}, "found 'both'"),
        ],
    )
    def test_bad_recipes_say_what_is_wrong(self, keys, message):
        with pytest.raises(DatasetError, match=message):
            by_name(**keys)

    def test_a_revision_is_required(self):
        with pytest.raises(DatasetError, match=r"missing \['revision'\]"):
            open_source({"kind": "hf_dataset", "dataset": "a/b", "split": "train"})

    def test_a_directory_that_would_be_read_instead_is_refused(self, tmp_path, monkeypatch):
        (tmp_path / "owner" / "corpus").mkdir(parents=True)
        monkeypatch.chdir(tmp_path)
        with pytest.raises(DatasetError, match="which is a path here"):
            by_name()
