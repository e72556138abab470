"""`taet evaluate`: attack a finished run, or a model of any origin, and write its result card."""

from __future__ import annotations

import re
import shlex
import sys
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro

from taet.cli import flags
from taet.cli.processes import number_of, run_together, together
from taet.cli.progress import progress
from taet.config import Data, Evaluation
from taet.data import Dataset, load
from taet.distributed import started_together
from taet.errors import UserError
from taet.evaluation import evaluate
from taet.evaluation.bundles import check_attacks
from taet.models import foreign
from taet.training.environment import resolve_device
from taet.training.folder import RunFolder

EXAMPLES = (
    "taet evaluate runs/x",
    "taet evaluate runs/x --attacks clean pgd-20:restarts=5 cw-l2:c=search autoattack-fast",
    "taet evaluate runs/x --attacks reat --curves steps eps",
    "taet evaluate runs/x --weights model-best --eps 4/255 --json",
    "taet evaluate --model torchvision:resnet18 --weights net.pt --data cifar10-lt --normalize cifar10",
    "taet evaluate runs/x --processes auto",
    "taet evaluate --model mynets.wide:build --weights net.safetensors --data npz:test.npz --out runs/wide",
)
DESCRIPTION = """Attack a finished run and write its result card, RUN/evaluation.json; an evaluation that was
interrupted goes on where it was.

A model of any origin takes --model and --data instead of RUN: see taet evaluate --model NAME --help."""
MODEL_DESCRIPTION = """Attack a model of any origin on the test images of a data set and write its result card,
OUT/evaluation.json; an evaluation that was interrupted goes on where it was. `taet check` says before what to expect.

A model is named by package.module:callable (of nothing, or of num_classes; the current directory is importable),
torchvision:NAME, timm:NAME, a name of taet list models, or a run folder, whose model then meets other images than its
own. A file of weights never runs code: it is .safetensors, or
what torch.save wrote of tensors alone; a key that they lie under, such as state_dict, and a prefix of all their names,
such as module., are found by themselves. --model and --data are short for --model.name and --data.name."""


Processes = Annotated[
    int | Literal["auto"],
    tyro.conf.arg(
        help="Processes of this machine that share the batches; every flag is that of one. auto: one per GPU, or, "
        "without one, per core, which is faster than one process with all cores where there are as many batches."
    ),
]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a model faces; what is not given is what a run was configured with, or the default."""

    attacks: tuple[str, ...] | None = None
    """Names of attacks (see `taet list attacks`), or a protocol, taet or reat, for all columns of its paper."""
    curves: tuple[Literal["steps", "eps", "logit-scale"], ...] = ()
    """Curves of the accuracy to be measured as well."""
    worst_case: bool = False
    """Run the attacks one after another, each on what those before it left, for the one column of the worst case."""
    eps: float | None = None
    """Radius of the L-infinity ball, e.g. 8/255."""
    step_size: float | None = None
    """Step of PGD in it, e.g. 1/255."""
    eps_l2: float | None = None
    """Radius of the L2 ball, e.g. 128/255."""
    step_size_l2: float | None = None
    """Length of a step of PGD in it."""
    batch_size: int | None = None
    """Images per batch."""
    seed: int | None = None
    """Seed of every random start."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a model's weights, the scale of its input and its test images come from."""

    weights: Path | None = None
    """File of its weights. Not given: those that the callable returns, or fresh ones."""
    normalize: str = "none"
    """Scale of input that it expects: none, imagenet, cifar10, cifar100, or means/deviations as M1,M2,M3/S1,S2,S3."""
    data: Data = field(default_factory=lambda: Data(name=""))


@dataclass(frozen=True, kw_only=True)
class RunFlags:
    """A run and what it faces."""

    run: Annotated[Path, tyro.conf.Positional]
    """Run folder."""
    settings: Annotated[Settings, tyro.conf.arg(name="")] = field(default_factory=Settings)
    weights: Literal["model", "model-last", "model-best"] = "model"
    """What the run delivers, its last epoch, or its best one."""
    processes: Processes = 1
    json: bool = False
    """Print the result card instead of a table."""


@dataclass(frozen=True, kw_only=True)
class ModelFlags:
    """A model of any origin, its test images, and what it faces."""

    model: Annotated[str, tyro.conf.arg(name="model.name")]
    """package.module:callable, torchvision:NAME, timm:NAME, a name of taet list models, or a run folder."""
    origin: Annotated[Origin, tyro.conf.arg(name="")] = field(default_factory=Origin)
    settings: Annotated[Settings, tyro.conf.arg(name="")] = field(default_factory=Settings)
    out: Path | None = None
    """Folder of the card. Not given: runs/evaluate-NAME."""
    processes: Processes = 1
    json: bool = False
    """Print the result card instead of a table."""


def run(arguments: list[str]) -> int:
    """Attack a run or a model and print its card."""
    parsed = read(arguments)
    words = [*arguments]
    flags.take(words, "--processes")
    count = number_of(parsed.processes, parsed.settings.device)
    if count > 1 and started_together():
        raise UserError(f"processes: got {parsed.processes} in one of several processes; allowed: without torchrun")
    if count > 1:
        return run_together(count, ["evaluate", *words, *(["--debug"] if "--debug" in sys.argv else [])])
    command = shlex.join(["taet", "evaluate", *words])
    with together(parsed.settings.device):
        if isinstance(parsed, ModelFlags):
            of_model(parsed, command)
        else:
            of_run(parsed, command)
    return 0


def read(arguments: list[str]) -> RunFlags | ModelFlags:
    """Return what the words of the call mean; attacks with a mistake are refused before anything is loaded."""
    options = {word.partition("=")[0] for word in arguments}
    parsed: RunFlags | ModelFlags
    if options & {"--model", "--model.name"}:
        parsed = _parse(ModelFlags, arguments, MODEL_DESCRIPTION)
    elif options & {"--data", "--data.name"}:
        first = "" if arguments[0].startswith("-") else arguments[0]
        raise UserError(f"--data goes with --model {first or 'NAME'}; a run folder alone names its own data")
    else:
        parsed = _parse(RunFlags, arguments, DESCRIPTION)
    if parsed.settings.attacks is not None:
        check_attacks(Evaluation(attacks=parsed.settings.attacks))
    return parsed


def _parse(kind: type[flags.T], arguments: list[str], description: str) -> flags.T:
    return flags.parse(kind, arguments, prog="taet evaluate", description=description, examples=EXAMPLES)


def of_run(parsed: RunFlags, command: str) -> None:
    """Attack a finished run."""
    options = asdict(parsed.settings)
    with progress(f"evaluate {parsed.run}") as report:
        card = evaluate(parsed.run, weights=parsed.weights, progress=report, command=command, **options)
    if parsed.json:
        show_stored(RunFolder(parsed.run).card(parsed.weights))
    else:
        print(f"{card}\nnext: taet report {parsed.run}")


def of_model(parsed: ModelFlags, command: str) -> None:
    """Attack a model of any origin."""
    options = asdict(parsed.settings) | {"device": str(resolve_device(parsed.settings.device))}
    subject: Path | torch.nn.Module = Path(parsed.model)
    notes: tuple[str, ...] = ()
    about: dict[str, Any] = {}
    if RunFolder(Path(parsed.model)).is_run:
        dataset = data_for_run(parsed.model, parsed.origin)
    else:
        (subject, notes), dataset = open_model(parsed.model, parsed.origin)
        counts = dataset.class_counts.tolist()
        about = {"train_class_counts": counts, "name": parsed.model, "notes": notes}
    origin = parsed.origin
    parts = [parsed.model, *([origin.weights.stem] if origin.weights else [])]
    parts += [origin.normalize] if origin.normalize != "none" else []
    out = parsed.out or Path("runs", "evaluate-" + re.sub(r"[^\w.-]+", "-", "-".join(parts)))
    with progress(f"evaluate {parsed.model}") as report:
        card = evaluate(
            subject,
            dataset.test.images,
            dataset.test.labels,
            class_names=dataset.class_names,
            data_about={
                "name": dataset.name,
                "imbalance_ratio": dataset.imbalance_ratio,
                "notes": list(dataset.notes),
            },
            out=out,
            progress=report,
            command=command,
            **about,
            **options,
        )
    if parsed.json:
        show_stored(RunFolder(out).card())
    else:
        print("\n".join([str(card), *notes, f"next: taet report {out}"]))


def data_for_run(name: str, origin: Origin) -> Dataset:
    """Load other data than its own for a run; what says no size gets that of the run's images, where these are square.

    The run's own data are not read.
    """
    _require_data(name, origin)
    if origin.weights is not None or origin.normalize != "none":
        raise UserError(f"{name} is a run: it has its own weights and normalisation; allowed: --data alone")
    _, height, width = RunFolder(Path(name)).record.data.image_shape
    size = height if origin.data.size is None and height == width else origin.data.size
    return load(**asdict(replace(origin.data, size=size)))


def _require_data(name: str, origin: Origin) -> None:
    if not origin.data.name:
        raise UserError(f"--data is missing: {name} names no test images; see taet list data")


def open_model(name: str, origin: Origin) -> tuple[foreign.Loaded, Dataset]:
    """Load the data that a model of any origin is tried on, and the model with as many classes."""
    _require_data(name, origin)
    dataset = load(**asdict(origin.data))
    loaded = foreign.load(
        name,
        num_classes=dataset.num_classes,
        image_shape=dataset.image_shape,
        weights=origin.weights,
        normalize=origin.normalize,
    )
    return loaded, dataset


def show_stored(path: Path) -> None:
    """Print a card as it is stored."""
    print(path.read_text(encoding="utf-8"), end="")
