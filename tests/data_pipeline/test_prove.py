import copy
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.canonical import canonical_json, sha256_hex
from data_pipeline.digests import chain_over, chain_start, leaf, sequence_digests, split_leaves
from data_pipeline.errors import DatasetError
from data_pipeline.prove import check_step_proof, load_proof, prove_step

S, B, STEPS = 3, 3, 6
ORDER = {
    "index_digest": "00" * 32, "seq_len": S, "batch_size": B, "order": "order-v1", "seed": 0,
    "overlay": None,
}  # fmt: skip
IDS = [np.arange(12).reshape(B, S + 1) + 100 * step for step in range(STEPS)]
DIGESTS = [sequence_digests(ids) for ids in IDS]
LOG = b"".join(leaf(step, DIGESTS[step]) for step in range(STEPS))


def chain_at(checkpoint):
    return chain_over(chain_start(**ORDER), split_leaves(LOG)[:checkpoint])


def test_published_vector():
    proof = prove_step(LOG, ORDER, 1, 4, DIGESTS[1])
    assert proof == {
        "schema": "order-proof-v1",
        "order": ORDER,
        "step": 1,
        "checkpoint": 4,
        "chain_before": chain_at(1).hex(),
        "leaf": LOG[32:64].hex(),
        "chain": chain_at(2).hex(),
        "following": [LOG[64:96].hex(), LOG[96:128].hex()],
        "preceding": None,
        "sequences": [digest.hex() for digest in DIGESTS[1]],
    }
    assert proof["leaf"] == "f9d1613ba288d994b4c68f4757425c468d7a96b98397bc1492363e87561aed40"
    assert chain_at(4).hex() == "fb6c2c1ad34d97dc3448c1551011f87d0be31ca8b35d2071eac0ada752ca6fa5"
    raw = canonical_json(proof)
    assert len(raw) == 824
    assert sha256_hex(raw) == "b50272ce887d2eafcfbed8e08bd614c1ae477e47aa1a618c6ebd9d21510253b0"


@given(st.integers(0, STEPS - 1), st.integers(1, STEPS), st.booleans(), st.booleans())
def test_every_true_proof_is_accepted(step, checkpoint, opened, from_start):
    if step >= checkpoint:
        with pytest.raises(DatasetError, match="step < checkpoint"):
            prove_step(LOG, ORDER, step, checkpoint)
        return
    sequences = DIGESTS[step] if opened else None
    proof = prove_step(LOG, ORDER, step, checkpoint, sequences, from_start)
    proof = load_proof(canonical_json(proof))
    shown = check_step_proof(proof, chain_at(checkpoint))
    assert (shown.step, shown.checkpoint, shown.rows) == (step, checkpoint, ())
    assert (shown.leaf_opened, shown.order_bound) == (opened, from_start)
    whole = check_step_proof(proof, chain_at(checkpoint), IDS[step])
    assert (whole.rows, whole.leaf_opened) == (tuple(range(B)), True)


def test_one_row_is_shown_without_the_ids_of_the_others():
    proof = prove_step(LOG, ORDER, 2, sequences=DIGESTS[2])
    shown = check_step_proof(proof, chain_at(STEPS), IDS[2][[2, 0]], rows=[2, 0])
    assert shown.rows == (2, 0)
    with pytest.raises(DatasetError, match="sequence digest of row 1"):
        check_step_proof(proof, chain_at(STEPS), IDS[2][:1], rows=[1])
    bare = prove_step(LOG, ORDER, 2)
    with pytest.raises(ValueError, match="must carry the digests of all"):
        check_step_proof(bare, chain_at(STEPS), IDS[2][:1], rows=[0])
    with pytest.raises(ValueError, match=r"rows in \[0, 3\), found 3"):
        check_step_proof(proof, chain_at(STEPS), IDS[2][:1], rows=[3])
    with pytest.raises(ValueError, match=r"expected ids \[3, 4\], found \[2, 4\]"):
        check_step_proof(proof, chain_at(STEPS), IDS[2][:2])


def digest_places(proof):
    for key in ("chain_before", "leaf", "chain"):
        yield proof, key
    for key in ("following", "preceding", "sequences"):
        for place in range(len(proof[key])):
            yield proof[key], place


@settings(deadline=None)
@given(st.data())
def test_any_changed_digest_or_order_is_refused(data):
    proof = copy.deepcopy(prove_step(LOG, ORDER, 2, 5, DIGESTS[2], from_start=True))
    places = list(digest_places(proof))
    holder, key = data.draw(st.sampled_from(places))
    digit = data.draw(st.integers(0, 63))
    old = holder[key]
    holder[key] = old[:digit] + ("0" if old[digit] != "0" else "1") + old[digit + 1 :]
    with pytest.raises(DatasetError, match="expected"):
        check_step_proof(proof, chain_at(5))


@pytest.mark.parametrize("change", [{"seed": 1}, {"overlay": "11" * 32}, {"order": "neox-v1"}])
def test_the_order_is_bound_from_the_start_only(change):
    for from_start in (False, True):
        proof = prove_step(LOG, ORDER, 2, 5, DIGESTS[2], from_start)
        proof["order"] = {**ORDER, **change}
        if from_start:
            with pytest.raises(DatasetError, match="chain_before, from the order"):
                check_step_proof(proof, chain_at(5))
        else:
            assert not check_step_proof(proof, chain_at(5)).order_bound


def test_a_proof_of_another_step_checkpoint_or_batch_is_refused():
    proof = prove_step(LOG, ORDER, 2, 5, DIGESTS[2])
    with pytest.raises(DatasetError, match="chain of checkpoint 5"):
        check_step_proof(proof, chain_at(4))
    with pytest.raises(DatasetError, match="leaf, from the step and the ids"):
        check_step_proof(proof, chain_at(5), IDS[3])
    swapped = IDS[2][[1, 0, 2]]
    with pytest.raises(DatasetError, match="leaf, from the step and the ids"):
        check_step_proof(proof, chain_at(5), swapped)
    relabelled = {**proof, "step": 1, "following": [proof["following"][0], *proof["following"]]}
    with pytest.raises(DatasetError, match="chain of checkpoint"):
        check_step_proof(relabelled, chain_at(5))
    # The same leaf under another number: only opening it shows the lie.
    shifted = {**proof, "step": 3, "checkpoint": 6}
    assert not check_step_proof({**shifted, "sequences": None}, chain_at(5)).leaf_opened
    with pytest.raises(DatasetError, match="leaf, from the step and the sequence digests"):
        check_step_proof(shifted, chain_at(5))


def test_digests_that_the_run_did_not_read_give_no_proof():
    with pytest.raises(DatasetError, match="the run did not read these rows"):
        prove_step(LOG, ORDER, 2, sequences=DIGESTS[3])
    with pytest.raises(DatasetError, match="cut short"):
        prove_step(LOG[:-1], ORDER, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": "order-proof-v2"}, "schema: expected order-proof-v1"),
        ({"more": 1}, "keys of the proof"),
        ({"step": -1}, "0 <= step < checkpoint"),
        ({"step": "2"}, "0 <= step < checkpoint"),
        ({"checkpoint": 6}, "number of digests in following: expected 3, found 2"),
        ({"following": None}, "number of digests in following"),
        ({"following": "xy"}, "number of digests in following"),
        ({"preceding": []}, "number of digests in preceding: expected 2, found 0"),
        ({"sequences": ["00" * 32]}, "number of digests in sequences: expected 3, found 1"),
        ({"leaf": "0" * 63}, "leaf: expected 64 hex digits"),
        ({"leaf": 5}, "leaf: expected 64 hex digits"),
        ({"chain": "AB" * 32}, "chain: expected 64 hex digits"),
        ({"order": None}, "keys of the order"),
        ({"order": {**ORDER, "batch_size": 0}}, "batch_size: expected an integer >= 1"),
        ({"order": {**ORDER, "overlay": "x"}}, "overlay: expected 64 hex digits"),
        ({"order": {**ORDER, "order": 1}}, "name of an order"),
    ],
)
def test_malformed_proofs_are_refused(change, message):
    proof = {**prove_step(LOG, ORDER, 2, 5), **change}
    with pytest.raises(DatasetError, match=message):
        load_proof(canonical_json(proof))


def test_only_canonical_json_is_read():
    proof = prove_step(LOG, ORDER, 2, 5)
    assert load_proof(canonical_json(proof) + b"\n") == proof
    for raw in (b"", b"[", b"[]", b"1.5", json.dumps(proof).encode(), b"\xff"):
        with pytest.raises(DatasetError, match="expected"):
            load_proof(raw)
