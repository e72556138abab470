"""LIET: one attack step from a perturbation learnt per label, with a penalty on changed predictions along the step.

Source: LIET, ICCV 2025, as in its public implementation in FastAT_Benchmark.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from taet.attacks.ball import frozen, per_sample, spread
from taet.distributed import global_mean
from taet.fields import NonNegative, PartialShare
from taet.losses.consistency import js_divergence
from taet.losses.long_tail import cross_entropy, is_label
from taet.methods.base import Adversarial, Attack, Loss, Method, Step, Task, refuse_smoothing
from taet.methods.n_fgsm import one_step

INTERVAL = 20  # training steps between two of the perturbations (public code)
MIXED = (0.1, 0.5)  # least and largest share of the values that noise replaces (public code)
PROJECTED_UP_TO = 8 / 255  # a larger ball has twice the noise and no projection (public code)


class LabelInitialized(Method):
    """Loss: mean CE(f(x'), y) + lambda_t mean JS(f(x0), f(x')), lambda_t = lambda (t + 1) / E in epoch t of E, from 0.

    x0 = x +- d, either sign half of the time; d is eps times the signs of its label, in which a share of 0.1 to 0.5 of
    the values is replaced with U(-eps, eps). x' = x0 + eps sign(grad CE(f(x0), y)), in the ball around x. The signs of
    class c are those of the gradient of CE(f(1/2), c) at the grey image, every 20 steps. Gradients flow through both
    predictions of the divergence. For eps above 8/255 noise is U(-2 eps, 2 eps) and x' is not projected, up to 3 eps
    from the image. With `smoothing` the target has that much spread over the other classes, in shares drawn anew for
    each image. Share and sign are drawn for each image here, in the public code for a batch. Published with batch
    normalisation in train mode in the attack, an average of the weights and one cycle of the learning rate; here these
    are the run's.
    """

    title = "LIET"
    reference = "ICCV 2025"
    deviations = ("one step of eps from a perturbation of the label; above an eps of 8/255 up to 3 eps from the image",)
    single_step = True

    class Config(Method.Config):
        """The divergence, and the target."""

        lam: NonNegative = 100.0
        """Factor lambda of the divergence in the last epoch (public code)."""
        smoothing: PartialShare = 0.0
        """Share of the target for the other classes; published 0.6."""

    signs: Tensor
    strength: Tensor

    def __init__(self, config: Config, task: Task) -> None:
        super().__init__(config, task)
        if config.smoothing:
            refuse_smoothing("liet", task, "its own smoothing is on: --method.smoothing 0")
        self.register_buffer("signs", torch.zeros(task.num_classes, *task.image_shape))
        self.register_buffer("strength", torch.zeros(()))

    def start_epoch(self, epoch: int, predicted_counts: Tensor) -> None:
        self.strength.fill_(self.config.lam * (epoch + 1) / self.task.epochs)

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, attack: Attack) -> Adversarial:
        draw, wide = attack.source, attack.threat.eps > PROJECTED_UP_TO
        of_image = x.new_empty(len(x))
        share, side = draw.uniform(of_image, *MIXED), torch.where(draw.uniform(of_image) < 0.5, -1.0, 1.0)
        replaced = draw.uniform(x) < spread(share, x)
        noise = draw.uniform(x, -1.0, 1.0) * (2 if wide else 1)
        move = spread(side, x) * torch.where(replaced, noise, self.signs[y].to(x.dtype))
        start = (x + per_sample(attack.eps, x) * move).clamp(0, 1)
        info = {"start": start}
        if self.config.smoothing:
            others = draw.uniform(x.new_empty(len(x), self.task.num_classes))
            others = others.masked_fill(is_label(others, y), 0)
            info["others"] = others / others.sum(1, keepdim=True)

        def objective(logits: Tensor, labels: Tensor) -> Tensor:
            return self.smoothed(cross_entropy(logits, labels), logits, info)

        reach = 3 if wide else 1
        return Adversarial(one_step(attack, model, x, y, reach, objective, start="none", start_noise=start - x), info)

    def smoothed(
        self, losses: Tensor, logits: Tensor, info: Mapping[str, Tensor], weighed_by: Tensor | None = None
    ) -> Tensor:
        """Losses (N,) of the label, mixed with the cross-entropy with the drawn shares of the other classes.

        `weighed_by` are the labels (N,) whose class weights these shares have; `losses` have them already.
        """
        if not self.config.smoothing:
            return losses
        spread_out = -(info["others"] * logits.log_softmax(1)).sum(1)
        if weighed_by is not None:
            spread_out = self.outer.weighed(spread_out, weighed_by)
        mixed: Tensor = (1 - self.config.smoothing) * losses + self.config.smoothing * spread_out
        return mixed

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, adversarial: Adversarial) -> Loss:
        logits, start = model(adversarial.x), model(adversarial.info["start"])
        label = global_mean(self.smoothed(self.outer(logits, y), self.outer.prepared(logits, y), adversarial.info, y))
        js = global_mean(js_divergence(start, logits))
        return Loss(label + self.strength * js, {"label": label, "js": js}, logits)

    def after_step(self, model: nn.Module, step: Step) -> None:
        if step.number % INTERVAL:
            return
        attacked, labels = step.attacked(model), torch.arange(self.task.num_classes, device=step.y.device)
        with torch.enable_grad(), frozen(attacked):
            grey = torch.full_like(self.signs, 0.5, requires_grad=True)
            (gradient,) = torch.autograd.grad(cross_entropy(attacked(grey), labels).sum(), grey)
        self.signs.copy_(gradient.sign())
