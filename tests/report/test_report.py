"""The report as a file: whole, self-contained, and every number that of a card."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

import taet
from taet import report, statistics
from taet.errors import UserError
from taet.evaluation.card import ResultCard, compare_runs
from taet.formatting import percent, percent_interval, points
from taet.report import page as pages
from taet.report import tables
from taet.report.drawing import Panel, axes, draw
from taet.report.page import SECTIONS, Section
from taet.report.results import Results
from taet.report.tables import Table, Text, table

ATTACKS = ("clean", "fgsm", "pgd-20", "autoattack", "autoattack-10")
MakeCard, MakeRun = Callable[..., ResultCard], Callable[..., Path]


class Page(HTMLParser):
    """What a browser would ask for, the ids, the cells of the tables by row, and all text outside style rules."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.ids: list[str] = []
        self.tags: Counter[str] = Counter()
        self.tables: dict[str, list[list[list[str]]]] = {}
        """By the words above: rows of cells, each the texts of a cell; bold ones begin with **."""
        self.text = ""
        self._title: str | None = None
        self._open: list[str] = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.fetched += [one for one in re.findall(r"url\(([^)]*)\)|@import", self.source) if one]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self._open.append(tag)
        values = dict(attrs)
        self.ids += [values["id"] or ""] if "id" in values else []
        self.fetched += [
            values[name] or "" for name in ("src", "href", "xlink:href", "srcset", "data") if name in values
        ]
        if tag == "table":
            self._title = ""
        elif tag == "tr":
            self.tables.setdefault(str(self._title), []).append([])
        elif tag in ("td", "th"):
            self.tables[str(self._title)][-1].append(["**"] if values.get("class") == "best" else [])

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if "style" in self._open:
            return
        self.text += data
        if "caption" in self._open:
            self._title = (self._title or "") + data
        elif ("td" in self._open or "th" in self._open) and data.strip():
            self.tables[str(self._title)][-1][-1].append(" ".join(data.split()))


@pytest.fixture(scope="module")
def page(runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Page:
    return Page(report.write(runs, tmp_path_factory.mktemp("page") / "report.html"))


def test_nothing_is_fetched_and_no_script_runs(page: Page) -> None:
    assert [one for one in page.fetched if not re.match(r"'?(data:|#)", one)] == []
    assert page.tags["script"] == 0
    assert not re.search(r"\son\w+=", page.source)
    assert page.tags["img"] == 3 * 8


def test_ids_are_unique_and_every_inner_link_has_its_target(page: Page) -> None:
    assert [name for name, count in Counter(page.ids).items() if count > 1] == []
    inner = {one.strip("'").removeprefix("#") for one in page.fetched if one.strip("'").startswith("#")}
    assert inner
    assert inner <= set(page.ids)


def test_the_page_begins_with_a_picture_a_sentence_and_a_table_and_the_rest_is_folded(page: Page) -> None:
    above = page.source[page.source.index("<main>") : page.source.index("<details>")]
    assert above.count("<svg") == 2  # attacks, and groups of classes beside them
    assert above.count("<table") == 1
    assert re.search(r'<p class="lead">Under autoattack, taet has the highest balanced accuracy, 38\.7 % \(', above)
    assert above.index("lead") < above.index("<svg") < above.index("<table")
    assert not re.search(r"<sup|▲|△|≈|\*", above)
    below = page.source[page.source.index("<details>") :]
    assert below.count("<details>") == below.count("</details>") == page.tags["details"]
    assert not re.search(r"</details>\s*<(table|svg|p)", below)
    assert (
        7
        <= sum("figure" in str(section.make) or section.make.__module__.endswith("figures") for section in SECTIONS) + 1
        <= 9
    )


def test_every_number_of_the_table_is_that_of_a_card(page: Page, runs: list[Path]) -> None:
    heads, *rows = page.tables["Balanced accuracy"]
    assert [head[0] for head in heads] == ["method", *ATTACKS, "tail", "all images"]
    assert {row[0][0] for row in rows} == {path.name for path in runs}
    for path in runs:
        card = ResultCard.load(path / "evaluation.json")
        (row,) = [row for row in rows if row[0][0] == path.name]
        found = [card.summary(attack) for attack in ATTACKS]
        hardest, clean = card.summary("autoattack"), card.summary("clean")
        expected = [(one.balanced, one.balanced_interval) for one in found]
        expected += [(hardest.groups["tail"], hardest.group_intervals["tail"])]
        expected += [(clean.accuracy, clean.accuracy_interval)]
        for cell, (value, interval) in zip(row[1:], expected, strict=True):
            assert [text for text in cell if text != "**"] == [percent(value), percent_interval(*interval)]
    lead = [float(row[4][-2]) for row in rows]
    assert lead == sorted(lead, reverse=True)


def test_bold_is_only_the_best_that_the_paired_comparison_decides(page: Page, runs: list[Path]) -> None:
    cards = {path.name: ResultCard.load(path / "evaluation.json") for path in runs}
    _, *rows = page.tables["Balanced accuracy"]
    for place, attack in enumerate(ATTACKS, 1):
        bold = [row[0][0] for row in rows if "**" in row[place]]
        best = max(cards, key=lambda name: cards[name].summary(attack).balanced)
        decided = all(
            compare_runs([cards[best]], [card], attack).decided for name, card in cards.items() if name != best
        )
        assert bold == ([best] if decided else []), attack
    assert sum("**" in cell for row in rows for cell in row) > 0


def test_seeds_are_means_and_differences_are_paired(make_card: MakeCard, tmp_path: Path) -> None:
    cards = [make_card(method, seed) for method in ("taet", "at") for seed in range(3)]
    found = Page(report.write(cards, tmp_path / "x.html"))
    heads, *rows = found.tables["Balanced accuracy"]
    assert heads[-1] == ["seeds"]
    values = [card.summary("pgd-20").balanced for card in cards[:3]]
    (row,) = [row for row in rows if row[0][0] == "taet"]
    assert row[3][-2] == percent(float(np.mean(values)))
    assert row[-1] == ["3"]
    difference = taet.results(cards).difference("at", "taet", "autoattack")
    assert difference is not None
    (_, (_, _, last)) = found.tables["Minus taet"]
    ends = f"{points(difference.low)} to {points(difference.high)}"
    assert last == [points(difference.value), ends + ("" if difference.decided else ", undecided")]


def test_one_row_has_no_best_and_no_difference(make_card: MakeCard, tmp_path: Path) -> None:
    found = Page(report.write(make_card("at"), tmp_path / "x.html"))
    assert "Under autoattack, at keeps a balanced accuracy of" in found.text
    assert not any("**" in cell for row in found.tables["Balanced accuracy"] for cell in row)
    assert "Differences" not in found.text


def test_warnings_provenance_and_missing_runs_are_named(page: Page, make_run: MakeRun, tmp_path: Path) -> None:
    expected = ["few-images: taet", "class nine has 9 test images.", "taet evaluate runs/taet", "ab" * 32, f"{10:064x}"]
    assert [words for words in expected if words not in page.text] == []
    leak = make_run(tmp_path / "a" / "at", "at", selection="best-test", deviations=["its own eps"])
    make_run(tmp_path / "a" / "taet", "taet", evaluated=False)
    found = Page(report.write(tmp_path / "a", tmp_path / "x.html", notes=["not run: mart: no"]))
    expected = [f"Not evaluated yet: {tmp_path}/a/taet.", "leak: at", "its own eps", "not run: mart: no", str(leak)]
    assert [words for words in expected if words not in found.text] == []
    with pytest.raises(UserError, match=r"no result card in .*taet; allowed: .* taet evaluate"):
        report.write(tmp_path / "a" / "taet", tmp_path / "x.html")


def test_several_test_sets_are_sections_of_their_own(make_card: MakeCard, tmp_path: Path) -> None:
    card = make_card("at")
    other = make_card("taet").changed(data={**card.data, "name": "other", "test_sha256": "cd" * 32})
    found = Page(report.write([card, other], tmp_path / "x.html"))
    assert (found.tags["article"], found.tags["h2"]) == (2, 2)
    assert "Adversarial robustness on digits-lt and other" in found.text
    assert [name for name, count in Counter(found.ids).items() if count > 1] == []


@pytest.mark.drawn
def test_the_same_cards_give_the_same_bytes_and_leave_matplotlib_as_it_was(
    runs: list[Path], make_card: MakeCard, tmp_path: Path
) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    first = report.write(runs[:1], tmp_path / "a.html").read_bytes()
    assert report.write(runs[:1], tmp_path / "b.html").read_bytes() == first
    assert dict(matplotlib.rcParams) == before
    for ending in ("md", "csv", "tex"):
        files = [report.write(make_card("at"), tmp_path / f"{name}.{ending}") for name in "ab"]
        assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.drawn
def test_hostile_names_stay_text(make_run: MakeRun, tmp_path: Path) -> None:
    names = (
        "<script>alert(1)</script>",
        "a & b \"c\" 'd'",
        "日本語",
        "$x_{1}$",
        "{{ 7 * 7 }}",
        "]]>",
        "__hidden",
        "12",
        "tail",
    )
    run = make_run(tmp_path / "<img src=x>", "at", names=names)
    found = Page(report.write([run], tmp_path / "out" / "report.html", title="<b>Title</b> & more"))
    assert (found.tags["script"], found.tags["b"], found.tags["img"]) == (0, 0, 3 * 8)
    assert [name for name in ("<b>Title</b> & more", *names) if name not in found.text] == []
    classes = [row[0] for row in found.tables["Under autoattack"]]
    assert ["12"] in classes  # without a sign that would read as a footnote
    assert ["class tail"] in classes
    text = report.write([run], tmp_path / "x.md").read_text()
    assert "\n<script" not in text


@pytest.mark.drawn
@pytest.mark.parametrize("count", [2, pytest.param(120, marks=pytest.mark.full)])
def test_any_number_of_classes(make_run: MakeRun, count: int, tmp_path: Path) -> None:
    names = tuple(f"class {index}" for index in range(count))
    path = report.write([make_run(tmp_path / one, one, names=names) for one in ("at", "taet")], tmp_path / "r.html")
    assert [name for name in names if name not in Page(path).text] == []
    assert path.stat().st_size < 3e6


def test_a_card_without_attacks_or_training_counts_has_a_report(make_card: MakeCard, tmp_path: Path) -> None:
    card = make_card("at")
    data = {name: value for name, value in card.data.items() if name != "train_class_counts"}
    bare = card.changed(seed=None, data=data, columns=card.columns[:1], run={})
    found = Page(report.write(bare, tmp_path / "x.html"))
    assert "On clean images, at keeps a balanced accuracy of" in found.text
    assert "Head, body" not in found.text
    unseen = bare.changed(data={**data, "class_names": [*data["class_names"], "never tested"]})
    assert "never tested" in Page(report.write(unseen, tmp_path / "x.html")).text


def test_the_other_forms_hold_the_same_numbers(runs: list[Path], tmp_path: Path) -> None:
    found = taet.results(runs)
    path = found.report(tmp_path / "x.csv")
    import pandas as pd

    read = pd.read_csv(path)
    assert read["accuracy"].to_numpy() == pytest.approx(found.table()["accuracy"].to_numpy(), abs=1e-6)
    summary = ResultCard.load(runs[0] / "evaluation.json").summary("autoattack")
    number = f"{percent(summary.balanced)} ({percent_interval(*summary.balanced_interval)})"
    text = report.write(found, tmp_path / "x.md").read_text()
    assert f"| {number} |" in text.replace("**", "")
    assert re.search(r"^\| method \| clean \| fgsm \| pgd-20 \|", text, re.MULTILINE)
    latex = report.write(found, tmp_path / "x.tex").read_text()
    assert number.replace("–", "--") in latex
    assert latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}") == 4


def test_signs_of_markdown_and_latex_are_escaped() -> None:
    one = table("A_title", {"a|b_c": {Text("50 %"): Text("1 & 2", "#3", bold=True)}})
    assert one.markdown().splitlines()[-1] == r"| a\|b\_c | **1 & 2 (#3)** |"
    assert r"a|b\_c & \textbf{1 \& 2 (\#3)} \\" in one.latex()


def test_a_figure_or_table_is_one_function_and_one_line(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mine(results: Results) -> Iterator[Panel | Table]:
        """What it shows, in words."""
        figure, _ = axes(2.0)
        yield draw(figure, "My figure", f"of {len(results.rows)} rows")

    monkeypatch.setattr(
        pages, "SECTIONS", (*SECTIONS, Section("My section", mine, lambda results: len(results.rows) > 1))
    )
    shown = report.write(runs, tmp_path / "x.html").read_text()
    assert (
        shown.index("<summary>My section</summary>")
        < shown.index("What it shows, in words.")
        < shown.index("My figure")
    )
    assert "My section" not in report.write(runs[:1], tmp_path / "x.html").read_text()


def test_the_tables_of_masks_are_counts_of_images(make_card: MakeCard) -> None:
    card = make_card("at")
    found = taet.results(card)
    (broken,) = tables.broken(found)
    clean, hard = card.column("clean").correct, card.column("autoattack").correct
    others = np.all([card.column(name).correct for name in ATTACKS if name not in ("clean", "autoattack")], axis=0)
    alone = int((clean & ~hard & others).sum())
    cell = broken.frame.iloc[0][Text("autoattack")]
    assert cell == Text(str(int((clean & ~hard).sum())), f"{alone} alone")
    (behaviour,) = tables.behaviour(found)
    natural, boundary = statistics.class_errors(clean, hard, card.labels, card.num_classes)
    texts = {str(head): str(cell) for head, cell in behaviour.frame.iloc[0].items()}
    assert texts["natural error"] == percent(float(natural.mean()))
    assert texts["boundary error"] == percent(float(boundary.mean()))


def test_only_a_report_is_replaced_and_nothing_of_a_run(make_card: MakeCard, runs: list[Path], tmp_path: Path) -> None:
    card = make_card("at")
    (tmp_path / "notes.html").write_text("my notes")
    for out, words in (
        (tmp_path / "notes.html", "is there and is no HTML page"),
        (tmp_path, "allowed: a file that ends in"),
        (tmp_path / "x.pdf", r"allowed: a file that ends in \.html, \.md, \.csv, \.tex"),
        (runs[0] / "x.html", "would be in the folder of a run"),
        (runs[0] / "run.json", "allowed: a file that ends in"),
    ):
        with pytest.raises(UserError, match=words):
            report.write(card, out)
    assert (tmp_path / "notes.html").read_text() == "my notes"
    out = report.write(card, tmp_path / "x.html")
    assert report.write(card, out) == out


def test_a_worse_model_fails_and_an_undecided_one_passes(make_card: MakeCard) -> None:
    old = make_card("taet")
    assert report.fail_if_worse(old, old) == []
    wrong = (old.labels + 1) % 10
    lost = {"correct": np.zeros(len(wrong), dtype=bool), "predictions": wrong, "parts": {}}
    columns = tuple(column.changed(**lost) if column.name == "pgd-20" else column for column in old.columns)
    new = old.changed(columns=columns)
    (line,) = report.fail_if_worse(new, old)
    assert line.startswith(f"worse under pgd-20: −{100 * old.summary('pgd-20').balanced:.1f} points")
    assert report.fail_if_worse(old, new) == []
    with pytest.raises(UserError, match="unknown column 'autoattack'"):
        report.fail_if_worse(new.changed(columns=columns[:-1]), old)
    other = old.changed(data={**old.data, "test_sha256": "cd" * 32})
    with pytest.raises(UserError, match="allowed: the same images"):
        report.fail_if_worse(other, old)


def test_a_damaged_card_or_epochs_of_other_weights_are_refused(make_card: MakeCard, tmp_path: Path) -> None:
    make_card("at").save(tmp_path / "at.json")
    (tmp_path / "at.metrics.jsonl").write_text(json.dumps({"weights_sha256": "0" * 64, "rows_sha256": "1"}) + "\n")
    with pytest.raises(UserError, match="was changed or damaged"):
        taet.results(tmp_path)
    (tmp_path / "at.metrics.jsonl").unlink()
    text = (tmp_path / "at.json").read_text()
    (tmp_path / "at.json").write_text(text.replace('"seed": 0', '"seed": 1', 1))
    with pytest.raises(UserError, match=r"at\.json"):
        taet.results(tmp_path / "at.json")


def test_importing_the_report_imports_neither_torch_nor_pandas() -> None:
    code = "import sys, taet.report; print([m for m in ('torch', 'numpy', 'pandas', 'matplotlib') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
