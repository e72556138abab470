"""`taet evaluate A B --until decided`: attack two models on the same images until one is known to be better."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro

from taet.bounds import Processes
from taet.cli import flags
from taet.cli.compare import seconds
from taet.cli.progress import progress
from taet.cli.subject import OfModel, open_model
from taet.config import Data, Evaluation
from taet.data import load
from taet.errors import UserError
from taet.evaluation import StopRule, decide
from taet.evaluation.bundles import attacks_of
from taet.training.folder import RunFolder

EXAMPLES = (
    "taet evaluate runs/at runs/taet --until decided",
    "taet evaluate runs/at runs/taet --until decided --attacks pgd-20 --of tail",
    "taet evaluate runs/at runs/taet --until decided --within 0.02 --time-budget 8h",
    "taet evaluate runs/at runs/taet --until decided --attacks pgd-20 cw-linf-100 --worst-case --processes auto",
    "taet evaluate mynets.a:build mynets.b:build --until decided --data cifar10-lt --normalize cifar10",
)
DESCRIPTION = """Attack two models on the same test images, in random order by class, and stop as soon as one is known
to be better: after every round of images a paired test is updated whose error probability and intervals hold however
often one looks. Writes OUT/decision.json. An evaluation that was interrupted continues where it stopped, and flags that
the cards of the runs hold cost nothing."""


@dataclass(frozen=True, kw_only=True)
class DecideOptions:
    """Two models, the attack that decides, and when to stop."""

    models: Annotated[tuple[str, str], tyro.conf.Positional]
    """Two run folders with the same test images. With --data also package.module:callable, torchvision:NAME or
    timm:NAME."""
    until: Literal["decided"]
    """Stop when one is known to be better, when the images that are left could not decide, or when none is left."""
    rule: flags.Given = flags.options(StopRule())
    evaluation: flags.Given = flags.options(Evaluation())
    worst_case: bool = False
    """Several attacks decide, one after another, each on the images that the previous ones left correct."""
    weights: Literal["model", "model-last", "model-best"] = "model"
    """Of runs: the weights that they deliver, those of their last epoch, or of their best one."""
    data: flags.Given = flags.options(Data(name=""), "data", "--data")
    normalize: str = "none"
    """With --data: input scale that models which are no runs expect, as in taet check."""
    time_budget: str | None = None
    """Time after which it stops undecided, e.g. 2h30m or 600s; the same call continues."""
    out: flags.RunPath | None = None
    """Folder of decision.json. Default: runs/decide-A-B."""
    trust_model: tuple[str, ...] = ()
    """Names of the models of the runs that are package.module:callable, whose code this call may import and run."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    processes: Processes | Literal["auto"] = 1
    """Processes of this machine that share the batches, as in taet evaluate RUN."""
    json: bool = False
    """Print decision.json instead of sentences."""


def read(arguments: list[str]) -> DecideOptions:
    """Parse a call; mistakes in attacks and in the rule are refused before anything is loaded."""
    parsed = flags.parse(DecideOptions, arguments, "taet evaluate", DESCRIPTION, EXAMPLES)
    attacks_of(Evaluation(**parsed.evaluation))
    StopRule(**parsed.rule)
    if parsed.normalize != "none" and not parsed.data.get("name"):
        raise UserError("--normalize goes with --data; a run has its own normalisation")
    return parsed


def run(parsed: DecideOptions, command: str) -> tuple[Path, str]:
    """Attack both models until it is decided; return the file of the decision, and what is printed."""
    settings = {**parsed.evaluation}
    attacks = settings.pop("attacks", None)
    names = [re.sub(r"[^\w.-]+", "-", Path(name).name) for name in parsed.models]
    out = parsed.out or Path("runs", f"decide-{names[0]}-{names[1]}")
    with progress(f"evaluate {' '.join(parsed.models)}") as report:
        first, second = _models(parsed)
        decision = decide(
            first,
            second,
            **_images(parsed),
            attacks=attacks,
            settings=settings,
            worst_case=parsed.worst_case,
            rule=StopRule(**parsed.rule),
            names=_names(parsed.models),
            time_budget=None if parsed.time_budget is None else seconds(parsed.time_budget),
            device=parsed.device,
            weights_name=parsed.weights,
            out=out,
            progress=report,
            command=command,
        )
    after = f"continue: {command}" if decision.reason == "time" else f"next: taet report {out}"
    return RunFolder(out).decision, f"{decision}\n{after}"


def _models(parsed: DecideOptions) -> list[Path | torch.nn.Module]:
    origin = OfModel(data=parsed.data, normalize=parsed.normalize)
    runs = [RunFolder(Path(name)).is_run for name in parsed.models]
    if not parsed.data.get("name") or all(runs):
        return [Path(name) for name in parsed.models]
    return [
        Path(name) if is_run else open_model(name, origin)[0][0]
        for name, is_run in zip(parsed.models, runs, strict=True)
    ]


def _names(models: tuple[str, str]) -> tuple[str, str]:
    """Return the names of folders without their path, and of others in full, as far as that tells them apart."""
    one, other = (Path(name).name if RunFolder(Path(name)).is_run else name for name in models)
    return (one, other) if one != other else models


def _images(parsed: DecideOptions) -> dict[str, Any]:
    """Return the test images of --data, in the form of `decide`."""
    if not parsed.data.get("name"):
        return {}
    dataset = load(OfModel(data=parsed.data).chosen(" and ".join(parsed.models)))
    return {
        "images": dataset.test.images,
        "labels": dataset.test.labels,
        "class_names": dataset.class_names,
        "train_class_counts": dataset.class_counts.tolist(),
        "data_about": dataset.about(),
    }
