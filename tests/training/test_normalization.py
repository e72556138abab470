"""The normalisation of images that a training puts inside its model."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from taet import models
from taet.data import Dataset
from taet.models import Classifier
from taet.training.prepare import normalize_images
from tests.calls import configure, one_line


@pytest.fixture
def build() -> Callable[[int], tuple[Classifier, Dataset]]:
    """Return a model and a data set of images with so many channels."""

    def made(channels: int) -> tuple[Classifier, Dataset]:
        pixels = np.random.default_rng(0).integers(0, 256, (12, 8, 8, channels)).astype(np.uint8)
        labels = np.arange(12) % 2
        dataset = Dataset.from_arrays(pixels, labels, pixels[:4], labels[:4])
        model = models.build("resnet8", 2, (channels, 8, 8))
        assert isinstance(model, Classifier)
        return model, dataset

    return made


def test_by_default_it_is_that_of_the_training_images(
    build: Callable[[int], tuple[Classifier, Dataset]],
) -> None:
    model, dataset = build(3)
    normalize_images(model, "data", dataset)
    mean, _ = dataset.train.channel_statistics()
    torch.testing.assert_close(model.mean.flatten(), torch.tensor(mean))


@pytest.mark.parametrize("given", ["imagenet", "0.485,0.456,0.406/0.229,0.224,0.225"])
def test_it_can_be_named_or_given(
    given: str, build: Callable[[int], tuple[Classifier, Dataset]]
) -> None:
    model, dataset = build(3)
    normalize_images(model, given, dataset)
    torch.testing.assert_close(model.std.flatten(), torch.tensor([0.229, 0.224, 0.225]))


def test_of_other_channels_than_the_images_it_is_refused(
    build: Callable[[int], tuple[Classifier, Dataset]],
) -> None:
    model, dataset = build(1)
    with one_line("got 'imagenet' of 3 channels; allowed: of 1, as the images have"):
        normalize_images(model, "imagenet", dataset)


def test_the_option_takes_the_values_of_evaluate() -> None:
    run, _ = configure("at", ["--model.normalize", "cifar10"])
    assert run.model.normalize == "cifar10"
    with one_line("normalize: got .*'imagnet'; allowed: data, none, imagenet"):
        configure("at", ["--model.normalize", "imagnet"])
