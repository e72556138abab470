"""`taet.evaluate`: attack the model of a run folder, or any other, and return its card."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from taet.attacks.counted import Counted
from taet.attacks.noise import Draws
from taet.attacks.spec import AttackSpec
from taet.data import Dataset, Split
from taet.data.long_tail import even_sample
from taet.distributed import first, gather, rank
from taet.errors import UserError
from taet.evaluation import store
from taet.evaluation.bundles import attacks_of
from taet.evaluation.card import Card
from taet.evaluation.column import WORST_CASE
from taet.evaluation.facts import ModelFacts, probe, probe_passes
from taet.evaluation.rules import flagged
from taet.evaluation.runner import Runner, among, run_all
from taet.evaluation.subject import ArrayOrTensor, GivenImages, Subject, of_module, of_run
from taet.formatting import duration
from taet.progress import Meter, Progress
from taet.settings import Run
from taet.training.environment import keep_freed_memory, resolve_device
from taet.training.folder import DELIVERED, RunFolder
from taet.training.runs import owned

FEWEST = 16  # images of the probe, however short the attacks are


def evaluate(
    model_or_run_dir: nn.Module | str | os.PathLike[str],
    images: ArrayOrTensor | GivenImages | None = None,
    labels: ArrayOrTensor | None = None,
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

    Every attack faces all images, in float32; the clean images are the first column. With `out`, finished batches are
    saved, so that an evaluation that was killed goes on. Where eps is given and the step of PGD is not, the step
    follows.

    Args:
        model_or_run_dir: a Module from images (N, C, H, W) in [0, 1] to logits, or a run folder: see `evaluate_run`.
        images: uint8 (N, H, W, C), or floating point (N, C, H, W) in [0, 1]; or `GivenImages`, with labels and what is
            known of them. A run has its own; others are given with `out`.
        labels: of those images: integers (N,), 0 to classes - 1.
        attacks: names of `taet list attacks`, with options (pgd-20:restarts=5), or with a run that the examples are
            made on (pgd-20@runs/other); taet or reat for all columns of a paper; curve-steps, curve-eps or
            curve-logit-scale.
        eps: radius of the L-infinity ball in units of the image range, e.g. 8/255.
        out: folder of the card, without a card of another model or images. Default: none is saved.
        class_names, train_class_counts: names of the classes, by default their numbers, and training images of each,
            which decide head, body and tail.
        name, notes: of a Module, its name on the card and its origin in words.
        **options: those of `measure`: device, probe, progress, command, and fields of `taet.settings.Evaluation`
            (step_size, batch_size, seed, ...); for a run those of `evaluate_run`.

    Raises:
        UserError: no, unknown or repeated attacks, a chosen step whose sum cannot reach eps, images, labels or a model
            that do not fit, an `out` that belongs to something else, an argument that says nothing of such a model.
    """
    beside: dict[str, Any] = {"class_names": class_names, "train_class_counts": train_class_counts}
    if images is None or isinstance(images, GivenImages):
        given, beside = images, {"labels": labels, **beside}
    elif labels is None:
        raise UserError("evaluate: got images without labels; allowed: both, or neither")
    else:
        given, beside = GivenImages(images, labels, **beside), {}
    beside |= {} if isinstance(model_or_run_dir, nn.Module) else {"name": name, "notes": notes or None}
    # What says nothing of such a model is refused as a setting that an evaluation does not have.
    options |= {"eps": eps, "out": out, **{one: value for one, value in beside.items() if value is not None}}
    if isinstance(model_or_run_dir, nn.Module):
        if given is None:
            raise UserError("evaluate: got a model without images and labels; allowed: both, or a run folder alone")
        return measure(of_module(model_or_run_dir, given, name, notes), attacks=attacks, **options)
    if not isinstance(model_or_run_dir, str | os.PathLike):
        got = type(model_or_run_dir).__name__
        raise UserError(f"evaluate: got a {got}; allowed: a torch.nn.Module, or the folder of a run")
    return evaluate_run(model_or_run_dir, attacks, images=given, **options)


def evaluate_run(
    folder: str | os.PathLike[str],
    attacks: str | Sequence[str] | None = None,
    *,
    weights: str = DELIVERED,
    images: GivenImages | None = None,
    model: nn.Module | None = None,
    dataset: Dataset | None = None,
    out: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Card:
    """Attack the model of a run folder and return the card, which the folder gets as evaluation.json.

    Columns that evaluation.json already has with the same settings are reused, and others stay. A card about another
    ball, batch size or software, or with other settings of the same attacks, is kept beside it under its time.

    Args:
        folder: the run folder.
        attacks: as in `evaluate`. Default: those of the run's settings, like all other settings.
        weights: model, model-last or model-best.
        images: in place of the run's own, with `out`; their class names are matched with those of the run.
        model, dataset: for a run that was trained from a Module, or on arrays in memory, these again.
        out, **options: as in `evaluate`.
    """
    if images is not None and out is None:
        raise UserError("evaluate: got images beside a run, which has its own; allowed: with out=")
    subject = of_run(folder, weights, images=images, model=model, dataset=dataset)
    return measure(subject, out=out, attacks=attacks, **options)


def measure(
    subject: Subject,
    *,
    out: str | os.PathLike[str] | None = None,
    device: str = "auto",
    probe: bool = True,
    progress: Progress | None = None,
    command: str = "",
    **changes: Any,
) -> Card:
    """Measure what no stored card contains, save the card and return it: where all settings of an evaluation meet.

    Args:
        subject: model, images and their settings.
        out: folder of the card. Default: the run, if the subject is one on its own images.
        device: auto (of a Module its own, for a run CUDA if available), cpu, cuda or cuda:N.
        probe: test on a few images for problems that make attacks unreliable, such as masked gradients.
        progress: called as progress(done, total, label), in estimated passes of an image through the model.
        command: the call that started the evaluation, for the card.
        **changes: fields of `taet.settings.Evaluation` in place of those of the subject.
    """
    subject, place = subject.changed(changes), RunFolder(Path(out)) if out is not None else None
    if place is not None and place.is_run:
        raise UserError(f"evaluate: {out} is a run, whose card is about its own model and data; allowed: another")
    path = subject.card if place is None else place.card()
    folder = None if path is None else RunFolder(path.parent)
    where = subject.device if device == "auto" else resolve_device(device)
    keep_freed_memory(where)
    before = next((tensor.device for tensor in subject.model.state_dict().values()), where)
    subject.model.to(where)
    try:
        runner, card = subject.begin(where, None if folder is None or path is None else folder.state(path.stem))
        with owned(folder):
            # One process reads, so that all agree.
            known = None if path is None else first(lambda: store.find(path, card))
            card = _with_columns(card.changed(command=command), runner, subject, known, probe, progress)
            if folder is not None and path is not None and rank() == 0:
                store.put(path, card)
                runner.clear()
            gather(None)  # no process starts again before the card and its state are final
    finally:
        subject.model.to(before)
    return card


def _with_columns(
    card: Card, runner: Runner, subject: Subject, known: Card | None, probing: bool, progress: Progress | None
) -> Card:
    """Return the card with all columns, known and new, the facts of the probe, and its flags."""
    attacks, before = subject.attacks, () if known is None else known.columns
    images = probed_images(runner, attacks)
    facts = {} if known is None else known.probe
    fresh = facts.get("seed") == runner.seed and facts.keys() >= ModelFacts.__dataclass_fields__.keys() - {"batch_size"}
    probing = probing and len(attacks) > 1 and not (fresh and facts["images"] >= images)
    later = images * probe_passes(runner.sites) if probing else 0
    if progress is not None:
        passes = later + runner.passes([attack for attack in attacks if among(before, attack) is None])
        progress(0, max(passes, 1), duration(passes * runner.seconds_of_pass()))
    meter = Meter(progress, later=later)
    measured = run_all(runner, attacks, known=before, progress=meter)
    if probing:
        meter.begin()
        facts = _probe(runner, subject.eps, images, meter)
    # Columns of an older card stay, but for its worst case, which follows from the columns.
    gone = {column.name for column in measured} | {*WORST_CASE.values()}
    kept = (column for column in before if column.name not in gone)
    return flagged(card.changed(columns=(*measured, *kept), probe=facts))


def probed_images(runner: Runner, attacks: Sequence[AttackSpec]) -> int:
    """Return the number of probed images: one batch, or fewer where that would take more than the attacks' passes."""
    affordable = int(runner.passes(attacks, len(runner.labels)) / probe_passes(runner.sites))
    return min(runner.batch_size, len(runner.labels), max(FEWEST, affordable))


def _probe(runner: Runner, eps: float, images: int, progress: Progress) -> dict[str, int | float]:
    """Return the facts of the model on `images` images drawn evenly over the classes; one process finds them."""
    total, rows = images * probe_passes(runner.sites), even_sample(runner.labels, images, runner.seed)
    x, y = runner.batch(rows)
    noise = Draws(runner.seed, "probe", rows).start(x, eps)
    with runner.still(), runner.model.ticking(total, lambda done: progress(done, total, "probe")):
        facts = first(lambda: vars(probe(runner.model, x, y, noise, eps, runner.sites)))
    progress(total, total, "probe")
    return {"seed": runner.seed, **{name: value for name, value in facts.items() if name != "batch_size"}}


def attack_seconds(run: Run, model: nn.Module, test: Split, device: torch.device) -> float:
    """Return the expected seconds of the attacks and the probe of a run on its test images."""
    asked, classes = run.evaluation, len(test.class_names)
    runner = Runner(Counted(model), test.images, test.labels, classes, asked.batch_size, asked.seed, device)
    attacks = attacks_of(asked, run.attack_eps)
    passes = runner.passes(attacks) + probed_images(runner, attacks) * probe_passes(runner.sites)
    return passes * runner.seconds_of_pass()
