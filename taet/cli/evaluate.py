"""`taet evaluate`: attack a finished run, or a model of any origin, and write its result card."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from taet.cli import flags
from taet.cli.compare import seconds
from taet.cli.processes import allowed, number_of, run_together, that_pay, together
from taet.cli.progress import progress, saved
from taet.cli.subject import OfModel, OfRun, folder_for, here, opened, results_of
from taet.data import load
from taet.distributed import started_together
from taet.errors import UserError
from taet.evaluation import GivenImages, StopRule, decide, evaluate
from taet.evaluation.bundles import attacks_of, settle
from taet.evaluation.measurement import Extent
from taet.fields import Processes
from taet.models import trusted
from taet.settings import Data, Evaluation
from taet.training.environment import resolve_device
from taet.training.folder import DELIVERED, RunFolder, WeightsName

EXAMPLES = (
    "taet evaluate runs/x",
    "taet evaluate runs/x --attacks clean pgd-20:restarts=5 cw-l2:c=search autoattack-fast",
    "taet evaluate runs/x --attacks reat --curves steps eps",
    "taet evaluate runs/x --weights model-best --eps 4/255 --json",
    "taet evaluate --model torchvision:resnet18 --weights net.pt --data cifar10-lt --normalize cifar10",
    "taet evaluate runs/x --processes auto",
    "taet evaluate runs/at runs/taet --until decided",
    "taet evaluate --model mynets.wide:build --weights net.safetensors --data npz:test.npz --out runs/wide",
)
DESCRIPTION = """Attack a finished run and write its result card, RUN/evaluation.json. An interrupted evaluation
continues where it stopped. Options default to the settings of the run; the defaults below are those of protocol taet.

For a model of any origin, give --model and --data instead of RUN: see taet evaluate --model NAME --help. To find the
better of two models with as few images as necessary: see taet evaluate A B --until decided --help."""
MODEL_DESCRIPTION = """Attack a model of any origin on the test images of a data set and write its result card,
OUT/evaluation.json. An interrupted evaluation continues where it stopped. Run `taet check` first.

The model is package.module:callable (called without arguments or with num_classes; the current directory is
importable), torchvision:NAME, timm:NAME, a name of taet list models, or a run folder, which is then attacked on other
images than its own. A file of weights never runs code: it is .safetensors, or a file of tensors only, as torch.save
writes it. A key that holds the tensors, such as state_dict, and a common prefix of their names, such as module., are
recognised."""
UNTIL_EXAMPLES = (
    "taet evaluate runs/at runs/taet --until decided",
    "taet evaluate runs/at runs/taet --until decided --attacks pgd-20 --of tail",
    "taet evaluate runs/at runs/taet --until decided --within 0.02 --time-budget 8h",
    "taet evaluate runs/at runs/taet --until decided --attacks pgd-20 cw-linf-100 --worst-case --processes auto",
    "taet evaluate mynets.a:build mynets.b:build --until decided --data cifar10-lt --normalize cifar10",
)
UNTIL_DESCRIPTION = """Attack two models on the same test images, in random order by class, and stop as soon as one is
known to be better: after every round of images a paired test is updated, whose error probability and intervals are
valid at any stopping time. Writes OUT/decision.json. An interrupted evaluation continues where it stopped. Results
that are already in the cards of the runs are reused."""


@dataclass(frozen=True, kw_only=True)
class AttackOptions(Extent):
    """The attacks and how they are run."""

    evaluation: flags.Given = flags.options(Evaluation())
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    processes: Processes | Literal["auto"] | None = None
    """Number of processes on this machine; the result does not depend on it. auto: one per GPU or, without one, one
    per core. Default: on a CPU, for a long evaluation of a run, one per core, at most one per batch; otherwise 1."""
    json: bool = False
    """Print the result card instead of a table."""


@dataclass(frozen=True, kw_only=True)
class RunEvaluation(AttackOptions, OfRun):
    """A run and its attacks."""


@dataclass(frozen=True, kw_only=True)
class ModelEvaluation(AttackOptions, OfModel):
    """A model of any origin, its test images and its attacks."""

    model: Annotated[str, tyro.conf.arg(name="model.name", aliases=["--model"])]
    """package.module:callable, torchvision:NAME, timm:NAME, a name of taet list models, a run folder, or
    hf:USER/NAME@COMMIT."""
    out: flags.RunPath | None = None
    """Folder of the card. Default: runs/evaluate-NAME."""


@dataclass(frozen=True, kw_only=True)
class DecideOptions:
    """Two models, the attack that decides, and when to stop."""

    models: Annotated[tuple[str, str], tyro.conf.Positional]
    """Two run folders with the same test images. With --data also package.module:callable, torchvision:NAME or
    timm:NAME."""
    until: Literal["decided"]
    """Stop when one is known to be better, when the remaining images could not decide, or when none are left."""
    rule: flags.Given = flags.options(StopRule())
    evaluation: flags.Given = flags.options(Evaluation())
    worst_case: bool = False
    """Several attacks decide, one after another, each on the images that the previous ones left correct."""
    weights: WeightsName = DELIVERED
    """Weights of runs: those that the run delivers, those of its last epoch, or of its best one."""
    data: flags.Given = flags.options(Data(name=""), "data", "--data")
    normalize: str = "none"
    """With --data: input normalisation of models that are not runs, as in taet check."""
    time_budget: str | None = None
    """Time after which the evaluation stops undecided, e.g. 2h30m or 600s; the same call continues it."""
    out: flags.RunPath | None = None
    """Folder of decision.json. Default: runs/decide-A-B."""
    trust_model: tuple[str, ...] = ()
    """Names of the models of the runs that are package.module:callable, whose code this call may import and run."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    processes: Processes | Literal["auto"] = 1
    """Processes of this machine that share the batches, as in taet evaluate RUN."""
    json: bool = False
    """Print decision.json instead of text."""


def run(arguments: list[str]) -> int:
    """Attack a run or a model and print its card."""
    parsed = read(arguments)
    if isinstance(parsed, ModelEvaluation):
        parsed = here(parsed, "evaluate")
    words = ["evaluate", *flags.without(arguments, "--processes")]
    count = _count(parsed)
    if count > 1 and started_together():
        raise UserError(f"processes: got {parsed.processes} in one of several processes; allowed: without torchrun")
    place = parsed.run if isinstance(parsed, RunEvaluation) else parsed.out
    if count > 1:
        with saved(["evaluate", *arguments], place):
            return run_together(count, words, threads=allowed() // count if parsed.processes is None else None)
    named = parsed.trust_model if isinstance(parsed, DecideOptions) else (parsed.trust_model,)
    with saved(["evaluate", *arguments], place), together(parsed.device), trusted(*named):
        command = flags.call_text(words)
        file, text = _decide(parsed, command) if isinstance(parsed, DecideOptions) else _attack(parsed, command)
        print(file.read_text(encoding="utf-8") if parsed.json else f"{text}\n", end="")
    return 0


def _count(parsed: RunEvaluation | ModelEvaluation | DecideOptions) -> int:
    """Return the requested number of processes, or the number that is fastest on a CPU."""
    if parsed.processes is not None:
        return number_of(parsed.processes, parsed.device)
    alone = started_together() or resolve_device(parsed.device).type != "cpu"
    if alone or not isinstance(parsed, RunEvaluation) or not RunFolder(parsed.run).is_run:
        return 1
    record = RunFolder(parsed.run).record
    settings = settle(record.run.evaluation, parsed.evaluation, record.run.threat.eps)
    images = sum(record.data.test.class_counts)
    passes = sum(attack.passes(record.data.num_classes) for attack in attacks_of(settings))
    return that_pay(images * passes, batches=math.ceil(images / settings.batch_size))


def read(arguments: list[str]) -> RunEvaluation | ModelEvaluation | DecideOptions:
    """Parse a call; mistakes in attacks and in the stop rule are refused before anything is loaded."""
    options = flags.options_of(arguments)
    parsed: RunEvaluation | ModelEvaluation | DecideOptions
    if "--until" in options:
        parsed = flags.parse(DecideOptions, arguments, "taet evaluate", UNTIL_DESCRIPTION, UNTIL_EXAMPLES)
        StopRule(**parsed.rule)
        if parsed.normalize != "none" and not parsed.data.get("name"):
            raise UserError("--normalize goes with --data; a run has its own normalisation")
    elif len(arguments) > 1 and not any(word.startswith("-") for word in arguments[:2]):
        raise UserError(f"got two models, {' and '.join(arguments[:2])}; allowed: one, or two with --until decided")
    elif options & {"--model", "--model.name"}:
        parsed = flags.parse(ModelEvaluation, arguments, "taet evaluate", MODEL_DESCRIPTION, EXAMPLES)
    elif options & {"--data", "--data.name"}:
        first = "" if arguments[0].startswith("-") else arguments[0]
        raise UserError(f"--data goes with --model {first or 'NAME'}; a run folder alone names its own data")
    else:
        parsed = flags.parse(RunEvaluation, arguments, "taet evaluate", DESCRIPTION, EXAMPLES)
    attacks_of(Evaluation(**parsed.evaluation))
    return parsed


def _attack(parsed: RunEvaluation | ModelEvaluation, command: str) -> tuple[Path, str]:
    """Attack the model of a run or of any origin; return the file of its card, and what is printed."""
    notes: tuple[str, ...] = ()
    if isinstance(parsed, RunEvaluation):
        named, weights, out = str(parsed.run), parsed.weights, parsed.run
        evaluated = partial(evaluate, parsed.run, weights=weights, device=parsed.device)
    else:
        device = str(resolve_device(parsed.device))
        model, dataset, name, notes = opened(parsed.model, parsed)
        named, weights, out = parsed.model, DELIVERED, parsed.out or folder_for("evaluate", parsed.model, parsed)
        given = GivenImages.of(dataset)
        evaluated = partial(evaluate, model, given, name=name, notes=notes, out=out, device=device)
    with progress(f"evaluate {named}") as report:
        card = evaluated(
            settings=parsed.evaluation,
            curves=parsed.curves,
            worst_case=parsed.worst_case,
            probe=parsed.probe,
            progress=report,
            command=command,
        )
    return RunFolder(out).card(weights), "\n".join([str(card), *notes, f"next: taet report {out}"])


def _decide(parsed: DecideOptions, command: str) -> tuple[Path, str]:
    """Attack both models until the comparison is decided; return the file of the decision and the printed text."""
    settings = {**parsed.evaluation}
    attacks = settings.pop("attacks", None)
    out = parsed.out or results_of("decide", *(Path(name).name for name in parsed.models))
    with progress(f"evaluate {' '.join(parsed.models)}") as report:
        (first, second), given = _sides(parsed)
        decision = decide(
            first,
            second,
            given,
            attacks=attacks,
            settings=settings,
            worst_case=parsed.worst_case,
            rule=StopRule(**parsed.rule),
            names=_names(parsed.models),
            time_budget=seconds(parsed.time_budget),
            device=parsed.device,
            weights=parsed.weights,
            out=out,
            progress=report,
            command=command,
        )
    after = f"continue: {command}" if decision.reason == "time" else f"next: taet report {out}"
    return RunFolder(out).decision, f"{decision}\n{after}"


def _sides(parsed: DecideOptions) -> tuple[list[Path | torch.nn.Module], GivenImages | None]:
    """Return both models, and the test images of --data."""
    if not parsed.data.get("name"):
        return [*map(Path, parsed.models)], None
    origin = OfModel(data=parsed.data, normalize=parsed.normalize)
    models = [Path(name) if RunFolder(Path(name)).is_run else opened(name, origin).model for name in parsed.models]
    return models, GivenImages.of(load(origin.chosen(" and ".join(parsed.models))))


def _names(models: tuple[str, str]) -> tuple[str, str]:
    """Return the names of folders without their path, and other names in full, if that distinguishes them."""
    one, other = (Path(name).name if RunFolder(Path(name)).is_run else name for name in models)
    return (one, other) if one != other else models
