"""What the published weights by label do that the text does not say, shown on numbers."""

from dataclasses import replace

import pytest
import torch

from taet.attacks.objectives import generation_weighting
from tests.methods.conftest import COUNTS, make_attack

# of a model that favours the head and never says nine
PREDICTED = torch.tensor([40.0, 3, 9, 9, 1, 7, 1, 5, 3, 0])
FACTORS_ONLY = ("rbl", "rw", "rws", "enr")


def examples(network, digits, name, bn_mode):
    """Digits attacked as REAT does, 10 steps from a uniform start, with the weighting called
    `name`."""
    weighting = generation_weighting(name, torch.tensor(COUNTS, dtype=torch.float32), PREDICTED)
    attack = make_attack(steps=10, start="uniform", bn_mode=bn_mode)
    attack = replace(attack, **weighting)
    # In float64, where no step underflows and no rounding turns a sign.
    return attack(network(10, dtype=torch.float64), digits.x.double(), digits.y)


@pytest.mark.parametrize("name", [*FACTORS_ONLY, "brw"])
def test_a_weight_by_label_moves_examples_only_where_samples_feel_each_other_and_a_prior_always(
    name, network, digits
):
    """Under sign steps: with batch normalisation in eval mode a positive factor of a loss turns no
    sign."""
    for bn_mode in ("eval", "train"):
        moved = examples(network, digits, name, bn_mode) != examples(
            network, digits, "none", bn_mode
        )
        if bn_mode == "eval" and name != "brw":
            assert not moved.any()
        else:
            assert moved.double().mean() > 0.005
