"""Policies against torchvision's own transforms, seeded image by image."""

import numpy as np
import pytest
import torch
from PIL import Image

from taet.data.augmentation import POLICIES, apply
from taet.randomness import derive_seed


@pytest.mark.parametrize("policy", sorted(POLICIES))
@pytest.mark.parametrize("shape", [(32, 32, 3), (8, 8, 1), (12, 20, 3)], ids=str)
def test_every_image_is_what_torchvision_makes_of_it_under_its_seed(
    policy: str, shape: tuple[int, ...]
) -> None:
    from torchvision.transforms import AutoAugment, AutoAugmentPolicy, RandAugment

    published = {
        "randaugment": RandAugment(2, 8),
        "autoaugment": AutoAugment(AutoAugmentPolicy.CIFAR10),
    }[policy]
    given = np.random.default_rng(7).integers(0, 256, (60, *shape), dtype=np.uint8)
    before = given.copy()
    changed = apply(policy, given, 5, "policy", 2, begin=3)
    assert np.array_equal(given, before)
    with torch.random.fork_rng():
        for place, (image, result) in enumerate(zip(given, changed.numpy(), strict=True)):
            picture = (
                Image.fromarray(image[:, :, 0], "L")
                if shape[2] == 1
                else Image.fromarray(image, "RGB")
            )
            torch.manual_seed(derive_seed(5, "policy", 2, 3 + place))
            expected = np.asarray(published(picture))
            assert np.array_equal(result.reshape(expected.shape), expected)
    assert (changed.numpy() != given).any(axis=(1, 2, 3)).sum() > 20
