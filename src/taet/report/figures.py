"""The figures of the report: one function each, from results to drawings."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd

from taet.evaluation.attack_sets import curves, fixed
from taet.formatting import format_radius
from taet.report.confusion import confusion_shares
from taet.report.drawing import Panel, axis_end, forest_plot, heat_map, line_plot, ticks
from taet.report.results import Results
from taet.report.scores import THIRDS, class_names, over_seeds
from taet.report.tables import attacks_in_ball, lead_attacks, order, under

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "currentColor")
"""Colours of Okabe and Ito (Color Universal Design, 2008), ordered so that the first three differ
in lightness."""
# grey: clean, orange: the strongest
STRENGTHS = ("#8c8c8c", "#56B4E9", "#0072B2", "#009E73", "#CC79A7", "#D55E00")
GROUPS = dict(zip(THIRDS, ("#8c8c8c", "#0072B2", "#D55E00"), strict=True))
MOST_ROWS = 20
ROW_HEIGHT, ROW_HEIGHT_OF_MANY, MANY_ROWS = 42, 35, 10
CLASS_HEIGHT = 25
CURVES = {"steps": "number of steps", "eps": "radius ε", "logit-scale": "factor of the logits"}


def overview(results: Results) -> Iterator[Panel]:
    """Draw the balanced accuracy of each row under each attack, and that of its head, body and tail
    classes under the strongest."""
    rows, strongest = order(results)[:MOST_ROWS], results.strongest
    of_rows = (
        f", the best {MOST_ROWS} of {len(results.rows)}" if len(results.rows) > MOST_ROWS else ""
    )
    scores = results.scores("balanced")
    colours = _colours_of_attacks(results)
    measured = [name for name, column in results.columns.items() if column.ordinary]
    drawn, known = len({*colours} - {"clean"}), len({*measured} - {"clean"})
    attacks = "each attack" if drawn == known else f"{drawn} of {known} attacks"
    thirds = results.scores(*GROUPS).query("attack == @strongest")
    # both on the same axis
    end = axis_end(pd.concat([scores["high"], thirds["high"]]))
    height = ROW_HEIGHT if len(rows) < MANY_ROWS else ROW_HEIGHT_OF_MANY
    title = f"Balanced accuracy under {attacks}{of_rows}"
    yield forest_plot(title, scores, rows, "attack", colours, end, height)
    if len(thirds):
        title = f"Head, body and tail classes under {strongest}{of_rows}"
        yield forest_plot(title, thirds, rows, "group", GROUPS, end, height)


def _colours_of_attacks(results: Results) -> dict[str, str]:
    """Return the attacks of the first figure with their colours: clean, some in the ball of the
    strongest, and the strongest."""
    *clean, lead = lead_attacks(results)
    between = [
        attack
        for attack in attacks_in_ball(results)
        if results.columns[attack].ordinary and attack not in (*clean, lead)
    ]
    shown = [*clean, *between][: len(STRENGTHS) - 1]
    return dict(zip(shown, STRENGTHS, strict=False)) | {lead: STRENGTHS[-1]}


def classes(results: Results) -> Iterator[Panel]:
    """Draw the accuracy of every class for the best row, clean beside attacked, the class with
    fewest training images first."""
    card, best = results.cards[0], order(results)[0]
    names = class_names(card)
    trained = results.train_class_counts
    labels = [int(label) for label in np.flatnonzero(card.test_class_counts)]
    if trained is not None:
        labels.sort(key=lambda label: trained[label])
    shown = labels[:MOST_ROWS]
    rows = {names[label]: _class_row(names[label], trained, label) for label in shown}
    scores = results.scores(*rows).query("row == @best")
    scores = scores.assign(row=scores["group"].map(rows))
    *clean, lead = lead_attacks(results)
    colours = dict.fromkeys(clean, STRENGTHS[0]) | {lead: STRENGTHS[-1]}
    which = "the rarest first" if len(shown) == len(labels) else f"the {len(shown)} rarest"
    known = "" if trained is None else f", {which}, with their training images"
    title = f"Classes of {best}{known}"
    end = axis_end(scores["high"])
    yield forest_plot(
        title, scores, [*rows.values()], "attack", colours, end, CLASS_HEIGHT, what="class"
    )


def _class_row(name: str, trained: Sequence[int] | None, label: int) -> str:
    return name if trained is None else f"{name} ({trained[label]:,})"


def confusion(results: Results) -> Iterator[Panel]:
    """Draw what the best row takes for what, on clean images and under the strongest attack; none
    with more classes than a drawing has room for."""
    card, best = results.cards[0], order(results)[0]
    if card.num_classes > MOST_ROWS:
        return
    names = class_names(card)
    trained = results.train_class_counts
    labels = list(range(card.num_classes))
    if trained is not None:
        labels.sort(key=lambda label: -trained[label])
    ordered = [names[label] for label in labels]
    for attack in lead_attacks(results):
        if not results.predictions_by_seed(best, attack):
            continue
        shares = confusion_shares(results, best, attack)
        yield heat_map(f"{best}, {under(attack).lower()}", shares[np.ix_(labels, labels)], ordered)


def strength(results: Results) -> Iterator[Panel]:
    """Draw balanced accuracy against one setting of the attack, for each setting of which there is
    a curve."""
    for setting, axis in CURVES.items():
        points = _curve_points(results, setting)
        if points.empty:
            continue
        points = over_seeds(of_all_seeds(points), "row", "x")
        values = sorted({*points["x"]})
        places = {value: float(place) for place, value in enumerate(values)}
        points["x"] = points["x"].map(places)
        texts = {
            place: format_radius(value, 3) if setting == "eps" else f"{value:g}"
            for value, place in places.items()
        }
        title = axis[0].upper() + axis[1:]
        yield _lines(title, f"{axis} (not to scale)", points, order(results), texts)


def _curve_points(results: Results, setting: str) -> pd.DataFrame:
    """Return the points of a curve of all cards, but for those whose attack has other settings than
    that of the first card of their row."""
    lines = []
    first_of_row: dict[str, object] = {}
    for entry in results.entries:
        curve = curves(entry.card)[setting]
        if not curve:
            continue
        others = fixed(curve.values(), setting)
        if first_of_row.setdefault(entry.row, others) != others:
            continue
        for value, column in curve.items():
            summary = entry.card.summary_of(column)
            numbers = summary.balanced, *summary.balanced_interval
            lines.append((entry.row, entry.card.seed, value, *numbers))
    return pd.DataFrame(lines, columns=["row", "seed", "x", "accuracy", "low", "high"])


def training(results: Results) -> Iterator[Panel]:
    """Draw balanced accuracy over the epochs of training, the mean over the seeds; one figure for
    each attack and split."""
    lines_of: dict[str, list[tuple[str, int | None, int, float]]] = defaultdict(list)
    for entry in results.entries:
        for epoch in entry.epochs:
            point = epoch.monitor
            if point is None:
                continue
            for attack, counts in (("clean", point.clean), (point.attack, point.attacked)):
                line = entry.row, entry.card.seed, epoch.epoch, counts.balanced_accuracy
                lines_of[f"{under(attack)}, {point.split} split"].append(line)
    for title, lines in lines_of.items():
        points = of_all_seeds(pd.DataFrame(lines, columns=["row", "seed", "x", "accuracy"]))
        means = points.groupby(["row", "x"], as_index=False)["accuracy"].mean()
        epochs = ticks(means["x"].min(), means["x"].max(), least=1)
        texts = {epoch: f"{epoch:g}" for epoch in epochs}
        yield _lines(title, "epoch", means, order(results), texts)


def of_all_seeds(points: pd.DataFrame) -> pd.DataFrame:
    """Return the points that every seed of their row has; a mean over some of the seeds would
    jump."""
    seeds, rows = points["seed"].fillna(-1), points["row"]
    seeds_at_point = seeds.groupby([rows, points["x"]]).transform("nunique")
    seeds_of_row = seeds.groupby(rows).transform("nunique")
    return points[seeds_at_point == seeds_of_row]


def _lines(
    title: str, axis: str, points: pd.DataFrame, rows: Sequence[str], x_ticks: Mapping[float, str]
) -> Panel:
    """Draw one line for each of the rows that have points, as far as the colours go."""
    drawn = [row for row in rows if row in {*points["row"]}]
    if len(drawn) > len(COLOURS):
        title += f", the best {len(COLOURS)} of {len(drawn)}"
    return line_plot(title, axis, points, x_ticks, dict(zip(drawn, COLOURS, strict=False)))
