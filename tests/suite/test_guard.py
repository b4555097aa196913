"""Another numerics record is refused by name, or accepted and then in the ledger for good."""

import json
import shutil

import pytest

from checkpoints_manifest import standalone
from checkpoints_manifest.errors import CheckpointError
from checkpoints_manifest.manifest import check_record, record_digest
from checkpoints_manifest.numerics_breaks import (
    change_findings,
    describe_change,
    numerics_of,
    stated_changes,
)
from checkpoints_manifest.recovery import newest_recovery
from checkpoints_manifest.store import ledger_of, rewind
from checkpoints_manifest.verify import verify_checkpoints
from data_pipeline.canonical import canonical_json
from suite import replay_worker, resume, verify_labels
from suite.comm import Group
from suite.guard import check_ranks_agree
from suite.numerics import NumericsError, instruction_set
from suite.replay_worker import Replay
from suite.verify import verify_kind
from tests.suite.in_process import STEPS, copy_of, small_config, train_here
from tests.suite.tiny_runs import build_suite, differing_files


@pytest.fixture(scope="module")
def suite_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tiny")
    build_suite(directory)
    return directory


@pytest.fixture(scope="module")
def config(suite_dir):
    return small_config(suite_dir)


@pytest.fixture(scope="module")
def whole(suite_dir, config):
    train_here(config, suite_dir / "whole")
    return suite_dir / "whole"


@pytest.fixture
def half(whole, request):
    """The run as it stood at step 4."""
    copy = copy_of(whole, f"half-{request.node.name[:40]}")
    rewind(copy, 4)
    yield copy
    shutil.rmtree(copy)


@pytest.fixture
def other_mkl(monkeypatch):
    """Makes this process say that it computes with another library."""

    def use(version):
        def changed(*args, **kwargs):
            return {**real(*args, **kwargs), "mkl": version}

        for module in (resume, replay_worker, verify_labels):
            monkeypatch.setattr(module, "numerics_record", changed)

    real = resume.numerics_record
    return use


def test_another_record_is_refused_with_the_fields_named(config, half, other_mkl):
    before = (half / "manifest.jsonl").read_bytes()
    other_mkl("2030.1")
    with pytest.raises(NumericsError, match=r"mkl: expected '.*', found '2030.1'"):
        train_here(config, half)
    assert (half / "manifest.jsonl").read_bytes() == before


def test_an_accepted_change_is_in_the_ledger_and_no_failure(config, half, other_mkl, capsys):
    other_mkl("2030.1")
    assert train_here(config, half, accept=["numerics"]) == STEPS
    records = ledger_of(half).records()
    (change,) = records[-1]["numerics_changes"]
    assert change["step"] == 4 and list(change["fields"]) == ["mkl"]
    assert change["from"] == records[-2]["numerics"] != change["to"] == records[-1]["numerics"]
    report = verify_checkpoints(half)
    assert report.findings == () and "mkl" in report.notes[0]
    assert verify_kind("checkpoints", [half]).ok
    assert "accepted break: from update 5 on under another numerics" in capsys.readouterr().err
    assert standalone.verify(half)[1] == []
    # The record before is kept: anyone can see what the first steps were computed with.
    assert (half / "numerics" / f"{change['from']}.json").exists()


def test_after_a_rewind_before_it_a_change_has_to_be_accepted_again(config, half, other_mkl):
    other_mkl("2030.1")
    train_here(config, half, accept=["numerics"])
    rewind(half, 4)
    with pytest.raises(NumericsError, match="mkl"):
        train_here(config, half)


def test_after_a_rewind_the_old_record_is_no_break(config, whole, half, other_mkl, monkeypatch):
    other_mkl("2030.1")
    train_here(config, half, accept=["numerics"])
    monkeypatch.undo()
    rewind(half, 4)
    assert train_here(config, half) == STEPS
    assert differing_files(whole, half) == []


def test_changes_between_two_checkpoints_are_all_listed(config, half, other_mkl):
    from suite.signals import StopRequest

    class At(StopRequest):
        """Asked to stop at the second look."""

        looks = 0

        @property
        def asked(self):
            self.looks += 1
            return self.looks > 1

    other_mkl("2030.1")
    train_here(config, half, At(), accept=["numerics"])
    assert newest_recovery(half)[0]["numerics_changes"][0]["step"] == 4
    other_mkl("2030.2")
    train_here(config, half, At(), accept=["numerics"])
    assert train_here(config, half) == STEPS
    steps = [change["step"] for change in ledger_of(half).records()[-1]["numerics_changes"]]
    assert steps == [4, 5]
    assert verify_checkpoints(half).findings == ()


def test_replay_across_a_break_refuses_and_beside_it_works(config, half, other_mkl, monkeypatch):
    other_mkl("2030.1")
    train_here(config, half, accept=["numerics"])
    group = Group(0, 1)
    with pytest.raises(CheckpointError, match=r"updates 2..8 cross an accepted change"):
        Replay(half, group, 1, 8).run()
    assert Replay(half, group, 4, 8).run() == []
    with pytest.raises(NumericsError, match=r"mkl: expected '.*', found '2030\.1'"):
        Replay(half, group, 1, 4).run()
    monkeypatch.undo()
    assert Replay(half, group, 1, 4).run() == []
    with pytest.raises(NumericsError, match=r"mkl: expected '2030\.1'"):
        Replay(half, group, 4, 8).run()


def test_labels_of_the_earlier_record_are_left_out_and_counted(config, half, other_mkl):
    other_mkl("2030.1")
    train_here(config, half, accept=["numerics"])
    found = verify_labels.check_run(half)
    # 0 and 1 belong to the first record, 4 to the second; 8 has no next step.
    assert (found["checked"], found["left_out"], found["failures"]) == (1, 2, [])


def test_a_change_that_is_not_stated_is_a_failure(whole):
    records = ledger_of(whole).records()
    records[-1]["numerics"] = "0" * 64
    (finding,) = change_findings(records)
    assert "step8" in finding and "no accepted change says so" in finding


@pytest.mark.parametrize(("key", "value"), [("from", "1" * 64), ("to", "2" * 64), ("step", 8)])
def test_a_change_that_does_not_lead_from_one_record_to_the_next_is_a_failure(
    config, half, other_mkl, key, value
):
    other_mkl("2030.1")
    train_here(config, half, accept=["numerics"])
    records = ledger_of(half).records()
    assert change_findings(records) == []
    records[-1]["numerics_changes"][0][key] = value
    check_record(records[-1], "forged")
    assert change_findings(records)
    # Both verifiers say the same about a forged ledger.
    lines = []
    for record in records:
        record["previous"] = record_digest(json.loads(lines[-1])) if lines else None
        lines.append(canonical_json(record))
        (half / "checkpoints" / f"step{record['step']}" / "manifest.json").write_bytes(lines[-1])
    (half / "manifest.jsonl").write_bytes(b"".join(line + b"\n" for line in lines))
    assert list(verify_checkpoints(half).findings) == standalone.verify(half)[1] != []


def test_a_record_that_was_edited_is_not_the_one_that_the_ledger_names(config, half):
    path = half / "numerics.json"
    path.write_bytes(canonical_json({**json.loads(path.read_bytes()), "torch": "2.11.0"}))
    with pytest.raises(NumericsError, match=r"not the record that the ledger names[\s\S]*2\.11\.0"):
        train_here(config, half, accept=["numerics"])


def test_which_record_computed_which_updates():
    change = {"step": 6, "from": "a", "to": "b", "fields": {"mkl": {"from": "1", "to": "2"}}}
    records = [
        {"step": 4, "numerics": "a"},
        {"step": 8, "numerics": "b", "numerics_changes": [change]},
        {"step": 12, "numerics": "b"},
    ]
    assert stated_changes(records) == [change] and change_findings(records) == []
    assert numerics_of(records, 0, 6) == numerics_of(records, 4, 6) == "a"
    assert numerics_of(records, 6, 12) == numerics_of(records, 8, 9) == "b"
    with pytest.raises(CheckpointError, match=r"take the parts 4..6 and 6..8"):
        numerics_of(records, 4, 8)
    assert describe_change(change).endswith("mkl '1' -> '2'")
    assert numerics_of(records[:1], 0, 4) == "a"


def test_ranks_of_unlike_machines_are_refused():
    class Other(Group):
        def broadcast(self, value):
            return {**value, "instruction_set": "AuthenticAMD avx2"}

    check_ranks_agree({"instruction_set": "x"}, Group(0, 1))
    with pytest.raises(NumericsError, match=r"rank 3 computes with another .*\n +instruction_set"):
        check_ranks_agree({"instruction_set": "GenuineIntel avx512f"}, Other(3, 4))


def test_the_record_names_device_instructions_libraries_threads_flags_and_kernels():
    record = resume.numerics_record("native", "fp32", "eager")
    wanted = {
        "device", "machine", "instruction_set", "cpu_capability", "torch", "blas", "lapack", "mkl",
        "onednn", "onednn_enabled", "threads", "deterministic_algorithms", "flush_denormal",
        "matmul_precision", "attention", "sdpa_backends", "compile", "precision", "profile",
    }  # fmt: skip
    assert wanted <= set(record)
    assert record == resume.numerics_record("native", "fp32", "native-c")


def test_the_instruction_set_is_what_libraries_dispatch_on():
    text = "vendor_id\t: GenuineIntel\nflags\t\t: fpu sse4_2 avx avx2 fma hypervisor avx512f\n"
    assert instruction_set("native", text) == "GenuineIntel sse4_2 avx fma avx2 avx512f"
    assert instruction_set("portable-x86", text) == "avx2"


def test_a_kernel_choice_or_a_flag_changes_the_record(monkeypatch):
    import torch

    before = resume.numerics_record("native", "fp32", "eager")
    torch.backends.cuda.enable_math_sdp(False)
    torch.set_flush_denormal(True)
    try:
        after = resume.numerics_record("native", "fp32", "eager")
    finally:
        torch.backends.cuda.enable_math_sdp(True)
        torch.set_flush_denormal(False)
    changed = {key for key in before if before[key] != after[key]}
    assert changed == {"sdpa_backends", "flush_denormal"}
