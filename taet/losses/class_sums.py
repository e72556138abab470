"""Sums over the images of each class, for class weights and class statistics."""

from __future__ import annotations

import torch
from torch import Tensor

from taet.distributed import global_sum
from taet.losses.long_tail import is_label


@torch.no_grad()
def class_sums(values: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Sums of values (N, K) over each class's images in the global batch (C, K), and their number (C,); float64.

    A matrix product is used because index_add_ on a GPU adds in a different order every time.
    """
    members = is_label(values.new_empty(0, num_classes), labels).double()
    sums = global_sum(members.T @ torch.cat([values.double(), torch.ones_like(members[:, :1])], 1))
    return sums[:, :-1], sums[:, -1]
