"""TAET: two-stage adversarial equalization training, clean cross-entropy first, then HARL.

Source: TAET: Two-Stage Adversarial Equalization Training on Long-Tailed Distributions, CVPR 2025,
arXiv:2503.01924.
"""

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor, nn

from taet.errors import UserError
from taet.methods.base import Adversarial, Facts, Loss, Method, Step, Task, refuse_smoothing
from taet.methods.harl import Harl
from taet.settings import Outer
from taet.settings.schema import epoch_at
from taet.settings.types import Share


class Taet(Method):
    """Loss: mean CE(f(x), y) on clean images in the first stage, then HEL(f(x'), y).

    The first stage has the same share of the epochs in a run of any length; without it, TAET is
    HARL. The run's outer loss applies to the first stage only: HEL already balances the classes,
    and on shifted logits it would do so twice. Without HEL, alpha = beta = gamma = 0, it applies to
    both stages: the clean stage alone (AET, arXiv:2506.15685).

    Official: as HARL.
    """

    title = "TAET"
    reference = "CVPR 2025, arXiv:2503.01924"
    official = Harl.official

    class Config(Harl.Config):
        """The options of HARL and the length of the clean stage."""

        clean_share: Share = 0.4
        """Share of the epochs that are clean: 40 of 100 in the paper."""

    def __init__(self, config: Config, task: Task) -> None:
        super().__init__(config, task)
        self.equalization = None
        if not _has_hel(config):
            return
        if task.outer.drw and task.stages[min(task.milestones)] != "clean":
            raise UserError(
                "taet: got deferred re-weighting, which begins at a milestone after the clean stage"
            )
        if task.outer.name != "cross-entropy" and self.stage != "clean":
            got = f"got the outer loss {task.outer.name}; it reaches the clean stage only"
            raise UserError(f"taet: {got}, and of {task.epochs} epochs none is clean")
        if self.stage != "clean":
            refuse_smoothing(
                "taet", task, "none of the epochs is clean; allowed: --outer.label-smoothing 0"
            )
        self.equalization = Harl(config, replace(task, outer=Outer(), stages=()))

    @classmethod
    def facts(cls, config: Config) -> Facts:
        facts = super().facts(config)
        return facts if _has_hel(config) else replace(facts, title="AT after clean epochs")

    @staticmethod
    def stage_at(config: Config, task: Task, epoch: int) -> str:
        return "clean" if epoch < epoch_at(config.clean_share, task.epochs) else "adversarial"

    def warnings(self, class_counts: Sequence[int], batch_size: int) -> tuple[str, ...]:
        if {*self.task.stages} == {"clean"}:
            return ("no epoch is adversarial; a smaller --method.clean-share leaves some",)
        return self.equalization.warnings(class_counts, batch_size) if self.equalization else ()

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, adversarial: Adversarial) -> Loss:
        if self.stage == "adversarial" and self.equalization:
            return self.equalization.loss(model, x, y, adversarial)
        return self.label_loss(model, adversarial.x, y)

    def after_step(self, model: nn.Module, step: Step) -> None:
        if self.stage == "adversarial" and self.equalization:
            self.equalization.after_step(model, step)


def _has_hel(config: Taet.Config) -> bool:
    """Whether the second stage has HEL; without any of its terms it is AT."""
    return bool(config.alpha or config.beta or config.gamma)
