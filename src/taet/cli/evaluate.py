"""`taet evaluate`: attack a finished run, or a model of any origin, and write its result card."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

from taet.cli.named_model import (
    OF_DATA,
    OF_TRAINING,
    NamedModel,
    download_or_path,
    is_network,
    open_model,
    run_named_by,
)
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
from taet.formatting import join_words, plural
from taet.settings import Data, Evaluation
from taet.settings.types import ModelName, Processes, check_value

if TYPE_CHECKING:
    from taet.card.card import Card
    from taet.card.images import CardImages

USUAL = ("attacks", "eps", "step_size", "eps_l2", "search_precision", "batch_size", "keep_images")
"""Settings of attacks that --help shows."""
OF_OTHER_IMAGES = ("normalize", "classes", "out", "all_images")
"""Options that a run on its own images has not."""


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
        changed = [
            name for name in OF_OTHER_IMAGES if getattr(command, name) != Evaluate.default(name)
        ]
        of_data = [
            "data" if name == "data.name" else name for name in given if name.startswith("data.")
        ]
        if of_data or changed:
            options = join_words([f"--{name.replace('_', '-')}" for name in (*of_data, *changed)])
            raise UserError(
                f"got {options} with a run, which has images and a normalisation of its own; "
                f"allowed: with --model {command.run} --data NAME"
            )
        check_value("weights", command.weights or "model", Weights)
    return command, given


def run(words: list[str], *, last: bool = True) -> None:
    """Attack a run or a model and print its card and, of the last command, the next one."""
    command, given = read(words)

    from taet.cli.processes import together
    from taet.evaluation.attack_sets import attacks_of
    from taet.models import trusted
    from taet.progress import shown

    refuse_idle_trust(command.trust_model, command.run or run_named_by(command.model))
    settings = of_part(given, "evaluation")
    attacks_of(Evaluation(**settings))  # refuses mistakes before anything is loaded
    options = settings | {
        "probe": command.probe,
        "threads": command.threads,
        "command": call_text(["evaluate", *words]),
    }
    with together(command.device), trusted(command.trust_model):
        if command.run is not None:
            call = _of_run(command.run, command, options)
        else:
            call = _of_model(str(command.model), of_part(given, "data"), command, options)
        with shown(f"evaluate {command.model or command.run}") as report:
            card = call.evaluate(progress=report)
            if call.named is not None:
                _keep_network(call.named, command, card, call.folder)
        print(card)
        if command.model is not None:
            for note in (*card.data["notes"], *card.model.get("notes", ())):
                print(note)
        if card.images is not None:
            print(_about_images(card, card.images, call.folder))
        if last:
            print(f"next: {call_text(['report', str(call.source)])}")


class EvaluationCall(NamedTuple):
    """The call of `taet.evaluate`, and where its card is."""

    evaluate: Callable[..., Card]
    folder: Path
    source: Path
    """What `taet report` is given to show the card."""
    named: NamedModel | None = None
    """The network of another origin that is evaluated."""


def _of_run(folder: Path, command: Evaluate, options: Json) -> EvaluationCall:
    """Return the evaluation of a run on its own images."""
    from taet.evaluation import evaluate
    from taet.run.folder import DELIVERED, RunFolder

    weights = command.weights or DELIVERED
    evaluation = partial(
        evaluate, folder, device=command.device, name=command.name, weights=weights, **options
    )
    source = folder if weights == DELIVERED else RunFolder(folder).card(weights)
    return EvaluationCall(evaluation, folder, source)


def _of_model(name: str, data: Json, command: Evaluate, options: Json) -> EvaluationCall:
    """Return the evaluation of a model of any origin, or of a run on other images."""
    from taet.evaluation import evaluate
    from taet.machine import resolve_device

    title = _title(name, command)
    folder = command.out
    if folder is None:
        folder = Path("runs", "evaluate-" + re.sub(r"[^\w.-]+", "-", title))
    named = open_model(download_or_path(name), data, command, all_images=command.all_images)
    is_run = isinstance(named.model, Path)
    about: Json
    if is_run:
        about = {"name": command.name}
    else:
        about = {"name": name, "title": command.name or title, "notes": named.notes}
    device = str(resolve_device(command.device))
    evaluation = partial(
        evaluate, named.model, named.dataset, out=folder, device=device, **about, **options
    )
    return EvaluationCall(evaluation, folder, folder, None if is_run else named)


def _keep_network(named: NamedModel, command: Evaluate, card: Card, folder: Path) -> None:
    """Write beside the card how its network is built again, for predict and export."""
    from taet.deployment.evaluated_network import EvaluatedNetwork, absolute, keep_network
    from taet.distributed import rank
    from taet.models.class_order import read_classes
    from taet.models.trust import is_own

    if rank() > 0 or (named.weights is None and not is_own(named.network)):
        return  # a network with fresh weights is of no use
    about = EvaluatedNetwork(
        network=named.network,
        weights=None if named.weights is None else absolute(named.weights),
        normalize=command.normalize,
        class_names=tuple(named.dataset.class_names),
        classes=None if command.classes is None else tuple(read_classes(command.classes)),
        image_shape=named.dataset.image_shape,
        weights_sha256=card.model["weights_sha256"],
    )
    keep_network(folder, about)


def _title(name: str, command: Evaluate) -> str:
    """Return the name of a model with its file of weights and its normalisation, if given."""
    parts = [name]
    if command.weights:
        parts.append(Path(command.weights).stem)
    if command.normalize not in ("auto", "none"):
        parts.append(command.normalize)
    return " ".join(parts)


def _about_images(card: Card, images: CardImages, folder: Path) -> str:
    """Return a line on the images that an evaluation keeps, and whose they are."""
    from taet.data.published import image_terms

    number = plural(len(images.images), "test image")
    kept = f"images: {images.file(folder)} shows {number} in the report"
    line = f"{kept}; taet evaluate --no-images removes them"
    terms = image_terms(card.data["name"])
    return f"{line}. {terms}" if terms else f"{line}."
