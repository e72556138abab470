"""CGR: weights, divergences and margins of the classes from their confusion under attack, on validation images.

Source: CGRm, arXiv:2608.09688.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from taet.attacks.objectives import natural_divergence
from taet.distributed import global_mean
from taet.errors import UserError
from taet.fields import NonNegative, OnlyWith, Share
from taet.losses import kl_divergence
from taet.losses.long_tail import positive_counts
from taet.methods.base import Adversarial, Attack, Loss, Method, Seen, Task
from taet.methods.robust_lt import CountsRule
from taet.settings import Outer

# Constants of the public code.
KAPPA, MOMENTUM = 0.5, 0.8
WEIGHTS, BETAS = (
    (0.25, 3.0),
    (0.5, 2.0),
)  # smallest and largest weight and divergence of a class, before their mean is 1
BETA = 4.0
TOP, EDGE, HEAD = 3, 5.0, 0.5  # rivals of a class, the largest edge, the exponent of a rival's share of images
MARGIN = 0.5
POINTS = 11  # the published feedback is every 10 of 110 epochs
FACTORS = {"at": 0.05, "trades": 0.1}


def next_score(score: Tensor, robust: Tensor) -> Tensor:
    """Scores (C,) after feedback: .8 s + .2 raw / mean raw with raw = [mean R - R_c]+ + kappa (1 - R_c).

    Their mean stays 1.
    """
    raw = (robust.mean() - robust).clamp(min=0) + KAPPA * (1 - robust)
    mean = raw.mean()
    found = torch.where(mean > 0, raw / mean.clamp(min=torch.finfo(raw.dtype).tiny), 1.0)
    return MOMENTUM * score + (1 - MOMENTUM) * found


def scaled_and_clipped(values: Tensor, low: float, high: float) -> Tensor:
    """Values (C,) with a mean of 1, clipped, and with a mean of 1 again."""
    clipped = (values / values.mean()).clamp(low, high)
    return clipped / clipped.mean()


def class_weights(score: Tensor, strength: float = 1.0) -> Tensor:
    """Weight of each class from its score, 1 + l s, (C,)."""
    return scaled_and_clipped(1 + strength * score, *WEIGHTS)


def class_betas(score: Tensor, share: float) -> Tensor:
    """Factor of the divergence of each class, 4 times 1 + share (s / mean s - 1), (C,)."""
    return BETA * scaled_and_clipped(1 + share * (score / score.mean() - 1), *BETAS)


def rivals(confusion: Tensor, features: Tensor, class_counts: Tensor, top: int = TOP) -> Tensor:
    """How much each class must be kept from which others: edges (C, C), 0 to 5, at most `top` in a row.

    Of confusion K (C, C) and sums of features (C, D): K_ij / sum_j K_ij (n_j / n_max)^.5 over the distance between the
    directions of the two classes' features; the largest of each row are kept and divided by their mean over all rows.
    """
    shares = confusion / confusion.sum(1, keepdim=True).clamp(min=1)
    directions = features / features.norm(dim=1, keepdim=True).clamp(min=1e-12)
    distance = torch.cdist(directions, directions).clamp(min=1e-6)
    edges = shares * (class_counts / class_counts.max()) ** HEAD / distance
    edges = edges.fill_diagonal_(0)
    kept = edges.topk(min(top, len(edges)), dim=1)
    edges = torch.zeros_like(edges).scatter(1, kept.indices, kept.values)
    return (edges / (edges.sum() / (edges > 0).sum().clamp(min=1)).clamp(min=1e-12)).clamp(max=EDGE)


class ConfusionGuided(Method):
    """The label term with class prior, weights, divergences and margins by class, in class-wise balls by counts.

    at       mean w_y CE(f(x') + log pi, y) + l_m M, on x' that raises that cross-entropy without the weights
    trades   mean CE(f(x) + log pi, y) + mean w_y beta_y KL(f(x) || f(x')) + l_m M, on x' that raises the KL; the
             prediction on x is detached

    M = mean w_y sum_j G_yj [1/2 - z'_y + z'_j]+ on attacked logits z'. Scores s start at 1 and move with the robust
    accuracy R of the classes. Weights w and factors beta follow from them; both are about (1 + s) / 2, so that the KL
    of a class has the weight twice. The graph G comes from confusion and features (`rivals`). The ball of a class is
    that of robust-lt with at.

    The public code evaluates, learns and selects on the test images. Here it learns from the validation split, at the
    points of the curve that are nearest to each eleventh of the epochs, as often as published. Without `balanced` there
    is no log pi; by the log of the public code that costs nearly all of its gain, and the other parts hardly any.
    """

    title = "CGR"
    reference = "arXiv:2608.09688, 2026"
    deviations: tuple[str, ...] = ("training eps and step size differ by class", "weights or margins follow validation")
    needs_feedback = True

    class Config(Method.Config):
        """The form of the loss and its parts, each of which can be turned off."""

        form: Literal["at", "trades"] = "at"
        """The loss that the parts are added to."""
        balanced: bool = True
        """Add log pi to the logits in the label term, and under at in the attack: balanced softmax."""
        weights: bool = True
        """Weight the classes by their scores; off: all scores stay 1, so that the divergences are equal too."""
        class_beta: Annotated[Share, OnlyWith(form="trades")] = 0.5
        """trades, with weights: dependence of the divergence factor on the score of a class; 0: 4 for all classes."""
        margin: NonNegative | None = None
        """Factor l_m of the margins; 0: none. Default: 0.05 with at, 0.1 with trades (public code)."""
        budget: bool = True
        """Balls by class counts, as robust-lt."""

    weights: Tensor
    betas: Tensor
    score: Tensor
    graph: Tensor
    factor: Tensor
    prior: Tensor

    def __init__(self, config: Config, task: Task) -> None:
        super().__init__(config, task)
        self.margin = FACTORS[config.form] if config.margin is None else config.margin
        self.uses_features = self.margin > 0
        uses = config.budget, config.weights or self.margin > 0
        self.deviations = tuple(text for text, used in zip(self.deviations, uses, strict=True) if used)
        if task.weighting != "none" and (config.form == "trades" or config.balanced):
            why = "its attack raises no loss on labels" if config.form == "trades" else "it balances its attack itself"
            raise UserError(f"cgr: got the weighting {task.weighting}; {why}: only none")
        if not config.weights and config.class_beta != ConfusionGuided.Config.default("class_beta"):
            raise UserError(f"method class beta: got {config.class_beta:g}; allowed: with weights only")
        targets = [(point * task.epochs / POINTS) for point in range(1, POINTS)]
        self.points = {min(task.watched, key=lambda epoch: abs(epoch + 1 - target)) for target in targets}
        self.budget = CountsRule(task, 0.3, 0.8)
        ones = torch.ones(task.num_classes)
        buffers = {"weights": ones, "betas": BETA * ones, "score": ones, "factor": ones, "graph": 0 * ones.diag()}
        for name, values in buffers.items():
            self.register_buffer(name, values.clone())
        self.register_buffer("prior", positive_counts(self.exposure), persistent=False)

    @staticmethod
    def outer_loss(config: Config, task: Task) -> Outer:
        if not config.balanced:
            return task.outer
        if task.outer.name != "cross-entropy":
            raise UserError(
                f"cgr: got the outer loss {task.outer.name}, and it balances itself: add --method.no-balanced"
            )
        return task.outer.replace(name="balanced-softmax")

    def start_epoch(self, epoch: int, predicted_counts: Tensor) -> None:
        if self.config.budget:
            self.factor.copy_(self.budget.factors(epoch))

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, attack: Attack) -> Adversarial:
        if self.config.budget:
            attack = attack.scaled(self.factor[y])
        if self.config.form == "trades":
            return Adversarial(attack(model, x, y, natural_divergence(model, x)))
        if self.config.balanced:
            attack = replace(attack, prior=self.prior)
        return Adversarial(attack(model, x, y))

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, adversarial: Adversarial) -> Loss:
        natural = model(x) if self.config.form == "trades" else None
        logits = model(adversarial.x)
        if natural is None:
            parts = {"label": global_mean(self.weights[y] * self.outer(logits, y))}
        else:
            strength = self.weights[y] * self.betas[y]
            parts = {
                "label": global_mean(self.outer(natural, y)),
                "kl": global_mean(strength * kl_divergence(natural.detach(), logits)),
            }
        if self.margin:
            own = logits.gather(1, y[:, None])
            behind = (self.graph[y] * (MARGIN - own + logits).clamp(min=0)).sum(1)
            parts["margin"] = self.margin * global_mean(self.weights[y] * behind)
        total = torch.stack([*parts.values()]).sum() if len(parts) > 1 else parts["label"]
        return Loss(total, parts if len(parts) > 1 else {}, logits)

    def feedback(self, epoch: int, seen: Seen) -> None:
        if epoch in self.points:
            self.update(seen)

    def update(self, seen: Seen) -> None:
        """Move scores, weights, divergences and the graph by what was seen."""
        if self.config.weights:
            self.score.copy_(next_score(self.score.double(), seen.rates(seen.robust)))
            self.weights.copy_(class_weights(self.score))
            if self.config.form == "trades":
                self.betas.copy_(class_betas(self.score, self.config.class_beta))
        if seen.features is not None:
            edges = rivals(seen.confusion, seen.features, self.exposure.double())
            self.graph.copy_(MOMENTUM * self.graph + (1 - MOMENTUM) * edges)
