"""The report: one self-contained HTML file from any number of run folders, every number traced to its run."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taet.errors import UserError

if TYPE_CHECKING:
    from taet.report.figures import Example, Panel, Series
    from taet.report.read import Counts, Data, Examples, RunFolder
    from taet.report.tables import AttackKey, Cell, ClassTable, Measured, Table

__all__ = ["write"]


def write(
    run_dirs: Sequence[Path],
    out: Path,
    title: str | None = None,
    *,
    names: Sequence[str] | None = None,
    not_run: Sequence[tuple[str, str]] = (),
) -> Path:
    """Write the report of the runs in `run_dirs` to the HTML file `out` and return its path.

    Runs are compared in one table only where they share training counts and test set; those that differ in nothing but
    the seed are one row, with means and standard errors. A run that is not evaluated yet shows its curves and is named.
    `names` are the rows that the runs belong to, where the caller knows better than their settings; `not_run` lists
    what else was asked for, and why it is not there. The file asks for nothing else: styles, figures and images are
    inside it, and the same runs give the same bytes. A folder that is no run, or a file that cannot be written, is a
    `UserError`.
    """
    from taet.files import write_atomically
    from taet.report import figures, read

    if not run_dirs:
        raise UserError("report: got no run folder; allowed: one or more folders that taet train wrote")
    named = dict(zip(run_dirs, names, strict=True)) if names is not None else dict.fromkeys(run_dirs)
    runs = [read.read(Path(path)) for path in named]
    with figures.style():
        page = _page(runs, list(named.values()), title, not_run)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"report: cannot make the folder {out.parent}: {error.strerror}") from error
    write_atomically(out, page.encode())
    return out


@dataclass(frozen=True)
class Comparison:
    """Runs on one training and test set, with all that the page shows of them."""

    anchor: str
    data: Data
    series: tuple[Series, ...]
    evaluated: tuple[Series, ...]
    deviations: tuple[str, ...]
    """Footnotes of every table, the first is 1: where rows leave the protocol."""
    summary: str
    result: str
    strongest: str
    headline: Table
    plain: Table
    groups: tuple[Table, ...]
    more_groups: tuple[Table, ...]
    classes: ClassTable | None
    histogram: Panel
    bars: tuple[Panel, ...]
    dots: tuple[Panel, ...]
    confusions: tuple[tuple[str, tuple[Panel, ...]], ...]
    curves: tuple[Panel, ...]
    curve_splits: tuple[tuple[str, str], ...]
    losses: tuple[Panel, ...]
    predicted: tuple[Panel, ...]
    images: tuple[tuple[Series, Examples, int, tuple[Example, ...]], ...]
    few: frozenset[int]
    few_words: str
    many: bool

    @property
    def waiting(self) -> list[str]:
        """What is not evaluated yet: a row, or the runs of it that are missing."""
        return [
            series.label if len(series.runs) == 1 else f"{series.label} (seed {run.seed})"
            for series in self.series
            for run in series.runs
            if run.card is None
        ]


def _page(
    runs: Sequence[RunFolder], names: Sequence[str | None], title: str | None, not_run: Sequence[tuple[str, str]]
) -> str:
    import jinja2

    from taet.report import tables

    all_series = _series(runs, names)
    by_data: dict[Data, list[Series]] = {}
    for series in all_series:
        by_data.setdefault(series.data, []).append(series)
    comparisons = [_compare(data, group, f"data-{i}") for i, (data, group) in enumerate(by_data.items(), 1)]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": _percent, "number": _number, "size": tables.size, "is_finite": math.isfinite}
    sets = ", ".join(dict.fromkeys(comparison.data.name for comparison in comparisons))
    return environment.get_template("report.html.j2").render(
        title=title or f"Adversarial robustness on {sets}",
        comparisons=comparisons,
        numbers=_numbers(all_series),
        not_run=not_run,
        provenance=[(series, [(run, _provenance(run)) for run in series.runs]) for series in all_series],
    )


def _series(runs: Sequence[RunFolder], names: Sequence[str | None]) -> list[Series]:
    """Put the runs together that differ in nothing but the seed; a run that repeats a seed begins another series."""
    from taet.report import figures

    groups: dict[tuple[Any, ...], list[RunFolder]] = {}
    met: Counter[tuple[Any, ...]] = Counter()
    for run, name in zip(runs, names, strict=True):
        row = (run.data, name or json.dumps(run.settings, sort_keys=True))
        groups.setdefault((*row, met[row, run.seed]), []).append(run)
        met[row, run.seed] += 1
    given = dict(zip((run.path for run in runs), names, strict=True))
    methods = list(dict.fromkeys(run.method for run in runs))
    return [
        figures.Series(
            runs=tuple(group),
            label=label,
            anchor=f"run-{index + 1}",
            index=index,
            colour=figures.COLOURS[methods.index(group[0].method) % len(figures.COLOURS)],
        )
        for index, (group, label) in enumerate(zip(groups.values(), _labels([*groups.values()], given), strict=True))
    ]


def _labels(groups: Sequence[Sequence[RunFolder]], names: Mapping[Path, str | None]) -> list[str]:
    """Name each group: as it is given, or its method, with what tells it from others where that repeats on the data."""
    labels = [names[group[0].path] or group[0].method for group in groups]
    for detail in (_own_settings, _folders, _paths):
        met = Counter(zip((group[0].data for group in groups), labels, strict=True))
        told = []
        for group, label in zip(groups, labels, strict=True):
            alike = zip(groups, labels, strict=True)
            same = [other for other, name in alike if (other[0].data, name) == (group[0].data, label)]
            words = detail(group, same) if met[group[0].data, label] > 1 else ""
            told.append(f"{label} ({words})" if words else label)
        labels = told
    return labels


def _own_settings(group: Sequence[RunFolder], among: Sequence[Sequence[RunFolder]]) -> str:
    """The settings in which a group differs from the others."""
    settings = [other[0].settings for other in among]
    own = group[0].settings
    names = [name for name in own if any(other.get(name) != own[name] for other in settings)]
    return ", ".join(f"{name.removeprefix('settings.').removesuffix('.name')} {_plain(own[name])}" for name in names)


def _folders(group: Sequence[RunFolder], _: Sequence[Sequence[RunFolder]]) -> str:
    return ", ".join(run.path.name for run in group)


def _paths(group: Sequence[RunFolder], _: Sequence[Sequence[RunFolder]]) -> str:
    return ", ".join(str(run.path) for run in group)


def _compare(data: Data, all_series: Sequence[Series], anchor: str) -> Comparison:
    from taet.report import figures, tables

    runs = tables.ranked(tables.measured(all_series))
    attacks = list(dict.fromkeys(attack for run in runs for attack in run.summaries))
    clean = next((attack for attack in attacks if attack.norm is None), None)
    strongest = tables.strongest(runs)
    shown = [attack for attack in (clean, strongest) if attack is not None]
    headline = tables.headline(runs, attacks, strongest)
    many = len(all_series) > figures.MANY
    few = [int(c) for c in data.order if data.test_counts[c] < figures.FEW_TEST_IMAGES]
    return Comparison(
        anchor=anchor,
        data=data,
        series=tuple(all_series),
        evaluated=tuple(run.series for run in runs),
        deviations=tuple(dict.fromkeys(text for run in runs for text in run.series.deviations)),
        summary=_summary(data, all_series, attacks),
        result=_result(headline, attacks.index(strongest)) if strongest else "",
        strongest=strongest.name if strongest else "",
        headline=headline,
        plain=tables.plain(runs, attacks),
        groups=tuple(tables.by_group(runs, attack, data) for attack in shown),
        more_groups=tuple(tables.by_group(runs, attack, data) for attack in attacks if attack not in shown),
        classes=tables.per_class(runs, shown, data) if shown else None,
        histogram=figures.histogram(data, f"{anchor}-histogram"),
        bars=_class_bars(runs, clean, strongest),
        dots=() if many else _class_dots(runs, shown, anchor),
        confusions=_confusions(runs, shown),
        curves=_curves(all_series, data, anchor),
        curve_splits=tuple((series.label, split) for series in all_series if (split := _curve_split(series))),
        losses=_each(all_series, figures.loss_curves, "loss"),
        predicted=_each(all_series, figures.predicted_classes, "predicted"),
        images=tuple(
            (series, examples, figures.magnification(examples), tuple(figures.example_images(examples, data.ranks)))
            for series in all_series
            if (examples := _examples(series)) is not None
        ),
        few=frozenset(few),
        few_words=_few(data, few),
        many=many,
    )


def _examples(series: Series) -> Examples | None:
    """The images that the first of the runs has kept."""
    return next((run.examples for run in series.runs if run.examples is not None), None)


# --- sentences -------------------------------------------------------------------------------------------------------


def _percent(value: float) -> str:
    return "–" if math.isnan(value) else f"{100 * value:.1f}"


def _number(value: float) -> str:
    return f"{value:,.0f}".replace(",", " ")


def _listed(words: Iterable[str]) -> str:
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last


def _summary(data: Data, all_series: Sequence[Series], attacks: Sequence[AttackKey]) -> str:
    balls = list(dict.fromkeys(attack.threat for attack in attacks if attack.norm is not None))
    threat = f", attacked with {_listed(balls)}" if balls else ""
    return (
        f"{_counted(all_series)} on {data.name}: {len(data.class_names)} classes, "
        f"{_number(sum(data.train_counts))} training images "
        f"(largest class {_number(max(data.train_counts))}, smallest {_number(min(data.train_counts))}, "
        f"imbalance ratio {data.imbalance_ratio:.4g}), "
        f"{_number(sum(data.test_counts))} test images{threat}."
    )


def _counted(all_series: Sequence[Series]) -> str:
    """How many runs of what: by name where they are few, and how many seeds."""
    from taet.report import figures

    seeds = [len(series.runs) for series in all_series]
    runs = f"{sum(seeds)} runs" if sum(seeds) > 1 else "One run"
    each = f"{seeds[0]} seeds each" if len(set(seeds)) == 1 else f"{min(seeds)} to {max(seeds)} seeds each"
    if len(seeds) > figures.MANY:
        names = f"{len(seeds)} methods and settings"
    else:
        names = ", ".join(series.label for series in all_series)
    return f"{runs} ({names})" if max(seeds) == 1 else f"{runs} ({names}; {each})"


def _numbers(all_series: Sequence[Series]) -> str:
    """What the small numbers of the tables mean."""
    several = [len(series.cards) > 1 for series in all_series if series.cards]
    one = (
        "95 % intervals over the test images of one trained model; they say nothing about how much another seed would "
        "change"
    )
    many = "the standard error of the mean over n seeds, in brackets"
    if all(several) and several:
        return f"Each number is the mean over n runs that differ in their seed; small numbers are {many}."
    return f"Small numbers are {one}." if not any(several) else f"Small numbers are {many}, or, for one seed, {one}."


def _result(headline: Table, column: int) -> str:
    from taet.report.tables import Cell

    cells = [(series.label, cells[column]) for series, cells in headline.rows]
    ranked = [(label, cell) for label, cell in cells if isinstance(cell, Cell) and not math.isnan(cell.value)]
    if not ranked:
        return ""
    top = max(cell.value for _, cell in ranked)
    best = [label for label, cell in ranked if cell.value == top]
    tied = [label for label, cell in ranked if cell.tied and label not in best]
    within = next(_within(cell) for _, cell in ranked if cell.value == top)
    text = f"Under {headline.heads[column].name}, {_listed(best)}"
    if len(ranked) == 1:
        return f"{text} keeps a balanced accuracy of {_percent(top)} % ({within})."
    text += f" {'share' if len(best) > 1 else 'has'} the highest balanced accuracy, {_percent(top)} % ({within})"
    if tied:
        others = _listed(tied) if len(tied) <= 4 else f"{len(tied)} others"
        what = "test images" if all(cell.error is None for _, cell in ranked) else "runs"
        return f"{text}; its interval overlaps that of {others}, so these {what} do not tell them apart."
    return f"{text}." if len(best) > 1 else f"{text}, and its interval lies above all others."


def _within(cell: Cell) -> str:
    if cell.error is None:
        return f"95 % interval {_percent(cell.low)} to {_percent(cell.high)}"
    return f"standard error {_percent(cell.error)}, n = {cell.count}"


def _few(data: Data, classes: Sequence[int]) -> str:
    named = [f"{data.class_names[c]} ({data.test_counts[c]})" for c in classes]
    if not named:
        return ""
    which = (
        _listed(named)
        if len(named) <= 12
        else f"{len(named)} of {len(data.class_names)} classes, {named[0]} to {named[-1]}"
    )
    return f"{which}: one image more or less moves the accuracy of such a class by more than two points."


def _curve_split(series: Series) -> str:
    epochs = [epoch for run in series.runs for epoch in run.epochs]
    splits = list(dict.fromkeys(epoch.monitor.split for epoch in epochs if epoch.monitor is not None))
    if splits != ["test"]:
        return f"the {_listed(splits)} split" if splits else ""
    if series.runs[0].record["run"].get("training", {}).get("selection") == "best-test":
        return "the test set, which also chose the epoch that is delivered: a leak"
    return "the test set, drawn only, never used to choose anything"


# --- panels ----------------------------------------------------------------------------------------------------------


def _each(all_series: Sequence[Series], draw: Callable[[Series, str], Panel | None], name: str) -> tuple[Panel, ...]:
    panels = (draw(series, f"{series.anchor}-{name}") for series in all_series)
    return tuple(panel for panel in panels if panel is not None)


def _class_bars(runs: Sequence[Measured], clean: AttackKey | None, strongest: AttackKey | None) -> tuple[Panel, ...]:
    from taet.report import figures, tables

    panels = []
    for run in runs:
        if clean is not None and clean in run.summaries:
            summaries = run.summaries.get(strongest) if strongest else None
            attacked = tables.classes(summaries) if summaries else None
            attack = strongest.name if strongest else ""
            name = f"{run.series.anchor}-classes"
            panels.append(figures.class_bars(run.series, tables.classes(run.summaries[clean]), attacked, attack, name))
    return tuple(panels)


def _class_dots(runs: Sequence[Measured], attacks: Sequence[AttackKey], anchor: str) -> tuple[Panel, ...]:
    from taet.report import figures, tables

    panels = []
    for number, attack in enumerate(attacks):
        rows = [(run.series, tables.classes(run.summaries[attack])) for run in runs if attack in run.summaries]
        if len(rows) > 1:
            panels.append(figures.class_dots(rows, _under(attack), f"{anchor}-dots-{number}"))
    return tuple(panels)


def _confusions(runs: Sequence[Measured], attacks: Sequence[AttackKey]) -> tuple[tuple[str, tuple[Panel, ...]], ...]:
    import numpy as np

    from taet.report import figures

    def matrix(run: Measured, attack: AttackKey, number: int) -> Panel:
        total = np.sum([summary.confusion for summary in run.summaries[attack]], axis=0)
        return figures.confusion(run.series, total, f"{run.series.anchor}-confusion-{number}")

    return tuple(
        (_under(attack), tuple(matrix(run, attack, number) for run in runs if attack in run.summaries))
        for number, attack in enumerate(attacks)
    )


def _under(attack: AttackKey) -> str:
    return "Clean" if attack.norm is None else f"Under {attack.name}"


def _curves(all_series: Sequence[Series], data: Data, anchor: str) -> tuple[Panel, ...]:
    """All series in four figures; of many, a figure each, with AT in grey."""
    from taet import metrics
    from taet.report import figures

    monitored = [s for s in all_series if any(epoch.monitor is not None for run in s.runs for epoch in run.epochs)]
    if not monitored:
        return ()
    points = [epoch.monitor for s in monitored for run in s.runs for epoch in run.epochs if epoch.monitor is not None]
    attack = _listed(dict.fromkeys(point.attack for point in points))
    tail = data.groups["tail"]

    def all_classes(counts: Counts) -> float:
        return metrics.balanced_accuracy(counts.correct, counts.total)

    def tail_classes(counts: Counts) -> float:
        return metrics.balanced_accuracy(counts.correct[tail], counts.total[tail])

    def side(value: Callable[[Counts], float], attacked: bool) -> figures.Value:
        return lambda point: value(point.attacked if attacked else point.clean)

    def top(*values: figures.Value) -> float:
        drawn = [value(point) for point in points for value in values]
        highest = max((value for value in drawn if not math.isnan(value)), default=1.0)
        return min(1.0, max(0.1, 1.1 * highest))

    clean, attacked = side(all_classes, False), side(all_classes, True)
    tail_clean, tail_attacked = side(tail_classes, False), side(tail_classes, True)
    if len(all_series) > figures.MANY:
        values = {"clean": clean, attack: attacked, f"tail, {attack}": tail_attacked}
        base = next((series for series in monitored if series.method == "at"), None)
        reach = top(*values.values())
        return tuple(
            figures.own_curves(s, None if s is base else base, values, reach, f"{s.anchor}-curve") for s in monitored
        )
    shown = ((("clean", clean), (attack, attacked)), (("clean", tail_clean), (attack, tail_attacked)))
    panels: list[Panel] = []
    for words, pair in zip(("", "tail classes, "), shown, strict=True):
        reach = top(*(value for _, value in pair))
        for split, value in pair:
            name = f"{anchor}-curve-{len(panels)}"
            panels.append(figures.accuracy_curves(monitored, f"Balanced accuracy, {words}{split}", value, reach, name))
    return tuple(panels)


# --- provenance ------------------------------------------------------------------------------------------------------


def _plain(value: Any) -> str:
    """Write a value from a JSON file in words: `key value, key value` for a dictionary."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(part)}" for key, part in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_plain(part) for part in value)
    if isinstance(value, float):
        return f"{value:.6g}"
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    return str(value)


def _provenance(run: RunFolder) -> list[tuple[str, str]]:
    record, settings = run.record, run.record["run"]
    memory = max((epoch.peak_memory_mb or 0 for epoch in run.epochs), default=0)
    planned = settings.get("training", {}).get("epochs")
    facts: list[tuple[str, Any]] = [
        ("run folder", str(run.path)),
        ("method", record.get("method_title")),
        ("reference", record.get("reference")),
        ("deviations", "; ".join(run.deviations) or "none"),
        ("method settings", settings.get("settings")),
        ("protocol", settings.get("protocol")),
        ("model", settings.get("model")),
        ("parameters", record.get("parameters")),
        ("seed", run.seed),
        ("epochs", f"{len(run.epochs)} of {planned}" if planned else len(run.epochs)),
        ("training attack", settings.get("threat")),
        ("outer loss", settings.get("outer")),
        ("selection", record.get("selection")),
        ("data notes", "; ".join(run.data.notes) or None),
        ("versions", record.get("versions")),
        ("commit", record.get("commit")),
        ("device", record.get("device")),
        ("started", record.get("started")),
        ("training command", record.get("command")),
        ("training time", f"{run.seconds:.1f} s" + (f", peak memory {memory:.0f} MB" if memory else "")),
        ("test set SHA-256", run.data.test_sha256),
    ]
    if run.card is None:
        facts.append(("evaluation", "none yet"))
    else:
        card = run.card
        attacks = [
            f"{column.name}: {_plain(column.parameters) or 'no parameters'}; {column.seconds:.1f} s, "
            f"{_number(column.forwards)} forward and {_number(column.backwards)} backward passes of an image"
            for column in card.columns
        ]
        facts += [
            ("weights SHA-256", card.model["weights_sha256"]),
            ("weights", {k: v for k, v in card.model.items() if k != "weights_sha256"}),
            ("evaluation batch size", card.batch_size),
            ("attacks", "\n".join(attacks)),
            ("evaluated", card.created),
            ("evaluated on", card.environment),
            ("evaluation command", card.command),
        ]
    return [(name, _plain(value)) for name, value in facts if value not in (None, {}, "")]
