"""Adversarial distributional training (ADT): cross-entropy on draws from a distribution of perturbations.

min_theta E max_p E_{delta ~ p} CE(f(x + delta), y) + lambda H(p), with delta = eps a and a in (-1, 1).
Source: Dong et al., Adversarial Distributional Training for Robust Deep Learning, NeurIPS 2020, arXiv:2002.05999.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from taet.attacks.ball import per_sample
from taet.distributed import global_mean, global_sum
from taet.fields import Count, NonNegative, OnlyWith, Positive
from taet.losses.long_tail import cross_entropy, full_precision
from taet.methods.base import Adversarial, Attack, Loss, Method, Overrides, Step, Task
from taet.models.generator import Encoder, Generator
from taet.randomness import seeded

TINY = 1e-8  # beside what is divided by or taken the logarithm of (public code)
LATENT = 64  # size of the implicit variant's code (paper)
ENTROPY_WEIGHT = {"exp": 0.01, "exp-am": 0.01, "imp-am": 1.0}  # lambda (public code)
AMORTISED = ("exp-am", "imp-am")


class AdversarialDistributionalTraining(Method):
    """Loss: mean CE(f(x'), y), x' = clip_[0,1](x + eps a), where a follows a distribution that raises CE + lambda H.

    exp      a = tanh(mu + sigma r), r normal, sigma = softplus(rho): mu and rho are fitted to each image from scratch,
             in `steps` steps of Adam without memory (both betas 0) on the sum of `samples` gradients
    exp-am   mu and rho are the output of a generator with the image and two gradients of its loss as input
    imp-am   a = tanh of the output of a generator with the same input and a uniform code; an encoder that recovers the
             code gives an upper bound of -H, and only a bound above `threshold` is penalised

    The generators train together with the classifier in one backward pass: the gradient at x' changes its sign on the
    way to them, so they ascend the loss that the weights descend. They use batch statistics and are dropped after
    training. The part `entropy` of the loss is the term that lambda multiplies: -H, or the bound minus `threshold` if
    positive.

    The fit never clears its gradients, so each step follows the sum of all gradients so far. This is what the public
    code does; the paper's algorithm does not mention it. `accumulate` turns it off.

    Official: exp on a WRN-28-10. The generators are trained in the same batches of 64, with `width` 256.
    """

    title = "ADT"
    reference = "Dong et al., NeurIPS 2020, arXiv:2002.05999"
    deviations = (
        "perturbations are drawn from a distribution with an optimiser of its own; the threat's steps, step size and "
        "start are not used",
    )
    label_attack = False
    official: ClassVar[Overrides] = {
        "threat.eps": 8 / 255,
        "threat.bn_mode": "eval",
        "training.epochs": 76,
        "training.batch_size": 64,
        "training.lr": 0.1,
        "training.momentum": 0.9,
        "training.milestones": (74 / 76,),
        "training.weight_decay": 2e-4,
        "model.normalize": "none",
    }

    class Config(Method.Config):
        """The form of the distribution and its fit."""

        variant: Literal["exp", "exp-am", "imp-am"] = "exp"
        """exp: fitted to each image; exp-am: from a generator; imp-am: from a generator without a density."""
        entropy_weight: NonNegative | None = None
        """Factor lambda of the entropy. Default: 0.01 with exp and exp-am, 1 with imp-am (public code)."""
        steps: Annotated[Count, OnlyWith(variant="exp")] = 7
        """exp: steps of the fit (paper)."""
        samples: Annotated[Count, OnlyWith(variant="exp")] = 5
        """exp: draws per step (paper)."""
        inner_lr: Annotated[Positive, OnlyWith(variant="exp")] = 0.3
        """exp: learning rate of the fit (paper)."""
        accumulate: Annotated[bool, OnlyWith(variant="exp")] = True
        """exp: each step uses the sum of all gradients so far, as in the public code; off: only the latest."""
        width: Annotated[int, Field(ge=1, le=1024), OnlyWith(variant=AMORTISED)] = 64
        """exp-am, imp-am: channels of the generator's first layer. The paper has 256, which costs as much as 19
        ResNet-18."""
        generator_lr: Annotated[Positive, OnlyWith(variant=AMORTISED)] = 2e-4
        """exp-am, imp-am: learning rate of the generator and the encoder (public code)."""
        threshold: Annotated[float, OnlyWith(variant="imp-am")] = 0.9
        """imp-am: bound on -H, per dimension of the code, up to which there is no penalty (public code)."""

    def __init__(self, config: Config, task: Task) -> None:
        super().__init__(config, task)
        weight = config.entropy_weight
        self.entropy_weight = ENTROPY_WEIGHT[config.variant] if weight is None else weight
        if config.variant == "exp":
            return
        channels, *side = task.image_shape
        outputs, latent = (2 * channels, 0) if config.variant == "exp-am" else (channels, LATENT)
        with seeded(task.seed, "adt"):
            self.generator = Generator(3 * channels, outputs, config.width, (side[0], side[1]), latent)
            self.encoder = Encoder(channels, LATENT) if latent else None
        self.optimizers["generator"] = torch.optim.Adam(
            self.generator.parameters(), lr=config.generator_lr, betas=(0.5, 0.999)
        )
        if self.encoder is not None:
            self.optimizers["encoder"] = torch.optim.Adam(self.encoder.parameters(), lr=config.generator_lr)

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, attack: Attack) -> Adversarial:
        if self.config.variant == "exp":
            mean, rho = self._fit(model, x, y, attack).chunk(2)
            directions, _ = tanh_gaussian(mean, rho, attack.source.normal(x))
            return Adversarial(moved(x, attack.eps, directions))
        first = mean_gradient(model, x, y)
        second = mean_gradient(model, moved(x, attack.eps, first.sign()), y)
        inputs = torch.cat([x, first, second], 1)
        if self.config.variant == "exp-am":
            noise = attack.source.normal(x)
        else:
            noise = attack.source.uniform(x.new_empty(len(x), LATENT), -1, 1)
        eps = attack.eps if isinstance(attack.eps, Tensor) else x.new_full((len(x),), attack.eps)
        with torch.no_grad():
            directions, _ = self._generate(inputs, noise)
        return Adversarial(moved(x, eps, directions), {"inputs": inputs, "noise": noise, "eps": eps})

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, adversarial: Adversarial) -> Loss:
        if self.config.variant == "exp":
            logits = model(adversarial.x)
            return Loss(global_mean(self.outer(logits, y)), {}, logits)
        info = adversarial.info
        directions, values = self._generate(info["inputs"], info["noise"])
        logits = model(_Reversed.apply(moved(x, info["eps"], directions)))
        label, value = global_mean(self.outer(logits, y)), global_mean(values)
        charge = -value if self.config.variant == "exp-am" else (value - self.config.threshold).clamp(min=0)
        return Loss(label + self.entropy_weight * charge, {"label": label, "entropy": charge}, logits)

    def after_step(self, model: nn.Module, step: Step) -> None:
        for optimizer in self.optimizers.values():
            optimizer.step()

    def _fit(self, model: nn.Module, x: Tensor, y: Tensor, attack: Attack) -> Tensor:
        """The mu of all images, then all rho, (2N, C, H, W): ascent on mean CE + lambda mean H of the global batch."""
        count = global_sum(x.new_full((), len(x)))
        config, charge = self.config, self.entropy_weight / count

        def gradient(parameters: Tensor) -> Tensor:
            mean, rho = parameters.detach().chunk(2)
            with torch.enable_grad():
                rho.requires_grad_()
                sigma = functional.softplus(rho)
                widths = width_entropy(sigma).sum()
            # What all draws share, from rho to sigma and log sigma, is differentiated once for all.
            by_mean, by_sigma = torch.zeros_like(mean), torch.zeros_like(sigma)
            for _ in range(config.samples):
                noise = attack.source.normal(x)
                with torch.enable_grad():
                    reach = torch.addcmul(mean, noise, sigma).detach().requires_grad_()
                    directions = reach.tanh()
                    losses = cross_entropy(model(moved(x, attack.eps, directions)), y)
                    objective = losses.sum() / count + charge * tanh_entropy(directions).sum()
                with torch.autocast(x.device.type, enabled=False):  # the head's backward in float32, as its forward
                    (pull,) = torch.autograd.grad(objective, reach)
                by_mean += pull
                by_sigma.addcmul_(pull, noise)
            (by_rho,) = torch.autograd.grad((sigma, widths), rho, (by_sigma, config.samples * charge))
            return torch.cat([by_mean, by_rho])

        start = full_precision(torch.zeros_like(torch.cat([x, x])))  # in the memory layout of x
        return ascend(gradient, start, config.steps, config.inner_lr, config.accumulate)

    def _generate(self, inputs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Directions (N, C, H, W) in (-1, 1), and of every sample H, or in the implicit variant the bound on -H."""
        if self.encoder is None:
            mean, rho = full_precision(self.generator(inputs)).chunk(2, 1)
            return tanh_gaussian(mean, rho, noise)
        directions = full_precision(self.generator(inputs, noise)).tanh()
        mean, raw = full_precision(self.encoder(directions)).chunk(2, 1)
        return directions, negative_entropy_bound(noise, mean, functional.softplus(raw))


class _Reversed(torch.autograd.Function):
    """The identity, whose gradient has the other sign."""

    @staticmethod
    def forward(_: Any, value: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(_: Any, *gradients: Tensor) -> Tensor:
        return -gradients[0]


def moved(x: Tensor, eps: float | Tensor, directions: Tensor) -> Tensor:
    """Images x + eps a, clipped to [0, 1]; eps is a number or one per sample (N,)."""
    return (x + per_sample(eps, x) * directions).clamp(0, 1)


def mean_gradient(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Gradient, with respect to x, of the mean cross-entropy over the global batch."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        losses = cross_entropy(model(x), y)
        with torch.autocast(x.device.type, enabled=False):
            (gradient,) = torch.autograd.grad(losses.sum(), x)
    return gradient / global_sum(x.new_full((), len(x)))


def tanh_gaussian(mean: Tensor, rho: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Directions a = tanh(mu + sigma r) with sigma = softplus(rho), and the entropy of each sample up to a constant.

    H_i = mean over the elements of sample i of r^2/2 + log sigma + log(1 - a^2), the negative log-density at the draw.
    mean, rho and noise (N, ...) -> (N, ...) in (-1, 1), and (N,).
    """
    sigma = functional.softplus(rho)
    directions = torch.tanh(mean + noise * sigma)
    of_noise = sample_mean(noise.square()) / 2
    return directions, of_noise + width_entropy(sigma) + tanh_entropy(directions)


def width_entropy(sigma: Tensor) -> Tensor:
    """Share of sigma in that entropy, mean log sigma: (N, ...) -> (N,)."""
    return sample_mean((sigma + TINY).log())


def tanh_entropy(directions: Tensor) -> Tensor:
    """Share of the directions in it, mean log(1 - a^2): (N, ...) -> (N,)."""
    return sample_mean((1 - directions.square() + TINY).log())


def sample_mean(values: Tensor) -> Tensor:
    """Mean of each sample in any memory layout, (N, ...) -> (N,)."""
    return values.mean([*range(1, values.ndim)])


def negative_entropy_bound(codes: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """Upper bound on the negative entropy per dimension of the code, by how well a Gaussian recovers it.

    U_i = mean over dimensions of (z - m)^2 / 2v + log(v)/2 + log sqrt(2 pi); all (N, D) -> (N,).
    """
    squares = (codes - mean).square() / (2 * variance + TINY)
    return (squares + (variance + TINY).log() / 2 + math.log(2 * math.pi) / 2).mean(1)


def ascend(
    gradient: Callable[[Tensor], Tensor], start: Tensor, steps: int, lr: float, accumulate: bool = True
) -> Tensor:
    """Take steps of Adam with both betas 0, v <- v + lr G / (|G| + 1e-8), almost a sign step.

    G is the gradient at v, or, with `accumulate`, the sum of all gradients so far: the public code never clears them.
    """
    value, total = start, torch.zeros_like(start)
    for _ in range(steps):
        newest = gradient(value)
        total = total + newest if accumulate else newest
        value = value + lr * total / (total.abs() + TINY)
    return value
