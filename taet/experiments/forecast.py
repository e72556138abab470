"""What networks are timed for before a comparison begins: the precision of its cells, and an estimate of its time."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import nn

from taet import models
from taet.data import DataFacts, facts
from taet.errors import UserError
from taet.evaluation.bundles import attacks_of
from taet.evaluation.runner import USUAL
from taet.experiments.cells import Cell, in_precision, is_open
from taet.settings import Run
from taet.training.choices import Chosen
from taet.training.environment import on_threads, resolve_device
from taet.training.estimate import work_of
from taet.training.folder import RunFolder
from taet.training.resolve import Resolved, resolve
from taet.training.schedule import watched_epochs
from taet.training.speed import pass_seconds, precision


def settled(planned: Sequence[Cell], say: Callable[[str], None]) -> list[Cell]:
    """Give all cells that are not started and have no precision the one in which the first of them is fastest.

    Otherwise cells of one table could differ in precision: their networks differ in the head, and timings vary. GPUs
    need no measurement. A cell whose data are not known without reading them is not changed.
    """
    runs = {cell.name: cell.run for cell in planned if is_open(cell) and not RunFolder(cell.folder).is_run}
    made = next((_measured(run) for run in runs.values() if run is not None), None)
    if made is None:
        return list(planned)
    say(f"precision {made.value} for all cells: {made.why}")
    return [in_precision(cell, made.value) if cell.name in runs else cell for cell in planned]


def _measured(run: Run) -> Chosen | None:
    """Return the precision in which the network of a run is faster on this processor; None if not known."""
    try:
        found, device = facts(run.data), resolve_device(run.training.device)
        if found is None or device.type != "cpu":
            return None
        with torch.random.fork_rng(devices=[]):  # a custom network may draw random numbers
            return precision(_network(resolve(run, found), found), found.image_shape, device)
    except UserError:  # the cell itself will report it
        return None


def _network(made: Resolved, found: DataFacts) -> nn.Module:
    """Return an untrained network as in a run, for timing."""
    run, shape = made.run, (found.num_classes, found.image_shape)
    model = models.build(run.model.name, *shape, seed=run.seed, head=made.method.task.head, stem=run.model.stem)
    return model.to(memory_format=torch.channels_last)


def rough_seconds(cells: Sequence[Cell], threads: int) -> float | None:
    """Return the seconds of cells one after another; None if data or speed are not known, as on a GPU.

    Counts the passes of training, curve and attacks; a pass is timed once on a fresh network of the same kind.
    """
    known, timed = functools.cache(facts), dict[object, float]()
    total = 0.0
    try:
        for run, attacked in ((cell.run, cell.attacked) for cell in cells if cell.run is not None):
            found = known(run.data)
            if found is None or resolve_device(run.training.device).type != "cpu":
                return None
            made, shape = resolve(run, found), (found.num_classes, found.image_shape)
            kind = (run.model.name, run.model.stem, *shape, run.training.precision)
            if kind not in timed:
                # A custom network may draw random numbers.
                with on_threads(run.training.threads or threads), torch.random.fork_rng(devices=[]):
                    how = (run.training.precision, run.training.batch_size)
                    timed[kind] = pass_seconds(_network(made, found), found.image_shape, *how)
            total += _passes(made, found, attacked) * timed[kind]
    except Exception:  # a mistake that the cell itself will report, or a custom network that fails for any reason
        return None
    return total


def _passes(made: Resolved, found: DataFacts, attacked: bool) -> float:
    run, held = made.run, found.sizes.get(made.split, 0)
    shown = min(held, run.training.monitor_images or held)
    watched, stages = watched_epochs(run, made.method.needs_feedback), made.method.task.stages
    total = work_of(run, stages, sum(found.class_counts), watched, shown).total
    for attack in attacks_of(run.evaluation, run.attack_eps) if attacked else ():
        total += found.sizes["test"] * attack.passes(found.num_classes) * (USUAL if attack.skips_misclassified else 1)
    return total
