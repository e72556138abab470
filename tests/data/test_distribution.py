"""The picture of the class counts."""

import numpy as np
import pytest
from PIL import Image

from taet.data import Dataset
from taet.data.description import COLOURS, draw


def make(classes, names=None):
    labels = np.repeat(np.arange(classes), np.arange(classes, 0, -1))
    images = np.zeros((len(labels), 1, 1, 1), np.uint8)
    return Dataset.from_arrays(images, labels, images, labels, class_names=names, name="set $x_1$")


def area(path, colour):
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    return (np.abs(np.asarray(Image.open(path).convert("RGB")).astype(int) - wanted).max(-1) < 3).sum()


@pytest.mark.parametrize("classes", [30, 90])
def test_head_body_and_tail_have_their_colours(tmp_path, classes):
    draw(make(classes), tmp_path / "x.png")
    head, body, tail = (area(tmp_path / "x.png", colour) for colour in COLOURS.values())
    assert head > body > tail > 1000


def test_names_of_any_length_and_script(tmp_path):
    draw(make(3, ("an exceedingly long name of a class", "悪性", "$\\frac")), tmp_path / "x.png")
    draw(make(2), tmp_path / "x.svg")
    text = (tmp_path / "x.svg").read_text()
    assert COLOURS["tail"] in text
    assert COLOURS["head"] not in text  # of two classes none is head
    with Image.open(tmp_path / "x.png") as image:
        assert min(image.size) > 500
