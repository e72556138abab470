"""RoBal: a cosine classifier with class-aware margins and a boundary that is shifted at test time.

Source: Wu et al., Adversarial Robustness under Long-Tailed Distribution, CVPR 2021,
arXiv:2104.02703.
"""

from typing import Literal

from torch import Tensor, nn

from taet import losses
from taet.distributed import global_mean
from taet.errors import UserError
from taet.losses import kl_divergence
from taet.losses.long_tail import less_margin, log_prior, positive_counts
from taet.methods.base import Adversarial, Loss, Method, Task, published, refuse_smoothing
from taet.models.classifier import Head
from taet.settings.types import NonNegative, Positive

MANY_CLASSES = 100

SHARED = {
    "margin": 0.1,
    "scale": 10.0,
    "tau_b": 0.0,
    "tau_m": 0.0,
    "beta": 6.0,
    "gamma": 1 / 32,
    "tau_p": 0.0,
}
# What differs by form, and whether there are many classes: the public code's files for CIFAR-10-LT
# and CIFAR-100-LT.
PUBLISHED = {
    ("R", False): {"tau_b": 1.5, "tau_m": 0.3},
    ("N", False): {"tau_b": 1.2, "tau_p": 0.1},
    ("R", True): {"margin": 0.3, "gamma": 1 / 16, "tau_p": 1.7},
    ("N", True): {"margin": 0.2, "beta": 3.0, "tau_p": 1.5},
}


class RoBal(Method):
    """Loss: mean CE(u, y) + beta mean KL(z / s || z' / s).

    z = f(x) and z' = f(x') are logits of a cosine head of scale s. The logits u of the loss have a
    margin, which is larger for larger classes, and the log prior:

        u_c = z'_c - [c = y] (s m + tau_m log(n_c / n_min)) + tau_b log pi_c

    Deployed logits are z - tau_p log pi, also for attacks on the deployed model. An outer loss
    other than cross-entropy replaces CE(u, y) and uses z' without m, tau_m and tau_b. If the outer
    loss contains the log prior (balanced-softmax, logit-adjustment), tau_p is 0 unless given, so
    that the prior does not count twice. The constants were published for one imbalance ratio each,
    50 and 10; we use them at every ratio. The rounded values 0.031 and 0.0078 are in `official`
    only.

    Differences from the public code:

    - Our attack is the protocol's, on z' as in evaluation. The code attacks z' / s from U(0, eps),
      not clipped to [0, 1] before the first step.
    - Our learning rate falls once per milestone. The code multiplies the factor in every epoch,
      which freezes training after epoch 62 of 80.
    - We use log softmax and two forward passes per step, the code log(q + 1e-12) and four.
    - The code deploys its R model of CIFAR-10-LT with scale 1, which hides gradients from attacks.
      Ours keeps s and has the same predictions.
    """

    title = "RoBal"
    reference = "Wu et al., CVPR 2021, arXiv:2104.02703"
    official = published(
        threat={"eps": 0.031, "step_size": 0.0078, "steps": 5, "start": "positive"},
        training={
            "epochs": 80,
            "batch_size": 64,
            "weight_decay": 2e-4,
            "milestones": (59 / 80, 74 / 80),
        },
    )

    class Config(Method.Config):
        """The form, and constants that replace the published ones of that form."""

        form: Literal["R", "N"] = "R"
        """Published constants: R for robust, N for natural accuracy."""
        margin: NonNegative | None = None
        """Margin m of every cosine. Default: R 0.1, N 0.1; with 100 classes or more R 0.3, N
        0.2."""
        scale: Positive | None = None
        """Factor s of the cosines, in training and evaluation. Default: 10."""
        tau_b: NonNegative | None = None
        """Factor of the log prior in the logits of the loss. Default: R 1.5, N 1.2; with 100
        classes or more 0."""
        tau_m: NonNegative | None = None
        """Factor of log(n_c / n_min) in the margin. Default: R 0.3, N 0; with 100 classes or more
        0."""
        beta: NonNegative | None = None
        """Factor of the divergence. Default: 6; N with 100 classes or more 3."""
        gamma: NonNegative | None = None
        """Added to the norm of each class weight in the head. Default: 1/32; R with 100 classes or
        more 1/16."""
        tau_p: NonNegative | None = None
        """Factor of the log prior that is subtracted from the deployed logits. Default: R 0, N 0.1;
        with 100 classes or more R 1.7, N 1.5; 0 if the outer loss contains the prior."""

    def __init__(self, config: Config, task: Task) -> None:
        super().__init__(config, task)
        refuse_smoothing(
            "robal",
            task,
            "its margins are defined for one label; allowed: --outer.label-smoothing 0",
        )
        self.constants = constants(config, task)
        for name in ("margin", "tau_b", "tau_m"):
            value = getattr(config, name)
            if value is not None and task.outer.name != "cross-entropy":
                got = (
                    f"got {name} {value:g} and the outer loss {task.outer.name}, which takes the "
                    "margin loss's place"
                )
                raise UserError(f"robal: {got}; allowed: with cross-entropy only")

    @staticmethod
    def head(config: Config, task: Task) -> Head:
        used = constants(config, task)
        return Head("cosine", scale=used["scale"], gamma=used["gamma"])

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, adversarial: Adversarial) -> Loss:
        natural, logits = model(x), model(adversarial.x)
        scale = self.constants["scale"]
        takes_margins = self.task.outer.name == "cross-entropy"
        rebalanced = self.with_margins(logits, y) if takes_margins else logits
        label = global_mean(self.outer(rebalanced, y))
        kl = global_mean(kl_divergence(natural / scale, logits / scale))
        return Loss(label + self.constants["beta"] * kl, {"label": label, "kl": kl}, logits)

    def with_margins(self, logits: Tensor, y: Tensor) -> Tensor:
        """Logits u (N, C) for the cross-entropy, from those of the model."""
        c = self.constants
        counts = positive_counts(self.drawn_class_counts.to(logits.dtype))
        margins = c["scale"] * c["margin"] + c["tau_m"] * (counts / counts.min()).log()
        return less_margin(logits, y, margins) + c["tau_b"] * log_prior(counts)

    def offset(self) -> Tensor:
        return self.constants["tau_p"] * log_prior(self.drawn_class_counts)


def constants(config: RoBal.Config, task: Task) -> dict[str, float]:
    """Return the constants of the configuration, and the published ones where it has none."""
    used = SHARED | PUBLISHED[config.form, task.num_classes >= MANY_CLASSES]
    if losses.find(task.outer.name).adds_prior:
        used["tau_p"] = 0.0
    return used | config.model_dump(exclude={"form"}, exclude_none=True)
