"""N-FGSM: adversarial training with one step from strong noise, which is not projected back into the ball.

Source: de Jorge et al., Make Some Noise: Reliable and Efficient Single-Step Adversarial Training, NeurIPS 2022.
"""

from torch import Tensor, nn

from taet.attacks.noise import draw_noise
from taet.fields import NonNegative
from taet.methods.base import Adversarial, Attack, Method, Task


class NoisyFgsm(Method):
    """Loss: mean CE(f(x'), y), with x' = x0 + eps sign(grad CE(f(x0), y)) from x0 = x + k eps u, u ~ U(-1, 1).

    x0 and x' are clipped to [0, 1] only: the example is up to (k + 1) eps from the image, which is what prevents
    catastrophic overfitting to the single step. Everything but the attack is that of AT. Published
    with batch normalisation in train mode in the attack, label smoothing, an average of the weights and one cycle of
    the learning rate; here these are the run's.
    """

    title = "N-FGSM"
    reference = "de Jorge et al., NeurIPS 2022"
    deviations: tuple[str, ...] = (
        "one step of eps from uniform noise, not projected: examples are up to 3 eps from the image",
    )
    single_step = own_attack = True

    class Config(Method.Config):
        """The noise."""

        noise: NonNegative = 2.0
        """Radius k of the noise, in units of eps (paper)."""

    def __init__(self, config: Config, task: Task) -> None:
        super().__init__(config, task)
        start = f"uniform noise, not projected: examples are up to {config.noise + 1:g} eps from the image"
        self.deviations = (f"one step of eps from {start if config.noise else 'the image'}",)

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, attack: Attack) -> Adversarial:
        eps, k = attack.eps, self.config.noise
        noise, reach = draw_noise(x, k * eps, "uniform", attack.source), eps * (k + 1)
        reach = min(reach, 1.0) if isinstance(reach, float) else reach  # no image in [0, 1] is farther away
        return Adversarial(attack(model, x, y, eps=reach, step_size=eps, steps=1, start="uniform", start_noise=noise))
