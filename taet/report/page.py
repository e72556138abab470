"""The page: one section for all runs with the same training counts and test set, and the page of an audit."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import jinja2

from taet import formatting, statistics
from taet.errors import unknown
from taet.evaluation.audit import Audit
from taet.evaluation.decision_card import ACCURACY, DecisionCard
from taet.report import broken_images, curves, epochs, figures, measured, rules, sentences, series, tables
from taet.report.differences import Pairs, paired_table, transfers
from taet.report.gallery import gallery
from taet.report.provenance import provenance
from taet.report.read import ReportedData, ReportedRun
from taet.report.series import Series


def page(
    runs: Sequence[ReportedRun],
    names: Sequence[str | None],
    title: str | None,
    not_run: Sequence[tuple[str, str]],
    decisions: Sequence[DecisionCard] = (),
    class_attack: str | None = None,
) -> str:
    """Return the page as HTML."""
    all_series = series.grouped(runs, names)
    known = {column.name for one in all_series for card in one.cards for column in card.columns}
    if class_attack is not None and class_attack not in known:
        raise unknown("attack of these runs", class_attack, known)
    by_data: dict[ReportedData, list[Series]] = {}
    for one in all_series:
        by_data.setdefault(one.data, []).append(one)
    comparisons = [
        section(data, group, f"data-{i}", class_attack) for i, (data, group) in enumerate(by_data.items(), 1)
    ]
    named = [*(comparison.data.name for comparison in comparisons), *(one.data["name"] for one in decisions)]
    sets = ", ".join(dict.fromkeys(named))
    return template("report.html.j2").render(
        title=title or f"Adversarial robustness on {sets}",
        comparisons=comparisons,
        numbers=sentences.numbers(all_series),
        few=statistics.FEW_PER_CLASS,
        whiskered=figures.WHISKERED_CLASSES,
        large=figures.NAMED_CLASSES,
        named=figures.NAMED_ROWS,
        not_run=not_run,
        decisions=[(one, sentences.decided(one)) for one in decisions],
        accuracy=ACCURACY,
        unchecked=[one.label for one in all_series if not all(card.sealed for card in one.cards)],
        provenance=[(one, [(run, provenance(run)) for run in one.runs]) for one in all_series],
    )


@functools.cache
def template(name: str) -> jinja2.Template:
    """Return a template of this folder, compiled once."""
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
    return environment.get_template(name)


def audit_page(audit: Audit) -> str:
    """Return the page of an audit, its answered checklist, as HTML in the style of the report."""
    return template("audit.html.j2").render(audit=audit, card=audit.evidence.card)


def section(
    data: ReportedData, all_series: Sequence[Series], anchor: str, class_attack: str | None = None
) -> SimpleNamespace:
    """Compute everything that the template shows about the runs on one training and test set.

    Classes are shown under the strongest attack, or under `class_attack`.
    """
    runs = measured.ranked(measured.measured(all_series))
    evaluated = [run.series for run in runs]
    attacks = measured.attacks_of(runs)
    clean = next((attack for attack in attacks if attack.norm is None), None)
    strongest = measured.strongest(runs)
    shown = [attack for attack in (clean, strongest) if attack is not None]
    of_classes = next((attack for attack in attacks if attack.name == class_attack), strongest)
    class_shown = [attack for attack in (clean, of_classes) if attack is not None]
    pairs = Pairs([*data.groups.get("tail", ())])
    headline = tables.headline(runs, attacks, strongest, data, pairs)
    base = series.baseline(all_series)
    many = len(all_series) > series.MANY
    c = SimpleNamespace(
        anchor=anchor,
        data=data,
        series=all_series,
        evaluated=evaluated,
        unflagged=[one.label for one in evaluated if not one.flags],
        waiting=[
            one.label if len(one.runs) == 1 else f"{one.label} (seed {run.seed})"
            for one in all_series
            for run in one.runs
            if run.card is None
        ],
        deviations=list(dict.fromkeys(text for one in evaluated for text in one.deviations)),  # footnotes of tables
        baseline=base.label if base else "",
        strongest=strongest.name if strongest else "",
        class_attack=of_classes.name if of_classes else "",
        many=many,
        summary=sentences.summary(data, all_series, attacks, many),
        result=sentences.result(headline, attacks.index(strongest)) if strongest else "",
        headline=headline,
        plain=tables.plain(runs, attacks),
        groups=[tables.by_group(runs, attack, data) for attack in shown],
        more_groups=[tables.by_group(runs, attack, data) for attack in attacks if attack not in shown],
        behaviour=tables.behaviour(runs, clean, strongest, data) if strongest else None,
        paired=[table for attack in reversed(shown) if (table := paired_table(runs, attack, pairs))],
        rules=rules.rule_table(runs, strongest) if strongest else None,
        breaks=list(broken_images.by_attack(runs, attacks)),
        parts=list(broken_images.by_part(runs, attacks)),
        attack_curves=curves.attack_curves(runs, anchor),
        transfers=transfers(all_series),
        classes=tables.per_class(runs, class_shown, data) if class_shown else None,
        histogram=figures.histogram(data, f"{anchor}-histogram"),
        scatter=figures.clean_against_robust(runs, clean, strongest, anchor),
        bars=figures.class_bars(runs, clean, of_classes),
        errors=figures.class_errors(runs, of_classes),
        dots=[] if many else figures.class_dots(runs, class_shown, anchor),
        confusions=figures.confusions(runs, shown),
        mistakes=tables.mistakes(runs, shown),
        curves=curves.training_curves(all_series, data, anchor),
        curve_splits=[(one.label, split) for one in all_series if (split := sentences.curve_split(one))],
        losses=figures.each(all_series, curves.loss_curves),
        predicted=figures.each(all_series, figures.predicted_classes),
        class_curves=figures.each(all_series, epochs.class_curves),
        shares=figures.each(all_series, epochs.predicted_shares),
        distances=figures.each(all_series, epochs.distances),
        images=[(one, gallery(one.examples, data.ranks)) for one in all_series if one.examples],
        few_words=sentences.few(data),
        flags=_flags(evaluated),
    )
    c.contents = [(part, heading) for part, (heading, there) in _contents(c).items() if there]
    return c


def _contents(c: SimpleNamespace) -> dict[str, tuple[str, object]]:
    """Return each part of a section with its heading and whether it has something to show."""
    return {
        "results": ("Results", True),
        "paired": ("Differences", c.paired),
        "rules": ("Rules", c.rules),
        "breaks": ("Which attack", c.breaks or c.parts),
        "attack-curves": ("Curves", c.attack_curves),
        "transfer": ("Transfer", c.transfers),
        "histogram-section": ("Training set" if c.data.train_counts else "Test set", True),
        "classes": ("Classes", True),
        "confusion": ("Confusion", True),
        "training": ("Training", True),
        "images": ("Images", True),
        "flags": ("Flags", True),
    }


def _flags(all_series: Sequence[Series]) -> dict[str, dict[str, list[str]]]:
    """Return the rows for which each flag was raised, by its name and text, in order of appearance.

    With several seeds, the numbers in a text are those of the first.
    """
    found: dict[str, dict[str, list[str]]] = {}
    for one in all_series:
        for name, (text, seeds) in one.flags.items():
            raised = f" (of seed {seeds[0]}; raised for {len(seeds)} of {len(one.cards)} seeds)"
            row = one.label if len(one.cards) == 1 else one.label + raised
            found.setdefault(name, {}).setdefault(text, []).append(row)
    return found
