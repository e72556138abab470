"""`taet.evaluate`: attack the model of a run folder, or any other, and return its card."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from taet.attacks.counted import Counted
from taet.attacks.noise import Draws
from taet.attacks.spec import AttackSpec
from taet.attacks.units import Unit, run_units
from taet.data import Dataset, Split
from taet.data.long_tail import even_sample
from taet.distributed import first, gather, rank
from taet.errors import UserError
from taet.evaluation import store
from taet.evaluation.bundles import attacks_of, settle
from taet.evaluation.card import Card
from taet.evaluation.column import WORST_CASE
from taet.evaluation.facts import ModelFacts, probe, probe_passes
from taet.evaluation.rules import flagged
from taet.evaluation.runner import Runner, TestImages, among, as_unit, run_all
from taet.evaluation.subject import GivenImages, Subject, TestLabels, begin, of_module, of_run
from taet.formatting import duration
from taet.progress import Meter, Progress
from taet.settings import Evaluation, Run, Threat
from taet.training.environment import keep_freed_memory, resolve_device
from taet.training.folder import DELIVERED, RunFolder
from taet.training.runs import owned

FEWEST = 16  # images of the probe, however short the attacks are


@dataclass(frozen=True, kw_only=True)
class Work:
    """How an evaluation runs; none of it changes a number."""

    device: str = "auto"
    """auto (of a Module its own, for a run CUDA if available), cpu, cuda or cuda:N."""
    probe: bool = True
    """Test on a few images for problems that make attacks unreliable, such as masked gradients."""
    state_dir: str | os.PathLike[str] | None = None
    """Where finished batches are saved until the card is. Default: beside the card; without one, nowhere."""
    progress: Progress | None = None
    """Called as progress(done, total, label), in estimated passes of an image through the model."""
    command: str = ""
    """The call that started the evaluation, for the card."""

    @classmethod
    def among(cls, options: Mapping[str, Any]) -> tuple[Work, dict[str, Any]]:
        """Return the options of the work, and the others."""
        own = {one.name for one in fields(cls)} & options.keys()
        return cls(**{name: options[name] for name in own}), {n: v for n, v in options.items() if n not in own}


def evaluate(
    model_or_run_dir: nn.Module | str | os.PathLike[str],
    images: TestImages | Tensor | GivenImages | None = None,
    labels: TestLabels | None = None,
    attacks: str | Sequence[str] | None = None,
    *,
    eps: float | None = None,
    out: str | os.PathLike[str] | None = None,
    class_names: Sequence[str] | None = None,
    train_class_counts: Sequence[int] | None = None,
    name: str | None = None,
    notes: Sequence[str] = (),
    **options: Any,
) -> Card:
    """Attack a model on test images and return the card, which prints itself as a table.

    Every attack faces all images, in float32; the clean images are the first column. Finished batches are saved, so
    that an evaluation that was killed goes on. Where eps is given and the step of PGD is not, the step follows.

    Args:
        model_or_run_dir: a Module from images (N, C, H, W) in [0, 1] to logits, or a run folder: see `evaluate_run`.
        images: uint8 (N, H, W, C), or floating point (N, C, H, W) in [0, 1]; or `GivenImages`, with labels and what is
            known of them. A run has its own; others are given with `out`.
        labels: of those images: integers (N,), 0 to classes - 1.
        attacks: names of `taet list attacks`, with options (pgd-20:restarts=5), or with a run that the examples are
            made on (pgd-20@runs/other); taet or reat for all columns of a paper; curve-steps, curve-eps or
            curve-logit-scale.
        eps: radius of the L-infinity ball in units of the image range, e.g. 8/255.
        out: folder of the card and its images, without a card of another model or images. Default: none is saved.
        class_names, train_class_counts: names of the classes, by default their numbers, and training images of each,
            which decide head, body and tail.
        name, notes: of a Module, its name on the card and its origin in words.
        **options: fields of `Work` (device, probe, state_dir, progress, command) and of `taet.settings.Evaluation`
            (step_size, batch_size, seed, ...), and for a run those of `evaluate_run`.

    Raises:
        UserError: no, unknown or repeated attacks, a chosen step whose sum cannot reach eps, images, labels or a model
            that do not fit, an `out` that belongs to something else, an argument that says nothing of such a model.
    """
    given, about = images if isinstance(images, GivenImages) else None, options.pop("data_about", None)
    known = {
        "labels": labels,
        "class_names": class_names,
        "train_class_counts": train_class_counts,
        "data_about": about,
    }
    if given is not None:
        _unused("GivenImages, which have their own", "arrays", **known)
    elif (images is None) != (labels is None):
        raise UserError("evaluate: got images without labels, or labels without images; allowed: both, or neither")
    elif images is not None and labels is not None:
        given = GivenImages(images, labels, class_names, train_class_counts, about or {})  # type: ignore[arg-type]
    if not isinstance(model_or_run_dir, nn.Module):
        if not isinstance(model_or_run_dir, str | os.PathLike):
            got = type(model_or_run_dir).__name__
            raise UserError(f"evaluate: got a {got}; allowed: a torch.nn.Module, or the folder of a run")
        run = "a run, which has its own"
        _unused(run, "a Module", name=name, notes=notes or None, train_class_counts=train_class_counts)
        if given is None:
            _unused(run, "images=", class_names=class_names, data_about=about)
        return evaluate_run(model_or_run_dir, attacks, images=given, out=out, eps=eps, **options)
    _unused("a Module", "a run folder", **{n: options.pop(n, None) for n in ("weights", "model", "dataset")})
    work, changes = Work.among({**options, "attacks": attacks, "eps": eps})
    settle(Evaluation(), changes, Threat().eps)  # a mistake is reported before anything is loaded
    if given is None:
        raise UserError("evaluate: got a model without images and labels; allowed: both, or a run folder alone")
    subject = of_module(model_or_run_dir, given, name, notes).changed(changes)
    return _measured(subject, _card_in(out), work, new=True)


def evaluate_run(
    folder: str | os.PathLike[str],
    attacks: str | Sequence[str] | None = None,
    *,
    weights: str = DELIVERED,
    images: GivenImages | None = None,
    out: str | os.PathLike[str] | None = None,
    model: nn.Module | None = None,
    dataset: Dataset | None = None,
    **changes: Any,
) -> Card:
    """Attack the model of a run folder and return the card, which the folder gets as evaluation.json.

    Columns that evaluation.json already has with the same settings are reused, and others stay. A card about another
    ball, batch size or software, or with other settings of the same attacks, is kept beside it under its time.

    Args:
        folder: the run folder.
        attacks: as in `evaluate`. Default: those of the run's settings, like all other settings.
        weights: model, model-last or model-best.
        images: in place of the run's own, with `out`; their class names are matched with those of the run.
        out: as in `evaluate`. Default: the run.
        model, dataset: for a run that was trained from a Module, or on arrays in memory, these again.
        **changes: as `options` in `evaluate`.
    """
    work, settings = Work.among({**changes, "attacks": attacks})
    settle(Evaluation(), settings, Threat().eps)
    if images is not None and out is None:
        raise UserError("evaluate: got images beside a run, which has its own; allowed: with out=")
    subject = of_run(folder, weights, images=images, model=model, dataset=dataset).changed(settings)
    path = subject.card if out is None else _card_in(out)
    return _measured(subject, path, work, new=out is not None)


def _unused(beside: str, allowed: str, **given: object) -> None:
    """Refuse arguments that were given, i.e. are not None, but would have no effect."""
    names = [f"{name}=" for name, value in given.items() if value is not None]
    if names:
        raise UserError(f"evaluate: got {' and '.join(names)} beside {beside}; allowed: with {allowed}")


def _card_in(out: str | os.PathLike[str] | None) -> Path | None:
    if out is not None and RunFolder(Path(out)).is_run:
        raise UserError(f"evaluate: {out} is a run, whose card is about its own model and data; allowed: another")
    return None if out is None else RunFolder(Path(out)).card()


def _measured(subject: Subject, path: Path | None, work: Work, *, new: bool) -> Card:
    """Measure what no stored card contains, save the card at `path` and return it; a `new` one belongs to no run."""
    device = subject.device if work.device == "auto" else resolve_device(work.device)
    keep_freed_memory(device)
    folder = None if path is None else RunFolder(path.parent)
    state_dir = folder.state(path.stem) if folder and path and work.state_dir is None else work.state_dir
    with _on_device(subject.model, device):
        runner, card = begin(subject, device, state_dir, work.command)
        if new and path is not None and path.exists():
            _refuse_card_of_another(path, card)
        with owned(folder):
            # One process reads, so that all agree.
            known = None if path is None else first(lambda: store.find(path, card))
            card = _with_columns(card, runner, subject, known, work)
            if folder is not None and path is not None and rank() == 0:
                examples = _examples(folder.examples(path), known, card, runner, subject.attacks)
                card = card.changed(examples_sha256=examples)
                store.put(path, card)
                runner.clear()
            gather(None)  # no process starts again before the card and its state are final
    return card


def _with_columns(card: Card, runner: Runner, subject: Subject, known: Card | None, work: Work) -> Card:
    """Return the card with all columns, known and new, the facts of the probe, and its flags."""
    before = () if known is None else known.columns
    shown = {column.name for column in before if not column.curve}  # stays in tables, also with other settings
    attacks = [replace(one, curve="") if one.curve and one.name in shown else one for one in subject.attacks]
    passes = _passes(runner, attacks)
    images = probed_images(runner, passes)
    probed = {} if known is None or not _is_probe(known.probe, runner.seed, images) else known.probe
    probing = work.probe and not probed and len(attacks) > 1
    later = images * probe_passes(runner.sites) if probing else 0
    if work.progress is not None:
        new = [attack for attack in attacks if among(before, attack) is None]
        work.progress(0, max(_passes(runner, new) + later, 1), span(runner.seconds(new, later)))
    meter = Meter(work.progress, later=later)
    measured = run_all(runner, attacks, known=before, progress=meter)
    if probing:
        meter.begin()
        probed = _probe(runner, subject.eps, images, meter)
    elif known is not None and not probed:
        probed = known.probe  # of fewer images
    # Columns of an older card stay; a worst case does not once a bounded attack was measured.
    there = {column.identity for column in before}
    stale = any(column.bounded and column.identity not in there for column in measured)
    gone = {column.name for column in measured} | ({*WORST_CASE.values()} if stale else set())
    kept = (column for column in before if column.name not in gone)
    return flagged(card.changed(columns=(*measured, *kept), probe=probed))


def _passes(runner: Runner, attacks: Sequence[AttackSpec]) -> int:
    """Return the largest number of passes that attacks can take."""
    return sum(runner.expected(attack, len(runner.labels)) for attack in attacks)


def probed_images(runner: Runner, passes: float) -> int:
    """Return the number of probed images: one batch, or fewer where that would take more than the attacks' passes."""
    return min(runner.batch_size, len(runner.labels), max(FEWEST, int(passes / probe_passes(runner.sites))))


def _is_probe(facts: Mapping[str, int | float], seed: int, images: int) -> bool:
    """Return whether these are all facts, which older cards lack, with this seed and of as many images or more."""
    names = {*ModelFacts.model_fields} - {"batch_size"}
    return facts.get("seed") == seed and facts.keys() >= names and facts["images"] >= images


def _probe(runner: Runner, eps: float, images: int, progress: Progress) -> dict[str, int | float]:
    """Return the facts of the model on `images` images drawn evenly over the classes, which a killed call keeps."""
    total = images * probe_passes(runner.sites)

    def measure(_: int) -> Unit:
        rows = even_sample(runner.labels, images, runner.seed)
        x, y = runner.batch(rows)
        noise = Draws(runner.seed, "probe", rows).start(x, eps)
        with runner.still(), runner.model.ticking(total, lambda done: progress(done, total, "probe")):
            facts = probe(runner.model, x, y, noise, eps, runner.sites)
        found = {"seed": runner.seed, **{name: value for name, value in vars(facts).items() if name != "batch_size"}}
        return {name: np.asarray(value) for name, value in found.items()}

    (facts,) = run_units(
        1,
        measure,
        state=runner.store("probe", [eps, images, runner.seed]),
        key=lambda _: "facts",
        valid=lambda _, unit: all(one.shape == () for one in unit.values()),
    )
    progress(total, total, "probe")
    return {name: value.item() for name, value in facts.items()}


def _examples(path: Path, before: Card | None, card: Card, runner: Runner, attacks: Sequence[AttackSpec]) -> str | None:
    """Save images under the PGD with most steps and return the SHA-256 of the file that belongs to the card, if any.

    Those of a stronger attack, which the card `before` was written with and this one still holds, are kept.
    """
    columns = {column.name: column for column in card.columns}
    try:
        held = None if before is None else store.read_examples(path, before)
    except UserError:  # damaged ones are written anew
        held = None
    steps = columns[held.attack].attack.ascent_steps if held is not None and held.attack in columns else 0
    chains = [one for one in attacks if one.name in columns and one.norm == "linf" and one.made_on is None]
    attack = max(chains, key=lambda chain: chain.ascent_steps, default=None)
    drawable = as_unit(runner.images[:1]).shape[1] in (1, 3)
    if attack is None or attack.ascent_steps < max(steps, 1) or not drawable:
        return before.examples_sha256 if before is not None and steps else None
    rows = store.example_rows(card, attack.name)
    with runner.still():
        _, x_adv = runner.perturb(attack, rows)
        predictions = runner.answers(attack, x_adv, rows).argmax(1)
    return store.Examples(
        images=np.rint(255 * as_unit(runner.images[rows]).permute(0, 2, 3, 1).numpy()).astype(np.uint8),
        adversarial=x_adv.permute(0, 2, 3, 1).cpu().numpy(),
        labels=card.labels[rows],
        clean_predictions=card.columns[0].predictions[rows],
        adversarial_predictions=predictions.cpu().numpy(),
        attack=attack.name,
        eps=float(attack.radius),
    ).save(path)


def attack_seconds(run: Run, model: nn.Module, test: Split, device: torch.device) -> tuple[float, float]:
    """Return the usual and the largest seconds of the attacks and the probe of a run on its test images."""
    asked, classes = run.evaluation, len(test.class_names)
    runner = Runner(Counted(model), test.images, test.labels, classes, asked.batch_size, asked.seed, device)
    attacks = attacks_of(asked, run.attack_eps)
    return runner.seconds(attacks, probed_images(runner, _passes(runner, attacks)) * probe_passes(runner.sites))


def span(seconds: tuple[float, float]) -> str:
    """Format the usual and the largest number of seconds: about 3 minutes, at most 12 minutes."""
    usual, most = map(duration, seconds)
    return usual if usual == most else f"{usual}, at most {most.removeprefix('about ')}"


def _refuse_card_of_another(path: Path, card: Card) -> None:
    """Raise a `UserError` if the stored card is about another model or other test images."""
    stored = Card.load(path)
    for what, there, here in (
        ("another model (weights", stored.model["weights_sha256"], card.model["weights_sha256"]),
        ("other test images (pixels and labels", stored.data["test_sha256"], card.data["test_sha256"]),
    ):
        if there != here:
            got = f"{what} SHA-256 {there[:12]}, here {here[:12]})"
            raise UserError(f"evaluate: {path} is about {got}; allowed: another folder")


@contextmanager
def _on_device(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Move the model to a device, and back afterwards."""
    before = next((tensor.device for tensor in model.state_dict().values()), device)
    model.to(device)
    try:
        yield
    finally:
        model.to(before)
