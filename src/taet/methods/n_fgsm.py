"""N-FGSM: adversarial training with one step from strong noise that is not projected back.

Source: de Jorge et al., Make Some Noise: Reliable and Efficient Single-Step Adversarial Training,
NeurIPS 2022.
"""

from dataclasses import replace

from torch import Tensor, nn

from taet.attacks.noise import draw_noise
from taet.methods.base import Adversarial, Attack, Facts, Method
from taet.settings.types import NonNegative


class NoisyFgsm(Method):
    """Loss: mean CE(f(x'), y), with x' = x0 + eps sign(grad CE(f(x0), y)).

    The step starts from x0 = x + k eps u, u ~ U(-1, 1).

    x0 and x' are clipped to [0, 1] only: the example is up to (k + 1) eps from the image, which is
    what prevents catastrophic overfitting to the single step. Everything but the attack is that of
    AT. Published with batch normalisation in train mode in the attack, label smoothing, an average
    of the weights and one cycle of the learning rate; here these are the run's.
    """

    title = "N-FGSM"
    reference = "de Jorge et al., NeurIPS 2022"
    deviations = (
        "one step of eps from uniform noise, not projected: examples are up to 3 eps from the "
        "image",
    )
    single_step = own_attack = True

    class Config(Method.Config):
        """The noise."""

        noise: NonNegative = 2.0
        """Radius k of the noise, in units of eps (paper)."""

    @classmethod
    def facts(cls, config: Config) -> Facts:
        step = "one step of eps from the image"
        if config.noise:
            reach = f"{config.noise + 1:g} eps"
            step = (
                "one step of eps from uniform noise, not projected: "
                f"examples are up to {reach} from the image"
            )
        return replace(super().facts(config), deviations=(step,))

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, attack: Attack) -> Adversarial:
        eps, k = attack.eps, self.config.noise
        noise, reach = draw_noise(x, k * eps, "uniform", attack.source), eps * (k + 1)
        # no image in [0, 1] is farther away
        reach = min(reach, 1.0) if isinstance(reach, float) else reach
        return Adversarial(
            attack(
                model, x, y, eps=reach, step_size=eps, steps=1, start="uniform", start_noise=noise
            )
        )
