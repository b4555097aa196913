"""The report in headless Chromium: no errors, fits the screen, slider and legend work."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.browser

FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--hide-scrollbars",
    "--enable-logging=stderr",
    "--virtual-time-budget=3000",
]

# Runs after the page's own script; what it finds is left in attributes of the root element.
PROBE = """
<script>
window.addEventListener("load", function () {
  const root = document.documentElement;
  const say = function (name, value) { root.setAttribute("data-" + name, value); };
  const text = function (id) { return document.getElementById(id).textContent.trim(); };
  say("first", text("step-name"));
  const slider = document.getElementById("step-slider");
  slider.value = "5";
  slider.dispatchEvent(new Event("input"));
  say("moved", text("step-name"));
  say("leaf", text("step-leaf"));
  say("rows", document.querySelectorAll("#batch li").length);
  document.getElementById("next").click();
  say("next", text("step-name"));
  const button = document.querySelector('.legend button[data-rung="toy-50k"]');
  button.click();
  const groups = Array.from(document.querySelectorAll('.plot g[data-rung="toy-50k"]'));
  say("groups", groups.length);
  say("hidden", groups.filter(function (g) { return g.style.display === "none"; }).length);
  say("pressed", document.querySelectorAll('.legend button[aria-pressed="false"]').length);
  say("width", document.documentElement.scrollWidth);
  say("inner", window.innerWidth);
});
window.addEventListener("error", function (event) {
  document.documentElement.setAttribute("data-error", event.message);
});
</script>
</body>
"""


def chromium() -> str:
    found = (
        shutil.which("chromium")
        or shutil.which("chromium-browser")
        or shutil.which("google-chrome")
    )
    if not found:
        pytest.fail(
            "no Chromium found; install it (Debian: apt-get install chromium) to run browser tests"
        )
    return found


def browse(page: Path, profile: Path, width: int) -> tuple[dict[str, str], str]:
    """Open a page; returns the data attributes of its root element and the browser's log."""
    done = subprocess.run(
        [
            chromium(),
            *FLAGS,
            f"--user-data-dir={profile}",
            f"--window-size={width},900",
            "--dump-dom",
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    root = re.search(r"<html[^>]*>", done.stdout)
    assert root, done.stdout[:500]
    return dict(re.findall(r'data-(\w+)="([^"]*)"', root.group())), done.stderr


@pytest.fixture(scope="module")
def page(analysed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("browser") / "report.html"
    path.write_text((analysed / "report.html").read_text().replace("</body>", PROBE))
    return path


@pytest.mark.parametrize("width", [1280, 500])  # headless Chromium opens no window below 500
def test_the_report_works_in_a_browser(
    page: Path, tmp_path: Path, analysed: Path, width: int
) -> None:
    found, log = browse(page, tmp_path / "profile", width)
    assert "error" not in found, found
    assert "CONSOLE" not in log, log
    assert found["first"] == "Step 0"
    assert found["moved"] == "Step 5"
    assert found["next"] == "Step 6"
    assert found["rows"] == "8"
    leaves = (analysed / "toy-8k" / "order.log").read_bytes()
    assert found["leaf"] == leaves[32 * 5 : 32 * 6].hex()
    assert int(found["groups"]) == int(found["hidden"]) >= 7
    assert found["pressed"] == "3"  # the same model in the legend of three sections
    assert int(found["width"]) <= int(found["inner"])


def test_the_report_fits_a_phone(page: Path, tmp_path: Path) -> None:
    """390 pixels: the page sits in a frame of that width, as Chromium opens no smaller window."""
    inside, frame = page.with_name("framed.html"), tmp_path / "frame.html"
    measure = "document.documentElement.scrollWidth + '/' + innerWidth"
    inside.write_text(
        page.read_text().replace(
            "</body>",
            f"<script>addEventListener('load', () => parent.postMessage({measure}, '*'));"
            "</script></body>",
        )
    )
    frame.write_text(
        "<script>addEventListener('message', event =>"
        " document.documentElement.setAttribute('data-wide', event.data));</script>"
        f'<iframe src="{inside.as_uri()}" width="390" height="844" style="border:0"></iframe>'
    )
    found, _ = browse(frame, tmp_path / "profile", 600)
    assert found["wide"] == "390/390"


def test_the_check_sees_an_error(page: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.html"
    broken.write_text(page.read_text().replace('id="step-leaf"', 'id="no-leaf"'))
    found, log = browse(broken, tmp_path / "profile", 1280)
    assert "CONSOLE" in log
    assert found.get("moved") != "Step 5" or "leaf" not in found
