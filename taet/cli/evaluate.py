"""`taet evaluate`: attack a finished run, or a model of any origin, and write its result card."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from taet.cli.options import POSITIONAL, Command, Options, Parsed, RunPath, Weights, call_text, parse, without
from taet.errors import UserError
from taet.fields import Processes, check_value
from taet.settings import Data, Evaluation

OF_DATA = ("name", "root", "imbalance_ratio", "test", "size")
"""Settings of the data that --help shows."""


class Evaluate(Command):
    """Attack a finished run and write its result card, RUN/evaluation.json. An interrupted evaluation continues where
    it stopped. Options default to the settings of the run; the defaults below are those of protocol taet.

    Or attack a model of any origin on the test images of a data set: --model NAME --data NAME, where the model is
    package.module:callable (called without arguments or with num_classes; the current directory is importable),
    torchvision:NAME, timm:NAME, a name of taet list models, or a run folder, which is then attacked on other images
    than its own. A file of weights never runs code: it is .safetensors, or a file of tensors only, as torch.save writes
    it; a key that holds the tensors, such as state_dict, and a common prefix of their names, such as module., are
    recognised. Run taet check first.
    """

    examples = (
        "taet evaluate runs/x",
        "taet evaluate runs/x --attacks clean pgd-20:restarts=5 cw-l2:c=search autoattack-fast",
        "taet evaluate runs/x --attacks reat curve-steps curve-eps pgd-20@runs/other",
        "taet evaluate runs/x --weights model-best --eps 4/255 --json",
        "taet evaluate --model torchvision:resnet18 --weights net.pt --data cifar10-lt --normalize imagenet",
        "taet evaluate --model mynets:build --weights net.safetensors --data npz:test.npz --out runs/x",
    )

    run: Annotated[Path | None, POSITIONAL] = None
    """Run folder."""
    model: str | None = None
    """Model of any origin, or a published one: hf:USER/NAME@COMMIT. It needs --data."""
    weights: str | None = None
    """With a run: model (those that it delivers), model-last or model-best. With --model: the file of the weights, or
    a folder that taet push wrote. Default: model; those that the callable returns."""
    normalize: str = "none"
    """Input normalisation that --model expects: none, imagenet, cifar10, cifar100, or means and standard deviations of
    the channels, M1,M2,M3/S1,S2,S3."""
    out: RunPath | None = None
    """With --model: folder of the card. Default: runs/evaluate-NAME."""
    probe: bool = True
    """Test on a few images for problems that make attacks unreliable, such as masked gradients."""
    trust_model: str | None = None
    """Name of the run's model if it is package.module:callable. Its code is imported and run only if it is named here.
    Code inside a run folder is never run."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    processes: Processes | Literal["auto"] | None = None
    """Number of processes on this machine; the result does not depend on it. auto: one per GPU or, without one, one
    per core. Default: on a CPU, for a long evaluation of a run, one per core, at most one per batch; otherwise 1."""
    as_json: bool = False
    """Print the result card instead of a table."""


def read(words: list[str]) -> Parsed[Evaluate]:
    """Parse a call; mistakes are refused before anything is loaded."""
    parts = [Options("evaluation", Evaluation(), bare=True), Options("data", Data(), usual=OF_DATA)]
    parsed = parse(Evaluate, words, "taet evaluate", parts)
    command = parsed.command
    if command.model is None:
        if command.run is None:
            raise UserError("which model? taet evaluate RUN, or taet evaluate --model NAME --data NAME")
        if parsed.of("data") or command.normalize != "none" or command.out is not None:
            raise UserError(f"--data, --normalize and --out go with --model {command.run}; a run has its own")
        check_value("weights", command.weights or "model", Weights)
    elif command.run is not None:
        raise UserError(f"got {command.run} and --model {command.model}; allowed: one")
    return parsed


def run(words: list[str]) -> int:
    """Attack a run or a model and print its card."""
    parsed = read(words)

    from taet.cli.processes import allowed, run_together, saved, together
    from taet.cli.subject import local, results_of
    from taet.distributed import started_together
    from taet.evaluation.bundles import attacks_of
    from taet.files import check_output
    from taet.models import trusted

    attacks_of(Evaluation(**parsed.of("evaluation")))
    command, place = parsed.command, parsed.command.run
    if command.model is not None:
        more = [Path(command.weights).stem] if command.weights else []
        more += [command.normalize] if command.normalize != "none" else []
        place = command.out or results_of("evaluate", command.model, *more)
        check_output(place)
        command = command.replace(model=local(command.model), out=place)
    count, alone = _count(parsed), without(words, "--processes")
    if count > 1 and started_together():
        raise UserError(f"processes: got {command.processes} in one of several processes; allowed: without torchrun")
    with saved(["evaluate", *words], place):
        if count > 1:
            threads = allowed() // count if command.processes is None else None
            return run_together(count, ["evaluate", *alone], threads=threads)
        with together(command.device), trusted(command.trust_model):
            file, text = _attack(parsed._replace(command=command), call_text(["evaluate", *alone]))
            print(file.read_text(encoding="utf-8") if command.as_json else f"{text}\n", end="")
    return 0


def _count(parsed: Parsed[Evaluate]) -> int:
    """Return the requested number of processes, or the number that is fastest on a CPU."""
    from taet.cli.processes import WORTH_STARTING, allowed, number_of
    from taet.distributed import started_together
    from taet.evaluation.bundles import attacks_of, settle
    from taet.training.environment import resolve_device
    from taet.training.folder import RunFolder

    command = parsed.command
    if command.processes is not None:
        return number_of(command.processes, command.device)
    alone = started_together() or resolve_device(command.device).type != "cpu"
    if alone or command.run is None or not RunFolder(command.run).is_run:
        return 1
    record = RunFolder(command.run).record
    settings = settle(record.run.evaluation, parsed.of("evaluation"), record.run.threat.eps)
    images = sum(record.data.test.class_counts)
    passes = images * sum(attack.passes(record.data.num_classes) for attack in attacks_of(settings))
    return 1 if passes < WORTH_STARTING else max(1, min(allowed(), math.ceil(images / settings.batch_size)))


def _attack(parsed: Parsed[Evaluate], call: str) -> tuple[Path, str]:
    """Attack the model of a run or of any origin; return the file of its card, and what is printed."""
    from taet.cli.processes import progress
    from taet.cli.subject import opened
    from taet.evaluation import GivenImages, evaluate
    from taet.training.environment import resolve_device
    from taet.training.folder import DELIVERED, RunFolder

    command, notes = parsed.command, tuple[str, ...]()
    if command.run is not None:
        place, weights = command.run, command.weights or DELIVERED
        evaluated = partial(evaluate, command.run, weights=weights, device=command.device)
    else:
        assert command.model is not None
        assert command.out is not None
        place, weights, device = command.out, DELIVERED, str(resolve_device(command.device))
        found = opened(command.model, parsed.of("data"), command.weights, command.normalize)
        notes = found.notes
        given: dict[str, Any] = {"name": found.name, "notes": notes, "out": place, "device": device}
        evaluated = partial(evaluate, found.model, GivenImages.of(found.dataset), **given)
    with progress(f"evaluate {command.run or command.model}") as report:
        card = evaluated(**parsed.of("evaluation"), probe=command.probe, progress=report, command=call)
    return RunFolder(place).card(weights), "\n".join([str(card), *notes, f"next: taet report {place}"])
