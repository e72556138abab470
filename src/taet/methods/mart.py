"""MART: boosted cross-entropy, and a divergence that counts misclassified images more.

Source: Wang et al., Improving Adversarial Robustness Requires Revisiting Misclassified Examples,
ICLR 2020.
"""

from torch import Tensor, nn

from taet.distributed import global_mean
from taet.losses.consistency import misclassification_kl, runner_up_penalty
from taet.methods.base import Adversarial, Loss, Method, published
from taet.settings.types import NonNegative


class Mart(Method):
    """Loss: mean BCE(f(x'), y) + beta mean KL(f(x) || f(x')) (1 - p_y(x)), on PGD examples.

    BCE is the cross-entropy, for which the run's outer loss stands, plus a penalty on the most
    likely wrong class. The penalty uses the logits with the outer loss's shift by the class prior,
    and has its class weights. Nothing is detached, as in the public code: gradients flow through p,
    the factor and f(x') (`taet.losses.consistency`).

    Official: a ResNet-18, eps 0.031, step 0.007 (rounded). WRN-34-10: lr 0.1, weight decay 7e-4,
    beta 6, 90 epochs.
    """

    title = "MART"
    reference = "Wang et al., ICLR 2020"
    official = published(
        threat={"eps": 0.031, "step_size": 0.007, "steps": 10, "start": "gaussian"},
        training={
            "epochs": 120,
            "lr": 0.01,
            "weight_decay": 3.5e-3,
            "milestones": (74 / 120, 89 / 120, 99 / 120),
        },
    )

    class Config(Method.Config):
        """Factor of the divergence."""

        beta: NonNegative = 5.0
        """Factor of the divergence (public code for the ResNet-18; 6 for the WRN-34-10)."""

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, adversarial: Adversarial) -> Loss:
        natural = model(x)
        logits = model(adversarial.x)
        penalty = self.outer.weighed(runner_up_penalty(self.outer.shifted(logits), y), y)
        label = global_mean(self.outer(logits, y) + penalty)
        kl = global_mean(misclassification_kl(natural, logits, y))
        return Loss(label + self.config.beta * kl, {"label": label, "kl": kl}, logits)
