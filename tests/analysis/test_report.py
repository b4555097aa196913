"""The report is one file, says what the tables say, and escapes what it shows."""

import base64
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd
import pytest

from analysis.figures import compact, looks
from analysis.order_view import document_label, order_view, snippet
from analysis.report import _script_json, build_report, checks
from analysis.rungs import AnalysisError, SuiteDir
from data_pipeline.batches import BatchReader
from tests.analysis.fixture_suite import BATCH
from tests.analysis.tiny import SEQ_LEN


class Page(HTMLParser):
    """Collects ids, references and text alternatives."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.references: list[str] = []
        self.plots: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        if "id" in found:
            self.ids.append(found["id"])
        self.references += [found[key] for key in ("href", "src", "xlink:href") if key in found]
        if "plot" in found.get("class", "").split():
            self.plots.append(found.get("aria-label", ""))


@pytest.fixture(scope="module")
def html(analysed: Path) -> str:
    return (analysed / "report.html").read_text()


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


@pytest.fixture
def copy(analysed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(analysed, tmp_path / "toy", symlinks=True))


def test_nothing_is_loaded_from_elsewhere(html: str, page: Page) -> None:
    for reference in page.references:
        assert not re.match(r"(https?:)?//", reference), reference
    assert "<script src" not in html
    assert "@import" not in html
    assert "url(http" not in html
    assert len(html.encode()) < 5_000_000


def test_every_link_leads_somewhere(analysed: Path, page: Page) -> None:
    for reference in page.references:
        if reference.startswith("#"):
            assert reference[1:] in page.ids, reference
        elif not reference.startswith("data:"):
            assert (analysed / reference).exists(), reference


def test_ids_are_unique_on_the_page(page: Page) -> None:
    assert len(page.ids) == len(set(page.ids)) > 100


def test_figures_have_a_text_alternative_and_their_numbers(page: Page, html: str) -> None:
    assert len(page.plots) == html.count('class="plot"') >= 7
    assert all(len(text) > 30 for text in page.plots)
    downloads = [r for r in page.references if r.startswith("data:text/csv")]
    assert len(downloads) == html.count("<figure")


def test_csv_downloads_hold_the_numbers_of_the_tables(analysed: Path, html: str) -> None:
    name = "toy-heldout-loss.csv"
    found = re.search(rf'download="{name}" href="data:text/csv;base64,([^"]+)"', html)
    assert found
    csv = pd.read_csv(io.BytesIO(base64.b64decode(found.group(1))))
    expected = pd.read_parquet(analysed / "analysis" / "heldout.parquet")
    assert csv["bits_per_byte"].to_numpy() == pytest.approx(
        expected["bits_per_byte"].to_numpy(), rel=1e-6
    )
    assert csv["weights_root"].tolist() == expected["weights_root"].tolist()


def test_figure_files_lie_beside_their_data(analysed: Path) -> None:
    figures = analysed / "analysis" / "figures"
    stems = {path.stem for path in figures.glob("*.svg")}
    assert "training-loss" in stems
    assert stems <= {path.stem for path in figures.glob("*.csv")}
    root = ElementTree.fromstring((figures / "training-loss.svg").read_text())
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    rungs = {element.get("data-rung") for element in root.iter()} - {None}
    assert rungs == {"toy-8k", "toy-8k-seed1", "toy-50k"}


def test_badges_say_what_the_verification_said(copy: Path) -> None:
    path = copy / "verification.json"
    record = json.loads(path.read_text())
    record["labels"] = {"ok": False, "detail": "1 of 12", "failures": ["toy-8k step4: <b>bad</b>"]}
    del record["order"]
    path.write_text(json.dumps(record))
    states = {check["name"]: check["state"] for check in checks(path)}
    assert states == {"order": "missing", "checkpoints": "ok", "labels": "failed"}
    text = build_report(copy).read_text()
    assert "✕ failed" in text and "– not run" in text and "✓ verified" in text
    assert "toy-8k step4: &lt;b&gt;bad&lt;/b&gt;" in text
    assert "<b>bad" not in text
    path.unlink()
    assert {check["state"] for check in checks(path)} == {"missing"}


def test_text_from_data_cannot_leave_the_script_element() -> None:
    text = _script_json({"snippet": "</script><script>alert(1)</script> & \u2028"})
    assert "<" not in text and "&" not in text and "\u2028" not in text
    assert json.loads(text)["snippet"].startswith("</script>")


def test_order_view_shows_what_the_reader_reads(analysed: Path) -> None:
    suite = SuiteDir.load(analysed)
    view = order_view(suite)
    assert [entry["step"] for entry in view["sample"]] == list(range(8))
    reader = BatchReader(suite.dataset, SEQ_LEN, BATCH, 0)
    log = (suite.rungs[0].directory / "order.log").read_bytes()
    for entry in view["sample"]:
        described = reader.describe(entry["step"])
        assert [row[0] for row in entry["rows"]] == [one["sequence"] for one in described]
        names = [[view["documents"][d][1] for d in row[1]] for row in entry["rows"]]
        assert names == [[f"text/{d['name']}" for d in one["documents"]] for one in described]
        assert entry["leaf"] == log[32 * entry["step"] :][:32].hex()


def test_losses_at_exposure_average_to_the_logged_loss(analysed: Path) -> None:
    suite = SuiteDir.load(analysed)
    metrics = pd.read_parquet(analysed / "analysis" / "metrics.parquet")
    for entry in order_view(suite)["sample"]:
        for place, rung in enumerate((suite.rungs[0], suite.rungs[-1])):
            mean = sum(row[3][place] for row in entry["rows"]) / BATCH
            mine = metrics[metrics["rung"] == rung.name].set_index("step")
            logged = mine.loc[entry["step"] + 1, "loss"]  # update n = t + 1 consumes batch t
            assert mean == pytest.approx(logged, abs=0.006)


def test_long_runs_are_sampled_with_both_ends(analysed: Path) -> None:
    view = order_view(SuiteDir.load(analysed), max_steps=3)
    assert [entry["step"] for entry in view["sample"]] == [0, 2, 7]


def test_a_document_is_named_once() -> None:
    assert document_label("sympy", "sympy/core/add.py") == "sympy/core/add.py"
    assert document_label("text", "part0/document.txt") == "text/part0/document.txt"


def test_snippets_are_one_line() -> None:
    assert snippet(b"a\n\n\tb   c") == "a b c"
    assert snippet(b"x" * 300, chars=10) == "xxxxxxxxx…"
    assert snippet("é".encode()[:1]) == "\ufffd"


def test_one_size_one_colour_and_seeds_are_thinner() -> None:
    found = looks([("a", 100, 0), ("a1", 100, 1), ("b", 1000, 0), ("c", 10000, 0)])
    assert found["a"].colour == found["a1"].colour
    assert len({look.colour for look in found.values()}) == 3
    assert found["a1"].width < found["a"].width == found["b"].width
    assert looks([("only", 5, 0)])["only"].width > 1


def test_counts_are_written_as_people_say_them() -> None:
    assert [compact(v) for v in (12, 999, 1000, 139_520, 819_200, 999_999, 1.24e9)] == [
        "12", "999", "1 k", "140 k", "819 k", "1 M", "1.24 G",
    ]  # fmt: skip


def test_a_missing_table_is_named(copy: Path) -> None:
    (copy / "analysis" / "evals.parquet").unlink()
    with pytest.raises(AnalysisError, match=r"evals\.parquet.*python -m analysis"):
        build_report(copy)


def test_equal_tables_give_equal_bytes(copy: Path) -> None:
    before = (copy / "report.html").read_bytes()
    assert build_report(copy).read_bytes() == before
