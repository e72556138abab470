"""The precision of a comparison, chosen once for all cells that leave it to the machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from taet import models
from taet.data import DataFacts, facts
from taet.errors import UserError
from taet.experiments.cells import Cell, in_precision, is_open
from taet.training.choices import Chosen
from taet.training.environment import resolve_device
from taet.training.folder import RunFolder
from taet.training.resolve import Resolved, resolve
from taet.training.speed import precision


def settled(planned: Sequence[Cell], say: Callable[[str], None]) -> list[Cell]:
    """Give all cells that are not started and have no precision the one in which the first of them is fastest.

    Otherwise cells of one table could differ in precision: their networks differ in the head, and timings vary. GPUs
    need no measurement. A cell whose data are not known without reading them is not changed.
    """
    left = [cell for cell in planned if is_open(cell) and not RunFolder(cell.folder).is_run]
    made = _measured(left[0]) if left else None
    if made is None:
        return list(planned)
    say(f"precision {made.value} for all cells: {made.why}")
    return [in_precision(cell, made.value) if cell in left else cell for cell in planned]


def _measured(cell: Cell) -> Chosen | None:
    """Return the precision in which the network of a cell is faster on this processor; None if not known."""
    assert cell.run is not None
    run, found = cell.run, facts(cell.run.data)
    try:
        device = resolve_device(run.training.device)
        if found is None or device.type != "cpu":
            return None
        with torch.random.fork_rng(devices=[]):  # a custom network may draw random numbers
            return precision(fresh_network(resolve(run, found), found), found.image_shape, device)
    except UserError:  # the cell itself will report it
        return None


def fresh_network(made: Resolved, found: DataFacts) -> nn.Module:
    """Return an untrained network as in a run, for timing."""
    run, shape = made.run, (found.num_classes, found.image_shape)
    model = models.build(run.model.name, *shape, seed=run.seed, head=made.method.task.head, stem=run.model.stem)
    return model.to(memory_format=torch.channels_last)
