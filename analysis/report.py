"""The report: one HTML file that needs nothing else, made from the tables of a suite.

Guarantees: works from ``file://`` with no network (styles, script, figures and data are inside;
links go only to files beside it); figures carry a text alternative and their data as CSV; without
JavaScript everything is there except switching lines and moving through the order. Every text from
data is escaped. Equal tables give equal bytes.
"""

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup

from analysis.figures import Look, Panel, compact, looks
from analysis.order_view import document_label, order_view
from analysis.panels import eval_panels, loss_panels, memorization_panels
from analysis.rungs import AnalysisError, Rung, SuiteDir
from data_pipeline.durable import write_bytes

HERE = Path(__file__).parent
TABLES = ("metrics", "heldout", "evals", "memorization", "probes")
CHECKS = {
    "order": "All models read the same tokens at every step, as the shard index promises.",
    "checkpoints": "Every file, tensor and ledger digest was recomputed and matches.",
    "labels": "Each checkpoint's loss on the next batch equals what its trainer logged.",
}
ABOUT_TABLES = {
    "metrics": "training log, a row per update",
    "heldout": "held-out loss, a row per checkpoint",
    "evals": "lm-eval results, a row per checkpoint, task and metric",
    "memorization": "a row per checkpoint and probe",
    "probes": "the probe windows with every step that read them",
}
TAIL = 10


def build_report(suite_dir: Path) -> Path:
    """Write ``report.html`` and ``analysis/figures/`` from the tables of a suite.

    Args:
        suite_dir: ``runs/<suite>`` with ``analysis/*.parquet``.

    Returns:
        The report's path.

    Raises:
        AnalysisError: a table is missing.
    """
    suite = SuiteDir.load(suite_dir)
    tables = {name: _read_table(suite, name) for name in TABLES}
    look = looks([(rung.name, rung.parameters[0], rung.init_seed) for rung in suite.rungs])
    sections = {
        "loss": loss_panels(tables["metrics"], tables["heldout"], look),
        "evals": eval_panels(tables["evals"], look),
        "memorization": memorization_panels(tables["memorization"], look),
    }
    for panel in (panel for panels in sections.values() for panel in panels):
        _write_panel(suite.tables / "figures", panel)
    html = _render(suite, tables, look, sections)
    path = suite.path / "report.html"
    write_bytes(path, html.encode("utf-8"))
    return path


def _read_table(suite: SuiteDir, name: str) -> pd.DataFrame:
    path = suite.tables / f"{name}.parquet"
    if not path.exists():
        raise AnalysisError(
            f"expected the table {path}, found none; run `python -m analysis {suite.path}`"
        )
    return pd.read_parquet(path)


def _write_panel(directory: Path, panel: Panel) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    write_bytes(directory / f"{panel.name}.csv", panel.table.to_csv(index=False).encode())
    if panel.svg:
        svg = panel.svg.replace("<svg ", '<svg style="background:#fff" ', 1)
        write_bytes(directory / f"{panel.name}.svg", svg.encode())


def _render(
    suite: SuiteDir,
    tables: Mapping[str, pd.DataFrame],
    look: Mapping[str, Look],
    sections: Mapping[str, list[Panel]],
) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["csv"] = csv_uri
    environment.filters["safe_svg"] = Markup
    environment.filters["compact"] = compact
    order = order_view(suite)
    return environment.get_template("report.html").render(
        suite=suite,
        summary=summary(suite),
        checks=checks(suite.path / "verification.json"),
        machine=machine(suite.path / "verification.json"),
        ladder=[_ladder_row(rung, tables, look[rung.name]) for rung in suite.rungs],
        legend=list(look.values()),
        sections=sections,
        probes=_probe_counts(tables["probes"]),
        order=order,
        first=order["sample"][0],
        order_json=_script_json(order),
        files=_files(suite),
        style=Markup((HERE / "report.css").read_text()),
        script=Markup((HERE / "report.js").read_text()),
    )


def summary(suite: SuiteDir) -> dict[str, Any]:
    """The facts of the header."""
    first = suite.rungs[0]
    sizes = sorted({rung.parameters[0] for rung in suite.rungs})
    last = max((rung.records[-1] for rung in suite.rungs), key=lambda record: record["step"])
    chains = {rung.records[-1]["order"]["chain"] for rung in suite.rungs}
    return {
        "models": len(suite.rungs),
        "sizes": [compact(size) for size in sizes],
        "steps": int(last["step"]),
        "tokens": int(last["tokens"]),
        "checkpoints": sum(len(rung.checkpoints) for rung in suite.rungs),
        "index_digest": str(suite.data["index_digest"]),
        "order": str(suite.data["order"]),
        "seed": suite.data["seed"],
        "batch_size": suite.data["batch_size"],
        "seq_len": suite.data["seq_len"],
        "chain": chains.pop() if len(chains) == 1 else None,
        "example": first.repo_id,
        "example_revision": f"step{first.records[-1]['step']}",
    }


def checks(path: Path) -> list[dict[str, str]]:
    """The verification badges: state is ``ok``, ``failed`` or ``missing``."""
    record = json.loads(path.read_bytes()) if path.exists() else {}
    badges = []
    for name, claim in CHECKS.items():
        found = record.get(name)
        state = "missing" if found is None else "ok" if found["ok"] else "failed"
        badges.append(
            {
                "name": name,
                "state": state,
                "claim": claim,
                "detail": str(found["detail"]) if found else "not run yet",
                "failures": "; ".join(found.get("failures", [])) if found else "",
            }
        )
    return badges


def machine(path: Path) -> str:
    """The machine that ran the verification, in words."""
    record = json.loads(path.read_bytes()) if path.exists() else {}
    found = record.get("machine", "")
    if isinstance(found, dict):
        return "; ".join(f"{key} {value}" for key, value in found.items())
    return str(found)


def _ladder_row(rung: Rung, tables: Mapping[str, pd.DataFrame], look: Look) -> dict[str, Any]:
    record = rung.records[-1]
    total, body = rung.parameters
    metrics = _of(tables["metrics"], rung).sort_values("step")
    heldout = _of(tables["heldout"], rung).sort_values("step").iloc[-1]
    evals = _of(tables["evals"], rung)
    accuracy = evals[(evals["metric"] == "acc_mutual_info") & (evals["step"] == record["step"])][
        "value"
    ]
    return {
        "name": rung.name,
        "repo": rung.repo_id,
        "colour": look.colour,
        "width": look.width,
        "parameters": total,
        "body": body,
        "seed": rung.init_seed,
        "steps": record["step"],
        "tokens": record["tokens"],
        "train_loss": metrics["loss"].tail(TAIL).mean(),
        "heldout_loss": heldout["loss"],
        "bits_per_byte": heldout["bits_per_byte"],
        "accuracy": accuracy.iloc[0],
        "weights_root": record["weights_root"],
        "checkpoints": len(rung.checkpoints),
        "directory": rung.directory.relative_to(rung.hub.parent).as_posix(),
    }


def _of(table: pd.DataFrame, rung: Rung) -> pd.DataFrame:
    return table[table["rung"] == rung.name]


def _probe_counts(probes: pd.DataFrame) -> dict[str, Any]:
    most = probes.loc[probes["n_exposures"].idxmax()]
    return {
        "total": len(probes),
        "digest": str(probes["probe_digest"].iloc[0]),
        "most": int(most["n_exposures"]),
        "most_document": document_label(most["source"], most["document"]),
    }


def _files(suite: SuiteDir) -> list[dict[str, str]]:
    tables = [{"href": f"analysis/{name}.parquet", "about": ABOUT_TABLES[name]} for name in TABLES]
    files = [
        *tables,
        {"href": "analysis/figures/", "about": "every figure as SVG and CSV"},
        {"href": "analysis/lm-eval/", "about": "the harness's records, one JSON per checkpoint"},
        {"href": "verification.json", "about": "outcome of the verifications"},
    ]
    return [file for file in files if (suite.path / file["href"]).exists()]


def csv_uri(table: pd.DataFrame) -> str:
    """A table as a ``data:`` URI, for download without a server."""
    data = table.to_csv(index=False, float_format="%.7g").encode()
    return "data:text/csv;base64," + base64.b64encode(data).decode("ascii")


def _script_json(value: object) -> Markup:
    """JSON that is safe inside a script element."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return Markup(text)
