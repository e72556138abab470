"""How far the adversarial examples of the same images move from one epoch to the next (REAT, figure 3)."""

from __future__ import annotations

import numpy as np
import torch

from taet.data.augmentation import as_tensor, to_unit
from taet.distributed import global_sum, rank, share, world_size
from taet.training.prepare import TrainingPlan
from taet.training.state import State
from taet.training.step import examples

QUARTILES = (0.25, 0.5, 0.75)


def drift(plan: TrainingPlan, state: State) -> dict[str, object]:
    """Return mean and quartiles per class of the L2 distance between the examples of this and of the last epoch.

    Of the first `distance_images` of every class, not augmented and with the same start noise in every epoch, so that
    only the model changes the distance, in image units. None in the first epoch; 0 for a class without images.
    """
    split, size = plan.dataset.train, plan.run.training.batch_size
    classes = range(len(split.class_names))
    rows = np.concatenate([np.flatnonzero(split.labels == c)[: plan.run.training.distance_images] for c in classes])
    x = to_unit(as_tensor(split.images[rows]).to(plan.device))
    y = torch.from_numpy(split.labels[rows]).to(plan.device)
    found = torch.zeros_like(x)
    for number, start in enumerate(range(0, len(found), size)):
        total = min(size, len(found) - start)
        mine = share(total, rank(), world_size())
        part = slice(start + mine.start, start + mine.stop)
        attack = state.attack((mine.start, total), "drift", number)
        found[part] = examples(state, state.model, x[part], y[part], attack)
    found = global_sum(found)  # zero for images of other processes
    before, state.examples = state.examples, found
    if before is None:
        return {}
    distances = (found - before).flatten(1).norm(dim=1).double()
    total = distances.new_zeros(len(classes)).index_add(0, y, distances)
    each = [distances[y == label].cpu().numpy() for label in classes]
    return {
        "distance": (total / y.bincount(minlength=len(classes)).clamp(min=1)).tolist(),
        "distance_quartiles": [np.quantile(one, QUARTILES).tolist() if one.size else [0.0] * 3 for one in each],
    }
