"""What the report says beyond one column per attack: worst cases, curves, pairs, transfer; and of cards alone."""

from __future__ import annotations

import dataclasses
import html
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from taet import report, statistics
from taet.evaluation import transfer
from taet.evaluation.card import ResultCard, compare_runs
from taet.evaluation.column import Column
from taet.files import seal
from taet.report import broken_images, curves, differences, figures, measured, page, read, series, tables
from taet.report.measured import Measured

MakeRun = Callable[..., Path]
MakeCard = Callable[..., ResultCard]
Measure = Callable[[ResultCard], Measured]
EPS = 8 / 255
WEIGHTS = {"at": "a" * 64, "taet": "b" * 64}


def column(card: ResultCard, name: str, share: float, **changes: Any) -> Column:
    """An attack that leaves a share of what is correct clean, drawn image by image."""
    clean = card.column("clean")
    correct = clean.correct & (np.random.default_rng([*name.encode()]).random(len(card.labels)) < share)
    wrong = np.where(clean.correct, (card.labels + 1) % card.num_classes, clean.predictions)
    given: dict[str, Any] = {"norm": "linf", "eps": EPS, "bounded": True, "parameters": {"steps": 20}}
    predictions = np.where(correct, card.labels, wrong)
    made = given | changes
    if "pgd" in name:  # steps in proportion to the ball
        made["parameters"] = {"step_size": made["eps"] / 8, **made["parameters"]}
    return Column(name=name, correct=correct, predictions=predictions, **made)


def rich(card: ResultCard) -> ResultCard:
    """The card with attacks in L2, points of every curve, scores, and examples of another model."""
    far = column(card, "cw-l2", 0.1, norm="l2", eps=None, bounded=False)
    distances = np.where(far.correct, np.nan, np.where(card.column("clean").correct, 0.25, 0.0)).astype(np.float32)
    auc = np.full((card.num_classes, card.num_classes), 0.875, dtype=np.float32)
    np.fill_diagonal(auc, np.nan)
    other = "taet" if card.method == "at" else "at"
    source = {"name": other, "weights_sha256": WEIGHTS[other]}
    ball = {"norm": "l2", "eps": 1.0}
    more = (
        far.changed(distances=distances),
        column(card, "pgd-l2-20", 0.4, **ball),
        *(column(card, f"pgd-{n}", 0.9 - n / 200, parameters={"steps": n}, curve="steps") for n in (1, 5, 50)),
        *(column(card, f"pgd-20:eps={k}/255", 1 - k / 80, eps=k / 255, curve="eps") for k in (2, 64)),
        column(card, "pgd-20:eps=1", 0.0, eps=1.0, curve="eps"),
        *(
            column(card, f"adaptive-pgd-20:factor={f}", 0.6, parameters=given, curve="logit-scale")
            for f in (10, 100)
            if (given := {"steps": 20, "factor": float(f)})
        ),
        column(card, f"pgd-20@{other}", 0.8, parameters={"steps": 20, "source": source}),
    )
    columns = (card.columns[0].changed(roc_auc=auc), *card.columns[1:], *more)
    return card.changed(columns=columns, model=card.model | {"weights_sha256": WEIGHTS[card.method]})


@pytest.fixture(scope="module")
def rich_runs(make_run: MakeRun, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("rich")
    runs = [make_run(folder / method, method, epochs=2, examples=False) for method in WEIGHTS]
    for run in runs:
        rich(ResultCard.load(run / "evaluation.json")).save(run / "evaluation.json")
    return runs


@pytest.fixture(scope="module")
def rich_page(rich_runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> str:
    return report.write(rich_runs, tmp_path_factory.mktemp("page") / "report.html").read_text()


@pytest.fixture(scope="module")
def runs(rich_runs: list[Path]) -> list[Measured]:
    all_series = series.grouped([read.read(path) for path in rich_runs], [None, None])
    return measured.ranked(measured.measured(all_series))


@pytest.fixture(scope="module")
def comparison(rich_runs: list[Path]) -> SimpleNamespace:
    return compare(rich_runs)


def compare(folders: list[Path]) -> SimpleNamespace:
    runs = [read.read(path) for path in folders]
    with figures.style():
        return page.section(runs[0].data, series.grouped(runs, [None] * len(runs)), "data-1")


def ids(source: str) -> set[str]:
    return set(re.findall(r'\bid="([^"]+)"', source))


def words(source: str) -> str:
    """The text of a page, on one line."""
    source = re.sub(r"<style.*?</style>", "", source, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", source)).split())


def cards_of(runs: list[Measured]) -> dict[str, ResultCard]:
    return {run.series.label: run.series.cards[0] for run in runs}


# --- columns ---------------------------------------------------------------------------------------------------------


@pytest.mark.full
def test_columns_are_grouped_by_threat_model_and_points_of_curves_are_no_columns(comparison: SimpleNamespace) -> None:
    heads = {head.text: head.detail for head in comparison.headline.heads}
    linf = ["clean", "fgsm", "pgd-20", "autoattack", "autoattack-10", "worst-case"]
    assert [*heads] == [*linf, "pgd-l2-20", "cw-l2", "tail", "accuracy", "training", "flags"]
    assert heads["worst-case"] == "L∞, ε 8/255; 4 attacks"
    assert (heads["pgd-l2-20"], heads["cw-l2"]) == ("L2, ε 1", "L2, unbounded")


@pytest.mark.full
def test_an_attack_without_a_ball_shows_its_median_distance_and_has_no_best(
    comparison: SimpleNamespace, rich_page: str
) -> None:
    place = [head.text for head in comparison.headline.heads].index("cw-l2")
    cells = [cells[place] for _, cells in comparison.headline.rows]
    assert [(cell.detail, cell.mark, cell.tied) for cell in cells] == [("median 0.25", "", False)] * 2
    assert words(rich_page).count("median 0.25") == 2


def test_the_worst_case_is_exact_and_lower_than_each_attack(runs: list[Measured]) -> None:
    for run in runs:
        (worst,) = [attack for attack in run.summaries if attack.is_worst_case]
        card = run.series.cards[0]
        inside = [c for c in card.columns if c.norm == "linf" and not c.curve and "source" not in c.parameters]
        expected = [all(c.correct[i] for c in (card.columns[0], *inside)) for i in range(len(card.labels))]
        found = run.columns[worst][0][1].correct
        assert found.tolist() == expected
        counts = statistics.class_counts(expected, card.labels, card.num_classes)
        assert run.balanced(worst) == statistics.balanced_accuracy(*counts)


def test_one_attack_has_no_worst_case_and_a_stored_one_is_kept(card: ResultCard, measure: Measure) -> None:
    attacked = card.columns[1]
    alone = measure(card.changed(columns=card.columns[:2]))
    assert [attack.name for attack in alone.summaries] == ["clean", attacked.name]
    stored = attacked.changed(
        name="worst-case", parameters={"attacks": [{"name": "fgsm"}]}, parts={"fgsm": attacked.correct}
    )
    only = measure(card.changed(columns=(card.columns[0], stored)))
    assert [attack.name for attack in only.summaries] == ["clean", "worst-case"]
    strongest = measured.strongest([only])
    assert strongest is not None
    assert strongest.name == "worst-case"  # there is nothing else
    (parts,) = broken_images.by_part([only], measured.attacks_of([only]))
    clean = card.columns[0].correct
    expected = [clean.sum(), (clean & ~attacked.correct).sum(), (clean & attacked.correct).sum()]
    assert [fact.text for fact in parts.rows[0][1]] == [str(count) for count in expected]
    both = measure(card.changed(columns=(*card.columns[:2], stored, card.columns[2])))
    assert [attack.name for attack in both.summaries] == ["clean", "fgsm", "pgd-20", "worst-case"]
    assert measured.heads([*both.summaries])[-1].detail == "L∞, ε 8/255; 2 attacks"


def test_strongest_is_autoattack_in_the_ball_of_the_card(card: ResultCard, measure: Measure) -> None:
    def strongest(*columns: Column) -> str:
        found = measured.strongest([measure(card.changed(columns=columns))])
        return found.name if found else ""

    clean, fgsm, pgd = card.columns[:3]
    suite = column(card, "autoattack", 0.5, parameters={"version": "standard"})
    lower = column(card, "pgd-100", 0.1, parameters={"steps": 100})
    wide = column(card, "pgd-20:eps=16/255", 0.05, eps=16 / 255)
    other = column(card, "pgd-l2-20", 0.05, norm="l2", eps=1.0)
    free = column(card, "deepfool", 0.0, norm="l2", eps=None, bounded=False)
    assert strongest(clean, fgsm, pgd, suite, lower, wide, other, free) == "autoattack"
    assert strongest(clean, fgsm, pgd, lower, wide, other, free) == "pgd-100"
    assert strongest(clean, wide, other, free) == ""
    assert measured.strongest([]) is None


# --- which attack broke which image ----------------------------------------------------------------------------------


def test_images_that_only_one_attack_breaks_are_counted(runs: list[Measured]) -> None:
    (table,) = broken_images.by_attack(runs, measured.attacks_of(runs))
    names = [head.text for head in table.heads][1:-1]
    assert names == ["fgsm", "pgd-20", "autoattack", "autoattack-10"]
    for run, (_, facts) in zip(runs, table.rows, strict=True):
        card = run.series.cards[0]
        clean = card.column("clean").correct
        broken = {name: clean & ~card.column(name).correct for name in names}
        assert facts[0].text == str(clean.sum())
        for name, fact in zip(names, facts[1:-1], strict=True):
            others = [i for i in range(len(clean)) if any(broken[o][i] for o in names if o != name)]
            only = sum(broken[name][i] for i in range(len(clean)) if i not in set(others))
            assert (fact.text, fact.detail) == (str(broken[name].sum()), f"{only} only")
        assert facts[-1].text == str(int(card.column("worst-case").correct.sum()))


def test_parts_of_autoattack_add_up(runs: list[Measured]) -> None:
    (table,) = broken_images.by_part(runs, measured.attacks_of(runs))
    assert [head.text for head in table.heads] == ["right, clean", "apgd-ce", "square", "left"]
    for run, (_, facts) in zip(runs, table.rows, strict=True):
        right, first, second, left = (int(fact.text) for fact in facts)
        card = run.series.cards[0]
        suite = card.column("autoattack")
        assert right == card.column("clean").correct.sum()
        assert second == (suite.parts["apgd-ce"] & ~suite.correct).sum() > 0
        assert right - first - second == left == suite.correct.sum()


# --- curves ----------------------------------------------------------------------------------------------------------


def test_curves_hold_the_numbers_of_the_cards(runs: list[Measured]) -> None:
    run = runs[0].series
    card = run.cards[0]
    expected = {
        "steps": {1: "pgd-1", 5: "pgd-5", 20: "pgd-20", 50: "pgd-50"},
        "eps": {
            0: "clean",
            2 / 255: "pgd-20:eps=2/255",
            EPS: "pgd-20",
            64 / 255: "pgd-20:eps=64/255",
            1: "pgd-20:eps=1",
        },
        "logit-scale": {1: "pgd-20", 10: "adaptive-pgd-20:factor=10", 100: "adaptive-pgd-20:factor=100"},
    }
    for name, points in expected.items():
        line = curves.line_of(run, name)
        assert line is not None
        summaries = {x: card.summary(column) for x, column in points.items()}
        assert {x: (cell.value, cell.low, cell.high) for x, cell in line[1].items()} == {
            x: (s.balanced, *s.balanced_interval) for x, s in summaries.items()
        }


@pytest.mark.full
def test_each_curve_is_one_figure_and_of_many_one_each(
    rich_page: str, rich_runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert {f"data-1-{name}-figure_1" for name in curves.AXES} <= ids(rich_page)
    assert "radius ε in pixel values 0 to 255" in words(rich_page)
    assert "where any image may be replaced by any other." in words(rich_page)
    monkeypatch.setattr(series, "MANY", 1)
    many = report.write(rich_runs, tmp_path / "many.html").read_text()
    assert {f"run-{run}-{name}-figure_1" for run in (1, 2) for name in curves.AXES} <= ids(many)
    assert "data-1-steps-figure_1" not in ids(many)


def test_a_curve_that_does_not_reach_nothing_is_told(rich_runs: list[Path], tmp_path: Path) -> None:
    card = ResultCard.load(rich_runs[0] / "evaluation.json")
    stuck = column(card, "pgd-20:eps=1", 0.5, eps=1.0, curve="eps")
    columns = tuple(stuck if c.name == stuck.name else c for c in card.columns)
    card.changed(columns=columns).save(tmp_path / "evaluation.json")
    text = words(report.write([tmp_path], tmp_path / "report.html").read_text())
    value = card.changed(columns=columns).summary(stuck.name).balanced
    assert f"at ({100 * value:.1f} %) does not, so this attack is too weak" in text


# --- pairs -----------------------------------------------------------------------------------------------------------


@pytest.mark.full
def test_differences_are_those_of_the_cards(runs: list[Measured], comparison: SimpleNamespace, rich_page: str) -> None:
    cards = cards_of(sorted(runs, key=lambda run: run.series.index))
    better = runs[0].series.label
    for table, name in zip(comparison.paired, ("autoattack", "clean"), strict=True):
        found = cards["at"].compare(cards["taet"], name)
        ((one, (cell,)),) = table.rows
        assert (one.label, table.attack.name) == (better, name)
        expected = found if better == "at" else differences.opposite(found)
        assert (cell.value, cell.low, cell.high, cell.p) == (expected.value, expected.low, expected.high, expected.p)
        ends = " to ".join(f"{100 * value:+.1f}".replace("-", "−") for value in (cell.low, cell.high))
        assert f"{100 * cell.value:+.1f}".replace("-", "−") + f" {ends}" in words(rich_page)
    undecided = sum(
        not cell.decided for table in comparison.paired for _, cells in table.rows for cell in cells if cell
    )
    assert rich_page.count("<small>undecided</small>") == undecided


def test_seeds_are_compared_in_pairs_and_the_other_way_round_is_the_opposite(make_card: MakeCard) -> None:
    mine = [make_card("at", seed=seed) for seed in (0, 1, 2)]
    theirs = [make_card("taet", seed=seed) for seed in (2, 0)]

    def of(cards: list[ResultCard], index: int) -> Measured:
        folders = [
            read.ReportedRun(Path(str(card.seed)), None, (), card, None, read.data_of_card(card)) for card in cards
        ]
        (row,) = series.grouped(folders, [None] * len(folders))
        (run,) = measured.measured([dataclasses.replace(row, index=index)])
        return run

    first, second = of(mine, 0), of(theirs, 1)
    attack = next(attack for attack in first.columns if attack.name == "autoattack")
    found = differences.Pairs().difference(first, second, attack)
    assert found == compare_runs([mine[0], mine[2]], [theirs[1], theirs[0]], "autoattack")
    assert differences.Pairs().difference(second, first, attack) == differences.opposite(found)
    assert (found.runs, differences.opposite(found).low) == (2, -found.high)


@pytest.mark.full
def test_marks_and_sentence_follow_the_pairs(make_run: MakeRun, tmp_path: Path) -> None:
    folders = [make_run(tmp_path / name, name) for name in ("at", "taet")]
    strong, own = ResultCard.load(folders[1]), ResultCard.load(folders[0])
    # A model that loses twelve images of the other, of all classes, and wins none: the intervals overlap, the pairs
    # do not. Twelve of two classes of a few images each would leave the mean over the classes undecided.
    suite = strong.column("autoattack")
    correct = np.flatnonzero(suite.correct)
    lost = correct[np.linspace(0, len(correct) - 1, 12).astype(int)]
    predictions = suite.predictions.copy()
    predictions[lost] = (strong.labels[lost] + 1) % 10
    weaker = suite.changed(correct=predictions == strong.labels, predictions=predictions, parts={})
    columns = tuple(weaker if c.name == "autoattack" else c for c in strong.columns)
    own.changed(labels=strong.labels, columns=columns).save(folders[0] / "evaluation.json")
    comparison = compare(folders)
    place = [head.text for head in comparison.headline.heads].index("autoattack")
    cells = [cells[place] for _, cells in comparison.headline.rows]
    assert cells[1].high > cells[0].low  # so that intervals alone would not decide
    assert [(cell.mark, cell.tied) for cell in cells] == [("best", False), ("second", False)]
    assert comparison.result.endswith("compared image by image, its lead is more than chance.")
    strong.changed(run=own.run).save(folders[0] / "evaluation.json")
    assert "undecided" not in compare(folders).result
    assert compare(folders).result.startswith("Under autoattack, at and taet share")


def test_many_series_are_compared_with_at_and_the_best_only(
    runs: list[Measured], monkeypatch: pytest.MonkeyPatch
) -> None:
    attack = measured.strongest(runs)
    assert attack is not None
    few = differences.paired_table(runs, attack, differences.Pairs())
    assert few is not None
    assert ([one.label for one in few.heads], len(few.rows)) == ([runs[1].series.label], 1)
    monkeypatch.setattr(series, "MANY", 1)
    many = differences.paired_table(runs, attack, differences.Pairs())
    assert many is not None
    assert {one.label for one in many.heads} == {"at", runs[0].series.label}
    for one, cells in many.rows:
        assert [cell is None for cell in cells] == [one is other for other in many.heads]
    assert differences.paired_table(runs[:1], attack, differences.Pairs()) is None


# --- classes, transfer, flags ----------------------------------------------------------------------------------------


def test_changed_answers_auc_and_weak_classes_are_those_of_the_cards(runs: list[Measured]) -> None:
    attack = measured.strongest(runs)
    clean = next(attack for attack in runs[0].summaries if attack.norm is None)
    assert attack is not None
    table = tables.behaviour(runs, clean, attack, runs[0].series.data)
    assert [(head.text, head.detail) for head in table.heads] == [
        ("answers changed", "autoattack"),
        ("ROC-AUC", "clean"),
        ("weak classes", "autoattack"),
    ]
    for run, (_, (changed, auc, weak)) in zip(runs, table.rows, strict=True):
        summary = run.series.cards[0].summary("autoattack")
        assert changed.text == f"{100 * summary.flip_rate:.1f}"
        assert auc.text == "87.5"
        assert weak.text == str(len(summary.weak_classes))
        few = set(summary.few_images)
        data = run.series.data
        every = [f"{data.class_names[c]}{' *' if c in few else ''}" for c in summary.weak_classes]
        assert set(weak.detail.split(", ")) <= {*every, f"{len(every) - 5} more"}


def test_errors_of_each_class_are_drawn(rich_page: str) -> None:
    assert {"run-1-errors-figure_1", "run-2-errors-figure_1"} <= ids(rich_page)
    assert "Natural and boundary error" in words(rich_page)


def test_the_transfer_matrix_is_that_of_the_cards(
    rich_page: str, comparison: SimpleNamespace, runs: list[Measured]
) -> None:
    cards = cards_of(sorted(runs, key=lambda run: run.series.index))
    (expected,) = transfer.matrices(cards)
    (matrix,) = comparison.transfers
    assert matrix.names == expected.names == ("at", "taet")
    for row, (name, clean, values) in enumerate(zip(matrix.names, matrix.clean, matrix.balanced, strict=True)):
        assert (clean, tuple(values)) == (expected.clean[row], tuple(expected.balanced[row]))
        numbers = " ".join(f"{100 * value:.1f}" for value in (clean, *values))
        assert f"{name} {numbers}" in words(rich_page)
    own = re.findall(r'class="heat self"[^>]*>([\d.]+)<', rich_page)
    assert own == [f"{100 * card.summary('pgd-20').balanced:.1f}" for card in cards.values()]


def test_models_that_take_no_part_in_a_transfer_are_not_in_its_matrix(
    rich_runs: list[Path], make_run: MakeRun, tmp_path: Path
) -> None:
    folders = [*rich_runs, make_run(tmp_path / "other", "at-bsl", epochs=1, examples=False)]
    (matrix,) = differences.transfers(series.grouped([read.read(path) for path in folders], [None] * 3))
    assert (matrix.attack, matrix.names) == ("pgd-20", ("at", "taet"))


def test_flags_of_one_name_are_together(make_run: MakeRun, tmp_path: Path) -> None:
    folders = [make_run(tmp_path / name, name, examples=False) for name in ("at", "at-bsl", "taet")]
    texts = {"at": "The same.", "at-bsl": "The same.", "taet": "Another."}
    for folder in folders:
        card = ResultCard.load(folder / "evaluation.json")
        flags = ({"flag": "masked", "text": texts[folder.name]},)
        card.changed(flags=flags).save(folder / "evaluation.json")
    ((name, raised),) = compare(folders).flags.items()
    assert name == "masked"
    assert {text: set(rows) for text, rows in raised.items()} == {"The same.": {"at", "at-bsl"}, "Another.": {"taet"}}


# --- a card alone ----------------------------------------------------------------------------------------------------


def card_alone(folder: Path, card: ResultCard, name: str, **data: Any) -> Path:
    folder.mkdir()
    model = card.model | {"name": name, "selection": None, "epoch": None}
    about: dict[str, Any] = {"method": name, "title": name, "protocol": "", "seed": None, "run": {}, "model": model}
    card.changed(**about, data=card.data | data).save(folder / "evaluation.json")
    return folder


@pytest.mark.full
def test_a_card_alone_is_a_row_beside_runs_on_the_same_images(
    make_run: MakeRun, card: ResultCard, tmp_path: Path
) -> None:
    folders = [make_run(tmp_path / "at", examples=False, epochs=2)]
    folders += [card_alone(tmp_path / place, card, "ResNet") for place in ("first", "second")]
    source = report.write(folders, tmp_path / "report.html").read_text()
    rows = {one.label: cells for one, cells in compare(folders).headline.rows}
    assert set(rows) == {"at", "ResNet (first)", "ResNet (second)"}
    assert [rows[name][-2].text for name in ("at", "ResNet (first)")] == ["2.5 s", "–"]
    assert "data-2" not in ids(source)
    assert "Training images of each class" in words(source)
    assert f"taet evaluate runs/{card.method}" in words(source)
    assert [name for name in ids(source) if name.startswith(("run-2-loss", "run-2-predicted"))] == []


def test_a_card_without_training_counts_has_no_groups(card: ResultCard, tmp_path: Path) -> None:
    folder = card_alone(tmp_path / "alone", card, "ResNet", train_class_counts=None)
    text = words(report.write([folder], tmp_path / "report.html").read_text())
    found = compare([folder])
    heads = [head.text for table in (found.headline, *found.groups) for head in table.heads]
    assert {"head", "body", "tail", "last half"}.isdisjoint(heads)
    assert "worst class" in heads
    assert "The training counts are not known" in text
    assert "imbalance ratio" not in text
    assert "training images" not in text
    assert "One run (ResNet) on digits-lt: 10 classes, 368 test images" in text
    assert found.classes is not None
    assert [label for label, _ in found.classes.rows] == list(range(10))
    assert "No epoch of training is recorded here." in text


def test_the_card_of_a_run_keeps_its_method_and_seed(make_run: MakeRun, tmp_path: Path) -> None:
    folders = []
    for seed in (0, 1):
        run = make_run(tmp_path / f"whole{seed}", "taet", seed=seed)
        card = ResultCard.load(run / "evaluation.json")
        config = json.loads((run / "run.json").read_text())["run"]
        (tmp_path / f"s{seed}").mkdir()
        told = {"config": config, "deviations": ["its own eps"]}
        card.changed(run=told).save(tmp_path / f"s{seed}" / "evaluation.json")
        folders.append(tmp_path / f"s{seed}")
    (one,) = series.grouped([read.read(path) for path in folders], [None, None])
    assert (one.label, [run.seed for run in one.runs]) == ("taet", [0, 1])
    assert one.deviations == ("its own eps",)


def test_a_card_that_lacks_what_it_must_tell_is_refused(card: ResultCard, tmp_path: Path) -> None:
    folder = card_alone(tmp_path / "alone", card, "ResNet")
    stored = json.loads((folder / "evaluation.json").read_text())
    del stored["data"]["test_sha256"]
    (folder / "evaluation.json").write_text(json.dumps(seal(stored)))
    with pytest.raises(report.UserError, match=r"evaluation\.json: data: the field 'test_sha256' is missing"):
        report.write([folder], tmp_path / "report.html")
