"""Resizing in a graph is Pillow's, grey level by grey level."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from taet.data.images import picture, scaled
from taet.deployment.graph import bilinear_weights, resize
from taet.settings import Fit

Draw = Callable[..., np.ndarray]
Prepare = Callable[..., torch.Tensor]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((100, 80), (32, 32)),
        ((45, 60), (28, 28)),
        ((32, 33), (32, 32)),
        ((8, 8), (32, 20)),
        ((1, 1), (5, 7)),
        ((37, 225), (224, 37)),
        ((16, 16), (16, 16)),
    ],
)
def test_every_grey_level_is_pillows(
    before: tuple[int, int], after: tuple[int, int], channels: int, pictures: Draw, prepared: Prepare
) -> None:
    images = pictures(4, (*before, channels))
    found = resize(torch.from_numpy(images), *after).float() / 255
    torch.testing.assert_close(found, prepared(images, (channels, *after)), rtol=0, atol=0)


@pytest.mark.parametrize(("before", "after"), [((100, 33), (32, 32)), ((117, 30), (8, 26)), ((90, 20), (40, 28))])
def test_one_level_apart_where_pillow_may_begin_with_the_columns(
    before: tuple[int, int], after: tuple[int, int], pictures: Draw, prepared: Prepare
) -> None:
    images = pictures(4, (*before, 3))
    found = resize(torch.from_numpy(images), *after).float() / 255
    torch.testing.assert_close(found, prepared(images, (3, *after)), rtol=0, atol=1.01 / 255)


@pytest.mark.parametrize("fit", ["crop", "pad"])
@pytest.mark.parametrize("before", [(100, 80), (45, 60), (20, 13), (7, 7), (1, 70), (38, 81)])
@pytest.mark.parametrize("side", [32, 9])
def test_images_that_are_not_square_become_so_as_in_training(
    fit: Fit, before: tuple[int, int], side: int, pictures: Draw
) -> None:
    images = pictures(3, (*before, 3))
    expected = np.stack([np.asarray(scaled(picture(image), (side, side), fit)) for image in images])
    found = resize(torch.from_numpy(images), side, side, fit).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1.01 if max(before) > 4 * min(before) else 0)


def test_weights_by_hand() -> None:
    """4 pixels to 2: each takes four triangles of half-width 2 about its centre, of which one lies outside."""
    found = bilinear_weights(4, 2, torch.device("cpu"))
    expected = torch.tensor([[3, 3, 1, 0], [0, 1, 3, 3]], dtype=torch.float64) / 7
    torch.testing.assert_close(found, expected, rtol=0, atol=2**-22)
