import json

import numpy as np
import pytest

from data_pipeline.canonical import canonical_json
from data_pipeline.digests import leaf, sequence_digests
from data_pipeline.errors import DatasetError
from data_pipeline.promise import Promise, check_against_promise, load_promise, save_promise

S, B, STEPS = 3, 3, 6
ORDER = {
    "index_digest": "00" * 32, "seq_len": S, "batch_size": B, "order": "order-v1", "seed": 0,
    "overlay": None,
}  # fmt: skip
IDS = [np.arange(12).reshape(B, S + 1) + 100 * step for step in range(STEPS)]
LOG = b"".join(leaf(step, sequence_digests(ids)) for step, ids in enumerate(IDS))
PROMISE = Promise(ORDER, LOG)


def test_published_vector():
    digest = "83a78c28298b9cc8f2eebfd7dbe9af01e37c1262149aaab10916da4e57cca514"
    assert PROMISE.digest == digest
    assert PROMISE.record["steps"] == STEPS


def test_a_promise_is_read_back(tmp_path):
    out = save_promise(PROMISE, tmp_path / "order")
    assert load_promise(out) == PROMISE
    assert save_promise(PROMISE, out) == out
    with pytest.raises(DatasetError, match="a published order is never changed"):
        save_promise(Promise(ORDER, LOG[:32]), out)
    assert load_promise(out) == PROMISE


def test_chains_of_checkpoints():
    assert PROMISE.chain_at(0).hex() == PROMISE.record["start"]
    assert PROMISE.chain_at(STEPS).hex() == PROMISE.record["chain"]
    with pytest.raises(DatasetError, match="where the promise ends, found 7"):
        PROMISE.chain_at(STEPS + 1)


def test_every_damage_is_refused(tmp_path):
    out = save_promise(PROMISE, tmp_path / "order")
    for changed in (LOG[:-1], LOG[:-32], LOG + LOG[:32], b"\0" + LOG[1:], b""):
        (out / "order.log").write_bytes(changed)
        with pytest.raises(DatasetError, match=r"order\.log: expected sha256"):
            load_promise(out)
    (out / "order.log").write_bytes(LOG)
    record = json.loads((out / "order.json").read_bytes())
    for change, message in [
        ({"steps": 5}, "steps: expected 6, found 5"),
        ({"chain": "00" * 32}, "chain: expected"),
        ({"start": "00" * 32}, "start: expected"),
        ({"order": {**ORDER, "seed": 1}}, "start: expected"),
        ({"order": {**ORDER, "seed": -1}}, "seed: expected an integer >= 0"),
        ({"schema": "order-promise-v2"}, "of schema order-promise-v1"),
        ({"more": 1}, "with the keys"),
    ]:
        (out / "order.json").write_bytes(canonical_json({**record, **change}))
        with pytest.raises(DatasetError, match=message):
            load_promise(out)
    (out / "order.json").write_bytes(json.dumps(record).encode())
    with pytest.raises(DatasetError, match="expected canonical JSON"):
        load_promise(out)
    (out / "order.json").unlink()
    with pytest.raises(DatasetError, match="expected a published order, found no file"):
        load_promise(out)


def test_a_run_is_held_to_its_promise():
    assert check_against_promise(PROMISE, ORDER, LOG) == []
    assert check_against_promise(PROMISE, ORDER, LOG[: 32 * 4]) == []
    assert check_against_promise(PROMISE, ORDER, b"") == []
    swapped = LOG[:64] + LOG[96:128] + LOG[64:96] + LOG[128:]
    assert check_against_promise(PROMISE, ORDER, swapped) == [
        "2 of 6 steps are not what was promised, the first is step 2"
    ]
    assert check_against_promise(PROMISE, {**ORDER, "seed": 1}, LOG) == [
        "seed: expected 0, found 1"
    ]
    (longer,) = check_against_promise(PROMISE, ORDER, LOG + LOG[:32])
    assert "expected at most 6 steps, found 7" in longer
    with pytest.raises(DatasetError, match="cut short"):
        check_against_promise(PROMISE, ORDER, LOG[:-1])
