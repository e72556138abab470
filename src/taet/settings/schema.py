"""The settings of a run, frozen, checked when they are built, and converted to JSON and back."""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import BaseModel, Field, SerializeAsAny, ValidationError, model_validator

from taet import registry
from taet.errors import UserError, unknown
from taet.formatting import format_radius
from taet.settings.arguments import checked_arguments
from taet.settings.roles import Role
from taet.settings.types import (
    Count,
    Duration,
    ImageCount,
    LongSeed,
    NameOf,
    NonNegative,
    OnlyWith,
    PartialShare,
    Positive,
    Processes,
    Radius,
    RadiusL2,
    Ratio,
    Rule,
    Seed,
    Settings,
    Share,
    Whole,
    refused,
    to_python,
)

T = TypeVar("T", bound=BaseModel)
S = TypeVar("S", bound=Settings)
# short names on the command line
SHORT = {
    "data.name": "data",
    "data.path_column": "data.path",
    "data.label_column": "data.label",
    "model.name": "model",
    "outer.name": "outer",
    "evaluation.keep_images": "evaluation.images",
}
# that allow label smoothing
SMOOTHED = ("cross-entropy", "balanced-softmax", "logit-adjustment", "class-balanced")
NORMALIZATIONS = re.compile(r"data|none|imagenet|cifar10|cifar100|[\d.,e+-]+/[\d.,e+-]+")
# parts of a network that are trained
PARTS = re.compile(r"all|head|bias|(lora|adapter):[1-9]\d{0,3}")


def is_pattern(text: str | None) -> bool:
    """Whether a text is a regular expression, if it is given."""
    try:
        re.compile(text or "")
    except re.error:
        return False
    return True


RISING = Rule(
    lambda shares: list(shares) == sorted(shares) and all(0 < share <= 1 for share in shares),
    "rising shares of the epochs, e.g. 0.75 0.9",
)


class Data(Settings):
    """The data set, and how it is made long-tailed.

    Example:
        >>> from taet.settings import Data
        >>> Data(name="cifar10-lt", imbalance_ratio=50).imbalance_ratio
        50
    """

    retired: ClassVar[Mapping[str, object]] = {
        **dict.fromkeys(
            (
                "image_column",
                "image_template",
                "extra_filter_model",
            )
        ),
        "extra_classes": "prior",
        "extra_trained_on": "other",
        "extra_labels": "given",
        "extra_filter": 1.0,
        "fit": "squeeze",
    }

    name: str = "digits-lt"
    """Data set (see taet list data), or your images: folder:, csv:, npz:PATH or
    hf:USER/NAME@REVISION."""
    root: Annotated[str | None, Role.MACHINE] = None
    """Folder of the official files. Default: the environment variable TAET_DATA, or data."""
    imbalance_ratio: Annotated[Ratio | None, Role.IMAGES] = None
    """Largest class over the smallest. Default: --data.default-imbalance-ratio for sets named *-lt,
    otherwise as is."""
    default_imbalance_ratio: Annotated[Ratio, Role.IMAGES] = 10.0
    """Of sets named *-lt: 10 in protocol taet (TAET, table 1), 50 in reat; a set published with its
    own uses that."""
    profile: Annotated[Literal["exponential", "linear", "step"] | None, Role.IMAGES] = None
    """How class counts fall from the largest to the smallest. Default: exponential, or as the set
    is published."""
    max_count: Annotated[ImageCount | None, Role.IMAGES] = None
    """Images of the largest training class. Default: as many as the data allow."""
    test: Annotated[
        Literal["long-tailed", "balanced", "validation"], Field(title="test set"), Role.IMAGES
    ] = "long-tailed"
    """Test set: cut to the same imbalance ratio, or balanced; or the validation images, and never
    the test images."""
    test_max_count: Annotated[ImageCount | None, Role.IMAGES] = None
    """Images of the largest test class. Default: as many as the data allow."""
    test_seed: Annotated[Seed | None, Role.IMAGES] = None
    """Seed of the choice of test images and of `validation_per_class`. Default: the data's seed."""
    folds: Annotated[int | None, Field(ge=2, le=1000, title="data folds"), Role.IMAGES] = None
    """Divide your own images without splits into this many folds, whole groups at a time; `fold` is
    for testing."""
    fold: Annotated[int, Field(ge=0, title="data fold"), OnlyWith(folds=...), Role.IMAGES] = 0
    """The fold that is for testing, from 0."""
    validation: Annotated[PartialShare, Field(title="validation share"), Role.IMAGES] = 0.0
    """Share of each training class that is held out for validation, before class counts are
    taken."""
    validation_per_class: Annotated[ImageCount | None, Role.IMAGES] = None
    """Images of every class that are held out for validation before the cut, so that the validation
    set is balanced. Default: none."""
    class_order: Annotated[Seed | None, Role.REPLICATE] = None
    """Seed of the order of the classes in a long-tailed cut, which decides what classes are rare.
    Default: the order of the labels."""
    group_share: Annotated[float, Field(gt=0, le=1, title="data group share"), Role.IMAGES] = 1.0
    """Share of the training groups (patients, lesions, tracks) that is used, with all images of a
    group, about evenly over the classes."""
    train_share: Annotated[float, Field(gt=0, le=1, title="data train share")] = 1.0
    """Share of each training class that is used, at least one image; a smaller share is a subset of
    a larger one."""
    group: str | Literal["none"] | None = None
    """Keep images that belong together (of a patient, a lesion, a track) in one split: a column of
    a csv or an array of an .npz (train_NAME), by default `group`; or `folder`, the subfolders of
    class folders. none: no groups."""
    group_pattern: Annotated[
        str | None, Rule(is_pattern, "a regular expression"), Field(title="data group pattern")
    ] = None
    """Group images by their file names instead: what the first ( ) of this regular expression
    matches, such as 'patient(\\d+)'."""
    path_column: Annotated[str | None, Field(title="data path")] = None
    """Column of the files of a table, if its name is not a usual one."""
    label_column: Annotated[str | None, Field(title="data label")] = None
    """Column of the labels of a table, if its name is not a usual one; or a column for each class,
    such as mel,nv,bcc."""
    transparent: Annotated[
        Literal["white", "grey", "black"] | None, Field(title="data transparent")
    ] = None
    """Colour behind transparent pixels of image files. Default: the colour that is stored under
    them."""
    mirror: Literal["auto", "yes", "no"] = "auto"
    """Whether training may mirror images. auto: as known for a published set; yes for your own
    images."""
    size: Annotated[int, Field(ge=4, le=2048)] | None = None
    """Resize every image to SIZE x SIZE pixels. Default: chosen for your own images; else none; all
    need one size."""
    seed: Annotated[Seed, Role.REPLICATE] = 0
    """Seed of the selection of images. With the same seed, a smaller subset is part of a larger
    one."""
    storage: Annotated[Literal["auto", "memory", "disk"], Role.MACHINE] = "auto"
    """Where images are kept: in memory, or in a file. auto: in a file from a quarter of the memory
    on."""
    skip_unreadable: bool = False
    """Leave out image files that cannot be decoded, and count them in the notes of the run; extra
    images: no note."""
    extra: str | None = None
    """Extra training images, real or generated: folder:PATH of class folders, or npz:PATH with
    images and labels."""
    extra_fraction: Annotated[
        PartialShare, Field(title="data extra fraction"), OnlyWith(extra=...)
    ] = 0.7
    """Share of extra images in every batch, rounded down; 0: none."""
    extra_source: Annotated[str | None, Field(title="data extra source"), OnlyWith(extra=...)] = (
        None
    )
    """How the extra images were made and from what, in one sentence; required, and printed with
    every result."""

    @model_validator(mode="after")
    def _groups_one_way(self) -> Self:
        if self.group_pattern is not None and self.group is not None:
            raise UserError(
                f"data group pattern: got '{self.group_pattern}' with data group '{self.group}'; "
                "allowed: one of them"
            )
        return self

    @model_validator(mode="after")
    def _has_the_fold(self) -> Self:
        if self.folds is not None and self.fold >= self.folds:
            raise UserError(f"data fold: got {self.fold}; allowed: 0 to {self.folds - 1}")
        return self

    @model_validator(mode="after")
    def _names_a_source(self) -> Self:
        if self.extra is not None and ":" in self.extra and not (self.extra_source or "").strip():
            why = "a sentence that says how the images were made and from what"
            raise UserError(
                f"data extra: got '{self.extra}' without a source; add --data.extra-source, {why}"
            )
        return self


class Model(Settings):
    """The network.

    Example:
        >>> from taet.settings import Model
        >>> Model(name="resnet18", stem="imagenet").stem
        'imagenet'
    """

    label: ClassVar[str] = "model"

    name: str = "resnet18"
    """Model (see taet list models), torchvision:NAME, timm:NAME, or package.module:callable.
    Default: resnet18; on a CPU and below 16 pixels resnet8, unless published data come with
    --protocol or --recipe."""
    stem: Literal["auto", "cifar", "imagenet"] = "auto"
    """First layers of a ResNet: 3x3 at full size, or 7x7 and pooling to a quarter. auto: imagenet
    from 96 pixels."""
    weights: str | None = None
    """Pretrained weights: run:FOLDER, .safetensors, .pt of tensors only, a folder of taet push,
    hf:USER/NAME@COMMIT."""
    tune: Annotated[str, Rule(PARTS.fullmatch, "all, head, bias, lora:RANK or adapter:WIDTH")] = (
        "all"
    )
    """What is trained: all, the head, it and all biases, or it and low-rank parts or adapters that
    are added."""
    keep_statistics: bool = True
    """Where a part is trained, keep the statistics of batch normalisation, and drop nothing out."""
    normalize: Annotated[
        str, Rule(NORMALIZATIONS.fullmatch, "data, none, imagenet, cifar10, cifar100 or MEANS/STDS")
    ] = "data"
    """Normalisation of images inside the model: data (by the channel statistics of the training
    images), none, imagenet, cifar10, cifar100, or M1,M2,M3/S1,S2,S3; never of
    package.module:callable."""


class Threat(Settings):
    """The training attack: projected gradient ascent in an L-infinity ball.

    Example:
        >>> from taet.settings import Threat
        >>> Threat(eps=4 / 255, step_size=1 / 255).steps
        10
    """

    label: ClassVar[str] = "threat"

    eps: Radius = 8 / 255
    """Radius of the ball, for images in [0, 1]."""
    step_size: Radius = 2 / 255
    """Length of one step, in the same units."""
    steps: Whole = 10
    """Number of steps."""
    start: Literal["gaussian", "uniform", "positive", "none"] = "gaussian"
    """Start noise: 0.001 N(0, 1), U(-eps, eps), U(0, eps) (public code of RoBal), or none."""
    bn_mode: Literal["eval", "train"] = "eval"
    """Mode of batch normalisation during the attack."""
    weighting: Literal["none", "rw", "rws", "enr", "brw", "rbl"] = "none"
    """Class weights in the attack's objective (REAT, table 2). With sign steps in eval mode only
    brw has an effect."""

    @model_validator(mode="after")
    def _attacks_something(self) -> Self:
        if self.steps * self.step_size == 0 and self.start == "none":
            got = f"got {self.steps} of {self.step_size:g} with start none"
            raise UserError(
                f"threat steps: {got}, which attacks nothing; allowed: 1 or more, of a size above 0"
            )
        return self


class Outer(Settings):
    """The loss on the labels in the training loss, and its constants.

    Example:
        >>> from taet.settings import Outer
        >>> Outer(name="focal", gamma=1.0).gamma
        1.0
    """

    label: ClassVar[str] = "outer"

    name: Annotated[str, NameOf("losses")] = "cross-entropy"
    """Loss that replaces cross-entropy on the labels."""
    tau: Annotated[NonNegative, OnlyWith(name="logit-adjustment")] = 1.0
    """Logit adjustment: factor of the log prior (Menon et al., ICLR 2021)."""
    gamma: Annotated[NonNegative, OnlyWith(name="focal")] = 2.0
    """Focal loss: exponent of the modulating factor (Lin et al., ICCV 2017)."""
    focal_form: Annotated[Literal["softmax", "sigmoid"], OnlyWith(name="focal")] = "softmax"
    """Focal loss: on the probability of the label, or on one binary problem per class."""
    beta: Annotated[PartialShare, OnlyWith(name="class-balanced", drw=True)] = 0.9999
    """Class-balanced loss and DRW: beta of the effective number of images (Cui et al., CVPR
    2019)."""
    max_margin: Annotated[NonNegative, OnlyWith(name="ldam")] = 0.5
    """LDAM: margin of the rarest class (Cao et al., NeurIPS 2019)."""
    scale: Annotated[Positive, OnlyWith(name="ldam")] = 30.0
    """LDAM: scale of its cosine head (same paper). A method with its own cosine head keeps its own
    scale."""
    drw: bool = False
    """Deferred re-weighting: class-balanced weights from the first milestone on (same paper)."""
    divide_by: Annotated[Literal["weights", "batch"], OnlyWith(name="class-balanced", drw=True)] = (
        "weights"
    )
    """Divide weighted losses by the sum of the batch's weights, or by the batch size."""
    label_smoothing: Annotated[
        PartialShare, Field(title="label smoothing"), OnlyWith(name=SMOOTHED)
    ] = 0.0
    """Share of the target that is spread over all classes: equally, or by the prior (to the power
    tau) where the loss adds it. Focal loss and the margins of ldam are defined for one label."""


class Training(Settings):
    """Optimisation. The defaults are those of both papers: SGD with momentum and a step
    schedule.

    Example:
        >>> from taet.settings import Training
        >>> Training(epochs=30, batch_size=64).lr
        0.1
    """

    retired: ClassVar[Mapping[str, object]] = {
        **{"capture": True, "workers": 0, "tensorboard": False, "sync_bn": True},
        **{"probing": 0.0, "probing_lr": 0.05, "monitor_images": None},
    }

    epochs: Count = 100
    """Passes over the training images."""
    batch_size: Count = 128
    """Images per step."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """SGD with momentum, or AdamW (Loshchilov and Hutter, ICLR 2019), which transformers need (see
    --recipe vit)."""
    lr: Annotated[float, Field(gt=0, le=1e38, title="learning rate")] = 0.1
    """Highest learning rate."""
    momentum: Annotated[PartialShare, OnlyWith(optimizer="sgd")] = 0.9
    """Momentum of SGD."""
    weight_decay: NonNegative = 5e-4
    """SGD: L2 penalty on every parameter. AdamW: decoupled decay of all weights except biases and
    norm layers."""
    warmup: PartialShare = 0.0
    """Share of the epochs over which the learning rate rises linearly from 0."""
    decay: Literal["steps", "cosine", "one-cycle"] = "steps"
    """Rate: a tenth at each milestone; half a cosine to 0; or from lr / 25 to lr within warmup (or
    0.3), then to 0."""
    milestones: Annotated[tuple[float, ...], RISING] = (0.75, 0.9)
    """Shares of the epochs where decay steps divides the rate by ten, to the nearest epoch; drw
    begins at the first."""
    augment: Literal["crop-flip", "crop", "none", "randaugment", "autoaugment"] = "crop-flip"
    """Crop after padding by an eighth, and mirror; before it RandAugment (2, 8) or AutoAugment
    (CIFAR-10) of AT-BSL."""
    sampling: Literal["shuffled", "class-balanced", "square-root"] = "shuffled"
    """Every image once per epoch, or as many draws with replacement: all classes equally likely, or
    as the root of their images. Losses and budgets use these class counts."""
    awp: PartialShare = 0.0
    """Adversarial weight perturbation, relative to each weight's norm, e.g. 0.005 with TRADES, else
    0.01; 0: none."""
    awp_start: Annotated[Share, OnlyWith(awp=...)] = 0.0
    """Share of the epochs before weight perturbation begins."""
    ema: PartialShare = 0.0
    """Decay of the average of the weights, which the run delivers, e.g. 0.995; 0: none."""
    swa: Annotated[Share, OnlyWith(ema=0.0)] = 1.0
    """Share of the epochs after which the weights of each epoch are averaged, e.g. 0.275 (epoch 55
    of 200); 1: none."""
    precision: Literal["auto", "bf16", "float32"] = "auto"
    """Arithmetic of training, by autocast. auto: bf16 where the machine has instructions for it;
    kept when resumed. float32 is exact on GPUs too, not TF32."""
    channels_last: bool = True
    """Use the channels_last memory layout for images and convolutions."""
    compile: Annotated[bool | None, Role.MACHINE] = None
    """Compile the network that is attacked (torch.compile with CUDA graphs), for attacks in eval
    mode. Default: on a GPU, where it saves more time than it takes. If it fails, the run goes on
    without it, and run.json says why."""
    selection: Literal["last", "best-validation", "best-test"] = "last"
    """Which epoch's weights the run delivers. best-test uses the test set and is marked as a
    leak."""
    monitor_steps: Annotated[Count, Role.CURVE] = 20
    """PGD steps of the curve."""
    monitor_every: Annotated[Whole | None, Role.CURVE] = None
    """Epochs between points of the curve; 0: no curve. Default: a tenth of the epochs, on 1,000
    evenly sampled images; if the curve chooses the epoch or teaches the method, 1, on all
    images."""
    distance_images: Annotated[Whole, Role.RECORD] = 0
    """Training images per class whose adversarial examples are compared from epoch to epoch (REAT,
    figure 3)."""
    save_minutes: Annotated[NonNegative, Role.MACHINE] = 5.0
    """Minutes between checkpoints within an epoch, which ends with one anyway; 0: after every
    step."""
    device: Annotated[str, Role.MACHINE] = "auto"
    """auto, cpu, cuda or cuda:N."""
    threads: Annotated[Processes | None, Role.MACHINE] = None
    """CPU threads; with the same number, results are bit-identical. Default: OMP_NUM_THREADS, or as
    many as cores are idle when the run begins."""
    tuned: Whole = 0
    """Number of trials by which a search chose the settings (examples/tune.py), shown in cards and
    tables."""


class Evaluation(Settings):
    """The attacks on a finished model.

    Example:
        >>> from taet.settings import Evaluation
        >>> Evaluation(attacks=("clean", "pgd-20")).attacks
        ('clean', 'pgd-20')
    """

    label: ClassVar[str] = "evaluation"
    role: ClassVar[Role] = Role.EVALUATION

    attacks: Annotated[tuple[str, ...], Field(min_length=1), Role.COLUMNS] = (
        *("clean", "fgsm", "pgd-20", "pgd-100", "cw-l2", "autoattack"),
    )
    """Attacks (see taet list attacks), optionally with settings: pgd-20:restarts=5; taet or reat: a
    paper's columns."""
    eps: Annotated[Annotated[Radius, Field(gt=0)] | None, Role.CURVE] = None
    """Radius of the L-infinity ball. Default: that of training."""
    step_size: Annotated[Radius, Field(gt=0), Role.CURVE] = 1 / 255
    """Step of PGD in the L-infinity ball. For another eps the protocol's value, also if given, is
    scaled with eps."""
    eps_l2: Annotated[RadiusL2, Field(gt=0)] = 1.0
    """Radius of the L2 ball, for images in [0, 1], also of cw-l2 if bounded (REAT)."""
    step_size_l2: Annotated[RadiusL2, Field(gt=0)] = 0.2
    """Step of PGD in the L2 ball (REAT). For another radius the protocol's value, also if given, is
    scaled with it."""
    cw_constant: Annotated[Positive, Field(title="cw constant")] | None = 10.0
    """Weight of the margin in cw-l2 (TAET's code). None: the smallest that succeeds, by binary
    search."""
    cw_bounded: bool = False
    """Count a success of cw-l2 only within eps_l2."""
    search_precision: Annotated[
        Literal["float32", "bf16", "tf32"], Field(title="search precision"), Role.COLUMNS
    ] = "float32"
    """Arithmetic of FGSM, PGD, cw-linf, quick (autoattack:precision=bf16). What is broken is
    decided in float32."""
    batch_size: Annotated[Count, Role.CURVE] = 250
    """Images per batch; stored in the result, because AutoAttack's result depends on it."""
    seed: Seed = 0
    """Seed of every random start."""
    keep_images: Annotated[bool, Role.MACHINE] = True
    """Keep at most six test images with what the strongest attack made of them beside the card, for
    the report."""


class Slurm(Settings):
    """What the job of a cell asks SLURM for. Default: what the cluster gives.

    Example:
        >>> from taet.settings import Slurm
        >>> Slurm(partition="gpu", gpus=1, time="4h").gpus
        1
    """

    label: ClassVar[str] = "slurm"

    partition: str | None = None
    """Partition."""
    account: str | None = None
    """Account that is charged."""
    time: Duration = "8h"
    """Time limit of a job, which saves before it and is started again until its cell is done."""
    gpus: Whole = 0
    """GPUs of a job; a run uses one. 0: none, and own images are planned for that."""
    cpus: Processes = 1
    """CPU cores of a job, and threads of its run."""
    memory_gb: Count | None = None
    """Memory of a job in gigabytes."""


class Run(Settings):
    """Everything that determines the results of a run.

    Example:
        >>> import taet
        >>> run = taet.protocols.taet("at-bsl")
        >>> run.method, run.threat.steps, run.data.name
        ('at-bsl', 10, 'digits-lt')
    """

    method: str = "at"
    """A method's name (see `taet list methods`)."""
    settings: SerializeAsAny[Settings] | None = None
    """The method's own `Config`; None: its defaults."""
    data: Data = Data()
    model: Model = Model()
    threat: Threat = Threat()
    outer: Outer = Outer()
    training: Training = Training()
    evaluation: Evaluation = Evaluation()
    protocol: str = "taet"
    """The protocol that the settings started from."""
    seed: Annotated[LongSeed, Role.REPLICATE] = 0
    """Seed of weights, batches, augmentation and attack starts."""

    @model_validator(mode="before")
    @classmethod
    def _own_settings(cls, values: Any) -> Any:
        """Turn settings given as a mapping into the `Config` of the method, whose file is
        imported."""
        if not isinstance(values, Mapping) or not isinstance(values.get("settings"), Mapping):
            return values
        kind = registry.class_of(values.get("method", cls.default("method"))).Config
        return {**values, "settings": from_json(kind, values["settings"], "method")}

    @property
    def attack_eps(self) -> float:
        """Radius of the L-infinity ball of the evaluation: its own, or that of the training."""
        return self.threat.eps if self.evaluation.eps is None else self.evaluation.eps


def epoch_at(share: float, epochs: int) -> int:
    """Return a share of the epochs as a number of epochs, rounded to the nearest, ties down: 0.75
    of two is 1."""
    return math.ceil(share * epochs - 0.5 - 1e-9)  # 1e-9: a half may have a rounding error


def option(name: str) -> str:
    """Return the option of `taet train`, without leading dashes, for a setting with this dotted
    name."""
    return SHORT.get(
        name, re.sub("^settings[.]", "method.", name.removeprefix("training."))
    ).replace("_", "-")


def option_words(name: str, value: object) -> list[str]:
    """Return a setting, by its dotted name, as words of `taet train`; eps and step sizes as k/255
    if k is whole."""
    name = option(name)
    part, dot, last = name.rpartition(".")
    if isinstance(value, bool):
        return [f"--{part}{dot}{'' if value else 'no-'}{last}"]
    if last in ("eps", "step-size") and isinstance(value, float):
        return [f"--{name}", format_radius(value, None, within=0)]
    return [f"--{name}", *map(str, value if isinstance(value, tuple) else (value,))]


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted name, value) of a table and its subtables: `"a.b" = 1` and `a.b = 1` are the
    same.

    Example:
        >>> from taet.settings import flat
        >>> dict(flat({"training": {"epochs": 20}, "threat.steps": 2}))
        {'training.epochs': 20, 'threat.steps': 2}
    """
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


@checked_arguments
def override(config: S, changes: Mapping[str, object], prefix: str = "") -> S:
    """Return `config` with dotted fields replaced, e.g. `{"training.epochs": 5, "method.beta": 1}`,
    and checked.

    The changes are made together; `method` names the `settings` of a run, as on the command line.

    Example:
        >>> import taet
        >>> run = taet.settings.override(taet.protocols.taet(), {"training.epochs": 20})
        >>> run.training.epochs
        20
    """
    values, parts = dict[str, Any](), dict[str, dict[str, object]]()
    for path, value in changes.items():
        if not isinstance(path, str):
            raise UserError(
                f"setting {path!r}: got a {type(path).__name__}; allowed: a dotted name"
            )
        name, dot, rest = re.sub("^method[.]", "settings.", path).partition(".")
        # the model checks these
        if name not in type(config).model_fields.keys() | type(config).retired.keys():
            raise unknown(f"setting '{prefix}{path}': field", name, type(config).model_fields)
        if dot and not isinstance(getattr(config, name, ""), Settings | None):
            raise UserError(f"setting '{prefix}{path}': {name} has no fields")
        if dot:
            parts.setdefault(name, {})[rest] = value
        else:
            values[name] = value
    for name, part in parts.items():
        own = getattr(config.replace(**{name: values[name]}) if name in values else config, name)
        # The model builds a part that it does not have yet, such as the settings of a method.
        label = f"{prefix}{'method' if name == 'settings' else name}."
        values[name] = override(own, part, label) if isinstance(own, Settings) else part
    return config.replace(**values)


def from_json(kind: type[T], values: object, label: str = "") -> T:
    """Build a model from the output of `model_dump`; a missing field takes its default, and an
    unknown one is refused.

    `label` precedes the fields in messages about a `kind` that is no `Settings`.
    """
    try:
        return kind.model_validate(to_python(values))
    except ValidationError as error:
        raise refused(error, kind, label) from None
