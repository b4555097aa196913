"""The files of main: the last step's, ledger, where each step lies, card, the run's logs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from checkpoints_manifest.card import FIGURE, CardFacts, loss_figure, model_card
from checkpoints_manifest.published import (
    COMMITS,
    LEDGER,
    PUBLICATION,
    CommitLine,
    publication_bytes,
)
from checkpoints_manifest.run_files import SIDE_FILES, RunFiles
from checkpoints_manifest.store import MODEL, checkpoint_dir
from checkpoints_manifest.tensor_digest import read_header
from data_pipeline.canonical import canonical_json, sha256_file


def main_files(
    run: RunFiles,
    lines: Sequence[CommitLine],
    repo_id: str,
    licence: str,
    dataset: str | None,
    directory: Path,
) -> dict[str, Path]:
    """Writes what main must hold into a new directory; returns path in the repository to file.

    Args:
        run: the run.
        lines: of `commits.jsonl`; steps of the ledger that they lack are left out.
        repo_id: org/name.
        licence: for the card.
        dataset: for the card.
        directory: created.
    """
    steps = {line.step for line in lines}
    records = [record for record in run.records if record["step"] in steps]
    last = records[-1]
    run.export(last, directory, with_state=False)
    losses = [(step, loss) for step, loss in run.losses() if step <= last["step"]]
    facts = CardFacts(
        repo_id, records, lines, _parameters(run, last["step"]),
        dict(run.config["rung"]["model"]["hf"]), losses, _sources(run),
        dict(run.index.get("policies", {})), licence, dataset,
    )  # fmt: skip
    (directory / "README.md").write_text(model_card(facts))
    if losses:
        title = f"{repo_id}: {losses[-1][1]:.3f} at step {losses[-1][0]}"
        (directory / FIGURE).write_bytes(loss_figure(losses, title))
    (directory / LEDGER).write_bytes(b"".join(canonical_json(r) + b"\n" for r in records))
    (directory / COMMITS).write_bytes(b"".join(line.to_bytes() + b"\n" for line in lines))
    (directory / "run").mkdir()
    for name in SIDE_FILES:
        (directory / "run" / name).write_bytes(run.log_until(name, last["step"]))
    files = {
        str(path.relative_to(directory)): path
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }
    stated = {name: (path.stat().st_size, sha256_file(path)) for name, path in files.items()}
    (directory / PUBLICATION).write_bytes(publication_bytes(stated))
    return {**files, PUBLICATION: directory / PUBLICATION}


def _parameters(run: RunFiles, step: int) -> int:
    entries, _ = read_header(checkpoint_dir(run.directory, step) / MODEL)
    return sum(math.prod(shape) for _, shape, _, _ in entries.values())


def _sources(run: RunFiles) -> list[str]:
    sources = run.index.get("sources", [])
    return [f"{source['name']} {source.get('version', '')}".strip() for source in sources]
