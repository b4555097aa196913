"""The model card of a repository: what it is, how to load it, how to check it. Text and one figure.

Pure functions of the ledger, the published commits and the logs: equal inputs give equal bytes, so
that publishing again changes nothing.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from checkpoints_manifest.manifest import Record, record_digest
from checkpoints_manifest.published import CommitLine

FIGURE = "loss.svg"
_WIDTH, _HEIGHT = 6.4, 3.4


@dataclass(frozen=True)
class CardFacts:
    """Everything the card states.

    Attributes:
        repo_id: org/name.
        records: the ledger.
        lines: `commits.jsonl`.
        parameters: number of weights.
        hf: the architecture's keyword arguments.
        losses: (step, loss) of every update.
        sources: names of the data's sources.
        policies: the dataset's policies (`bos`, `eod` ...).
        licence: an SPDX name in lower case, as the Hub lists them.
        dataset: repository of the data's index and the logs, or None.
    """

    repo_id: str
    records: Sequence[Record]
    lines: Sequence[CommitLine]
    parameters: int
    hf: Mapping[str, Any]
    losses: Sequence[tuple[int, float]]
    sources: Sequence[str]
    policies: Mapping[str, str]
    licence: str
    dataset: str | None


def model_card(facts: CardFacts) -> str:
    """README.md of main."""
    last = facts.records[-1]
    parts = [
        _front_matter(facts),
        f"# {facts.repo_id}\n",
        f"{facts.parameters:,} parameters, rung `{last['rung']}` of the Tripod suite "
        f"`{last['suite']}`: {len(facts.lines)} checkpoints of one run, each a revision "
        f"`step{{N}}`. Step N is the state after N updates: it has read the batches of steps 0 to "
        f"N-1. `main` holds step {last['step']} ({last['tokens']:,} tokens).\n",
        _figure(facts),
        _loading(facts),
        _checking(facts),
        _data(facts),
        _shape(facts),
        _revisions(facts),
        f"## Licence\n\n{facts.licence}\n",
    ]
    return "\n".join(parts)


def _front_matter(facts: CardFacts) -> str:
    suite = facts.records[-1]["suite"]
    datasets = f"datasets: [{facts.dataset}]\n" if facts.dataset else ""
    return (
        f"---\nlibrary_name: transformers\npipeline_tag: text-generation\n"
        f"license: {facts.licence}\n{datasets}tags: [tripod, {suite}]\n---\n"
    )


def _figure(facts: CardFacts) -> str:
    if not facts.losses:
        return ""
    step, loss = facts.losses[-1]
    return f"![Training loss by step; {loss:.3f} at step {step}]({FIGURE})\n"


def _loading(facts: CardFacts) -> str:
    step = facts.lines[len(facts.lines) // 2].step
    return f"""## Load

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{facts.repo_id}", revision="step{step}")
tokenizer = AutoTokenizer.from_pretrained("{facts.repo_id}", revision="step{step}")
```

Branches can move; a commit of the table below cannot: give one as `revision` to pin it.
"""


def _checking(facts: CardFacts) -> str:
    last, digest = facts.records[-1], facts.lines[-1].digest
    order = last["order"]
    rows = {
        "last line of `commits.jsonl`, which covers every file of every step": digest,
        f"last record of the ledger (`{last['schema']}`)": record_digest(last),
        "weights root of the last step (`tensor-digest-v1`)": last["weights_root"],
        f"chain of the token order (`{order['name']}`) after the last step": order["chain"],
    }
    table = "\n".join(f"| {name} | `{value}` |" for name, value in rows.items())
    return f"""## Check

```
tripod pull {facts.repo_id} --steps all --to DIR --expect {digest}
```

downloads, and takes nothing whose bytes and tensors are not those of the ledger. The downloaders of
the Hub compare sizes only.

| | |
|---|---|
{table}

`manifest.jsonl` is the run's chained ledger, `commits.jsonl` says which commit holds which step,
`publication.json` lists the files of main, `run/` holds configuration, numerics, order and metrics.
"""


def _data(facts: CardFacts) -> str:
    order = facts.records[-1]["order"]
    where = f", published as the dataset `{facts.dataset}`" if facts.dataset else ""
    policies = ", ".join(f"{name} {value}" for name, value in sorted(facts.policies.items()))
    bos = "No BOS token in training" if facts.policies.get("bos") == "none" else "BOS in training"
    return f"""## Data

{", ".join(facts.sources) or "see the index"}; index digest `{order["index_digest"]}`{where}.
{bos}, and the tokenizer adds none; policies: {policies or "see the index"}.
"""


def _shape(facts: CardFacts) -> str:
    rows = "\n".join(f"| `{name}` | {value} |" for name, value in sorted(facts.hf.items()))
    return f"## Architecture\n\n| | |\n|---|---|\n{rows}\n"


def _revisions(facts: CardFacts) -> str:
    tokens = {record["step"]: record["tokens"] for record in facts.records}
    losses = dict(facts.losses)
    rows = "\n".join(
        f"| `step{line.step}` | {tokens[line.step]:,} | {_loss(losses.get(line.step))} | "
        f"`{line.commit}` | `{line.weights_root[:16]}` |"
        for line in facts.lines
    )
    return (
        "## Revisions\n\nLoss: of the update that made the step.\n\n"
        f"| revision | tokens | loss | commit | weights root |\n|---|---|---|---|---|\n{rows}\n"
    )


def _loss(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def loss_figure(losses: Sequence[tuple[int, float]], title: str) -> bytes:
    """An SVG of training loss by step, both axes logarithmic; equal numbers give equal bytes."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    out = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "tripod", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(_WIDTH, _HEIGHT), layout="constrained")
        axes = figure.add_subplot(xscale="log", yscale="log", xlabel="step", ylabel="training loss")
        axes.plot(
            [step for step, _ in losses], [loss for _, loss in losses], lw=1.0, color="#31688e"
        )
        axes.set_title(title, loc="left")
        axes.grid(True, which="both", color="#dfe3e7", lw=0.5)
        axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return out.getvalue()
