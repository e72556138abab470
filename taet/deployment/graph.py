"""A model with its preprocessing, as one graph from pixel values to logits."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from taet.data.augmentation import to_unit
from taet.settings import Fit

FRACTION = 2**22  # Pillow keeps the weights of 8-bit images as whole multiples of 2^-22 (PRECISION_BITS in Resample.c)


def bilinear_weights(source: int, target: int, device: torch.device, fit: Fit = "squeeze", other: int = 1) -> Tensor:
    """Weights (target, source), float64, of Pillow's bilinear filter along one side of an image.

    w_oi ~ max(0, 1 - |i + 1/2 - (o + 1/2) s| / max(s, 1)) with s = source / target; each row sums to 1, up to rounding
    to multiples of 2^-22. The filter widens with the reduction, which is the antialiasing. Written from the algorithm
    of Pillow's Resample.c; both sizes may be symbols of a graph. `other` is the other side of the image. crop: i counts
    from the square in the middle, and pixels outside of it have no weight; pad: o counts from the first row of the
    image, and black rows are 0.
    """
    length, across, side = (torch.scalar_tensor(n, dtype=torch.float64, device=device) for n in (source, other, target))
    taken = torch.minimum(length, across) if fit == "crop" else length
    longest = torch.maximum(length, across)
    kept = ((2 * length * target + longest) / (2 * longest)).floor().clamp(min=1) if fit == "pad" else side
    outputs, inputs = (torch.arange(size, dtype=torch.float64, device=device) + 0.5 for size in (target, source))
    inputs, outputs = inputs - ((length - taken) / 2).floor(), outputs[:, None] + ((kept - side) / 2).floor()
    scale = taken / kept
    weights = (1 - (inputs - outputs * scale).abs() / scale.clamp(min=1)).relu()
    weights = weights * ((inputs > 0) & (inputs < taken) & (outputs > 0) & (outputs < kept))
    # Only black rows sum to 0; others to 1/2 or more.
    return torch.floor(weights / weights.sum(1, keepdim=True).clamp(min=0.25) * FRACTION + 0.5) / FRACTION


def resize(images: Tensor, height: int, width: int, fit: Fit = "squeeze") -> Tensor:
    """uint8 (N, H, W, C) -> (N, C, height, width), integer pixel values in float64, as Pillow resizes each image.

    Along the rows first, then along the columns, each rounded half up; products and sums are exact multiples of 2^-22.
    So every value equals Pillow's, unless Pillow begins with the columns (from version 13 on, if an image loses more
    than twice as many rows as columns): then a value may differ by 1. `fit`: as in `taet.data.images.scaled`.
    """
    levels, device = images.permute(0, 3, 1, 2).to(torch.float64), images.device
    rows, columns = images.shape[1], images.shape[2]
    levels = torch.floor(levels @ bilinear_weights(columns, width, device, fit, rows).T + 0.5)
    return torch.floor(bilinear_weights(rows, height, device, fit, columns) @ levels + 0.5)


class Deployed(nn.Module):
    """images uint8 (N, H, W, C), pixel values 0 to 255 -> logits float32 (N, classes).

    With `resizes`, H and W are arbitrary and each image is resized to `size` (height, width) by `fit`; else they must
    equal `size`.
    """

    def __init__(self, model: nn.Module, size: tuple[int, int], *, resizes: bool, fit: Fit = "squeeze") -> None:
        super().__init__()
        self.model, self.size, self.resizes, self.fit = model, size, resizes, fit

    def forward(self, images: Tensor) -> Tensor:
        x = resize(images, *self.size, self.fit).to(torch.float32) / 255 if self.resizes else to_unit(images)
        logits: Tensor = self.model(x)
        return logits
