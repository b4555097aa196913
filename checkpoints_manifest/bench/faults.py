"""Metadata of suites with the faults that published suites had, and of one without.

Each is a whole repository as an audit sees it: the 154 revisions of a Pythia model, one shard or
three, with digests made from names. Sources are public threads, by repository and number.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace

from checkpoints_manifest.audit.schedule import KNOWN
from checkpoints_manifest.audit.snapshot import Files, RepoSnapshot
from checkpoints_manifest.gitobjects import blob_id
from checkpoints_manifest.schedule import checkpoint_steps

STEPS = checkpoint_steps(*KNOWN["pythia"])
LAST = f"step{STEPS[-1]}"
_SHARD_BYTES = 1 << 30
Revisions = dict[str, dict[str, tuple[int, str]]]
_SMALL: dict[str, dict[str, object]] = {
    "config.json": {"model_type": "gpt_neox", "rotary_pct": 0.25, "vocab_size": 50304},
    "generation_config.json": {"bos_token_id": 0, "eos_token_id": 0},
    "tokenizer.json": {"model": {"type": "BPE"}},
    "tokenizer_config.json": {"tokenizer_class": "GPTNeoXTokenizer"},
    "special_tokens_map.json": {"eos_token": "<|endoftext|>"},
}


@dataclass(frozen=True)
class Fault:
    """A published fault.

    Attributes:
        where: the public thread.
        build: the repositories that have it.
        kinds: findings that must come, and no others.
        what: a line for the table.
    """

    what: str
    where: str
    build: Callable[[], list[RepoSnapshot]]
    kinds: frozenset[str]


def clean(name: str = "org/clean", shards: int = 1) -> RepoSnapshot:
    """A suite without a fault, for the control."""
    small = {path: _json(value) for path, value in _SMALL.items()}
    texts = {blob_id(data): data for data in small.values()}
    if shards > 1:
        names = [_shard(number, shards) for number in range(shards)]
        small["model.safetensors.index.json"] = _json({"weight_map": {n: n for n in names}})
        texts |= {blob_id(data): data for data in small.values()}
    revisions: Revisions = {}
    for step in STEPS:
        files = {path: (len(data), blob_id(data)) for path, data in small.items()}
        for number in range(shards):
            content = f"{name} step {step} shard {number}"
            files[_shard(number, shards)] = (_SHARD_BYTES, _sha256(content.encode()))
        revisions[f"step{step}"] = files
    revisions["main"] = dict(revisions[LAST])
    commits = {name: _sha256(f"commit {name}".encode())[:40] for name in revisions}
    titles = {f"step{step}": f"Upload step{step}" for step in STEPS}
    return RepoSnapshot(name, revisions, commits, titles, texts)


def edited(change: Callable[[Revisions], object], shards: int = 1) -> list[RepoSnapshot]:
    """A suite whose revisions were changed."""
    whole = clean("org/suite", shards)
    revisions = {name: dict(files) for name, files in whole.revisions.items()}
    change(revisions)
    return [replace(whole, revisions=revisions)]


def _json(value: object) -> bytes:
    return json.dumps(value).encode()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _shard(number: int, shards: int) -> str:
    if shards == 1:
        return "model.safetensors"
    return f"model-{number + 1:05}-of-{shards:05}.safetensors"


def _copy(revisions: Revisions, source: str, targets: list[str], path: str | None = None) -> None:
    for target in targets:
        for name in [path] if path else [n for n in revisions[source] if "safetensors" in n]:
            revisions[target][name] = revisions[source][name]


def _final_era(revisions: Revisions) -> None:
    """76 revisions as main, ten as a second file, step143000 among those: 68 unique."""
    names = [f"step{step}" for step in STEPS]
    early = [name for name in names if int(name[4:]) <= 53_000]
    late = [name for name in names if int(name[4:]) > 53_000]
    _copy(revisions, late[-2], [*early, *late[: 75 - len(early)], "main"])
    _copy(revisions, LAST, late[-12:-3])


def _odd_small_file(revisions: Revisions, path: str, value: object, targets: list[str]) -> None:
    data = _json(value)
    for target in targets:
        revisions[target][path] = (len(data), blob_id(data))


def _broken_index() -> list[RepoSnapshot]:
    (whole,) = edited(lambda r: None, shards=3)
    data = _json({"weight_map": {"a": "model-00004-of-00004.safetensors"}})
    files: Files = {
        **whole.revisions["step9000"],
        "model.safetensors.index.json": (len(data), blob_id(data)),
    }
    texts = {**whole.texts, blob_id(data): data}
    return [replace(whole, revisions={**whole.revisions, "step9000": files}, texts=texts)]


def _renamed() -> list[RepoSnapshot]:
    """Half as many, twice as large steps, renamed to those of the others; titles stayed."""
    (whole,) = edited(lambda r: None)
    titles = {
        name: f"Upload step{int(name[4:]) // 2}" for name in whole.revisions if name != "main"
    }
    return [replace(whole, titles={**titles, "step0": "Upload step0", "step1": "Upload step1"})]


def _lineage() -> list[RepoSnapshot]:
    """Another step 0 under the weights that descend from the first one's."""
    one = clean("org/suite")
    files = dict(one.revisions["step0"])
    files["model.safetensors"] = (_SHARD_BYTES, _sha256(b"another start"))
    return [one, replace(one, name="org/suite-weight-seed1",
                         revisions={**one.revisions, "step0": files})]  # fmt: skip


def _reversed_history() -> list[RepoSnapshot]:
    (whole,) = edited(lambda r: None)
    order = [whole.commits[f"step{step}"] for step in STEPS]
    order[40], order[41] = order[41], order[40]
    return [replace(whole, history=tuple(order))]


def _fault(what: str, where: str, build: Callable[[], list[RepoSnapshot]], *kinds: str) -> Fault:
    return Fault(what, where, build, frozenset(kinds))


_ZEROS = 1 << 20
FAULTS = {
    "final weights under 86 of 154 steps": _fault(
        "86 of 154 revisions serve weights of the end of training; main is not the last step",
        "pythia#205, #195", lambda: edited(_final_era), "duplicate-weights", "main-not-last",
    ),
    "duplicate branch": _fault(
        "one step is a later step, uploaded under its name",
        "pythia#108", lambda: edited(lambda r: _copy(r, "step130000", ["step32000"])),
        "duplicate-weights",
    ),
    "three identical branches": _fault(
        "three branches, one file", "OLMo#915",
        lambda: edited(lambda r: _copy(r, "step7000", ["step8000", "step9000"])),
        "duplicate-weights",
    ),
    "one shard swapped": _fault(
        "two steps serve the first shard of the last one: a model of two halves", "pythia#206",
        lambda: edited(
            lambda r: _copy(r, LAST, ["step50000", "step58000"], _shard(0, 3)), shards=3
        ),
        "shared-shard",
    ),
    "step0 = step2": _fault(
        "steps 0 and 2 are one file", "pythia#198",
        lambda: edited(lambda r: _copy(r, "step0", ["step2"])), "duplicate-weights",
    ),
    "wrong initial lineage": _fault(
        "a variant's later steps do not descend from its own step 0", "pythia#203", _lineage,
        "wrong-lineage",
    ),
    "missing branch": _fault(
        "branches that were never uploaded", "pythia#107, #94, #141",
        lambda: edited(lambda r: [r.pop(name) for name in ("step4000", "step32000")]),
        "missing-step",
    ),
    "branch without weights": _fault(
        "a branch with a configuration and nothing to load", "pythia#202",
        lambda: edited(lambda r: r["step40000"].pop("model.safetensors")), "unreadable-step",
    ),
    "main without weights": _fault(
        "main holds .gitattributes only", "pythia seeds, as published in 2024",
        lambda: edited(lambda r: r.update({"main": {".gitattributes": (1, "0" * 40)}})),
        "main-not-last",
    ),
    "renamed steps": _fault(
        "step1000 is optimizer step 500", "pythia v0 model cards", _renamed, "renamed-step"
    ),
    "zeroed order file": _fault(
        "the file that states the token order is zeros", "pythia#190 (most of it)",
        lambda: edited(
            lambda r: r["main"].update({"run/order.log": (_ZEROS, _sha256(bytes(_ZEROS)))})
        ),
        "zeroed-file",
    ),
    "missing shard": _fault(
        "an upload that stopped half-way", "pythia#141",
        lambda: edited(lambda r: r["step9000"].pop(_shard(1, 3)), shards=3),
        "unreadable-step", "odd-size",
    ),
    "broken shard index": _fault(
        "an index that names shards of another export", "seeded", _broken_index,
        "unreadable-step",
    ),
    "truncated weights": _fault(
        "a file that is a third shorter", "seeded",
        lambda: edited(
            lambda r: r["step16"].update(
                {"model.safetensors": (_SHARD_BYTES * 2 // 3, _sha256(b"cut"))}
            )
        ),
        "odd-size",
    ),
    "tokenizer drift": _fault(
        "a tokenizer class that older tools refuse, in some revisions", "transformers#47553",
        lambda: edited(
            lambda r: _odd_small_file(
                r, "tokenizer_config.json", {"tokenizer_class": "TokenizersBackend"},
                [f"step{step}" for step in STEPS[-9:]],
            )
        ),
        "tokenizer-drift",
    ),
    "configuration drift": _fault(
        "a rotary share that falls back to its default in one revision", "seeded",
        lambda: edited(
            lambda r: _odd_small_file(
                r, "config.json", {**_SMALL["config.json"], "rotary_pct": 1.0}, ["step512"]
            )
        ),
        "config-drift",
    ),
    "odd names": _fault(
        "padded numbers, another word, weights in a side branch", "seeded",
        lambda: edited(
            lambda r: r.update(
                {"step0064": r["step64"], "checkpoint-128": r["step128"], "fix": r["step256"]}
            )
        ),
        "odd-name", "other-branch",
    ),
    "commits out of order": _fault(
        "two steps were committed the wrong way round", "seeded", _reversed_history, "wrong-order"
    ),
}  # fmt: skip
