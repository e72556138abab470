"""`taet train METHOD`: train a new run, or continue one that stopped."""

from __future__ import annotations

import json
import shlex
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from taet import protocols, registry
from taet.cli.options import POSITIONAL, Command, Options, RunPath, call_text, parse, value_of
from taet.errors import UserError, located, unknown
from taet.fields import LongSeed, check_value, hints, read_text
from taet.files import check_output, parse_json, read_bytes
from taet.settings import Run, option, override, to_json

if TYPE_CHECKING:
    from taet.training.choices import Chosen
    from taet.training.folder import RunFolder
    from taet.training.prepare import TrainingPlan
    from taet.training.result import TrainingResult
    from taet.training.state import State

MOST_BYTES = 2**20
USUAL = {
    "data": ("name", "root", "imbalance_ratio"),
    "model": ("name",),
    "training": ("epochs", "batch_size", "lr", "augment"),
    "threat": ("eps", "steps"),
    "outer": ("name",),
    "evaluation": (),
}
"""The settings that --help shows; --help all shows every one."""


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

    def planned(self) -> tuple[Run, dict[str, Chosen]]:
        """Return the run with missing settings chosen for the images and the machine, and those choices."""
        from taet.data import full_name, is_own
        from taet.experiments import own_images

        run = self.run()
        if not is_own(run.data.name):
            return self._with_network(run)
        plan = own_images.planned(self.start.replace(data=run.data))
        named = {"data.name": full_name(run.data.name)}  # the meaning of a bare path must not depend on the folder
        run = override(override(plan.run, self.given), named)
        return run, plan.followed(run)

    def _with_network(self, run: Run) -> tuple[Run, dict[str, Chosen]]:
        """Choose a network, unless a protocol or a recipe with its own network is given."""
        from taet.data import facts
        from taet.experiments import own_images
        from taet.training.choices import Chosen

        if self.options.protocol is not None or self.options.recipe is not None or "model.name" in self.given:
            return run, {}
        known = facts(run.data)
        made = own_images.network((run.data.size or 32,) * 2 if known is None else known.image_shape[:0:-1])
        if made.value == run.model.name:
            return run, {}
        why = f"{made.why}; --protocol {run.protocol} has {run.model.name}"
        return override(run, {"model.name": made.value}), {"model.name": Chosen(made.value, why)}


def read(words: Sequence[str]) -> Request:
    """Parse a call; no data are read."""
    place = value_of("--config", words)
    asks = bool({"-h", "--help"} & {*words})
    file = dict(settings_in(Path(place))) if place and not asks else {}
    method = words[0] if words and not words[0].startswith("-") else file.get("method")
    protocol = value_of("--protocol", words)
    protocol = file.get("protocol", Run.default("protocol")) if protocol is None else protocol
    start = protocols.start(protocol, method or Run.default("method"), value_of("--recipe", words))
    if method is not None:
        from taet import methods

        start = start.replace(settings=start.settings or methods.find(method).Config())
    parts = [] if start.settings is None or method is None else [Options("method", start.settings)]
    parts += [Options(name, getattr(start, name), name == "training", usual) for name, usual in USUAL.items()]
    options, given = parse(Train, words, f"taet train {method or ''}".strip(), parts)
    if options.resume is not None:
        others = {*options.model_fields_set, *given} - {"resume", "trust_model", "evaluate", "as_json"}
        if others:
            words = ", ".join(f"--{option(name)}" for name in sorted(others))
            raise UserError(f"--resume takes everything from the run: got {words} as well")
        return Request(start, {}, options)
    if method is None:
        raise UserError("which method? taet train METHOD [options]; see taet list methods")
    if options.out is not None:
        check_output(options.out.parent)  # the folder itself may be this run, which has a message of its own
    if options.trust_model is not None and place is None:
        raise UserError("--trust-model goes with --resume or --config; a new run has the --model of this call")
    given = {
        ("settings." + name.removeprefix("method.") if name.startswith("method.") else name): given[name]
        for name in given
    }
    given |= {} if options.seed is None else {"seed": options.seed}
    return _checked(Request(start, given, options), {k: v for k, v in file.items() if k not in ("method", "protocol")})


def _checked(request: Request, file: dict[str, Any]) -> Request:
    """Add the settings of a file, and refuse what could only fail after the training."""
    from taet import models
    from taet.evaluation.bundles import attacks_of

    if request.options.config is not None:
        with located(str(request.options.config)):
            own = override(request.start, file)
        if "model.name" not in request.given:  # a file never chooses code that is run
            with models.trusted(request.options.trust_model):
                models.check_consent(str(request.options.config), own.model.name)
    request = request._replace(given=file | request.given)
    attacks_of(request.run().evaluation)
    return request


def settings_in(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield the settings of a file by dotted name: TOML, the JSON of --print-config, or a run.json."""
    content = read_bytes(path, most=MOST_BYTES)
    with located(str(path)):
        if content.lstrip().startswith(b"{"):
            values = parse_json(content, "JSON")
        else:
            try:
                values = tomllib.loads(content.decode("utf-8"))
            except ValueError as error:
                raise UserError(f"is neither JSON nor TOML: {error}") from None
        if "methods" in values:
            raise UserError(f"is a comparison; run it with taet compare {path}")
        values = values["run"] if isinstance(values.get("run"), Mapping) else values
        for name, known in (("method", registry.entries("methods")), ("protocol", protocols.PROTOCOLS)):
            check_value(name, values.get(name, ""), str)
            if name in values and values[name] not in known:
                raise unknown(name, values[name], known)
        yield from _flat(values, hints(Run))


def _flat(values: Mapping[str, Any], known: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        hint = known.get(name)
        if isinstance(value, Mapping):
            yield from _flat(value, hints(hint) if isinstance(hint, type) else {}, f"{prefix}{name}.")
        elif isinstance(value, str) and "/" in value and hint is not None:
            yield prefix + name, read_text(value, hint)
        elif (prefix + name, value) != ("settings", None):
            yield prefix + name, value


def run(words: list[str]) -> None:
    """Train a new run, or continue one, attack it on request, and print the result."""
    request = read(words)  # before torch is imported, so that --help is fast

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
    with together(asked.training.device):
        if options.resume is None:
            finished = _train(request, words)
        else:
            with models.trusted(options.trust_model), progress(f"resume {options.resume}") as report:
                finished = resume(options.resume, progress=report, announce=lambda *at: say(continued(*at)))
        row = {"run": str(finished.folder), "epochs": len(finished.history), "last": finished.history[-1]}
        print(json.dumps(row) if options.as_json else finished)
        named = [str(finished.folder), *models.consent(finished.run.model.name)]
        if options.evaluate or (options.evaluate is None and is_own(finished.run.data.name)):
            with saved(["train", "--resume", *named, *(["--evaluate"] if options.evaluate else [])], finished.folder):
                _evaluate(finished, options.as_json)
        elif not options.as_json:
            print(f"next: {shlex.join(['taet', 'evaluate', *named])}")


def _train(request: Request, words: Sequence[str]) -> TrainingResult:
    from taet.cli.introduction import expected, introduction
    from taet.cli.processes import progress, say
    from taet.data import is_own
    from taet.distributed import first
    from taet.progress import reporting_to
    from taet.training import train

    options = request.options
    with progress("read") as report, reporting_to(report):
        run, chosen = first(request.planned)
    begun: list[Path] = []
    attacks = is_own(run.data.name) if options.evaluate is None else options.evaluate

    def announce(plan: TrainingPlan, state: State, folder: RunFolder) -> None:
        begun.append(folder.path)
        if not options.as_json:
            unnamed = "" if "data.name" in request.given else f"no --data: {run.data.name}\n"
            told = f"{introduction(plan, state, chosen)}\n{expected(plan, state, attacks)}"
            say(f"{unnamed}{told}\nfolder: {folder.path}")

    with progress(run.method) as report:
        try:
            command = call_text(["train", *words])
            return train(run, out=options.out, progress=report, command=command, announce=announce)
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
