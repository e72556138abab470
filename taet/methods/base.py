"""The method interface: what a training method receives, what it returns, and the hooks that it may implement.

A method is one small class in one file of this folder. The trainer refers to no method by name. In each step it calls
`perturb` on the frozen model, `loss`, and, when the weights have moved, `after_step`. A method never subclasses another
one: a wrapper holds the other method and forwards the hooks. CONTRIBUTING.md has the rules for state and branches.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn

from taet.attacks.noise import Source
from taet.attacks.objectives import Objective, natural_divergence
from taet.attacks.pgd import pgd
from taet.distributed import global_mean
from taet.errors import UserError
from taet.fields import Settings
from taet.losses.equalization import Loss as Loss
from taet.losses.long_tail import cross_entropy
from taet.losses.outer import OuterLoss
from taet.models.classifier import Head
from taet.models.view import View
from taet.settings import Outer, Threat, flat


class Adversarial(NamedTuple):
    """Examples to train on: x (N, C, H, W) in [0, 1], with per-sample facts, all of static shape."""

    x: Tensor
    info: Mapping[str, Tensor] = {}


@dataclass(frozen=True)
class Attack:
    """The protocol's attack as a value: `attack(model, x, y)` returns examples in the ball around x and in [0, 1].

    The attack maximises `objective` (logits, labels) -> (N,). Options are those of `taet.attacks.pgd`: `observe`
    receives the logits of every iterate before its update. A method that must differ from the protocol names how (eps,
    step_size, steps, start) and declares it in `Method.deviations`; its eps and step size are then final, so it builds
    them from `attack.eps` and `attack.step_size`. Random draws are from `attack.source`.
    """

    threat: Threat
    source: Source
    factor: float | Tensor = 1.0
    """Factor of eps and step size, a number or one per sample (N,)."""
    weights: Tensor | None = None
    """Class weights of the objective, (C,); they do not change a sign step with BN in eval mode."""
    prior: Tensor | None = None
    """Class counts whose logarithm is added to the logits that the objective sees, (C,)."""

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, objective: Objective = cross_entropy, **options: Any
    ) -> Tensor:
        threat = self.threat
        used: dict[str, Any] = {"eps": self.eps, "step_size": self.step_size, "steps": threat.steps}
        used |= {"start": threat.start, "start_noise": self.source, "bn_mode": threat.bn_mode, **options}

        def rebalanced(logits: Tensor, labels: Tensor) -> Tensor:
            values = objective(logits if self.prior is None else logits + self.prior.log(), labels)
            return values if self.weights is None else self.weights[labels] * values

        return pgd(model, x, y, objective=rebalanced, checked=True, **used)

    @property
    def eps(self) -> float | Tensor:
        """Radius of the ball, a number or one per sample (N,)."""
        return self.threat.eps * self.factor

    @property
    def step_size(self) -> float | Tensor:
        """Length of a step, a number or one per sample (N,)."""
        return self.threat.step_size * self.factor

    def scaled(self, factor: Tensor) -> Self:
        """Return this attack with eps and step size multiplied by `factor` (N,)."""
        return replace(self, factor=self.factor * factor)


@dataclass(frozen=True)
class Task:
    """The training set and the schedule, passed to a method when it is built."""

    class_counts: tuple[int, ...]
    """Training images per class, after validation was taken out."""
    image_shape: tuple[int, int, int]
    epochs: int
    steps_per_epoch: int
    milestones: tuple[int, ...] = ()
    """Epochs, from 0, at which the learning rate falls."""
    outer: Outer = field(default_factory=Outer)
    """The run's outer loss."""
    weighting: str = "none"
    """The re-balancing of the attack that the run asks for."""
    head: Head = field(default_factory=Head)
    """The method's head; `methods.build` sets it, as well as `stages` and the method's own `outer`."""
    stages: tuple[str, ...] = ()
    """The method's stage in every epoch."""
    seed: int = 0
    """The run's seed, for the initial weights of the method's own networks."""
    watched: tuple[int, ...] = ()
    """Epochs, from 0, that have a point of the curve, and thus feedback; by default each."""
    exposure: tuple[float, ...] = ()
    """Class counts that losses use: N times the share of each class in a batch. Equal to `class_counts` unless extra
    images or --training.sampling change how often a class is drawn; head, body and tail follow `class_counts`."""
    distinct: tuple[int, ...] = ()
    """Different images per class, with extra ones; by default the training images."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "stages", self.stages or ("adversarial",) * self.epochs)
        object.__setattr__(self, "watched", self.watched or tuple(range(self.epochs)))
        object.__setattr__(self, "exposure", self.exposure or self.class_counts)
        object.__setattr__(self, "distinct", self.distinct or self.class_counts)

    @property
    def num_classes(self) -> int:
        return len(self.class_counts)


@dataclass(frozen=True)
class Seen:
    """What a point of the curve measured on all validation images, by class: the argument of `Method.feedback`.

    Sums in float64 over the images of a class, on the method's device and over all processes, of the model as it would
    be deployed, clean (f(x)) and under the curve's attack (f(x')). Runs whose curve is on test images are refused
    before they begin (`taet.training.resolve`).
    """

    images: Tensor
    """Images of each class, (C,)."""
    clean: Tensor
    """How many of them are classified correctly, (C,)."""
    robust: Tensor
    """How many of them are classified correctly under the attack, (C,)."""
    clean_loss: Tensor
    """Sums of CE(f(x), y), (C,)."""
    divergence: Tensor
    """Sums of KL(f(x) || f(x')), (C,)."""

    def rates(self, sums: Tensor) -> Tensor:
        """Return sums (C,) as means over a class's images; a class without images has the mean of the others."""
        means, present = sums / self.images.clamp(min=1), self.images > 0
        return torch.where(present, means, means.sum() / present.sum())


class Step(NamedTuple):
    """The arguments of `after_step`: positions in the data (N,), the batch, its loss, the attack, the optimiser of the
    model's weights, which stays as it is, how many steps of the run came before, and the view to attack, if any.
    """

    index: Tensor  # type: ignore[assignment]  # hides tuple.index, which is not used on a step
    x: Tensor
    y: Tensor
    loss: Loss
    attack: Attack
    optimizer: torch.optim.Optimizer
    number: int = 0
    view: View | None = None


class Method(nn.Module):
    """A training method. Every hook has the default of plain adversarial training."""

    title: str
    reference: str
    deviations: tuple[str, ...] = ()
    """How the method deviates from the protocol, in words; every table prints this."""
    official: ClassVar[Mapping[str, object]] = {}
    """Its own published settings, as overrides of a Run."""
    label_attack: bool = True
    """Whether --threat.weighting applies to the attack. If so, the `perturb` of this class raises the cross-entropy on
    the labels, else KL(f(x) || f(x')), as in TRADES."""
    uses_features: bool = False
    """Whether the loss reads `model.features`."""
    uses_labels: bool = True
    """Whether the loss reads the labels; else the head is not trained."""
    needs_feedback: bool = False
    """Whether the method learns from the validation split, through `feedback`; a run without that split is refused."""
    average_decay: float | None = None
    """If not None, the run delivers an exponential average of the weights, with this decay, of epochs it `admits`."""
    single_step: bool = False
    """Whether the attack is a single step: the curve then watches for catastrophic overfitting, under FGSM too."""

    own_attack: bool = False
    """Whether the attack is its own, so that the threat's steps and step size change nothing."""

    class Config(Settings):
        """The method has no settings of its own."""

        label = "method"

    def __init__(self, config: Any, task: Task) -> None:
        super().__init__()
        self.config, self.task, self.stage = config, task, task.stages[0]
        self.class_counts = nn.Buffer(torch.tensor(task.class_counts, dtype=torch.float32), persistent=False)
        """Training images of each class, (C,)."""
        self.exposure = nn.Buffer(torch.tensor(task.exposure, dtype=torch.float32), persistent=False)
        """Class counts by the prior of the batches, (C,): what a loss that undoes or weighs the prior takes."""
        # Every label term of an outer loss goes through here: `self.outer(logits, y)` -> (N,).
        begin = min((epoch for epoch in task.milestones if epoch < task.epochs), default=None)
        self.outer = OuterLoss(task.outer, task.exposure, task.head.scale, begin, task.distinct)

    @staticmethod
    def outer_loss(config: Any, task: Task) -> Outer:
        """Return the outer loss that the method trains with; by default the run's."""
        return task.outer

    @staticmethod
    def head(config: Any, task: Task) -> Head:
        """Return the head that the method needs; by default LDAM's cosine head or a linear one."""
        return Head("cosine", scale=task.outer.scale) if task.outer.name == "ldam" else Head()

    @staticmethod
    def stage_at(config: Any, task: Task, epoch: int) -> str:
        """Return the stage that `epoch` (from 0) belongs to; a stage called `clean` has no attack."""
        return "adversarial"

    def warnings(self, class_counts: Sequence[int], batch_size: int) -> tuple[str, ...]:
        """Return warnings for training with batches of this size, one sentence each."""
        return ()

    def enter(self, epoch: int) -> None:
        """Set the stage and the outer loss for `epoch`, in wrapped methods too; the trainer also calls it on resume."""
        for module in self.modules():
            if isinstance(module, Method):
                stages = module.task.stages
                module.stage = stages[min(epoch, len(stages) - 1)]
            elif isinstance(module, OuterLoss):
                module.enter(epoch)

    def begin(self, model: nn.Module) -> None:
        """Called with the network before its first step; a resumed run restores the method's state afterwards."""

    def start_epoch(self, epoch: int, predicted_counts: Tensor) -> None:
        """Called once before each epoch; predicted_counts (C,) are the classes predicted in the epoch before."""

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, attack: Attack) -> Adversarial:
        """Return the examples to train on; the trainer freezes and restores the model."""
        if self.stage == "clean":
            return Adversarial(x)
        return Adversarial(attack(model, x, y, cross_entropy if self.label_attack else natural_divergence(model, x)))

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, adversarial: Adversarial) -> Loss:
        """Return the loss of a model in train mode, by default AT's; pure, as AWP calls it twice on one batch."""
        return self.label_loss(model, adversarial.x, y)

    def label_loss(self, model: nn.Module, x: Tensor, y: Tensor) -> Loss:
        """Return the mean outer loss of f(x), which is the whole loss of many methods."""
        logits = model(x)
        return Loss(global_mean(self.outer(logits, y)), {}, logits)

    def after_step(self, model: nn.Module, step: Step) -> None:
        """Called when the weights have moved."""

    def feedback(self, epoch: int, seen: Seen) -> None:
        """Called at the end of each epoch with a point of the curve, if the method `needs_feedback`."""

    def admits(self, epoch: int, seen: Seen) -> bool:
        """Whether the weights of `epoch` enter the average, given the live model's results; called once per epoch."""
        return False

    def offset(self) -> Tensor:
        """Return the offset (C,) that is subtracted from the deployed logits."""
        return torch.zeros_like(self.class_counts)


SHARED: dict[str, Mapping[str, object]] = {
    "model": {"normalize": "none"},
    "threat": {"bn_mode": "eval"},
    "training": {"batch_size": 128, "lr": 0.1, "momentum": 0.9},
}
"""Published settings that most papers share."""


def published(**own: Mapping[str, object]) -> dict[str, object]:
    """Return a method's own settings, by the parts of a Run, and those of `SHARED` as overrides of a Run."""
    return dict(flat({part: {**SHARED.get(part, {}), **own.get(part, {})} for part in SHARED | own}))


def refuse_outer(method: str, task: Task, why: str) -> None:
    """Refuse an outer loss, also a deferred one, in a method whose own loss takes none."""
    if task.outer.name != "cross-entropy" or task.outer.drw:
        got = "deferred re-weighting" if task.outer.drw else f"the outer loss {task.outer.name}"
        raise UserError(f"{method}: got {got}; {why}")


def refuse_smoothing(method: str, task: Task, why: str) -> None:
    """Refuse label smoothing in a method where it has no meaning."""
    if task.outer.label_smoothing:
        raise UserError(f"{method}: got label smoothing {task.outer.label_smoothing:g}; {why}")


def first_epoch(share: float | None, task: Task, option: str = "begin", least: int = 0) -> int:
    """Return the epoch, from 0 and at least `least`, after a share of the epochs; by default the first milestone.

    A run without an epoch from there on is refused: what begins there would have no effect.
    """
    first = min(task.milestones, default=task.epochs) if share is None else max(round(share * task.epochs), least)
    if first >= task.epochs:
        got = "no milestone in" if share is None else f"{share:.3g} of"
        allowed = "a share that leaves an epoch after it"
        raise UserError(f"method {option}: got {got} {task.epochs} epochs; allowed: {allowed}")
    return first
