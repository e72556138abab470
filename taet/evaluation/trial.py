"""What a model answers to one batch, and what that tells: the facts of the probe, and what `taet check` finds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from taet.attacks.ball import finite
from taet.attacks.counted import Counted
from taet.errors import UserError
from taet.losses.long_tail import cross_entropy
from taet.randomness import generator

SUM_TOLERANCE = 1e-5  # by which the official AutoAttack tells a probability distribution
OUT_OF_MEMORY = (torch.OutOfMemoryError, MemoryError)
PASSES = 3  # of an image through the model, forward or backward, that `attempt` takes


def sample(labels: NDArray[np.int64], count: int, seed: int) -> NDArray[np.int64]:
    """Return places of `count` images of (N,), or of all, in ascending order, drawn as evenly over classes as there
    are images of each."""
    order = torch.randperm(len(labels), generator=generator("cpu", seed, "sample")).numpy()
    drawn = labels[order]
    grouped, sizes = np.argsort(drawn, kind="stable"), np.bincount(drawn)
    turn = np.empty_like(grouped)  # the first image of every class comes before the second of any
    turn[grouped] = np.arange(len(labels)) - np.repeat(sizes.cumsum() - sizes, sizes)
    return np.sort(order[np.argsort(turn, kind="stable")[:count]])


@dataclass(frozen=True)
class Trial:
    """A model and what it answered to a batch of N images."""

    model: Counted
    x: Tensor
    y: Tensor
    logits: Tensor
    """(N, classes), without a graph."""
    gradient: Tensor
    """Of the cross-entropy of each image, in the shape of x."""

    @property
    def correct(self) -> Tensor:
        """Which images are classified correctly, (N,)."""
        return self.logits.max(1).indices == self.y

    @property
    def distributions(self) -> Tensor:
        """Of which images the logits are at least 0 and sum to 1, (N,)."""
        return (self.logits >= 0).all(1) & ((self.logits.sum(1) - 1).abs() <= SUM_TOLERANCE)

    @property
    def zero_gradients(self) -> Tensor:
        """At which correctly classified images the gradient is exactly zero, (N,)."""
        return self.correct & (self.gradient == 0).flatten(1).all(1)

    @property
    def nonfinite(self) -> Tensor:
        """At which images a logit or the gradient is not finite, (N,)."""
        return nonfinite(self.logits) | nonfinite(self.gradient)

    def repeat_difference(self) -> float:
        """Ask again and return by how much the answers differ, as in `difference`; one pass."""
        return difference(answer(self.model, self.x), self.logits)

    def batch_difference(self) -> float:
        """Ask again in two halves and return by how much the answers differ, as in `difference`; one pass.

        The halves are cut by class, so that they are unlike each other and the whole. Each has two images or more,
        since a layer may need them: three images or fewer are not divided.
        """
        order = self.y.argsort(stable=True)
        halves = order.chunk(2 if len(order) > 3 else 1)
        return difference(torch.cat([answer(self.model, self.x[rows]) for rows in halves]), self.logits[order])


def attempt(model: Counted, x: Tensor, y: Tensor) -> Trial:
    """Ask for the logits of x (N, C, H, W) and the gradient of their cross-entropy with y (N,)."""
    return Trial(model, x, y, answer(model, x), input_gradient(model, x, y))


def answer(model: Counted, x: Tensor) -> Tensor:
    """Return logits without a graph; a model that fails is a `UserError`."""
    with user_errors(_on(x)), torch.no_grad():
        logits: Tensor = model(x)
    return logits


def input_gradient(model: Counted, x: Tensor, y: Tensor) -> Tensor:
    """Return the gradient of the cross-entropy at each image; a model that fails or has none is a `UserError`."""
    leaf, gradient = x.clone().requires_grad_(), None
    with user_errors(_on(x)):
        loss = cross_entropy(model(leaf), y).sum()
        if loss.requires_grad:
            (gradient,) = torch.autograd.grad(loss, leaf, allow_unused=True)
    if gradient is None:
        why = "is there a detach, no_grad or argmax in forward?"
        raise UserError(f"model: no gradient reaches the image, so no attack can follow one; {why}")
    return gradient


@contextmanager
def user_errors(failed: str) -> Iterator[None]:
    """Turn any exception of the user's code into a `UserError` of one line: `failed`, with {reason} and {kind}."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        kind = type(error).__name__
        reason = str(error).partition("\n")[0] or kind
        hint = "; a smaller --batch-size takes less memory" if isinstance(error, OUT_OF_MEMORY) else ""
        raise UserError(failed.format(reason=reason, kind=kind) + hint) from error


def _on(x: Tensor) -> str:
    return f"model: fails on a batch of {len(x)} images ({{reason}})"


def nonfinite(values: Tensor) -> Tensor:
    """For which of N images (N, ...) holds something infinite or nan, (N,)."""
    return ~finite(values)


def difference(first: Tensor, second: Tensor) -> float:
    """Largest L2 distance between two answers (N, classes) to one image, each scaled to unit length; nan counts as 0,
    so that the distance is a number from 0 to 2."""
    apart = functional.normalize(first.nan_to_num()) - functional.normalize(second.nan_to_num())
    return float(apart.norm(dim=1).max())
