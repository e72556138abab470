"""Runs that differ only in the seed, grouped, labelled, and drawn in one style on the whole page.

Colours are those of Okabe and Ito (Color Universal Design, 2008), ordered so that the first three also differ in
lightness; markers, line styles and hatches carry the same information as the colours.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from taet import registry
from taet.evaluation.card import ResultCard
from taet.evaluation.examples import Examples
from taet.formatting import words
from taet.report.read import ReportedData, ReportedRun
from taet.statistics import Floats, Ints
from taet.training.collapse import training_flags
from taet.training.record import Epoch

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
Dashes = str | tuple[int, tuple[float, ...]]
"""A line style of matplotlib: a name, or an offset with the lengths of strokes and gaps."""
DASHES: tuple[Dashes, ...] = ("solid", (0, (5, 2)), (0, (1, 1.2)), (0, (6, 2, 1, 2)))
SVG_DASHES = ("", "6 3", "1.5 2", "7 3 1.5 3")
MARKERS = ("o", "s", "^", "D", "v")
MARKER_PATHS = (
    "M14 7a4 4 0 1 0 8 0a4 4 0 1 0-8 0Z",
    "M14.5 3.5h7v7h-7Z",
    "M18 2.5l4.5 8h-9Z",
    "M18 2l5 5l-5 5l-5-5Z",
    "M18 11.5l4.5-8h-9Z",
)
MANY = len(COLOURS)
"""Largest number of series that share a figure."""


@dataclass(frozen=True)
class Series:
    """Runs that differ only in the seed, with one label, colour, line and marker on the page."""

    runs: tuple[ReportedRun, ...]
    label: str
    anchor: str
    index: int
    colour: str
    dashes: Dashes
    svg_dashes: str
    marker: str
    marker_path: str

    @property
    def method(self) -> str:
        return self.runs[0].method

    @property
    def is_baseline(self) -> bool:
        """Whether the method's file declares it as the baseline for comparisons."""
        known = registry.entries("methods")
        return self.method in known and known[self.method].baseline

    @property
    def data(self) -> ReportedData:
        return self.runs[0].data

    @property
    def cards(self) -> list[ResultCard]:
        return [run.card for run in self.runs if run.card is not None]

    @property
    def examples(self) -> Examples | None:
        """Example images of the first run that has some."""
        return next((run.examples for run in self.runs if run.examples is not None), None)

    @property
    def seconds(self) -> float:
        """Mean seconds of training per run."""
        return float(np.mean([run.seconds for run in self.runs if run.card is not None]))

    @property
    def machine(self) -> tuple[object, ...]:
        """Device and threads, which affect the seconds."""
        return tuple(dict.fromkeys((run.record and (run.record.device, run.record.threads)) for run in self.runs))

    @property
    def deviations(self) -> tuple[str, ...]:
        """Deviations of the runs from the protocol, in words."""
        return tuple(dict.fromkeys(text for run in self.runs for text in run.deviations))

    @property
    def flags(self) -> dict[str, tuple[str, list[int | None]]]:
        """Flags of the diagnostics by name: the text, and the seeds for which the flag was raised."""
        found: dict[str, tuple[str, list[int | None]]] = {}
        for run in self.runs:
            for flag in run.card.flags if run.card is not None else ():
                found.setdefault(flag["flag"], (flag["text"], []))[1].append(run.seed)
            for name, text in training_flags(run.epochs).items():
                found.setdefault(name, (text, []))[1].append(run.seed)
        return found

    def over_seeds(self, value: Callable[[Epoch], float | Ints | Floats | None]) -> list[tuple[Epoch, Floats]]:
        """Return one epoch and the mean of a value over the seeds, for each epoch in which the value is known."""
        found: dict[int, list[tuple[Epoch, float | Ints | Floats]]] = {}
        for epoch in (epoch for run in self.runs for epoch in run.epochs):
            if (known := value(epoch)) is not None:
                found.setdefault(epoch.epoch, []).append((epoch, known))
        each = (found[number] for number in sorted(found))
        return [(seeds[0][0], np.mean(np.array([v for _, v in seeds], dtype=np.float64), axis=0)) for seeds in each]


def over_epochs(
    points: Sequence[tuple[Epoch, Floats]], value: Callable[[Floats], float] = float
) -> tuple[list[int], list[float]]:
    """Return the numbers of epochs, and a value of what was measured at each, as a line to draw."""
    return [epoch.epoch for epoch, _ in points], [value(measured) for _, measured in points]


def baseline(all_series: Sequence[Series]) -> Series | None:
    """Return the first series of the baseline method; None if there is none."""
    return min((one for one in all_series if one.is_baseline), key=lambda one: one.index, default=None)


def grouped(runs: Sequence[ReportedRun], names: Sequence[str | None]) -> list[Series]:
    """Group the runs that differ only in the seed; a run that repeats a seed starts another series."""
    groups: dict[tuple[object, ...], list[ReportedRun]] = {}
    seen: Counter[tuple[object, ...]] = Counter()
    for run, name in zip(runs, names, strict=True):
        row = (run.data, name or json.dumps(run.settings, sort_keys=True))
        groups.setdefault((*row, seen[row, run.seed]), []).append(run)
        seen[row, run.seed] += 1
    given = dict(zip((run.path for run in runs), names, strict=True))
    methods = list(dict.fromkeys(run.method for run in runs))
    return [
        Series(
            runs=tuple(group),
            label=label,
            anchor=f"run-{index + 1}",
            index=index,
            colour=COLOURS[methods.index(group[0].method) % len(COLOURS)],
            dashes=DASHES[index % len(DASHES)],
            svg_dashes=SVG_DASHES[index % len(SVG_DASHES)],
            marker=MARKERS[index % len(MARKERS)],
            marker_path=MARKER_PATHS[index % len(MARKER_PATHS)],
        )
        for index, (group, label) in enumerate(zip(groups.values(), _labels([*groups.values()], given), strict=True))
    ]


def _labels(groups: Sequence[Sequence[ReportedRun]], names: Mapping[Path, str | None]) -> list[str]:
    """Label each group with its given name or its method; equal labels on the same data are extended by settings."""
    labels = [names[group[0].path] or group[0].method for group in groups]
    details: tuple[Callable[[Sequence[ReportedRun], Sequence[Sequence[ReportedRun]]], str], ...] = (
        _own_settings,
        lambda group, _: ", ".join(run.path.name for run in group),
        lambda group, _: ", ".join(str(run.path) for run in group),
    )
    for detail in details:
        named = [((group[0].data, label), group) for group, label in zip(groups, labels, strict=True)]
        for row, (name, group) in enumerate(named):
            same = [other for other_name, other in named if other_name == name]
            if len(same) > 1 and (extra := detail(group, same)):
                labels[row] += f" ({extra})"
    return labels


def _own_settings(group: Sequence[ReportedRun], among: Sequence[Sequence[ReportedRun]]) -> str:
    """Return the settings in which a group differs from the others."""
    settings = [other[0].settings for other in among]
    own = group[0].settings
    names = [name for name in own if any(other.get(name) != own[name] for other in settings)]
    return ", ".join(f"{name.removeprefix('settings.').removesuffix('.name')} {words(own[name])}" for name in names)
