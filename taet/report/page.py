"""The page: one section for all runs with the same training counts and test set, filled into the template."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2

from taet import formatting, metrics
from taet.report import broken_images, curves, figures, images, measured, sentences, series, tables, transfers
from taet.report.differences import PairedTable, Pairs, paired_table
from taet.report.figures import Panel
from taet.report.images import Example
from taet.report.provenance import provenance
from taet.report.read import Examples, ReportedData, ReportedRun
from taet.report.series import Series
from taet.report.tables import ClassTable, MethodTable
from taet.report.transfers import TransferTable


@dataclass(frozen=True)
class RaisedFlag:
    """A flag of the diagnostics: its name, and each text with the rows it was raised for."""

    name: str
    texts: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class DataSection:
    """Everything that the page shows of the runs on one training and test set."""

    anchor: str
    data: ReportedData
    series: tuple[Series, ...]
    evaluated: tuple[Series, ...]
    deviations: tuple[str, ...]
    """Where rows leave the protocol: footnotes of every table, numbered from 1."""
    baseline: str
    """Label of the series that the others are compared with; empty if there is none."""
    summary: str
    result: str
    strongest: str
    headline: MethodTable
    plain: MethodTable
    groups: tuple[MethodTable, ...]
    more_groups: tuple[MethodTable, ...]
    behaviour: MethodTable | None
    paired: tuple[PairedTable, ...]
    breaks: tuple[MethodTable, ...]
    parts: tuple[MethodTable, ...]
    attack_curves: tuple[curves.AttackCurves, ...]
    transfers: tuple[TransferTable, ...]
    classes: ClassTable | None
    histogram: Panel
    bars: tuple[Panel, ...]
    errors: tuple[Panel, ...]
    dots: tuple[Panel, ...]
    confusions: tuple[tuple[str, list[Panel]], ...]
    curves: tuple[Panel, ...]
    curve_splits: tuple[tuple[str, str], ...]
    losses: tuple[Panel, ...]
    predicted: tuple[Panel, ...]
    images: tuple[tuple[Series, Examples, int, tuple[Example, ...]], ...]
    few_words: str
    flags: tuple[RaisedFlag, ...]
    unflagged: tuple[str, ...]
    many: bool

    @property
    def waiting(self) -> list[str]:
        """Rows that are not evaluated yet, or their runs that are not."""
        return [
            one.label if len(one.runs) == 1 else f"{one.label} (seed {run.seed})"
            for one in self.series
            for run in one.runs
            if run.card is None
        ]

    @property
    def parts_of_page(self) -> list[tuple[str, str]]:
        """Anchor and heading of the parts that have something to show."""
        every = (
            ("results", "Results", True),
            ("paired", "Differences", self.paired),
            ("breaks", "Which attack", self.breaks or self.parts),
            ("attack-curves", "Curves", self.attack_curves),
            ("transfer", "Transfer", self.transfers),
            ("histogram-section", "Training set" if self.data.train_counts else "Test set", True),
            ("classes", "Classes", True),
            ("confusion", "Confusion", True),
            ("training", "Training", True),
            ("images", "Images", True),
            ("flags", "Flags", True),
        )
        return [(name, heading) for name, heading, there in every if there]


def page(
    runs: Sequence[ReportedRun], names: Sequence[str | None], title: str | None, not_run: Sequence[tuple[str, str]]
) -> str:
    """Return the page as HTML."""
    all_series = series.grouped(runs, names)
    by_data: dict[ReportedData, list[Series]] = {}
    for one in all_series:
        by_data.setdefault(one.data, []).append(one)
    comparisons = [section(data, group, f"data-{i}") for i, (data, group) in enumerate(by_data.items(), 1)]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": formatting.percent,
        "points": formatting.points,
        "number": formatting.count,
        "size": formatting.size,
        "is_finite": math.isfinite,
    }
    sets = ", ".join(dict.fromkeys(comparison.data.name for comparison in comparisons))
    return environment.get_template("report.html.j2").render(
        title=title or f"Adversarial robustness on {sets}",
        comparisons=comparisons,
        numbers=sentences.numbers(all_series),
        few=metrics.FEW_PER_CLASS,
        whiskered=figures.WHISKERED_CLASSES,
        not_run=not_run,
        provenance=[(one, [(run, provenance(run)) for run in one.runs]) for one in all_series],
    )


def section(data: ReportedData, all_series: Sequence[Series], anchor: str) -> DataSection:
    """Compute what the page shows of the runs on one training and test set."""
    runs = measured.ranked(measured.measured(all_series))
    attacks = measured.attacks_of(runs)
    clean = next((attack for attack in attacks if attack.norm is None), None)
    strongest = measured.strongest(runs)
    shown = [attack for attack in (clean, strongest) if attack is not None]
    pairs = Pairs([*data.groups.get("tail", ())])
    headline = tables.headline(runs, attacks, strongest, data, pairs)
    paired = (paired_table(runs, attack, pairs) for attack in reversed(shown))
    many = len(all_series) > series.MANY
    return DataSection(
        anchor=anchor,
        data=data,
        series=tuple(all_series),
        evaluated=tuple(run.series for run in runs),
        deviations=tuple(dict.fromkeys(text for run in runs for text in run.series.deviations)),
        baseline=base.label if (base := series.baseline(all_series)) else "",
        summary=sentences.summary(data, all_series, attacks, many),
        result=sentences.result(headline, attacks.index(strongest)) if strongest else "",
        strongest=strongest.name if strongest else "",
        headline=headline,
        plain=tables.plain(runs, attacks),
        groups=tuple(tables.by_group(runs, attack, data) for attack in shown),
        more_groups=tuple(tables.by_group(runs, attack, data) for attack in attacks if attack not in shown),
        behaviour=tables.behaviour(runs, clean, strongest, data) if strongest else None,
        paired=tuple(table for table in paired if table is not None),
        breaks=tuple(broken_images.by_attack(runs, attacks)),
        parts=tuple(broken_images.by_part(runs, attacks)),
        attack_curves=tuple(curves.attack_curves(runs, anchor)),
        transfers=transfers.matrices(all_series),
        classes=tables.per_class(runs, shown, data) if shown else None,
        histogram=figures.histogram(data, f"{anchor}-histogram"),
        bars=tuple(figures.class_bars(runs, clean, strongest)),
        errors=tuple(figures.class_errors(runs, strongest)),
        dots=() if many else tuple(figures.class_dots(runs, shown, anchor)),
        confusions=tuple(figures.confusions(runs, shown)),
        curves=tuple(curves.training_curves(all_series, data, anchor)),
        curve_splits=tuple((one.label, split) for one in all_series if (split := sentences.curve_split(one))),
        losses=tuple(panel for one in all_series if (panel := curves.loss_curves(one))),
        predicted=tuple(panel for one in all_series if (panel := figures.predicted_classes(one))),
        images=tuple(
            (one, examples, images.magnification(examples), tuple(images.example_images(examples, data.ranks)))
            for one in all_series
            if (examples := _examples(one)) is not None
        ),
        few_words=sentences.few(data),
        flags=_flags([run.series for run in runs]),
        unflagged=tuple(run.series.label for run in runs if not run.series.flags),
        many=many,
    )


def _examples(one: Series) -> Examples | None:
    """Return the example images of the first run that has some."""
    return next((run.examples for run in one.runs if run.examples is not None), None)


def _flags(all_series: Sequence[Series]) -> tuple[RaisedFlag, ...]:
    """Return the flags in order of appearance; rows with the same text share it."""
    found: dict[str, dict[str, list[str]]] = {}
    for one in all_series:
        for name, (text, seeds) in one.flags.items():
            found.setdefault(name, {}).setdefault(text, []).append(_raised(one, seeds))
    return tuple(
        RaisedFlag(name, tuple((text, ", ".join(rows)) for text, rows in texts.items()))
        for name, texts in found.items()
    )


def _raised(one: Series, seeds: Sequence[int | None]) -> str:
    """Name a row and, with several seeds, how many raised the flag; the numbers in its text are those of the first."""
    if len(one.cards) == 1:
        return one.label
    return f"{one.label} (of seed {seeds[0]}; raised for {len(seeds)} of {len(one.cards)} seeds)"
