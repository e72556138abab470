"""What `taet train METHOD --data folder:PATH` decides by itself for images of one's own, and why."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch

from taet.config import Data, Run, override
from taet.data import DataFacts, facts, full_name, image_listing, is_own, load
from taet.errors import UserError
from taet.formatting import size
from taet.protocols import start

# Judgements of ours, in the order in which a user meets them; the numbers that come from a paper say so.
SIDES = (224, 128, 64, 32)  # pixels that the sets of this field come in: ImageNet, MedMNIST+, Tiny-ImageNet, CIFAR
BATCHES, STEPS_PER_EPOCH = (64, 32), 20  # smaller than the protocol's where an epoch would have fewer steps
FEWEST_EPOCHS, STEPS = 30, 2000  # without an accelerator as many epochs as make 2,000 steps, within the protocol's
POINTS = 10  # of the curve of a run
TRAINING_SHARE = 0.8  # of the images, where they are not divided yet
ATTACKS = ("clean", "pgd-20", "autoattack-fast")  # the fast one is within 1 point of the whole (docs/evaluation.md)


@dataclass(frozen=True)
class Machine:
    """What a run can count on."""

    accelerated: bool

    @property
    def words(self) -> str:
        """What it is like, for a reason."""
        return "this machine has an accelerator" if self.accelerated else "this machine has no accelerator"


def machine() -> Machine:
    """Return what this machine is."""
    return Machine(torch.cuda.is_available())


class OwnImages(NamedTuple):
    """What the user's images are, as far as decisions depend on it."""

    training: float
    """Training images, about."""
    median: tuple[int, int]
    """Width and height."""
    largest: tuple[int, int]
    uniform: bool
    """Are all images of one size?"""
    grouped: bool = False
    """Can the subfolders of the class folders be kept in one split each?"""


def own_images(data: Data) -> OwnImages:
    """Look at the user's images: at the headers of image files, at the labels and the shape of arrays."""
    listed = image_listing(data)
    if listed is not None:
        found, given = listed.survey.checked(), len(listed.by_split()["train"])
        training = given * (TRAINING_SHARE if listed.splits is None else 1)
        return OwnImages(training, found.median, found.largest, found.uniform, listed.subfolders_are_groups())
    known = facts(data) or DataFacts.of(load(data.name, root=data.root, storage=data.storage))
    _, height, width = known.image_shape
    return OwnImages(known.sizes["train"], (width, height), (width, height), True)


class Decision(NamedTuple):
    """A value of a setting, and why it was chosen."""

    value: Any
    why: str


@dataclass(frozen=True, repr=False)
class OwnDataPlan:
    """A run on images of one's own, and what was decided for it."""

    run: Run
    decisions: Mapping[str, Decision]
    """By dotted name of the setting."""

    def sentences(self, run: Run | None = None) -> list[str]:
        """Say what was decided and how it is changed; of a `run` with other values, only what still holds."""
        names = [name for name, made in self.decisions.items() if _value(run or self.run, name) == made.value]
        rows = [(_option(name), _words(self.decisions[name].value), self.decisions[name].why) for name in names]
        wide = [max((len(row[column]) for row in rows), default=0) for column in (0, 1)]
        return [f"{option:{wide[0]}}  {value:{wide[1]}}  {why}" for option, value, why in rows]

    def __repr__(self) -> str:
        return "\n".join([f"{self.run.method} on {self.run.data.name}", *self.sentences()])


def plan(method: str, data: str, *, root: str | None = None, protocol: str = "taet") -> OwnDataPlan:
    """Return the run of `method` on images of one's own: folder:PATH, csv:PATH, npz:PATH, or the bare path.

    The protocol decides all but what depends on the images and the machine: the size of the images, which of them
    belong together, network, batch, epochs and attacks. Of image files only the headers are read. A data set with a
    name of its own, such as cifar10-lt, is refused: its protocol decides everything.
    """
    return planned(override(start(protocol, method), {"data.name": full_name(data), "data.root": root}))


def planned(run: Run, here: Machine | None = None) -> OwnDataPlan:
    """Return `run`, which names images of one's own, with what depends on them and on the machine decided."""
    if not is_own(run.data.name):
        raise UserError(
            f"data: got {run.data.name}, whose protocol decides all; allowed: folder:, csv:, npz: and a path"
        )
    here = here or machine()
    found = own_images(replace(run.data, group=None))
    decisions = {
        **_size(found, here),
        **_groups(run, found),
        "model.name": Decision("resnet18" if here.accelerated else "resnet8", here.words),
        **length(run, found, here),
        "threat.eps": Decision(run.threat.eps, "L-infinity, as the field has it for photographs"),
    }
    if run.protocol == "taet":  # whoever asks for another one wants its columns
        decisions["evaluation.attacks"] = Decision(ATTACKS, "more with: taet evaluate RUN --attacks taet")
    return OwnDataPlan(override(run, {name: made.value for name, made in decisions.items()}), decisions)


def _size(found: OwnImages, here: Machine) -> dict[str, Decision]:
    """Images stay as they are where they are of one size that the machine can take."""
    most = SIDES[0] if here.accelerated else SIDES[-1]
    if found.uniform and max(found.largest) <= most:
        return {}
    side = next((side for side in SIDES if side <= min(most, *found.median)), SIDES[-1])
    sizes = "they are of many sizes" if not found.uniform else "they are {}x{}".format(*found.largest)
    return {"data.size": Decision(side, f"{sizes}, and {here.words}; squeezed where they are not square")}


def _groups(run: Run, found: OwnImages) -> dict[str, Decision]:
    if run.data.group is not None or not found.grouped:
        return {}
    return {"data.group": Decision("folder", "folders in the class folders: the images of one stay in one split")}


def length(run: Run, found: OwnImages, here: Machine) -> dict[str, Decision]:
    """Batches and epochs, by about how many training images there are; never more than the protocol's."""
    most = run.training
    sizes = [size for size in BATCHES if size < most.batch_size]
    batch = next((size for size in [most.batch_size, *sizes] if found.training >= STEPS_PER_EPOCH * size), BATCHES[-1])
    steps = math.ceil(found.training / batch)
    enough = max(math.ceil(STEPS / steps), FEWEST_EPOCHS)
    epochs = most.epochs if here.accelerated else min(enough, most.epochs)
    return {
        "training.batch_size": Decision(batch, f"about {steps} step{'' if steps == 1 else 's'} in an epoch"),
        "training.epochs": Decision(
            epochs, f"about {epochs * steps} steps; the protocol {run.protocol} has {most.epochs} epochs"
        ),
        "training.monitor_every": Decision(max(1, epochs // POINTS), "epochs between points of the curve"),
    }


def _value(run: Run, name: str) -> Any:
    for part in name.split("."):
        run = getattr(run, part)
    return run


def _option(name: str) -> str:
    """The option of the command line that sets a dotted name."""
    return "--" + name.removeprefix("training.").replace("model.name", "model").replace("_", "-")


def _words(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(value)
    return size(value) if isinstance(value, float) else str(value)
