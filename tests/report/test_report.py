"""The report as a file: whole, self-contained, and every number that of a card."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from taet import methods, report, statistics
from taet.cli.report import runs_in
from taet.errors import UserError
from taet.evaluation.card import ResultCard
from taet.report import figures, measured, provenance, read, sentences, series, tables
from taet.settings import Run, override, to_json
from taet.training.folder import RunFolder

ATTACKS = ("clean", "fgsm", "pgd-20", "autoattack", "autoattack-10", "worst-case")
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


def test_nothing_is_fetched_and_no_script_runs_but_that_which_sorts(page: Page) -> None:
    outside = [str(link) for link in page.fetched if not re.match(r"\(?'?(data:|#)", str(link))]
    assert outside == []
    assert page.tags["script"] == 1
    sorts = (Path(report.__file__).parent / "sort.js.j2").read_text()
    assert page.source.count(sorts.strip()) == 1
    assert not re.search(r"fetch|XMLHttp|import|eval|innerHTML|localStorage|cookie", sorts)
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
    expected += ["taet: adversarial stage", "for drawing only: it did not choose the epoch", "perturbation × 15"]
    expected += ["class nine has 9 test images.", "taet evaluate runs/taet", "ab" * 32, f"{10:064x}", "bcl", "rcel"]
    assert [words for words in expected if words not in page.text] == []


@pytest.mark.drawn
def test_a_picture_has_a_pixel_for_every_pair_of_classes_or_is_not_drawn(
    page: Page, runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = "more classes than a picture can show"
    assert words not in page.text
    monkeypatch.setattr(statistics, "PAIRED_CLASSES", 9)
    other = Page(report.write(runs[:1], tmp_path / "report.html"))
    assert words in other.text
    assert "confusion matrix, per cent" in page.source
    assert "confusion matrix, per cent" not in other.source


def test_the_numbers_of_the_tables_are_those_of_the_cards(page: Page, runs: list[Path]) -> None:
    balanced, plain = page.tables[:2]
    heads = [name.split()[0] for _, name in balanced[0][1:]]
    assert heads == [*ATTACKS, "tail", "accuracy", "training", "flags"]
    for path in runs:
        card = ResultCard.load(path / "evaluation.json")
        (row,) = [row for row in balanced if row[0][1] == path.name]
        (plain_row,) = [row for row in plain if row[0][1] == path.name]
        summaries = [card.summary(attack) for attack in ATTACKS]
        hardest = card.summary("autoattack")
        expected = [(cells, s.balanced, s.balanced_interval) for cells, s in zip(row[1:7], summaries, strict=True)]
        expected += [
            (cells, s.accuracy, s.accuracy_interval) for cells, s in zip(plain_row[1:], summaries, strict=True)
        ]
        expected += [(row[7], hardest.groups["tail"], hardest.group_intervals["tail"])]
        expected += [(row[8], summaries[0].accuracy, summaries[0].accuracy_interval)]
        for (_, text), value, interval in expected:
            assert text.split()[0] == f"{100 * value:.1f}"
            assert text.split()[-1] == "–".join(f"{100 * bound:.1f}" for bound in interval)
        assert row[9][1] == "15 s 1.00 × at"
        assert row[10][1] == str(len(card.flags))


def test_of_many_classes_the_most_frequent_mistakes_are_listed(
    page: Page, runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "most frequent mistakes" not in page.text
    monkeypatch.setattr(tables, "NUMBERED_CLASSES", 9)
    found = Page(report.write(runs[:1], tmp_path / "report.html"))
    assert "Clean: the most frequent mistakes" in found.text
    card = ResultCard.load(runs[0] / "evaluation.json")
    (clean,) = [column for column in card.columns if column.name == "clean"]
    counts = statistics.confusion_matrix(card.labels, clean.predictions, card.num_classes)
    totals, names = counts.sum(1), card.data["class_names"]
    np.fill_diagonal(counts, 0)
    listed = next(rows for rows in found.tables if rows[0][1][1] == "Predicted")[1:]
    assert [int(row[2][1]) for row in listed] == sorted(counts.ravel().tolist(), reverse=True)[: len(listed)]
    for (_, true), (_, predicted), (_, images), (_, share) in listed:
        place = names.index(true), names.index(predicted)
        assert (images, share) == (str(counts[place]), f"{100 * counts[place] / totals[place[0]]:.1f}")
    assert len(listed) == tables.MOST_MISTAKES


def test_the_provenance_has_no_logits(runs: list[Path]) -> None:
    """A card keeps the model's answers to some images, by which it is known again."""
    found = read.read(runs[0])
    assert found.card is not None
    found.card.model["answers"] = [[0.123456, 1.0]]
    assert not any("0.123456" in text for _, text in provenance.provenance(found))


def test_rows_are_in_the_order_of_robustness_under_the_strongest_attack(page: Page) -> None:
    place = 1 + list(ATTACKS).index("autoattack")
    values = [float(row[place][1].split()[0]) for row in page.tables[0][1:]]
    assert values == sorted(values, reverse=True)


def test_best_and_second_best_are_marked_by_class_and_by_sign(page: Page) -> None:
    for column in range(1, 1 + len(ATTACKS)):
        cells = [row[column] for row in page.tables[0][1:]]
        order = np.argsort([float(text.split()[0]) for _, text in cells])
        assert (cells[order[-1]][0], cells[order[-1]][1].split()[1][0]) == ("best", "▲")
        assert (cells[order[-2]][0], cells[order[-2]][1].split()[1][0]) == ("second", "△")
        assert cells[order[0]][0] == ""


@pytest.mark.drawn
def test_the_same_runs_give_the_same_bytes(runs: list[Path], tmp_path: Path) -> None:
    first = report.write(runs[:1], tmp_path / "a.html").read_bytes()
    assert report.write(runs[:1], tmp_path / "b.html").read_bytes() == first


@pytest.mark.full
@pytest.mark.drawn
def test_drawing_leaves_matplotlib_as_it_was(runs: list[Path], tmp_path: Path) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    report.write(runs[:1], tmp_path / "report.html")
    assert dict(matplotlib.rcParams) == before


@pytest.mark.drawn
def test_hostile_names_stay_text(make_run: MakeRun, tmp_path: Path) -> None:
    names = ("<script>alert(1)</script>", "a & b \"c\" 'd'", "日本語", "$x_{1}$", "{{ 7 * 7 }}", "]]>", "__hidden")
    run = make_run(tmp_path / "<img src=x>", "at", names=names)
    page = Page(report.write([run], tmp_path / "out" / "report.html", title="<b>Title</b> & more"))
    assert (page.tags["script"], page.tags["b"]) == (1, 0)  # its own, which sorts
    assert page.tags["img"] == 3 * 8
    assert "<b>Title</b> & more" in page.text
    assert [name for name in names if name not in page.text] == []


@pytest.mark.full
@pytest.mark.drawn
@pytest.mark.parametrize(
    "count", [pytest.param(2, marks=pytest.mark.full), pytest.param(3, marks=pytest.mark.full), 100]
)
def test_any_number_of_classes(make_run: MakeRun, count: int, tmp_path: Path) -> None:
    names = tuple(f"class {index}" for index in range(count))
    methods = ("taet",) if count == 100 else ("at", "taet")
    path = report.write([make_run(tmp_path / one, one, names=names) for one in methods], tmp_path / "r.html")
    page = Page(path)
    assert page.tags["svg"] > 9
    assert [name for name in names if name not in page.text] == []
    assert path.stat().st_size < 3e6


def test_a_run_without_a_card_is_named_and_shows_its_curves(make_run: MakeRun, tmp_path: Path) -> None:
    done, waiting = make_run(tmp_path / "at"), make_run(tmp_path / "taet", "taet", evaluated=False, examples=False)
    page = Page(report.write([done, waiting], tmp_path / "report.html"))
    assert "Not evaluated yet: taet." in " ".join(page.text.split())
    assert "run-2-loss-figure_1" in page.ids
    assert all(len(table) == 2 for table in page.tables[:2])  # a head and the one that has a card
    alone = Page(report.write([waiting], tmp_path / "alone.html"))
    assert "No run has a result card" in alone.text
    assert "No run has kept example images." in alone.text
    assert alone.tables == []


def test_one_run_has_no_best(make_run: MakeRun, tmp_path: Path) -> None:
    page = Page(report.write([make_run(tmp_path / "at")], tmp_path / "report.html"))
    assert "▲" not in page.text
    assert "Under autoattack, at keeps a balanced accuracy of" in page.text


def test_a_card_of_a_version_with_fewer_settings_is_a_seed_of_the_same_row(make_card: Callable[..., Any]) -> None:
    new = json.loads(json.dumps(to_json(Run(settings=methods.find("at").Config()))))
    old = {**new, "outer": {name: value for name, value in new["outer"].items() if name != "label_smoothing"}}
    other = {**new, "outer": {**new["outer"], "label_smoothing": 0.1}}
    cards = [make_card("at", seed, run={"config": stored}) for seed, stored in enumerate((new, old, other))]
    runs = [read.ReportedRun(Path(str(card.seed)), None, (), card, None, read.data_of_card(card)) for card in cards]
    rows = series.grouped(runs, [None] * 3)
    assert [[run.seed for run in row.runs] for row in rows] == [[0, 1], [2]]
    assert rows[1].label == "at (outer.label_smoothing 0.1)"


def test_own_images_of_a_version_without_mirror_were_mirrored_and_are_another_row(
    make_card: Callable[..., Any],
) -> None:
    run = override(Run(settings=methods.find("at").Config()), {"data.name": "folder:x"})
    new = json.loads(json.dumps(to_json(run)))
    old = {**new, "data": {name: value for name, value in new["data"].items() if name != "mirror"}}
    cards = [make_card("at", seed, run={"config": stored}) for seed, stored in enumerate((new, old))]
    runs = [read.ReportedRun(Path(str(card.seed)), None, (), card, None, read.data_of_card(card)) for card in cards]
    assert len(series.grouped(runs, [None] * 2)) == 2


@pytest.mark.full
def test_seeds_are_one_row_with_mean_and_standard_error_and_a_repeated_folder_is_one(
    make_run: MakeRun, tmp_path: Path
) -> None:
    seeds = [make_run(tmp_path / f"s{seed}", "taet", seed=seed) for seed in range(3)]
    other = make_run(tmp_path / "at", "at", seed=0)
    page = Page(report.write([*seeds, seeds[0], other], tmp_path / "report.html"))
    rows = {row[0][1]: row for row in page.tables[0][1:]}
    assert set(rows) == {"taet n = 3", "at"}
    cards = [ResultCard.load(path / "evaluation.json") for path in seeds]
    for column, attack in enumerate(ATTACKS, 1):
        values = np.array([card.summary(attack).balanced for card in cards])
        text = rows["taet n = 3"][column][1].split()
        assert text[0] == f"{100 * values.mean():.1f}"
        assert text[-1] == f"({100 * values.std(ddof=1) / np.sqrt(3):.1f})"
    assert "4 runs (taet, at; 1 to 3 seeds each)" in page.text
    assert "the standard error of the mean over n seeds, in brackets, or, for one seed, 95 % intervals" in page.text
    assert page.tags["img"] == 2 * 3 * 8  # examples are those of the first seed
    assert "raised for 3 of 3 seeds" in page.text
    assert [name for name, count in Counter(page.ids).items() if count > 1] == []


@pytest.mark.full
def test_a_row_whose_runs_were_not_all_attacked_alike_says_how_many_were(make_run: MakeRun, tmp_path: Path) -> None:
    seeds = [make_run(tmp_path / f"s{seed}", "at", seed=seed, evaluated=seed < 2) for seed in range(3)]
    page = Page(report.write(seeds, tmp_path / "report.html"))
    (row,) = page.tables[0][1:]
    assert row[1][1].endswith(", n = 2")
    assert "Not evaluated yet: at (seed 2)." in " ".join(page.text.split())


def test_a_run_that_repeats_a_seed_is_a_row_of_its_own(make_run: MakeRun, tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, "taet", seed=seed) for name, seed in (("s0", 0), ("s1", 1), ("again", 1))]
    page = Page(report.write(runs, tmp_path / "report.html"))
    assert {row[0][1] for row in page.tables[0][1:]} == {"taet (s0, s1) n = 2", "taet (again)"}


@pytest.mark.full
def test_runs_of_other_settings_are_named_by_them(make_run: MakeRun, tmp_path: Path) -> None:
    runs = [make_run(tmp_path / str(seed), "at", seed=seed) for seed in (0, 1)]
    for path in runs[1:]:
        record = json.loads((path / "run.json").read_text())
        record["run"]["outer"]["name"] = "balanced-softmax"
        record["run"]["training"]["threads"] = 7  # of the machine: no setting of its own
        (path / "run.json").write_text(json.dumps(record))
        card = ResultCard.load(path)
        card.changed(run={"config": record["run"]}).save(path / "evaluation.json")
    page = Page(report.write(runs, tmp_path / "report.html"))
    assert {row[0][1] for row in page.tables[0][1:]} == {"at (outer cross-entropy)", "at (outer balanced-softmax)"}


@pytest.mark.full
def test_names_and_what_was_not_run_are_shown_as_given(make_run: MakeRun, tmp_path: Path) -> None:
    runs = [make_run(tmp_path / str(seed), "at", seed=seed % 2) for seed in range(4)]
    names = ["at", "at", "at + bsl", "at + bsl"]
    page = Page(report.write(runs, tmp_path / "r.html", names=names, not_run=[("harl + bsl", "it takes <none>")]))
    assert {row[0][1] for row in page.tables[0][1:]} == {"at n = 2", "at + bsl n = 2"}
    assert [("", "harl + bsl"), ("words", "it takes <none>")] in [row for table in page.tables for row in table]
    assert "#not-run" in page.links


@pytest.mark.full
def test_the_cost_is_relative_to_at_only_on_the_same_machine(make_run: MakeRun, tmp_path: Path) -> None:
    runs = [make_run(tmp_path / method, method) for method in ("at", "taet", "harl")]
    record = json.loads((runs[1] / "run.json").read_text()) | {"device": "cuda: another"}
    (runs[1] / "run.json").write_text(json.dumps(record))
    rows = Page(report.write(runs, tmp_path / "r.html")).tables[0][1:]
    costs = {row[0][1]: row[-2][1] for row in rows}
    assert costs == {"at": "15 s 1.00 × at", "taet": "15 s", "harl": "15 s 1.00 × at"}


@pytest.mark.full
def test_many_methods_have_a_figure_of_curves_each_and_no_figure_of_all(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [make_run(tmp_path / method, method, epochs=2, examples=False) for method in ("taet", "at")]
    few = Page(report.write(runs, tmp_path / "r.html"))
    monkeypatch.setattr(series, "MANY", 1)
    many = Page(report.write(runs, tmp_path / "r.html"))
    assert {"data-1-dots-0-figure_1", "data-1-curve-3-figure_1"} <= set(few.ids)
    assert {"run-1-curve-figure_1", "run-2-curve-figure_1"} <= set(many.ids)
    assert not [name for name in many.ids if name.startswith(("data-1-dots", "data-1-curve"))]
    assert many.tags["details"] > few.tags["details"]
    assert "2 runs (2 methods and settings)" in many.text


@pytest.mark.full
def test_a_method_on_two_data_sets_needs_no_detail(make_run: MakeRun, tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "ten", "at"), make_run(tmp_path / "two", "at", names=("a", "b"))]
    page = Page(report.write(runs, tmp_path / "report.html"))
    heads = [table[1][0][1] for table in page.tables if table[0][0][1] == "Method"]
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
    assert "on which the delivered epoch was chosen: a leak" in page.text
    assert "for drawing only" not in page.text


def test_the_last_epoch_of_a_run_that_chose_another_on_the_test_set_is_no_leak(
    make_run: MakeRun, tmp_path: Path
) -> None:
    """Its card, made with `--weights model-last`, with the epochs beside it."""
    run = make_run(tmp_path / "at", selection="best-test")
    card = ResultCard.load(run)
    last = card.changed(model={**card.model, "selection": "last", "leak": False})
    last.save(tmp_path / "last.json")
    read.write_rows(tmp_path / "last.json", RunFolder(run).rows, card.model["weights_sha256"])
    page = Page(report.write([tmp_path / "last.json"], tmp_path / "report.html"))
    assert "the test set, for drawing only: it did not choose the epoch" in page.text
    assert "a leak" not in page.text


@pytest.mark.full
def test_rows_that_leave_the_protocol_are_marked_in_every_table_with_the_words_below_it(
    make_run: MakeRun, tmp_path: Path
) -> None:
    runs = [make_run(tmp_path / "at")]
    runs += [make_run(tmp_path / f"las{seed}", "las-at", seed=seed, deviations=["its <own> eps"]) for seed in range(2)]
    runs += [make_run(tmp_path / "lt", "robust-lt", deviations=["its <own> eps", "eps by class"])]
    page = Page(report.write(runs, tmp_path / "report.html"))
    assert page.tags["own"] == 0
    rows = {" ".join(row[0][1].split()) for row in page.tables[0][1:]}
    assert rows == {"at", "las-at 1 n = 2", "robust-lt 1, 2"}
    for table in page.tables:
        names = [row[0][1] for row in table[1:]] if table[0][0][1] != "Class" else [name for _, name in table[0][3:]]
        names += [name for _, name in table[0][1:]] if table[0][0][1] == "Row minus column" else []
        for method, marks in (("at", None), ("las-at", "1"), ("robust-lt", "1, 2")):
            found = [" ".join(name.split()).removeprefix(method) for name in names if name.split()[0] == method]
            assert found
            assert all(rest.startswith(f" {marks}") if marks else " 1" not in rest for rest in found)
    notes = re.findall(r'<p class="note"><sup>(\d)</sup> leaves the protocol: ([^<]*)</p>', page.source)
    assert notes == [("1", "its &lt;own&gt; eps"), ("2", "eps by class")] * len(page.tables)


def test_a_page_of_runs_that_keep_the_protocol_has_no_footnotes(page: Page) -> None:
    assert page.tags["sup"] == 0
    assert "leaves the protocol" not in page.text


def test_classes_with_few_test_images_are_marked(page: Page) -> None:
    assert "Fewer than 50 test images: three (42)," in " ".join(page.text.split())
    assert "two (54)" not in page.text


@pytest.mark.full
@pytest.mark.drawn
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
    with pytest.raises(UserError, match=r"no run folder \(it has neither run.json nor evaluation.json\)"):
        report.write([tmp_path], tmp_path / "report.html")
    broken = make_run(tmp_path / "broken")
    lines = (broken / "metrics.jsonl").read_text().splitlines(keepends=True)
    (broken / "metrics.jsonl").write_text("".join([lines[0], lines[1][:20] + "\n", *lines[2:]]))
    with pytest.raises(UserError, match="line 2 is damaged"):
        report.write([broken], tmp_path / "report.html")
    (broken / "metrics.jsonl").write_text('{"epoch": 1}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl: line 1: the field 'stage' is missing"):
        report.write([broken], tmp_path / "report.html")
    (broken / "metrics.jsonl").unlink()
    (broken / "artifacts" / "examples.npz").write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(UserError, match="not the file that the result card names; evaluate again"):
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
    with pytest.raises(UserError, match=r"run\.json: truncated or not JSON"):
        report.write([broken], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_a_card_of_another_run_is_not_shown_under_this_runs_name(make_run: MakeRun, tmp_path: Path) -> None:
    mine, other = (make_run(tmp_path / f"seed-{seed}", seed=seed, epochs=1, examples=False) for seed in (0, 1))
    card = ResultCard.load(mine)

    def refused(change: ResultCard) -> str:
        change.save(mine / "evaluation.json")
        with pytest.raises(UserError) as error:
            report.write([mine], tmp_path / "report.html")
        return str(error.value)

    assert "belongs to another run than" in refused(ResultCard.load(other))
    assert "belongs to another run than" in refused(card.changed(run={}))
    moved = card.changed(data={**card.data, "test_sha256": "0" * 64})
    assert "was made with other test images than the run" in refused(moved)
    renamed = card.changed(data={**card.data, "class_names": [*card.class_names[1:], "zero"]})
    assert "was made with other test images than the run" in refused(renamed)
    (mine / "model.safetensors").write_bytes(b"other weights")
    assert "model.safetensors" in refused(card)
    assert not (tmp_path / "report.html").exists()
    (mine / "model.safetensors").unlink()
    card.save(mine / "evaluation.json")
    report.write([mine], tmp_path / "report.html")


def test_a_card_without_a_checksum_is_said_to_be_unchecked_once(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(tmp_path / "at", epochs=1, examples=False)
    assert "no checksum" not in report.write([run], tmp_path / "report.html").read_text()
    stored = json.loads((run / "evaluation.json").read_text())
    del stored["sha256"]  # as an older version wrote it
    (run / "evaluation.json").write_text(json.dumps(stored))
    page = report.write([run], tmp_path / "report.html").read_text()
    assert page.count("The result cards of at are of an older version and have no checksum") == 1


def test_importing_the_report_is_light() -> None:
    code = "import sys, taet.report; print([m for m in ('torch', 'numpy', 'matplotlib', 'jinja2') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_a_place_that_cannot_be_written_is_one_line(make_run: MakeRun, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot make the folder"):
        report.write([make_run(tmp_path / "at")], tmp_path / "file" / "report.html")


@pytest.mark.full
def test_no_file_but_a_page_is_replaced(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(tmp_path / "at", epochs=1)
    for name in ("run.json", "metrics.jsonl", "evaluation.json"):
        before = (run / name).read_bytes()
        with pytest.raises(UserError, match=f"{name} is there and is no HTML page; allowed: a new file, or an earlier"):
            report.write([run], run / name)
        assert (run / name).read_bytes() == before
    for folder in (tmp_path, ""):
        with pytest.raises(UserError, match=r"report: got the folder .*; allowed: a file, e\.g\. .*report\.html"):
            report.write([run], folder)
    (tmp_path / "link.html").symlink_to(run / "run.json")
    with pytest.raises(UserError, match="no HTML page"):
        report.write([run], tmp_path / "link.html")
    out = tmp_path / "report.html"
    out.touch()
    page = report.write([run], out).read_bytes()
    assert report.write([run], out).read_bytes() == page
    (tmp_path / "to-it.html").symlink_to(out)
    with pytest.raises(UserError, match="got a link; allowed: an ordinary file"):
        report.write([run], tmp_path / "to-it.html")
    assert out.read_bytes() == page


@pytest.mark.full
def test_a_device_or_a_fifo_is_written_into(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(tmp_path / "at", epochs=1)
    page = report.write([run], tmp_path / "report.html").read_bytes()
    pipe, null = tmp_path / "pipe", Path("/dev/null")
    os.mkfifo(pipe)
    with ThreadPoolExecutor() as pool:
        reading = pool.submit(pipe.read_bytes)
        report.write([run], pipe)
        assert reading.result() == page
    assert pipe.is_fifo()
    before = null.stat()
    assert report.write([run], null) == null
    assert null.is_char_device()
    assert null.stat().st_ino == before.st_ino
    assert not [path for path in (*tmp_path.iterdir(), *run.iterdir()) if path.name.endswith(".part")]


def test_the_name_of_a_folder_may_be_any_bytes(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(tmp_path / os.fsdecode(b"caf\xe9"), epochs=1)
    assert "caf\\udce9" in report.write([run], tmp_path / "report.html").read_text()


@pytest.mark.full
@pytest.mark.drawn
def test_no_name_of_a_class_is_read_as_anything_but_text(make_run: MakeRun, tmp_path: Path) -> None:
    names = ("$\\x$", "a$b", "_^{", "\\frac", "%s {} {{x}}", "x" * 1000, "\n\t", "\x7f", "＄", "😀")
    run = make_run(tmp_path / "run", "taet", names=names, epochs=1)
    page = Page(report.write([run], tmp_path / "report.html"))
    assert [name for name in names[:5] if name not in page.text] == []


@pytest.mark.drawn
@pytest.mark.parametrize(("count", "drawn"), [(100, True), (101, False)])
def test_intervals_of_classes_are_drawn_where_there_is_room(
    make_run: MakeRun, tmp_path: Path, count: int, drawn: bool
) -> None:
    folder = read.read(make_run(tmp_path / "run", names=[f"c{number}" for number in range(count)], epochs=1))
    runs = measured.measured(series.grouped([folder], [None]))
    clean = next(attack for attack in runs[0].summaries if attack.norm is None)
    with figures.style():
        (panel,) = figures.class_bars(runs, clean, None)
    assert ("LineCollection" in panel.svg) == drawn


def test_a_class_without_test_images_is_told_at_the_top(make_run: MakeRun, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", examples=False)
    card = ResultCard.load(folder)
    (folder / "evaluation.json").unlink()
    every = Page(report.write([folder], tmp_path / "r.html"))
    kept = card.labels != 9
    columns = [
        one.changed(correct=one.correct[kept], predictions=one.predictions[kept], parts={}) for one in card.columns
    ]
    card.changed(labels=card.labels[kept], columns=tuple(columns)).save(folder / "evaluation.json")
    some = Page(report.write([folder], tmp_path / "r.html"))
    assert "balanced numbers are over 9 of 10 classes" in some.text
    assert "balanced numbers are over" not in every.text


def test_runs_of_different_precision_are_named() -> None:
    def series(label: str, *precisions: str) -> Any:
        return SimpleNamespace(
            label=label, runs=[SimpleNamespace(settings={"training.precision": one}) for one in precisions]
        )

    assert sentences.precisions([series("at", "bf16", "bf16"), series("he", "bf16")]) == ""
    found = sentences.precisions([series("at", "bf16", "float32"), series("he", "float32")])
    assert found.endswith("which may change results: at in bf16; at and he in float32.")


@pytest.mark.full
def test_a_committed_card_is_reported_with_the_epochs_beside_it(runs: list[Path], tmp_path: Path) -> None:
    """As `taet reproduce --save` writes them: the card, and some of its epochs."""
    for run in runs[:2]:
        shutil.copy(run / "evaluation.json", tmp_path / f"{run.name}.json")
    card = tmp_path / f"{runs[0].name}.json"
    rows, weights = RunFolder(runs[0]).rows, ResultCard.load(card).model["weights_sha256"]
    read.write_rows(card, rows[::4], weights)
    found = [read.read(tmp_path / f"{run.name}.json") for run in runs[:2]]
    assert [epoch.epoch for epoch in found[0].epochs] == [1, 5, 9]
    assert (found[0].seconds, found[1].epochs) == (0.0, ())
    assert found[0].card is not None
    assert found[0].card.model == json.loads((runs[0] / "evaluation.json").read_text())["model"]
    assert runs_in(tmp_path) == sorted(tmp_path.glob("*.json"))
    page = report.write(runs_in(tmp_path), tmp_path / "page.html").read_text()
    assert "Accuracy of each class over the epochs" in page

    kept = card.with_suffix(".metrics.jsonl")
    lines = kept.read_text().splitlines(keepends=True)
    for content, said in (
        (lines[0] + "{", "line 2 is damaged"),
        (lines[0] + lines[1], "was changed or damaged"),
        ("".join(lines[1:]), "was changed or damaged"),
        ("", "was changed or damaged"),
        ("".join(lines).replace(weights, "0" * 64), "the epochs are those of other weights than the card's"),
    ):
        kept.write_text(content)
        with pytest.raises(UserError, match=said):
            read.read(card)


@pytest.mark.full
def test_classes_are_shown_under_the_attack_that_is_asked_for(runs: list[Path], tmp_path: Path) -> None:
    page = report.write(runs, tmp_path / "page.html", class_attack="pgd-20").read_text()
    assert "filled: under pgd-20." in page
    with pytest.raises(UserError, match=r"unknown attack of these runs 'pdg-20'.*did you mean 'pgd-20'"):
        report.write(runs, tmp_path / "other.html", class_attack="pdg-20")
