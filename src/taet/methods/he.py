"""HE: hypersphere embedding, adversarial training on cosines with a margin.

Source: Pang et al., Boosting Adversarial Training with Hypersphere Embedding, NeurIPS 2020,
arXiv:2002.08619.
"""

from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn

from taet.distributed import global_mean
from taet.losses import kl_divergence
from taet.losses.long_tail import less_margin
from taet.methods.base import (
    Adversarial,
    Facts,
    Loss,
    Method,
    Task,
    published,
    refuse_smoothing,
)
from taet.models.classifier import Head
from taet.settings.types import NonNegative, OnlyWith, Positive

BETA = {"trades": 6.0, "alp": 0.5}  # public code


class HypersphereEmbedding(Method):
    """Loss: the outer loss of cosines with a margin, HE(z, y) = CE(z - s m at the label, y).

    z = s cos are the logits of a cosine head. There are three variants:

        pgd      mean HE(f(x'), y)
        trades   mean HE(f(x), y) + beta mean KL(f(x) || f(x')), where x' raises that divergence
        alp      mean [HE(f(x), y) + HE(f(x'), y)] / 2 + beta mean (cos(x) - cos(x'))^2

    The last mean is also over classes. Attacks and divergences use s cos without the margin.

    Differences from the public code:

    - Here the normalisation of the head is differentiated. The public code overwrites the weights
      with their directions in every forward pass.
    - Here logits keep the factor s. The public code uses bare cosines, whose flat softmax can
      mislead an attack.

    Official: the public code's command for pgd, with s 10, on a WRN-34-10, with the rounded values
    0.031 and 0.007. Its defaults are s 15 and weight decay 2e-4, as for trades; alp has s 20 and m
    0.3.
    """

    title = "HE"
    reference = "Pang et al., NeurIPS 2020, arXiv:2002.08619"
    official = published(
        threat={"eps": 0.031, "step_size": 0.007, "steps": 10, "start": "gaussian"},
        training={"epochs": 77, "weight_decay": 5e-4, "milestones": (74 / 77,)},
        model={"normalize": "data"},
        method={"scale": 10.0},
    )

    class Config(Method.Config):
        """The form of the loss and the constants of the cosines."""

        variant: Literal["pgd", "trades", "alp"] = "pgd"
        """pgd: cross-entropy on attacked images; trades, alp: also on clean images, with a term
        that couples both."""
        scale: Positive = 15.0
        """Factor s of the cosines, in training and evaluation (public code)."""
        margin: Annotated[float, Field(ge=0, le=2)] = 0.2
        """Margin m, subtracted from the cosine of the label in the loss (public code)."""
        beta: Annotated[NonNegative | None, OnlyWith(variant=("trades", "alp"))] = None
        """Factor of the coupling term. Default: 6 with trades, 0.5 with alp (public code)."""

    def __init__(self, config: Config, task: Task) -> None:
        super().__init__(config, task)
        refuse_smoothing(
            "he", task, "its margin is defined for one label; allowed: --outer.label-smoothing 0"
        )
        self.beta = BETA.get(config.variant, 0.0) if config.beta is None else config.beta

    @classmethod
    def facts(cls, config: Config) -> Facts:
        return replace(super().facts(config), label_attack=config.variant != "trades")

    @staticmethod
    def head(config: Config, task: Task) -> Head:
        return Head("cosine", scale=config.scale)

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, adversarial: Adversarial) -> Loss:
        if self.config.variant == "pgd":
            logits = model(adversarial.x)
            return Loss(global_mean(self.margin_loss(logits, y)), {}, logits)
        natural, logits = model(x), model(adversarial.x)
        if self.config.variant == "trades":
            label = global_mean(self.margin_loss(natural, y))
            name, coupling = "kl", global_mean(kl_divergence(natural, logits))
        else:
            label = global_mean(self.margin_loss(natural, y) + self.margin_loss(logits, y)) / 2
            moved = (natural - logits) / self.config.scale  # of the cosines
            name, coupling = "mse", global_mean(moved.square().mean(1))
        return Loss(label + self.beta * coupling, {"label": label, name: coupling}, logits)

    def margin_loss(self, logits: Tensor, y: Tensor) -> Tensor:
        """Return the outer loss (N,) on logits s cos (N, C), with the margin subtracted from the
        label's cosine."""
        margin = logits.new_full((), self.config.scale * self.config.margin)
        return self.outer(less_margin(logits, y, margin), y)
