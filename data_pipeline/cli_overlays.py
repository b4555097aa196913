"""`tripod overlay plan|write|show|replace`: see docs/overlays.md."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_pipeline.batches import BatchReader
from data_pipeline.canaries import CanaryPlan, describe_plan, plan_canaries
from data_pipeline.canary_study import Study
from data_pipeline.cli_reading import add_reading, open_reading
from data_pipeline.durable import write_bytes
from data_pipeline.errors import DatasetError
from data_pipeline.overlay import Overlay, binding_of, merge
from data_pipeline.replace import FILLS, replace_documents

Add = Callable[[str, Callable[[argparse.Namespace], int], str, str], argparse.ArgumentParser]


def add_commands(add: Add) -> None:
    """Add the commands of this module to the command line."""
    sub = add(
        "overlay plan",
        run_plan,
        "decide which canary is planted where, and print the digest to publish before training",
        "overlay plan study.json data --seq-len 512 --batch-size 64 --seed 0 --out plan.json",
    )
    sub.add_argument("study", type=Path, help="what to plant (docs/overlays.md)")
    add_reading(sub)
    sub.add_argument("--out", type=Path, required=True, help="file for the plan")
    sub.add_argument("--json", action="store_true", help="print the counts as JSON")

    sub = add(
        "overlay write",
        run_write,
        "check plans and overlays, join them, and write the overlay where a suite looks for it",
        "overlay write data plan.json --suite runs/nano",
    )
    sub.add_argument("dataset", help="the dataset, for its tokenizer")
    sub.add_argument("files", nargs="+", type=Path, help="plans and overlays of one reading")
    sub.add_argument("--suite", type=Path, required=True, help="suite directory")

    sub = add(
        "overlay show",
        run_show,
        "say what an overlay replaces",
        "overlay show runs/nano/overlays/3b1c....json --limit 5",
    )
    sub.add_argument("overlay", type=Path)
    sub.add_argument("--limit", type=int, default=20, help="entries to print (default: 20)")

    sub = add(
        "overlay replace",
        run_replace,
        "make an overlay that reads other texts in place of documents",
        "overlay replace texts.jsonl data --seq-len 512 --batch-size 64 --seed 0 --upto-step 1000 "
        "--suite runs/nano",
    )
    sub.add_argument(
        "texts", type=Path, help='JSON lines: {"document": number in the stream, "text": "..."}'
    )
    add_reading(sub)
    sub.add_argument("--upto-step", type=int, required=True, help="replace exposures before it")
    sub.add_argument("--from-step", type=int, default=0, help="leave earlier exposures alone")
    sub.add_argument("--fill", choices=FILLS, default="repeat", help="for shorter texts")
    sub.add_argument("--suite", type=Path, required=True, help="suite directory")


def run_plan(arguments: argparse.Namespace) -> int:
    """`tripod overlay plan`."""
    reader = _bare_reader(arguments)
    encode = reader.stream.index.tokenizer().encode
    plan = plan_canaries(Study.parse(_read_json(arguments.study)), binding_of(reader), encode)
    write_bytes(arguments.out, plan.data)
    described = describe_plan(plan)
    if arguments.json:
        print(json.dumps(described))
        return 0
    print_plan(described)
    print(f"{arguments.out}: publish its SHA-256 before training: {plan.digest}")
    return 0


def print_plan(described: dict[str, Any]) -> None:
    """Print ``describe_plan``, a line for every group and number of copies."""
    print("group                copies  canaries  planted  held out  rows     steps")
    for cell in described["groups"]:
        steps = "-" if cell["first_step"] is None else f"{cell['first_step']}..{cell['last_step']}"
        print(
            f"{cell['group']:<20} {cell['copies']:>6}  {cell['canaries']:>8}  "
            f"{cell['included']:>7}  {cell['held_out']:>8}  {cell['planted']:<8} {steps}"
        )
    print(
        f"{described['rows']:,} rows and {described['ids']:,} ids replaced, "
        f"{described['share']:.4%} of what is read in these steps"
    )


def run_write(arguments: argparse.Namespace) -> int:
    """`tripod overlay write`."""
    from data_pipeline.shards import TokenStream

    encode = TokenStream(arguments.dataset).index.tokenizer().encode
    overlays = [_load(path, encode) for path in arguments.files]
    whole = overlays[0]
    for other in overlays[1:]:
        whole = merge(whole, other)
    return _save(whole, arguments.suite)


def run_show(arguments: argparse.Namespace) -> int:
    """`tripod overlay show`."""
    overlay = Overlay.load(arguments.overlay)
    binding = overlay.binding
    print(
        f"overlay {overlay.digest}: {len(overlay.entries)} entries in "
        f"{len(overlay.positions())} rows"
    )
    print(
        f"for index {binding.index_digest}, {binding.order}, seed {binding.seed}, "
        f"S={binding.seq_len}, B={binding.batch_size}; plan {overlay.plan or 'none'}"
    )
    for entry in overlay.entries[: arguments.limit]:
        step, row = divmod(entry.position, binding.batch_size)
        print(
            f"step {step:>7}  row {row:>5}  columns {entry.column}..{entry.end - 1}  "
            f"{entry.kind} {entry.name}"
        )
    if len(overlay.entries) > arguments.limit:
        print(f"and {len(overlay.entries) - arguments.limit} more entries")
    return 0


def run_replace(arguments: argparse.Namespace) -> int:
    """`tripod overlay replace`."""
    reader = _bare_reader(arguments)
    overlay = replace_documents(
        reader.stream,
        reader.order,
        binding_of(reader),
        _read_texts(arguments.texts),
        arguments.upto_step,
        reader.stream.index.tokenizer().encode,
        arguments.fill,
        arguments.from_step,
    )
    return _save(overlay, arguments.suite)


def _bare_reader(arguments: argparse.Namespace) -> BatchReader:
    """Open a reading without overlay: an overlay is made over the order alone."""
    reader = open_reading(arguments)
    if reader.overlay is not None:
        raise DatasetError(
            "expected a reading without overlay, found one; make the new one alone and join the "
            "two with `tripod overlay write`"
        )
    return reader


def _load(path: Path, encode: Any) -> Overlay:
    record = _read_json(path)
    if isinstance(record, dict) and "study" in record:
        return CanaryPlan.load(path, encode).overlay()
    return Overlay.load(path)


def _save(overlay: Overlay, suite: Path) -> int:
    path = overlay.save(suite / "overlays")
    print(f"{path}: {len(overlay.entries)} entries; train with data.overlay={overlay.digest}")
    return 0


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise DatasetError(f"{path}: expected JSON, found {error}") from None


def _read_texts(path: Path) -> dict[int, str]:
    texts: dict[int, str] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            record = json.loads(line)
            document, text = record["document"], record["text"]
        except (ValueError, KeyError, TypeError) as error:
            raise DatasetError(
                f"{path}, line {number}: expected a document and a text, found {error!r}"
            ) from None
        if type(document) is not int or type(text) is not str or document in texts:
            raise DatasetError(
                f"{path}, line {number}: expected the number of a document once, and its new text, "
                f"found {document!r}"
            )
        texts[document] = text
    return texts
