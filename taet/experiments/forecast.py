"""A rough estimate of the time of the cells of a comparison, before the first one begins."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch

from taet.data import DataFacts, facts
from taet.evaluation.bundles import attacks_of
from taet.evaluation.runner import USUAL
from taet.experiments.arithmetic import fresh_network
from taet.experiments.cells import Cell
from taet.training.environment import on_threads, resolve_device
from taet.training.estimate import work_of
from taet.training.resolve import Resolved, resolve
from taet.training.schedule import watched_epochs
from taet.training.speed import pass_seconds


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
                    timed[kind] = pass_seconds(fresh_network(made, found), found.image_shape, *how)
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
