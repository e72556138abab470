"""The report as a file: whole, self-contained, and every number that of a card."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from taet import report
from taet.errors import UserError
from taet.evaluation.result import ResultCard

ATTACKS = ("clean", "fgsm", "pgd-20", "autoattack-10", "autoattack")
PARTS = ("results", "histogram-section", "classes", "confusion", "training", "images", "flags")
MakeRun = Callable[..., Path]


class Page(HTMLParser):
    """What a browser would ask for, the ids, the text of the table cells and all text outside style rules."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.tags: Counter[str] = Counter()
        self.tables: list[list[list[tuple[str, str]]]] = []
        self.text = ""
        self._cell: tuple[str, str] | None = None
        self._open: list[str] = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.fetched += re.findall(r"url\(([^)]*)\)|@import\s+(\S+)", self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self._open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "xlink:href", "srcset", "data", "poster", "action"):
                (self.links if tag == "a" else self.fetched).append(value or "")
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self._cell = (dict(attrs).get("class") or "", "")

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass
        if tag in ("td", "th") and self._cell is not None:
            self.tables[-1][-1].append((self._cell[0], " ".join(self._cell[1].split())))
            self._cell = None

    def handle_data(self, data: str) -> None:
        if "style" in self._open:
            return
        self.text += data
        if self._cell is not None:
            self._cell = (self._cell[0], f"{self._cell[1]} {data}")


@pytest.fixture(scope="module")
def page(runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Page:
    return Page(report.write(runs, tmp_path_factory.mktemp("page") / "report.html"))


def test_nothing_is_fetched_and_no_script_runs(page: Page) -> None:
    outside = [str(link) for link in page.fetched if not re.match(r"\(?'?(data:|#)", str(link))]
    assert outside == []
    assert page.tags["script"] == 0
    assert page.tags["img"] == 3 * 3 * 8


def test_ids_are_unique_and_every_link_within_the_page_has_its_target(page: Page) -> None:
    assert [name for name, count in Counter(page.ids).items() if count > 1] == []
    inner = set(page.links) | {link for link in page.fetched if str(link).startswith("#")}
    assert inner
    assert {link.removeprefix("#") for link in inner} <= set(page.ids)
    clips = re.findall(r"url\(#([^)]*)\)", page.source)
    assert clips
    assert set(clips) <= set(page.ids)


def test_every_part_is_there(page: Page) -> None:
    assert {f"data-1-{part}" for part in PARTS} | {"provenance", "run-1", "run-2", "run-3"} <= set(page.ids)
    expected = ["3 runs (at, at-bsl, taet) on digits-lt", "imbalance ratio 10", "L∞, ε 8/255", "368 test images"]
    expected += ["taet: adversarial stage", "drawn only, never used to choose anything", "perturbation × 15"]
    expected += ["class nine has 9 test images.", "taet evaluate runs/taet", "ab" * 32, f"{10:064x}", "bcl", "rcel"]
    assert [words for words in expected if words not in page.text] == []


def test_the_numbers_of_the_tables_are_those_of_the_cards(page: Page, runs: list[Path]) -> None:
    balanced, plain = page.tables[:2]
    assert [name.split()[0] for _, name in balanced[0][1:]] == list(ATTACKS)
    for row, path in enumerate(runs, 1):
        card = ResultCard.load(path / "evaluation.json")
        for column, attack in enumerate(ATTACKS, 1):
            summary = card.summary(attack)
            for table, value, interval in (
                (balanced, summary.balanced, summary.balanced_interval),
                (plain, summary.accuracy, summary.accuracy_interval),
            ):
                words = table[row][column][1].split()
                assert words[0] == f"{100 * value:.1f}"
                assert words[-1] == "–".join(f"{100 * bound:.1f}" for bound in interval)


def test_best_and_second_best_are_marked_by_class_and_by_sign(page: Page, runs: list[Path]) -> None:
    cards = [ResultCard.load(path / "evaluation.json") for path in runs]
    for column, attack in enumerate(ATTACKS, 1):
        values = [card.summary(attack).balanced for card in cards]
        cells = [row[column] for row in page.tables[0][1:]]
        order = np.argsort(values)
        assert (cells[order[-1]][0], cells[order[-1]][1].split()[1][0]) == ("best", "▲")
        assert (cells[order[-2]][0], cells[order[-2]][1].split()[1][0]) == ("second", "△")
        assert cells[order[0]][0] == ""


def test_the_same_runs_give_the_same_bytes(runs: list[Path], tmp_path: Path) -> None:
    first = report.write(runs[:1], tmp_path / "a.html").read_bytes()
    assert report.write(runs[:1], tmp_path / "b.html").read_bytes() == first


def test_drawing_leaves_matplotlib_as_it_was(runs: list[Path], tmp_path: Path) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    report.write(runs[:1], tmp_path / "report.html")
    assert dict(matplotlib.rcParams) == before


def test_hostile_names_stay_text(make_run: MakeRun, tmp_path: Path) -> None:
    names = ("<script>alert(1)</script>", "a & b \"c\" 'd'", "日本語", "$x_{1}$", "{{ 7 * 7 }}", "]]>", "__hidden")
    run = make_run(tmp_path / "<img src=x>", "at", names=names)
    page = Page(report.write([run], tmp_path / "out" / "report.html", title="<b>Title</b> & more"))
    assert page.tags["script"] == page.tags["b"] == 0
    assert page.tags["img"] == 3 * 8
    assert "<b>Title</b> & more" in page.text
    assert [name for name in names if name not in page.text] == []


@pytest.mark.parametrize("count", [2, 3, 100])
def test_any_number_of_classes(make_run: MakeRun, count: int, tmp_path: Path) -> None:
    names = tuple(f"class {index}" for index in range(count))
    path = report.write(
        [make_run(tmp_path / method, method, names=names) for method in ("at", "at-bsl", "taet")], tmp_path / "r.html"
    )
    page = Page(path)
    assert page.tags["svg"] > 10
    assert [name for name in names if name not in page.text] == []
    assert path.stat().st_size < 3e6


def test_a_run_without_a_card_is_named_and_shows_its_curves(make_run: MakeRun, tmp_path: Path) -> None:
    done, waiting = make_run(tmp_path / "at"), make_run(tmp_path / "taet", "taet", evaluated=False, examples=False)
    page = Page(report.write([done, waiting], tmp_path / "report.html"))
    assert "Not evaluated yet: taet." in " ".join(page.text.split())
    assert "run-2-loss-figure_1" in page.ids
    assert all(len(table) == 2 for table in page.tables[:2])
    alone = Page(report.write([waiting], tmp_path / "alone.html"))
    assert "No run has a result card" in alone.text
    assert "No run has kept example images." in alone.text
    assert alone.tables == []


def test_one_run_has_no_best(make_run: MakeRun, tmp_path: Path) -> None:
    page = Page(report.write([make_run(tmp_path / "at")], tmp_path / "report.html"))
    assert "▲" not in page.text
    assert "Under autoattack, at keeps a balanced accuracy of" in page.text


def test_seeds_are_rows_of_their_own_and_a_repeated_folder_is_one(make_run: MakeRun, tmp_path: Path) -> None:
    seeds = [make_run(tmp_path / f"s{seed}", "taet", seed=seed) for seed in range(2)]
    again = make_run(tmp_path / "again", "taet", seed=1)
    page = Page(report.write([*seeds, seeds[0], again], tmp_path / "report.html"))
    labels = [row[0][1] for row in page.tables[0][1:]]
    assert labels == ["taet (seed 0)", "taet (seed 1) (s1)", "taet (seed 1) (again)"]


def test_a_method_on_two_data_sets_needs_no_detail(make_run: MakeRun, tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "ten", "at"), make_run(tmp_path / "two", "at", names=("a", "b"))]
    page = Page(report.write(runs, tmp_path / "report.html"))
    heads = [table[1][0][1] for table in page.tables if table[0][0][1] == "Run"]
    assert set(heads) == {"at"}


def test_runs_on_other_data_are_not_compared(make_run: MakeRun, tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "at"), make_run(tmp_path / "few", "taet", names=("cat", "dog", "cow"))]
    page = Page(report.write(runs, tmp_path / "report.html"))
    assert {f"data-{number}-{part}" for number in (1, 2) for part in PARTS} <= set(page.ids)
    assert "▲" not in page.text


def test_an_unevaluated_run_stays_with_the_runs_on_its_data(make_run: MakeRun, tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "at"), make_run(tmp_path / "taet", "taet", evaluated=False)]
    assert "data-2" not in Page(report.write(runs, tmp_path / "report.html")).ids


def test_a_run_that_chose_its_epoch_on_the_test_set_says_so(make_run: MakeRun, tmp_path: Path) -> None:
    page = Page(report.write([make_run(tmp_path / "at", selection="best-test")], tmp_path / "report.html"))
    assert "also chose the epoch that is delivered: a leak" in page.text
    assert "never used to choose anything" not in page.text


def test_classes_with_few_test_images_are_marked(page: Page) -> None:
    assert "Fewer than 50 test images: three (42)," in " ".join(page.text.split())
    assert "two (54)" not in page.text


def test_grey_images_and_one_epoch(make_run: MakeRun, tmp_path: Path) -> None:
    page = Page(report.write([make_run(tmp_path / "at", channels=1, epochs=1)], tmp_path / "report.html"))
    assert page.tags["img"] == 3 * 8


def test_a_row_that_was_cut_short_is_left_out(make_run: MakeRun, tmp_path: Path) -> None:
    whole, cut = make_run(tmp_path / "a" / "at"), make_run(tmp_path / "b" / "at")
    file = cut / "metrics.jsonl"
    file.write_text(file.read_text() + json.dumps({"epoch": 13})[:-4])
    expected = report.write([whole], tmp_path / "a.html").read_text().replace(str(whole), str(cut))
    assert report.write([cut], tmp_path / "b.html").read_text() == expected


def test_bad_input_is_one_line(make_run: MakeRun, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run folder"):
        report.write([], tmp_path / "report.html")
    with pytest.raises(UserError, match=r"no run folder \(it has no run.json\)"):
        report.write([tmp_path], tmp_path / "report.html")
    broken = make_run(tmp_path / "broken")
    lines = (broken / "metrics.jsonl").read_text().splitlines(keepends=True)
    (broken / "metrics.jsonl").write_text("".join([lines[0], lines[1][:20] + "\n", *lines[2:]]))
    with pytest.raises(UserError, match="line 2 is damaged"):
        report.write([broken], tmp_path / "report.html")
    (broken / "metrics.jsonl").write_text('{"epoch": 1}\n')
    with pytest.raises(UserError, match="damaged run folder: KeyError 'stage'"):
        report.write([broken], tmp_path / "report.html")
    (broken / "metrics.jsonl").unlink()
    (broken / "artifacts" / "examples.npz").write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(UserError, match="not readable as example images"):
        report.write([broken], tmp_path / "report.html")
    (broken / "run.json").rename(tmp_path / "kept.json")
    (broken / "run.json").write_text("{}")
    with pytest.raises(UserError, match="was not written by taet train"):
        report.write([broken], tmp_path / "report.html")
    (tmp_path / "kept.json").rename(broken / "run.json")
    newer = json.loads((broken / "run.json").read_text()) | {"schema": 2}
    (broken / "run.json").write_text(json.dumps(newer))
    with pytest.raises(UserError, match="schema 2; allowed: up to 1"):
        report.write([broken], tmp_path / "report.html")
    (broken / "run.json").write_text("{")
    with pytest.raises(UserError, match=r"run\.json cannot be read"):
        report.write([broken], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_importing_the_report_is_light() -> None:
    code = "import sys, taet.report; print([m for m in ('torch', 'numpy', 'matplotlib', 'jinja2') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_a_place_that_cannot_be_written_is_one_line(make_run: MakeRun, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot make the folder"):
        report.write([make_run(tmp_path / "at")], tmp_path / "file" / "report.html")
