"""ADT: adversarial distributional training, on draws from a distribution of perturbations.

min_theta E max_p E_{delta ~ p} CE(f(x + delta), y) + lambda H(p), with delta = eps a and a in (-1,
1). Source: Dong et al., Adversarial Distributional Training for Robust Deep Learning, NeurIPS 2020,
arXiv:2002.05999.
"""

from collections.abc import Callable
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.nn import functional

from taet.attacks.ball import per_sample
from taet.distributed import global_sum
from taet.losses.long_tail import cross_entropy, full_precision
from taet.methods.base import Adversarial, Attack, Method, published
from taet.settings.types import Count, NonNegative, Positive

TINY = 1e-8  # added to divisors and to arguments of logarithms (public code)


class AdversarialDistributionalTraining(Method):
    """Loss: mean CE(f(x'), y) on draws x' from a distribution that raises CE + lambda H.

        x' = clip_[0,1](x + eps a),   a = tanh(mu + sigma r),   r normal,   sigma = softplus(rho)

    H is the mean of log sigma + log(1 - a^2) over an image's values. mu and rho are fitted to each
    image from scratch, in `steps` steps of Adam without memory (both betas 0), on the sum of
    `samples` gradients of batch means. This is ADT-EXP, the form that table 1 of TAET means.

    The fit never clears its gradients, so each step follows the sum of all gradients so far. This
    is what the public code does; the paper's algorithm does not mention it. `accumulate` turns it
    off.

    Official: on a WRN-28-10.
    """

    title = "ADT"
    reference = "Dong et al., NeurIPS 2020, arXiv:2002.05999"
    deviations = (
        "perturbations are drawn from a distribution with an optimiser of its own; the threat's "
        "steps, step size and start are not used",
    )
    label_attack, own_attack = False, True
    official = published(
        threat={"eps": 8 / 255},
        training={"epochs": 76, "batch_size": 64, "milestones": (74 / 76,), "weight_decay": 2e-4},
    )

    class Config(Method.Config):
        """The fit of the distribution."""

        retired = MappingProxyType(
            {
                "variant": "exp",
                "entropy_weight": None,
                "width": 64,
                "generator_lr": 2e-4,
                "threshold": 0.9,
            }
        )

        entropy_weight: NonNegative = 0.01
        """Factor lambda of the entropy (public code)."""
        steps: Count = 7
        """Steps of the fit (paper)."""
        samples: Count = 5
        """Draws per step (paper)."""
        inner_lr: Positive = 0.3
        """Learning rate of the fit (paper)."""
        accumulate: bool = True
        """Each step uses the sum of all gradients so far, as in the public code; off: only the
        latest."""

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, attack: Attack) -> Adversarial:
        mean, rho = self._fit(model, x, y, attack).chunk(2)
        directions = torch.tanh(mean + attack.source.normal(x) * functional.softplus(rho))
        return Adversarial(moved(x, attack.eps, directions))

    def _fit(self, model: nn.Module, x: Tensor, y: Tensor, attack: Attack) -> Tensor:
        """Return mu, then rho, of all images, (2N, C, H, W), by ascent on CE + lambda H of the
        global batch."""
        count = global_sum(x.new_full((), len(x)))
        config, entropy_factor = self.config, self.config.entropy_weight / count

        def gradient(parameters: Tensor) -> Tensor:
            mean, rho = parameters.detach().chunk(2)
            with torch.enable_grad():
                rho.requires_grad_()
                sigma = functional.softplus(rho)
                log_sigma = mean_log(sigma).sum()
            # The part that all draws share, from rho to sigma and log sigma, is differentiated
            # once.
            by_mean, by_sigma = torch.zeros_like(mean), torch.zeros_like(sigma)
            for _ in range(config.samples):
                noise = attack.source.normal(x)
                with torch.enable_grad():
                    latent = torch.addcmul(mean, noise, sigma).detach().requires_grad_()
                    directions = latent.tanh()
                    losses = cross_entropy(model(moved(x, attack.eps, directions)), y)
                    objective = (
                        losses.sum() / count
                        + entropy_factor * mean_log(1 - directions.square()).sum()
                    )
                # the head's backward in float32, as its forward
                with torch.autocast(x.device.type, enabled=False):
                    (grad,) = torch.autograd.grad(objective, latent)
                by_mean += grad
                by_sigma.addcmul_(grad, noise)
            (by_rho,) = torch.autograd.grad(
                (sigma, log_sigma), rho, (by_sigma, config.samples * entropy_factor)
            )
            return torch.cat([by_mean, by_rho])

        start = full_precision(torch.zeros_like(torch.cat([x, x])))  # in the memory layout of x
        return ascend(gradient, start, config.steps, config.inner_lr, config.accumulate)


def moved(x: Tensor, eps: float | Tensor, directions: Tensor) -> Tensor:
    """Images x + eps a, clipped to [0, 1]; eps is a number or one per sample (N,)."""
    return (x + per_sample(eps, x) * directions).clamp(0, 1)


def mean_log(values: Tensor) -> Tensor:
    """Mean logarithm of each sample, (N, ...) -> (N,): the entropy is that of sigma plus that of 1
    - a^2."""
    return (values + TINY).log().mean([*range(1, values.ndim)])


def ascend(
    gradient: Callable[[Tensor], Tensor], start: Tensor, steps: int, lr: float, accumulate: bool
) -> Tensor:
    """Steps v <- v + lr G / (|G| + 1e-8), with the gradient G at v or, with `accumulate`, the sum
    of all so far."""
    value, total = start, torch.zeros_like(start)
    for _ in range(steps):
        newest = gradient(value)
        total = total + newest if accumulate else newest
        value = value + lr * total / (total.abs() + TINY)
    return value
