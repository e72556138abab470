"""Standard training: empirical risk minimisation on clean images, without an attack.

min_theta E CE(f(x), y). With another outer loss it is the clean baseline of long-tailed
recognition. Source: Vapnik, Principles of Risk Minimization for Learning Theory, NeurIPS 1991.
"""

from taet.methods.base import Method, Task


class Standard(Method):
    """Loss: mean CE(f(x), y), through the run's outer loss; every epoch is clean."""

    title = "Standard"
    reference = "Vapnik, NeurIPS 1991"
    label_attack, own_attack = False, True  # there is none

    @staticmethod
    def stage_at(config: Method.Config, task: Task, epoch: int) -> str:
        return "clean"
