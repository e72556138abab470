"""The optimiser of the classifier's weights, and its learning rate over the epochs."""

from __future__ import annotations

import math

import torch
from torch import nn

from taet.settings import Run, Training, epoch_at

ONE_CYCLE_RISE = 0.3  # default fraction of the steps over which it rises
ONE_CYCLE_START, ONE_CYCLE_END = 1 / 25, 1 / 25 / 10_000  # first and last rate, relative to the highest


def build_optimizer(model: nn.Module, training: Training) -> torch.optim.Optimizer:
    """Return SGD over all parameters, or AdamW, which decays only the weights of layers.

    Those have two or more dimensions and "weight" in the name, such as attention's `in_proj_weight`; biases, gains
    of normalisations, class tokens and position embeddings are not decayed (Touvron et al., DeiT, ICML 2021,
    arXiv:2012.12877). AdamW: betas 0.9 and 0.999, epsilon 1e-8 (Loshchilov and Hutter, ICLR 2019, arXiv:1711.05101).
    """
    # The fused kernel reads each weight once; it exists on these devices only.
    fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in model.parameters())
    if training.optimizer == "sgd":
        momentum, decay = training.momentum, training.weight_decay
        return torch.optim.SGD(model.parameters(), lr=training.lr, momentum=momentum, weight_decay=decay, fused=fused)
    decayed: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        of_layer = parameter.ndim > 1 and "weight" in name.rpartition(".")[2]
        (decayed if of_layer else others).append(parameter)
    groups = [{"params": decayed, "weight_decay": training.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=training.lr, fused=fused)


def milestone_epochs(run: Run) -> tuple[int, ...]:
    """Milestones as epochs, from 0: they scale with the length of the run."""
    return tuple(epoch_at(share, run.training.epochs) for share in run.training.milestones)


def learning_rate(run: Run, epoch: int, step: int, steps: int) -> float:
    """Learning rate of `step` (from 0, of `steps` in an epoch) in `epoch` (from 0).

    Over the first W = warmup * epochs the rate rises linearly, up to `lr` at the last of their steps. After that,
    `steps`: divided by ten at every milestone that has passed; `cosine`: half of 1 + cos(pi u), u the completed
    fraction of the remaining steps (Loshchilov and Hutter, ICLR 2017, arXiv:1608.03983, without restarts).

    `one-cycle` rises from lr / 25 to lr and falls to lr / 250,000, each by half a cosine (Smith and Topin,
    arXiv:1708.07120, as torch's OneCycleLR has it; the momentum stays).
    """
    training = run.training
    done, total = epoch * steps + step, training.epochs * steps
    if training.decay == "one-cycle":
        peak, last = max((training.warmup or ONE_CYCLE_RISE) * total - 1, 0), total - 1
        if done <= peak:
            begin, end, share = ONE_CYCLE_START, 1.0, done / peak if peak else 1.0
        else:
            begin, end, share = 1.0, ONE_CYCLE_END, (done - peak) / (last - peak)
        return training.lr * (end + (begin - end) * (1 + math.cos(math.pi * share)) / 2)
    rise = round(training.warmup * total)
    if done < rise:
        return training.lr * (done + 1) / rise
    if training.decay == "cosine":
        share = (done - rise) / (total - rise)
        return training.lr * (1 + math.cos(math.pi * share)) / 2
    passed = sum(epoch >= milestone for milestone in milestone_epochs(run))
    return float(training.lr * 0.1**passed)
