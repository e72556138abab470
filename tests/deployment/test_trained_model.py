"""A trained model in Python: its network, its classes and how its images are made ready."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import taet
from taet import models
from taet.data import Dataset
from tests.calls import one_line

NAMES = ("red", "green", "blue")


def test_a_run_gives_its_network_classes_and_shape(trained: Path) -> None:
    loaded = taet.load(trained)
    assert not loaded.model.training
    assert loaded.class_names == NAMES
    assert (loaded.image_shape, loaded.resizes) == ((3, 16, 16), True)
    assert repr(loaded) == "77,584 parameters, images of 3 x 16 x 16, classes: red, green and blue"


def test_its_logits_of_preprocessed_images_are_the_predictions(
    trained: Path, dataset: Dataset
) -> None:
    loaded = taet.load(trained)
    with torch.no_grad():
        labels = loaded.model(loaded.preprocess(dataset.test.images)).argmax(1)
    np.testing.assert_array_equal(labels, taet.predict(trained, dataset.test.images).labels)
    np.testing.assert_array_equal(labels, taet.predict(loaded, dataset.test.images).labels)


def test_files_of_any_size_are_resized_as_in_training(trained: Path, tmp_path: Path) -> None:
    Image.new("L", (40, 30), 128).save(tmp_path / "grey.png")
    images = taet.load(trained).preprocess(tmp_path)
    assert images.shape == (1, 3, 16, 16)
    torch.testing.assert_close(images, torch.full_like(images, 128 / 255))


def test_an_image_that_cannot_be_read_is_named(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"PNG")
    with one_line("cannot read image '.*broken.png'"):
        taet.load(trained).preprocess(tmp_path)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Weights of a network of three classes, in a file that names no class."""
    network = models.build("resnet8", 3, (3, 16, 16), seed=2)
    state = {f"module.{name}": value for name, value in network.state_dict().items()}
    torch.save({"state_dict": state}, path := tmp_path / "net.pt")
    return path


def test_a_file_of_weights_gives_a_model_that_predicts_and_is_exported(
    weights: Path, dataset: Dataset, tmp_path: Path
) -> None:
    loaded = taet.load("resnet8", weights, classes=NAMES, image_shape=(3, 16, 16))
    found = taet.predict(loaded, dataset.test.images, attack="pgd-3")
    assert found.class_names == NAMES
    assert found.survives is not None
    exported = taet.export(loaded, "safetensors", tmp_path / "net.safetensors")
    again = taet.load("resnet8", exported)
    assert (again.class_names, again.image_shape) == (NAMES, (3, 16, 16))
    with torch.no_grad():
        x = loaded.preprocess(dataset.test.images[:4])
        torch.testing.assert_close(again.model(x), loaded.model(x))


def test_without_names_of_classes_they_are_numbers(weights: Path) -> None:
    assert taet.load("resnet8", weights).class_names == ("0", "1", "2")


def test_a_file_in_place_of_a_run_names_its_network(weights: Path) -> None:
    assert taet.load(weights).about["model"] == "resnet8"


def test_a_file_of_an_unknown_network_asks_for_its_name(tmp_path: Path) -> None:
    torch.save(torch.nn.Sequential(torch.nn.Linear(3, 2)).state_dict(), tmp_path / "net.pt")
    with one_line("of no residual network of taet list models; allowed: the name of its network"):
        taet.load(tmp_path / "net.pt")


def test_classes_of_a_run_are_its_own(trained: Path) -> None:
    with one_line("got classes, image shape or normalisation; allowed: with the name of a network"):
        taet.load(trained, classes="a,b,c")
