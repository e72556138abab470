"""The cells of a comparison: the run that each is, the commands that make it, and how far its folder is."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from taet import config, methods, protocols
from taet.config import Data, Run
from taet.data import Dataset, load
from taet.errors import UserError
from taet.evaluation import ResultCard, parse_attack
from taet.experiments.specification import Entry, Settings, Specification, Variant
from taet.report.read import deciding
from taet.training.checkpoint import read_json, read_record, run_from_json
from taet.training.trainer import Trainer

State = Literal["done", "started", "missing", "not applicable"]

SHORT = {"data.name": "data", "model.name": "model", "outer.name": "outer"}  # as the command line calls them


@dataclass(frozen=True)
class Cell:
    """One run of the comparison; its run is None where its method cannot take its settings, and `reason` says why."""

    name: str
    entry: Entry
    variant: Variant
    data: str
    imbalance: float | None
    seed: int
    folder: Path
    run: Run | None
    flags: tuple[str, ...]
    """Of `taet train METHOD`."""
    reason: str = ""

    @property
    def row(self) -> str:
        """The name of its row: cells that differ in nothing but the seed share it."""
        return f"{self.entry.name} + {self.variant.name}" if self.variant.name else self.entry.name

    @property
    def state(self) -> State:
        """How far its folder is; done means a finished run with a card that has every attack."""
        if self.run is None:
            return "not applicable"
        if not (self.folder / "run.json").exists():
            return "missing"
        return "done" if not self.commands(threads=1) else "started"

    def commands(self, threads: int) -> list[list[str]]:
        """What is left to do, as arguments of `taet`; nothing for a cell that is done or not applicable."""
        if self.run is None or self._measured():
            return []
        folder = str(self.folder)
        if not (self.folder / "run.json").exists():
            given = () if "--threads" in self.flags else ("--threads", str(threads))
            return [["train", self.run.method, *self.flags, *given, "--out", folder], ["evaluate", folder]]
        asked = list(self.run.evaluation.attacks)
        added = [] if asked == read_record(self.folder)["run"]["evaluation"]["attacks"] else ["--attacks", *asked]
        evaluate = ["evaluate", folder, *added]
        return [evaluate] if (self.folder / "done").exists() else [["train", "--resume", folder], evaluate]

    def _measured(self) -> bool:
        """Is there a card with every attack, about the ball and the batches that the run asks for?"""
        path = self.folder / "evaluation.json"
        if self.run is None or not (path.exists() and (self.folder / "done").exists()):
            return False
        card, asked = ResultCard.load(path), self.run.evaluation
        eps = self.run.threat.eps if asked.eps is None else asked.eps
        same = card.threat["eps"] == eps and card.batch_size == asked.batch_size
        return same and {"clean", *asked.attacks} <= {column.name for column in card.columns}

    def check_folder(self) -> None:
        """Refuse a folder that holds a run with other settings than the specification says."""
        if self.run is None or not (self.folder / "run.json").exists():
            return
        held = deciding(config.to_json(run_from_json(read_record(self.folder)["run"])))
        asked = deciding(config.to_json(self.run))
        for name in sorted({*held, *asked}):
            if held.get(name) != asked.get(name):
                here, there = asked.get(name), held.get(name)
                raise UserError(
                    f"{self.folder} holds a run with other settings: {name.replace('settings.', 'method.')} is {there} "
                    f"there and {here} in the specification; choose another --out, or remove the folder"
                )

    def seconds(self) -> dict[str, float]:
        """Seconds of training and of attacks, as far as the folder records them."""
        path, card = self.folder / "metrics.jsonl", self.folder / "evaluation.json"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        columns = read_json(card)["columns"] if card.exists() else []
        return {
            "training": round(sum(json.loads(line)["seconds"] for line in lines if line.endswith("}")), 3),
            "evaluation": round(sum(column["seconds"] for column in columns), 3),
        }


# --- from the specification to cells ---------------------------------------------------------------------------------


def cells(specification: Specification, out: Path) -> list[Cell]:
    """Return every cell, all methods of the first seed first; their runs are folders of `out`/runs.

    A setting that no method can take is a mistake, and a `UserError`; one that some cannot take makes their cells not
    applicable.
    """
    for entry in specification.methods:
        try:
            _run(specification, entry, entry.settings)
        except UserError as error:
            raise UserError(f"methods: {entry.name}: {error}") from None
    datasets: dict[Data, Dataset] = {}
    first = [_cell(specification, out, datasets, *point) for point in _grid(specification)]
    _check_variants(first)
    planned = [_with_seed(cell, seed) for seed in specification.seeds for cell in first]
    folders: dict[Path, Cell] = {}
    for cell in planned:
        other = folders.setdefault(cell.folder, cell)
        if other is not cell:
            raise UserError(f"data: {other.data} and {cell.data} would both be in {cell.folder}")
        cell.check_folder()
    return planned


def _grid(specification: Specification) -> Iterator[tuple[str, float | None, Variant, Entry]]:
    for data in specification.data:
        for ratio in specification.imbalance:
            for variant in specification.variants:
                for entry in specification.methods:
                    yield data, ratio, variant, entry


def _cell(
    specification: Specification,
    out: Path,
    datasets: dict[Data, Dataset],
    data: str,
    ratio: float | None,
    variant: Variant,
    entry: Entry,
) -> Cell:
    """The cell of a point of the grid, still without its seed."""
    place = data.replace(":", "-").replace("/", "-").strip("-.")
    parts = [entry.name, variant.name, place, "" if ratio is None else f"ir{ratio:g}"]
    name = "_".join(part for part in parts if part)
    own: Settings = {"data.name": data} | ({} if ratio is None else {"data.imbalance_ratio": ratio})
    settings = {**own, **specification.settings, **variant.settings, **entry.settings}
    run, reason = None, ""
    try:
        for key in variant.settings.keys() & entry.settings.keys():
            if variant.settings[key] != entry.settings[key]:
                raise UserError(f"its own settings say {key} {entry.settings[key]}")
        run = _run(specification, entry, settings)
    except UserError as error:
        reason = str(error)
    if run is not None:
        if run.data not in datasets:  # a mistake in these concerns every method
            datasets[run.data] = load(**config.to_json(run.data))
        try:
            run = _resolved(run, datasets[run.data])
        except UserError as error:
            run, reason = None, str(error)
    flags = _flags({**settings, "protocol": specification.protocol})
    return Cell(name, entry, variant, data, ratio, 0, out / "runs" / name, run, flags, reason)


def _with_seed(cell: Cell, seed: int) -> Cell:
    name = f"{cell.name}_seed{seed}"
    run = None if cell.run is None else config.override(cell.run, {"seed": seed})
    flags, folder = (*cell.flags, "--seed", str(seed)), cell.folder.with_name(name)
    return dataclasses.replace(cell, name=name, seed=seed, run=run, flags=flags, folder=folder)


def _run(specification: Specification, entry: Entry, settings: Settings) -> Run:
    """The run of a method under the protocol, with settings on top; its data are not looked at."""
    run = protocols.start(specification.protocol, entry.method)
    knobs: Any = methods.find(entry.method).Config() if run.settings is None else run.settings
    own = {key.removeprefix("method."): value for key, value in settings.items() if key.startswith("method.")}
    if own and not dataclasses.fields(knobs):
        raise UserError(f"unknown setting 'method.{next(iter(own))}'; {entry.method} has none of its own")
    shared = {key: value for key, value in settings.items() if not key.startswith("method.")}
    run = config.override(run, {"settings": config.override(knobs, own), **shared})
    for attack in run.evaluation.attacks:
        parse_attack(attack)
    return run


def _resolved(run: Run, dataset: Dataset) -> Run:
    """Return the run as its run.json would have it; what training would refuse is refused here."""
    elsewhere = config.override(run, {"training.device": "cpu"})  # a GPU is left to those who train
    settings = Trainer(elsewhere, Path(), model=None, dataset=dataset, progress=None).run.settings
    return config.override(run, {"settings": settings})


def _check_variants(planned: Sequence[Cell]) -> None:
    """Refuse settings, of all or of a variant, that no method can take."""
    for variant in dict.fromkeys(cell.variant.name for cell in planned):
        of = [cell for cell in planned if cell.variant.name == variant]
        if all(cell.run is None for cell in of):
            where = f"variants: {variant}" if variant else "settings"
            raise UserError(f"{where}: no method can take them: {of[0].entry.name}: {of[0].reason}")


def _flags(settings: Settings) -> tuple[str, ...]:
    """The command line's words for dotted settings."""
    words: list[str] = []
    for key, value in settings.items():
        name = SHORT.get(key, key.removeprefix("training.")).replace("_", "-")
        if isinstance(value, bool):
            part, dot, last = name.rpartition(".")
            words.append(f"--{part}{dot}{'' if value else 'no-'}{last}")
        else:
            values = value if isinstance(value, tuple) else (value,)
            words += [f"--{name}", *(_word(name, item) for item in values)]
    return tuple(words)


def _word(name: str, value: Any) -> str:
    """A value as the command line takes it; sizes of the ball in grey levels where they are whole."""
    of_the_ball = name.rpartition(".")[2] in ("eps", "step-size") and isinstance(value, float)
    levels = round(255 * value) if of_the_ball else 0
    return f"{levels}/255" if levels and levels / 255 == value else str(value)
