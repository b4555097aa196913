"""Builds that are killed, run out of disk or find a changed source."""

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_pipeline import build
from data_pipeline.build import build_dataset
from data_pipeline.errors import DatasetError
from data_pipeline.index import verify_dataset
from tests.data_pipeline.conftest import recipe, write_corpus
from tests.data_pipeline.test_build import content

# Builds, and dies at its k-th durable write, before or after it; says which shards it wrote.
_DYING = """
import json, os, sys
from pathlib import Path
from data_pipeline import assemble, build, build_directory, encode, removal, shard_writer, survey
from data_pipeline.durable import write_bytes
spec, out, log, left = json.loads(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
def dying(path, data):
    global left
    left -= 1
    if left == 0 and len(str(path)) % 2:
        os.kill(os.getpid(), 9)
    write_bytes(path, data)
    if str(path).endswith(".bin"):
        with open(log, "a") as lines:
            lines.write(str(path) + "\\n")
    if left == 0:
        os.kill(os.getpid(), 9)
for module in (assemble, build, build_directory, encode, removal, shard_writer, survey):
    module.write_bytes = dying
print(build.build_dataset(spec, out, progress=print))
"""


def declared(corpus: Path) -> dict:
    """A recipe with several groups, several shards a group, and all steps."""
    spec = recipe(corpus)
    spec |= {
        "group_bytes": 9_000,
        "shard_tokens": 700,
        "dedup": {"exact": True, "near": {"threshold": "1"}},
    }
    return spec


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "out"
    build_dataset(declared(corpus), out)
    return out


def test_a_build_killed_at_any_write_goes_on_and_redoes_no_finished_shard(corpus, whole, tmp_path):
    draw, kills, log = random.Random(3), 0, tmp_path / "written"
    out = tmp_path / "work" / "out"
    out.parent.mkdir()
    for _ in range(40):
        command = [sys.executable, "-c", _DYING, json.dumps(declared(corpus)), str(out), str(log)]
        done = subprocess.run(
            [*command, str(draw.randrange(8, 22))], check=False, capture_output=True, text=True
        )
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert not out.exists()
        kills += 1
    assert kills >= 4
    assert "continuing the build that was interrupted" in done.stdout
    assert content(out) == content(whole)
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    written = log.read_text().split()
    shards = verify_dataset(out).splits
    total = sum(len(found) for found in shards.values())
    assert total > 15
    # A shard can be written twice only if the first time its record was not.
    assert total <= len(written) <= total + kills


def processes_of(marker: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if marker.encode() in path.read_bytes() and path.parent.name != str(os.getpid()):
                found.append(path.parent.name)
        except OSError:
            continue  # it ended just now
    return found


def test_a_build_with_workers_killed_at_any_moment_goes_on_and_leaves_no_process(
    corpus, whole, tmp_path
):
    code = (
        "import json, sys\nfrom pathlib import Path\n"
        "from data_pipeline.build import build_dataset\n"
        "build_dataset(json.loads(sys.argv[1]), Path(sys.argv[2]), workers=2)\n"
    )
    command = [sys.executable, "-c", code, json.dumps(declared(corpus)), str(tmp_path / "out")]
    marker = f"TRIPOD_TEST_BUILD={tmp_path}"
    environment = {**os.environ, "TRIPOD_TEST_BUILD": str(tmp_path)}
    draw = random.Random(5)
    for _ in range(3):
        running = subprocess.Popen(command, env=environment)
        time.sleep(0.8 + 2 * draw.random())
        running.kill()
        running.wait()
    deadline = time.monotonic() + 20
    while processes_of(marker):
        assert time.monotonic() < deadline, "workers outlive the build"
        time.sleep(0.1)
    if not (tmp_path / "out").exists():
        build_dataset(declared(corpus), tmp_path / "out")
    assert content(tmp_path / "out") == content(whole)


@pytest.mark.parametrize("room", [0, 3, 9, 20])
def test_a_full_disk_stops_the_build_and_it_goes_on_when_there_is_room(
    corpus, whole, tmp_path, monkeypatch, room
):
    reserve, calls = os.posix_fallocate, iter(range(10_000))

    def full(*args):
        if next(calls) >= room:
            raise OSError(errno.ENOSPC, "No space left on device")
        reserve(*args)

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space"):
        build_dataset(declared(corpus), tmp_path / "out")
    monkeypatch.setattr(os, "posix_fallocate", reserve)
    assert [path.name for path in tmp_path.iterdir()] == [".out.building"]
    build_dataset(declared(corpus), tmp_path / "out")
    assert content(tmp_path / "out") == content(whole)


@pytest.fixture
def own_corpus(tmp_path) -> Path:
    write_corpus(tmp_path / "corpus")
    return tmp_path / "corpus"


def interrupt(spec, out, monkeypatch, stage="assemble"):
    def stop(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(build, stage, stop)
        with pytest.raises(KeyboardInterrupt):
            build_dataset(spec, out)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda spec, corpus: spec.update(shard_tokens=1_400), "the recipe changed"),
        (
            lambda spec, corpus: (corpus / "part0" / "doc000.txt").write_text("other"),
            "the sources changed",
        ),
        (lambda spec, corpus: (corpus / "part1" / "new.txt").write_text("new"), "the sources"),
    ],
)
def test_another_recipe_or_source_starts_over_and_says_so(
    own_corpus, tmp_path, monkeypatch, change, reason
):
    spec = declared(own_corpus)
    interrupt(spec, tmp_path / "out", monkeypatch)
    change(spec, own_corpus)
    lines: list[str] = []
    build_dataset(spec, tmp_path / "out", progress=lines.append)
    assert any("starting over" in line and reason in line for line in lines)
    assert not any("continuing" in line for line in lines)
    build_dataset(spec, tmp_path / "again")
    assert content(tmp_path / "out") == content(tmp_path / "again")


def test_a_source_that_changes_during_the_build_stops_it(own_corpus, tmp_path, monkeypatch):
    decide = build.decide

    def change_then_decide(*args):
        (own_corpus / "part0" / "doc003.txt").write_text("changed")
        decide(*args)

    monkeypatch.setattr(build, "decide", change_then_decide)
    with pytest.raises(DatasetError, match=r"doc003\.txt.*build again"):
        build_dataset(declared(own_corpus), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("documents", [-1, 1])
def test_a_reader_that_gives_other_documents_the_second_time_is_noticed(
    own_corpus, tmp_path, monkeypatch, documents
):
    """The bytes are those of the file, but a library reads another number of records from it."""
    read = build.encode.read_group

    def other(plan, group, counts):
        found = list(read(plan, group, counts))
        yield from found[:documents] if documents < 0 else [*found, found[0]]

    monkeypatch.setattr(build.encode, "read_group", other)
    with pytest.raises(DatasetError, match="documents in files"):
        build_dataset(declared(own_corpus), tmp_path / "out")


def test_a_text_that_is_read_otherwise_the_second_time_is_noticed(
    own_corpus, tmp_path, monkeypatch
):
    read = build.encode.read_group

    def other(plan, group, counts):
        for document in read(plan, group, counts):
            yield build.survey.Document(document.source, document.name, document.text + "x")

    monkeypatch.setattr(build.encode, "read_group", other)
    with pytest.raises(DatasetError, match="the source changed during the build"):
        build_dataset(declared(own_corpus), tmp_path / "out")


def test_a_finished_shard_that_was_cut_is_not_used(own_corpus, tmp_path, monkeypatch):
    spec, out = declared(own_corpus), tmp_path / "out"
    interrupt(spec, out, monkeypatch)
    group = tmp_path / ".out.building" / "groups" / "00000"
    (group / "record.json").unlink()
    (group / "train" / "shard-00000.bin").write_bytes(b"torn")
    with pytest.raises(DatasetError, match="bytes of a finished shard, found 4; delete"):
        build_dataset(spec, out)
    shutil.rmtree(tmp_path / ".out.building")
    build_dataset(spec, out)
