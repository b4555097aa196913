"""order-proof-v1: what a run read at one step, shown without the rest of its log.

A proof carries the leaf of step t, the chain before it and the leaves that follow up to a
checkpoint. Whoever trusts the chain of that checkpoint can check the leaf, and with the ids of the
batch (or of one row and the digests of the others) what was read.

A checked proof shows, as surely as SHA-256: the run whose checkpoint n carries C_{n-1} has this
leaf as the (n-1-t)-th before its newest; with ``sequences`` also that the leaf is of step t and of
these B rows; with ids also that the rows are these ids; with ``preceding`` also that the whole
chain starts from this order (index, S, B, order, seed, overlay).

Does not show: that the gradient used the batch (replaying does), or anything about a checkpoint
whose chain the reader does not trust. Specification with vectors: ``docs/spec/order-proof.md``.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from data_pipeline.canonical import canonical_json, is_sha256_hex
from data_pipeline.digests import (
    chain_next,
    chain_over,
    chain_start,
    leaf,
    sequence_digests,
    split_leaves,
)
from data_pipeline.errors import DatasetError

if TYPE_CHECKING:
    from data_pipeline.batches import BatchReader

SCHEMA = "order-proof-v1"
ORDER_KEYS = ("batch_size", "index_digest", "order", "overlay", "seed", "seq_len")
_KEYS = (
    "schema", "order", "step", "chain_before", "leaf", "chain", "checkpoint", "following",
    "preceding", "sequences",
)  # fmt: skip

Proof = dict[str, Any]
Ids = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Shown:
    """What a checked proof shows about ``step``, beyond its leaf.

    ``rows`` are those whose ids were checked; ``leaf_opened`` says that the leaf was recomputed
    from its sequence digests, ``order_bound`` that the chain was followed from C_{-1}.
    """

    step: int
    checkpoint: int
    rows: tuple[int, ...]
    leaf_opened: bool
    order_bound: bool


def prove_step(
    log: bytes,
    order: Mapping[str, Any],
    step: int,
    checkpoint: int | None = None,
    sequences: Sequence[bytes] | None = None,
    from_start: bool = False,
) -> Proof:
    """Make a proof from a run's log.

    Args:
        log: ``order.log``.
        order: What C_{-1} names: the arguments of ``digests.chain_start`` by name.
        step: The step to prove, 0-based.
        checkpoint: A checkpoint after it (the state after that many steps); the end of the log by
            default.
        sequences: The B sequence digests of the step, to open its leaf.
        from_start: Carry the leaves before the step too, which binds the order.

    Returns:
        A record for ``canonical_json``: 64 bytes of hexadecimal for every leaf it carries.

    Raises:
        DatasetError: A log cut short, a step or checkpoint outside it, or sequence digests that do
            not give its leaf.
    """
    leaves = _leaves(log)
    checkpoint = len(leaves) if checkpoint is None else checkpoint
    if not 0 <= step < checkpoint <= len(leaves):
        raise DatasetError(
            f"expected 0 <= step < checkpoint <= {len(leaves)} (the steps in order.log), found "
            f"step {step} and checkpoint {checkpoint}; checkpoint n holds steps 0 to n-1"
        )
    if sequences is not None and leaf(step, sequences) != leaves[step]:
        raise DatasetError(
            f"step {step}: expected sequence digests that give the leaf {leaves[step].hex()}, "
            f"found {leaf(step, sequences).hex()}: the run did not read these rows"
        )
    before = chain_over(start_of(order), leaves[:step])
    return {
        "schema": SCHEMA,
        "order": {key: order[key] for key in ORDER_KEYS},
        "step": step,
        "chain_before": before.hex(),
        "leaf": leaves[step].hex(),
        "chain": chain_next(before, leaves[step]).hex(),
        "checkpoint": checkpoint,
        "following": [one.hex() for one in leaves[step + 1 : checkpoint]],
        "preceding": [one.hex() for one in leaves[:step]] if from_start else None,
        "sequences": None if sequences is None else [one.hex() for one in sequences],
    }


def check_step_proof(
    proof: Mapping[str, Any],
    chain_at_checkpoint: bytes,
    ids: Ids | None = None,
    rows: Sequence[int] | None = None,
) -> Shown:
    """Check a proof against the chain that a trusted checkpoint carries.

    Args:
        proof: The record.
        chain_at_checkpoint: C_{n-1}, from the manifest of checkpoint n = ``proof["checkpoint"]``.
        ids: Ids that the step is said to have read: [B, S+1], or [len(rows), S+1].
        rows: The rows that ``ids`` are; all of them by default.

    Returns:
        What is shown now.

    Raises:
        DatasetError: Anything does not fit; the message says what was expected and found.
        ValueError: Ids of another shape, or some rows without the digests of the others.
    """
    parsed = parse_proof(proof)
    order_bound = parsed["preceding"] is not None
    if order_bound:
        start = chain_over(start_of(parsed["order"]), _bytes(parsed["preceding"]))
        _expect(
            "chain_before, from the order and the preceding leaves",
            start.hex(),
            parsed["chain_before"],
        )
    own = bytes.fromhex(parsed["leaf"])
    chain = chain_next(bytes.fromhex(parsed["chain_before"]), own)
    _expect("chain, from chain_before and leaf", chain.hex(), parsed["chain"])
    end = chain_over(chain, _bytes(parsed["following"]))
    _expect(f"chain of checkpoint {parsed['checkpoint']}", chain_at_checkpoint.hex(), end.hex())
    digests = parsed["sequences"]
    if digests is not None:
        opened = leaf(parsed["step"], _bytes(digests))
        _expect("leaf, from the step and the sequence digests", opened.hex(), parsed["leaf"])
    shown = _check_ids(parsed, ids, rows) if ids is not None else ()
    opened_leaf = digests is not None or len(shown) == parsed["order"]["batch_size"]
    return Shown(parsed["step"], parsed["checkpoint"], shown, opened_leaf, order_bound)


def _check_ids(proof: Proof, ids: Ids, rows: Sequence[int] | None) -> tuple[int, ...]:
    """Compare ids with the leaf (all rows) or with the sequence digests (some rows)."""
    batch_size, width = proof["order"]["batch_size"], proof["order"]["seq_len"] + 1
    chosen = tuple(range(batch_size)) if rows is None else tuple(rows)
    if ids.shape != (len(chosen), width):
        raise ValueError(f"expected ids [{len(chosen)}, {width}], found {list(ids.shape)}")
    found = sequence_digests(ids)
    if chosen == tuple(range(batch_size)):
        expected = leaf(proof["step"], found).hex()
        _expect("leaf, from the step and the ids", expected, proof["leaf"])
        return chosen
    if proof["sequences"] is None:
        raise ValueError(
            f"expected ids of all {batch_size} rows, found {len(chosen)}: to show some rows the "
            "proof must carry the digests of all (`sequences`)"
        )
    for row, digest in zip(chosen, found, strict=True):
        if not 0 <= row < batch_size:
            raise ValueError(f"expected rows in [0, {batch_size}), found {row}")
        _expect(f"sequence digest of row {row}", digest.hex(), proof["sequences"][row])
    return chosen


def start_of(order: Mapping[str, Any]) -> bytes:
    """Return C_{-1} of a record with the keys ``ORDER_KEYS``."""
    return chain_start(**{key: order[key] for key in ORDER_KEYS})


def order_of(reader: "BatchReader") -> dict[str, Any]:
    """Return what the C_{-1} of a reading names: a record with the keys ``ORDER_KEYS``."""
    return {
        "batch_size": reader.batch_size,
        "index_digest": reader.stream.index.digest,
        "order": reader.order.name,
        "overlay": None if reader.overlay is None else reader.overlay.digest,
        "seed": reader.seed,
        "seq_len": reader.seq_len,
    }


def load_proof(raw: bytes) -> Proof:
    """Read a proof file.

    Raises:
        DatasetError: Not canonical JSON, or not a proof.
    """
    try:
        proof = json.loads(raw)
        canonical = canonical_json(proof)
    except (ValueError, TypeError, RecursionError) as error:
        raise DatasetError(f"expected a proof in canonical JSON, found {error}") from None
    if canonical != raw.removesuffix(b"\n"):
        raise DatasetError("expected a proof in canonical JSON, found another encoding of it")
    return parse_proof(proof)


def parse_proof(proof: Any) -> Proof:
    """Check the form of a proof, not yet what it says.

    Raises:
        DatasetError: A key, type or length that is not the one of the schema.
    """
    found = sorted(proof) if isinstance(proof, Mapping) else type(proof).__name__
    _expect("keys of the proof", sorted(_KEYS), found)
    _expect("schema", SCHEMA, proof["schema"])
    order = parse_order(proof["order"])
    step, checkpoint = proof["step"], proof["checkpoint"]
    if type(step) is not int or type(checkpoint) is not int or not 0 <= step < checkpoint:
        raise DatasetError(f"proof: expected 0 <= step < checkpoint, found {step}, {checkpoint}")
    lengths = {
        "following": checkpoint - 1 - step,
        "preceding": step,
        "sequences": order["batch_size"],
    }
    for key in ("chain_before", "leaf", "chain"):
        _expect_digest(key, proof[key])
    for key, length in lengths.items():
        if proof[key] is None and key != "following":
            continue
        size = len(proof[key]) if isinstance(proof[key], list) else repr(proof[key])
        _expect(f"number of digests in {key}", length, size)
        for one in proof[key]:
            _expect_digest(key, one)
    return dict(proof)


def parse_order(order: Any) -> dict[str, Any]:
    """Check the record that C_{-1} is the digest of.

    Raises:
        DatasetError: Another key or type.
    """
    found = sorted(order) if isinstance(order, Mapping) else type(order).__name__
    _expect("keys of the order", sorted(ORDER_KEYS), found)
    _expect_digest("index_digest", order["index_digest"])
    if order["overlay"] is not None:
        _expect_digest("overlay", order["overlay"])
    for key, low in (("seed", 0), ("seq_len", 1), ("batch_size", 1)):
        if type(order[key]) is not int or order[key] < low:
            raise DatasetError(f"{key}: expected an integer >= {low}, found {order[key]!r}")
    if type(order["order"]) is not str:
        raise DatasetError(f"order: expected the name of an order, found {order['order']!r}")
    return dict(order)


def _expect_digest(what: str, found: object) -> None:
    if not is_sha256_hex(found):
        raise DatasetError(f"{what}: expected 64 hex digits, found {str(found)[:80]!r}")


def _expect(what: str, expected: object, found: object) -> None:
    if found != expected:
        raise DatasetError(f"{what}: expected {expected}, found {found}")


def _bytes(digests: Sequence[str]) -> list[bytes]:
    return [bytes.fromhex(one) for one in digests]


def _leaves(log: bytes) -> list[bytes]:
    try:
        return split_leaves(log)
    except ValueError as error:
        raise DatasetError(f"order.log: {error}") from None
