import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from data_pipeline import build
from data_pipeline.batches import BatchReader
from data_pipeline.build import build_dataset, training_sample
from data_pipeline.digests import split_leaves
from data_pipeline.errors import DatasetError
from data_pipeline.index import in_heldout, verify_dataset
from data_pipeline.leaves import expected_leaves
from tests.data_pipeline.conftest import recipe


def content(root: Path) -> dict[str, bytes]:
    files = (path for path in root.rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


def test_any_number_of_workers_gives_the_same_bytes(built, spec, tmp_path):
    for workers in (2, 5):
        build_dataset(spec, tmp_path / str(workers), workers=workers)
        assert content(tmp_path / str(workers)) == content(built)


@pytest.mark.parametrize("threads", ["1", "2"])
def test_any_number_of_threads_in_another_process_gives_the_same_bytes(
    built, corpus, tmp_path, threads
):
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from data_pipeline.build import build_dataset\n"
        "from tests.data_pipeline.conftest import recipe\n"
        "build_dataset(recipe(Path(sys.argv[1])), Path(sys.argv[2]), workers=2)\n"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(corpus), str(tmp_path / "out")],
        env={**os.environ, "RAYON_NUM_THREADS": threads, "PYTHONHASHSEED": threads},
        check=True,
    )
    assert content(tmp_path / "out") == content(built)


def test_the_digest_is_returned_and_told(built, spec, tmp_path):
    lines: list[str] = []
    digest = build_dataset(spec, tmp_path / "out", progress=lines.append)
    assert digest == verify_dataset(built, text=True).digest
    assert digest in lines[-1]
    assert any("encoding" in line for line in lines)


def test_the_name_is_for_people(built, spec, tmp_path):
    spec["name"] = "another"
    assert build_dataset(spec, tmp_path / "out") == verify_dataset(built).digest


@pytest.mark.parametrize(
    "change",
    [
        lambda spec: spec.update(heldout_permille=300),
        lambda spec: spec.update(shard_tokens=3_000),
        lambda spec: spec["tokenizer"].update(vocab_size=310),
        lambda spec: spec["source"].update(exclude=["part2/**"]),
    ],
)
def test_another_recipe_gives_another_digest(built, spec, tmp_path, change):
    change(spec)
    assert build_dataset(spec, tmp_path / "out") != verify_dataset(built).digest


def test_no_heldout_documents_can_be_asked_for(spec, tmp_path):
    spec["heldout_permille"] = 0
    build_dataset(spec, tmp_path / "out")
    assert verify_dataset(tmp_path / "out").num_tokens("heldout") == 0


def test_the_tokenizer_sees_training_documents_only_and_no_more_than_allowed():
    survey = [build._Surveyed(f"{k * 2**57 % 2**64:016x}" + "0" * 48, 10 + k) for k in range(200)]
    chosen = training_sample(survey, 200, 1_000)
    assert chosen
    assert not any(in_heldout(survey[k].sha256, 200) for k in chosen)
    assert sum(survey[k].size for k in chosen) <= 1_000
    rest = [k for k in range(200) if k not in chosen and not in_heldout(survey[k].sha256, 200)]
    assert max(survey[k].sha256 for k in chosen) <= min(survey[k].sha256 for k in rest)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda spec: spec.pop("tokenizer"), r"missing \['tokenizer'\]"),
        (lambda spec: spec.update(bpe=1), r"unknown \['bpe'\]"),
        (lambda spec: spec["tokenizer"].update(dropout=1), r"tokenizer: .* unknown \['dropout'\]"),
        (lambda spec: spec.update(heldout_permille=1000), "heldout_permille in 0..999"),
        (lambda spec: spec.update(shard_tokens=0), "shard_tokens >= 1"),
    ],
)
def test_bad_recipes_name_the_keys_and_write_nothing(spec, tmp_path, change, message):
    change(spec)
    with pytest.raises(DatasetError, match=message):
        build_dataset(spec, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_dataset_is_never_touched(spec, dataset):
    before = content(dataset)
    with pytest.raises(DatasetError, match="expected no dataset, found one"):
        build_dataset(spec, dataset)
    assert content(dataset) == before


def test_a_full_disk_leaves_nothing(spec, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space"):
        build_dataset(spec, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_killed_build_leaves_no_dataset_and_the_next_one_succeeds(built, corpus, tmp_path):
    code = (
        "import os, sys\nfrom pathlib import Path\n"
        "from data_pipeline import build\n"
        "from tests.data_pipeline.conftest import recipe\n"
        "build.publish_directory = lambda *a: os.kill(os.getpid(), 9)\n"
        "build.build_dataset(recipe(Path(sys.argv[1])), Path(sys.argv[2]))\n"
    )
    out = tmp_path / "out"
    command = [sys.executable, "-c", code, str(corpus), str(out)]
    assert subprocess.run(command, check=False).returncode == -9
    assert [path.name for path in tmp_path.iterdir()] == [".out.building"]
    (tmp_path / ".out.building" / "train" / "shard-00000.bin").write_bytes(b"torn")
    build_dataset(recipe(corpus), out)
    assert content(out) == content(built)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_two_builds_of_one_dataset_at_once_are_refused(spec, tmp_path, monkeypatch):
    inside, release = threading.Event(), threading.Event()
    publish = build.publish_directory

    def wait(*args):
        inside.set()
        assert release.wait(20)
        publish(*args)

    monkeypatch.setattr(build, "publish_directory", wait)
    first = threading.Thread(target=build_dataset, args=(spec, tmp_path / "out"))
    first.start()
    assert inside.wait(20)
    with pytest.raises(DatasetError, match="another process is building it"):
        build_dataset(spec, tmp_path / "out")
    release.set()
    first.join()
    verify_dataset(tmp_path / "out")


def test_a_source_that_changes_between_passes_is_noticed(spec, corpus, tmp_path, monkeypatch):
    train = build._train

    def change_then_train(source, survey, *args):
        survey[0] = build._Surveyed("0" * 64, 5)
        return train(source, survey, *args)

    monkeypatch.setattr(build, "_train", change_then_train)
    with pytest.raises(DatasetError, match="the source changed during the build"):
        build_dataset(spec, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_leaves_keep_their_prefix_and_come_from_the_cache_unchanged(dataset):
    whole = expected_leaves(BatchReader(dataset, 64, 4, 0), steps=12, cache=False)
    assert len(whole) == 12 * 32
    assert not (dataset / "leaves").exists()
    for steps in (5, 12, 3, 12):  # write, extend, cut, read
        assert expected_leaves(BatchReader(dataset, 64, 4, 0), steps) == whole[: steps * 32]
    assert len(list((dataset / "leaves").iterdir())) == 1
    assert len(set(split_leaves(whole))) == 12


@pytest.mark.parametrize("other", [(32, 4, 0), (64, 5, 0), (64, 4, 1)])
def test_other_parameters_have_other_leaves_and_another_cache(dataset, other):
    base = expected_leaves(BatchReader(dataset, 64, 4, 0), 6)
    assert not set(split_leaves(expected_leaves(BatchReader(dataset, *other), 6))) & set(
        split_leaves(base)
    )
    assert len(list((dataset / "leaves").iterdir())) == 2


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty"])
def test_a_damaged_cache_is_computed_again(dataset, damage):
    whole = expected_leaves(BatchReader(dataset, 64, 4, 0), 6)
    (path,) = (dataset / "leaves").iterdir()
    good = path.read_bytes()
    flipped = good[:40] + bytes([good[40] ^ 1]) + good[41:]
    path.write_bytes({"flip": flipped, "truncate": good[:-5], "empty": b""}[damage])
    assert expected_leaves(BatchReader(dataset, 64, 4, 0), 6) == whole
    assert expected_leaves(BatchReader(dataset, 64, 4, 0), 6, cache=False) == whole


def test_a_read_only_dataset_needs_no_cache(dataset, monkeypatch):
    def refuse(*args):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(build, "write_bytes", refuse)
    assert len(expected_leaves(BatchReader(dataset, 64, 4, 0), 6)) == 6 * 32
