"""The report in a real browser: nothing broken, nothing fetched, no sideways scrolling on a phone."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from taet import report
from taet.evaluation.card import ResultCard

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SWITCHES = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
SWITCHES += ["--disable-background-networking", "--disable-component-update", "--hide-scrollbars"]
FACTS = """
<script>
addEventListener("load", () => {
  document.querySelectorAll("details").forEach(d => d.open = true);
  const box = document.createElement("pre");
  box.id = "facts";
  box.textContent = JSON.stringify({
    width: innerWidth,
    scroll: document.documentElement.scrollWidth,
    figures: document.querySelectorAll("svg.figure").length,
    flat: [...document.querySelectorAll("svg.figure")].filter(s => s.getBoundingClientRect().height < 50).length,
    fetched: performance.getEntriesByType("resource").map(e => e.name).filter(n => !n.startsWith("data:")),
    sticky: [...document.querySelectorAll("tbody th")].every(h => getComputedStyle(h).position === "sticky"),
    unsaid: [...document.querySelectorAll(".scroll")].filter(s => s.scrollWidth > s.clientWidth &&
      !(s.nextElementSibling?.className === "hint" && s.nextElementSibling.offsetHeight > 0)).length,
    scrolls: [...document.querySelectorAll(".scroll")].filter(s => s.scrollWidth > s.clientWidth).length,
  });
  document.body.append(box);
});
</script>
"""

pytestmark = [
    pytest.mark.full,
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here"),
]


@pytest.fixture(scope="module")
def page(run: Path, cards: dict[str, ResultCard], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report.write([run, *cards.values()], tmp_path_factory.mktemp("page") / "report.html")


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_broken_and_nothing_scrolls_sideways(page: Path, tmp_path: Path, width: int) -> None:
    (tmp_path / "copy.html").write_text(page.read_text().replace("</body>", FACTS + "</body>"))
    # A window cannot be as narrow as a phone everywhere; a frame can.
    frame = f'<iframe src="copy.html" style="border:0;width:{width}px;height:2000px"></iframe>'
    facts_in_frame = "frames[0].document.getElementById('facts')"
    relay = f"<script>addEventListener('load', () => document.body.append({facts_in_frame}))</script>"
    (tmp_path / "frame.html").write_text(f"<body style='margin:0'>{frame}{relay}</body>")
    assert CHROMIUM is not None
    command = [CHROMIUM, *SWITCHES, f"--user-data-dir={tmp_path / 'profile'}", "--allow-file-access-from-files"]
    command += ["--dump-dom", (tmp_path / "frame.html").as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    found = re.search(r'<pre id="facts">(.*?)</pre>', dom, re.DOTALL)
    assert found, dom[-2000:]
    facts = json.loads(html.unescape(found[1]))
    assert facts["width"] == width >= facts["scroll"]
    assert facts["flat"] == 0
    assert facts["figures"] == 9  # of the cards two and confusion, of the run two, steps, confusion and two curves
    assert facts["fetched"] == []
    assert facts["sticky"]
    if width == 390:  # every table that scrolls says so
        assert facts["scrolls"] > 3
        assert facts["unsaid"] == 0
