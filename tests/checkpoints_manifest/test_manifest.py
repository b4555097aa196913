"""The ledger: chained, append-only, closed to anything that does not follow."""

import json
import re
from pathlib import Path

import pytest

from checkpoints_manifest.errors import CheckpointError
from checkpoints_manifest.manifest import Ledger, check_record, record_digest
from data_pipeline.canonical import canonical_json

SPEC = Path(__file__).parents[2] / "docs" / "spec" / "manifest.md"
A, B = "aa" * 32, "bb" * 32


def record(step, previous=None, root=None, **more):
    return {
        "schema": "manifest-v1", "suite": "toy", "rung": "toy-1", "step": step, "tokens": 8 * step,
        "files": [{"path": "model.safetensors", "size": 3, "sha256": A}],
        "weights_root": root or f"{step:064x}", "state_roots": {"exp_avg": A, "exp_avg_sq": B},
        "order": {"name": "order-v1", "index_digest": A, "chain": B},
        "numerics": A, "config": A, "environment": A, "metrics": A, "previous": previous, **more,
    }  # fmt: skip


@pytest.fixture
def ledger(tmp_path):
    found = Ledger(tmp_path / "manifest.jsonl")
    previous = None
    for step in (0, 1, 2):
        found.append(record(step, previous))
        previous = record_digest(found.records()[-1])
    return found


def test_the_digest_is_that_of_the_spec():
    text = SPEC.read_text()
    vector = json.loads(re.search(r"```json\n(.*?)```", text, re.S).group(1))
    check_record(vector, "the spec's example")
    assert f"`{record_digest(vector)}`" in text


def test_records_come_back_in_order_and_chained(ledger):
    records = ledger.records()
    assert [r["step"] for r in records] == [0, 1, 2]
    assert [r["previous"] for r in records] == [None, *map(record_digest, records[:2])]


def test_any_flipped_byte_of_the_ledger_is_seen_but_for_the_newest_free_fields(ledger):
    whole = ledger.path.read_bytes()
    last = whole.rfind(b"\n", 0, -1) + 1
    for position in range(0, last, 7):
        data = bytearray(whole)
        data[position] ^= 1
        ledger.path.write_bytes(data)
        with pytest.raises(CheckpointError, match=r"manifest\.jsonl line"):
            ledger.records()


def test_a_torn_last_line_is_named_and_mended(ledger):
    whole = ledger.path.read_bytes()
    ledger.path.write_bytes(whole[:-20])
    with pytest.raises(CheckpointError, match="line 3 is torn"):
        ledger.records()
    assert ledger.mend_torn_line()
    assert [r["step"] for r in ledger.records()] == [0, 1]
    assert not ledger.mend_torn_line()


def test_removed_and_reordered_lines_break_the_chain(ledger):
    first, second, third = ledger.path.read_bytes().splitlines(keepends=True)
    for lines in ([first, third], [second, third], [first, third, second]):
        ledger.path.write_bytes(b"".join(lines))
        with pytest.raises(CheckpointError, match="chain is broken"):
            ledger.records()


def test_what_does_not_follow_is_not_appended(ledger):
    before = ledger.path.read_bytes()
    previous = record_digest(ledger.records()[-1])
    refused = [
        (record(3, None), "chain is broken"),
        (record(3, A), "chain is broken"),
        (record(2, previous, root=A), "does not follow step 2"),
        (record(3, previous, root=f"{1:064x}"), "has the weights of step 1"),
        (record(3, previous, tokens=-1), "tokens"),
        (record(3, previous, surprise=1), "surprise"),
        (record(3, previous, numerics="no digest"), "numerics"),
        (record(3, previous, files=[]), "files"),
        (record(3, previous, files=[{"path": "../x", "size": 1, "sha256": A}]), r"files\.0\.path"),
    ]
    for bad, word in refused:
        with pytest.raises(CheckpointError, match=word):
            ledger.append(bad)
    assert ledger.path.read_bytes() == before


def test_same_weights_are_accepted_with_a_reason(ledger):
    previous = record_digest(ledger.records()[-1])
    reason = "the learning rate of update 3 is zero"
    ledger.append(record(3, previous, root=f"{2:064x}", same_weights_reason=reason))
    assert ledger.records()[-1]["same_weights_reason"] == reason


def test_a_record_out_of_canonical_form_is_refused(ledger):
    lines = ledger.path.read_bytes().splitlines(keepends=True)
    loose = json.dumps(json.loads(lines[2])).encode() + b"\n"
    assert loose != lines[2]
    ledger.path.write_bytes(b"".join([*lines[:2], loose]))
    with pytest.raises(CheckpointError, match="canonical form"):
        ledger.records()


def test_a_missing_ledger_is_empty(tmp_path):
    assert Ledger(tmp_path / "manifest.jsonl").records() == []


def test_canonical_bytes_hold_no_float():
    with pytest.raises(TypeError):
        canonical_json(record(1) | {"step": 1.5})
