"""FARE: adversarial fine-tuning of a network towards its own clean features, without labels.

Source: Schlarmann et al., Robust CLIP, ICML 2024, arXiv:2402.12336, equation 3.
"""

from torch import Tensor, nn

from taet.distributed import global_mean
from taet.losses.long_tail import full_precision
from taet.methods.base import (
    Adversarial,
    Attack,
    Loss,
    Method,
    Task,
    refuse_outer,
    refuse_smoothing,
)
from taet.network import copied


class Fare(Method):
    """Loss: mean ||h(x') - h0(x)||^2, with features h, and h0 of the network it starts from.

    The attack raises the same distance. No label enters: imbalance acts through --training.sampling
    alone, and the head is not trained. It is a first stage from a pretrained network; train the
    head in a run that begins from its weights.
    """

    title = "FARE"
    reference = "Schlarmann et al., ICML 2024, arXiv:2402.12336"
    label_attack = False
    uses_features = True
    uses_labels = False

    def __init__(self, config: Method.Config, task: Task) -> None:
        super().__init__(config, task)
        refuse_outer("fare", task, "its loss has no labels and takes none")
        refuse_smoothing("fare", task, "its loss has no labels; allowed: --outer.label-smoothing 0")
        self.start: nn.Module | None = None

    def begin(self, model: nn.Module) -> None:
        if self.start is None:
            self.start = copied(model).eval().requires_grad_(False)

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, attack: Attack) -> Adversarial:
        assert self.start is not None
        target = self.start.features(x)  # type: ignore[operator]
        x_adv = attack(model.features, x, y, lambda features, _: distance(features, target))  # type: ignore[arg-type]
        return Adversarial(x_adv, {"target": target})

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, adversarial: Adversarial) -> Loss:
        features: Tensor = model.features(adversarial.x)  # type: ignore[operator]
        total = global_mean(distance(features, adversarial.info["target"]))
        return Loss(total, {}, model.classify(features.detach()))  # type: ignore[operator]


def distance(features: Tensor, target: Tensor) -> Tensor:
    """Squared Euclidean distance of features (N, D), at least in float32, (N,)."""
    return (full_precision(features) - full_precision(target)).square().sum(1)
