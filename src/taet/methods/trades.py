"""TRADES: cross-entropy on clean images, and a divergence from clean to attacked predictions.

Source: Zhang et al., Theoretically Principled Trade-off between Robustness and Accuracy, ICML 2019,
arXiv:1901.08573.
"""

from torch import Tensor, nn

from taet.distributed import global_mean
from taet.losses.consistency import kl_divergence
from taet.methods.base import Adversarial, Loss, Method, published
from taet.settings.types import NonNegative


def trades_loss(
    method: Method, natural: Tensor, logits: Tensor, y: Tensor, weights: Tensor | float = 1.0
) -> Loss:
    """Return mean w [CE(f(x), y) + beta KL(f(x) || f(x'))], with the method's beta and weights w
    (N,) of the images."""
    label = global_mean(weights * method.outer(natural, y))
    kl = global_mean(weights * kl_divergence(natural, logits))
    return Loss(label + method.config.beta * kl, {"label": label, "kl": kl}, logits)


class Trades(Method):
    """Loss: mean CE(f(x), y) + beta mean KL(f(x) || f(x')), where x' raises the KL.

    The gradient flows through both predictions, as in the public code: the target of the KL is not
    detached. Both terms share one forward pass of the clean images. The public code makes a second
    one, which only updates the statistics of batch normalisation once more. The gradient of the KL
    is zero at x itself, so the attack needs start noise.

    Official: a WRN-34-10, stopped two epochs after the first decay, with the rounded values 0.031
    and 0.007.
    """

    title = "TRADES"
    reference = "Zhang et al., ICML 2019, arXiv:1901.08573"
    label_attack = False
    official = published(
        threat={"eps": 0.031, "step_size": 0.007, "steps": 10, "start": "gaussian"},
        training={"epochs": 76, "weight_decay": 2e-4, "milestones": (74 / 76,)},
    )

    class Config(Method.Config):
        """Factor of the divergence."""

        beta: NonNegative = 6.0
        """Factor of the divergence, 1 / lambda of the paper (its section 5)."""

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, adversarial: Adversarial) -> Loss:
        return trades_loss(self, model(x), model(adversarial.x), y)
