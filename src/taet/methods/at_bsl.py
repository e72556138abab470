"""Adversarial training with balanced softmax (AT-BSL): class prior in the outer loss, plain attack.

Source: Yue et al., Revisiting Adversarial Training under Long-Tailed Distributions, CVPR 2024,
arXiv:2403.10073.
"""

from taet.errors import UserError
from taet.methods.base import Method, Task, published


class AdversarialTrainingBalancedSoftmax(Method):
    """Loss: mean CE(f(x') + log n, y), with the class counts n of the training images.

    Validation images are not counted.

    The attack raises the cross-entropy of f(x') itself. The prior is not part of the deployed
    model. Under --sampling, n are the images that an epoch draws on average: with class-balanced
    they are equal, and the method is AT.

    Official: with AutoAugment, the default of the public code, which its authors call AT-BSL-AuA;
    their AT-BSL is `--augment crop-flip`. From the first decay on, that code selects the epoch that
    is best under PGD-20 on the test set.
    """

    title = "AT-BSL"
    own_outer = "balanced-softmax"
    reference = "Yue et al., CVPR 2024, arXiv:2403.10073"
    official = published(
        threat={"eps": 8 / 255, "step_size": 2 / 255, "steps": 10, "start": "gaussian"},
        training={
            "epochs": 100,
            "weight_decay": 5e-4,
            "milestones": (74 / 100, 89 / 100, 99 / 100),
            "augment": "autoaugment",
        },
    )

    def __init__(self, config: Method.Config, task: Task) -> None:
        name = task.outer.name
        if name != self.own_outer:
            raise UserError(
                f"at-bsl: got the outer loss {name}; its loss is balanced softmax: use `at --outer "
                f"{name}`"
            )
        super().__init__(config, task)
