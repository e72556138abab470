"""The grid of a comparison: methods x data x imbalance ratios x seeds x variants, as a TOML file,
and its cells."""

import contextlib
import functools
import itertools
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, model_validator

from taet import methods, protocols, registry
from taet.card.card import Card
from taet.card.store import card_of
from taet.data import facts, is_own
from taet.data.sources import check_name, full_name, is_cut
from taet.errors import UserError, nearest, prefix_errors
from taet.evaluation.attack_sets import attacks_of, of_run
from taet.evaluation.runner import matching
from taet.experiments import own_choices
from taet.files import Json, read_toml
from taet.models.trust import check_consent, consent
from taet.run.folder import RunFolder
from taet.run.identity import differences, training_settings
from taet.run.loading import check_code
from taet.settings import Run, flat, override
from taet.settings.schema import SHORT, from_json, option_words
from taet.settings.types import LongSeed, ModelName, Positive, Ratio, Rule, Seed, Settings
from taet.training.checks import check_model, idle_settings, refuse_idle_loss, resolve

DEFAULTS = Run().model_dump()
PARTS = tuple(name for name, values in DEFAULTS.items() if isinstance(values, dict))
BARE = {short: name for name, short in SHORT.items()} | {
    name: f"training.{name}" for name in DEFAULTS["training"]
}
FULL = [f"{part}.{field}" for part in PARTS for field in DEFAULTS[part]]
KEYS = {
    "data.name": "data",
    "data.imbalance_ratio": "imbalance",
    "seed": "seeds",
    "protocol": "protocol",
}
"""Settings that are keys of the grid."""

Dotted = dict[str, Any]
"""Settings of a run by dotted name, and `method.KNOB` for those of its method; lists are tuples."""


def _dotted(values: Mapping[str, object], info: ValidationInfo) -> Dotted:
    """Return settings by dotted name, from dotted or command-line names; those of an entry's method
    need no prefix."""
    entry, method = info.data.get("name"), info.data.get("method")
    where = "settings"
    if method:
        where = f"methods: {entry}"
    elif entry:
        where = f"variants: {entry}"
    # A method is imported only for its settings.
    knobs = [*methods.find(method).Config.model_fields] if values and method else []
    settings: Dotted = {}
    with prefix_errors(where):
        for key, value in flat(values):
            name = _dotted_name(key, knobs)
            if name in settings:
                raise UserError(f"got {key} twice; allowed: each once")
            settings[name] = value
    return settings


def _dotted_name(key: str, knobs: Sequence[str]) -> str:
    """Return the dotted name of a setting; `knobs`: the settings of the method."""
    name = key.replace("-", "_")
    is_knob = name.partition(".")[0] in knobs
    name = f"method.{name}" if is_knob else BARE.get(name, name)
    if name in KEYS:
        raise UserError(f"got {key}; allowed: as {KEYS[name]} of the specification")
    part, dot, _ = name.partition(".")
    parts = (*PARTS, "method")
    if part not in parts or not dot:
        near = nearest(name, [*knobs, *BARE, *FULL])
        allowed = ", ".join([*knobs, *(f"{part}.*" for part in parts)])
        hint = f"; did you mean '{near}'?" if near else ""
        raise UserError(
            f"unknown setting '{name}'; allowed: {allowed}, or an option of taet train{hint}"
        )
    return name


def _once(values: tuple[object, ...], info: ValidationInfo) -> tuple[object, ...]:
    for value, count in Counter(getattr(value, "name", value) for value in values).items():
        if count > 1:
            raise UserError(f"{info.field_name}: got {value} {count} times; allowed: each once")
    return values


RowName = Annotated[
    str, Rule(re.compile("[A-Za-z0-9.+-]+").fullmatch, "letters, digits and the signs . + -")
]
"""Names become folders; the parts of a folder's name are joined by _."""
SOME, ONCE, NAMED = Field(min_length=1), AfterValidator(_once), AfterValidator(_dotted)
ALL = BeforeValidator(lambda value: (*registry.entries("methods"),) if value == "all" else value)


class Variant(Settings):
    """Settings with which the whole grid is repeated; the one without a name is the unchanged
    grid."""

    label: ClassVar[str] = "variants"
    name: RowName
    settings: Annotated[Dotted, SOME, NAMED]


class Entry(Settings):
    """A method of the comparison and the name of its run folders; in a file a table, or the
    method's name alone."""

    label: ClassVar[str] = "methods"
    name: RowName
    method: Annotated[str, AfterValidator(lambda name: registry.find("methods", name).name)]
    title: ModelName | None = None
    """What tables call its row. None: the method and the settings that tell it from others."""
    settings: Annotated[Dotted, NAMED] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _is_named(cls, value: object) -> object:
        named = {"name": value} if isinstance(value, str) else value
        return {"method": named.get("name"), **named} if isinstance(named, Mapping) else value


class Grid(Settings):
    """Methods x data x imbalance ratios x seeds x variants, with shared settings."""

    title: str = "comparison"
    methods: Annotated[tuple[Entry, ...], ALL, SOME, ONCE]
    data: Annotated[tuple[str, ...], SOME, ONCE]
    imbalance: Annotated[tuple[Ratio | None, ...], SOME, ONCE] = (None,)
    """Imbalance ratios; None takes the data as they are."""
    seeds: Annotated[tuple[LongSeed, ...], SOME, ONCE] = (0,)
    """Seeds of training: each redraws initial weights and batches, on the same images."""
    replicates: Annotated[tuple[Seed, ...], ONCE] = ()
    """In place of seeds: each redraws the training images and, of data that are cut, the class
    order too."""
    passes: Positive | None = None
    """Budget: passes of the network for a training image; the epochs of each method follow from
    it."""
    protocol: str = "taet"
    settings: Annotated[Dotted, NAMED] = Field(default_factory=dict)
    variants: Annotated[tuple[Variant, ...], ONCE] = ()

    @model_validator(mode="after")
    def _sets_nothing_twice(self) -> Self:
        stated = {*self.settings}
        for variant in self.variants:
            stated.update(variant.settings)
        for entry in self.methods:
            stated.update(entry.settings)
        if self.replicates and self.seeds != (0,):
            raise UserError("replicates: got seeds as well; allowed: one of them")
        redrawn = sorted(stated & {"data.seed", "data.class_order"})
        if self.replicates and redrawn:
            raise UserError(f"replicates: got {redrawn[0]} as well; allowed: one of them")
        if self.passes is not None and "training.epochs" in stated:
            raise UserError("passes: got epochs as well; allowed: one of them")
        return self

    @model_validator(mode="after")
    def _tells_rows_apart(self) -> Self:
        rows = Counter(entry.title or entry.name for entry in self.methods)
        for row, count in rows.items():
            if count > 1:
                raise UserError(f"methods: got the row {row} {count} times; allowed: each once")
        return self


def read(path: str | os.PathLike[str]) -> Grid:
    """Return the grid of a TOML file; a mistake is a `UserError` that names the key."""
    table = read_toml(Path(path))
    with prefix_errors(f"specification {path}"):
        return parse({"title": Path(path).stem, **table})


def parse(values: Mapping[str, object]) -> Grid:
    """Return the grid of a mapping with the keys of the TOML file."""
    return from_json(Grid, values)


@dataclass(frozen=True)
class Cell:
    """One run of a comparison."""

    name: str
    row: str
    """Its row in tables."""
    method: str
    data: str
    imbalance: float | None
    seed: int
    folder: Path
    title: str | None
    """What its card calls the model; None: nothing of its own."""
    settings: Mapping[str, object]
    """Settings by dotted name, protocol and seed, as options of `taet train METHOD` give them."""
    run: Run | None = None
    """None: the method refuses the settings."""
    reason: str = ""
    """Why the method refuses them."""
    is_misspelt: bool = False
    """Whether it refuses a name that is near to an allowed one."""

    def with_seed(self, seed: int) -> Self:
        """Return the cell with this seed, in the folder of that name."""
        name, settings = f"{self.name}_seed{seed}", {**self.settings, "seed": seed}
        run = None if self.run is None else self.run.replace(seed=seed)
        return replace(
            self,
            name=name,
            seed=seed,
            folder=self.folder.with_name(name),
            run=run,
            settings=settings,
        )

    def with_replicate(self, replicate: int) -> Self:
        """Return the cell with this replicate, in the folder of that name."""
        redrawn: Dotted = {"seed": replicate, "data.seed": replicate}
        if self.run is not None and is_cut(self.run.data):
            redrawn["data.class_order"] = replicate
        name = f"{self.name}_replicate{replicate}"
        return replace(
            self,
            name=name,
            seed=replicate,
            folder=self.folder.with_name(name),
            run=None if self.run is None else override(self.run, redrawn),
            settings={**self.settings, **redrawn},
        )

    def look(self, threads: int = 1) -> "Outcome":
        """Return the state of the folder and the remaining commands; `threads` is for runs that do
        not set them."""
        if self.run is None:
            return Outcome(self, "not applicable", reason=self.reason)
        folder = RunFolder(self.folder)
        consent_words = consent(self.run.model.name)
        evaluate = ["evaluate", str(self.folder), *consent_words]
        if self.title is not None:
            evaluate += ["--name", self.title]
        if not folder.is_run:
            return Outcome(self, "missing", (self._train_command(self.run, threads), evaluate))
        try:
            card = card_of(folder) if folder.is_done else None
        except UserError as error:  # a file is damaged
            return Outcome(self, "failed", reason=str(error))
        is_named = card is not None and self.title in (None, card.name)
        if card is not None and is_named and _is_complete(card, self.run):
            return Outcome(self, "done")
        for name, value in _changes_to(folder.record.run, self.run).items():
            option, *values = option_words(f"evaluation.{name}", value)
            evaluate += [option.replace("--evaluation.", "--"), *values]
        if folder.is_done:
            return Outcome(self, "started", (evaluate,))
        resume = ["train", "--resume", str(self.folder), *consent_words]
        return Outcome(self, "started", (resume, evaluate))

    def _train_command(self, run: Run, threads: int) -> list[str]:
        """Return the command that trains the run, as arguments of `taet`."""
        settings = dict(self.settings)
        settings.setdefault("training.threads", threads)
        command = ["train", run.method]
        for name, value in settings.items():
            command += option_words(name, value)
        return [*command, "--out", str(self.folder)]

    def check_folder(self) -> None:
        """Raise a `UserError` if the run in the folder was trained with other settings."""
        folder = RunFolder(self.folder)
        if self.run is None or not folder.is_run:
            return
        check_code(folder, *folder.record.code)
        recorded, asked = training_settings(folder.record.run), training_settings(self.run)
        for name in differences(recorded, asked, idle_settings(self.run)):
            in_run, in_grid = recorded.get(name), asked.get(name)
            if (name, in_grid) != ("training.precision", "auto"):
                apart = (
                    f"{name.replace('settings.', 'method.')} is {in_run} there and {in_grid} in "
                    "the specification"
                )
                ways = "choose another --out, or remove the folder"
                raise UserError(f"{self.folder} holds a run with other settings: {apart}; {ways}")


def _is_complete(card: Card, run: Run) -> bool:
    """Return whether a card has every attack of a run, with its radius and batch size."""
    if (card.threat["eps"], card.batch_size) != (run.attack_eps, run.evaluation.batch_size):
        return False
    attacks = [attack for attack in attacks_of(of_run(run)) if attack.norm is not None]
    return all(matching(card.columns, attack) is not None for attack in attacks)


def _changes_to(recorded: Run, asked: Run) -> Json:
    """Return the settings of an evaluation that make that of a recorded run the one asked for."""
    wanted, usual = of_run(asked).model_dump(), of_run(recorded).model_dump()
    changes = {name: value for name, value in wanted.items() if value != usual[name]}
    with contextlib.suppress(UserError):  # the command will report it
        if of_run(recorded, changes).model_dump() != wanted:
            # a changed radius would also change steps that the command does not name
            return wanted
    return changes


class Outcome(NamedTuple):
    """A cell, and what its folder held when it was read.

    Example:
        >>> import taet
        >>> study = {"methods": ["at"], "data": ["digits-lt"], "seeds": [0]}
        >>> (outcome,) = taet.compare(study, "runs/study", dry_run=True).outcomes
        >>> outcome.cell.name, outcome.state
        ('at_digits-lt_seed0', 'missing')
        >>> [words[0] for words in outcome.commands]
        ['train', 'evaluate']
    """

    cell: Cell
    state: Literal["done", "started", "missing", "submitted", "failed", "not applicable"]
    """Done means a finished run with a card of every attack."""
    commands: tuple[list[str], ...] = ()
    """The remaining commands, as arguments of `taet`."""
    reason: str = ""
    """Why the cell is not applicable, or failed."""


def cells_of(
    grid: Grid, out: Path, asked_by: str = "", accelerated: bool | None = None
) -> list[Cell]:
    """Return every cell, all methods of the first seed first; their runs are folders of `out`/runs.

    The cell of a method that refuses its settings is not applicable. If every method refuses them,
    or a method refuses the settings of its own entry, a `UserError` is raised. No images are read.
    `asked_by`: the file of the grid. `accelerated`: whether the machine that trains has a GPU;
    None: as this one.
    """
    with prefix_errors(asked_by and f"specification {asked_by}"):
        for data in grid.data:
            check_name(data)
        planner = _Planner(grid, out / "runs", asked_by or "specification", accelerated)
        variants = [Variant.model_construct(name="", settings={}), *grid.variants]
        once = list[Cell]()
        for data, ratio, variant in itertools.product(grid.data, grid.imbalance, variants):
            cells = [planner.cell(data, ratio, variant, entry) for entry in grid.methods]
            if all(cell.run is None for cell in cells):
                cell = next((cell for cell in cells if cell.is_misspelt), cells[0])
                where = f"variants: {variant.name}" if variant.name else "settings"
                raise UserError(f"{where}: no method can take them: {cell.name}: {cell.reason}")
            once += cells
        for folder, count in Counter(cell.folder for cell in once).items():
            if count > 1:
                raise UserError(
                    f"data: got {count} names for the folder {folder}; allowed: each once"
                )
        if grid.replicates:
            cells = [cell.with_replicate(number) for number in grid.replicates for cell in once]
        else:
            cells = [cell.with_seed(seed) for seed in grid.seeds for cell in once]
        for cell in cells:
            cell.check_folder()
        return cells


# What decides the settings that are chosen for the user's own images, beside the data.
DECIDE_CHOICES = {
    *("threat.eps", "training.device", "training.batch_size"),
    *("model.name", "model.weights"),
}


class _Planner:
    """Makes the cells of a grid, without their seeds; facts and choices that several cells share
    are computed once."""

    def __init__(self, grid: Grid, runs: Path, asked_by: str, accelerated: bool | None) -> None:
        self.grid, self.runs, self.asked_by = grid, runs, asked_by
        self.facts_of = functools.cache(facts)
        self.chosen_for = functools.cache(
            functools.partial(own_choices.planned, accelerated=accelerated)
        )

    def cell(self, data: str, ratio: float | None, variant: Variant, entry: Entry) -> Cell:
        """Return a cell; its method may refuse the settings."""
        place = data.replace(":", "-").replace("/", "-").strip("-.")
        ratio_text = "" if ratio is None else f"ir{ratio:g}"
        name = "_".join(filter(None, (entry.name, variant.name, place, ratio_text)))
        row = entry.title or entry.name
        if variant.name:
            row = f"{row} + {variant.name}"
        title = None if entry.title is None else row
        settings: Dotted = {"data.name": full_name(data)}
        if ratio is not None:
            settings["data.imbalance_ratio"] = ratio
        settings = {**settings, **self.grid.settings, **variant.settings, **entry.settings}
        stated = {**settings, "protocol": self.grid.protocol}
        cell = Cell(name, row, entry.method, data, ratio, 0, self.runs / name, title, stated)
        for key in variant.settings.keys() & entry.settings.keys():
            if variant.settings[key] != entry.settings[key]:
                return replace(cell, reason=f"its own settings say {key} {entry.settings[key]}")
        deciding = [key for key in settings if key.startswith("data.") or key in DECIDE_CHOICES]
        relevant = {key: settings[key] for key in deciding}
        try:
            chosen = self.chosen(entry, relevant, settings) if is_own(data) else {}
            run = self.run(entry, chosen | settings)
            if self.grid.passes is not None:
                stated["training.epochs"] = run.training.epochs
            return replace(cell, run=run, settings=chosen | stated)
        except UserError as error:
            if entry.settings and not variant.name:
                # its own mistake is not left out silently
                with prefix_errors(f"methods: {entry.name}"):
                    self.run(entry, {**relevant, **entry.settings})
            return replace(cell, reason=str(error), is_misspelt=error.suggestion is not None)

    def chosen(self, entry: Entry, about: Dotted, settings: Dotted) -> Dotted:
        """Return settings that `taet train` would choose for the user's own images; every command
        then states them."""
        start = protocols.start(self.grid.protocol, entry.method)
        run = override(start, {"settings": None, **about})
        cycle = own_choices.cycle_for(settings.get("method.base", entry.method), settings)
        batches = "training.batch_size" not in settings
        _, choices = self.chosen_for(run, cycle=cycle, batches=batches)
        return {name.replace("settings.", "method."): made.value for name, made in choices.items()}

    def epochs_of(self, run: Run, passes: float) -> int:
        """Return the number of epochs whose passes are nearest to the budget."""
        from taet.training.passes import epochs_for_passes

        found = self.facts_of(run.data)
        if found is None:
            raise UserError("passes: the data are not there, so no step can be counted")
        return epochs_for_passes(run, found, passes).epochs

    def run(self, entry: Entry, settings: Dotted) -> Run:
        """Return the run of a method with these settings on top of its protocol; raise a
        `UserError` if it has none."""
        start = protocols.start(self.grid.protocol, entry.method)
        start = start.replace(settings=start.settings or methods.find(entry.method).Config())
        run = override(start, settings)
        of_run(run)  # refuses an evaluation that is not possible
        check_consent(self.asked_by, run.model.name)
        found = self.facts_of(run.data)
        if self.grid.passes is not None:
            run = override(run, {"training.epochs": self.epochs_of(run, self.grid.passes)})
        resolved = resolve(run, found)
        refuse_idle_loss(resolved.run, settings)
        check_model(resolved, found)
        return resolved.run
