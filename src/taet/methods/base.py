"""The method interface: what a training method receives and returns, and its hooks.

A method is one small class in one file of this folder. The trainer refers to no method by name. In
each step it calls `perturb` on the frozen model, `loss`, and, when the weights have moved,
`after_step`. A method never subclasses another one: a wrapper holds the other method and forwards
the hooks. CONTRIBUTING.md has the rules for state and branches.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn

from taet import losses
from taet.attacks.noise import Source
from taet.attacks.objectives import Objective, natural_divergence
from taet.attacks.pgd import pgd
from taet.distributed import global_mean
from taet.errors import UserError
from taet.losses.equalization import Loss as Loss
from taet.losses.long_tail import cross_entropy
from taet.losses.outer import OuterLoss
from taet.models.classifier import Head
from taet.models.view import View
from taet.settings import Outer, Threat, flat
from taet.settings.types import Settings


class Adversarial(NamedTuple):
    """Examples to train on: x (N, C, H, W) in [0, 1], with per-sample facts, all of static
    shape."""

    x: Tensor
    info: Mapping[str, Tensor] = {}


@dataclass(frozen=True)
class Attack:
    """The protocol's attack as a value: `attack(model, x, y)` returns examples in the ball around x
    and in [0, 1].

    The attack maximises `objective` (logits, labels) -> (N,). Options are those of
    `taet.attacks.pgd`: `observe` receives the logits of every iterate before its update. A method
    that must differ from the protocol names how (eps, step_size, steps, start) and declares it in
    `Method.deviations`; its eps and step size are then final, so it builds them from `attack.eps`
    and `attack.step_size`. Random draws are from `attack.source`.

    Example:
        >>> import torch
        >>> import taet
        >>> from taet.attacks.noise import Source
        >>> model = taet.models.build("resnet8", 10, image_shape=(1, 8, 8)).eval()
        >>> x, y = torch.rand(4, 1, 8, 8), torch.arange(4)
        >>> threat = taet.settings.Threat(eps=0.1, step_size=0.05, steps=2)
        >>> attack = taet.methods.Attack(threat, Source(torch.Generator()))
        >>> bool(((attack(model, x, y) - x).abs() <= 0.1 + 1e-6).all())
        True
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
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        objective: Objective = cross_entropy,
        **options: Any,
    ) -> Tensor:
        threat = self.threat
        used: dict[str, Any] = {"eps": self.eps, "step_size": self.step_size, "steps": threat.steps}
        used |= {
            "start": threat.start,
            "start_noise": self.source,
            "bn_mode": threat.bn_mode,
            **options,
        }

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
    """The training set and the schedule, passed to a method when it is built.

    Example:
        >>> from taet.methods import Task
        >>> task = Task((100, 10), image_shape=(3, 32, 32), epochs=30, steps_per_epoch=1)
        >>> task.num_classes
        2
    """

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
    """The method's head; `methods.build` sets it, as well as `stages` and the method's own
    `outer`."""
    stages: tuple[str, ...] = ()
    """The method's stage in every epoch."""
    seed: int = 0
    """The run's seed, for the initial weights of the method's own networks."""
    monitored_epochs: tuple[int, ...] = ()
    """Epochs, from 0, that have a point of the curve, and thus feedback; by default each."""
    drawn_class_counts: tuple[float, ...] = ()
    """Class counts that losses use: N times the share of each class in a batch. Equal to
    `class_counts` unless extra images or --training.sampling change how often a class is drawn;
    head, body and tail follow `class_counts`."""
    unique_class_counts: tuple[int, ...] = ()
    """Different images per class, with extra ones; by default the training images."""

    def __post_init__(self) -> None:
        defaults = {
            "stages": ("adversarial",) * self.epochs,
            "monitored_epochs": tuple(range(self.epochs)),
            "drawn_class_counts": self.class_counts,
            "unique_class_counts": self.class_counts,
        }
        for name, default in defaults.items():
            object.__setattr__(self, name, getattr(self, name) or default)

    @property
    def num_classes(self) -> int:
        return len(self.class_counts)


@dataclass(frozen=True)
class ClassFeedback:
    """What a point of the curve measured on all validation images, by class: the argument of
    `Method.feedback`.

    Sums in float64 over the images of a class, on the method's device and over all processes, of
    the model as it would be deployed, clean (f(x)) and under the curve's attack (f(x')). Runs whose
    curve is on test images are refused before they begin (`taet.training.checks`).
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
        """Return sums (C,) as means over a class's images.

        A class without images has the mean of the others.
        """
        means, present = sums / self.images.clamp(min=1), self.images > 0
        return torch.where(present, means, means.sum() / present.sum())


class Step(NamedTuple):
    """The arguments of `after_step`: positions in the data (N,), the batch, its loss, the attack,
    the optimiser of the model's weights, which stays as it is, how many steps of the run came
    before, and the view to attack, if any.
    """

    index: Tensor  # type: ignore[assignment]  # hides tuple.index, which is not used on a step
    x: Tensor
    y: Tensor
    loss: Loss
    attack: Attack
    optimizer: torch.optim.Optimizer
    number: int = 0
    view: View | None = None


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known about a method with certain settings before it is built.

    Example:
        >>> import taet
        >>> facts = taet.methods.facts("trades", {})
        >>> facts.title, facts.uses_features, facts.label_attack
        ('TRADES', False, False)
    """

    title: str
    reference: str
    deviations: tuple[str, ...]
    """How the method deviates from the protocol, in words; every table prints this."""
    label_attack: bool
    """Whether --threat.weighting applies to the attack. If so, the `perturb` of `Method` raises the
    cross-entropy on the labels, else KL(f(x) || f(x')), as in TRADES."""
    own_attack: bool
    """Whether the attack is its own, so that the threat's steps and step size change nothing."""
    single_step: bool
    """Whether the attack is a single step: the curve then watches for catastrophic overfitting,
    under FGSM too."""
    own_outer: str | None
    """Name of the outer loss of a run that asks for cross-entropy; None: that of the run."""
    uses_features: bool
    """Whether the loss reads `model.features`."""
    uses_labels: bool
    """Whether the loss reads the labels; else the head is not trained."""
    needs_feedback: bool
    """Whether the method learns from the validation split, through `feedback`; a run without that
    split is refused."""
    average_decay: float | None
    """If not None, the run delivers an exponential average of the weights, with this decay, of
    epochs it `accepts_epoch`."""


class Method(nn.Module):
    """A training method. Every hook has the default of plain adversarial training.

    A class states its `Facts` as attributes. One whose settings change a fact also overrides
    `facts`. A built method has the facts of its settings as attributes.

    Example:
        >>> import taet
        >>> class Doubled(taet.methods.Method):
        ...     title, reference = "Doubled", "an example"
        ...     def loss(self, model, x, y, adversarial):
        ...         loss = self.label_loss(model, adversarial.x, y)
        ...         return loss._replace(total=2 * loss.total)
        >>> task = taet.methods.Task((5, 2), image_shape=(1, 8, 8), epochs=1, steps_per_epoch=1)
        >>> method = Doubled(Doubled.Config(), task)
        >>> method.title, method.deviations
        ('Doubled', ())
    """

    title: str
    reference: str
    deviations: tuple[str, ...] = ()
    label_attack: bool = True
    own_attack: bool = False
    single_step: bool = False
    own_outer: str | None = None
    uses_features: bool = False
    uses_labels: bool = True
    needs_feedback: bool = False
    average_decay: float | None = None

    official: ClassVar[Mapping[str, object]] = {}
    """Its own published settings, as overrides of a Run."""

    class Config(Settings):
        """The method has no settings of its own."""

        label = "method"

    def __init__(self, config: Any, task: Task) -> None:
        super().__init__()
        for name, fact in vars(self.facts(config)).items():
            setattr(self, name, fact)
        self.config, self.task, self.stage = config, task, task.stages[0]
        self.class_counts = nn.Buffer(
            torch.tensor(task.class_counts, dtype=torch.float32), persistent=False
        )
        """Training images of each class, (C,)."""
        self.drawn_class_counts = nn.Buffer(
            torch.tensor(task.drawn_class_counts, dtype=torch.float32), persistent=False
        )
        """Class counts by the prior of the batches, (C,): what a loss that undoes or weighs the
        prior takes."""
        # Every label term of an outer loss goes through here: `self.outer(logits, y)` -> (N,).
        begin = min((epoch for epoch in task.milestones if epoch < task.epochs), default=None)
        self.outer = OuterLoss(
            task.outer, task.drawn_class_counts, task.head.scale, begin, task.unique_class_counts
        )

    @classmethod
    def facts(cls, config: Any) -> Facts:
        """Return the facts of the method with these settings; by default, those of the class."""
        return Facts(**{fact.name: getattr(cls, fact.name) for fact in fields(Facts)})

    @staticmethod
    def head(config: Any, task: Task) -> Head:
        """Return the head that the method needs; by default that of the outer loss."""
        on_cosines = losses.find(task.outer.name).on_cosines
        return Head("cosine", scale=task.outer.scale) if on_cosines else Head()

    @staticmethod
    def stage_at(config: Any, task: Task, epoch: int) -> str:
        """Return the stage of `epoch`, from 0; a stage called `clean` has no attack."""
        return "adversarial"

    def warnings(self, class_counts: Sequence[int], batch_size: int) -> tuple[str, ...]:
        """Return warnings for training with batches of this size, one sentence each."""
        return ()

    def enter(self, epoch: int) -> None:
        """Set the stage and the outer loss for `epoch`, in wrapped methods too.

        The trainer also calls it on resume.
        """
        for module in self.modules():
            if isinstance(module, Method):
                stages = module.task.stages
                module.stage = stages[min(epoch, len(stages) - 1)]
            elif isinstance(module, OuterLoss):
                module.enter(epoch)

    def begin(self, model: nn.Module) -> None:
        """Called with the network before its first step.

        A resumed run restores the method's state afterwards.
        """

    def start_epoch(self, epoch: int, predicted_counts: Tensor) -> None:
        """Called once before each epoch.

        predicted_counts (C,) are the classes predicted in the epoch before.
        """

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, attack: Attack) -> Adversarial:
        """Return the examples to train on; the trainer freezes and restores the model."""
        if self.stage == "clean":
            return Adversarial(x)
        return Adversarial(
            attack(
                model, x, y, cross_entropy if self.label_attack else natural_divergence(model, x)
            )
        )

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, adversarial: Adversarial) -> Loss:
        """Return the loss of a model in train mode, by default AT's.

        It is pure, as AWP calls it twice on one batch.
        """
        return self.label_loss(model, adversarial.x, y)

    def label_loss(self, model: nn.Module, x: Tensor, y: Tensor) -> Loss:
        """Return the mean outer loss of f(x), which is the whole loss of many methods."""
        logits = model(x)
        return Loss(global_mean(self.outer(logits, y)), {}, logits)

    def after_step(self, model: nn.Module, step: Step) -> None:
        """Called when the weights have moved."""

    def feedback(self, epoch: int, seen: ClassFeedback) -> None:
        """Called after each epoch with a point of the curve, if the method `needs_feedback`."""

    def accepts_epoch(self, epoch: int, seen: ClassFeedback) -> bool:
        """Whether the weights of `epoch` enter the average, given the live model's results.

        Called once per epoch.
        """
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
    """Return overrides of a Run: a method's own settings, by its parts, and those of `SHARED`."""
    return dict(
        flat({part: {**SHARED.get(part, {}), **own.get(part, {})} for part in SHARED | own})
    )


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
    """Return the epoch, from 0, after a share of the epochs; by default the first milestone.

    It is at least `least`. A run without an epoch from there on is refused: what begins there would
    have no effect.
    """
    first = (
        min(task.milestones, default=task.epochs)
        if share is None
        else max(round(share * task.epochs), least)
    )
    if first >= task.epochs:
        got = "no milestone in" if share is None else f"{share:.3g} of"
        allowed = "a share that leaves an epoch after it"
        raise UserError(f"method {option}: got {got} {task.epochs} epochs; allowed: {allowed}")
    return first
