"""Attacked images as files of 8 bits a channel, which stay adversarial where that is possible."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from taet.attacks.ball import BALL_TOLERANCE, Norm, distance
from taet.attacks.counting_model import CountingModel
from taet.card.images import ImagePixels, drawn_change, png
from taet.data.augmentation import to_unit
from taet.files import check_output, make_folder, write_atomically
from taet.metrics.accuracies import Ints

LEVELS = 255  # steps between black and white
FOLDERS = ("original", "change", "attacked")
MOST_NAME = 80  # letters of an image's own name in that of its files


def roundings(
    original: ImagePixels, x_adv: NDArray[np.float32], most: int
) -> Iterator[ImagePixels]:
    """Yield attacked images in 8 bits: to the nearest level, away from the original, towards it.

    Args:
        original: (N, H, W, C).
        x_adv: (N, C, H, W) in [0, 1].
        most: largest change of a pixel, in levels.
    """
    change = LEVELS * x_adv.transpose(0, 2, 3, 1).astype(np.float64) - original
    # a float32 number within 1e-3 of a level is that level
    nearest = np.rint(change)
    is_level = np.abs(change - nearest) < 1e-3
    away = np.where(is_level, nearest, np.sign(change) * np.ceil(np.abs(change)))
    towards = np.where(is_level, nearest, np.trunc(change))
    for rounded in (nearest, away, towards):
        levels = original + rounded.clip(-most, most)
        yield levels.clip(0, LEVELS).astype(np.uint8)


@torch.no_grad()
def rounded(
    model: CountingModel,
    original: ImagePixels,
    x_adv: NDArray[np.float32],
    labels: Ints,
    eps: float,
    norm: Norm,
    device: torch.device,
) -> tuple[ImagePixels, NDArray[np.bool_]]:
    """Return attacked images in 8 bits, (N, H, W, C), and whether `labels` survive them, (N,).

    Of the roundings that stay in the ball, the first that changes the predicted class is taken,
    else the first of them.
    """
    most = int(LEVELS * eps + 1e-3) if norm == "linf" else LEVELS
    x = to_unit(torch.from_numpy(original)).to(device)
    chosen = original.copy()
    has_one = np.zeros(len(original), np.bool_)
    survives = np.ones(len(original), np.bool_)
    for candidate in roundings(original, x_adv, most):
        attacked = to_unit(torch.from_numpy(candidate)).to(device)
        is_inside = _inside(attacked, x, eps, norm)
        predicted = model.exact_logits(attacked).max(1).indices.cpu().numpy()
        breaks = is_inside & (predicted != labels)
        is_better = (is_inside & ~has_one) | (breaks & survives)
        chosen[is_better] = candidate[is_better]
        has_one |= is_inside
        survives &= ~breaks
    return chosen, survives


def _inside(attacked: Tensor, x: Tensor, eps: float, norm: Norm) -> NDArray[np.bool_]:
    within: NDArray[np.bool_] = (distance(attacked, x, norm) <= eps + BALL_TOLERANCE).cpu().numpy()
    return within


def prepare_folder(folder: Path) -> None:
    """Make the folder of the images."""
    check_output(folder)
    for name in FOLDERS:
        make_folder(folder / name)


def save_images(
    folder: Path,
    rows: Sequence[int],
    names: Sequence[str],
    original: ImagePixels,
    attacked: ImagePixels,
) -> None:
    """Write a PNG file of each image as it is, of its change, and attacked.

    `rows` (N,) number the images, whose files or positions are `names` (N,).
    """
    pictures = (original, drawn_change(original, attacked), attacked)
    for place, (row, name) in enumerate(zip(rows, names, strict=True)):
        for kind, pixels in zip(FOLDERS, pictures, strict=True):
            write_atomically(folder / kind / file_name(row, name), png(pixels[place]))


def file_name(row: int, name: str) -> str:
    """Return the name of the files of an image, which no other image has."""
    stem = re.sub(r"[^\w.-]+", "-", Path(name).stem)[:MOST_NAME]
    return f"{row:05d}.png" if stem == str(row) else f"{row:05d}-{stem}.png"
