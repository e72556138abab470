"""Facts about the outputs and gradients of a model on a sample of images, to which the rules
apply."""

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from taet.attacks import pgd
from taet.attacks.ball import finite
from taet.attacks.counting_model import CountingModel
from taet.attacks.differentiable import Replaced, Replacement
from taet.attacks.inputs import distributions
from taet.attacks.objectives import Objective, margin, scaled
from taet.attacks.spec import Model
from taet.card.facts import MASKED, ModelFacts
from taet.errors import wrapping_user_code
from taet.losses.long_tail import cross_entropy

STEPS = 20
STEP_SHARE = 1 / 8  # of eps: 1/255 for the ball of 8/255, as in the TAET and REAT papers' PGD-20
# a probability that a sigmoid reaches for some image, but cosines and small logits hardly reach
SURE = 0.99
DRAWS, JUDGED = 32, 64  # passes of a randomised model: for a gradient, and for a prediction


def gradient_and_logits(model: CountingModel, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradient of the cross-entropy at each image and the logits; errors of the model
    are a `UserError`."""
    leaf = x.clone().requires_grad_()
    with wrapping_user_code(f"model: fails on a batch of {len(x)} images"):
        logits = model(leaf)
        (gradient,) = torch.autograd.grad(cross_entropy(logits, y).sum(), leaf)
    return gradient, logits.detach()


def logits_of(model: CountingModel, x: Tensor) -> Tensor:
    """Return logits without a graph; errors of the model are a `UserError`."""
    with wrapping_user_code(f"model: fails on a batch of {len(x)} images"), torch.no_grad():
        return model(x)


def difference(first: Tensor, second: Tensor) -> float:
    """Return the largest L2 distance between two logit vectors of one image, (N, C), each scaled to
    unit length."""
    first, second = first.nan_to_num(), second.nan_to_num()
    # A logit far below the largest would hide the others, so the distance is also measured with
    # such logits cut off.
    return max(_distance(first, second), _distance(_near(first), _near(second)))


def _near(logits: Tensor) -> Tensor:
    """Return logits (N, C) with those that decide nothing lifted to `MASKED` below the largest."""
    return logits.maximum(logits.amax(1, keepdim=True) + MASKED)


def _distance(first: Tensor, second: Tensor) -> float:
    """Return the largest L2 distance between two rows, (N, C), each scaled to unit length."""
    apart = functional.normalize(first) - functional.normalize(second)
    return float(apart.norm(dim=1).max())


def outputs(model: CountingModel, x: Tensor, y: Tensor) -> tuple[ModelFacts, Tensor, Tensor]:
    """Return the facts of repeated passes, with and without a gradient, whole and in halves; the
    logits; the gradient.

    The batch is split by class, so that the halves differ from each other and from the whole. A
    half has at least two images, which some layers need: three images or fewer are not split.
    """
    logits, (gradient, with_graph) = logits_of(model, x), gradient_and_logits(model, x, y)
    correct = logits.max(1).indices == y
    largest, sigmoid = (
        logits.topk(2).values,
        ((logits >= 0) & (logits <= 1)).all(1) & (logits.amax() > SURE),
    )
    gap = float((largest[:, 0] - largest[:, 1]).median())
    repeat_difference = difference(logits_of(model, x), logits)
    order = y.argsort(stable=True)
    halves = torch.cat(
        [logits_of(model, x[rows]) for rows in order.chunk(2 if len(order) > 3 else 1)]
    )
    facts = ModelFacts(
        batch_size=len(y),
        images=len(y),
        clean_correct=int(correct.sum()),
        distributions=int((distributions(logits) | sigmoid).sum()),
        zero_gradients=int((correct & (gradient == 0).flatten(1).all(1)).sum()),
        nonfinite_gradients=int((~(finite(logits) & finite(gradient))).sum()),
        repeat_difference=repeat_difference,
        batch_difference=difference(halves, logits[order]),
        gradient_difference=difference(with_graph, logits),
        logit_gap=gap if math.isfinite(gap) else 0.0,
    )
    return facts, logits, gradient


def probe_passes(sites: Mapping[str, int]) -> int:
    """Return the passes that `probe` takes for an image: six in `outputs`, and two or four runs of
    PGD."""
    return 6 + (4 if any(sites.values()) else 2) * (2 * STEPS + 1)


def probe(
    model: CountingModel, x: Tensor, y: Tensor, noise: Tensor, eps: float, sites: Mapping[str, int]
) -> ModelFacts:
    """Return the facts about a model, with PGD from start noise; `sites` are the operations that
    can be replaced."""
    facts, clean, gradient = outputs(model, x, y)
    nonfinite = ~(finite(clean) & finite(gradient))

    def record(values: Tensor) -> None:
        nonlocal nonfinite
        nonfinite = nonfinite | ~finite(values)

    def watched(network: nn.Module, x: Tensor) -> Tensor:
        if x.requires_grad:
            x.register_hook(record)  # type: ignore[no-untyped-call]
        logits: Tensor = network(x)
        record(logits.detach())
        return logits

    def correct_after(objective: Objective, replacement: Replacement | None = None) -> Tensor:
        network = (
            model
            if replacement is None
            else CountingModel(model.model, Replaced(model.model, replacement))
        )
        x_adv = _pgd(partial(watched, network), x, y, noise, eps, objective)
        with torch.no_grad():
            return watched(model, x_adv).max(1).indices == y

    scaled_ce = scaled(cross_entropy, facts.logit_factor)
    plain, with_factor = correct_after(cross_entropy), correct_after(scaled_ce)
    straight = smooth = torch.zeros_like(plain)
    if replaced := sum(map(bool, sites.values())):
        straight, smooth = (
            correct_after(scaled_ce, "straight-through"),
            correct_after(margin, "smooth"),
        )
    later = difference(logits_of(model, x), clean)
    masks = {
        "nonfinite_gradients": nonfinite,
        "pgd_correct": plain,
        "only_pgd_correct": plain & ~with_factor,
    }
    pairs = {
        "scaled": (with_factor, plain),
        "straight": (straight, with_factor),
        "smooth": (smooth, with_factor),
    }
    for name, (mask, other) in pairs.items():
        masks |= {f"{name}_pgd_correct": mask, f"only_{name}_pgd_correct": mask & ~other}
    counts = {name: int(mask.sum()) for name, mask in masks.items()}
    return replace(facts, later_difference=later, sites=len(sites), replaced=replaced, **counts)


def _pgd(
    model: Model, x: Tensor, y: Tensor, noise: Tensor, eps: float, objective: Objective
) -> Tensor:
    step = STEP_SHARE * eps
    return pgd(
        model,
        x,
        y,
        eps=eps,
        steps=STEPS,
        step_size=step,
        start_noise=noise,
        objective=objective,
        checked=True,
    )


class Merged(nn.Module):
    """A model with k logits for each of C classes: its logit c is the largest of logits c, C + c,
    ..., (N, C)."""

    def __init__(self, model: nn.Module, classes: int) -> None:
        super().__init__()
        self.model, self.classes = model, classes

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x).view(len(x), -1, self.classes).amax(1)


def mean_draw(model: nn.Module, draws: int, x: Tensor) -> Tensor:
    """Return the mean log-probabilities, (N, C), over passes of a randomised model (EOT),
    recomputed for the gradient.

    Source: Athalye, Engstrom, Ilyas, Kwok, ICML 2018, arXiv:1707.07397.
    """
    passes = (checkpoint(model, x, use_reentrant=False) for _ in range(draws))
    total: Tensor = sum(logits.log_softmax(1) for logits in passes)
    return total / draws


def deep_facts(
    model: nn.Module, x: Tensor, y: Tensor, noise: Tensor, eps: float, *, random: bool
) -> dict[str, int]:
    """Return counts as in `ModelFacts` for PGD-20 made for a kind of model, which the caller has
    frozen.

    For a `random` model it attacks the margin, with `one` draw for each step or the `mean` gradient
    of many (EOT); mean probabilities decide. For a `Merged` one: the cross-entropy of all `raw`
    logits, or the margin of the `merged` ones.
    """

    def correct_after(attacked: Model, objective: Objective, judge: Model) -> Tensor:
        x_adv = _pgd(attacked, x, y, noise, eps, objective)
        with torch.no_grad():
            return judge(x_adv).max(1).indices == y

    def mean_of_draws(x: Tensor) -> Tensor:
        return torch.stack([model(x).softmax(1) for _ in range(JUDGED)]).mean(0)

    found = {"images": len(y)}
    if random:
        mean_gradient = partial(mean_draw, model, DRAWS)
        one, mean = (
            correct_after(attacked, margin, mean_of_draws) for attacked in (model, mean_gradient)
        )
        found |= {"draws": DRAWS, "one_correct": int(one.sum()), "mean_correct": int(mean.sum())}
        found["only_mean_correct"] = int((mean & ~one).sum())
    if isinstance(model, Merged):
        raw, merged = (
            correct_after(model.model, cross_entropy, model),
            correct_after(model, margin, model),
        )
        width = int(logits_of(CountingModel(model.model), x[:2]).shape[1])
        found |= {"classes": model.classes, "logits": width, "raw_correct": int(raw.sum())}
        found |= {
            "merged_correct": int(merged.sum()),
            "only_merged_correct": int((merged & ~raw).sum()),
        }
    return found
