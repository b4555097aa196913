"""Pulling from the loopback Hub: what arrives is what was published, or it does not arrive."""

import contextlib
import errno
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import scan_cache_dir
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from checkpoints_manifest import fetch
from checkpoints_manifest.errors import CheckpointError
from checkpoints_manifest.fetch import choose_steps
from checkpoints_manifest.manifest import Ledger
from checkpoints_manifest.publish import Options, publish
from checkpoints_manifest.published import (
    CommitLine,
    FileFact,
    parse_commits,
    parse_publication,
    publication_bytes,
)
from checkpoints_manifest.pull import pull
from checkpoints_manifest.remote import Remote
from checkpoints_manifest.run_files import RunFiles
from checkpoints_manifest.stream import stream
from checkpoints_manifest.verify import verify_checkpoints
from data_pipeline.canonical import canonical_json, sha256_file, sha256_hex
from tests.checkpoints_manifest.conftest import flip
from tests.checkpoints_manifest.publishable import (
    STEPS,
    make_run,
    quick_pacer,
    random_weights,
    real_weights,
    save_step,
    true_label,
)
from tests.loopback.faults import Answer, broken, too_many
from tests.loopback.fixtures import serving
from tests.loopback.server import TOKEN

REPO = "org/toy-1"
ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=")


def remote(hub, **more):
    return Remote(REPO, endpoint=hub.endpoint, token=TOKEN, pacer=quick_pacer(), **more)


def go(hub, run_dir, **options):
    return publish(
        RunFiles.read(run_dir), remote(hub), true_label, Options(**options), lambda line: None
    )


def get(hub, to, steps="all", **more):
    return pull(remote(hub), steps, to, say=lambda line: None, **more)


@pytest.fixture
def run_dir(tmp_path):
    return make_run(tmp_path / "suite")


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A run that is published with state, once for all tests; they work on copies."""
    root = tmp_path_factory.mktemp("template")
    run_dir = make_run(root / "suite")
    with pytest.MonkeyPatch.context() as patch, serving(root / "loopback", patch) as served:
        go(served, run_dir, with_state=True, tag="v1")
    return root


@pytest.fixture
def hub(tmp_path, monkeypatch, request):
    """A loopback Hub; for a test that takes `published`, with that run on it."""
    if "published" in request.fixturenames:
        template = request.getfixturevalue("template")
        for name in ("suite", "loopback"):
            shutil.copytree(template / name, tmp_path / name)
    with serving(tmp_path / "loopback", monkeypatch) as served:
        yield served


@pytest.fixture
def published(hub, tmp_path):
    return tmp_path / "suite" / "toy-1"


def visible(to):
    """Final names: everything but staging, its lock, and files still under a temporary name."""
    return {
        str(path.relative_to(to)): sha256_file(path)
        for path in sorted(to.rglob("*"))
        if path.is_file() and ".pull-" not in str(path) and ".tmp-" not in str(path)
    }


def weights_of(run_dir, step):
    return run_dir / "checkpoints" / f"step{step}" / "model.safetensors"


def test_all_steps_with_state_are_a_run_that_verifies(hub, published, tmp_path):
    found = get(hub, tmp_path / "to", with_state=True)
    assert found.steps == found.new == STEPS
    report = verify_checkpoints(found.run_dir)
    assert report.findings == () and report.checkpoints == len(STEPS)
    for step in STEPS:
        mine, theirs = (d / "checkpoints" / f"step{step}" for d in (found.run_dir, published))
        assert {p.name: sha256_file(p) for p in mine.iterdir()} == {
            p.name: sha256_file(p) for p in theirs.iterdir()
        }
    assert not list((tmp_path / "to").glob(".pull-toy-1"))


def test_only_what_was_asked_for_is_downloaded(hub, published, tmp_path):
    found = get(hub, tmp_path / "to", "0,4")
    assert found.steps == (0, 4)
    names = {p.name for p in (found.run_dir / "checkpoints").iterdir()}
    assert names == {"step0", "step4"}
    fetched = [path for method, path, _ in hub.requests if method == "GET" and "/resolve/" in path]
    assert not [path for path in fetched if "optimizer" in path or "trainer_state" in path]
    assert len([path for path in fetched if path.endswith("model.safetensors")]) == 2
    facts = json.loads((found.run_dir / "pulled.json").read_bytes())
    assert (facts["steps"], facts["steps_with_state"]) == ([0, 4], [])


def test_the_local_hub_has_the_remotes_commits_and_weights_once(hub, published, tmp_path):
    found = get(hub, tmp_path / "to")
    (repository,) = scan_cache_dir(found.hub).repos
    assert not scan_cache_dir(found.hub).warnings
    heads = hub.repository("model", REPO).refs("heads")
    refs = {ref: rev.commit_hash for rev in repository.revisions for ref in rev.refs}
    assert refs == {**{f"step{s}": heads[f"step{s}"] for s in STEPS}, "main": heads["step4"]}
    link = found.hub / "models--org--toy-1/snapshots" / heads["step2"] / "model.safetensors"
    assert link.is_symlink() and link.samefile(weights_of(found.run_dir, 2))


@pytest.mark.slow
def test_from_pretrained_loads_a_pulled_revision_offline_to_the_same_bits(hub, tmp_path):
    from data_pipeline.tokenizer import train_bpe

    tokenizer = train_bpe([Path(__file__).read_text()], 300).data
    run_dir = make_run(tmp_path / "suite", (0, 1), real_weights, tokenizer)
    go(hub, run_dir)
    found = get(hub, tmp_path / "to")
    code = (
        "import torch; from transformers import AutoModelForCausalLM as A, AutoTokenizer as T; "
        f"m = A.from_pretrained('{REPO}', revision='step1').eval(); "
        f"t = T.from_pretrained('{REPO}', revision='step1'); "
        "ids = t('def f(x):', return_tensors='pt')['input_ids']; "
        "import hashlib; l = m(input_ids=ids).logits.detach().numpy().tobytes(); "
        "print(hashlib.sha256(l).hexdigest())"
    )
    seen = []
    for cache in (found.hub, None):
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(found.hub)}
        if cache is None:
            # The same through the Hub itself, as somebody would who does not know of Tripod.
            environment = {**os.environ, **hub.environment(tmp_path / "home")}
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env=environment,
            check=False, cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        seen.append(done.stdout.strip())
    assert seen[0] == seen[1]


def test_pulled_again_nothing_is_downloaded_and_state_can_be_added(hub, published, tmp_path):
    to = tmp_path / "to"
    get(hub, to)
    before = visible(to)
    hub.requests.clear()
    assert get(hub, to).new == ()
    assert visible(to) == before
    assert not [path for _, path, _ in hub.requests if "safetensors" in path]
    found = get(hub, to, "2", with_state=True)
    assert found.new == (2,)
    assert not [p for m, p, _ in hub.requests if m == "GET" and p.endswith("model.safetensors")]
    assert sha256_file(found.run_dir / "checkpoints/step2/optimizer.safetensors") == sha256_file(
        published / "checkpoints/step2/optimizer.safetensors"
    )
    assert (
        before.items() <= {**visible(to), "toy-1/pulled.json": before["toy-1/pulled.json"]}.items()
    )


def test_a_release_is_pinned_by_tag_and_digest(hub, published, tmp_path):
    first = get(hub, tmp_path / "a", "0", revision="v1")
    save_step(published, 5, random_weights(5))
    second = go(hub, published, with_state=True, tag="v2")
    assert get(hub, tmp_path / "b", "0", revision="v1").digest == first.digest
    assert get(hub, tmp_path / "b", "5", expect=second.digest).steps == (5,)
    with pytest.raises(CheckpointError, match="expected a publication with digest"):
        get(hub, tmp_path / "c", expect=first.digest)
    with pytest.raises(CheckpointError, match="no revision v9; releases: main, v1, v2"):
        get(hub, tmp_path / "c", revision="v9")
    # An older release into the newer pull: the longer ledger stays.
    assert get(hub, tmp_path / "b", "1", revision="v1").steps == (1,)
    assert len(Ledger(tmp_path / "b" / "toy-1" / "manifest.jsonl").records()) == 5


def test_another_run_is_not_mixed_in(hub, published, tmp_path):
    found = get(hub, tmp_path / "to", "0")
    flip(found.run_dir / "manifest.jsonl", 10)
    with pytest.raises(CheckpointError, match="another run"):
        get(hub, tmp_path / "to", "1")


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("all", (0, 1, 2, 4, 512)), ("0,512", (0, 512)), ("1:4", (1, 2, 4)), (":2", (0, 1, 2)),
        ("3:", (4, 512)), ("512, 0:1", (0, 1, 512)),
    ],
)  # fmt: skip
def test_steps_are_numbers_ranges_or_all(text, steps):
    assert choose_steps(text, [0, 1, 2, 4, 512]) == steps


@pytest.mark.parametrize("text", ["", "3", "a", "1-4", "1:4:2", "-1", "600:700", "1,,2", "٣"])
def test_other_steps_are_refused(text):
    with pytest.raises(CheckpointError, match=r"0, 1, 2, 4, 512|expected steps"):
        choose_steps(text, [0, 1, 2, 4, 512])


# Wrong bytes.


def test_a_corrupted_object_is_named_and_refused_and_the_others_arrive(hub, published, tmp_path):
    sha256 = sha256_file(weights_of(published, 2))
    hub.corrupt_object(sha256)
    with pytest.raises(CheckpointError, match=r"step2: model.safetensors: expected") as caught:
        get(hub, tmp_path / "to")
    assert "step1" not in str(caught.value)
    to = tmp_path / "to"
    assert {p.name for p in (to / "toy-1" / "checkpoints").iterdir()} == {"step0", "step1", "step4"}
    assert set(visible(to).values()).isdisjoint({sha256_file(hub.object_path(sha256))})
    hub.corrupt_object(sha256)
    assert get(hub, to).new == (2,)


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "checkpoint_manifest.json", "run/order.log",
             "manifest.jsonl", "commits.jsonl", "run/config.json"],
)  # fmt: skip
def test_any_other_file_that_is_served_changed_is_refused(hub, published, tmp_path, name):
    def change(answer):
        return Answer(answer.status, answer.body[:-1] + b"x", answer.headers)

    hub.faults.add("GET", f"/resolve/[0-9a-f]+/{name}$", times=100, mangle=change)
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        get(hub, tmp_path / "to", "0")
    assert not (tmp_path / "to" / "toy-1" / "checkpoints" / "step0").exists()
    assert not list((tmp_path / "to").rglob("refs/step0"))


def test_what_the_users_cache_holds_wrongly_is_downloaded_afresh(hub, published, tmp_path):
    """The downloader copies from HF_HUB_CACHE without looking at the content."""
    from huggingface_hub import constants, hf_hub_download

    path = hf_hub_download(
        REPO, "model.safetensors", revision="step1", endpoint=hub.endpoint,
        cache_dir=constants.HF_HUB_CACHE,
    )  # fmt: skip
    flip(Path(path).resolve())
    assert get(hub, tmp_path / "to", "1").new == (1,)


def test_tensors_that_are_not_the_records_are_refused_though_the_bytes_are(hub, run_dir, tmp_path):
    """A publisher whose record states a wrong root: bytes agree, tensors do not."""
    path = run_dir / "manifest.jsonl"
    records = Ledger(path).records()
    records[-1]["weights_root"] = "ab" * 32
    path.write_bytes(b"".join(canonical_json(record) + b"\n" for record in records))
    from checkpoints_manifest import publish as module

    original = module.verify_checkpoint
    module.verify_checkpoint = lambda *arguments: None
    try:
        go(hub, run_dir)
    finally:
        module.verify_checkpoint = original
    with pytest.raises(CheckpointError, match=r"step4: expected weights with root abab"):
        get(hub, tmp_path / "to", "4")


# Failing requests, a killed puller, a full disk.


@pytest.mark.parametrize(
    "fault",
    [
        {"answer": broken()}, {"answer": too_many("3")}, {"cut_answer": -1}, {"cut_answer": 100},
        {"mangle": lambda a: Answer(200, b"<html>")},
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    "place", ["/refs$", "publication.json", "model.safetensors", "config.json"]
)
def test_a_request_that_fails_makes_no_difference(hub, published, tmp_path, place, fault):
    hub.faults.add("GET", place, **fault)
    if place == "publication.json" and "mangle" in fault:
        # Nothing says beforehand what this one holds: a whole answer that is wrong is believed so.
        with pytest.raises(CheckpointError, match=r"publication\.json is not JSON"):
            get(hub, tmp_path / "to", "1:2")
    found = get(hub, tmp_path / "to", "1:2")
    assert sha256_file(weights_of(found.run_dir, 2)) == sha256_file(weights_of(published, 2))


def test_a_killed_puller_goes_on_and_downloads_nothing_twice(hub, published, tmp_path):
    to = tmp_path / "to"
    started = []

    def kill():
        started[0].send_signal(signal.SIGKILL)
        started[0].wait()

    hub.faults.add("GET", "model.safetensors$", skip=2, before=kill)
    code = (
        "from checkpoints_manifest.remote import Remote; from checkpoints_manifest.pull import "
        f"pull; from pathlib import Path; pull(Remote('{REPO}'), 'all', Path('{to}'), jobs=1)"
    )
    started.append(
        subprocess.Popen(
            [sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE,
            env={**os.environ, **hub.environment(tmp_path / "home")},
        )
    )  # fmt: skip
    _, text = started[0].communicate(timeout=120)
    assert started[0].returncode == -signal.SIGKILL, text
    there = {p.name for p in (to / "toy-1" / "checkpoints").iterdir()}
    assert there == {"step0", "step1"}
    hub.requests.clear()
    found = get(hub, to)
    assert found.new == (2, 4)
    for step in STEPS:
        assert sha256_file(weights_of(found.run_dir, step)) == sha256_file(
            weights_of(published, step)
        )
    fetched = [p for m, p, _ in hub.requests if m == "GET" and p.endswith("model.safetensors")]
    assert len(fetched) == 2


def test_a_full_disk_is_said_before_anything_is_downloaded(hub, published, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "free_bytes", lambda path: 1000)
    with pytest.raises(OSError, match="are free") as caught:
        get(hub, tmp_path / "to")
    assert caught.value.errno == errno.ENOSPC
    assert not [path for _, path, _ in hub.requests if "model.safetensors" in path]


def test_a_full_disk_in_the_middle_is_an_oserror_and_leaves_no_half_file(
    hub, published, tmp_path, monkeypatch
):
    def full(*arguments, **more):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("checkpoints_manifest.remote.hf_hub_download", full)
    with pytest.raises(OSError, match="No space") as caught:
        get(hub, tmp_path / "to")
    assert caught.value.errno == errno.ENOSPC
    assert not (tmp_path / "to" / "toy-1" / "checkpoints").exists()


def test_state_that_was_not_published_cannot_be_pulled(hub, run_dir, tmp_path):
    go(hub, run_dir)
    with pytest.raises(CheckpointError, match=r"without optimizer\.safetensors"):
        get(hub, tmp_path / "to", with_state=True)
    with pytest.raises(CheckpointError, match="no such repository"):
        pull(Remote("org/none", endpoint=hub.endpoint, token=TOKEN), "all", tmp_path / "to")


# Streaming.


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_a_stream_holds_at_most_so_many_and_each_is_verified(hub, published, tmp_path, keep):
    folder, seen, most = tmp_path / "stream", [], 0
    for item in stream(remote(hub), "all", keep, directory=folder):
        assert sha256_file(item.directory / "model.safetensors") == sha256_file(
            weights_of(published, item.step)
        )
        assert (item.directory / "config.json").exists()
        most = max(most, len(list(folder.glob("*/step*"))))
        seen.append(item.step)
    assert tuple(seen) == STEPS and most <= keep
    assert list(folder.iterdir()) == []


def test_a_stream_refuses_a_corrupted_step_and_cleans_up(hub, published, tmp_path):
    hub.corrupt_object(sha256_file(weights_of(published, 2)))
    seen = []
    with pytest.raises(CheckpointError, match="step2: model"):
        for item in stream(remote(hub), "all", directory=tmp_path / "stream"):
            seen.append(item.step)
    assert seen[0] == 0 and 2 not in seen
    assert list((tmp_path / "stream").iterdir()) == []


def test_a_stream_that_is_left_early_leaves_nothing(hub, published, tmp_path):
    items = stream(remote(hub), "all", directory=tmp_path / "stream")
    assert next(items).step == 0
    items.close()
    assert list((tmp_path / "stream").iterdir()) == []
    with pytest.raises(ValueError, match="at least 1"):
        next(stream(remote(hub), "all", keep=0))


# Hostile answers.

HOSTILE_JSON = [
    b"", b"null", b"[]", b"{}", b"[[[[", b"1" * 5000, b'"x"', b"\xff\xfe", b"[" * 100_000,
    b'{"branches": 3}',
    b'{"branches":[{"name":1,"ref":2,"targetCommit":3}],"tags":[],"converts":[]}',
    b'{"branches":[{"name":"main","ref":"x","targetCommit":"../../etc"}],"tags":[],"converts":[]}',
    b'[{"type":"file","path":"../../x","size":-1,"oid":"zz"}]',
    b'[{"type":"file","path":"x","size":1e400,"oid":"' + b"a" * 40 + b'"}]',
]  # fmt: skip


@pytest.mark.parametrize("body", HOSTILE_JSON, ids=range(len(HOSTILE_JSON)))
def test_hostile_json_is_a_checkpoint_error(hub, published, tmp_path, body):
    hub.faults.add("GET", "/api/", times=1000, mangle=lambda a: Answer(200, body))
    for action in (
        lambda: get(hub, tmp_path / "to"),
        lambda: go(hub, published),
        lambda: remote(hub).history("main"),
    ):
        with pytest.raises(CheckpointError):
            action()
    assert visible(tmp_path / "to") == {}


def test_an_answer_without_end_is_cut_off(hub, published, monkeypatch):
    monkeypatch.setattr("checkpoints_manifest.hub_client._limit", _Limit(100_000))
    huge = b'{"branches": [' + b" " * 200_000 + b"]}"
    hub.faults.add("GET", "/refs", times=1000, mangle=lambda a: Answer(200, huge))
    with pytest.raises(CheckpointError, match="more than"):
        remote(hub).refs()


class _Limit:
    def __init__(self, size):
        self.size = size

    def get(self):
        return self.size


def test_a_compressed_answer_is_refused(hub, published):
    import gzip

    packed = gzip.compress(b"[" + b" " * 1_000_000 + b"]")
    hub.faults.add(
        "GET", "/refs", times=1000,
        mangle=lambda a: Answer(200, packed, {"Content-Encoding": "gzip"}),
    )  # fmt: skip
    with pytest.raises(CheckpointError, match="compressed"):
        remote(hub).refs()


def test_a_list_without_end_is_left(hub, published, monkeypatch):
    monkeypatch.setattr("checkpoints_manifest.remote._MAX_PAGES", 20)

    def again(answer):
        link = f'<{hub.endpoint}/api/models/{REPO}/commits/main>; rel="next"'
        return Answer(200, b"[]", {"Link": link})

    hub.faults.add("GET", "/commits/", times=10_000, mangle=again)
    with pytest.raises(CheckpointError, match="pages"):
        remote(hub).history("main")


def test_a_file_that_is_longer_than_stated_is_not_written_out(hub, published, tmp_path):
    long = os.urandom(3 << 20)

    def stretch(answer):
        headers = {k: v for k, v in answer.headers.items() if "Linked" not in k}
        return Answer(200, long, headers)

    hub.faults.add("GET", "model.safetensors", times=1000, mangle=stretch)
    with pytest.raises(CheckpointError):
        get(hub, tmp_path / "to", "1")
    big = [p for p in (tmp_path / "to").rglob("*") if p.is_file() and p.stat().st_size > 2 << 20]
    assert big == []


def line_of(records, files=(), **changed):
    fields = {
        "step": records[0]["step"], "record": sha256_hex(canonical_json(records[0])),
        "weights_root": records[0]["weights_root"], "commit": "c" * 40, "files": tuple(files),
        "previous": None,
    }  # fmt: skip
    return CommitLine(**{**fields, **changed}).to_bytes() + b"\n"


def true_files(record):
    facts = [FileFact(i["path"], i["size"], i["sha256"], "b" * 40) for i in record["files"]]
    manifest = canonical_json(record)
    name = "checkpoint_manifest.json"
    return [*facts, FileFact(name, len(manifest), sha256_hex(manifest), "b" * 40)]


@pytest.mark.parametrize(
    "path",
    ["../../evil", "/etc/evil", "a/b", "..", ".", "", ".git", "a\0b", "a\nb", "é", "x" * 300],
)
def test_no_path_leads_out_of_the_target(run_dir, path):
    records = Ledger(run_dir / "manifest.jsonl").records()
    evil = FileFact(path, 3, "a" * 64, "b" * 40)
    with pytest.raises(CheckpointError):
        parse_commits(line_of(records, [*true_files(records[0]), evil]), records, "here")
    if path != "a/b":
        with pytest.raises(CheckpointError):
            parse_publication(publication_bytes({path: (3, "a" * 64)}), "here")


@pytest.mark.parametrize(
    "change",
    [
        {"step": 3}, {"step": True}, {"step": -1}, {"record": "0" * 64}, {"weights_root": "1" * 64},
        {"commit": "main"}, {"previous": "a" * 64}, {"commit": "C" * 40},
    ],
)  # fmt: skip
def test_a_line_that_is_not_of_the_ledger_is_refused(run_dir, change):
    records = Ledger(run_dir / "manifest.jsonl").records()
    parse_commits(line_of(records, true_files(records[0])), records, "here")
    with pytest.raises(CheckpointError, match="here line 1"):
        parse_commits(line_of(records, true_files(records[0]), **change), records, "here")


def test_a_line_with_other_weights_than_the_record_is_refused(run_dir):
    records = Ledger(run_dir / "manifest.jsonl").records()
    files = true_files(records[0])
    for bad in (files[1:], [FileFact(files[0].path, 9, files[0].sha256, "b" * 40), *files[1:]]):
        with pytest.raises(CheckpointError, match=r"model\.safetensors"):
            parse_commits(line_of(records, bad), records, "here")
    twice = [*files, files[0]]
    with pytest.raises(CheckpointError, match="twice"):
        parse_commits(line_of(records, twice), records, "here")


@pytest.fixture(scope="module")
def some_records(tmp_path_factory):
    run_dir = make_run(tmp_path_factory.mktemp("fuzz") / "suite", (0, 1))
    return Ledger(run_dir / "manifest.jsonl").records()


KINDS = ("flip", "cut", "insert", "repeat")
mutations = st.lists(
    st.tuples(st.sampled_from(KINDS), st.integers(0, 5000), st.binary(max_size=12)),
    min_size=1,
    max_size=4,
)


def mutate(data, changes):
    for kind, place, extra in changes:
        at = place % (len(data) + 1)
        if kind == "flip" and at < len(data):
            data = data[:at] + bytes([data[at] ^ (1 << place % 8)]) + data[at + 1 :]
        elif kind == "cut":
            data = data[:at]
        elif kind == "insert":
            data = data[:at] + extra + data[at:]
        else:
            data = data + data[at:]
    return data


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(changes=mutations)
def test_mutated_lists_are_what_they_were_or_refused(some_records, changes):
    first = line_of(some_records, true_files(some_records[0]))
    stated = publication_bytes({"a/b": (3, "a" * 64), "c": (4, "b" * 64)})
    for data, parse in (
        (first, lambda d: parse_commits(d, some_records, "here")),
        (stated, lambda d: parse_publication(d, "here")),
    ):
        changed = mutate(data, changes)
        try:
            found = parse(changed)
        except CheckpointError:
            continue
        if isinstance(found, dict):
            assert publication_bytes(found) == changed
        else:
            assert b"".join(line.to_bytes() + b"\n" for line in found) == changed


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(25))
def test_whatever_is_served_nothing_wrong_is_taken(hub, published, tmp_path, seed):
    """Random damage to random answers: all that becomes visible is as published, or nothing."""
    get(hub, tmp_path / "good", with_state=True)
    good = set(visible(tmp_path / "good").values())
    draw = random.Random(seed)
    outside = {p: p.stat().st_mtime_ns for p in (tmp_path / "suite").rglob("*") if p.is_file()}

    def damage(answer):
        changes = [(draw.choice(KINDS), draw.randrange(1 << 20), draw.randbytes(5))]
        headers = dict(answer.headers)
        if draw.random() < 0.3:
            headers = {k: v for k, v in headers.items() if draw.random() < 0.7}
        return Answer(answer.status, mutate(answer.body, changes), headers)

    for _ in range(6):
        hub.faults.add(
            "GET",
            draw.choice(["/refs", "/resolve/"]),
            skip=draw.randrange(20),
            times=2,
            mangle=damage,
        )
    to = tmp_path / "to"
    with contextlib.suppress(CheckpointError):
        get(hub, to, with_state=True)
    taken = visible(to)
    taken.pop("toy-1/pulled.json", None)
    assert set(taken.values()) <= good
    assert outside == {p: p.stat().st_mtime_ns for p in outside}
    assert {p.name for p in tmp_path.iterdir()} <= {
        "good", "to", "suite", "loopback", "client-cache", "home",
    }  # fmt: skip


def test_digests_are_of_content(tmp_path):
    """The helper that the tests above lean on."""
    (tmp_path / "x").write_bytes(b"1")
    assert visible(tmp_path) == {"x": hashlib.sha256(b"1").hexdigest()}
    assert torch.equal(random_weights(1)["a.bias"], random_weights(1)["a.bias"])
