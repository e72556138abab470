"""The logits and gradients of a model on one batch, the basis of the probe and of `taet check`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from taet.attacks.ball import finite
from taet.attacks.counted import Counted
from taet.attacks.inputs import distributions
from taet.errors import UserError, is_out_of_memory
from taet.evaluation.facts import ModelFacts
from taet.losses.long_tail import cross_entropy

PASSES = 3  # of an image through the model, forward or backward, in `attempt`


@dataclass(frozen=True)
class Trial:
    """A model and its logits and gradients on a batch of N images."""

    model: Counted
    x: Tensor
    y: Tensor
    logits: Tensor
    """(N, classes), computed without a graph."""
    gradient: Tensor
    """Gradient of the cross-entropy of each image, in the shape of x."""
    traced: Tensor
    """The logits of the forward pass that `gradient` belongs to, detached."""

    @property
    def correct(self) -> Tensor:
        """Whether an image is classified correctly, (N,)."""
        return self.logits.max(1).indices == self.y

    @property
    def nonfinite(self) -> Tensor:
        """Whether a logit or the gradient of an image is not finite, (N,)."""
        return ~(finite(self.logits) & finite(self.gradient))

    def repeat_difference(self) -> float:
        """Repeat the forward pass and return the `difference` of the logits."""
        return difference(answer(self.model, self.x), self.logits)

    def batch_difference(self) -> float:
        """Repeat the forward pass in two halves and return the `difference` of the logits.

        The batch is split by class, so that the halves differ from each other and from the whole. Each has at least two
        images, which some layers need: three images or fewer are not split.
        """
        order = self.y.argsort(stable=True)
        halves = order.chunk(2 if len(order) > 3 else 1)
        return difference(torch.cat([answer(self.model, self.x[rows]) for rows in halves]), self.logits[order])

    def facts(self) -> ModelFacts:
        """Return what the outputs show; the forward pass is repeated, whole and in two halves."""
        largest = self.logits.topk(2).values
        gap = float((largest[:, 0] - largest[:, 1]).median())
        return ModelFacts(
            batch_size=len(self.y),
            images=len(self.y),
            clean_correct=int(self.correct.sum()),
            distributions=int(distributions(self.logits).sum()),
            zero_gradients=int((self.correct & (self.gradient == 0).flatten(1).all(1)).sum()),
            nonfinite_gradients=int(self.nonfinite.sum()),
            repeat_difference=self.repeat_difference(),
            batch_difference=self.batch_difference(),
            gradient_difference=difference(self.traced, self.logits),
            logit_gap=gap if math.isfinite(gap) else 0.0,
        )


def attempt(model: Counted, x: Tensor, y: Tensor) -> Trial:
    """Return the logits of x (N, C, H, W) and the gradient of their cross-entropy with y (N,)."""
    logits = answer(model, x)
    return Trial(model, x, y, logits, *_traced(model, x, y))


def answer(model: Counted, x: Tensor) -> Tensor:
    """Return logits without a graph; turn an exception of the model into a `UserError`."""
    with user_errors(_on(x)), torch.no_grad():
        logits: Tensor = model(x)
    return logits


def input_gradient(model: Counted, x: Tensor, y: Tensor) -> Tensor:
    """Return the gradient of the cross-entropy at each image; raise a `UserError` if it does not exist."""
    return _traced(model, x, y)[0]


def _traced(model: Counted, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradient of the cross-entropy at each image, and the logits."""
    leaf, gradient = x.clone().requires_grad_(), None
    with user_errors(_on(x)):
        logits = model(leaf)
        loss = cross_entropy(logits, y).sum()
        if loss.requires_grad:
            (gradient,) = torch.autograd.grad(loss, leaf, allow_unused=True)
    if gradient is None:
        why = "is there a detach, no_grad or argmax in forward?"
        raise UserError(f"model: no gradient reaches the image, so no attack can follow one; {why}")
    return gradient, logits.detach()


@contextmanager
def user_errors(failed: str) -> Iterator[None]:
    """Turn any exception of the user's code into a `UserError` of one line: `failed`, with {reason} and {kind}."""
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        kind = type(error).__name__
        reason = str(error).partition("\n")[0] or kind
        hint = "; a smaller --batch-size takes less memory" if is_out_of_memory(error) else ""
        raise UserError(failed.format(reason=reason, kind=kind) + hint) from error


def _on(x: Tensor) -> str:
    return f"model: fails on a batch of {len(x)} images ({{reason}})"


def difference(first: Tensor, second: Tensor) -> float:
    """Return the largest L2 distance, 0 to 2, between two logit vectors of one image, each scaled to unit length.

    Both are (N, classes); nan counts as 0.
    """
    apart = functional.normalize(first.nan_to_num()) - functional.normalize(second.nan_to_num())
    return float(apart.norm(dim=1).max())
