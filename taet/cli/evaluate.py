"""`taet evaluate`: attack a finished run, or a model of any origin, and write its result card."""

from __future__ import annotations

import os
import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from taet import registry
from taet.cli.options import POSITIONAL, OfModel, Options, OutPath, Weights, call_text, of_part, parse
from taet.errors import UserError
from taet.fields import Processes, check_value
from taet.files import Json
from taet.settings import Data, Evaluation

if TYPE_CHECKING:
    from torch import nn

    from taet.data import Dataset

OF_DATA = ("name", "root", "imbalance_ratio", "test", "size")
USUAL = ("attacks", "eps", "step_size", "eps_l2", "search_precision", "batch_size")
"""Settings of data and attacks that --help shows."""


class Evaluate(OfModel):
    """Attack a finished run and write its result card, RUN/evaluation.json. An interrupted evaluation continues where
    it stopped. Options default to the settings of the run; the defaults below are those of protocol taet.

    Or attack a model of any origin on the test images of a data set: --model NAME --data NAME, where the model is
    package.module:callable (called without arguments or with num_classes), torchvision:NAME, timm:NAME, a name of
    taet list models, or a run folder, for other images than its own. Weights never run code. Run taet check first.
    """

    examples = (
        "taet evaluate runs/x",
        "taet evaluate runs/x --attacks clean pgd-20:restarts=5 cw-l2:c=search autoattack-fast",
        "taet evaluate --model torchvision:resnet18 --weights net.pt --data cifar10-lt --normalize imagenet",
        "torchrun --nproc-per-node 4 -m taet evaluate runs/x",
    )

    run: Annotated[Path | None, POSITIONAL] = None
    """Run folder."""
    model: str | None = None
    """Model of any origin, or a published one: hf:USER/NAME@COMMIT. It needs --data."""
    all_images: bool = False
    """With --model: every image of your own --data is a test image, e.g. those of another clinic. Default: its test
    split, or a fifth of an undivided folder."""
    out: OutPath | None = None
    """With --model: folder of the card. Default: runs/evaluate-NAME, followed by weights and normalisation."""
    threads: Processes | None = None
    """CPU threads. Default: OMP_NUM_THREADS, or as many as cores are idle when an attack begins."""
    probe: bool = True
    """Test on a few images for problems that make attacks unreliable, such as masked gradients."""


def read(words: list[str]) -> tuple[Evaluate, Json]:
    """Parse a call; mistakes are refused before anything is loaded."""
    parts = [Options("evaluation", Evaluation(), bare=True, usual=USUAL), Options("data", Data(), usual=OF_DATA)]
    command, given = parse(Evaluate, words, "taet evaluate", parts)
    if (command.run is None) == (command.model is None):
        got = "neither" if command.run is None else f"{command.run} and --model {command.model}"
        raise UserError(f"which model? got {got}; allowed: one, RUN (before --attacks) or --model NAME --data NAME")
    if command.run is not None:
        if of_part(given, "data") or command.normalize != "none" or command.out is not None or command.all_images:
            own = "a run has its own, and its own normalisation"
            raise UserError(f"--data, --all-images and --out go with --model {command.run}; {own}")
        check_value("weights", command.weights or "model", Weights)
    return command, given


def run(words: list[str], *, last: bool = True) -> None:
    """Attack a run or a model and print its card and, of the last command, the next one."""
    command, given = read(words)

    from taet.cli.processes import progress, together
    from taet.evaluation import evaluate
    from taet.evaluation.bundles import attacks_of
    from taet.models import trusted
    from taet.training.environment import resolve_device
    from taet.training.folder import DELIVERED, RunFolder

    settings = of_part(given, "evaluation")
    attacks_of(Evaluation(**settings))  # refuses mistakes before anything is loaded
    how = settings | {"probe": command.probe, "threads": command.threads, "command": call_text(["evaluate", *words])}
    with together(command.device), trusted(command.trust_model):
        if command.run is not None:
            place, weights = command.run, command.weights or DELIVERED
            attack = partial(evaluate, place, weights=weights, device=command.device, **how)
        else:
            parts = (command.model, Path(command.weights or "").stem, command.normalize.removeprefix("none"))
            title = " ".join(filter(None, parts))
            name = re.sub(r"[^\w.-]+", "-", title)
            place, weights = command.out or Path("runs", f"evaluate-{name}"), DELIVERED
            subject = local(str(command.model)), of_part(given, "data"), command.weights, command.normalize
            model, dataset, about = opened(*subject, all_images=command.all_images)
            how |= {"out": place, "device": str(resolve_device(command.device))}
            how |= {} if isinstance(model, Path) else {"name": command.model, "title": title, "notes": about}
            attack = partial(evaluate, model, dataset, **how)
        with progress(f"evaluate {command.model or place}") as report:
            card = attack(progress=report)
        shown = place if weights == DELIVERED else RunFolder(place).card(weights)
        notes = [] if command.model is None else [*card.data["notes"], *card.model.get("notes", ())]
        print("\n".join([str(card), *notes, *([f"next: {call_text(['report', str(shown)])}"] if last else [])]))


def opened(
    name: str, data: Json, weights: str | None, normalize: str, *, all_images: bool = False
) -> tuple[Path | nn.Module, Dataset, tuple[str, ...]]:
    """Return a run's folder or a model of any origin, its test images, resized to the run's, and notes on it."""
    from taet.data import load, load_all
    from taet.models import foreign
    from taet.training.folder import RunFolder

    if not data.get("name"):
        raise UserError(f"--data is missing: {name} names no test images; see taet list data")
    wanted, read = Data(**data), load_all if all_images else load
    if is_folder(name):
        if weights is not None or normalize != "none":
            raise UserError(f"{name} is a run: it has its own weights and normalisation; allowed: --data alone")
        _, height, width = RunFolder(Path(name)).record.data.image_shape
        if wanted.size is None and height == width:
            wanted = wanted.replace(size=height)
        return Path(name), read(wanted), ()
    dataset, file = read(wanted), None if weights is None else Path(weights)
    model, notes = foreign.load(name, dataset.class_names, dataset.image_shape, file, normalize)
    return model, dataset, notes


def local(name: str) -> str:
    """Return the folder of a published model, hf:USER/NAME@COMMIT, with its files checked; other names unchanged."""
    from taet.models import weights

    return str(weights.local(name)) if name.startswith(("hf:", "folder:")) else name


def is_folder(name: str) -> bool:
    """Whether `name` refers to a folder rather than a model."""
    return (":" not in name and os.sep in name) or (Path(name).is_dir() and name not in registry.entries("models"))
