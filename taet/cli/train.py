"""`taet train METHOD`: train a new run, or continue one that stopped."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, make_dataclass
from pathlib import Path
from typing import Any, NamedTuple

import tyro

from taet import methods, models, protocols, statistics
from taet.cli import flags, run_file
from taet.cli.processes import reported_once, together
from taet.cli.progress import progress, saved, say
from taet.cli.run_file import RunFile
from taet.data import facts, full_name, is_own
from taet.distributed import first
from taet.errors import UserError, located, unknown
from taet.evaluation import evaluate
from taet.evaluation.bundles import attacks_of
from taet.evaluation.measurement import attack_seconds, span
from taet.experiments import own_images
from taet.fields import LongSeed
from taet.formatting import duration, plural
from taet.progress import reporting_to
from taet.report import write
from taet.settings import Run, override
from taet.training import resume, train
from taet.training.choices import Chosen, choice_lines
from taet.training.folder import RunFolder
from taet.training.result import TrainingResult
from taet.training.trainer import Trainer

COARSE_SELECTION = 0.02
"""Standard error above which `taet train` warns: twice as much, 4 points, is more than most methods differ by."""

EXAMPLES = (
    "taet train taet --data digits-lt --model resnet8 --epochs 30",
    "taet train at-bsl --data cifar10-lt --data.root ~/data --data.imbalance-ratio 50 --protocol reat",
    "taet train harl --method.absent skip --threat.eps 8/255 --out runs/harl-skip",
    "taet train taet --data folder:./lesions",
    "taet train at --data csv:lesions.csv --data.group patient --data.size 64 --outer balanced-softmax",
    "taet train at-bsl --data cifar10-lt --model vit-small-p4 --recipe vit",
    "taet train taet --data folder:./lesions --print-config > run.toml",
    "taet train --config run.toml --epochs 50",
    "taet train --resume runs/harl-skip",
    "torchrun --nproc-per-node 4 -m taet train taet --data cifar10-lt",
)
DESCRIPTION = """Train METHOD. Options --method.* are its own settings.

Your own images (folder:, csv:, npz: or a path) need no other options: image size, groups, network, epochs and attacks
that are not given are chosen for the images and this machine, and printed. --evaluate is then on by default.

With torchrun, the processes share every batch: torchrun --nproc-per-node 4 -m taet train METHOD ..."""


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """The options besides the settings of the run."""

    protocol: str | None = None
    """Protocol that sets the defaults of all other options: taet, reat, or official, the published settings of METHOD.
    Default: taet, with a network chosen for images and machine."""
    recipe: str | None = None
    """Group of settings that replace those of the protocol: taet, reat, vit, strong or fine-tune (see `taet list
    recipes`)."""
    seed: LongSeed = 0
    """Seed of weights, batches, augmentation and attack starts."""
    out: flags.RunPath | None = None
    """Folder of the run; it must not exist. Default: a new one in runs/."""
    resume: Path | None = None
    """Continue a run that stopped; only --trust-model, --evaluate, --no-evaluate and --json may be added."""
    config: Path | None = None
    """Settings file, TOML or JSON: the output of --print-config, or the run.json of a run. Other options replace its
    values, and METHOD may be left out."""
    print_config: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print all settings as TOML, including those chosen for images and machine, and train nothing. Automatic precision
    and threads are measured later, on the machine that trains."""
    trust_model: str | None = None
    """Name of the model of the run to continue if it is package.module:callable: its code is imported and run only if
    it is named here."""
    evaluate: tyro.conf.FlagCreatePairsOff[bool] = False
    """Attack the finished run and write its report.html. On by default for your own images."""
    no_evaluate: tyro.conf.FlagCreatePairsOff[bool] = False
    """Do not attack the finished run."""
    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print the finished run as JSON."""

    def attacks(self, run: Run) -> bool:
        """Whether the finished run is attacked."""
        return self.evaluate or (is_own(run.data.name) and not self.no_evaluate)


class TrainingRequest(NamedTuple):
    """A parsed call that trains a new run."""

    start: Run
    """The run as the protocol prescribes it."""
    given: dict[str, Any]
    """Dotted fields of the run that were given as options."""
    options: TrainOptions

    def run(self) -> Run:
        """Return the run with the given options."""
        return override(self.start, self.given)

    def planned(self) -> tuple[Run, dict[str, Chosen]]:
        """Return the run with missing settings chosen for the images and the machine, and those choices."""
        run = self.run()
        if not is_own(run.data.name):
            return self._with_network(run)
        plan = own_images.planned(self.start.replace(data=run.data))
        named = {"data.name": full_name(run.data.name)}  # the meaning of a bare path must not depend on the folder
        run = override(override(plan.run, self.given), named)
        return run, plan.followed(run)

    def _with_network(self, run: Run) -> tuple[Run, dict[str, Chosen]]:
        """Choose a network, unless a protocol or a recipe with its own network is given."""
        if self.options.protocol is not None or self.options.recipe is not None or "model.name" in self.given:
            return run, {}
        known = facts(run.data)
        made = own_images.network((run.data.size or 32,) * 2 if known is None else known.image_shape[:0:-1])
        if made.value == run.model.name:
            return run, {}
        why = f"{made.why}; --protocol {run.protocol} has {run.model.name}"
        return override(run, {"model.name": made.value}), {"model.name": Chosen(made.value, why)}


def run(arguments: list[str]) -> None:
    """Train a new run, or continue one, attack it on request, and print the result."""
    with reported_once():
        request = read(arguments)
        options = request.options
        if options.print_config:
            with progress("read") as report, reporting_to(report):
                chosen, _ = request.planned()
            print(run_file.text(chosen))
            return
        asked = request.run() if options.resume is None else RunFolder(options.resume).record.run
    with together(asked.training.device):
        if options.resume is None:
            finished = _train(request, arguments)
        else:
            with models.trusted(options.trust_model), progress(f"resume {options.resume}") as report:
                finished = resume(options.resume, progress=report, announce=lambda trainer: say(continued(trainer)))
        if options.json:
            row = {"run": str(finished.folder), "epochs": len(finished.history), "last": finished.history[-1]}
            print(json.dumps(row))
        else:
            print(finished)
        named = [str(finished.folder), *models.consent(finished.run.model.name)]
        if options.attacks(finished.run):
            with saved(["train", "--resume", *named, *(["--evaluate"] if options.evaluate else [])], finished.folder):
                _evaluate(finished, options.json)
        elif not options.json:
            print(f"next: {shlex.join(['taet', 'evaluate', *named])}")


def read(arguments: Sequence[str]) -> TrainingRequest:
    """Parse a call; no data are read."""
    words, has_method = list(arguments), bool(arguments) and not arguments[0].startswith("-")
    names = flags.options_of(words)
    asks_help = bool(names & {"-h", "--help"})
    file = _file(words) if "--config" in names and not asks_help else None
    if has_method:
        request = parse(words[0], words[1:], file=file)
    elif asks_help or "--resume" in names or (file is not None and file.method is not None):
        request = parse((file and file.method) or Run.default("method"), words, "METHOD", file)
    else:
        raise UserError("which method? taet train METHOD [options]; see taet list methods")
    if request.options.evaluate and request.options.no_evaluate:
        raise UserError("got both --evaluate and --no-evaluate; allowed: one")
    if request.options.resume is not None:
        words = flags.without(flags.without(words, "--resume"), "--trust-model")
        rest = [w for w in words if w not in ("--evaluate", "--no-evaluate", "--json")]
        if rest:
            raise UserError(f"--resume takes everything from the run: got {' '.join(rest)} as well")
    elif request.options.trust_model is not None:
        raise UserError("--trust-model goes with --resume; a new run has the --model of this call")
    return request


def _file(words: Sequence[str]) -> RunFile:
    """Return the settings that --config names."""
    path = flags.value_of("--config", words)
    if not path:
        raise UserError("--config needs a value; see taet train --help")
    return run_file.read(Path(path), words[0] if not words[0].startswith("-") else None)


def parse(method: str, words: Sequence[str], prog: str = "", file: RunFile | None = None) -> TrainingRequest:
    """Parse `METHOD [options]`; --help shows `prog` in the place of the method; options replace those of a `file`."""
    protocol, recipe = (flags.value_of(f"--{name}", words) for name in ("protocol", "recipe"))
    protocol = protocol or (file.protocol or "" if file else "")
    start = protocols.start(protocol or Run.default("protocol"), method, recipe or None)
    start = start.replace(settings=start.settings or methods.find(method).Config())
    parts = {"settings": flags.options(start.settings, "method")}  # in the order of the sections of --help
    parts |= {name: flags.options(getattr(start, name), name, f"--{name}") for name in ("data", "model")}
    parts |= {"training": flags.options(start.training), "threat": flags.options(start.threat, "threat")}
    parts |= {"outer": flags.options(start.outer, "outer", "--outer")}
    parts |= {"evaluation": flags.options(start.evaluation, "evaluation")}
    kind = make_dataclass(
        "MethodOptions",
        [(name, flags.Given, part) for name, part in parts.items()],
        bases=(TrainOptions,),
        frozen=True,
        kw_only=True,
    )
    options: Any = flags.parse(kind, words, f"taet train {prog or method}", DESCRIPTION, EXAMPLES)
    given = {f"{part}.{name}": value for part in parts for name, value in getattr(options, part).items()}
    if options.protocol == "":
        raise unknown("protocol", options.protocol, protocols.PROTOCOLS)
    seed = {} if file and not flags.value_of("--seed", words) else {"seed": options.seed}
    if file is not None:
        with located(str(file.path)):
            override(start, file.settings)
        given = file.settings | given
    request = TrainingRequest(start, given | seed, options)
    attacks_of(request.run().evaluation)  # checked before the training, not after it
    return request


def _train(request: TrainingRequest, arguments: Sequence[str]) -> TrainingResult:
    options = request.options
    with progress("read") as report, reporting_to(report):
        run, chosen = first(request.planned)
    begun: list[Path] = []

    def announce(trainer: Trainer) -> None:
        begun.append(trainer.folder.path)
        if not options.json:
            say("\n".join([introduction(trainer, chosen), *expected(trainer, options.attacks(run))]))

    with progress(run.method) as report:
        command = flags.call_text(["train", *arguments])
        try:
            return train(run, out=options.out, progress=report, command=command, announce=announce)
        except KeyboardInterrupt as error:
            if begun or error.args:
                raise
            raise KeyboardInterrupt("nothing was trained yet; the same command begins again") from None


def _evaluate(finished: TrainingResult, as_json: bool) -> None:
    folder, named = finished.folder, finished.run.model.name
    command = flags.call_text(["evaluate", str(folder), *models.consent(named)])
    with models.trusted(named), progress(f"attack {folder.name}") as report:
        card = evaluate(folder, device=finished.run.training.device, progress=report, command=command)
    path = first(lambda: write([folder], RunFolder(folder).report))
    if not as_json:
        print(f"{card}\nreport: {path}\nnext: taet predict {folder} IMAGES, taet export {folder} --format onnx")


def introduction(trainer: Trainer, chosen: Mapping[str, Chosen]) -> str:
    """Return what `taet train` prints first: the data, the network, and what was chosen."""
    dataset, run = trainer.dataset, trainer.run
    counts, names = dataset.class_counts, dataset.class_names
    most, least = int(counts.argmax()), int(counts.argmin())
    images = " + ".join(f"{len(split):,} {name}" for name, split in dataset.splits.items())
    each = counts[most] == counts[least]
    spread = "of each" if each else f"'{names[most]}' to {counts[least]:,} '{names[least]}'"
    lines = [
        f"{dataset.name}: {images} images of {dataset.num_classes} classes, {counts[most]:,} {spread} to train on",
        *(f"  {note}" for note in dataset.notes),
    ]
    lines += [] if trainer.extra is None else [f"  {text}" for text in trainer.description("").deviations[-1:]]
    parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
    _, height, width = dataset.image_shape
    epochs = plural(run.training.epochs, "epoch")
    stem = models.stem(run.model.name, dataset.image_shape, run.model.stem)
    lines += [
        f"{run.method}: {epochs} of {run.model.name}, {parameters:,} parameters, {f'{stem} stem, ' if stem else ''}on "
        f"{width}x{height} pixels, {'mirrored at random' if trainer.loader.mirror else 'never mirrored'}",
        *(f"  {note}" for note in getattr(trainer.model, "notes", ())),
        *(f"  {text}" for text in trainer.method.warnings(counts.tolist(), run.training.batch_size)),
        *(f"  {text}" for text in _coarse_selection(trainer)),
    ]
    turned = {} if run.training.augment in ("none", "crop") else own_images.mirroring(run.data, dataset)
    if choices := {**chosen, **turned, **trainer.choices}:
        lines += ["decided; each can be set by its option:", *(f"  {line}" for line in choice_lines(choices))]
    return "\n".join(lines)


def _coarse_selection(trainer: Trainer) -> list[str]:
    """Return a warning if the validation images of the curve may be too few to tell epochs apart."""
    if trainer.run.training.selection != "best-validation":
        return []
    split = trainer.curve.split
    counts, names = split.class_counts, trainer.dataset.class_names
    error, least = statistics.largest_standard_error(counts), int(counts.argmin())
    if error <= COARSE_SELECTION:
        return []
    return [
        f"selection best-validation: on {len(split):,} validation images, {counts[least]:,} of '{names[least]}', a "
        f"balanced accuracy has a standard error of up to {100 * error:.1f} points, so chance may decide which epoch "
        "is best; --selection last delivers the last one"
    ]


def expected(trainer: Trainer, attacks: bool) -> list[str]:
    """Return where the run is written, and how long training and any following attacks take."""
    training = duration(trainer.expected_seconds())
    attacking = span(attack_seconds(trainer.run, trainer.model, trainer.dataset.test, trainer.device))
    after = "the attacks and the probe after it" if attacks else "taet evaluate after it"
    return [f"training will take {training}, {after} {attacking}", f"folder: {trainer.folder.path}"]


def continued(trainer: Trainer) -> str:
    """Return where a run continues, and how long the rest of its training takes."""
    epochs, done = trainer.run.training.epochs, trainer.work.done(trainer.epoch, trainer.step / len(trainer.loader), 0)
    if trainer.epoch == epochs:
        return f"folder: {trainer.folder.path}, trained"
    left = duration(trainer.expected_seconds() * (1 - done / trainer.work.total))
    return f"folder: {trainer.folder.path}, epoch {trainer.epoch + 1} of {epochs}; the rest will take {left}"
