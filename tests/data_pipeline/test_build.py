import errno
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from data_pipeline import build
from data_pipeline.batches import BatchReader
from data_pipeline.build import (
    build_dataset,
    build_group,
    finish_build,
    plan_groups,
    prepare_build,
    survey_group,
)
from data_pipeline.digests import split_leaves
from data_pipeline.errors import DatasetError
from data_pipeline.index import in_heldout, verify_dataset
from data_pipeline.leaves import expected_leaves
from data_pipeline.training_sample import training_sample


def content(root: Path) -> dict[str, bytes]:
    files = (path for path in root.rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


@pytest.mark.parametrize("workers", [2, 3])
def test_any_number_of_worker_processes_gives_the_same_bytes(built, spec, tmp_path, workers):
    build_dataset(spec, tmp_path / "out", workers=workers)
    assert content(tmp_path / "out") == content(built)


@pytest.mark.parametrize("threads", ["1", "2"])
def test_any_number_of_threads_in_another_process_gives_the_same_bytes(
    built, corpus, tmp_path, threads
):
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from data_pipeline.build import build_dataset\n"
        "from tests.data_pipeline.conftest import recipe\n"
        "build_dataset(recipe(Path(sys.argv[1])), Path(sys.argv[2]))\n"
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
    prefixes = np.array([k * 2**57 % 2**64 + k for k in range(200)], dtype=np.uint64)
    sizes, kept = np.arange(10, 210, dtype=np.uint64), np.ones(200, dtype=np.bool_)
    kept[150:] = False
    chosen = training_sample(prefixes, sizes, kept, 200, 1_000)
    assert chosen.size
    assert sizes[chosen].sum() <= 1_000
    train = [k for k in range(150) if not in_heldout(f"{int(prefixes[k]):016x}" + "0" * 48, 200)]
    assert set(chosen.tolist()) <= set(train)
    rest = sorted(set(train) - set(chosen.tolist()), key=lambda k: prefixes[k])
    assert prefixes[chosen].max() < prefixes[rest].min()
    assert sizes[chosen].sum() + sizes[rest[0]] > 1_000


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


def small_groups(spec, tmp_path):
    """The corpus in several groups of one source, and a second source of records."""
    lines = [f'{{"text": "record {k} of the second source", "key": "id-{k}"}}' for k in range(30)]
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "a.jsonl").write_text("\n".join(lines[:20]))
    (tmp_path / "more" / "b.jsonl").write_text("\n".join(lines[20:]))
    more = {"kind": "jsonl", "root": str(tmp_path / "more"), "name": "more", "id_field": "key"}
    spec["sources"] = [spec.pop("source"), more]
    spec["group_bytes"] = 8_000
    return spec


def test_groups_follow_from_the_files_and_begin_new_shards(spec, tmp_path):
    spec = small_groups(spec, tmp_path)
    groups = plan_groups(spec)
    assert [group.number for group in groups] == list(range(len(groups)))
    assert len([group for group in groups if group.source == 0]) > 2
    assert all(group.size >= 8_000 for group in groups[:-2])
    assert groups[-1].source == 1
    build_dataset(spec, tmp_path / "out")
    index = verify_dataset(tmp_path / "out", text=True)
    assert len(index.splits["train"]) >= len(groups)


def test_groups_built_alone_in_any_order_give_the_same_bytes(spec, tmp_path):
    spec = small_groups(spec, tmp_path)
    expected = build_dataset(spec, tmp_path / "whole")
    out, count = tmp_path / "out", len(plan_groups(spec))
    for group in reversed(range(count)):
        survey_group(spec, out, group)
    prepare_build(spec, out)
    for group in sorted(range(count), key=lambda k: (k % 2, k)):
        build_group(spec, out, group)
    assert finish_build(spec, out) == expected
    assert content(out) == content(tmp_path / "whole")


def test_groups_built_by_processes_at_once_give_the_same_bytes(spec, corpus, tmp_path):
    spec = small_groups(spec, tmp_path)
    expected = build_dataset(spec, tmp_path / "whole")
    code = (
        "import json, sys\nfrom pathlib import Path\n"
        "from data_pipeline import build\n"
        "spec, out, stage, first = json.loads(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:]\n"
        "for group in range(int(first), len(build.plan_groups(spec)), 2):\n"
        "    getattr(build, stage)(spec, out, group)\n"
    )
    out = tmp_path / "out"
    for stage in ("survey_group", "build_group"):
        command = [sys.executable, "-c", code, json.dumps(spec), str(out), stage]
        running = [subprocess.Popen([*command, first]) for first in ("0", "1")]
        assert [process.wait() for process in running] == [0, 0]
        if stage == "survey_group":
            prepare_build(spec, out)
    assert finish_build(spec, out) == expected


def test_stages_of_a_group_build_refuse_to_run_too_early(spec, tmp_path):
    spec, out = small_groups(spec, tmp_path), tmp_path / "out"
    survey_group(spec, out, 0)
    with pytest.raises(DatasetError, match="survey them first"):
        prepare_build(spec, out)
    for group in range(1, len(plan_groups(spec))):
        survey_group(spec, out, group)
    with pytest.raises(DatasetError, match="prepare it first"):
        build_group(spec, out, 0)
    prepare_build(spec, out)
    with pytest.raises(DatasetError, match="expected group 0 to be built"):
        finish_build(spec, out)
    with pytest.raises(DatasetError, match=r"group: expected a number in \[0, "):
        build_group(spec, out, 99)
    with pytest.raises(DatasetError, match="the recipe changed; delete the directory"):
        survey_group({**spec, "shard_tokens": 1_999}, out, 0)


def test_a_group_is_built_by_one_process_at_a_time(spec, tmp_path, monkeypatch):
    inside, release = threading.Event(), threading.Event()
    survey = build.survey.survey_group

    def wait(*args):
        inside.set()
        assert release.wait(20)
        survey(*args)

    monkeypatch.setattr(build.survey, "survey_group", wait)
    first = threading.Thread(target=survey_group, args=(spec, tmp_path / "out", 0))
    first.start()
    assert inside.wait(20)
    with pytest.raises(DatasetError, match="group 0: another process is building it"):
        survey_group(spec, tmp_path / "out", 0)
    with pytest.raises(DatasetError, match="another process is building it"):
        build_dataset(spec, tmp_path / "out")
    release.set()
    first.join()
    build_dataset(spec, tmp_path / "out")


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
