"""The report as a file: whole, self-contained, and every number that of a card."""

import json
import re
import shutil
import subprocess
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

import taet
from taet import report
from taet.errors import UserError
from taet.evaluation.bundles import curves
from taet.evaluation.card import ResultCard, compare_runs
from taet.evaluation.rules import flagged
from taet.formatting import percent, percent_interval, points
from taet.report import figures
from taet.report import page as page_parts
from taet.report.figures import Panel
from taet.report.tables import Text, headline, latex, markdown, order, table
from tests.calls import PATIENCE
from tests.report.test_results import PROBE, MakeCard, right

ATTACKS = ("clean", "fgsm", "pgd-20", "autoattack", "autoattack-10")


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), "")
SWITCHES = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--allow-file-access-from-files"]
MEASURE = """<script>addEventListener("load", () => {
  const all = name => [...document.querySelectorAll(name)], wide = s => s.scrollWidth > s.clientWidth;
  all("details").forEach(d => d.open = true);
  const flat = all("svg.figure").filter(s => s.getBoundingClientRect().height < 50).length;
  const said = s => s.nextElementSibling?.className === "hint" && s.nextElementSibling.offsetHeight > 0;
  const unsaid = all(".scroll").filter(s => wide(s) && !said(s)).length;
  const found = [innerWidth, document.documentElement.scrollWidth, flat, all(".scroll").filter(wide).length, unsaid];
  document.body.append(`found ${JSON.stringify(found)}`);
});</script>"""


class Page(HTMLParser):
    """What a browser would ask for, the cells of the tables by row, and all text outside style rules."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.fetched, self._open = list[str](), list[str]()
        self.tags: Counter[str] = Counter()
        self.tables: dict[str, list[list[list[str]]]] = {}
        """By their captions: rows of cells, each the texts of a cell; bold ones begin with **."""
        self.text = self._title = ""
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.fetched += [one for one in re.findall(r"url\(([^)]*)\)|@import", self.source) if one]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self._open.append(tag)
        values = dict(attrs)
        self.fetched += [values[name] or "" for name in ("src", "href", "xlink:href", "srcset") if name in values]
        if tag == "table":
            self._title = ""
        elif tag == "tr":
            self.tables.setdefault(self._title, []).append([])
        elif tag in ("td", "th"):
            self.tables[self._title][-1].append(["**"] if values.get("class") == "best" else [])

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if "style" in self._open:
            return
        self.text += data
        if "caption" in self._open:
            self._title += data
        elif ("td" in self._open or "th" in self._open) and data.strip():
            self.tables[self._title][-1][-1].append(" ".join(data.split()))


@pytest.fixture(scope="module")
def page(cards: dict[str, ResultCard], tmp_path_factory: pytest.TempPathFactory) -> Page:
    return Page(report.write(cards.values(), tmp_path_factory.mktemp("page") / "report.html"))


@pytest.fixture(scope="module")
def of_run(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Page:
    """The page of a trained run."""
    return Page(report.write(run, tmp_path_factory.mktemp("page") / "report.html"))


def test_nothing_is_fetched_and_no_script_runs(page: Page, of_run: Page) -> None:
    for one in (page, of_run):
        assert [of for of in one.fetched if not re.match(r"'?(data:|#)", of)] == []
        assert one.tags["script"] == 0
        assert not re.search(r"\son\w+=", one.source)


@pytest.mark.full
@pytest.mark.browser
@pytest.mark.skipif(not CHROMIUM, reason="no Chromium here")
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_scrolls_sideways_but_tables_that_say_so(of_run: Page, page: Page, tmp_path: Path, width: int) -> None:
    for one in (of_run, page):
        (tmp_path / "page.html").write_text(one.source.replace("</body>", MEASURE + "</body>"))
        # A window cannot be as narrow as a phone everywhere; a frame can.
        frame = f'<iframe src="page.html" style="border:0;width:{width}px;height:2000px"></iframe>'
        relay = "addEventListener('load', () => document.body.append(frames[0].document.body.innerText))"
        (tmp_path / "frame.html").write_text(f"<body style='margin:0'>{frame}<script>{relay}</script></body>")
        words = [CHROMIUM, *SWITCHES, f"--user-data-dir={tmp_path}", "--dump-dom", (tmp_path / "frame.html").as_uri()]
        dom = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE, check=True).stdout
        (found,) = re.findall(r"found (\[.*?\])", dom)
        inner, scrolled, flat, scrolls, unsaid = json.loads(found)
        assert inner == width >= scrolled
        assert flat == 0
        if width == 390:
            assert scrolls > 1
            assert unsaid == 0


def test_the_page_begins_with_a_picture_a_sentence_and_a_table_and_the_rest_is_folded(page: Page) -> None:
    above = page.source[page.source.index("<main>") : page.source.index("<details>")]
    assert above.count('<svg class="figure"') == 2  # attacks, and groups of classes beside them
    assert above.count("<table") == 1
    assert re.search(r'<p class="lead">Under autoattack, taet has the highest balanced accuracy, 38\.7 % \(', above)
    assert above.index("lead") < above.index("<svg") < above.index("<table")
    below = page.source[page.source.index("<details>") :]
    assert below.count("<details>") == below.count("</details>") == page.tags["details"]


def test_every_number_of_the_table_is_that_of_a_card_and_bold_is_decided(
    page: Page, cards: dict[str, ResultCard]
) -> None:
    heads, *rows = page.tables["Balanced accuracy"]
    assert [head[0] for head in heads] == ["method", *ATTACKS, "tail", "all images"]
    assert {row[0][0] for row in rows} == {*cards}
    for row in rows:
        card = cards[row[0][0]]
        hardest, clean = card.summary("autoattack"), card.summary("clean")
        expected = [(one.balanced, one.balanced_interval) for one in map(card.summary, ATTACKS)]
        expected += [(hardest.groups["tail"], hardest.group_intervals["tail"])]
        expected += [(clean.accuracy, clean.accuracy_interval)]
        for cell, (value, interval) in zip(row[1:], expected, strict=True):
            assert [text for text in cell if text != "**"] == [percent(value), percent_interval(*interval)]
    lead = [float(row[4][-2]) for row in rows]
    assert lead == sorted(lead, reverse=True)
    for place, attack in enumerate(ATTACKS, 1):
        bold = [row[0][0] for row in rows if "**" in row[place]]
        best = max(cards, key=lambda name: cards[name].summary(attack).balanced)
        others = [card for name, card in cards.items() if name != best]
        decided = all(compare_runs([cards[best]], [card], attack).decided for card in others)
        assert bold == ([best] if decided else []), attack
    assert any("**" in cell for row in rows for cell in row)


def test_seeds_are_means_and_differences_are_paired(make_card: MakeCard, tmp_path: Path) -> None:
    cards = [make_card(method, seed) for method in ("taet", "at") for seed in range(3)]
    cards[-1] = cards[-1].changed(columns=cards[-1].columns[:-1])
    found = Page(report.write(cards, tmp_path / "x.html"))
    heads, *rows = found.tables["Balanced accuracy"]
    assert heads[-1] == ["seeds"]
    (row,) = [row for row in rows if row[0][0] == "taet"]
    assert row[3][-2] == percent(sum(card.summary("pgd-20").balanced for card in cards[:3]) / 3)
    assert {row[0][0]: row[-1] for row in rows} == {"taet": ["3"], "at": ["2 or 3"]}
    difference = taet.results(cards).difference("at", "taet", "autoattack")
    (_, (_, _, last)) = found.tables["Difference from taet"]
    ends = f"{points(difference.low)} to {points(difference.high)}"
    assert last == [points(difference.value), ends + ("" if difference.decided else ", undecided") + ", 2 pairs"]


def test_a_run_shows_its_curves_and_where_it_comes_from(of_run: Page, run: Path) -> None:
    card = ResultCard.load(run / "evaluation.json")
    expected = ["Training curves", "Number of steps", "Clean images, test split", str(run), card.command]
    expected += [card.model["weights_sha256"], *(flag["text"] for flag in card.flags)]
    assert [words for words in expected if words not in of_run.text] == []
    assert re.search(r"Under \S+, at keeps a balanced accuracy of", of_run.text)
    assert not any("**" in cell for row in of_run.tables["Balanced accuracy"] for cell in row)
    assert "Differences" not in of_run.text


def shares(panel: Panel, along: int) -> dict[str, list[float]]:
    """What the markers of each name show, read off the ticks in per cent: along x (0), row by row, or along y (1)."""
    ticks = [(place[along] - 4 * along, float(place[3][:-2])) for place in panel.words if place[3].endswith(" %")]
    (first, low), (last, high) = ticks[0], ticks[-1]  # a line of text begins 4 pixels below the middle of its letters
    found = {one.name: re.findall(r"M([\d.]+) ([\d.]+)m", one.points) for one in panel.marks}
    ordered = {name: sorted(places, key=lambda at: float(at[1 - along])) for name, places in found.items()}
    read = lambda at: low + (float(at[along]) - first) / (last - first) * (high - low)  # noqa: E731
    return {name: [*map(read, places)] for name, places in ordered.items()}


def test_figures_show_the_numbers_of_the_cards(cards: dict[str, ResultCard], run: Path) -> None:
    found = taet.results(cards.values())
    attacks, groups = figures.overview(found)
    assert [one.name for one in attacks.marks] == ["clean", "fgsm", "pgd-20", "autoattack-10", "autoattack"]
    for name, shown in shares(attacks, 0).items():
        assert shown == pytest.approx([100 * cards[row].summary(name).balanced for row in order(found)], abs=0.1)
    for name, shown in shares(groups, 0).items():
        hardest = [cards[row].summary("autoattack") for row in order(found)]
        assert shown == pytest.approx([100 * one.groups[name] for one in hardest], abs=0.1)
    (card,), (curve,) = taet.results(run).cards, figures.strength(taet.results(run))
    columns = curves(card)["steps"].values()
    assert shares(curve, 1)["at"] == pytest.approx([100 * card.summary_of(one).balanced for one in columns], abs=0.2)


def test_the_sentence_says_what_its_lead_does_not_cover(make_card: MakeCard) -> None:
    best, other = (right(make_card(method), share, *ATTACKS) for method, share in (("at", 0.9), ("taet", 0.3)))
    end = "its lead over taet is more than chance; with one seed this says which model is better, not which method."
    assert page_parts.lead(taet.results(best, other)).endswith(f"; {end}")
    leaked = best.changed(model={**best.model, "leak": True})
    found = {"repeat_difference": 0.1}, {"images": 250, "pgd_correct": 200, "scaled_pgd_correct": 100}
    random, flat = (best.changed(probe=PROBE | facts) for facts in found)
    for doubtful, reason in (
        (random, "gradients may mislead attacks: randomised"),
        (leaked, "its epoch was chosen on the test images"),
        (flat.changed(columns=flat.columns[:3]), "gradients may mislead attacks: logit-scale"),  # PGD, not AutoAttack
        (flat, ""),
        (random.changed(columns=random.columns[:1]), ""),
    ):
        end = f"), which may be too high ({reason})." if reason else ")."
        assert page_parts.lead(taet.results(doubtful)).endswith(end)
    seeds = [right(make_card(m, seed), share, *ATTACKS) for m, share in (("at", 0.9), ("taet", 0.3)) for seed in (0, 1)]
    assert page_parts.lead(taet.results(seeds)).endswith("its lead over taet is more than chance.")
    assert "one seed" in page_parts.lead(taet.results(seeds[:3], right(make_card("taet", 2), 0.3, *ATTACKS)))


def test_seeds_that_one_side_lacks_mislead_neither_a_sentence_nor_a_curve(make_card: MakeCard) -> None:
    cards = [right(make_card("at", seed), share, *ATTACKS) for seed, share in enumerate((0.2, 1, 1))]
    lead = page_parts.lead(taet.results([*cards, right(make_card("at-bsl"), 0.6, *ATTACKS)]))
    assert lead.endswith("; of the runs with seeds of both, those of at-bsl are better.")
    points = pd.DataFrame([("at", 0, 1, 0.5), ("at", 0, 2, 0.6), ("at", 1, 2, 0.8)], columns=["row", "seed", "x", "y"])
    assert figures.of_all_seeds(points)["x"].tolist() == [2, 2]
    curved = []
    for card, step in zip(cards, (1, 1, 4), strict=True):  # the last was attacked with another step size
        known, own = card.column("pgd-20"), {"step_size": step / 255, "seed": card.seed}
        add = (known.changed(name=f"pgd-{n}", parameters={**own, "steps": n}, curve="steps") for n in (5, 10, 50))
        curved.append(card.changed(columns=(*card.columns, *add)))
    assert [*figures.strength(taet.results(curved))] == [*figures.strength(taet.results(curved[:2]))]


def test_warnings_notes_and_missing_runs_are_named(page: Page, make_card: MakeCard, run: Path, tmp_path: Path) -> None:
    expected = [
        "small-test-set: at, at-bsl and taet",
        "With 368 test images, ",
        "taet evaluate runs/taet",
        "ab" * 32,
        f"{10:064x}",
    ]
    assert [words for words in expected if words not in page.text] == []
    card, waiting = make_card("at"), tmp_path / "waiting"
    shutil.copytree(run, waiting)
    (waiting / "evaluation.json").unlink()
    leak = flagged(card.changed(model={**card.model, "leak": True}, run={"deviations": ["its own eps"]}))
    chance = [right(make_card("at", seed), share, "clean") for seed, share in enumerate((0.1, 0.12))]
    (text,) = (text for flag, _, text in page_parts.warnings(taet.results(*chance)) if flag == "at-chance")
    assert text.startswith("Of seed 0: Clean balanced accuracy is 4.")
    other = make_card("taet").changed(data={**card.data, "name": "other", "test_sha256": "cd" * 32})
    found = Page(
        report.write([leak, make_card("at", 1), other, waiting], tmp_path / "x.html", notes=["not run: mart: no"])
    )
    expected = [
        f"Without a card: {waiting}.",
        "selected-on-test-set: at (1 of 2 cards)",
        "its own eps",
        "not run: mart: no",
    ]
    expected += ["Adversarial robustness on digits-lt and other"]
    assert [words for words in expected if words not in found.text] == []
    assert (found.tags["article"], found.tags["h2"]) == (2, 2)  # a section for each test set
    with pytest.raises(UserError, match=r"no result card in .*waiting; evaluate it first: taet evaluate"):
        report.write(waiting, tmp_path / "x.html")


def test_the_same_cards_give_the_same_bytes(make_card: MakeCard, tmp_path: Path) -> None:
    for ending in ("html", "md", "csv", "tex"):
        files = [report.write(make_card("at"), tmp_path / f"{name}.{ending}") for name in "ab"]
        assert files[0].read_bytes() == files[1].read_bytes()


def test_hostile_names_stay_text(make_card: MakeCard, tmp_path: Path) -> None:
    names = ("<script>alert(1)</script>", "a & b \"c\" 'd'", "日本語", "$x_{1}$", "{{ 7 * 7 }}", "]]>", "__hidden")
    (tmp_path / "<img src=x>").mkdir()
    place = tmp_path / "<img src=x>" / "card.json"
    make_card("at", names=(*names, "class tail", "12", "tail")).save(place)
    found = Page(report.write(place, tmp_path / "report.html", title="<b>Title</b> & more"))
    assert (found.tags["script"], found.tags["b"], found.tags["img"]) == (0, 0, 0)
    assert [name for name in ("<b>Title</b> & more", str(place), *names) if name not in found.text] == []
    classes = [row[0] for row in found.tables["Under autoattack"]]
    assert all([f"class {name}"] in classes for name in ("12", "tail", "class tail"))
    written = report.write(place, tmp_path / "x.md", title="<b>", notes=["of https://x.org/a_b"]).read_text()
    assert "\nof https://x.org/a_b\n" in written
    assert re.findall(r"(?<!\\)<\S+", written) == ["<!--"]


def test_a_card_without_attacks_or_training_counts_has_a_report(make_card: MakeCard, tmp_path: Path) -> None:
    card = make_card("at")
    data = {name: value for name, value in card.data.items() if name != "train_class_counts"}
    data["class_names"] = [*data["class_names"], "never tested"]
    for counts in ({}, {"train_class_counts": [7] * 11}):  # equal counts have no head and no tail
        bare = card.changed(seed=None, title="at", data=data | counts, columns=card.columns[:1])
        found = Page(report.write(bare, tmp_path / "x.html"))
        assert "On clean images, at keeps a balanced accuracy of" in found.text
        assert "Head, body" not in found.text
        assert "never tested" in found.text
    even = taet.results(card.changed(data=card.data | {"train_class_counts": [7] * 10}))
    assert "tail" not in {head.text for head in headline(even).columns}


def test_the_other_forms_hold_the_same_numbers(cards: dict[str, ResultCard], tmp_path: Path) -> None:
    found = taet.results(cards.values())
    read = pd.read_csv(found.report(tmp_path / "x.csv"))
    assert read["accuracy"].to_numpy() == pytest.approx(found.table()["accuracy"].to_numpy(), abs=1e-6)
    summary = cards["at"].summary("autoattack")
    number = f"{percent(summary.balanced)} ({percent_interval(*summary.balanced_interval)})"
    card = cards["at"]
    extra = card.changed(data=card.data | {"extra": {"source": "EDM, of all images", "compared": True}})
    for ending in ("md", "tex"):
        assert "EDM, of all images" in report.write([extra], tmp_path / f"x.{ending}").read_text()
    text = report.write(found, tmp_path / "x.md").read_text()
    assert f"| {number} |" in text.replace("**", "")
    assert re.search(r"^\| method \| clean \| fgsm \| pgd-20 \|", text, re.MULTILINE)
    written = report.write(found, tmp_path / "x.tex").read_text()
    assert "**small-test-set** (at, at-bsl and taet): With 368 test images, " in text
    assert "% small-test-set (at, at-bsl and taet): With 368 test images, " in written
    assert number.replace("–", "--") in written
    assert written.count(r"\begin{tabular}") == written.count(r"\end{tabular}") == 4
    with pytest.raises(UserError, match=r"allowed: a file that ends in \.html, \.md, \.csv, \.tex"):
        report.write(found, tmp_path / "x.pdf")
    one = table("A_title", {Text("50 %"): {"a|b_c": Text("1 & 2", "#3", bold=True)}}, ["a|b_c"])
    assert markdown(one).splitlines()[-1] == r"| a\|b\_c | **1 & 2 (#3)** |"
    assert r"a|b\_c & \textbf{1 \& 2 (\#3)} \\" in latex(one, "my_data", 1)
    assert r"\caption{A\_title: my\_data}" + "\n" + r"\label{tab:a-title-1}" in latex(one, "my_data", 1)
    assert len({*re.findall(r"\\label{(.*)}", written)}) == 4
    for path, content in ((tmp_path / "a.csv", "id,label\n"), (tmp_path / "a.html", "<!DOCTYPE html>\n<p>mine</p>\n")):
        path.write_text(content)
        with pytest.raises(UserError, match=r"a\..* exists and is no report; allowed: another file, or --force"):
            report.write(found, path)
        assert found.report(found.report(path, force=True)).stat().st_size > 99


def test_a_worse_model_fails_and_an_undecided_one_passes(make_card: MakeCard) -> None:
    old = make_card("taet")
    assert report.fail_if_worse(old, old)[0] is False
    new = right(old, 0, "pgd-20")
    worse, lines = report.fail_if_worse(new, old)
    assert worse
    assert f"\nworse under pgd-20: −{100 * old.summary('pgd-20').balanced:.1f} points" in "\n".join(lines)
    assert lines[0].startswith("not known to be worse under clean: 0.0 points")
    assert report.fail_if_worse(old, new)[0] is False
    trained_on = {"flag": "test-images-in-training", "text": "31 of 53 test images are also in train"}
    seen = old.changed(flags=(*old.flags, trained_on))
    for sides in ((seen, old), (old, seen)):
        with pytest.raises(UserError, match=r"of some of the models, 31 of .*; allowed: test images that none was"):
            report.fail_if_worse(*sides)
    assert report.fail_if_worse(seen, seen)[0] is False
    with pytest.raises(UserError, match="got the cards of taet and at; allowed: one method, or its seeds"):
        report.fail_if_worse([old, make_card("at", seed=1)], old)
    with pytest.raises(UserError, match="got the seeds 0 and 1 and 1 and 2; allowed: the same on both sides, or no"):
        report.fail_if_worse([make_card("at", seed) for seed in (0, 1)], [make_card("at", seed) for seed in (1, 2)])
    with pytest.raises(UserError, match="got several cards of one seed; allowed: one"):
        report.fail_if_worse(old, [old, right(old, 0, "pgd-20")])
    with pytest.raises(UserError, match="the new card lacks autoattack; first eval"):
        report.fail_if_worse(new.changed(columns=new.columns[:-1]), old)
    with pytest.raises(UserError, match="allowed: the same images"):
        report.fail_if_worse(old.changed(data={**old.data, "test_sha256": "cd" * 32}), old)
