"""The settings that `taet train METHOD --data folder:PATH` chooses for the user's own images, and
the reasons."""

import math
from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import NamedTuple

import numpy as np
import torch

from taet import methods
from taet.data import Dataset, facts, is_own
from taet.data.image_files import ImageFiles
from taet.data.sources import full_name, source
from taet.data.splits import VALIDATION, select
from taet.data.storage import Pixels
from taet.errors import UserError
from taet.formatting import format_radius, plural
from taet.protocols import start
from taet.settings import Data, Run, override
from taet.settings.schema import option

# Our choices, in the order in which a user sees them.
SIDES = (224, 128, 64, 32)  # pixels of ImageNet, MedMNIST+, Tiny-ImageNet, CIFAR
SMALL = 16  # pixels; smaller images have too little detail for a deep network
# smaller batches than the protocol's if an epoch would have fewer steps
BATCHES, STEPS_PER_EPOCH = (64, 32), 20
# Without an accelerator, the number of training steps and of attacked test images is limited.
FEWEST_EPOCHS, STEPS = 5, 2000  # at most the epochs of the protocol
TESTED = 2500
CYCLE = ("threat.steps", "threat.step_size", "training.decay")  # set by the short schedule
WHY_CYCLE = {
    "threat.steps": "training takes a third of the time that ten steps take",
    "threat.step_size": "three quarters of eps, for two steps",
    "training.decay": "for two steps",
}
WidthHeight = tuple[int, int]
ATTACKS = ("clean", "pgd-20", "autoattack-fast")  # the last has two of the four parts of AutoAttack


class Chosen(NamedTuple):
    """The value of a setting that was chosen automatically, and the reason for it."""

    value: object
    why: str


def epochs_within(run: Run, passes: float) -> tuple[Run, Chosen]:
    """Return the run with the number of epochs whose passes are nearest to the budget."""
    from taet.training.passes import epochs_for_passes

    found = facts(run.data)
    if found is None:
        raise UserError("passes: the data are not there, so no step can be counted")
    budget = epochs_for_passes(run, found, passes)
    why = f"{budget.passes:.4g} passes of an image, counted; the nearest to {passes:g}"
    return override(run, {"training.epochs": budget.epochs}), Chosen(budget.epochs, why)


def choice_lines(choices: Mapping[str, tuple[object, str]]) -> list[str]:
    """Return a line for each choice, by dotted name of the setting: its option, the value, and the
    reason."""
    options = {name: f"--{option(name)}" for name in choices}
    values = {name: _as_text(value) for name, (value, _) in choices.items()}
    option_width = max(map(len, options.values()), default=0)
    value_width = max(map(len, values.values()), default=0)
    lines = []
    for name, (_, why) in choices.items():
        lines.append(f"{options[name]:{option_width}}  {values[name]:{value_width}}  {why}")
    return lines


def _as_text(value: object) -> str:
    if isinstance(value, tuple):
        return " ".join(value)
    return format_radius(value) if isinstance(value, float) else str(value)


def plan(method: str, data: str, **changes: object) -> tuple[Run, dict[str, Chosen]]:
    """Return the run of `method` on your own images as `taet train` chooses it, and the choices.

    Args:
        method: a name of `taet list methods`.
        data: your images, {folder,csv,npz,hf}:PATH or a bare path.
        **changes: settings that you give, by dotted name; only others are chosen.

    Returns:
        The run for `taet.train`, and each chosen setting by its dotted name, with the reason.

    Raises:
        UserError: an unknown method or setting, or images that cannot be read.

    Example:
        >>> import taet
        >>> run, choices = taet.plan("at-bsl", "./lesions")
        >>> run.method, len(choices) > 0
        ('at-bsl', True)
    """
    return chosen(start(Run.default("protocol"), method), {"data.name": data, **changes})


def cycle_for(method: object, given: Mapping[str, object]) -> tuple[str, ...]:
    """Return the part of `CYCLE` to choose: nothing if part of it or milestones are given; no steps
    for own attacks."""
    if {*CYCLE, "training.milestones"} & given.keys():
        return ()
    return CYCLE[2:] if methods.find(str(method)).own_attack else CYCLE


def planned(
    run: Run, accelerated: bool | None = None, cycle: Sequence[str] = CYCLE, batches: bool = True
) -> tuple[Run, dict[str, Chosen]]:
    """Return `run` with the settings that follow from the images and from having a GPU, and these
    choices.

    Without a GPU these include the settings named in `cycle`. `batches`: choose the batch size.
    """
    if accelerated is None:
        accelerated = _on_gpu(run)
    elif run.training.device == "cpu":
        accelerated = False
    splits = source(run.data).splits
    used, _ = select(splits, run.data)
    sizes = _image_sizes(splits["train"].images, run.data.size)
    choices = _size(sizes, accelerated)
    choices["model.name"] = network(sizes.median, accelerated)
    choices |= length(run, len(used["train"]), accelerated, batches)
    if not accelerated:
        choices |= attacked(run.data, used["test"].class_counts.tolist())
    choices["threat.eps"] = Chosen(run.threat.eps, "L-infinity, the usual size for photographs")
    if run.protocol == Run.default("protocol"):  # other protocols are used as they are
        choices |= _beside_the_default_protocol(run, accelerated, cycle)
    return override(run, {name: made.value for name, made in choices.items()}), choices


def _beside_the_default_protocol(
    run: Run, accelerated: bool, cycle: Sequence[str]
) -> dict[str, Chosen]:
    """Choose the attacks of the evaluation, and without a GPU the settings named in `cycle`."""
    choices = {"evaluation.attacks": Chosen(ATTACKS, "more with: taet evaluate RUN --attacks taet")}
    if not accelerated:
        step_size = 6 / 8 * run.threat.eps
        short = dict(zip(CYCLE, (2, step_size, "one-cycle"), strict=True))
        reasons = WHY_CYCLE if cycle == CYCLE else dict.fromkeys(cycle, "few epochs")
        choices |= {name: Chosen(short[name], reasons[name]) for name in cycle}
    if run.method in ("taet", "harl"):
        why = "more robust on validation images, with small networks, than 0.1"
        choices["settings.alpha"] = Chosen(1, why)
    return choices


class ImageSizes(NamedTuple):
    """Sizes of the images of a source."""

    median: WidthHeight
    largest: WidthHeight
    uniform: bool
    """Whether all have one size."""


def _image_sizes(images: Pixels | ImageFiles, size: int | None) -> ImageSizes:
    """Return the sizes of images as they are in files, or in memory after resizing to `size`."""
    if isinstance(images, ImageFiles):
        return ImageSizes(images.ranked(0.5), images.ranked(1), images.uniform)
    _, height, width, _ = images.shape
    pixels = (width, height) if size is None else (size, size)
    return ImageSizes(pixels, pixels, uniform=True)


def chosen(
    begin: Run, given: Mapping[str, object], *, network_too: bool = True
) -> tuple[Run, dict[str, Chosen]]:
    """Return `begin` with the settings `given` and others chosen for the images and the machine,
    and these choices.

    For a published data set only a network is chosen, unless it is given or not wanted.
    """
    run = override(begin, given)
    if is_own(run.data.name):
        return _for_own_images(begin, run, given)
    if not network_too or "model.name" in given:
        return run, {}
    return _with_network(run)


def _for_own_images(
    begin: Run, run: Run, given: Mapping[str, object]
) -> tuple[Run, dict[str, Chosen]]:
    """Return `run`, which is `begin` with the settings `given`, with what follows from the user's
    own images."""
    usual = start(begin.protocol, begin.method)  # a recipe may have a cycle of its own
    cycle: tuple[str, ...] = ()
    if all(attrgetter(name)(begin) == attrgetter(name)(usual) for name in CYCLE):
        cycle = cycle_for(given.get("settings.base", run.method), given)
    device, batch_size = run.training.device, run.training.batch_size
    basis = begin.replace(
        data=run.data,
        threat=begin.threat.replace(eps=run.threat.eps),
        training=begin.training.replace(device=device, batch_size=batch_size),
    )
    planned_run, choices = planned(basis, cycle=cycle, batches="training.batch_size" not in given)
    # the meaning of a bare path must not depend on the folder
    named = {"data.name": full_name(run.data.name)}
    made = {name: choice for name, choice in choices.items() if name not in given}
    return override(planned_run, {**given, **named}), made


def _with_network(run: Run) -> tuple[Run, dict[str, Chosen]]:
    """Return a run on a published data set with the network for its images, and this choice."""
    known = facts(run.data)
    if known is None:
        side = run.data.size or SIDES[-1]
        width, height = side, side
    else:
        _, height, width = known.image_shape
    model = network((width, height), _on_gpu(run))
    if model.value == run.model.name:
        return run, {}
    why = f"{model.why}; --protocol {run.protocol} has {run.model.name}"
    return override(run, {"model.name": model.value}), {"model.name": Chosen(model.value, why)}


def _on_gpu(run: Run) -> bool:
    device = run.training.device
    return device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())


def network(size: WidthHeight, accelerated: bool) -> Chosen:
    """Return the network for images of this width and height, with or without a GPU."""
    if max(size) < SMALL:
        return Chosen("resnet8", "the median image has {}x{} pixels".format(*size))
    return Chosen("resnet18" if accelerated else "resnet8", _machine(accelerated))


def _machine(accelerated: bool) -> str:
    return f"training is on {'a GPU' if accelerated else 'the CPU'}"


def _size(sizes: ImageSizes, accelerated: bool) -> dict[str, Chosen]:
    """Choose the image size, which is square; images of one size that the machine can handle stay
    as they are."""
    most = SIDES[0] if accelerated else SIDES[-1]
    if sizes.uniform and max(sizes.largest) <= most:
        return {}
    fitting = [side for side in SIDES if side <= min(most, *sizes.median)]
    side = fitting[0] if fitting else SIDES[-1]
    why = "they are {}x{}".format(*sizes.largest) if sizes.uniform else "they have many sizes"
    why += f", and {_machine(accelerated)}"
    width, height = sizes.median
    if width != height:
        why += "; images that are not square are squeezed"
    return {"data.size": Chosen(side, why)}


def mirroring(data: Data, dataset: Dataset) -> dict[str, Chosen]:
    """Return whether the user's own images are mirrored in training, and why, if the data
    decide."""
    if not is_own(data.name) or data.mirror != "auto":
        return {}
    why = "the default; no for letters, signs, and whatever has a left and a right"
    return {"data.mirror": Chosen("yes", why) if dataset.mirror else Chosen("no", "traffic signs")}


def length(run: Run, training: int, accelerated: bool, batches: bool = True) -> dict[str, Chosen]:
    """Choose batch size, unless it is given, and epochs by the number of images; never more than
    the protocol's."""
    batch_size, epochs = run.training.batch_size, run.training.epochs
    most_epochs = epochs
    if batches and training < STEPS_PER_EPOCH * batch_size:
        smaller = [size for size in BATCHES if size < batch_size]
        fitting = [size for size in smaller if training >= STEPS_PER_EPOCH * size]
        batch_size = fitting[0] if fitting else BATCHES[-1]
    steps = math.ceil(training / batch_size)
    if not accelerated:
        epochs = min(max(math.ceil(STEPS / steps), FEWEST_EPOCHS), most_epochs)
    why = f"about {epochs * steps} steps; at most {most_epochs} epochs"
    return {
        "training.batch_size": Chosen(batch_size, f"about {plural(steps, 'step')} in an epoch"),
        "training.epochs": Chosen(epochs, why),
    }


def attacked(data: Data, tested: Sequence[int]) -> dict[str, Chosen]:
    """Limit the test images to about `TESTED`: all of the small classes, and equally many of each
    other class."""
    if sum(tested) <= TESTED or data.imbalance_ratio is not None or data.test == VALIDATION:
        return {}
    most_per_class = 1
    while np.minimum(tested, most_per_class + 1).sum() <= TESTED:
        most_per_class += 1
    taken = f"{np.minimum(tested, most_per_class).sum():,} of {sum(tested):,} test images"
    why = f"of each class, {taken}: attacks are slow here; all: None"
    return {"data.test_max_count": Chosen(most_per_class, why)}
