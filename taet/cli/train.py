"""`taet train METHOD`: train a new run, or continue one that stopped."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

from taet import protocols, registry
from taet.cli.options import POSITIONAL, Command, Options, RunPath, Trusted, call_text, parse, value_of
from taet.errors import UserError, located, unknown
from taet.fields import LongSeed
from taet.files import Json, check_output, read_toml
from taet.formatting import duration, listed, plural, size
from taet.settings import Run, Training, flat, option, override

if TYPE_CHECKING:
    from taet.experiments.own_images import Chosen
    from taet.training.folder import RunFolder
    from taet.training.prepare import TrainingPlan
    from taet.training.state import State

FEW = 100  # test images of each class, which shorten an evaluation that takes hours
USUAL = {
    "data": ("name", "root", "imbalance_ratio"),
    "model": ("name",),
    "training": ("epochs", "batch_size", "lr", "augment", "awp", "ema"),
    "threat": ("eps",),
    "outer": ("name",),
    "evaluation": ("attacks",),
}
"""The settings that --help shows; --help all shows every one."""
OF_RESUME = {"resume", "trust_model", "evaluate"}


class Train(Command):
    """Train METHOD on long-tailed data, or continue a run. taet train METHOD --help has its own options.

    Your own images need no other options: what is not given is chosen for them, and printed.
    """

    examples = (
        "taet train taet --data digits-lt --model resnet8 --epochs 30",
        "taet train at-bsl --data cifar10-lt --data.root ~/data --data.imbalance-ratio 50 --protocol reat",
        "taet train --config run.json --epochs 50",
        "taet train --resume runs/x",
    )

    method: Annotated[str | None, POSITIONAL] = None
    """Training method (see taet list methods)."""
    protocol: str | None = None
    """Defaults of all other options: taet, reat, or official, those of METHOD's paper. Default: taet."""
    recipe: str | None = None
    """Settings that replace those of the protocol (see taet list recipes)."""
    seed: LongSeed | None = None
    """Seed of everything random. Default: 0, or that of --config."""
    out: RunPath | None = None
    """Folder of the run, which must not exist. Default: runs/METHOD-DATA[-irRATIO]-MODEL-PROTOCOL-seedN."""
    resume: Path | None = None
    """Continue this run. Only --trust-model and --evaluate may be added."""
    config: Path | None = None
    """Settings as JSON or TOML: the output of --print-config, or a run.json. They replace those of --protocol and
    --recipe; other options replace them."""
    print_config: bool = False
    """Print all settings, also those that are chosen, and train nothing."""
    trust_model: Trusted = None
    evaluate: bool | None = None
    """Attack the run and write report.html. Default: only for your own images."""


class Request(NamedTuple):
    """A parsed call: the run as the protocol prescribes it, and the dotted fields that a file or an option gives."""

    start: Run
    given: Json
    options: Train

    def run(self) -> Run:
        return override(self.start, self.given)

    def planned(self) -> tuple[Run, Json]:
        """Return the run with missing settings chosen for the images and the machine, and those choices."""
        from taet.experiments import own_images

        network_too = self.options.protocol is None and self.options.recipe is None
        run, choices = own_images.chosen(self.start, self.given, network_too=network_too)
        digits = own_images.Chosen(run.data.name, "no data are named; these come with scikit-learn")
        return run, choices if "data.name" in self.given else {"data.name": digits, **choices}


def read(words: Sequence[str]) -> Request:
    """Parse a call; no data are read."""
    config = value_of("--config", words)
    file = settings_in(Path(config)) if config and not {"-h", "--help"} & {*words} else {}
    in_file = file.pop("method", None), file.pop("protocol", Run.default("protocol"))
    method = words[0] if words and not words[0].startswith("-") else in_file[0]
    named = value_of("--protocol", words)
    start = protocols.start(in_file[1] if named is None else named, method or "at", value_of("--recipe", words))
    if file and (changed := _changed(protocols.start(in_file[1], method or "at"), start)) and changed <= file.keys():
        what = "--protocol" if value_of("--recipe", words) is None else "--recipe"
        fields = listed(map(option, sorted(changed)), most=3)
        raise UserError(f"{what}: would change nothing, as {config} sets {fields}; allowed: a file without one of them")
    parts = [Options(name, getattr(start, name), name == "training", usual) for name, usual in USUAL.items()]
    if method is not None:
        from taet import methods

        own = start.settings or methods.find(method).Config()
        start = start.replace(settings=own)
        parts.insert(0, Options("method", own))
        if "base_settings" in type(own).model_fields:
            base = value_of("--method.base", words) or file.get("settings.base", own.model_dump()["base"])
            parts.insert(1, Options("method.base_settings", methods.find(str(base)).Config()))
    options, given = parse(Train, words, f"taet train {method or ''}".strip(), parts)
    if options.resume is not None:
        if others := {*options.model_fields_set, *given} - OF_RESUME:
            got = ", ".join("METHOD" if name == "method" else f"--{option(name)}" for name in sorted(others))
            raise UserError(f"--resume takes everything from the run: got {got} as well")
        return Request(start, {}, options)
    if method is None:
        raise UserError("which method? it comes first: taet train METHOD [options]; see taet list methods")
    if options.trust_model is not None and config is None:
        raise UserError("--trust-model goes with --resume or --config; a new run has the --model of this call")
    if options.out is not None:
        check_output(options.out.parent)  # the folder itself may be this run, which has a message of its own
    given = {re.sub("^method[.]", "settings.", name): value for name, value in given.items()}
    given |= {} if options.seed is None else {"seed": options.seed}
    return _checked(Request(start, given, options), file)


def _changed(before: Run, after: Run) -> set[str]:
    """Return the dotted names of the settings that a protocol and a recipe change, from those of a file's protocol."""
    old, new = (dict(flat(of.model_dump(exclude={"protocol"}))) for of in (before, after))
    return {name for name, value in new.items() if value != old.get(name, ...)}


def _checked(request: Request, file: Json) -> Request:
    """Add the settings of a file, and refuse what could only fail after the training."""
    from taet import models
    from taet.evaluation.bundles import of_run
    from taet.training.resolve import refuse_idle_loss

    with located(str(request.options.config or "")):
        own = override(request.start, file)
    if "model.name" in file and "model.name" not in request.given:  # a file never chooses code that is run
        with models.trusted(request.options.trust_model):
            models.check_consent(str(request.options.config), own.model.name)
    refuse_idle_loss(override(own, request.given), request.given)
    request = request._replace(given=file | request.given)
    if request.options.recipe in ("fine-tune", "robust-transfer") and request.run().model.weights is None:
        raise UserError(f"recipe {request.options.recipe}: got no weights to start from; add --model.weights")
    of_run(request.run())
    return request


def settings_in(path: Path) -> Json:
    """Return the settings of a file by dotted name: TOML, the JSON of --print-config, or a run.json."""
    from taet.training.record import PLACE

    values = read_toml(path)
    with located(str(path)):
        if "methods" in values:
            raise UserError(f"is a comparison; run it with taet compare {path}")
        values = values["run"] if isinstance(values.get("run"), Mapping) else values
        for name, known in (("method", registry.entries("methods")), ("protocol", protocols.PROTOCOLS)):
            if name in values and str(values[name]) not in known:
                raise unknown(name, str(values[name]), known)
        left = {f"training.{name}" for name in PLACE if name in Training.retired}  # they change no number
        return {name: of for name, of in flat(values) if (name, of) != ("settings", None) and name not in left}


def introduction(plan: TrainingPlan, state: State, chosen: Mapping[str, Chosen]) -> str:
    """Return the text before training: data, network, chosen settings, and the expected time with ways to cut it."""
    from taet.evaluation.evaluate import LONG_SECONDS, WORTH, attack_seconds
    from taet.experiments import own_images
    from taet.training.prepare import expected_seconds

    dataset, run, counts = plan.dataset, plan.run, plan.dataset.class_counts.tolist()
    (least, rare), *_, (most, common) = sorted(zip(counts, dataset.class_names, strict=True))
    images = " + ".join(f"{len(split):,} {name}" for name, split in dataset.splits.items())
    mirroring = {} if run.training.augment in ("none", "crop") else own_images.mirroring(run.data, dataset)
    notes = (*dataset.notes, *state.model.notes)
    usual, own, threat = protocols.start(run.protocol, run.method).threat, state.method.own_attack, run.threat
    if own and any(getattr(usual, name) != getattr(threat, name) for name in ("steps", "step_size", "start")):
        notes += (f"steps and start of --threat change nothing: {state.method.title} has no attack, or one of its own",)
    elif not own and threat.start in ("gaussian", "none") and threat.steps * threat.step_size < threat.eps * (1 - 1e-9):
        steps = f"{plural(threat.steps, 'attack step')} of {size(threat.step_size)}"
        notes += (f"! {steps} cannot reach eps {size(threat.eps)}; see --threat.steps and --threat.step-size",)
    lines = [
        f"{dataset.name}: {images} images of {dataset.num_classes} classes, {most} '{common}' to {least} '{rare}' "
        f"to train on (imbalance {dataset.imbalance_ratio:.4g})",
        f"{run.method}: {plural(run.training.epochs, 'epoch')} of {run.model.name}, eps {size(run.threat.eps)}",
        *(f"  {note}" for note in (*notes, *state.method.warnings(counts, run.training.batch_size))),
    ]
    if choices := own_images.choice_lines({**chosen, **mirroring, **plan.choices}):
        lines += ["decided; each can be set by its option:", *(f"  {line}" for line in choices)]
    took, attacks = expected_seconds(plan, state), attack_seconds(plan, state.model)
    lines.append(f"training will take {duration(took)}, its evaluation {duration(attacks)}")
    epochs = run.training.epochs
    fewer, few = max(1, round(epochs * LONG_SECONDS / took)), dataset.test.class_counts.clip(max=FEW).sum()
    ways = [(f"--epochs {fewer}", took * fewer / epochs, took)] if took > LONG_SECONDS else []
    if attacks > LONG_SECONDS:
        quick = "clean", "quick"
        ways += [(f"--evaluation.attacks {' '.join(quick)}", attack_seconds(plan, state.model, quick), attacks)]
        if run.data.test != "validation":
            ways += [(f"--data.test-max-count {FEW}", attacks * few / len(dataset.test), attacks)]
    shorter = [f"{way} ({duration(seconds)})" for way, seconds, now in ways if seconds < WORTH * now]
    lines += [f"shorter: {', '.join(shorter)}"] if shorter else []
    return "\n".join(lines)


def run(words: list[str]) -> None:
    """Train a new run, or continue one, attack it on request, and print the result."""
    request = read(words)

    from taet.cli import evaluate
    from taet.cli.processes import progress, reported_once, say, together
    from taet.data import is_own
    from taet.distributed import on_first
    from taet.models import consent, trusted
    from taet.progress import reporting_to
    from taet.report import write
    from taet.training import resume, train
    from taet.training.folder import RunFolder
    from taet.training.runs import check_free

    options = request.options
    with reported_once(), progress("read") as report, reporting_to(report):
        if options.print_config:
            print(json.dumps(request.planned()[0].model_dump(), indent=1))
            return
        requested = request.run() if options.resume is None else RunFolder(options.resume).record.run
    with together(requested.training.device), trusted(options.trust_model):
        try:
            if options.resume is not None:
                with progress(f"resume {options.resume}") as report:
                    finished = resume(options.resume, progress=report)
            else:
                if (out := options.out) is not None:
                    on_first(lambda: check_free(RunFolder(out)))
                with progress("read") as report, reporting_to(report):
                    run, chosen = on_first(request.planned)

                def announce(plan: TrainingPlan, state: State, folder: RunFolder) -> None:
                    say(f"{introduction(plan, state, chosen)}\nfolder: {folder.path}")

                with progress(run.method) as report:
                    command = call_text(["train", *words])
                    finished = train(run, out=options.out, progress=report, command=command, announce=announce)
        except KeyboardInterrupt as error:  # its command keeps the choice about the attacks
            kept = {"--evaluate", "--no-evaluate"} & {*words}
            raise KeyboardInterrupt(*(" ".join([str(text), *kept]) for text in error.args)) from None
        print(finished)
        call = [str(finished.folder), *consent(finished.run.model.name)]
        if is_own(requested.data.name) if options.evaluate is None else options.evaluate:
            here = requested.training
            device = [] if here.device == "auto" else ["--device", here.device]
            given = here.threads if options.resume is None else None  # a run that continues may have chosen its own
            device += [] if given is None else ["--threads", str(given)]
            try:
                evaluate.run([*call, *device], last=False)
            except KeyboardInterrupt:
                again = call_text(["train", "--resume", *call, "--evaluate"])
                raise KeyboardInterrupt(f"continue with: {again}") from None
            print("report:", on_first(lambda: write([finished.folder], finished.folder / "report.html", force=True)))
        else:
            print(f"next: {call_text(['evaluate', *call])}")
