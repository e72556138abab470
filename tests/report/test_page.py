"""The page: whole, self-contained, and every number that of a card."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import taet
from taet import report
from taet.card.card import ResultCard
from taet.card.comparison import compare_runs
from taet.errors import UserError
from taet.evaluation.flags import flagged
from taet.formatting import percent, percent_interval, points
from taet.report.sentences import warnings
from tests.calls import PATIENCE
from tests.report.made import ATTACKS, MakeCard, Page, right

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
PRINTED = {"at": "AT", "at-bsl": "AT-BSL", "taet": "TAET"}
SWITCHES = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--hide-scrollbars",
    "--allow-file-access-from-files",
]
MEASURE = """<script>addEventListener("load", () => {
  const all = name => [...document.querySelectorAll(name)], wide = s => s.scrollWidth > s.clientWidth;
  all("details").forEach(d => d.open = true);
  const flat = all("svg.figure").filter(s => s.getBoundingClientRect().height < 50).length;
  const said = s => s.nextElementSibling?.className === "hint" && s.nextElementSibling.offsetHeight > 0;
  const unsaid = all(".scroll").filter(s => wide(s) && !said(s)).length;
  const found = [innerWidth, document.documentElement.scrollWidth, flat, all(".scroll").filter(wide).length, unsaid];
  document.body.append(`found ${JSON.stringify(found)}`);
});</script>"""  # noqa: E501


@pytest.mark.full
def test_nothing_is_fetched_and_no_script_runs(page: Page, of_run: Page) -> None:
    for written in (page, of_run):
        fetched = [address for address in written.fetched if not re.match(r"'?(data:|#)", address)]
        assert fetched == []
        assert written.tags["script"] == 0
        assert not re.search(r"\son\w+=", written.source)


@pytest.mark.full
@pytest.mark.browser
@pytest.mark.skipif(not CHROMIUM, reason="no Chromium here")
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_scrolls_sideways_but_tables_that_say_so(
    of_run: Page, page: Page, tmp_path: Path, width: int
) -> None:
    for one in (of_run, page):
        (tmp_path / "page.html").write_text(one.source.replace("</body>", MEASURE + "</body>"))
        # A window cannot be as narrow as a phone everywhere; a frame can.
        frame = f'<iframe src="page.html" style="border:0;width:{width}px;height:2000px"></iframe>'
        relay = (
            "addEventListener('load', () => "
            "document.body.append(frames[0].document.body.innerText))"
        )
        (tmp_path / "frame.html").write_text(
            f"<body style='margin:0'>{frame}<script>{relay}</script></body>"
        )
        words = [
            CHROMIUM,
            *SWITCHES,
            f"--user-data-dir={tmp_path}",
            "--dump-dom",
            (tmp_path / "frame.html").as_uri(),
        ]
        dom = subprocess.run(
            words, capture_output=True, text=True, timeout=PATIENCE, check=True
        ).stdout
        (found,) = re.findall(r"found (\[.*?\])", dom)
        inner, scrolled, flat, scrolls, unsaid = json.loads(found)
        assert inner == width >= scrolled
        assert flat == 0
        if width == 390:
            assert scrolls > 1
            assert unsaid == 0


def test_the_page_begins_with_a_picture_a_sentence_and_a_table_and_the_rest_is_folded(
    page: Page,
) -> None:
    above = page.source[page.source.index("<main>") : page.source.index("<details>")]
    # attacks, and groups of classes beside them; below the table every class
    assert above[: above.index("<table")].count('<svg class="figure"') == 2
    assert above.count('<svg class="figure"') == 3
    assert above.count("<table") == 1
    assert re.search(
        r'<p class="lead">Under autoattack, TAET has the highest balanced accuracy, 38\.7 % \(',
        above,
    )
    assert above.index("lead") < above.index("<svg") < above.index("<table")
    below = page.source[page.source.index("<details>") :]
    assert below.count("<details>") == below.count("</details>") == page.tags["details"]


def test_every_number_of_the_table_is_that_of_a_card_and_bold_is_significant(
    page: Page, cards: dict[str, ResultCard]
) -> None:
    heads, *rows = page.tables["Balanced accuracy"]
    others = [attack for attack in ATTACKS if attack != "autoattack"]
    # what matters most stands beside the names, where a phone shows it
    assert [head[0] for head in heads] == ["method", "autoattack", "tail", *others, "all images"]
    cards = {PRINTED[method]: card for method, card in cards.items()}
    assert {row[0][0] for row in rows} == {*cards}
    for row in rows:
        card = cards[row[0][0]]
        hardest, clean = card.summary("autoattack"), card.summary("clean")
        expected = [(hardest.balanced, hardest.balanced_interval)]
        expected += [(hardest.groups["tail"], hardest.group_intervals["tail"])]
        expected += [(one.balanced, one.balanced_interval) for one in map(card.summary, others)]
        expected += [(clean.accuracy, clean.accuracy_interval)]
        for cell, (value, interval) in zip(row[1:], expected, strict=True):
            assert [text for text in cell if text != "**"] == [
                percent(value),
                percent_interval(*interval),
            ]
    lead = [float(row[1][-2]) for row in rows]
    assert lead == sorted(lead, reverse=True)
    for attack in ATTACKS:
        place = [head[0] for head in heads].index(attack)
        bold = [row[0][0] for row in rows if "**" in row[place]]
        best = max(cards, key=lambda name: cards[name].summary(attack).balanced)
        others = [card for name, card in cards.items() if name != best]
        significant = all(
            compare_runs([cards[best]], [card], attack).significant for card in others
        )
        assert bold == ([best] if significant else []), attack
    assert any("**" in cell for row in rows for cell in row)


@pytest.fixture
def seeds(make_card: MakeCard) -> list[ResultCard]:
    """Three seeds of two methods, of which the last card has no AutoAttack."""
    cards = [make_card(method, seed) for method in ("taet", "at") for seed in range(3)]
    return [*cards[:-1], cards[-1].changed(columns=cards[-1].columns[:-1])]


def test_a_row_of_several_seeds_shows_their_mean_and_number(
    seeds: list[ResultCard], tmp_path: Path
) -> None:
    heads, *rows = Page(report.write(seeds, tmp_path / "x.html")).tables["Balanced accuracy"]
    assert heads[-1] == ["seeds"]
    assert {row[0][0]: row[-1] for row in rows} == {"TAET": ["3"], "AT": ["2 or 3"]}
    cells = {row[0][0]: row for row in rows}["TAET"]
    column = [head[0] for head in heads].index("pgd-20")
    shown = cells[column][-2]
    accuracies = [card.summary("pgd-20").balanced for card in seeds[:3]]
    assert shown == percent(sum(accuracies) / 3)


def test_differences_are_paired_and_say_of_how_many_pairs(
    seeds: list[ResultCard], tmp_path: Path
) -> None:
    found = Page(report.write(seeds, tmp_path / "x.html"))
    paired = taet.results(seeds).difference("at", "taet", "autoattack")
    (_, (_, _, last)) = found.tables["Difference from TAET"]
    ends = f"{points(paired.low)} to {points(paired.high)}"
    verdict = "" if paired.significant else f", {paired.verdict}"
    assert last == [points(paired.value), f"{ends}{verdict}, 2 pairs"]


def test_a_run_shows_its_training_curves_and_those_of_its_attack(of_run: Page) -> None:
    expected = ["Training curves", "Clean images, test split", "Number of steps"]
    assert [words for words in expected if words not in of_run.text] == []


def test_a_run_shows_where_it_comes_from_and_its_warnings(of_run: Page, run: Path) -> None:
    card = ResultCard.load(run / "evaluation.json")
    expected = [str(run), card.command, card.model["weights_sha256"]]
    expected += [flag["text"] for flag in card.flags]
    assert [words for words in expected if words not in of_run.text] == []


def test_a_single_model_is_compared_with_none(of_run: Page) -> None:
    # at chance or above, as the machine rounds
    assert re.search(
        r"Under \S+, (.*above chance.*: )?AT keeps a balanced accuracy of", of_run.text
    )
    assert not any("**" in cell for row in of_run.tables["Balanced accuracy"] for cell in row)
    assert "Differences" not in of_run.text


def test_every_number_comes_with_its_command_and_the_hashes_of_weights_and_images(
    page: Page,
) -> None:
    expected = ["taet evaluate runs/taet", "ab" * 32, f"{10:064x}"]
    assert [words for words in expected if words not in page.text] == []


def test_warnings_name_their_rows_and_have_their_sentence(page: Page) -> None:
    assert "\nAT, AT-BSL and TAET: With 368 test images, " in page.text


def test_a_warning_that_some_cards_of_a_row_raise_says_how_many(
    make_card: MakeCard, tmp_path: Path
) -> None:
    card = make_card("at")
    leak = flagged(card.changed(model={**card.model, "leak": True}))
    found = Page(report.write([leak, make_card("at", 1)], tmp_path / "x.html"))
    assert "\nAT (1 of 2 cards): The epoch was chosen by its accuracy on the test set" in found.text


def test_a_sentence_of_one_card_among_several_names_its_seed(make_card: MakeCard) -> None:
    cards = [right(make_card("at", seed), share, "clean") for seed, share in enumerate((0.1, 0.12))]
    (warning,) = [each for each in warnings(taet.results(*cards)) if each.flag == "at-chance"]
    assert warning.text.startswith("Of seed 0: Clean balanced accuracy is 4.")


def test_how_a_training_left_its_protocol_is_said(make_card: MakeCard, tmp_path: Path) -> None:
    card = make_card("at").changed(run={"deviations": ["its own eps"]})
    assert "its own eps" in Page(report.write(card, tmp_path / "x.html")).text


def test_notes_and_runs_without_a_card_stand_below_the_title(
    make_card: MakeCard, run: Path, tmp_path: Path
) -> None:
    waiting = tmp_path / "waiting"
    shutil.copytree(run, waiting)
    (waiting / "evaluation.json").unlink()
    notes = ["not run: mart: no"]
    path = report.write([make_card("at"), waiting], tmp_path / "x.html", notes=notes)
    text = Page(path).text
    for note in ("not run: mart: no", f"Without a card: {waiting}."):
        assert text.index(note) < text.index("1 model, 10 classes")


def test_a_run_without_a_card_alone_is_refused_with_the_command_that_is_missing(
    run: Path, tmp_path: Path
) -> None:
    waiting = tmp_path / "waiting"
    shutil.copytree(run, waiting)
    (waiting / "evaluation.json").unlink()
    with pytest.raises(
        UserError, match=r"no result card in .*waiting; evaluate it first: taet evaluate"
    ):
        report.write(waiting, tmp_path / "x.html")
    (waiting / "done").unlink()
    with pytest.raises(UserError, match=r"not finished; continue it: taet train --resume .*wait"):
        report.write(waiting, tmp_path / "x.html")


def test_each_test_set_has_a_part_and_all_stand_in_the_title(
    make_card: MakeCard, tmp_path: Path
) -> None:
    card = make_card("taet")
    other = card.changed(data={**card.data, "name": "other", "test_sha256": "cd" * 32})
    found = Page(report.write([make_card("at"), other], tmp_path / "x.html"))
    assert (found.tags["article"], found.tags["h2"]) == (2, 2)
    assert "Adversarial robustness on digits-lt and other" in found.text


HOSTILE = (
    "<script>alert(1)</script>",
    "a & b \"c\" 'd'",
    "日本語",
    "$x_{1}$",
    "{{ 7 * 7 }}",
    "]]>",
    "__hidden",
)


@pytest.fixture
def hostile(make_card: MakeCard, tmp_path: Path) -> Path:
    """A card whose classes and folder have names that are markup or groups of classes."""
    place = tmp_path / "<img src=x>" / "card.json"
    place.parent.mkdir()
    make_card("at", names=(*HOSTILE, "class tail", "12", "tail")).save(place)
    return place


def test_names_of_classes_and_folders_stay_text(hostile: Path, tmp_path: Path) -> None:
    title = "<b>Title</b> & more"
    found = Page(report.write(hostile, tmp_path / "report.html", title=title))
    assert (found.tags["script"], found.tags["b"], found.tags["img"]) == (0, 0, 0)
    assert [name for name in (title, str(hostile), *HOSTILE) if name not in found.text] == []


def test_a_class_called_tail_is_told_from_the_tail(hostile: Path, tmp_path: Path) -> None:
    found = Page(report.write(hostile, tmp_path / "report.html"))
    classes = [row[0] for row in found.tables["Under autoattack"]]
    assert all([f"class {name}"] in classes for name in ("12", "tail", "class tail"))


def test_markdown_has_no_markup_of_names_and_keeps_addresses(hostile: Path, tmp_path: Path) -> None:
    notes = ["of https://x.org/a_b"]
    text = report.write(hostile, tmp_path / "x.md", title="<b>", notes=notes).read_text()
    assert "\nof https://x.org/a_b\n" in text
    assert re.findall(r"(?<!\\)<\S+", text) == ["<!--"]


@pytest.mark.parametrize("counts", [None, [7] * 11])
def test_classes_of_unknown_or_equal_size_have_no_head_and_no_tail(
    make_card: MakeCard, tmp_path: Path, counts: list[int] | None
) -> None:
    card = make_card("at")
    names = [*card.data["class_names"], "never tested"]
    data = dict(card.data, class_names=names, train_class_counts=counts)
    found = Page(report.write(card.changed(data=data), tmp_path / "x.html"))
    assert "Head, body" not in found.text
    assert "tail" not in {head[0] for head in found.tables["Balanced accuracy"][0]}
    assert "never tested" in found.text


def test_a_card_without_attacks_has_a_report_of_clean_images(
    make_card: MakeCard, tmp_path: Path
) -> None:
    card = make_card("at")
    bare = card.changed(seed=None, title="at", columns=card.columns[:1])
    found = Page(report.write(bare, tmp_path / "x.html"))
    assert "On clean images, at keeps a balanced accuracy of" in found.text
