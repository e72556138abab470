"""The report in a real browser: nothing broken, nothing fetched, no sideways scrolling on a phone."""

from __future__ import annotations

import html
import http.server
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from taet import report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SWITCHES = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
]
FACTS = """
<script>
addEventListener("load", () => {
  document.querySelectorAll("details").forEach(d => d.open = true);
  const box = document.createElement("pre");
  box.id = "facts";
  box.textContent = JSON.stringify({
    width: innerWidth,
    scroll: document.documentElement.scrollWidth,
    images: document.images.length,
    broken: [...document.images].filter(i => !(i.complete && i.naturalWidth > 0)).length,
    figures: document.querySelectorAll("svg.figure").length,
    flat: [...document.querySelectorAll("svg.figure")].filter(s => s.getBoundingClientRect().height < 50).length,
    fetched: performance.getEntriesByType("resource").map(e => e.name).filter(n => !n.startsWith("data:")),
    main: getComputedStyle(document.querySelector("main")).maxWidth,
  });
  document.body.append(box);
});
</script>
"""

pytestmark = [
    pytest.mark.full,
    pytest.mark.browser,
    pytest.mark.skipif(
        CHROMIUM is None, reason="no Chromium here (looked for chromium, chromium-browser, google-chrome)"
    ),
]


def chromium(profile: Path, *arguments: str) -> str:
    assert CHROMIUM is not None
    command = [CHROMIUM, *SWITCHES, f"--user-data-dir={profile}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


@pytest.fixture(scope="module")
def page(runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report.write(runs, tmp_path_factory.mktemp("page") / "report.html")


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_broken_and_nothing_scrolls_sideways(page: Path, tmp_path: Path, width: int) -> None:
    (tmp_path / "copy.html").write_text(page.read_text().replace("</body>", FACTS + "</body>"))
    # A window cannot be as narrow as a phone everywhere; a frame can.
    frame = f'<iframe src="copy.html" style="border:0;width:{width}px;height:2000px"></iframe>'
    facts_in_frame = "frames[0].document.getElementById('facts')"
    relay = f"<script>addEventListener('load', () => document.body.append({facts_in_frame}))</script>"
    (tmp_path / "frame.html").write_text(f"<body style='margin:0'>{frame}{relay}</body>")
    dom = chromium(
        tmp_path / "profile", "--allow-file-access-from-files", "--dump-dom", (tmp_path / "frame.html").as_uri()
    )
    found = re.search(r'<pre id="facts">(.*?)</pre>', dom, re.DOTALL)
    assert found, dom[-2000:]
    facts = json.loads(html.unescape(found[1]))
    assert facts["width"] == width
    assert facts["scroll"] <= width
    assert facts["images"] == 3 * 3 * 8
    assert facts["broken"] == facts["flat"] == 0
    assert facts["figures"] >= 20
    assert facts["fetched"] == []
    assert facts["main"] != "none"


def test_a_click_on_a_head_sorts_the_rows_of_its_table(page: Path, tmp_path: Path) -> None:
    """Numbers first by the largest, then by the smallest; words by the alphabet; without a click as they were."""
    click = """<script>
const table = [...document.querySelectorAll("table")].find((one) => one.tBodies[0].rows.length > 2);
const column = (at) => [...table.tBodies[0].rows].map((row) => row.cells[at].querySelector(".value, a").textContent);
const facts = {before: column(1)};
table.tHead.rows[0].cells[1].click(); facts.down = column(1);
table.tHead.rows[0].cells[1].click(); facts.up = column(1); facts.sorted = table.tHead.rows[0].cells[1].ariaSort;
table.tHead.rows[0].cells[0].click(); facts.names = column(0);
document.body.innerHTML = `<pre id="facts">${JSON.stringify(facts)}</pre>`;
</script>"""
    (tmp_path / "click.html").write_text(page.read_text().replace("</body>", click + "</body>"))
    dom = chromium(tmp_path / "profile", "--dump-dom", (tmp_path / "click.html").as_uri())
    found = re.search(r'<pre id="facts">(.*?)</pre>', dom, re.DOTALL)
    assert found, dom[-2000:]
    facts = json.loads(html.unescape(found[1]))
    values = [float(text) for text in facts["before"]]
    assert len(values) > 2
    assert [float(text) for text in facts["down"]] == sorted(values, reverse=True)
    assert [float(text) for text in facts["up"]] == sorted(values)
    assert facts["sorted"] == "ascending"
    assert facts["names"] == sorted(facts["names"], key=str.lower)


@pytest.mark.drawn
def test_only_the_page_itself_is_asked_for(make_run: Callable[..., Path], tmp_path: Path) -> None:
    report.write([make_run(tmp_path / "at")], tmp_path / "site" / "report.html")
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(tmp_path / "site"))  # type: ignore[arg-type]

        def log_message(self, format: str, *arguments: object) -> None:
            asked.append(self.path)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        chromium(tmp_path / "profile", "--dump-dom", f"http://127.0.0.1:{server.server_port}/report.html")
        server.shutdown()
    assert asked == ["/report.html"]


def test_a_screenshot_has_ink_and_colour(page: Path, tmp_path: Path) -> None:
    from PIL import Image

    picture = tmp_path / "report.png"
    chromium(tmp_path / "profile", "--window-size=1280,3000", f"--screenshot={picture}", page.as_uri())
    with Image.open(picture) as image:
        assert image.size == (1280, 3000)
        colours = image.convert("RGB").quantize(64).convert("RGB").getcolors()
    shares = {colour: count / (1280 * 3000) for count, colour in colours or ()}
    assert 0.6 < max(shares.values()) < 0.99
    assert any(max(colour) - min(colour) > 80 for colour in shares)
