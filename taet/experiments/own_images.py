"""The settings that `taet train METHOD --data folder:PATH` chooses for the user's own images, and the reasons."""

import math
from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import NamedTuple

import numpy as np
import torch

from taet import methods
from taet.data import Dataset, facts, full_name, is_own, source
from taet.data.images import Files
from taet.data.splits import VALIDATION, select
from taet.formatting import plural, size
from taet.protocols import start
from taet.settings import Data, Run, option, override

# Our choices, in the order in which a user sees them.
SIDES = (224, 128, 64, 32)  # pixels of ImageNet, MedMNIST+, Tiny-ImageNet, CIFAR
SMALL = 16  # pixels; smaller images have too little detail for a deep network
BATCHES, STEPS_PER_EPOCH = (64, 32), 20  # smaller batches than the protocol's if an epoch would have fewer steps
# Without an accelerator, the number of training steps and of attacked test images is limited.
FEWEST_EPOCHS, STEPS = 5, 2000  # at most the epochs of the protocol
TESTED = 2500
CYCLE = ("threat.steps", "threat.step_size", "training.decay")  # set by the short schedule
WidthHeight = tuple[int, int]
ATTACKS = ("clean", "pgd-20", "autoattack-fast")  # the last has two of the four parts of AutoAttack


class Chosen(NamedTuple):
    """The value of a setting that was chosen automatically, and the reason for it."""

    value: object
    why: str


def choice_lines(choices: Mapping[str, tuple[object, str]]) -> list[str]:
    """Return a line for each choice, by dotted name of the setting, with the option that changes it."""
    rows = []
    for name, (value, why) in choices.items():
        text = " ".join(value) if isinstance(value, tuple) else size(value) if isinstance(value, float) else str(value)
        rows.append((f"--{option(name)}", text, why))
    wide = [max((len(row[column]) for row in rows), default=0) for column in (0, 1)]
    return [f"{name:{wide[0]}}  {value:{wide[1]}}  {why}" for name, value, why in rows]


def plan(method: str, data: str, **changes: object) -> tuple[Run, dict[str, Chosen]]:
    """Return the run of `method` on your own images as `taet train` chooses it beside `changes`, and why."""
    return chosen(start(Run.default("protocol"), method), {"data.name": data, **changes})


def cycle_for(method: object, given: Mapping[str, object]) -> tuple[str, ...]:
    """Return the part of `CYCLE` to choose: nothing if part of it or milestones are given; no steps for own attacks."""
    if {*CYCLE, "training.milestones"} & given.keys():
        return ()
    return CYCLE[2:] if methods.find(str(method)).own_attack else CYCLE


def planned(
    run: Run, accelerated: bool | None = None, cycle: Sequence[str] = CYCLE, batches: bool = True
) -> tuple[Run, dict[str, Chosen]]:
    """Return `run` with the settings that follow from the images and from having a GPU, and these choices.

    Without a GPU these include the settings named in `cycle`. `batches`: choose the batch size.
    """
    accelerated = _on_gpu(run) if accelerated is None else accelerated and run.training.device != "cpu"
    parts = source(run.data).splits
    kept, images = select(parts, run.data)[0], parts["train"].images
    if isinstance(images, Files):
        median, largest, uniform = images.ranked(0.5), images.ranked(1), images.uniform
    else:
        median = largest = run.data.size or images.shape[2], run.data.size or images.shape[1]
        uniform = True
    choices = {
        **_size(median, largest, uniform, accelerated),
        "model.name": network(median, accelerated),
        **length(run, len(kept["train"]), accelerated, batches),
        **({} if accelerated else attacked(run.data, kept["test"].class_counts.tolist())),
        "threat.eps": Chosen(run.threat.eps, "L-infinity, the usual size for photographs"),
    }
    if run.protocol == Run.default("protocol"):  # the columns of another protocol are used as they are
        choices["evaluation.attacks"] = Chosen(ATTACKS, "more with: taet evaluate RUN --attacks taet")
        if not accelerated:
            few = dict(zip(CYCLE, (2, 6 / 8 * run.threat.eps, "one-cycle"), strict=True))
            why = "a third of the time" if cycle == CYCLE else "few epochs"
            choices |= {name: Chosen(few[name], why) for name in cycle}
        if run.method in ("taet", "harl"):
            choices["settings.alpha"] = Chosen(1, "more robust on validation images, with small networks, than 0.1")
    return override(run, {name: made.value for name, made in choices.items()}), choices


def chosen(begin: Run, given: Mapping[str, object], *, network_too: bool = True) -> tuple[Run, dict[str, Chosen]]:
    """Return `begin` with the settings `given` and others chosen for the images and the machine, and these choices.

    For a published data set only a network is chosen, unless it is given or not wanted.
    """
    run = override(begin, given)
    if is_own(run.data.name):
        usual = start(begin.protocol, begin.method)  # a recipe may have a cycle of its own
        as_usual = all(attrgetter(name)(begin) == attrgetter(name)(usual) for name in CYCLE)
        cycle = cycle_for(given.get("settings.base", run.method), given) if as_usual else ()
        training = begin.training.replace(device=run.training.device, batch_size=run.training.batch_size)
        begin = begin.replace(data=run.data, threat=begin.threat.replace(eps=run.threat.eps), training=training)
        planned_run, choices = planned(begin, cycle=cycle, batches="training.batch_size" not in given)
        named = {"data.name": full_name(run.data.name)}  # the meaning of a bare path must not depend on the folder
        run = override(planned_run, {**given, **named})
        return run, {name: one for name, one in choices.items() if name not in given}
    known = facts(run.data)
    sides = (run.data.size or 32,) * 2 if known is None else known.image_shape[:0:-1]
    if not network_too or "model.name" in given or (model := network(sides, _on_gpu(run))).value == run.model.name:
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


def _size(median: WidthHeight, largest: WidthHeight, uniform: bool, accelerated: bool) -> dict[str, Chosen]:
    """Choose the image size, which is square; images of one size that the machine can handle stay as they are."""
    most = SIDES[0] if accelerated else SIDES[-1]
    if uniform and max(largest) <= most:
        return {}
    side = next((side for side in SIDES if side <= min(most, *median)), SIDES[-1])
    sizes = "they are {}x{}".format(*largest) if uniform else "they have many sizes"
    squeezed = "" if median[0] == median[1] else "; images that are not square are squeezed"
    return {"data.size": Chosen(side, f"{sizes}, and {_machine(accelerated)}{squeezed}")}


def mirroring(data: Data, dataset: Dataset) -> dict[str, Chosen]:
    """Return whether the user's own images are mirrored in training, and why, if the data decide."""
    if not is_own(data.name) or data.mirror != "auto":
        return {}
    why = "the default; no for letters, signs, and whatever has a left and a right"
    return {"data.mirror": Chosen("yes", why) if dataset.mirror else Chosen("no", "traffic signs")}


def length(run: Run, training: int, accelerated: bool, batches: bool = True) -> dict[str, Chosen]:
    """Choose batch size, unless it is given, and epochs by the number of images; never more than the protocol's."""
    protocol = run.training
    sizes = [protocol.batch_size, *(size for size in BATCHES if size < protocol.batch_size)]
    batch = next((size for size in sizes if not batches or training >= STEPS_PER_EPOCH * size), BATCHES[-1])
    steps = math.ceil(training / batch)
    epochs = protocol.epochs if accelerated else min(max(math.ceil(STEPS / steps), FEWEST_EPOCHS), protocol.epochs)
    why = f"about {epochs * steps} steps; at most {protocol.epochs} epochs"
    return {
        "training.batch_size": Chosen(batch, f"about {plural(steps, 'step')} in an epoch"),
        "training.epochs": Chosen(epochs, why),
    }


def attacked(data: Data, tested: Sequence[int]) -> dict[str, Chosen]:
    """Limit the test images to about `TESTED`: all of the small classes, and equally many of each other class."""
    if sum(tested) <= TESTED or data.imbalance_ratio is not None or data.test == VALIDATION:
        return {}
    most = max(most for most in range(1, TESTED + 1) if most == 1 or sum(np.minimum(tested, most)) <= TESTED)
    taken = f"{np.minimum(tested, most).sum():,} of {sum(tested):,} test images"
    return {"data.test_max_count": Chosen(most, f"of each class, {taken}: attacks are slow here; all: None")}
