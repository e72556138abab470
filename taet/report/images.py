"""Example images of the report, clean and adversarial, as PNG inside the page."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from taet.report.read import Examples, Ints

EXAMPLES = 8


def png(pixels: npt.NDArray[np.uint8]) -> str:
    """Return an image (H, W, 1 or 3) as a data URI at its own size; the page enlarges it pixel by pixel."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


@dataclass(frozen=True)
class Example:
    """A clean image, the adversarial image and their difference as data URIs, with the true and predicted classes."""

    clean: str
    adversarial: str
    perturbation: str
    label: int
    clean_prediction: int
    adversarial_prediction: int


def magnification(examples: Examples) -> int:
    """Return the largest whole factor by which no perturbation leaves the pixel range around grey."""
    largest = float(np.abs(examples.adversarial - examples.images / 255).max(initial=0))
    return max(1, int(0.5 / largest + 1e-3)) if largest > 0 else 1


def example_images(examples: Examples, ranks: Ints) -> list[Example]:
    """Return at most `EXAMPLES` examples, spread evenly from head to tail classes."""
    order = np.argsort(ranks[examples.labels], kind="stable")
    chosen = order[np.unique(np.linspace(0, len(order) - 1, min(EXAMPLES, len(order))).round().astype(int))]
    factor = magnification(examples)
    return [
        Example(
            clean=png(examples.images[i]),
            adversarial=png(_pixels(examples.adversarial[i])),
            perturbation=png(_pixels(0.5 + factor * (examples.adversarial[i] - examples.images[i] / 255))),
            label=int(examples.labels[i]),
            clean_prediction=int(examples.clean_predictions[i]),
            adversarial_prediction=int(examples.adversarial_predictions[i]),
        )
        for i in chosen
    ]


def _pixels(image: npt.NDArray[np.floating]) -> npt.NDArray[np.uint8]:
    levels: npt.NDArray[np.uint8] = np.rint(255 * image.clip(0, 1)).astype(np.uint8)
    return levels
