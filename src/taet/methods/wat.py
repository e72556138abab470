"""WAT: worst-class adversarial training, with class weights by Hedge from validation losses.

Source: Li, Liu, WAT: Improve the Worst-Class Robustness in Adversarial Training, AAAI 2023.
"""

import torch
from torch import Tensor, nn

from taet.methods.base import Adversarial, ClassFeedback, Loss, Method, Task
from taet.methods.trades import trades_loss
from taet.settings.types import NonNegative

FEEDBACKS = 100  # of the published run, one per epoch; its rate is for this number


class WorstClass(Method):
    """Loss: mean (w_y + w_0) [CE(f(x), y) + beta KL(f(x) || f(x'))], where x' raises the KL.

    The weights are w = C softmax(eta times the sum of costs so far), over the C classes and, as
    w_0, all of them together. Before the first feedback all are 1. Costs are CE + beta KL, whatever
    the outer loss, on validation images with the examples of the curve (PGD on CE). The cost of w_0
    is the mean of the class costs. eta is for 100 feedbacks, as published; a run with fewer learns
    as much in total. The target of the KL is not detached.

    Differences from the public code (boqili/WAT): it uses PGD on the KL, assumes classes of equal
    size in these means, and loses the costs on resuming.
    """

    title = "WAT"
    reference = "Li, Liu, AAAI 2023"
    deviations = ("weights of the classes follow their loss on validation images",)
    label_attack = False
    needs_feedback = True

    class Config(Method.Config):
        """The divergence, and the rate of the weights."""

        beta: NonNegative = 6.0
        """Factor of the divergence (public code)."""
        eta: NonNegative = 0.1
        """Rate of the weights, for a run with 100 points of the curve (public code)."""

    def __init__(self, config: Config, task: Task) -> None:
        super().__init__(config, task)
        self.rate = config.eta * FEEDBACKS / len(task.monitored_epochs)
        self.costs = nn.Buffer(torch.zeros(task.num_classes + 1, dtype=torch.float64))
        self.weights = nn.Buffer(torch.ones(task.num_classes + 1))

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, adversarial: Adversarial) -> Loss:
        return trades_loss(
            self, model(x), model(adversarial.x), y, self.weights[y] + self.weights[-1]
        )

    def feedback(self, epoch: int, seen: ClassFeedback) -> None:
        costs = seen.rates(seen.clean_loss + self.config.beta * seen.divergence)
        self.costs.add_(torch.cat([costs, costs.mean()[None]]))
        self.weights.copy_(self.task.num_classes * (self.rate * self.costs).softmax(0))
