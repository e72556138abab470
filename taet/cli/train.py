"""`taet train METHOD`: train a new run, or continue one that stopped."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from taet import protocols, registry
from taet.cli.options import POSITIONAL, Command, Options, RunPath, call_text, parse, value_of
from taet.errors import UserError, located, unknown
from taet.fields import LongSeed, check_value
from taet.files import check_output, parse_json, read_bytes
from taet.settings import Run, option, override, to_json

if TYPE_CHECKING:
    from taet.training.folder import RunFolder
    from taet.training.prepare import TrainingPlan
    from taet.training.runs import TrainingResult
    from taet.training.state import State

MOST_BYTES = 2**20
USUAL = {
    "data": ("name", "root", "imbalance_ratio"),
    "model": ("name",),
    "training": ("epochs", "batch_size", "lr", "augment"),
    "threat": ("eps", "steps"),
    "outer": ("name",),
    "evaluation": ("attacks",),
}
"""The settings that --help shows; --help all shows every one."""
OF_RESUME = {"resume", "trust_model", "evaluate", "as_json"}


class Train(Command):
    """Train METHOD on long-tailed data, or continue a run. Options --method.* are settings of the method: see
    taet train METHOD --help.

    Your own images (folder:, csv:, npz: or a path) need no other options: image size, groups, network, epochs and
    attacks that are not given are chosen for the images and this machine, and printed. --evaluate is then the default.
    """

    examples = (
        "taet train taet --data digits-lt --model resnet8 --epochs 30",
        "taet train at-bsl --data cifar10-lt --data.root ~/data --data.imbalance-ratio 50 --protocol reat",
        "taet train harl --method.absent skip --threat.eps 8/255 --out runs/harl-skip",
        "taet train taet --data folder:./lesions --print-config > run.json",
        "taet train --config run.json --epochs 50",
        "taet train --resume runs/harl-skip",
        "torchrun --nproc-per-node 4 -m taet train taet --data cifar10-lt",
    )

    method: Annotated[str | None, POSITIONAL] = None
    """Training method (see taet list methods)."""
    protocol: str | None = None
    """Protocol that sets the defaults of all other options: taet, reat, or official, the published settings of METHOD.
    Default: taet, with a network chosen for images and machine."""
    recipe: str | None = None
    """Settings that replace those of the protocol: taet, reat, vit, strong or fine-tune (see taet list recipes)."""
    seed: LongSeed | None = None
    """Seed of weights, batches, augmentation and attack starts. Default: 0, or that of --config."""
    out: RunPath | None = None
    """Folder of the run; it must not exist. Default: a new one in runs/."""
    resume: Path | None = None
    """Continue a run that stopped; only --trust-model, --evaluate and --json may be added."""
    config: Path | None = None
    """Settings file, JSON or TOML: the output of --print-config, or the run.json of a run. Other options replace its
    values, and METHOD may be left out."""
    print_config: bool = False
    """Print all settings, including those chosen for images and machine, and train nothing. Automatic precision and
    threads are measured later, on the machine that trains."""
    trust_model: str | None = None
    """Name of the model of --resume or --config if it is package.module:callable: its code is run only if it is named
    here."""
    evaluate: bool | None = None
    """Attack the finished run and write its report.html. Default: only with your own images."""
    as_json: bool = False
    """Print the finished run as JSON."""


class Request(NamedTuple):
    """A parsed call."""

    start: Run
    """The run as the protocol prescribes it."""
    given: dict[str, Any]
    """Dotted fields of the run that a file or an option gives."""
    options: Train

    def run(self) -> Run:
        """Return the run with the given settings."""
        return override(self.start, self.given)

    def planned(self) -> tuple[Run, dict[str, Any]]:
        """Return the run with missing settings chosen for the images and the machine, and those choices."""
        from taet.experiments import own_images

        no_network = self.options.protocol is not None or self.options.recipe is not None
        return own_images.chosen(self.start, self.given, network_too=not no_network)


def read(words: Sequence[str]) -> Request:
    """Parse a call; no data are read."""
    place = value_of("--config", words)
    file = settings_in(Path(place)) if place and not {"-h", "--help"} & {*words} else {}
    method = words[0] if words and not words[0].startswith("-") else file.pop("method", None)
    in_file = file.pop("protocol", Run.default("protocol"))
    named = value_of("--protocol", words)
    start = protocols.start(in_file if named is None else named, method or "at", value_of("--recipe", words))
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
            words = ", ".join(f"--{option(name)}" for name in sorted(others))
            raise UserError(f"--resume takes everything from the run: got {words} as well")
        return Request(start, {}, options)
    if method is None:
        raise UserError("which method? taet train METHOD [options]; see taet list methods")
    if options.trust_model is not None and place is None:
        raise UserError("--trust-model goes with --resume or --config; a new run has the --model of this call")
    if options.out is not None:
        check_output(options.out.parent)  # the folder itself may be this run, which has a message of its own
    given = {re.sub("^method[.]", "settings.", name): value for name, value in given.items()}
    given |= {} if options.seed is None else {"seed": options.seed}
    return _checked(Request(start, given, options), {name: value for name, value in file.items() if name != "method"})


def _checked(request: Request, file: dict[str, Any]) -> Request:
    """Add the settings of a file, and refuse what could only fail after the training."""
    from taet import models
    from taet.evaluation.bundles import attacks_of

    with located(str(request.options.config or "")):
        own = override(request.start, file)
    if "model.name" in file and "model.name" not in request.given:  # a file never chooses code that is run
        with models.trusted(request.options.trust_model):
            models.check_consent(str(request.options.config), own.model.name)
    request = request._replace(given=file | request.given)
    attacks_of(request.run().evaluation)
    return request


def settings_in(path: Path) -> dict[str, Any]:
    """Return the settings of a file by dotted name: TOML, the JSON of --print-config, or a run.json."""
    content = read_bytes(path, most=MOST_BYTES)
    with located(str(path)):
        try:
            is_json = content.lstrip().startswith(b"{")
            values = parse_json(content, "JSON") if is_json else tomllib.loads(content.decode("utf-8"))
        except ValueError as error:
            raise UserError(f"is neither JSON nor TOML: {error}") from None
        if "methods" in values:
            raise UserError(f"is a comparison; run it with taet compare {path}")
        values = values["run"] if isinstance(values.get("run"), Mapping) else values
        for name, known in (("method", registry.entries("methods")), ("protocol", protocols.PROTOCOLS)):
            check_value(name, values.get(name, ""), str)
            if name in values and values[name] not in known:
                raise unknown(name, values[name], known)
        return dict(_flat(values))


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif (prefix + name, value) != ("settings", None):
            yield prefix + name, value


def run(words: list[str]) -> None:
    """Train a new run, or continue one, attack it on request, and print the result."""
    request = read(words)

    from taet import models
    from taet.cli.introduction import continued
    from taet.cli.processes import progress, reported_once, saved, say, together
    from taet.data import is_own
    from taet.progress import reporting_to
    from taet.training import resume
    from taet.training.folder import RunFolder

    options = request.options
    with reported_once():
        if options.print_config:
            with progress("read") as report, reporting_to(report):
                print(json.dumps(to_json(request.planned()[0]), indent=1))
            return
        asked = request.run() if options.resume is None else RunFolder(options.resume).record.run
    attacked = is_own(asked.data.name) if options.evaluate is None else options.evaluate
    with together(asked.training.device):
        if options.resume is None:
            finished = _train(request, words, attacked)
        else:
            with models.trusted(options.trust_model), progress(f"resume {options.resume}") as report:
                finished = resume(options.resume, progress=report, announce=lambda *at: say(continued(*at)))
        row = {"run": str(finished.folder), "epochs": len(finished.history), "last": finished.history[-1]}
        print(json.dumps(row) if options.as_json else finished)
        named = [str(finished.folder), *models.consent(finished.run.model.name)]
        if attacked:
            with saved(["train", "--resume", *named, *(["--evaluate"] if options.evaluate else [])], finished.folder):
                _evaluate(finished, options.as_json)
        elif not options.as_json:
            print(f"next: {shlex.join(['taet', 'evaluate', *named])}")


def _train(request: Request, words: Sequence[str], attacked: bool) -> TrainingResult:
    from taet.cli.introduction import introduction
    from taet.cli.processes import progress, say
    from taet.distributed import first
    from taet.progress import reporting_to
    from taet.training import train

    with progress("read") as report, reporting_to(report):
        run, chosen = first(request.planned)
    begun: list[Path] = []

    def announce(plan: TrainingPlan, state: State, folder: RunFolder) -> None:
        begun.append(folder.path)
        if not request.options.as_json:
            unnamed = "" if "data.name" in request.given else f"no --data: {run.data.name}\n"
            say(f"{unnamed}{introduction(plan, state, chosen, attacked)}\nfolder: {folder.path}")

    with progress(run.method) as report:
        try:
            command = call_text(["train", *words])
            return train(run, out=request.options.out, progress=report, command=command, announce=announce)
        except KeyboardInterrupt as error:
            if begun or error.args:
                raise
            raise KeyboardInterrupt("nothing was trained yet; the same command begins again") from None


def _evaluate(finished: TrainingResult, as_json: bool) -> None:
    from taet import models
    from taet.cli.processes import progress
    from taet.distributed import first
    from taet.evaluation import evaluate
    from taet.report import write
    from taet.training.folder import RunFolder

    folder, named = finished.folder, finished.run.model.name
    command = call_text(["evaluate", str(folder), *models.consent(named)])
    with models.trusted(named), progress(f"attack {folder.name}") as report:
        card = evaluate(folder, device=finished.run.training.device, progress=report, command=command)
    path = first(lambda: write([folder], RunFolder(folder).report))
    if not as_json:
        print(f"{card}\nreport: {path}\nnext: taet predict {folder} IMAGES, taet export {folder} --format onnx")
