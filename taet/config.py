"""What a run is: frozen dataclasses, checked when built, turned to and from plain JSON. It knows no method."""

from __future__ import annotations

import dataclasses
import functools
import math
import numbers
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from taet.errors import UserError, unknown


def _require(condition: bool, what: str, got: object, allowed: str) -> None:
    if not condition:
        raise UserError(f"{what}: got {got}; allowed: {allowed}")


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _fits(value: Any, hint: Any) -> bool:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin is Literal:
        return value in arguments
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, argument) for argument in arguments)
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(item, arguments[0]) for item in value)
    if hint in (int, float):
        wanted = numbers.Integral if hint is int else numbers.Real
        return isinstance(value, wanted) and not isinstance(value, bool)
    return isinstance(value, hint)


def _check_field(name: str, value: Any, hint: Any) -> None:
    if _fits(value, hint):
        return
    what = name.replace("_", " ")
    if typing.get_origin(hint) is Literal and isinstance(value, str):
        raise unknown(what, value, typing.get_args(hint))
    kind = hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
    raise UserError(f"{what}: got {value!r}; allowed: {kind}")


def check_fields(config: Any) -> None:
    """Refuse a value of the wrong type, or one that is not among the choices of its field."""
    for name, hint in _hints(config.__class__).items():
        value = getattr(config, name)
        if isinstance(value, numbers.Number) and hasattr(value, "item"):  # NumPy's numbers are no JSON
            value = value.item()
            object.__setattr__(config, name, value)
        _check_field(name, value, hint)


def check_factors(config: Any, *names: str, above_zero: bool = False) -> None:
    """Refuse a knob of a method, among `names`, that is neither None nor a finite number of 0 or more, or above 0."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not (math.isfinite(value) and (value > 0 if above_zero else value >= 0)):
            allowed = "above 0" if above_zero else "0 or more"
            raise UserError(f"method {name.replace('_', ' ')}: got {value:g}; allowed: {allowed}")


def check_ball(what: str, value: float) -> None:
    """Refuse a perturbation size outside [0, 1], and say how grey levels are written."""
    hint = f"; did you mean {value:g}/255?" if 1 < value <= 255 else ""
    if not 0 <= value <= 1:
        raise UserError(f"{what}: got {value:g}; allowed: 0 to 1, where images lie, e.g. 8/255{hint}")


def check_radius(what: str, value: float, norm: str) -> None:
    """Refuse the size of a perturbation that no ball of `norm` has: an L2 length grows with the image, beyond 1."""
    if norm == "linf":
        check_ball(what, value)
    elif not 0 <= value < math.inf:
        raise UserError(f"{what}: got {value:g}; allowed: 0 or more, e.g. 1.0")


@dataclass(frozen=True)
class Data:
    """Which images, and how they are made long-tailed."""

    name: str = "digits-lt"
    """A data set's name (see `taet list data`), or images of one's own: folder:PATH, csv:PATH, npz:PATH,
    taet-npy:PATH."""
    root: str | None = None
    """Folder that holds the official files; the environment variable TAET_DATA where it is not given."""
    imbalance_ratio: float | None = None
    """Largest class over smallest, >= 1. Not given: the next value for sets named -lt; others stay as they are."""
    default_imbalance_ratio: float = 10.0
    """What a set named -lt is cut to where no ratio is given: 10 in protocol taet (TAET, table 1), 50 in reat; a set
    that is published with a ratio of its own (tiny-imagenet-lt: 100) takes that."""
    profile: Literal["exponential", "linear", "step"] | None = None
    """How the class counts fall from the largest to the smallest. Not given: exponential, or as the set is published
    (tiny-imagenet-lt: linear)."""
    max_count: int | None = None
    """Images of the largest training class. Not given: as many as the data allow."""
    test: Literal["long-tailed", "balanced"] = "long-tailed"
    """Cut the test set with the same imbalance ratio, or leave it balanced."""
    test_max_count: int | None = None
    """Images of the largest test class. Not given: as many as the data allow."""
    validation: float = 0.0
    """Share of each training class that is held out for validation, before classes are counted."""
    group: str | None = None
    """What keeps images (of a patient, a lesion, a track) together in one split: a column of a csv or an array of an
    .npz (train_NAME), where `group` is taken by itself; of a folder `folder`, the path of an image below its class
    folder."""
    size: int | None = None
    """Resize every image to SIZE x SIZE pixels. Not given: as they are, which must be one size."""
    seed: int = 0
    """Seed of the choice of images; smaller subsets are nested in larger ones of the same seed."""
    storage: Literal["auto", "memory", "disk"] = "auto"
    """Where images lie while a run reads them: in memory, or in a file that is built once and read batch by batch;
    auto: on disk where they would take more than a quarter of the memory. The numbers are the same."""

    def __post_init__(self) -> None:
        check_fields(self)
        for ratio in (self.imbalance_ratio, self.default_imbalance_ratio):
            if ratio is not None and not (math.isfinite(ratio) and ratio >= 1):
                hint = f"; did you mean {1 / ratio:g}?" if 0 < ratio < 1 else ""
                allowed = "1 or more (largest class over smallest)"
                raise UserError(f"imbalance ratio: got {ratio:g}; allowed: {allowed}{hint}")
        for what, count in (("max count", self.max_count), ("test max count", self.test_max_count)):
            _require(count is None or count >= 1, what, count, "1 or more")
        _require(0 <= self.validation < 1, "validation share", self.validation, "0 up to, not including, 1")
        _require(self.size is None or self.size >= 4, "size", self.size, "4 pixels or more")


@dataclass(frozen=True)
class Model:
    """Which network."""

    name: str = "resnet18"
    """A model's name (see `taet list models`), torchvision:NAME, timm:NAME, or package.module:callable."""
    stem: Literal["auto", "cifar", "imagenet"] = "auto"
    """First layers of a residual network: 3x3 at full resolution (cifar), or 7x7 and pooling to a quarter (imagenet).
    auto: imagenet from 96 pixels on."""
    weights: str | None = None
    """File of pretrained weights (.safetensors, or .pt of tensors only) to start from. Not given: fresh ones."""
    normalize: Literal["data", "none"] = "data"
    """Normalise inside the model by the training images' mean and standard deviation per channel, or not at all, as a
    network of package.module:callable never is."""

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class Threat:
    """The attack in training: projected gradient ascent in an L-infinity ball."""

    eps: float = 8 / 255
    """Radius of the ball, in units of the image range [0, 1]."""
    step_size: float = 2 / 255
    """Length of one step, same units."""
    steps: int = 10
    """Number of steps."""
    start: Literal["gaussian", "uniform", "positive", "none"] = "gaussian"
    """Start noise: 0.001 N(0, 1), U(-eps, eps), U(0, eps) (RoBal's public code), or none."""
    bn_mode: Literal["eval", "train"] = "eval"
    """Mode of batch normalisation while the attack runs."""
    weighting: Literal["none", "rw", "rws", "enr", "brw", "rbl"] = "none"
    """Re-balancing of the attack's objective by class (REAT, table 2); only brw acts on sign steps in eval mode."""

    def __post_init__(self) -> None:
        check_fields(self)
        check_ball("threat eps", self.eps)
        check_ball("threat step size", self.step_size)
        _require(self.steps >= 0, "threat steps", self.steps, "0 or more")


@dataclass(frozen=True)
class Outer:
    """The loss on labels that trains the weights, and its constants."""

    name: Literal["cross-entropy", "balanced-softmax", "logit-adjustment", "focal", "class-balanced", "ldam"] = (
        "cross-entropy"
    )
    """What stands in for the label cross-entropy of a method's outer loss."""
    tau: float = 1.0
    """Logit adjustment: factor of the log prior (Menon et al., ICLR 2021)."""
    gamma: float = 2.0
    """Focal loss: exponent of the modulating factor (Lin et al., ICCV 2017)."""
    focal_form: Literal["softmax", "sigmoid"] = "softmax"
    """Focal loss: on the probability of the label, or on one binary problem per class."""
    beta: float = 0.9999
    """Class-balanced loss and DRW: beta of the effective number of images (Cui et al., CVPR 2019)."""
    max_margin: float = 0.5
    """LDAM: margin of the rarest class (Cao et al., NeurIPS 2019)."""
    scale: float = 30.0
    """LDAM: scale of its cosine head (same); a method with a cosine head of its own keeps its own scale."""
    drw: bool = False
    """Deferred re-weighting: class-balanced weights from the first milestone on (same paper)."""
    divide_by: Literal["weights", "batch"] = "weights"
    """Weighted losses are divided by the sum of the batch's weights, or by the size of the batch."""

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("tau", "gamma", "max_margin"):
            value = getattr(self, name)
            _require(math.isfinite(value) and value >= 0, f"outer {name.replace('_', ' ')}", value, "0 or more")
        _require(0 <= self.beta < 1, "outer beta", self.beta, "0 up to, not including, 1")
        _require(math.isfinite(self.scale) and self.scale > 0, "outer scale", self.scale, "above 0")
        weighted = self.drw or self.name == "class-balanced"
        for knob, used in {
            "tau": self.name == "logit-adjustment",
            "gamma": self.name == "focal",
            "focal_form": self.name == "focal",
            "beta": weighted,
            "divide_by": weighted,
            "max_margin": self.name == "ldam",
            "scale": self.name == "ldam",
        }.items():
            if not used and getattr(self, knob) != getattr(Outer, knob):
                what = f"outer {knob.replace('_', ' ')}"
                raise UserError(f"{what}: got {getattr(self, knob)}; the outer loss {self.name} has no such constant")


@dataclass(frozen=True)
class Training:
    """Optimisation; the defaults are what both papers do: SGD with momentum and a step schedule."""

    epochs: int = 100
    """Passes over the training images."""
    batch_size: int = 128
    """Images per step."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """SGD with momentum, or AdamW (Loshchilov and Hutter, ICLR 2019), which transformers need (see --recipe vit)."""
    lr: float = 0.1
    """Highest learning rate."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 5e-4
    """SGD: L2 penalty on every parameter. AdamW: decoupled decay of every weight that is no bias and no norm's."""
    warmup: float = 0.0
    """Share of the epochs over which the learning rate rises from 0, step by step."""
    decay: Literal["steps", "cosine"] = "steps"
    """How the learning rate falls: divided by ten at the milestones, or along half a cosine to 0."""
    milestones: tuple[float, ...] = (0.75, 0.9)
    """Shares of the epochs at which the learning rate is divided by ten, and deferred re-weighting begins."""
    augment: Literal["crop-flip", "crop", "none", "randaugment", "autoaugment"] = "crop-flip"
    """Random crop after zero padding by an eighth of the side, and mirroring where it keeps the label; before it, also
    RandAugment (2 operations of magnitude 8) or AutoAugment (the CIFAR-10 policy), as AT-BSL does."""
    sampling: Literal["shuffled", "class-balanced"] = "shuffled"
    """Every image once per epoch, or as many draws of a class each equally likely and an image of it, with return."""
    awp: float = 0.0
    """Adversarial weight perturbation: its length relative to each weight tensor (0.01 with cross-entropy, 0.005 with
    TRADES); 0: none."""
    awp_start: float = 0.0
    """Share of the epochs before weights are perturbed."""
    ema: float = 0.0
    """Decay of the exponential moving average of the weights, which is then what the run delivers; 0.995 is usual, 0:
    none."""
    swa: float = 1.0
    """Share of the epochs after which the weights of every epoch are averaged, which is then what the run delivers,
    e.g. 0.275 (epoch 55 of 200); 1: none. A point of the curve then attacks the training images once, for statistics
    of the average's own."""
    precision: Literal["bf16", "float32"] = "bf16"
    """Arithmetic of training under autocast; evaluation is always float32."""
    channels_last: bool = True
    """Memory layout of images and convolutions."""
    sync_bn: bool = True
    """With several processes: batch normalisation over the images of all of them, so that they train what one would;
    without it each uses its own share, and the running statistics are averaged."""
    selection: Literal["last", "best-validation", "best-test"] = "last"
    """Which epoch's weights the run delivers; best-test looks at the test set and is marked as a leak."""
    monitor_steps: int = 20
    """PGD steps of the per-epoch curve."""
    monitor_every: int = 1
    """Epochs between two points of the curve; the last epoch always has one; 0: none."""
    distance_images: int = 0
    """Training images of every class whose attacked versions are compared from epoch to epoch (REAT, figure 3)."""
    save_minutes: float = 5.0
    """Minutes between two checkpoints within an epoch; the end of an epoch always has one."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    capture: bool = True
    """On a GPU, and with one process: replay steps as CUDA graphs, where they can be recorded."""
    threads: int | None = None
    """CPU threads; results repeat bit for bit at the same number. Not given: torch's choice."""
    workers: int = 0
    """Processes that prepare the images of RandAugment and AutoAugment ahead; 0: the training process itself."""
    tensorboard: bool = False
    """Write TensorBoard events as well (needs the extra `tensorboard`)."""

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("epochs", "batch_size"):
            _require(getattr(self, name) >= 1, name.replace("_", " "), getattr(self, name), "1 or more")
        _require(0 < self.lr <= 1e38, "learning rate", self.lr, "above 0, within float32")
        minutes = self.save_minutes
        _require(math.isfinite(minutes) and minutes >= 0, "save minutes", minutes, "0 (after every step) or more")
        _require(0 <= self.momentum < 1, "momentum", self.momentum, "0 up to, not including, 1")
        decay = self.weight_decay
        _require(math.isfinite(decay) and decay >= 0, "weight decay", decay, "0 or more")
        _require(0 <= self.warmup < 1, "warmup", self.warmup, "0 up to, not including, 1")
        if self.optimizer == "adamw":
            _require(self.momentum == Training.momentum, "momentum", self.momentum, "with optimizer sgd only")
        ordered = list(self.milestones) == sorted(self.milestones)
        within = all(0 < share <= 1 for share in self.milestones)
        _require(ordered and within, "milestones", self.milestones, "rising shares of the epochs, e.g. 0.75 0.9")
        _require(math.isfinite(self.awp) and 0 <= self.awp < 1, "awp", self.awp, "0 up to, not including, 1")
        _require(0 <= self.awp_start <= 1, "awp start", self.awp_start, "0 to 1")
        _require(bool(self.awp) or not self.awp_start, "awp start", self.awp_start, "with awp above 0 only")
        _require(0 <= self.ema < 1, "ema", self.ema, "0 up to, not including, 1")
        _require(0 <= self.swa <= 1, "swa", self.swa, "0 to 1")
        _require(not self.ema or self.swa == 1, "swa beside ema", self.swa, "one average of the weights")
        _require(self.distance_images >= 0, "distance images", self.distance_images, "0 or more")
        _require(self.workers >= 0, "workers", self.workers, "0 or more")
        policy = self.augment in ("randaugment", "autoaugment")
        _require(policy or not self.workers, "workers", self.workers, "with augment randaugment or autoaugment only")
        _require(self.monitor_steps >= 1, "monitor steps", self.monitor_steps, "1 or more")
        _require(self.monitor_every >= 0, "monitor every", self.monitor_every, "0 or more")
        _require(self.threads is None or self.threads >= 1, "threads", self.threads, "1 or more")


# Settings that say where and how fast a run is made and how often it is saved: they decide no number.
MACHINE = frozenset(
    {
        "data.root",
        "data.storage",
        "training.capture",
        "training.device",
        "training.save_minutes",
        "training.tensorboard",
        "training.threads",
        "training.workers",
    }
)


@dataclass(frozen=True)
class Evaluation:
    """The attacks that a finished model faces."""

    attacks: tuple[str, ...] = ("clean", "fgsm", "pgd-20", "pgd-100", "cw-l2", "autoattack")
    """Names of attacks (see `taet list attacks`), with options where wanted, e.g. pgd-20:restarts=5."""
    eps: float | None = None
    """Radius of the L-infinity ball. Not given: that of training."""
    step_size: float = 1 / 255
    """Step of PGD in the L-infinity ball."""
    eps_l2: float = 1.0
    """Radius of the L2 ball, same units: of pgd-l2, autoattack-l2, and of cw-l2 where it is bounded (REAT)."""
    step_size_l2: float = 0.2
    """Length of a step of PGD in the L2 ball (REAT)."""
    cw_constant: float | None = 10.0
    """Weight of the margin in cw-l2 (TAET's code). None: the smallest that succeeds, by binary search."""
    cw_bounded: bool = False
    """Does a success of cw-l2 count only within eps_l2?"""
    batch_size: int = 250
    """Images per batch; stored in the result, since AutoAttack's result depends on it."""
    seed: int = 0
    """Seed of every random start."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.eps is not None:
            check_ball("evaluation eps", self.eps)
            _require(self.eps > 0, "evaluation eps", 0, "above 0; without an attack: --attacks clean")
        check_ball("evaluation step size", self.step_size)
        _require(self.step_size > 0, "evaluation step size", 0, "above 0")
        _require(0 <= self.seed < 2**32, "evaluation seed", self.seed, "0 to 4294967295")
        for what, value in (("eps l2", self.eps_l2), ("step size l2", self.step_size_l2)):
            _require(0 < value < math.inf, f"evaluation {what}", f"{value:g}", "above 0")
        if self.cw_constant is not None:
            _require(0 < self.cw_constant < math.inf, "cw constant", f"{self.cw_constant:g}", "above 0")
        _require(self.batch_size >= 1, "evaluation batch size", self.batch_size, "1 or more")
        _require(len(self.attacks) >= 1, "attacks", "none", "at least one")


@dataclass(frozen=True)
class Run:
    """Everything that decides a run's numbers."""

    method: str = "at"
    """A method's name (see `taet list methods`)."""
    settings: Any = None
    """The method's own Config; None means its defaults."""
    data: Data = field(default_factory=Data)
    model: Model = field(default_factory=Model)
    threat: Threat = field(default_factory=Threat)
    outer: Outer = field(default_factory=Outer)
    training: Training = field(default_factory=Training)
    evaluation: Evaluation = field(default_factory=Evaluation)
    protocol: str = "taet"
    """The protocol whose settings the run started from."""
    seed: int = 0
    """Seed of weights, batches, augmentation and attack starts."""

    def __post_init__(self) -> None:
        check_fields(self)


def override(run: Run, changes: Mapping[str, Any]) -> Run:
    """Return `run` with dotted fields replaced, e.g. `{"training.epochs": 5, "seed": 1}`, each checked again.

    All fields of a part are replaced at once, so their order does not matter.
    """
    tree = _Changes()
    for path, value in changes.items():
        *parts, last = path.split(".")
        node = tree
        for part in parts:
            node = node.setdefault(part, _Changes())
            if not isinstance(node, _Changes):
                raise UserError(f"setting '{path}': {part} is given as a whole as well")
        node[last] = value
    replaced: Run = _replace(run, tree, "")
    return replaced


class _Changes(dict[str, Any]):
    """Changes to the fields of a part of a run; a plain dictionary is a value."""

    @property
    def first(self) -> str:
        """Dotted name of the first field that is changed."""
        name, value = next(iter(self.items()))
        return f"{name}.{value.first}" if isinstance(value, _Changes) else name


def _replace(node: Any, changes: _Changes, prefix: str) -> Any:
    if not dataclasses.is_dataclass(node) or isinstance(node, type):
        name = changes.first
        raise UserError(f"setting '{prefix}{name}': {name} is asked of {node!r}, which has no fields")
    names = [f.name for f in dataclasses.fields(node)]
    values = {}
    for name, value in changes.items():
        if name not in names:
            raise unknown(f"setting '{prefix}{_Changes({name: value}).first}': field", name, names)
        part = isinstance(value, _Changes)
        values[name] = _replace(getattr(node, name), value, f"{prefix}{name}.") if part else value
    return dataclasses.replace(node, **values)


def to_json(config: Any) -> Any:
    """Return a dataclass as plain dictionaries, lists, strings and numbers."""
    return dataclasses.asdict(config)


def from_json(kind: type, values: Mapping[str, Any]) -> Any:
    """Rebuild the dataclass `kind` from what `to_json` gave; unknown fields are refused, missing ones take defaults."""
    hints = _hints(kind)
    arguments = {}
    for key, value in values.items():
        if key not in hints:
            raise unknown(f"field of {kind.__name__}", key, hints)
        if dataclasses.is_dataclass(hints[key]) and isinstance(value, Mapping):
            value = from_json(typing.cast(type, hints[key]), value)
        elif isinstance(value, list):
            value = tuple(value)
        _check_field(key, value, hints[key])
        arguments[key] = value
    return kind(**arguments)
