"""`taet evaluate`: attack a finished run, or a model of any origin, and write its result card."""

from __future__ import annotations

import os
import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from taet import registry
from taet.cli.options import (
    POSITIONAL,
    OfModel,
    Options,
    OutPath,
    Weights,
    call_text,
    of_part,
    parse,
    refuse_idle_trust,
)
from taet.errors import UserError
from taet.files import Json
from taet.formatting import plural
from taet.settings import Data, Evaluation
from taet.settings.types import ModelName, Processes, check_value

if TYPE_CHECKING:
    from torch import nn

    from taet.card.card import Card
    from taet.data import Dataset

OF_DATA = ("name", "root", "imbalance_ratio", "test", "size")
USUAL = ("attacks", "eps", "step_size", "eps_l2", "search_precision", "batch_size", "keep_images")
"""Settings of data and attacks that --help shows."""
OF_TRAINING = frozenset(name for name in Data.model_fields if name.startswith("extra"))
"""Settings of data without an effect on test images."""


class Evaluate(OfModel):
    """Attack a finished run and write its result card, RUN/evaluation.json. An interrupted
    evaluation continues where it stopped. Options default to the settings of the run; the defaults
    below are those of protocol taet.

    Or attack a model of any origin on the test images of a data set: --model NAME --data NAME,
    where the model is package.module:callable (called without arguments or with num_classes),
    torchvision:NAME, timm:NAME, a name of taet list models, or a run folder, for other images than
    its own. Weights never run code. Run taet check first.
    """

    examples = (
        "taet evaluate runs/x",
        "taet evaluate runs/x --attacks clean pgd-20:restarts=5 cw-l2:c=search autoattack-fast",
        "taet evaluate --model torchvision:resnet18 --weights net.pt --data cifar10-lt --normalize "
        "imagenet",
        "torchrun --nproc-per-node 4 -m taet evaluate runs/x",
    )

    run: Annotated[Path | None, POSITIONAL] = None
    """Run folder; or a model, as of --model, or a file of weights, with --data."""
    model: str | None = None
    """Model of any origin, or a published one: hf:USER/NAME@COMMIT. It needs --data."""
    all_images: bool = False
    """With --model: every image of your own --data is a test image, e.g. those of another clinic.
    Default: its test split, or a fifth of an undivided folder."""
    name: ModelName | None = None
    """What tables call this model, e.g. "old classifier". Default: as before, else its method
    and settings."""
    out: OutPath | None = None
    """With --model: folder of the card. Default: runs/evaluate-NAME, followed by weights and
    normalisation."""
    threads: Processes | None = None
    """CPU threads. Default: OMP_NUM_THREADS, or as many as cores are idle when an attack begins."""
    probe: bool = True
    """Test on a few images for problems that make attacks unreliable, such as masked gradients."""


def read(words: list[str]) -> tuple[Evaluate, Json]:
    """Parse a call; mistakes are refused before anything is loaded."""
    parts = [
        Options("evaluation", Evaluation(), bare=True, usual=USUAL),
        Options("data", Data(), usual=OF_DATA, without=OF_TRAINING),
    ]
    command, given = parse(Evaluate, words, "taet evaluate", parts)
    if command.run is not None and command.model is None and is_network(str(command.run)):
        command = command.replace(run=None, model=str(command.run))
    if (command.run is None) == (command.model is None):
        got = "neither" if command.run is None else f"{command.run} and --model {command.model}"
        raise UserError(
            f"which model? got {got}; allowed: one, RUN (before --attacks) or --model NAME --data "
            "NAME"
        )
    if command.run is not None:
        if (
            of_part(given, "data")
            or command.normalize != "auto"
            or command.classes is not None
            or command.out is not None
            or command.all_images
        ):
            own = "a run has its own, and its own normalisation"
            raise UserError(f"--data, --all-images and --out go with --model {command.run}; {own}")
        check_value("weights", command.weights or "model", Weights)
    return command, given


def run(words: list[str], *, last: bool = True) -> None:
    """Attack a run or a model and print its card and, of the last command, the next one."""
    command, given = read(words)

    from taet.cli.processes import together
    from taet.evaluation import evaluate
    from taet.evaluation.attack_sets import attacks_of
    from taet.machine import resolve_device
    from taet.models import trusted
    from taet.progress import shown
    from taet.run.folder import DELIVERED, RunFolder

    refuse_idle_trust(command.trust_model, command.run or run_named_by(command.model))
    settings = of_part(given, "evaluation")
    attacks_of(Evaluation(**settings))  # refuses mistakes before anything is loaded
    how = settings | {
        "probe": command.probe,
        "threads": command.threads,
        "command": call_text(["evaluate", *words]),
    }
    with together(command.device), trusted(command.trust_model):
        if command.run is not None:
            place, weights = command.run, command.weights or DELIVERED
            how |= {"name": command.name, "weights": weights}
            attack = partial(evaluate, place, device=command.device, **how)
        else:
            parts = (
                command.model,
                Path(command.weights or "").stem,
                command.normalize.removeprefix("auto").removeprefix("none"),
            )
            title = " ".join(filter(None, parts))
            name = re.sub(r"[^\w.-]+", "-", title)
            place, weights = command.out or Path("runs", f"evaluate-{name}"), DELIVERED
            model, dataset, about = opened(
                download_or_path(str(command.model)),
                of_part(given, "data"),
                command,
                all_images=command.all_images,
            )
            how |= {"out": place, "device": str(resolve_device(command.device))}
            how |= (
                {"name": command.name}
                if isinstance(model, Path)
                else {"name": command.model, "title": command.name or title, "notes": about}
            )
            attack = partial(evaluate, model, dataset, **how)
        with shown(f"evaluate {command.model or place}") as report:
            card = attack(progress=report)
        source = place if weights == DELIVERED else RunFolder(place).card(weights)
        notes = [] if command.model is None else [*card.data["notes"], *card.model.get("notes", ())]
        notes += _about_images(card, place)
        print(
            "\n".join(
                [
                    str(card),
                    *notes,
                    *([f"next: {call_text(['report', str(source)])}"] if last else []),
                ]
            )
        )


def _about_images(card: Card, place: Path) -> list[str]:
    """Return a line on the images that an evaluation keeps, and whose they are."""
    from taet.data.published import image_terms

    if card.images is None:
        return []
    number = plural(len(card.images.images), "test image")
    line = f"images: {card.images.file(place)} shows {number} in the report; --no-images: none"
    return [" ".join(filter(None, (f"{line}.", image_terms(card.data["name"]))))]


def opened(
    name: str, data: Json, options: OfModel, *, all_images: bool = False
) -> tuple[Path | nn.Module, Dataset, tuple[str, ...]]:
    """Return a run's folder or a model of any origin, its test images, resized to the run's, and
    notes on it."""
    from taet.data import load, load_all
    from taet.models import foreign, is_own
    from taet.models.class_order import read_classes
    from taet.models.weight_files import stored_weights
    from taet.models.weight_files.identification import model_of
    from taet.models.weight_files.location import split_key
    from taet.run.folder import RunFolder

    if not data.get("name"):
        raise UserError(f"--data is missing: {name} names no test images; see taet list data")
    wanted, read = Data(**data), load_all if all_images else load
    if is_folder(name):
        if options.weights is not None or options.normalize != "auto" or options.classes:
            raise UserError(
                f"{name} is a run: it has its own weights and normalisation; allowed: --data alone"
            )
        _, height, width = RunFolder(Path(name)).record.data.image_shape
        if wanted.size is None and height == width:
            wanted = wanted.replace(size=height)
        return Path(name), read(wanted), ()
    weights = options.weights
    if weights is None and Path(split_key(name)[0]).is_file():
        weights, name = name, model_of(stored_weights.read(name))
    classes = None if options.classes is None else read_classes(options.classes)
    dataset = read(wanted)
    model, notes = foreign.load(
        name,
        dataset.class_names,
        dataset.image_shape,
        weights,
        options.normalize,
        classes,
    )
    if weights is not None or is_own(name):
        notes = (*notes, *_normalization_notes(model, dataset))
    return model, dataset, notes


def _normalization_notes(model: nn.Module, dataset: Dataset) -> list[str]:
    """Return a line if another normalisation makes many more of some clean images right."""
    import numpy as np
    import torch

    from taet.data.augmentation import to_unit
    from taet.models.normalization_trial import IMAGES, suggest_normalization

    by_class = np.argsort(dataset.test.labels, kind="stable")
    count = min(IMAGES, len(by_class))
    rows = by_class[np.linspace(0, len(by_class) - 1, count).astype(int)]
    images = to_unit(torch.from_numpy(dataset.test.images[rows]))
    labels = torch.from_numpy(dataset.test.labels[rows])
    try:
        line = suggest_normalization(model, images, labels)
    except Exception:  # the evaluation reports what is wrong with a network
        return []
    return [] if line is None else [line]


def download_or_path(name: str) -> str:
    """Return the folder of a published model, hf:USER/NAME@COMMIT, with its files checked; other
    names unchanged."""
    from taet.models.weight_files import location

    return str(location.download_or_path(name)) if name.startswith(("hf:", "folder:")) else name


def run_named_by(name: str | None) -> Path | None:
    """Return the folder of the run that `name` refers to, if it is one."""
    if name is None or not is_folder(place := download_or_path(name)):
        return None
    return Path(place)


def is_network(name: str) -> bool:
    """Whether `name` in the place of a run is the name of a network, or a file of weights."""
    if name.startswith(("hf:", "folder:")):
        return False
    is_known = name in registry.entries("models") and not Path(name).is_dir()
    return ":" in name or Path(name).is_file() or is_known


def is_folder(name: str) -> bool:
    """Whether `name` refers to a folder rather than a model."""
    if ":" in name or Path(name).is_file():
        return False
    return os.sep in name or (Path(name).is_dir() and name not in registry.entries("models"))
