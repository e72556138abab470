"""LAS-AT: learnable attack strategy, a network that chooses how each image is attacked.

Source: Jia et al., LAS-AT: Adversarial Training with Learnable Attack Strategy, CVPR 2022,
arXiv:2203.06616.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from taet.attacks.ball import choose, frozen
from taet.attacks.noise import draw_noise
from taet.distributed import average_gradients, global_mean
from taet.losses import cross_entropy
from taet.losses.long_tail import full_precision
from taet.methods.base import (
    Adversarial,
    Attack,
    Facts,
    Loss,
    Method,
    Step,
    Task,
    published,
    refuse_smoothing,
)
from taet.models.resnet import LAYOUTS, residual_body
from taet.network import computed_tensors
from taet.randomness import seeded
from taet.settings.types import Count, NonNegative, Positive, Rule

# levels are published in 1/255 at an eps of 8/255: each is an eighth of the threat's eps
UNIT = 1 / 8
# of the attack that measures the look-ahead copy (public code)
PROBE_STEPS, PROBE_STEP, RESTARTS = 10, 2 * UNIT, 2
LARGEST_NORM = 1.0  # of the strategy's gradient, which is clipped (public code)
LARGEST_LOSS = 10.0  # at which the reward clips the attacked loss (public code)

LEVELS = Rule(
    lambda levels: 0 <= levels[0] <= levels[1] <= 255, "lowest and highest, within 0 to 255"
)
Range = Annotated[tuple[int, int], LEVELS]


class Strategy(nn.Module):
    """Map images (N, C, H, W) to the logits (N, options) of one choice per head: how strongly each
    image is attacked.

    A ResNet-18 whose widths are 1, 2, 4 and 8 times `width` (64 is published) with linear heads.
    The published head for the kind of attack has one option only, of log-probability 0: it is left
    out.
    """

    def __init__(self, options: Sequence[int], width: int, channels: int) -> None:
        super().__init__()
        widths = tuple(width * factor for factor in (1, 2, 4, 8))
        self.body = residual_body(LAYOUTS["resnet18"]._replace(widths=widths), channels)
        self.heads = nn.ModuleList(nn.Linear(8 * width, count) for count in options)

    def forward(self, x: Tensor) -> list[Tensor]:
        features = self.body(x)
        return [head(features) for head in self.heads]


class LearnableAttackStrategy(Method):
    """Loss: mean CE(f(x'), q), x' from PGD with settings that a network draws for each image.

    The strategy draws eps, steps and step size. The target q has `label_mass` on the label, and the
    rest spread over the other classes. Every `interval` steps the strategy learns by REINFORCE, on
    mean(-log p(choices)) times the reward of the batch, without a baseline:

        R = min(CE(f(x'), y), 10) + robust_reward * robust accuracy + clean_reward * clean accuracy

    Both accuracies are those of a copy of the model after one step on x', by plain SGD without
    momentum, as published, or by the run's AdamW. Robust accuracy is under ten steps of PGD with
    two restarts at the threat's eps. The gradient of the strategy is clipped to length 1, as
    published; for a fresh network it is much longer, and then the size of the reward has no effect.
    This is the form LAS-PGD-AT of the public code. There the strategy learns before the step, at
    steps 20, 40 and so on; ours learns after the step, at 0, 20, 40 and so on.

    The ranges of the settings include both ends, as in the published commands; the defaults of the
    public code exclude the upper one. They scale with the threat's eps, so they apply to another
    threat and to a budget per class. An image with fewer steps than the maximum stops moving but
    still passes through the model: shapes that depend on values would make the host wait for the
    device in every step. The outer loss applies to the smoothed target, with its logits and class
    weights in both shares. Focal loss is defined for one label only and scales the share of the
    label.

    Official: on a WRN-34-10.
    """

    title = "LAS-AT"
    reference = "Jia et al., CVPR 2022, arXiv:2203.06616"
    deviations = (
        "eps (3/8 to 15/8 of the threat's), steps and step size are drawn for every image by a "
        "strategy network; the attack starts from U(-eps, eps) of the threat",
    )
    label_attack, own_attack = False, True
    official = published(
        threat={"eps": 8 / 255},
        training={"epochs": 110, "milestones": (99 / 110, 104 / 110), "weight_decay": 5e-4},
        method={"width": 64},
    )

    class Config(Method.Config):
        """The choices of the strategy and its training."""

        retired = MappingProxyType(
            {
                "variant": "las-pgd",
                "beta": None,
                "interval": None,
                "robust_reward": None,
                "clean_reward": None,
            }
            | dict.fromkeys(("eps", "steps", "step_size"))
        )

        label_mass: Annotated[float, Field(gt=0, le=1)] = 0.7
        """Target probability of the label (paper)."""
        eps: Range = (3, 15)
        """Lowest and highest radius in eighths of the threat's (public commands)."""
        steps: Range = (3, 14)
        """Fewest and most steps (public commands)."""
        step_size: Range = (1, 5)
        """Shortest and longest step in eighths of the threat's eps (public commands)."""
        interval: Count = 20
        """Training steps between two updates of the strategy (public commands)."""
        robust_reward: NonNegative = 4.0
        """Factor of the copy's robust accuracy in the reward (public code)."""
        clean_reward: NonNegative = 2.0
        """Factor of the copy's clean accuracy in the reward (public code)."""
        strategy_lr: Positive = 1e-4
        """Learning rate of the strategy (public code)."""
        width: Annotated[int, Field(ge=1, le=1024)] = 16
        """Channels of the strategy network's first layer; the published ResNet-18 has 64."""

    config: Config

    def __init__(self, config: Config, task: Task) -> None:
        super().__init__(config, task)
        if config.label_mass < 1:
            refuse_smoothing("las-at", task, "it smooths its targets itself: --method.label-mass 1")
        self.ranges = (config.eps, config.steps, config.step_size)
        options = [highest - lowest + 1 for lowest, highest in self.ranges]
        with seeded(task.seed, "las-at"):
            self.strategy = Strategy(options, config.width, task.image_shape[0])

    @classmethod
    def facts(cls, config: Config) -> Facts:
        lowest, highest = config.eps
        drawn = (
            f"eps ({lowest}/8 to {highest}/8 of the threat's), steps and step size are drawn for "
            "every image by a strategy network; the attack starts from U(-eps, eps) of the threat"
        )
        return replace(super().facts(config), deviations=(drawn,))

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, attack: Attack) -> Adversarial:
        with torch.no_grad(), frozen(self.strategy):
            _, choices = self.chosen(x, attack)
        return self.attacked_by(model, x, y, attack, choices)

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, adversarial: Adversarial) -> Loss:
        logits = model(adversarial.x)
        return Loss(global_mean(self.smoothed(logits, y)), {}, logits)

    def after_step(self, model: nn.Module, step: Step) -> None:
        """Train the strategy every `interval` steps; the model is unchanged."""
        if step.number % self.config.interval:
            return
        x = step.x
        weights = [*self.strategy.parameters()]
        # One image has no batch statistics; all processes decide by the images of all of them.
        self.strategy.train((step.attack.source.total or len(x)) > 1)
        log_probabilities, choices = self.chosen(x, step.attack)
        loss = reinforce(log_probabilities, choices, self.reward(model, step, choices))
        self.strategy.zero_grad()
        with torch.autocast(x.device.type, enabled=False):
            loss.backward()  # type: ignore[no-untyped-call]
        average_gradients([p.grad for p in weights if p.grad is not None])
        clip_grad_norm_(weights, LARGEST_NORM)
        torch.optim.SGD(weights, self.config.strategy_lr).step()

    def smoothed(self, logits: Tensor, y: Tensor) -> Tensor:
        """Return `label_mass` times the outer loss plus 1 - `label_mass` times the other classes'
        mean CE, (N,)."""
        mass = self.config.label_mass
        log_p = self.outer.prepared(logits, y).log_softmax(1)
        others = (log_p.gather(1, y[:, None]).squeeze(1) - log_p.sum(1)) / (logits.shape[1] - 1)
        label: Tensor = self.outer(logits, y)
        return mass * label + (1 - mass) * self.outer.weighed(others, y)

    def chosen(self, x: Tensor, attack: Attack) -> tuple[list[Tensor], Tensor]:
        """Return log-probabilities (N, options) of each head, and choices (N, heads) drawn from
        them."""
        log_probabilities = [full_precision(logits).log_softmax(1) for logits in self.strategy(x)]
        uniform = attack.source.uniform(x.new_empty(len(x), len(self.ranges), dtype=torch.float32))
        return log_probabilities, draw(log_probabilities, uniform)

    def attacked_by(
        self, model: nn.Module, x: Tensor, y: Tensor, attack: Attack, choices: Tensor
    ) -> Adversarial:
        """Return the examples of the attack that `choices` (N, heads) describe; the model is in
        eval mode."""
        eps, steps, step_size = (
            choice + levels[0]
            for choice, levels in zip(choices.unbind(1), self.ranges, strict=True)
        )
        most_steps = self.config.steps[1]
        sizes = attack.eps * (UNIT * step_size.to(x.dtype))
        # by 0 after an image's last step
        moves = [sizes * (number < steps) for number in range(most_steps)]
        # The start noise uses the threat's eps, so it may be outside the drawn ball until the first
        # step.
        start = (x + draw_noise(x, attack.eps, "uniform", attack.source)).clamp(0, 1) - x
        ball = attack.eps * (UNIT * eps.to(x.dtype))
        x_adv = attack(
            model,
            x,
            y,
            eps=ball,
            step_size=moves,
            steps=most_steps,
            start="none",
            start_noise=start,
        )
        return Adversarial(x_adv)

    def reward(self, model: nn.Module, step: Step, choices: Tensor) -> Tensor:
        """Reward of the choices: the attacked loss, and the accuracies of the model after one step
        on the examples."""
        x, y, attack = step.x, step.y, step.attack
        # together: the optimiser has the copied weights
        ahead, optimizer = copy.deepcopy((model, step.optimizer), computed_tensors(model))
        for group in optimizer.param_groups:
            if "momentum" in group:
                group["momentum"] = 0.0  # the published SGD has none
        attacked = ahead if step.view is None else step.view.refresh()
        with frozen(attacked):
            adversarial = self.attacked_by(attacked, x, y, attack, choices)
            with torch.no_grad():
                attacked_loss = global_mean(cross_entropy(attacked(adversarial.x), y))
        total = self.loss(ahead.train(), x, y, adversarial).total
        # the head's backward in float32, as its forward
        with torch.autocast(x.device.type, enabled=False):
            total.backward()  # type: ignore[no-untyped-call]
        average_gradients([p.grad for p in ahead.parameters() if p.grad is not None])
        optimizer.step()
        probed = probe(ahead, x, y, attack)
        with torch.no_grad(), frozen(ahead):
            robust = global_mean((ahead(probed).argmax(1) == y).to(x.dtype))
            clean = global_mean((ahead(x).argmax(1) == y).to(x.dtype))
        config = self.config
        return (
            attacked_loss.clamp(0, LARGEST_LOSS)
            + config.robust_reward * robust
            + config.clean_reward * clean
        )


def draw(log_probabilities: Sequence[Tensor], uniform: Tensor) -> Tensor:
    """Choices (N, heads) int64: each head's cumulative distribution, inverted at `uniform` (N,
    heads) in [0, 1)."""
    choices = []
    for head, values in enumerate(log_probabilities):
        passed = uniform[:, head, None] >= values.detach().exp().cumsum(1)
        choices.append(passed[:, :-1].sum(1))  # not the last sum, which rounding may leave below 1
    return torch.stack(choices, 1)


def reinforce(log_probabilities: Sequence[Tensor], choices: Tensor, reward: Tensor) -> Tensor:
    """REINFORCE loss R sum_h mean_i -log p(choice_ih): log-probabilities (N, options) per head,
    choices (N, heads)."""
    chosen = [
        values.gather(1, choices[:, head, None]).squeeze(1)
        for head, values in enumerate(log_probabilities)
    ]
    return reward * global_mean(-torch.stack(chosen).sum(0))


def probe(model: nn.Module, x: Tensor, y: Tensor, attack: Attack) -> Tensor:
    """Return examples of PGD-10 in the threat's ball, the stronger of two restarts by
    cross-entropy, (N, ...).

    An image stops moving once it is misclassified. Batch normalisation is in train mode, as in the
    public code.
    """
    probing = replace(attack, threat=attack.threat.replace(start="uniform", bn_mode="train"))
    size = x.new_ones(len(x)) * (PROBE_STEP * attack.eps)

    def stop_misclassified(_: int, logits: Tensor) -> None:
        # pgd reads it after this call, in every step
        size.copy_(PROBE_STEP * attack.eps * (logits.argmax(1) == y))

    best, best_loss = x, x.new_full((len(x),), -math.inf)
    for _ in range(RESTARTS):
        x_adv = probing(model, x, y, step_size=size, steps=PROBE_STEPS, observe=stop_misclassified)
        with torch.no_grad(), frozen(model, "train"):
            loss = cross_entropy(model(x_adv), y)
        larger = loss >= best_loss
        best = choose(larger, x_adv, best)
        best_loss = torch.where(larger, loss, best_loss)
    return best
