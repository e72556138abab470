"""A loss prints its numbers, not its tensors."""

from __future__ import annotations

import torch

from taet.losses import Loss


def test_a_loss_prints_itself_in_one_line() -> None:
    total = torch.tensor(1.23456, requires_grad=True)
    loss = Loss(total, {"natural": torch.tensor(0.5), "each": torch.zeros(128)}, torch.zeros(128, 10))
    assert repr(loss) == "Loss(total 1.235, natural 0.5, each (128), logits (128, 10))"
