"""Verifies a run directory, or a directory that was pulled from a Hub. Needs Python 3.11, no more.

    python standalone.py DIR [--level metadata|bytes|tensors|chain] [--json]

One file, standard library only, so that it can be read in one sitting and run anywhere; it shares
no code with the package that wrote the checkpoints. Specifications: docs/spec/manifest.md,
tensor-digest.md and order.md. Exit status: 0 everything is as stated, 1 findings, 2 bad usage.

Run directory: `manifest.jsonl`, `config.json`, `numerics.json`, `order.log`, `metrics.jsonl`,
`checkpoints/step{N}/`; all of it must be there, but for what `pulled.json` says was not pulled.
Revisions downloaded by hand: `main/` (the branch main: `manifest.jsonl`, `run/`) and `step{N}/`
beside it; what is there is checked, the rest is counted.
"""

import argparse
import hashlib
import json
import re
import struct
import sys
from pathlib import Path
from typing import Any

Record = dict[str, Any]
Place = tuple[str, ...]
Tensor = tuple[str, str, list[int], int, int]  # name, dtype, shape, first byte, end
Verdict = tuple[int, list[str], list[str]]  # checkpoints looked at, findings, notes
LEVELS = ("metadata", "bytes", "tensors", "chain")
MODEL, OPTIMIZER, STATE = "model.safetensors", "optimizer.safetensors", "trainer_state.json"
MOMENTS = ("exp_avg", "exp_avg_sq")
VERSIONS = ("manifest-v1",)
DTYPE_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip
REMEDY = (
    "restore the checkpoint from a copy, or `tripod rewind` the run to the one before and resume"
)
MAX_HEADER, BLOCK, LEAF = 100_000_000, 1 << 20, 32


class Wrong(Exception):
    """Something is not as stated."""


# Canonical JSON and records ----------------------------------------------------------------------


def canonical(obj: Any) -> bytes:
    """Bytes of a record: keys sorted, no spaces, UTF-8, no floats."""
    refuse_floats(obj)
    text = json.dumps(
        obj, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return text.encode()


def refuse_floats(obj: Any) -> None:
    """Raises TypeError where a float stands."""
    if isinstance(obj, float):
        raise TypeError(f"canonical JSON has no floats: found {obj!r}")
    for item in obj.values() if isinstance(obj, dict) else obj if isinstance(obj, list) else ():
        refuse_floats(item)


def sha256(data: bytes) -> str:
    """Hexadecimal SHA-256."""
    return hashlib.sha256(data).hexdigest()


def is_text(value: Any) -> bool:
    """A string that says something."""
    return type(value) is str and value != ""


def is_count(value: Any) -> bool:
    """A whole number from 0 on."""
    return type(value) is int and value >= 0


def is_digest(value: Any) -> bool:
    """64 lower-case hexadecimal digits."""
    return type(value) is str and re.fullmatch("[0-9a-f]{64}", value) is not None


def is_name(value: Any) -> bool:
    """A file name that stays in its directory."""
    return type(value) is str and re.fullmatch("[A-Za-z0-9_][A-Za-z0-9._-]*", value) is not None


def is_options(value: Any) -> bool:
    """Strings by name."""
    return type(value) is dict and all(type(item) is str for item in value.values())


ENGINE = {
    "name": is_text,
    "promise": lambda value: value in ("elastic", "fixed-layout"),
    "since": is_count,
}
ENGINE_OPTIONAL = {
    "version": is_text,
    "zero_stage": is_count,
    "offload_optimizer": lambda value: type(value) is bool,
    "tensor_parallel": lambda value: is_count(value) and value > 0,
    "options": is_options,
    "ranks": lambda value: is_count(value) and value > 0,
}


def is_engine(value: Any) -> bool:
    """Which engine computed a checkpoint."""
    return not wrong_places(value, ENGINE, optional=ENGINE_OPTIONAL.items())


def are_fields(value: Any) -> bool:
    """Names of the fields that a change of numerics changed, each with both values."""
    return (
        type(value) is dict
        and value != {}
        and all(type(pair) is dict and set(pair) == {"from", "to"} for pair in value.values())
        and all(
            one is None or type(one) in (str, int) for v in value.values() for one in v.values()
        )
    )


FILE = {"path": is_name, "size": is_count, "sha256": is_digest}
RECORD = {
    "schema": lambda value: value in VERSIONS,
    "suite": is_text,
    "rung": is_text,
    "step": is_count,
    "tokens": is_count,
    "files": [FILE],
    "weights_root": is_digest,
    "state_roots": {"exp_avg": is_digest, "exp_avg_sq": is_digest},
    "order": {"name": is_text, "index_digest": is_digest, "chain": is_digest},
    "numerics": is_digest,
    "config": is_digest,
    "environment": is_digest,
    "metrics": is_digest,
    "previous": lambda value: value is None or is_digest(value),
}
CHANGE = {"step": is_count, "from": is_digest, "to": is_digest, "fields": are_fields}
OPTIONAL = {
    "same_weights_reason": is_text,
    "numerics_changes": [CHANGE],
    "engine": is_engine,
}


def wrong_places(value: Any, wanted: Any, place: Place = (), optional: Any = ()) -> list[Place]:
    """Where a value is not as wanted: tuples of keys and positions."""
    if isinstance(wanted, list):
        if type(value) is not list or not value:
            return [place]
        places = (wrong_places(v, wanted[0], (*place, str(i))) for i, v in enumerate(value))
        return [one for found in places for one in found]
    if isinstance(wanted, dict):
        if type(value) is not dict:
            return [place]
        known = {**wanted, **dict(optional)}
        found = [place] if set(value) - set(known) or set(wanted) - set(value) else []
        for key in set(value) & set(known):
            found += wrong_places(value[key], known[key], (*place, key))
        return found
    return [] if wanted(value) else [place]


def parse_record(data: bytes, where: str) -> Record:
    """A record from its canonical bytes."""
    try:
        record = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Wrong(f"{where} is not JSON ({error}); restore it from a copy") from error
    if not isinstance(record, dict):
        raise Wrong(f"{where} is not a record; restore it from a copy")
    try:
        again = canonical(record)
    except (TypeError, ValueError, RecursionError) as error:
        raise Wrong(f"{where}: {error}") from error
    if record.get("schema") not in VERSIONS:
        raise Wrong(
            f"{where}: expected a record of {', '.join(VERSIONS)}, found schema "
            f"{record.get('schema')!r:.100}; if a later Tripod wrote it, read it with that"
        )
    if places := sorted(wrong_places(record, RECORD, optional=OPTIONAL.items())):
        field = ".".join(places[0]) or "the record"
        raise Wrong(f"{where}: {field} is not as {record['schema']} wants it")
    if again != data:
        raise Wrong(f"{where} is not in canonical form; restore it from a copy")
    return record


def read_ledger(path: Path) -> list[Record]:
    """Every record of a ledger, oldest first."""
    *lines, torn = path.read_bytes().split(b"\n") if path.exists() else [b""]
    records: list[Record] = []
    for number, line in enumerate(lines, start=1):
        where = f"{path} line {number}"
        record = parse_record(line, where)
        previous = sha256(canonical(records[-1])) if records else None
        if record["previous"] != previous:
            raise Wrong(
                f"{where} (step {record['step']}): the ledger's chain is broken: expected "
                f"previous {previous}, found {record['previous']}; restore the ledger from a copy"
            )
        if records and record["step"] <= records[-1]["step"]:
            raise Wrong(
                f"{where}: step {record['step']} does not follow step {records[-1]['step']}"
            )
        same = [r["step"] for r in records if r["weights_root"] == record["weights_root"]]
        if same and "same_weights_reason" not in record:
            raise Wrong(
                f"{where}: step {record['step']} has the weights of step {same[0]} (root "
                f"{record['weights_root']}) and gives no same_weights_reason; two steps do not "
                "share weights by accident"
            )
        records.append(record)
    if torn:
        raise Wrong(
            f"{path} line {len(lines) + 1} is torn: it has no end; the process died while "
            "writing it. Resume the run, which mends the ledger from the checkpoint's own "
            "manifest.json"
        )
    return records


# Tensors -----------------------------------------------------------------------------------------


def read_header(path: Path) -> tuple[list[Tensor], int]:
    """[(name, dtype, shape, start, stop)] in file order, and where the tensors' bytes start."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else -1
        if not 2 <= length <= min(MAX_HEADER, size - 8):
            raise Wrong(
                f"{path}: expected a safetensors header within {size} bytes, found length {length}"
            )
        raw = file.read(length)
    try:
        header = json.loads(raw, object_pairs_hook=no_duplicates)
        metadata = header.pop("__metadata__", {})
        if type(metadata) is not dict or any(type(v) is not str for v in metadata.values()):
            raise TypeError(f"__metadata__ is not from text to text: {metadata!r:.100}")
        entries = [entry(name, item) for name, item in header.items()]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise Wrong(f"{path}: the safetensors header is broken ({error})") from error
    entries.sort(key=lambda e: e[3:])
    end = 0
    for name, dtype, shape, start, stop in entries:
        count = DTYPE_BYTES[dtype]
        for number in shape:
            count *= number
        if start != end or stop - start != count:
            raise Wrong(
                f"{path}: tensor {name!r} ({dtype}, {shape}) does not fit offsets [{start}, {stop})"
            )
        end = stop
    if end != size - 8 - length:
        raise Wrong(f"{path}: expected {end} bytes of tensors, found {size - 8 - length}")
    return entries, 8 + length


def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A dict of pairs, unless a key stands there twice."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands there twice")
    return found


def entry(name: str, item: Any) -> Tensor:
    """One tensor of a header."""
    dtype, shape, (start, stop) = item["dtype"], item["shape"], item["data_offsets"]
    name.encode()
    if type(dtype) is not str or dtype not in DTYPE_BYTES or type(shape) is not list:
        raise TypeError(f"tensor {name!r} has dtype {dtype!r} and shape {shape!r}")
    if not all(map(is_count, (*shape, start, stop))):
        raise TypeError(f"tensor {name!r} has shape {shape!r} and offsets [{start!r}, {stop!r})")
    return name, dtype, shape, start, stop


def file_digests(path: Path) -> tuple[str, dict[str, bytes]]:
    """(SHA-256 of a safetensors file, name -> leaf of each tensor)."""
    entries, base = read_header(path)
    whole, leaves = hashlib.sha256(), {}
    with path.open("rb") as file:
        whole.update(file.read(base))
        for name, dtype, shape, start, stop in entries:
            header = canonical([name, dtype, shape])
            digest = hashlib.sha256(b"tensor-digest-v1\0" + struct.pack("<Q", len(header)) + header)
            left = stop - start
            while left:
                block = file.read(min(BLOCK, left))
                if not block:
                    raise Wrong(f"{path}: ends inside tensor {name!r}")
                whole.update(block)
                digest.update(block)
                left -= len(block)
            leaves[name] = digest.digest()
    return whole.hexdigest(), leaves


def root(leaves: dict[str, bytes]) -> str:
    """Root over leaves by name."""
    digest = hashlib.sha256(b"tensor-root-v1\0")
    for name in sorted(leaves, key=str.encode):
        encoded = name.encode()
        digest.update(struct.pack("<Q", len(encoded)) + encoded + leaves[name])
    return digest.hexdigest()


def sha256_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_files(directory: Path, record: Record, level: str, with_state: bool) -> None:
    """Files of one checkpoint against its record; without state, only the weights must be there."""
    where, listed = f"step{record['step']}", sorted(item["path"] for item in record["files"])
    if listed != sorted((MODEL, OPTIMIZER, STATE)):
        raise Wrong(
            f"{where}: expected the record to list {MODEL}, {OPTIMIZER} and {STATE}, "
            f"found {', '.join(listed)}; {REMEDY}"
        )
    roots = {}
    for item in record["files"]:
        path = directory / item["path"]
        if not with_state and path.name != MODEL and not path.exists():
            continue
        if not path.is_file():
            raise Wrong(f"{where}: {path} is missing; {REMEDY}")
        stated(where, path, "size", item["size"], path.stat().st_size)
        if level == "metadata":
            continue
        leaves = check_bytes(where, path, item["sha256"], level)
        if path.name == MODEL:
            roots["weights_root"] = root(leaves)
        elif path.name == OPTIMIZER:
            for kind in MOMENTS:
                chosen = {n: leaf for n, leaf in leaves.items() if n.startswith(f"{kind}.")}
                roots[kind] = root(chosen)
    if level in ("metadata", "bytes"):
        return
    expected = {"weights_root": record["weights_root"], **record["state_roots"]}
    for key in ("weights_root", *MOMENTS):
        if key in roots:
            stated(where, directory, key, expected[key], roots[key])


def check_bytes(where: str, path: Path, expected: str, level: str) -> dict[str, bytes]:
    """Compares a file's SHA-256; returns its tensors' leaves."""
    if level == "bytes" or path.name == STATE:
        stated(where, path, "sha256", expected, sha256_file(path))
        return {}
    try:
        found, leaves = file_digests(path)
    except Wrong:
        stated(where, path, "sha256", expected, sha256_file(path))
        raise
    stated(where, path, "sha256", expected, found)
    return leaves


def stated(where: str, path: Path, key: str, expected: Any, found: Any) -> None:
    """Raises unless what was found is what was expected."""
    if found != expected:
        raise Wrong(f"{where}: {path}: expected {key} {expected}, found {found}; {REMEDY}")


# Order, metrics, side files ----------------------------------------------------------------------


def check_order(side: Path, records: list[Record]) -> list[str]:
    """The token order: leaves in order.log chain to what each record states."""
    try:
        if not (side / "config.json").exists():
            raise ValueError("no such file")
        data = json.loads((side / "config.json").read_bytes())["data"]
        names = ("batch_size", "index_digest", "order", "overlay", "seed", "seq_len")
        chain = hashlib.sha256(b"chain-v1\0" + canonical({n: data[n] for n in names})).digest()
        batch_tokens = data["seq_len"] * data["batch_size"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        return [f"{side / 'config.json'} does not name the token order: {error!r}"]
    log = (side / "order.log").read_bytes() if (side / "order.log").exists() else b""
    done = 0
    for record in records:
        step = record["step"]
        if len(log) < step * LEAF:
            return [
                f"step{step}: order.log holds {len(log) // LEAF} steps; expected at least {step}"
            ]
        for index in range(done, step):
            chain = hashlib.sha256(chain + log[index * LEAF : (index + 1) * LEAF]).digest()
        done = step
        wanted = {
            "order chain": (record["order"]["chain"], chain.hex()),
            "order name": (record["order"]["name"], data["order"]),
            "index digest": (record["order"]["index_digest"], data["index_digest"]),
            "tokens": (record["tokens"], step * batch_tokens),
        }
        for name, (said, found) in wanted.items():
            if said != found:
                return [
                    f"step{step}: the record carries {name} {said}; config.json and order.log "
                    f"give {found}"
                ]
    return []


def check_metrics(side: Path, records: list[Record]) -> list[str]:
    """The first `step` lines of metrics.jsonl."""
    path = side / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    digest, done = hashlib.sha256(), 0
    for record in records:
        step = record["step"]
        digest.update(b"".join(lines[done:step]))
        done = step
        if len(lines) < step or digest.hexdigest() != record["metrics"]:
            return [
                f"step{step}: expected the first {step} lines of metrics.jsonl to have sha256 "
                f"{record['metrics']}, found {digest.hexdigest()}"
            ]
    return []


def check_changes(records: list[Record]) -> list[str]:
    """Whether every change of the numerics record is stated, and follows the one before."""
    findings, now, low = [], None, 0
    for record in records:
        step, changes = record["step"], record.get("numerics_changes", [])
        if now is None:
            now = changes[0]["from"] if changes else record["numerics"]
        for change in changes:
            if change["from"] != now:
                findings.append(
                    f"step{step}: a change of numerics is stated from {change['from']}, but the "
                    f"steps before it were computed under {now}"
                )
            if not low <= change["step"] < step:
                findings.append(
                    f"step{step}: a change of numerics is stated after step {change['step']}; "
                    f"expected one in [{low}, {step})"
                )
            now, low = change["to"], change["step"]
        if now != record["numerics"]:
            findings.append(
                f"step{step}: its numerics record is {record['numerics']}, that of the steps "
                f"before it {now}, and no accepted change says so"
            )
        now, low = record["numerics"], step
    return findings


def check_side_files(side: Path, records: list[Record]) -> list[str]:
    """Digests of configuration and numerics in the newest record."""
    findings = []
    for key in ("config", "numerics"):
        path = side / f"{key}.json"
        found = sha256(path.read_bytes()) if path.exists() else "no file"
        if found != records[-1][key]:
            findings.append(
                f"step{records[-1]['step']}: expected {path.name} with sha256 {records[-1][key]}, "
                f"found {found}"
            )
    return findings


# A directory -------------------------------------------------------------------------------------


def verify(directory: Path | str, level: str = "chain") -> Verdict:
    """Verifies a run directory, or a directory of downloaded revisions.

    Returns:
        (checkpoints looked at, findings, notes on what was not there to be checked).
    """
    directory = Path(directory)
    revisions = (directory / "main").is_dir() and not (directory / "manifest.jsonl").exists()
    ledger = (directory / "main" if revisions else directory) / "manifest.jsonl"
    try:
        records = read_ledger(ledger)
        pulled = read_pulled(directory / "pulled.json")
    except Wrong as error:
        return 0, [str(error)], []
    if not records:
        return 0, [f"{ledger} holds no checkpoint; train the run first"], []
    if revisions:
        return check_revisions(directory, records, level)
    steps = directory / "checkpoints"
    here = [r for r in records if pulled is None or r["step"] in pulled[0]]
    findings = []
    for record in here:
        with_state = pulled is None or record["step"] in pulled[1]
        findings += check_one(steps, record, "manifest.json", level, with_state)
    findings += unlisted(steps, records) + check_run(directory, records, level)
    return len(here), findings, not_here(pulled, len(records) - len(here))


def check_revisions(directory: Path, records: list[Record], level: str) -> Verdict:
    """As `verify`, for revisions that were downloaded by hand."""
    here = [r for r in records if (directory / f"step{r['step']}").exists()]
    findings = []
    for record in here:
        findings += check_one(directory, record, "checkpoint_manifest.json", level, False)
    findings += unlisted(directory, records)
    notes = [f"not downloaded: {len(records) - len(here)} steps"] * (len(here) < len(records))
    side = directory / "main" / "run"
    if not side.is_dir():
        return len(here), findings, [*notes, "not downloaded: main/run, so order was not checked"]
    return len(here), findings + check_run(side, records, level), notes


def check_one(steps: Path, record: Record, own: str, level: str, with_state: bool) -> list[str]:
    """One checkpoint; `own` names its copy of its record."""
    place = steps / f"step{record['step']}"
    try:
        check_files(place, record, level if level != "chain" else "tensors", with_state)
        copy = place / own
        if not copy.is_file() or copy.read_bytes() != canonical(record):
            raise Wrong(f"step{record['step']}: {copy} is not the ledger's record of this step")
    except Wrong as error:
        return [str(error)]
    return []


def unlisted(steps: Path, records: list[Record]) -> list[str]:
    """Checkpoints on disk that the ledger does not name."""
    found = (re.fullmatch("step(0|[1-9][0-9]*)", path.name) for path in steps.glob("step*"))
    on_disk = {int(match[1]) for match in found if match}
    return [
        f"step{step}: {steps / f'step{step}'} is not in the ledger; resume the run, which "
        "verifies and enters it, or restore the ledger from a copy"
        for step in sorted(on_disk - {record["step"] for record in records})
    ]


def check_run(side: Path, records: list[Record], level: str) -> list[str]:
    """Order, metrics and side files."""
    chained = check_order(side, records) + check_metrics(side, records) if level == "chain" else []
    return chained + check_changes(records) + check_side_files(side, records)


def read_pulled(path: Path) -> tuple[set[int], set[int]] | None:
    """Steps that were pulled, and those of them with state; None for a run that was not pulled."""
    if not path.exists():
        return None
    try:
        facts = json.loads(path.read_bytes())
        steps, with_state = facts["steps"], facts["steps_with_state"]
        if facts["schema"] != "pulled-v1" or {type(s) for s in (*steps, *with_state)} - {int}:
            raise ValueError("other fields")
        return set(steps), set(with_state)
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise Wrong(f"{path} is not of pulled-v1; pull again ({error!r})") from error


def not_here(pulled: tuple[set[int], set[int]] | None, missing: int) -> list[str]:
    """What was not pulled."""
    if pulled is None:
        return []
    bare = len(pulled[0] - pulled[1])
    counts = ((missing, "steps of the ledger"), (bare, "pulled steps' optimizer state"))
    return [f"not pulled: {count} {what}" for count, what in counts if count]


def main(argv: list[str] | None = None) -> int:
    """Entry point; see the module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=Path)
    parser.add_argument("--level", choices=LEVELS, default="chain")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args(argv)
    checked, findings, notes = verify(arguments.directory, arguments.level)
    if arguments.json:
        print(json.dumps({"checkpoints": checked, "findings": findings, "notes": notes}))
    else:
        print(f"{'FAIL' if findings else 'ok'}  {checked} checkpoints at level {arguments.level}")
        for line in (*findings, *notes):
            print(f"    {line}")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
