"""REAT: re-balanced adversarial examples, balanced softmax, and a regulariser of tail features.

Source: Li et al., Alleviating the Effect of Data Imbalance on Adversarial Training,
arXiv:2307.10205, 2023.
"""

from dataclasses import replace
from typing import Annotated, Any

from torch import Tensor, nn

from taet.distributed import global_mean
from taet.errors import UserError
from taet.losses import rebalancing_weights
from taet.losses.tail_margin import Form, tail_classes, tail_margin
from taet.methods.base import Adversarial, Attack, Facts, Loss, Method, Task, published
from taet.settings.types import NonNegative, OnlyWith


class Reat(Method):
    """Loss: mean CE(f(x') + log n, y) + TAIL(h(x'), y).

    x' comes from PGD on an objective weighted by class (RBL).

    RBL uses the classes predicted in the previous epoch. Under sign steps with BN in eval mode, as
    in the protocols and the public code, it changes no example. Another outer loss of the run
    replaces balanced softmax (the paper's table 1). TAIL is by default the term of the public code:
    it holds the features of tail images fixed and, in most batches, pulls all others towards them,
    about 1/D as strongly as pairwise divergences with D features would. Equation 3 (`form`) pulls
    together images of one class only, and pushes those of other classes apart. See
    `taet.losses.rebalancing_weights`, `balanced_softmax` and `tail_margin`.

    Official: the public code selects the epoch that is best under PGD-20 on the test set. Its start
    U(-eps, eps) is not clipped to [0, 1] before the first step; ours is.
    """

    title = "REAT"
    reference = "Li et al., arXiv:2307.10205, 2023"
    official = published(
        threat={"eps": 8 / 255, "step_size": 2 / 255, "steps": 10, "start": "uniform"},
        training={"epochs": 80, "weight_decay": 5e-4, "milestones": (60 / 80, 75 / 80)},
    )

    class Config(Method.Config):
        """The three parts, each of which can be turned off, and the form of the regulariser."""

        rbl: bool = True
        """Weight the attack's objective by class (RBL in the paper)."""
        bsl: bool = True
        """Balanced softmax as the label loss, unless the run has another; off: cross-entropy."""
        tail: bool = True
        """Regularise the features of tail classes (TAIL in the paper)."""
        form: Annotated[Form, OnlyWith(tail=True)] = "official"
        """official: TAIL as in the public code; paper: equation 3; per-pair: official, with
        pairwise divergences."""
        tail_weight: Annotated[NonNegative, OnlyWith(tail=True)] = 1.0
        """Factor of TAIL (public code)."""

    def __init__(self, config: Config, task: Task) -> None:
        super().__init__(config, task)
        if config.rbl and task.weighting != "none":
            raise UserError(
                f"reat: got the weighting {task.weighting}; it has weights of its own: add "
                "--method.no-rbl"
            )
        self.weights = nn.Buffer(
            rebalancing_weights(self.drawn_class_counts, self.drawn_class_counts)
        )
        self.tail = nn.Buffer(tail_classes(self.class_counts, config.form), persistent=False)

    @classmethod
    def facts(cls, config: Config) -> Facts:
        own_outer = "balanced-softmax" if config.bsl else None
        return replace(super().facts(config), own_outer=own_outer, uses_features=config.tail)

    def start_epoch(self, epoch: int, predicted_counts: Tensor) -> None:
        self.weights.copy_(rebalancing_weights(self.drawn_class_counts, predicted_counts))

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, attack: Attack) -> Adversarial:
        weighted = replace(attack, weights=self.weights) if self.config.rbl else attack
        return Adversarial(weighted(model, x, y))

    def loss(self, model: Any, x: Tensor, y: Tensor, adversarial: Adversarial) -> Loss:
        if not self.config.tail:
            return self.label_loss(model, adversarial.x, y)
        features = model.features(adversarial.x)
        logits = model.classify(features)
        label = global_mean(self.outer(logits, y))
        tail = tail_margin(features, y, self.drawn_class_counts, self.config.form, self.tail)
        return Loss(label + self.config.tail_weight * tail, {"label": label, "tail": tail}, logits)
