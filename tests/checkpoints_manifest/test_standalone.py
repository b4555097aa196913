"""The standalone verifier: standard library only, and of one mind with `tripod verify`."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from checkpoints_manifest import standalone
from checkpoints_manifest.manifest import record_digest
from checkpoints_manifest.verify import LEVELS, verify_checkpoints
from data_pipeline.canonical import canonical_json
from tests.checkpoints_manifest.conftest import flip
from tests.checkpoints_manifest.test_verify import DAMAGE

SCRIPT = Path(standalone.__file__)
# What the two say in words of their own: a schema's messages, a Python error.
OWN_WORDS = re.compile(r"(is not as manifest-v1 wants it|no floats|the token order:).*")
FILES = (
    "manifest.jsonl", "config.json", "order.log", "metrics.jsonl", "numerics.json",
    "checkpoints/step1/manifest.json", "checkpoints/step1/model.safetensors",
    "checkpoints/step4/optimizer.safetensors", "checkpoints/step4/trainer_state.json",
)  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 1 << 70) | st.text(max_size=3)
    | st.floats(allow_nan=False) | st.sampled_from(["ab" * 32, "ab" * 32 + "\n", "../x", "a\n"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=4,
)  # fmt: skip


def alone(directory, *options):
    """In a process without site-packages, environment or working directory on its path."""
    done = subprocess.run(
        [sys.executable, "-I", "-S", SCRIPT, directory, "--json", *options],
        capture_output=True, text=True, check=False, cwd="/",
    )  # fmt: skip
    assert done.stderr == ""
    found = json.loads(done.stdout)
    assert done.returncode == (1 if found["findings"] else 0)
    return found


def plain(findings):
    return [OWN_WORDS.sub(r"\1", finding) for finding in findings]


def agree(run_dir, level="chain"):
    report = verify_checkpoints(run_dir, level, jobs=1)
    checked, findings, notes = standalone.verify(run_dir, level)
    assert plain(findings) == plain(report.findings)
    assert checked == report.checkpoints
    assert notes == list(report.notes)
    return findings


def test_a_sound_run_is_fine_at_every_level(run_dir):
    for level in LEVELS[:-1]:
        found = alone(run_dir, "--level", level)
        assert found == {"checkpoints": 3, "findings": [], "notes": []}


@pytest.mark.parametrize("kind", DAMAGE)
def test_both_verifiers_name_the_same_damage(run_dir, kind):
    DAMAGE[kind][0](run_dir)
    found = alone(run_dir)["findings"]
    assert found
    assert plain(found) == plain(verify_checkpoints(run_dir).findings)
    for level in LEVELS[:-1]:
        agree(run_dir, level)


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_both_verifiers_agree_on_any_damage(run_dir, tmp_path_factory, data):
    copy = tmp_path_factory.mktemp("copy") / "toy"
    shutil.copytree(run_dir, copy)
    path = copy / data.draw(st.sampled_from(FILES))
    content = path.read_bytes()
    start = data.draw(st.integers(0, len(content)))
    end = data.draw(st.integers(start, min(len(content), start + 20)))
    put = data.draw(st.binary(max_size=20) | st.sampled_from([content, b"[" * 2000, b"9" * 5000]))
    path.write_bytes(content[:start] + put + content[end:])
    found = agree(copy)
    if path.read_bytes() == content:
        assert found == []
    shutil.rmtree(copy.parent)


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_both_verifiers_agree_on_records_that_are_chained_well(run_dir, tmp_path_factory, data):
    """A writer who hashes and chains whatever he wants to say."""
    copy = tmp_path_factory.mktemp("copy") / "toy"
    shutil.copytree(run_dir, copy)
    path = copy / "manifest.jsonl"
    records = [json.loads(line) for line in path.read_bytes().splitlines()]
    for record in records:
        holder = record
        while True:
            keys = range(len(holder)) if isinstance(holder, list) else sorted(holder)
            key = data.draw(st.sampled_from(keys))
            inner = holder[key]
            if not isinstance(inner, dict | list) or data.draw(st.booleans()):
                break
            holder = inner
        act = data.draw(st.sampled_from(["keep", "keep", "replace", "drop", "add"]))
        if act == "replace":
            holder[key] = data.draw(JSON)
        elif act == "drop":
            del holder[key]
        elif act == "add" and isinstance(holder, dict):
            holder[data.draw(st.text(max_size=4))] = data.draw(JSON)
    previous = None
    for record in records:
        record["previous"] = previous
        try:
            previous = record_digest(record)
        except (TypeError, ValueError):
            previous = "0" * 64
    path.write_bytes(
        b"".join(
            json.dumps(r, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode(
                "utf-8", "surrogatepass"
            )
            + b"\n"
            for r in records
        )
    )
    agree(copy)
    shutil.rmtree(copy.parent)


SIDE = ("config.json", "numerics.json", "order.log", "metrics.jsonl")


@pytest.fixture
def downloaded(run_dir, tmp_path):
    """Revisions downloaded by hand: main, and two steps, one of them with its moments."""
    directory = tmp_path / "downloaded"
    main = directory / "main"
    (main / "run").mkdir(parents=True)
    shutil.copy(run_dir / "manifest.jsonl", main)
    for name in SIDE:
        shutil.copy(run_dir / name, main / "run")
    for step, names in ((1, ["model"]), (4, ["model", "optimizer"])):
        target = directory / f"step{step}"
        target.mkdir()
        source = run_dir / "checkpoints" / f"step{step}"
        for name in names:
            shutil.copy(source / f"{name}.safetensors", target)
        shutil.copy(source / "manifest.json", target / "checkpoint_manifest.json")
    return directory


@pytest.fixture
def pulled(run_dir):
    """A pulled run: two of three steps, one of them without its state."""
    shutil.rmtree(run_dir / "checkpoints/step0")
    for name in ("optimizer.safetensors", "trainer_state.json"):
        (run_dir / "checkpoints/step1" / name).unlink()
    facts = {"schema": "pulled-v1", "steps": [1, 4], "steps_with_state": [4]}
    (run_dir / "pulled.json").write_text(json.dumps(facts))
    return run_dir


def test_downloaded_revisions_are_checked_as_far_as_they_are_there(downloaded):
    found = alone(downloaded)
    assert found["findings"] == []
    assert found["checkpoints"] == 2
    assert found["notes"] == ["not downloaded: 1 steps"]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda p: flip(p / "step1/model.safetensors"), "step1: .*sha256"),
        (lambda p: flip(p / "step4/optimizer.safetensors"), "step4: .*sha256"),
        (lambda p: (p / "step4/model.safetensors").unlink(), "step4: .* is missing"),
        (lambda p: flip(p / "step4/checkpoint_manifest.json", 9), "not the ledger's record"),
        (lambda p: flip(p / "main/run/order.log", 33), "step4: .*order chain"),
        (lambda p: flip(p / "main/run/metrics.jsonl", 30), "step4: .*metrics"),
        (lambda p: (p / "step4").rename(p / "step9"), "step9 is not in the ledger"),
    ],
)
def test_damage_in_downloaded_revisions_is_named(downloaded, damage, words):
    damage(downloaded)
    (finding,) = alone(downloaded)["findings"]
    assert re.search(words, finding), finding


def test_without_the_logs_the_order_is_not_checked_and_that_is_said(downloaded):
    shutil.rmtree(downloaded / "main/run")
    found = alone(downloaded)
    assert found["findings"] == []
    assert "order was not checked" in found["notes"][1]


def test_a_pulled_run_is_held_to_what_was_pulled(pulled):
    found = alone(pulled)
    assert (found["checkpoints"], found["findings"]) == (2, [])
    assert found["notes"] == [
        "not pulled: 1 steps of the ledger", "not pulled: 1 pulled steps' optimizer state",
    ]  # fmt: skip
    report = verify_checkpoints(pulled)
    assert (report.checkpoints, report.findings) == (2, ())
    assert list(report.notes) == found["notes"]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda p: flip(p / "checkpoints/step1/model.safetensors"), "step1: .*sha256"),
        (lambda p: shutil.rmtree(p / "checkpoints/step1"), "step1: .* is missing"),
        (lambda p: (p / "checkpoints/step4/trainer_state.json").unlink(), "step4: .* is missing"),
        (lambda p: (p / "pulled.json").write_text("{}"), "is not of pulled-v1"),
        (lambda p: (p / "pulled.json").write_text('{"schema":"pulled-v1","steps":[1.5]}'), "v1"),
    ],
)
def test_both_verifiers_name_the_same_damage_of_a_pulled_run(pulled, damage, words):
    damage(pulled)
    (finding,) = agree(pulled)
    assert re.search(words, finding), finding


def test_words_for_people(run_dir):
    command = [sys.executable, "-I", "-S", SCRIPT, run_dir]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "ok  3 checkpoints at level chain\n"
    (run_dir / "order.log").write_bytes(b"")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout.startswith(
        "FAIL  3 checkpoints at level chain\n    step1: order.log holds 0"
    )


def test_a_folder_that_holds_nothing_is_a_finding(tmp_path):
    assert "holds no checkpoint" in alone(tmp_path)["findings"][0]


def test_the_vectors_of_the_specification_hold():
    leaves = {
        name: standalone.hashlib.sha256(
            b"tensor-digest-v1\0" + len(head).to_bytes(8, "little") + head + data
        ).digest()
        for name, head, data in (
            ("w", b'["w","F32",[2]]', bytes.fromhex("0000803f000000c0")),
            ("b", b'["b","F32",[]]', bytes(4)),
        )
    }
    root = "a51901c79d87fcdde99924ff65c2e3048d023e23ee94db085344049c1af2b468"
    assert standalone.root(leaves) == root
    assert standalone.canonical({"b": 1, "a": "ä"}) == canonical_json({"b": 1, "a": "ä"})
