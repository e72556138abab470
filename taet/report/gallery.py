"""Example images of the report, clean and adversarial, as PNG inside the page."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from taet.evaluation.examples import Examples
from taet.statistics import Ints

EXAMPLES = 8


def png(image: npt.NDArray[np.floating]) -> str:
    """Return an image (H, W, 1 or 3) in [0, 1] as a data URI at its own size; the page enlarges it pixel by pixel."""
    from PIL import Image

    pixels = np.rint(255 * image.clip(0, 1)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


@dataclass(frozen=True)
class Gallery:
    """Example images of one series under one attack."""

    attack: str
    eps: float
    factor: int
    """The largest whole factor at which every magnified perturbation around grey stays in the pixel range."""
    rows: list[tuple[list[str], int, list[int]]]
    """The clean image, the adversarial image and the magnified perturbation as data URIs, the true class, and the
    classes predicted for the first two."""


def gallery(examples: Examples, ranks: Ints) -> Gallery:
    """Return at most `EXAMPLES` examples, spread evenly from head to tail classes."""
    order = np.argsort(ranks[examples.labels], kind="stable")
    chosen = order[np.unique(np.linspace(0, len(order) - 1, min(EXAMPLES, len(order))).round().astype(int))]
    clean = examples.images / 255
    changes = examples.adversarial - clean
    largest = float(np.abs(changes).max(initial=0))
    factor = max(1, int(0.5 / largest + 1e-3)) if largest > 0 else 1
    rows = []
    for i in chosen:
        shown = [png(image) for image in (clean[i], examples.adversarial[i], 0.5 + factor * changes[i])]
        predictions = [int(examples.clean_predictions[i]), int(examples.adversarial_predictions[i])]
        rows.append((shown, int(examples.labels[i]), predictions))
    return Gallery(examples.attack, examples.eps, factor, rows)
