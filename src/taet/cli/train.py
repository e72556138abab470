"""`taet train METHOD`: train a new run, or continue one that stopped."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

from taet import protocols, registry
from taet.cli.end_in_time import advise
from taet.cli.options import (
    POSITIONAL,
    Command,
    Options,
    RunPath,
    Trusted,
    call_text,
    parse,
    refuse_idle_trust,
    value_of,
)
from taet.errors import UserError, prefix_errors, unknown
from taet.files import Json, check_output, read_toml
from taet.formatting import join_words
from taet.settings import Run, flat, override
from taet.settings.schema import option
from taet.settings.types import LongSeed, Positive

if TYPE_CHECKING:
    from taet.run.folder import RunFolder
    from taet.training.prepare import TrainingPlan
    from taet.training.state import State
    from taet.training.train import TrainingResult

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
    """Train METHOD on long-tailed data, or continue a run. taet train METHOD --help has its own
    options.

    Your own images need no other options: what is not given is chosen for them, and printed.
    """

    examples = (
        "taet train taet --data digits-lt --model resnet8 --epochs 30",
        "taet train at-bsl --data cifar10-lt --data.root ~/data --data.imbalance-ratio 50 "
        "--protocol reat",
        "taet train --config run.json --epochs 50",
        "taet train --resume runs/x",
    )

    method: Annotated[str | None, POSITIONAL] = None
    """Training method (see taet list methods)."""
    protocol: str | None = None
    """Defaults of all other options: taet, reat, or official, those of METHOD's paper. Default:
    taet."""
    recipe: str | None = None
    """Settings that replace those of the protocol (see taet list recipes)."""
    seed: LongSeed | None = None
    """Seed of everything random. Default: 0, or that of --config."""
    passes: Positive | None = None
    """In place of --epochs: passes of the network for an image, counted over real steps."""
    out: RunPath | None = None
    """Folder of the run, which must not exist. Default:
    runs/METHOD-DATA[-irRATIO]-MODEL-PROTOCOL-seedN."""
    resume: Path | None = None
    """Continue this run. Only --trust-model and --evaluate may be added."""
    config: Path | None = None
    """Settings as JSON or TOML: the output of --print-config, or a run.json. They replace those of
    --protocol and --recipe; other options replace them."""
    print_config: bool = False
    """Print all settings, also those that are chosen, and train nothing."""
    trust_model: Trusted = None
    evaluate: bool | None = None
    """Attack the run and write report.html. Default: only for your own images."""


class Request(NamedTuple):
    """A parsed call: the run as the protocol prescribes it, and the dotted fields that a file or an
    option gives."""

    start: Run
    given: Json
    options: Train

    def run(self) -> Run:
        return override(self.start, self.given)

    def planned(self) -> tuple[Run, Json]:
        """Return the run with missing settings chosen for the images and the machine, and those
        choices."""
        from taet.experiments import own_choices

        network_too = self.options.protocol is None and self.options.recipe is None
        run, choices = own_choices.chosen(self.start, self.given, network_too=network_too)
        if self.options.passes is not None:
            run, epochs = own_choices.epochs_within(run, self.options.passes)
            choices = {**choices, "training.epochs": epochs}
        digits = own_choices.Chosen(
            run.data.name, "no data are named; these come with scikit-learn"
        )
        return run, choices if "data.name" in self.given else {"data.name": digits, **choices}


def read(words: Sequence[str]) -> Request:
    """Parse a call; no data are read."""
    config, recipe = value_of("--config", words), value_of("--recipe", words)
    asks_for_help = bool({"-h", "--help"} & {*words})
    file = settings_in(Path(config)) if config and not asks_for_help else {}
    method_of_file = file.pop("method", None)
    protocol_of_file = file.pop("protocol", Run.default("protocol"))
    method = words[0] if words and not words[0].startswith("-") else method_of_file
    protocol = value_of("--protocol", words)
    start = protocols.start(
        protocol_of_file if protocol is None else protocol, method or "at", recipe
    )
    if file:
        before = protocols.start(protocol_of_file, method or "at")
        named = "--protocol" if recipe is None else "--recipe"
        _refuse_idle(named, _changed(before, start), file, str(config))

    parts = []
    for name, usual in USUAL.items():
        parts.append(Options(name, getattr(start, name), bare=name == "training", usual=usual))
    if method is not None:
        from taet import methods

        start = start.replace(settings=start.settings or methods.find(method).Config())
        parts = [*_options_of_method(start, words, file), *parts]
    options, given = parse(Train, words, f"taet train {method or ''}".strip(), parts)

    if options.resume is not None:
        _refuse_beside_resume({*options.model_fields_set, *given} - OF_RESUME)
        return Request(start, {}, options)
    if method is None:
        raise UserError(
            "which method? it comes first: taet train METHOD [options]; see taet list methods"
        )
    if options.trust_model is not None and config is None:
        raise UserError(
            "--trust-model goes with --resume or --config; a new run has the --model of this call"
        )
    if options.out is not None:
        # the folder itself may be this run, which has a message of its own
        check_output(options.out.parent)
    given = {re.sub("^method[.]", "settings.", name): value for name, value in given.items()}
    if options.seed is not None:
        given["seed"] = options.seed
    if options.passes is not None and "training.epochs" in given:
        raise UserError(f"passes: got {options.passes:g} and epochs as well; allowed: one of them")
    return _checked(Request(start, given, options), file)


def _options_of_method(start: Run, words: Sequence[str], file: Json) -> list[Options]:
    """Return the options of the method's own settings, and of those of a method that it wraps."""
    from taet import methods

    own = start.settings
    assert own is not None
    parts = [Options("method", own)]
    if "base_settings" in type(own).model_fields:
        base = value_of("--method.base", words)
        if not base:
            base = str(file.get("settings.base", own.model_dump()["base"]))
        parts.append(Options("method.base_settings", methods.find(base).Config()))
    return parts


def _refuse_idle(named: str, changed: set[str], file: Json, config: str) -> None:
    """Refuse a protocol or a recipe all of whose settings a file sets."""
    if changed and changed <= file.keys():
        fields = join_words(map(option, sorted(changed)), most=3)
        raise UserError(
            f"{named}: would change nothing, as {config} sets {fields}; allowed: a file without "
            "one of them"
        )


def _refuse_beside_resume(others: set[str]) -> None:
    """Refuse settings beside --resume, by their dotted names."""
    if others:
        got = ["METHOD" if name == "method" else f"--{option(name)}" for name in sorted(others)]
        raise UserError(f"--resume takes everything from the run: got {', '.join(got)} as well")


def _changed(before: Run, after: Run) -> set[str]:
    """Return the dotted names of the settings in which two runs differ, but for the protocol."""
    old = dict(flat(before.model_dump(exclude={"protocol"})))
    new = dict(flat(after.model_dump(exclude={"protocol"})))
    return {name for name, value in new.items() if value != old.get(name, ...)}


def _checked(request: Request, file: Json) -> Request:
    """Add the settings of a file, and refuse what could only fail after the training."""
    from taet.evaluation.attack_sets import of_run
    from taet.models import trust
    from taet.training.checks import refuse_idle_loss

    options, config = request.options, str(request.options.config or "")
    with prefix_errors(config):
        run_of_file = override(request.start, file)
    model_is_of_file = "model.name" not in request.given
    may_trust = model_is_of_file and trust.is_own(run_of_file.model.name)
    if options.trust_model is not None and not may_trust:
        raise UserError(
            f"--trust-model: got {options.trust_model}; allowed: the model of {options.config}, if "
            "it is package.module:callable"
        )
    # a file never chooses code that is run
    if "model.name" in file and model_is_of_file:
        with trust.trusted(options.trust_model):
            trust.check_consent(config, run_of_file.model.name)
    refuse_idle_loss(override(run_of_file, request.given), request.given)
    request = request._replace(given=file | request.given)
    run = request.run()
    if options.recipe in ("fine-tune", "robust-transfer") and run.model.weights is None:
        raise UserError(
            f"recipe {options.recipe}: got no weights to start from; add --model.weights"
        )
    of_run(run)
    return request


def settings_in(path: Path) -> Json:
    """Return the settings of a file by dotted name: TOML, the JSON of --print-config, or a
    run.json."""
    from taet.settings.roles import RETIRED_OF_MACHINE

    values = read_toml(path)
    with prefix_errors(str(path)):
        if "methods" in values:
            raise UserError(f"is a comparison; run it with taet compare {path}")
        values = values["run"] if isinstance(values.get("run"), Mapping) else values
        for name, known in (
            ("method", registry.entries("methods")),
            ("protocol", protocols.PROTOCOLS),
        ):
            if name in values and str(values[name]) not in known:
                raise unknown(name, str(values[name]), known)
        return {
            name: of
            for name, of in flat(values)
            if (name, of) != ("settings", None)
            and name not in RETIRED_OF_MACHINE  # they change no number
        }


def run(words: list[str]) -> None:
    """Train a new run, or continue one, attack it on request, and print the result."""
    request = read(words)

    from taet.cli.processes import reported_once, together
    from taet.data import is_own
    from taet.models import trusted
    from taet.models.trust import consent
    from taet.progress import reporting_to, shown
    from taet.run.folder import RunFolder

    options = request.options
    with reported_once(), shown("read") as report, reporting_to(report):
        if options.print_config:
            print(json.dumps(request.planned()[0].model_dump(), indent=1))
            return
        requested = (
            request.run() if options.resume is None else RunFolder(options.resume).record.run
        )
    with together(requested.training.device), trusted(options.trust_model):
        try:
            finished = (
                _trained(request, words) if options.resume is None else _resumed(options, words)
            )
        except KeyboardInterrupt as error:  # its command keeps the choice about the attacks
            texts = [" ".join([str(text), *_kept(words)]) for text in error.args]
            raise KeyboardInterrupt(*texts) from None
        print(finished)
        call = [str(finished.folder), *consent(finished.run.model.name)]
        attacks = is_own(requested.data.name) if options.evaluate is None else options.evaluate
        if not attacks:
            is_evaluated = RunFolder(finished.folder).card().exists()
            following = ["report", call[0]] if is_evaluated else ["evaluate", *call]
            print(f"next: {call_text(following)}")
            return
        machine = []
        if requested.training.device != "auto":
            machine += ["--device", requested.training.device]
        # a run that continues may have chosen its own threads
        if options.resume is None and requested.training.threads is not None:
            machine += ["--threads", str(requested.training.threads)]
        _attack_and_report(finished.folder, call, machine)


def _kept(words: Sequence[str]) -> list[str]:
    """Return the choice about the attacks, which the command that goes on keeps."""
    return sorted({"--evaluate", "--no-evaluate"} & {*words})


def _advise_to_resume(folder: RunFolder, words: Sequence[str]) -> None:
    """Let a command that is ended within a step name the last checkpoint."""
    from taet.run.loading import resume_call

    again = " ".join([resume_call(folder), *_kept(words)])
    advise(f"progress up to the last checkpoint is in {folder.path}; continue with: {again}")


def _resumed(options: Train, words: Sequence[str]) -> TrainingResult:
    """Continue a run."""
    from taet.progress import shown
    from taet.run.folder import RunFolder
    from taet.training import resume

    assert options.resume is not None
    refuse_idle_trust(options.trust_model, options.resume)
    _advise_to_resume(RunFolder(options.resume), words)
    with shown(f"resume {options.resume}") as report:
        return resume(options.resume, progress=report)


def _trained(request: Request, words: Sequence[str]) -> TrainingResult:
    """Train a new run; before the first epoch, say what was chosen and how long it will take."""
    from taet.cli.introduction import introduction
    from taet.distributed import run_on_rank_zero
    from taet.progress import reporting_to, say, shown
    from taet.run.folder import RunFolder
    from taet.run.loading import check_free
    from taet.training import train

    out = request.options.out
    if out is not None:
        run_on_rank_zero(lambda: check_free(RunFolder(out)))
    with shown("read") as report, reporting_to(report):
        run, chosen = run_on_rank_zero(request.planned)

    def announce(plan: TrainingPlan, state: State, folder: RunFolder) -> None:
        _advise_to_resume(folder, words)
        evaluates = request.options.evaluate is not False
        text = introduction(plan, state, chosen, evaluates=evaluates)
        say(f"{text}\nfolder: {folder.path}")

    command = call_text(["train", *words])
    with shown(run.method) as report:
        return train(run, out=out, progress=report, command=command, announce=announce)


def _attack_and_report(folder: Path, call: Sequence[str], machine: Sequence[str]) -> None:
    """Evaluate a finished run and write its report.

    `call`: the words that name the run; `machine`: the options of the machine it was trained on.
    """
    from taet.cli import evaluate
    from taet.distributed import run_on_rank_zero
    from taet.report import write

    try:
        evaluate.run([*call, *machine], last=False)
    except KeyboardInterrupt:
        again = call_text(["train", "--resume", *call, "--evaluate"])
        raise KeyboardInterrupt(f"continue with: {again}") from None
    report = run_on_rank_zero(lambda: write([folder], folder / "report.html", force=True))
    print("report:", report)
