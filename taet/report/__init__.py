"""The report: one self-contained HTML file from any number of run folders, every number traced to its run."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taet.errors import UserError

if TYPE_CHECKING:
    from taet.report.figures import Example, Panel, Series
    from taet.report.read import Data, RunFolder
    from taet.report.tables import AttackKey, ClassTable, Measured, Table

__all__ = ["write"]


def write(run_dirs: Sequence[Path], out: Path, title: str | None = None) -> Path:
    """Write the report of the runs in `run_dirs` to the HTML file `out` and return its path.

    Runs are compared in one table only where they share training counts and test set; a run that is not evaluated yet
    shows its curves and is named. The file asks for nothing else: styles, figures and images are inside it, and the
    same runs give the same bytes. A folder that is no run, or a file that cannot be written, is a `UserError`.
    """
    from taet.files import write_atomically
    from taet.report import figures, read

    if not run_dirs:
        raise UserError("report: got no run folder; allowed: one or more folders that taet train wrote")
    runs = [read.read(Path(path)) for path in dict.fromkeys(run_dirs)]
    with figures.style():
        page = _page(runs, title)
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
    images: tuple[tuple[Series, int, tuple[Example, ...]], ...]
    few: frozenset[int]
    few_words: str

    @property
    def waiting(self) -> tuple[Series, ...]:
        return tuple(series for series in self.series if series.run.card is None)


def _page(runs: Sequence[RunFolder], title: str | None) -> str:
    import jinja2

    from taet.report import tables

    all_series = _series(runs)
    by_data: dict[Data, list[Series]] = {}
    for series in all_series:
        by_data.setdefault(series.run.data, []).append(series)
    comparisons = [_compare(data, group, f"data-{i}") for i, (data, group) in enumerate(by_data.items(), 1)]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": _percent, "number": _number, "size": tables.size, "is_finite": math.isfinite}
    names = ", ".join(dict.fromkeys(comparison.data.name for comparison in comparisons))
    return environment.get_template("report.html.j2").render(
        title=title or f"Adversarial robustness on {names}",
        comparisons=comparisons,
        provenance=[(series, _provenance(series.run)) for series in all_series],
    )


def _series(runs: Sequence[RunFolder]) -> list[Series]:
    """Give each run its label: its method, with its seed and then its folder where that repeats on the same data."""
    from taet.report import figures

    methods = list(dict.fromkeys(run.method for run in runs))
    labels = [run.method for run in runs]
    for detail in (lambda run: f"seed {run.seed}", lambda run: run.path.name, lambda run: str(run.path)):
        met = Counter(zip((run.data for run in runs), labels, strict=True))
        labels = [
            label if met[run.data, label] == 1 else f"{label} ({detail(run)})"
            for run, label in zip(runs, labels, strict=True)
        ]
    return [
        figures.Series(
            run=run,
            label=label,
            anchor=f"run-{index + 1}",
            index=index,
            colour=figures.COLOURS[methods.index(run.method) % len(figures.COLOURS)],
        )
        for index, (run, label) in enumerate(zip(runs, labels, strict=True))
    ]


def _compare(data: Data, all_series: Sequence[Series], anchor: str) -> Comparison:
    from taet.report import figures, tables

    runs = tables.measured(all_series)
    attacks = list(dict.fromkeys(attack for run in runs for attack in run.summaries))
    clean = next((attack for attack in attacks if attack.norm is None), None)
    strongest = tables.strongest(runs)
    shown = [attack for attack in (clean, strongest) if attack is not None]
    headline = tables.headline(runs, attacks)
    few = [int(c) for c in data.order if data.test_counts[c] < figures.FEW_TEST_IMAGES]
    return Comparison(
        anchor=anchor,
        data=data,
        series=tuple(all_series),
        evaluated=tuple(run.series for run in runs),
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
        dots=_class_dots(runs, shown, anchor),
        confusions=_confusions(runs, shown),
        curves=_curves(all_series, data, anchor),
        curve_splits=tuple((series.label, split) for series in all_series if (split := _curve_split(series.run))),
        losses=_each(all_series, figures.loss_curves, "loss"),
        predicted=_each(all_series, figures.predicted_classes, "predicted"),
        images=tuple(
            (series, figures.magnification(examples), tuple(figures.example_images(examples, data.ranks)))
            for series in all_series
            if (examples := series.run.examples) is not None
        ),
        few=frozenset(few),
        few_words=_few(data, few),
    )


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
    count = f"{len(all_series)} runs" if len(all_series) > 1 else "One run"
    return (
        f"{count} ({', '.join(series.label for series in all_series)}) on {data.name}: "
        f"{len(data.class_names)} classes, {_number(sum(data.train_counts))} training images "
        f"(largest class {_number(max(data.train_counts))}, smallest {_number(min(data.train_counts))}, "
        f"imbalance ratio {data.imbalance_ratio:.4g}), "
        f"{_number(sum(data.test_counts))} test images{threat}."
    )


def _result(headline: Table, column: int) -> str:
    cells = [(series.label, cells[column]) for series, cells in headline.rows]
    ranked = [(label, cell) for label, cell in cells if cell is not None and not math.isnan(cell.value)]
    if not ranked:
        return ""
    top = max(cell.value for _, cell in ranked)
    best = [label for label, cell in ranked if cell.value == top]
    tied = [label for label, cell in ranked if cell.tied and label not in best]
    interval = next(f"{_percent(c.low)} to {_percent(c.high)}" for _, c in ranked if c.value == top)
    text = f"Under {headline.heads[column].name}, {_listed(best)}"
    if len(ranked) == 1:
        return f"{text} keeps a balanced accuracy of {_percent(top)} % (95 % interval {interval})."
    text += f" {'share' if len(best) > 1 else 'has'} the highest balanced accuracy, {_percent(top)} % ({interval})"
    if tied:
        return f"{text}; its interval overlaps that of {_listed(tied)}, so these test images do not tell them apart."
    return f"{text}." if len(best) > 1 else f"{text}, and its interval lies above all others."


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


def _curve_split(run: RunFolder) -> str:
    splits = list(dict.fromkeys(epoch.monitor.split for epoch in run.epochs if epoch.monitor is not None))
    if splits != ["test"]:
        return f"the {_listed(splits)} split" if splits else ""
    if run.record["run"].get("training", {}).get("selection") == "best-test":
        return "the test set, which also chose the epoch that is delivered: a leak"
    return "the test set, drawn only, never used to choose anything"


# --- panels ----------------------------------------------------------------------------------------------------------


def _each(all_series: Sequence[Series], draw: Callable[[Series, str], Panel | None], name: str) -> tuple[Panel, ...]:
    panels = (draw(series, f"{series.anchor}-{name}") for series in all_series)
    return tuple(panel for panel in panels if panel is not None)


def _class_bars(runs: Sequence[Measured], clean: AttackKey | None, strongest: AttackKey | None) -> tuple[Panel, ...]:
    from taet.report import figures

    panels = []
    for run in runs:
        if clean is not None and clean in run.summaries:
            attacked = run.summaries.get(strongest) if strongest else None
            attack = strongest.name if strongest else ""
            name = f"{run.series.anchor}-classes"
            panels.append(figures.class_bars(run.series, run.summaries[clean], attacked, attack, name))
    return tuple(panels)


def _class_dots(runs: Sequence[Measured], attacks: Sequence[AttackKey], anchor: str) -> tuple[Panel, ...]:
    from taet.report import figures

    panels = []
    for number, attack in enumerate(attacks):
        rows = [(run.series, run.summaries[attack]) for run in runs if attack in run.summaries]
        if len(rows) > 1:
            panels.append(figures.class_dots(rows, _under(attack), f"{anchor}-dots-{number}"))
    return tuple(panels)


def _confusions(runs: Sequence[Measured], attacks: Sequence[AttackKey]) -> tuple[tuple[str, tuple[Panel, ...]], ...]:
    from taet.report import figures

    def matrices(attack: AttackKey, number: int) -> tuple[Panel, ...]:
        return tuple(
            figures.confusion(run.series, run.summaries[attack].confusion, f"{run.series.anchor}-confusion-{number}")
            for run in runs
            if attack in run.summaries
        )

    return tuple((_under(attack), matrices(attack, number)) for number, attack in enumerate(attacks))


def _under(attack: AttackKey) -> str:
    return "Clean" if attack.norm is None else f"Under {attack.name}"


def _curves(all_series: Sequence[Series], data: Data, anchor: str) -> tuple[Panel, ...]:
    from taet import metrics
    from taet.report import figures, read

    monitored = [s for s in all_series if any(epoch.monitor is not None for epoch in s.run.epochs)]
    if not monitored:
        return ()
    points = [epoch.monitor for s in monitored for epoch in s.run.epochs if epoch.monitor is not None]
    attack = _listed(dict.fromkeys(point.attack for point in points))
    tail = data.groups["tail"]

    def all_classes(counts: read.Counts) -> float:
        return metrics.balanced_accuracy(counts.correct, counts.total)

    def tail_classes(counts: read.Counts) -> float:
        return metrics.balanced_accuracy(counts.correct[tail], counts.total[tail])

    def side(value: Callable[[read.Counts], float], attacked: bool) -> Callable[[read.Monitor], float]:
        return lambda point: value(point.attacked if attacked else point.clean)

    panels: list[Panel] = []
    for words, value in (("", all_classes), ("tail classes, ", tail_classes)):
        clean, attacked = side(value, False), side(value, True)
        values = [draw(point) for point in points for draw in (clean, attacked)]
        highest = max((v for v in values if not math.isnan(v)), default=1.0)
        top = min(1.0, max(0.1, 1.1 * highest))
        for split, draw in (("clean", clean), (attack, attacked)):
            name = f"{anchor}-curve-{len(panels)}"
            panels.append(figures.accuracy_curves(monitored, f"Balanced accuracy, {words}{split}", draw, top, name))
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
    seconds = sum(epoch.seconds for epoch in run.epochs)
    memory = max((epoch.peak_memory_mb or 0 for epoch in run.epochs), default=0)
    planned = settings.get("training", {}).get("epochs")
    facts: list[tuple[str, Any]] = [
        ("run folder", str(run.path)),
        ("method", record.get("method_title")),
        ("reference", record.get("reference")),
        ("deviations", "; ".join(map(str, record.get("deviations") or ())) or "none"),
        ("method settings", settings.get("settings")),
        ("protocol", settings.get("protocol")),
        ("model", settings.get("model")),
        ("parameters", record.get("parameters")),
        ("seed", run.seed),
        ("epochs", f"{len(run.epochs)} of {planned}" if planned else len(run.epochs)),
        ("training attack", settings.get("threat")),
        ("selection", record.get("selection")),
        ("data notes", "; ".join(run.data.notes) or None),
        ("versions", record.get("versions")),
        ("commit", record.get("commit")),
        ("device", record.get("device")),
        ("started", record.get("started")),
        ("training command", record.get("command")),
        ("training time", f"{seconds:.1f} s" + (f", peak memory {memory:.0f} MB" if memory else "")),
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
