"""A cell of a comparison: its run, the commands that complete it, and the state of its folder."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from taet.errors import UserError
from taet.evaluation import store
from taet.evaluation.bundles import attacks_of
from taet.evaluation.card import ResultCard
from taet.evaluation.runner import among
from taet.formatting import size
from taet.models import consent
from taet.settings import Run, option, override
from taet.training.folder import RunFolder
from taet.training.record import CURVE, training_settings
from taet.training.resolve import curve_decides, learns_from_validation

CellState = Literal["done", "started", "missing", "failed", "not applicable"]


@dataclass(frozen=True)
class Cell:
    """One run of a comparison."""

    name: str
    row: str
    """Its row in tables; cells that differ only in the seed share it."""
    method: str
    variant: str
    data: str
    imbalance: float | None
    seed: int
    folder: Path
    settings: Mapping[str, Any]
    """Settings by dotted name, protocol and seed, as options of `taet train METHOD` give them."""
    run: Run | None = None
    """None: the method refuses the settings."""
    reason: str = ""
    """Why it does."""

    def changed(self, changes: Mapping[str, Any]) -> Cell:
        """Return the cell with these settings of its run changed."""
        run = None if self.run is None else override(self.run, changes)
        return replace(self, run=run, settings={**self.settings, **changes})

    def with_seed(self, seed: int) -> Cell:
        """Return the cell with this seed, in the folder of that name."""
        name = f"{self.name}_seed{seed}"
        return replace(self, name=name, seed=seed, folder=self.folder.with_name(name)).changed({"seed": seed})

    @property
    def state(self) -> CellState:
        return self.look().state

    def look(self, threads: int = 1) -> Outcome:
        """Read the folder; a command to train gives the run this number of threads unless it has its own."""
        held, run, folder = RunFolder(self.folder), self.run, str(self.folder)
        if run is None:
            return Outcome(self, "not applicable", reason=self.reason)
        trust = consent(run.model.name)
        evaluate, resume = ["evaluate", folder, *trust], ["train", "--resume", folder, *trust]
        if not held.is_run:
            settings = {**self.settings, "training.threads": self.settings.get("training.threads", threads)}
            return Outcome(self, "missing", (["train", run.method, *_options(settings), "--out", folder], evaluate))
        card = store.of_folder(held) if held.is_done else None
        training = round(sum(epoch.seconds for epoch in held.metrics), 3)
        attacks = 0.0 if card is None else round(sum(column.seconds for column in card.columns), 3)
        if card is not None and _has_every_attack(card, run):
            return Outcome(self, "done", (), training, attacks)
        if held.record.run.evaluation.attacks != run.evaluation.attacks:
            evaluate += ["--attacks", *run.evaluation.attacks]
        return Outcome(self, "started", (evaluate,) if held.is_done else (resume, evaluate), training, attacks)

    def check_folder(self) -> None:
        """Raise a `UserError` if the run in the folder has other settings."""
        folder = RunFolder(self.folder)
        if self.run is None or not folder.is_run:
            return
        held, asked = training_settings(folder.record.run), training_settings(self.run)
        for name in sorted({*held, *asked}):
            there, here = held.get(name), asked.get(name)
            if there == here or (name, here) == ("training.precision", "auto"):
                continue
            if name not in CURVE or curve_decides(self.run, learns_from_validation(self.run)):
                raise UserError(
                    f"{self.folder} holds a run with other settings: {name.replace('settings.', 'method.')} is {there} "
                    f"there and {here} in the specification; choose another --out, or remove the folder"
                )


class Outcome(NamedTuple):
    """A cell, and what its folder held when it was read."""

    cell: Cell
    state: CellState
    """Done means a finished run with a card of every attack."""
    commands: tuple[list[str], ...] = ()
    """The remaining commands, as arguments of `taet`."""
    training: float = 0.0
    """Recorded seconds of training."""
    evaluation: float = 0.0
    """Recorded seconds of attacks."""
    reason: str = ""
    """Why it is not applicable, or failed."""

    def to_json(self) -> dict[str, Any]:
        """Return the cell's entry in comparison.json."""
        names = ("name", "row", "method", "variant", "data", "imbalance", "seed")
        return {
            **{name: getattr(self.cell, name) for name in names},
            "state": self.state,
            "reason": self.reason,
            "folder": str(self.cell.folder),
            "seconds": {"training": self.training, "evaluation": self.evaluation},
            "commands": [shlex.join(["taet", *words]) for words in self.commands],
        }


def alike(planned: list[Cell]) -> list[Cell]:
    """Give cells without a precision that of the cells already started, possibly on another machine."""
    open_ = [cell for cell in planned if cell.run is not None and cell.run.training.precision == "auto"]
    folders = [RunFolder(cell.folder) for cell in open_]
    held = {folder.record.run.training.precision for folder in folders if folder.is_run}
    if len(held) != 1:
        return planned
    names, change = {cell.name for cell in open_}, {"training.precision": held.pop()}
    return [cell.changed(change) if cell.name in names else cell for cell in planned]


def _has_every_attack(card: ResultCard, run: Run) -> bool:
    """Return whether a card has every attack of a run, with its eps and batch size."""
    if card.threat["eps"] != run.attack_eps or card.batch_size != run.evaluation.batch_size:
        return False
    attacks = (attack for attack in attacks_of(run.evaluation, run.attack_eps) if attack.norm is not None)
    return all(among(card.columns, attack) is not None for attack in attacks)


def _options(settings: Mapping[str, Any]) -> list[str]:
    """Return dotted settings as options of `taet train`."""
    words: list[str] = []
    for key, value in settings.items():
        name = option(key)
        if isinstance(value, bool):
            part, dot, last = name.rpartition(".")
            words.append(f"--{part}{dot}{'' if value else 'no-'}{last}")
        else:
            words += [f"--{name}", *(_word(name, one) for one in (value if isinstance(value, tuple) else (value,)))]
    return words


def _word(name: str, value: Any) -> str:
    """Return a value as the command line reads it; eps and step sizes as k/255 if k is whole."""
    in_pixels = name.rpartition(".")[2] in ("eps", "step-size") and isinstance(value, float)
    return size(value, None, within=0) if in_pixels else str(value)
