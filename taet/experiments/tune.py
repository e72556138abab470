"""`taet tune`: settings chosen on validation images, with the same number of trials for every method.

A trial is a cell of a comparison whose test images are its validation images (`--data.test validation`), so that the
test images are not used before the last step: the comparison of the methods with their best settings.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self, TypeAlias, get_args, get_type_hints

from pydantic import Field, model_validator

from taet import methods, statistics
from taet.data.selection import VALIDATION
from taet.errors import UserError, located
from taet.experiments import specification
from taet.experiments.cells import Cell, cells, in_precision
from taet.experiments.comparison import CellOutcome, Comparison, Say, compare, deadline_of, fill, foretell
from taet.experiments.journal import load_optuna, open_journal
from taet.experiments.specification import DottedSettings, Entry, Specification
from taet.fields import Seed, Settings, check_value, got_text
from taet.files import digest, make_folder, seal, write_json
from taet.formatting import clock
from taet.settings import Run
from taet.training.folder import RunFolder

BEST = "tuned.json"
KEYS = ("trials", "seed", "space", "methods")
RANGE_KEYS = ("low", "high", "log", "step")
ASKED = "specification"
TUNED = "training.tuned"
FIXED = ("data.", "threat.", "evaluation.", "training.selection", "training.monitor_", TUNED)
"""Prefixes of settings that affect the score or the data and must not be tuned."""
VALIDATION_SHARE = 0.2
"""Share held out for validation, if the specification does not set it."""
Trials = Annotated[int, Field(ge=1, le=10_000)]
Study: TypeAlias = Any
"""A study of Optuna, which is imported only for a search."""


class Choices(Settings):
    """The values of one setting: a list or a range."""

    values: tuple[str | float | bool, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    step: float | None = None

    @model_validator(mode="after")
    def _a_list_or_a_range(self) -> Self:
        if self.values:
            return self
        if not (math.isfinite(self.high - self.low) and self.low < self.high):
            raise UserError(f"got low {self.low} and high {self.high}; allowed: low below high")
        if self.log and (self.low <= 0 or self.step is not None):
            raise UserError(f"got low {self.low}, step {self.step}; allowed: log with low above 0 and without step")
        if self.step is not None and not 0 < self.step <= self.high - self.low:
            raise UserError(f"got step {self.step}; allowed: above 0, up to high - low")
        return self

    @property
    def ends(self) -> tuple[str | float | bool, ...]:
        """Values whose validity implies that of all values: the list, or both ends of the range."""
        return self.values or (self.low, self.high)

    def distribution(self, optuna: Any) -> Any:
        """Return the values as a distribution of Optuna."""
        if self.values:
            return optuna.distributions.CategoricalDistribution(self.values)
        whole = isinstance(self.low, int) and isinstance(self.high, int)
        kind = optuna.distributions.IntDistribution if whole else optuna.distributions.FloatDistribution
        return kind(self.low, self.high, log=self.log, step=self.step or (1 if whole else None))


@dataclass(frozen=True)
class Search:
    """What is tuned: a grid of one data set, the values of each method's settings, and the number of trials."""

    grid: Specification
    trials: int
    seed: int
    spaces: Mapping[str, Mapping[str, Choices]]
    """By the name of the method's row, then by setting."""


@dataclass(frozen=True, repr=False)
class Tuned:
    """The best trial of every method, and the comparison with its settings, if all trials are done."""

    search: Search
    out: Path
    best: Mapping[str, Mapping[str, Any]]
    """By row: `settings`, `value` (see `value`), the number of the `trial`, and how many `trials` there were and how
    many of them `failed`; empty while trials are left."""
    comparison: Comparison | None = None

    def __repr__(self) -> str:
        return f"Tuned({', '.join(self.best)} in {self.out}: {self.search.trials} trials each)"


def read(path: str | os.PathLike[str]) -> Search:
    """Read a specification with table [tune] from a TOML file; raise a `UserError` that names the key of a mistake."""
    with located(f"specification {path}"):
        return search_of(specification.table(Path(path)), Path(path).stem)


def search_of(values: Mapping[str, Any], title: str = "tuning") -> Search:
    """Return the search in a TOML table: the keys of a comparison, and `tune` with trials, seed, space and methods."""
    told = values.get("tune")
    if not isinstance(told, Mapping):
        raise UserError(f"tune: got {got_text(told)}; allowed: a table with trials and space")
    specification.check_keys("key of tune", told, KEYS)
    check_value("tune trials", told.get("trials"), Trials)
    check_value("tune seed", told.get("seed", 0), Seed)
    grid = specification.parse({key: value for key, value in values.items() if key != "tune"}, title)
    for key, found in (("data", grid.data), ("imbalance", grid.imbalance), ("variants", grid.variants)):
        if len(found) != 1:
            raise UserError(f"{key}: got {len(found)}; allowed: one, since a search is about one data set")
    with located("tune"):
        shared, own = (specification.value_in(told, key, dict, {}) for key in ("space", "methods"))
        asked = {entry.name: {**shared, **specification.value_in(own, entry.name, dict, {})} for entry in grid.methods}
    specification.check_keys("method of tune", own, [entry.name for entry in grid.methods])
    spaces = {entry.name: _space(entry, asked[entry.name]) for entry in grid.methods}
    settings = {"data.validation": VALIDATION_SHARE, **grid.settings}
    for where, own_settings in [("settings", {}), *((f"methods: {one.name}", one.settings) for one in grid.methods)]:
        merged = {**settings, **own_settings}
        if merged.get("data.test") == VALIDATION or merged.get("training.selection") == "best-test":
            what = "a search uses the test images only for its final comparison"
            raise UserError(f"{where}: got data.test = validation or selection = best-test; {what}")
        if "data.test" in own_settings:
            raise UserError(f"{where}: got data.test; allowed: in the shared settings, in a search")
        if TUNED in merged:
            raise UserError(f"{where}: got {TUNED}; allowed: without it, since the search sets it")
    return Search(replace(grid, settings=settings), told["trials"], told.get("seed", 0), spaces)


def _space(entry: Entry, asked: Mapping[str, Any]) -> dict[str, Choices]:
    """Return the values of a method's settings by dotted name; each is checked like the setting itself."""
    found: dict[str, Choices] = {}
    for key, value in asked.items():
        with located(f"tune: {entry.name}: {key}"):
            choices = _choices(value)

            def checked(value: Any, key: str = key) -> DottedSettings:
                return specification.entry_of(
                    {"name": entry.name, "method": entry.method, "settings": {key: value}}
                ).settings

            (name,) = checked(choices.ends[0])
            if name.startswith(FIXED):
                raise UserError(f"got {name}; allowed: settings that change neither the data nor the score")
            if name in found or name in entry.settings:
                raise UserError("got this setting twice; allowed: each once")
            listed = tuple(checked(value)[name] for value in choices.values)
            if any(one in listed[:place] for place, one in enumerate(listed)):
                raise UserError(f"got {got_text(value)}; allowed: a list with each value once")
            if not listed and not _is_whole(entry, name):
                choices = choices.replace(low=float(choices.low), high=float(choices.high))
            elif not all(isinstance(one, int) for one in (*choices.ends, choices.step or 1)) and not listed:
                raise UserError(f"got {got_text(value)}; allowed: whole numbers for low, high and step")
            found[name] = choices.replace(values=listed)
    if not found:
        raise UserError(f"tune: {entry.name}: got nothing to tune; allowed: settings in tune.space or tune.methods")
    return found


def _is_whole(entry: Entry, name: str) -> bool:
    """Return whether a setting is a whole number, by the type of its field."""
    part, _, field = name.partition(".")
    about: Any = methods.find(entry.method).Config if part == "method" else type(getattr(Run(), part))
    kind = get_type_hints(about).get(field)
    return kind is int or (int in get_args(kind) and float not in get_args(kind))


def _choices(value: Any) -> Choices:
    if isinstance(value, list) and value and all(isinstance(item, str | int | float | bool) for item in value):
        return Choices(values=tuple(value))
    if not isinstance(value, Mapping) or not {"low", "high"} <= value.keys() <= {*RANGE_KEYS}:
        raise UserError(f"got {got_text(value)}; allowed: a list of values, or low and high, with log or step")
    return Choices(**value)


def tune(
    search: Search | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    jobs: int | Literal["auto"] = 1,
    time_budget: float | None = None,
    say: Say = lambda _: None,
) -> Tuned:
    """Try `trials` settings for each method on the validation images, then compare methods with their best settings.

    Each trial trains one run with the first seed; its value is the balanced accuracy under the PGD of the curve, on the
    validation images, at the epoch of the delivered weights. Optuna's TPE chooses settings by ask and tell and stores
    all trials in `out`/trials.journal, so that the same call continues, and several processes may share the work. A
    failed trial counts as one. The best settings are written to `out`/tuned.json. The comparison with them, the first
    use of test images, is labelled "tuned: N trials" and written to `out`/tuned-N.

    Args:
        search: a TOML file, or the result of `read`.
        out: folder of the search.
        jobs, time_budget, say: as in `compare`.

    Raises:
        UserError: a mistake in the specification, trials of another specification in `out`, or no Optuna.
        KeyboardInterrupt: after every process has saved and ended.
    """
    deadline = deadline_of(time_budget)
    search, place = search if isinstance(search, Search) else read(search), Path(out)
    for end in (0, -1):  # invalid values raise an error before anything is trained
        settings = {row: {name: one.ends[end] for name, one in space.items()} for row, space in search.spaces.items()}
        checked = _cells(search, [Asked(row, 0, own) for row, own in settings.items()], place / "checked")
    make_folder(place)
    studies = _studies(search, place)
    left = [search.trials - _ended(study, search) for study in studies.values()]
    foretell([cell for cell, trials in zip(checked, left, strict=True) for _ in range(trials)], jobs, say)
    progress = _progress(studies, search)
    work = _running(studies, search)  # trials of a process that ended or is still running
    while work := work or _ask(studies, search, 1 if jobs == "auto" else jobs) or _running(studies, search):
        if time.monotonic() >= deadline:
            return Tuned(search, place, {})
        done, interrupted = fill(search.grid.title, place, _cells(search, work, place), deadline, jobs, say)
        for asked, outcome in zip(work, done.outcomes, strict=True):
            _tell(studies[asked.row], asked, outcome)
            if outcome.state in ("done", "failed"):
                say(f"{progress()}: {asked.row}.{asked.number:04} {outcome.state}")
        if interrupted:
            raise KeyboardInterrupt
        work = []
    best = {row: _best(row, study, search) for row, study in studies.items()}
    write_json(place / BEST, seal({"trials": search.trials, "methods": best}))
    budget = deadline - time.monotonic()
    if budget <= 0:
        return Tuned(search, place, best)
    folder = place / f"tuned-{search.trials}"
    return Tuned(search, place, best, compare(final(search, best), folder, jobs=jobs, time_budget=budget, say=say))


def final(search: Search, best: Mapping[str, Mapping[str, Any]]) -> Specification:
    """Return the comparison of the methods with their best settings, all seeds, and the test images."""
    rows, told = search.grid.methods, {TUNED: search.trials}  # in every row, as a row's settings override shared ones
    found = [replace(row, settings={**row.settings, **best[row.name]["settings"], **told}) for row in rows]
    return replace(search.grid, methods=tuple(found))


class Asked(NamedTuple):
    """A trial: the row of its method, its number and its settings."""

    row: str
    number: int
    settings: DottedSettings


def _cells(search: Search, work: Sequence[Asked], place: Path) -> list[Cell]:
    """Return the cells of trials, which train with the first seed and use validation images as test images.

    Their precision is that of the first started run, as in any comparison.
    """
    rows = {entry.name: entry for entry in search.grid.methods}
    entries = [
        replace(rows[row], name=f"{row}.{number:04}", settings={**rows[row].settings, **settings})
        for row, number, settings in work
    ]
    grid = replace(
        search.grid,
        methods=tuple(entries),
        seeds=search.grid.seeds[:1],
        settings={**search.grid.settings, "data.test": VALIDATION},
    )
    planned = cells(grid, place)
    for cell, asked in zip(planned, work, strict=True):
        if cell.run is None:
            raise UserError(f"tune: {asked.row}: {cell.reason}")
        if cell.run.data.test != VALIDATION or cell.run.training.selection == "best-test":
            raise UserError(f"tune: {asked.row}: got a trial on test images; allowed: on validation images alone")
    begun = (RunFolder(path) for path in sorted((place / "runs").glob("*")))
    held = next((run.record.run.training.precision for run in begun if run.is_run), None)
    planned = planned if held is None else [in_precision(cell, held) for cell in planned]
    return [replace(cell, attacked=False) for cell in planned]


def _studies(search: Search, place: Path) -> dict[str, Study]:
    """Open the study of every method in the journal; raise a `UserError` for those of another specification."""
    optuna, storage, studies = load_optuna(), open_journal(place), {}
    for entry in search.grid.methods:
        study = optuna.create_study(study_name=entry.name, storage=storage, direction="maximize", load_if_exists=True)
        grid = replace(search.grid, methods=(entry,), title="", seeds=search.grid.seeds[:1], path=None)
        asked = digest([repr(grid), search.seed, repr(search.spaces[entry.name])])
        if study.user_attrs.get(ASKED, asked) != asked:
            raise UserError(f"{place} holds trials of {entry.name} with another specification; choose another --out")
        study.set_user_attr(ASKED, asked)
        studies[entry.name] = study
    return studies


def _ask(studies: Mapping[str, Study], search: Search, most: int) -> list[Asked]:
    """Ask for up to `most` new trials, of the methods with the fewest, so that all have equally many in the end."""
    work: list[Asked] = []
    while len(work) < most:
        counts = {row: len(study.get_trials(deepcopy=False)) for row, study in studies.items()}
        row = min(counts, key=lambda name: counts[name])
        if counts[row] >= search.trials:
            break
        study = studies[row]
        # A new sampler for every trial: after a crash it draws the same values as without the crash.
        study.sampler = load_optuna().samplers.TPESampler(seed=int(digest([search.seed, counts[row]])[:8], 16))
        spaces = {name: choices.distribution(load_optuna()) for name, choices in search.spaces[row].items()}
        trial = study.ask(spaces)
        if trial.number < search.trials:  # else another process asked for the last one meanwhile
            work.append(Asked(row, trial.number, dict(trial.params)))
        else:
            study.tell(trial, state=load_optuna().trial.TrialState.FAIL)
    return work


def _trials(study: Study, search: Search) -> list[Any]:
    """Return the trials that count: not one too many, which a process may have asked for as another did."""
    return [trial for trial in study.get_trials(deepcopy=False) if trial.number < search.trials]


def _ended(study: Study, search: Search) -> int:
    return sum(trial.state.is_finished() for trial in _trials(study, search))


def _running(studies: Mapping[str, Study], search: Search) -> list[Asked]:
    """Return the trials that were requested and have no result yet."""
    return [
        Asked(row, trial.number, dict(trial.params))
        for row, study in studies.items()
        for trial in _trials(study, search)
        if not trial.state.is_finished()
    ]


def _progress(studies: Mapping[str, Study], search: Search) -> Callable[[], str]:
    """Return a function that says how many trials have ended, and how long the others take at the pace since now."""

    def ended() -> int:
        return sum(_ended(study, search) for study in studies.values())

    begun, before, total = time.monotonic(), ended(), search.trials * len(studies)

    def said() -> str:
        now = ended()
        left = (total - now) * (time.monotonic() - begun) / max(now - before, 1)
        return f"trial {now} of {total}{f', about {clock(left)} left' if now < total else ''}"

    return said


def _tell(study: Study, asked: Asked, outcome: CellOutcome) -> None:
    """Store the result of a trial that ended, unless another process has done so."""
    if outcome.state == "done":
        study.tell(asked.number, value(RunFolder(outcome.cell.folder)), skip_if_finished=True)
    elif outcome.state == "failed":
        study.tell(asked.number, state=load_optuna().trial.TrialState.FAIL, skip_if_finished=True)


def value(folder: RunFolder) -> float:
    """Return balanced accuracy on validation images under the curve's attack, at the epoch of the delivered weights."""
    epoch = folder.weights_about().epoch
    points = [row.monitor for row in folder.metrics if row.monitor is not None and row.epoch == epoch]
    if not points or points[-1].split != VALIDATION:
        raise UserError(f"trial {folder.path} has no curve on validation images at epoch {epoch}, which a search needs")
    counts = points[-1].attacked
    return statistics.balanced_accuracy(counts.correct, counts.total)


def _best(row: str, study: Study, search: Search) -> dict[str, Any]:
    """Return the best trial of a method: its settings, its value, and how many trials there were."""
    trials = _trials(study, search)
    done = [trial for trial in trials if trial.value is not None]
    if not done:
        raise UserError(f"tune: {row}: all {len(trials)} trials failed; their output is in the folder logs")
    best = max(done, key=lambda trial: (trial.value, -trial.number))
    numbers = {"value": best.value, "trial": best.number, "trials": len(trials), "failed": len(trials) - len(done)}
    return {"settings": dict(best.params), **numbers}
