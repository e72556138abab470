"""Which of two networks with equal names has made a file: told by its running means.

Pre-activation networks in public code differ in what a shortcut that changes the shape takes: the
normalised and rectified input of its block (Rice et al., AWP, CFA), or the input itself (N-FGSM).
Names and shapes of their parameters are equal, their logits are not. The running mean of the
normalisation after such a block is the mean of the sum of both branches, and that follows, up to
an approximation, from the other tensors.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

Shortcut = Literal["activated", "raw"]

CLEAR = 0.5  # the smaller error is at most this share of the larger one, and of the running means
MOMENTUM = 0.9  # of running means, which begin at 0
SIZE = 32  # pixels of the images; the size only weighs the taps of convolutions at the border


def shortcut_kind(tensors: Mapping[str, Tensor], stages: Sequence[int]) -> Shortcut | None:
    """Return what shortcuts take according to the running means, or None if they do not tell.

    `tensors` are those of a pre-activation body, by the position of each block, and `stages` the
    number of blocks of each stage.
    """
    activated_error, raw_error, total = 0.0, 0.0, 0.0
    position, size = 1, SIZE
    for stage, count in enumerate(stages):
        size = size if stage == 0 else size // 2
        block = {
            name.removeprefix(f"{position}."): value.double()
            for name, value in tensors.items()
            if name.startswith(f"{position}.")
        }
        if "shortcut.weight" in block:
            warmth = 1 - MOMENTUM ** float(block.get("bn1.num_batches_tracked", math.inf))
            if warmth == 0:
                return None  # fresh statistics
            measured = _after(tensors, position).double() / warmth
            branch = _mean_of_branch(block, size)
            weight = block["shortcut.weight"].flatten(1)
            activated = branch + weight @ _rectified_mean(block, "bn1")
            raw = branch + weight @ block["bn1.running_mean"] / warmth
            activated_error += float((activated - measured).square().sum())
            raw_error += float((raw - measured).square().sum())
            total += float(measured.square().sum())
        position += count
    if activated_error < CLEAR * min(raw_error, total):
        return "activated"
    if raw_error < CLEAR * min(activated_error, total):
        return "raw"
    return None


def _after(tensors: Mapping[str, Tensor], position: int) -> Tensor:
    """Return the running mean of what the block at `position` gives."""
    following = f"{position + 1}.bn1.running_mean"  # of the next block, or of the last layer
    return tensors.get(following, tensors.get(f"{position + 1}.running_mean", torch.tensor(0.0)))


def _rectified_mean(block: Mapping[str, Tensor], norm: str) -> Tensor:
    """Mean of max(0, z), z the output of a normalisation, taken as N(bias, weight^2)."""
    mean, deviation = block[f"{norm}.bias"], block[f"{norm}.weight"].abs().clamp(min=1e-12)
    ratio = mean / deviation
    density = torch.exp(-ratio.square() / 2) / math.sqrt(2 * math.pi)
    return mean * torch.special.ndtr(ratio) + deviation * density


def _mean_of_branch(block: Mapping[str, Tensor], size: int) -> Tensor:
    """Mean per channel of conv2(max(0, bn2(.))), with the zeros that are padded at the border."""
    inside = torch.tensor([(size - 1) / size, 1.0, (size - 1) / size], dtype=torch.float64)
    taps = block["conv2.weight"] * inside[:, None] * inside
    return taps.sum((2, 3)) @ _rectified_mean(block, "bn2")
