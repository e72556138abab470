"""`taet.evaluate`: attack the model of a run folder, or any other, and return its card."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from taet.attacks import catalogue
from taet.attacks.noise import Draws
from taet.attacks.spec import AttackSpec
from taet.card.card import Card
from taet.card.column import Column
from taet.card.images import keep_images
from taet.card.store import save_card, with_previous_columns
from taet.data import Dataset
from taet.data.long_tail import even_sample
from taet.distributed import gather, rank, run_on_rank_zero
from taet.errors import UserError
from taet.evaluation.attack_sets import attacks_of, of_run
from taet.evaluation.flags import flagged
from taet.evaluation.gallery import gallery_of, strongest
from taet.evaluation.probe import probe, probe_passes
from taet.evaluation.runner import Runner, matching
from taet.evaluation.target import ArrayOrTensor, Subject, attacked, device_of
from taet.formatting import duration
from taet.machine import float32_by_default, idle_threads, keep_freed_memory, using
from taet.models.network import check_values
from taet.progress import Meter, Progress, chosen
from taet.run.folder import RunFolder
from taet.run.loading import locked_by_job
from taet.settings.arguments import checked_arguments
from taet.settings.types import Processes, check_value
from taet.training.prepare import TrainingPlan

# for longer attacks, print the expected time, and suggest a shorter attack
SAID_SECONDS, LONG_SECONDS = 60.0, 3600.0
WORTH = 0.8  # of the time, which a suggested attack must not exceed
QUICK = catalogue.parse("quick")
FEWEST = 16  # images of the probe, even for short attacks
OF_A_MODULE = {"name", "title", "notes", "train_class_counts", "training_seed"}
OF_A_RUN = {"name", "weights", "model", "dataset"}
"""Options of `evaluate` that describe a Module or a run, besides images, labels and class names."""


@checked_arguments
@float32_by_default()
def evaluate(
    model_or_run_dir: nn.Module | str | os.PathLike[str],
    images: ArrayOrTensor | Dataset | None = None,
    labels: ArrayOrTensor | None = None,
    attacks: str | Sequence[str] | None = None,
    *,
    out: str | os.PathLike[str] | None = None,
    device: str | torch.device = "auto",
    threads: int | None = None,
    probe: bool = True,
    progress: Progress | bool | None = None,
    command: str = "",
    class_names: Sequence[str] | None = None,
    **options: Any,
) -> Card:
    """Attack a model on test images, save its result card, and return the card.

    The card prints itself as a table. Every attack faces all images, in float32; the clean images
    are the first column. Finished batches are saved beside the card, so that a killed evaluation
    resumes. Columns that the card already has with the same settings are reused, and others stay.
    If eps is given and the step of PGD is not, the step is scaled with eps.

    Args:
        model_or_run_dir: a Module from images (N, C, H, W) in [0, 1] to logits, or a run folder,
            whose card is evaluation.json.
        images: uint8 (N, H, W, C), or floating point (N, C, H, W) in [0, 1]; or a
            `taet.data.Dataset`, of which the test images are taken. A run has images of its own;
            to test it on others, give them and `out`.
        labels: classes of the images, integers (N,), 0 to classes - 1.
        attacks: names of `taet list attacks`, with options (pgd-20:restarts=5), or with a run on
            which the examples are made (pgd-20@runs/other); taet or reat for all columns of a
            paper; curve-steps, curve-eps or curve-logit-scale. Default: those of the run's
            settings, as for all other settings.
        out: folder of the card, which must not hold a card of another model or of other images.
            Default: the run folder; the card of a Module is not saved.
        device: auto, cpu, cuda or cuda:N. auto is the device of a Module, and CUDA for a run if it
            is available.
        threads: CPU threads. Default: OMP_NUM_THREADS, or as many as cores are idle when an attack
            begins.
        probe: test on a few images for problems that make attacks unreliable, such as masked
            gradients.
        progress: True shows the progress, False does not, and a function is called as
            progress(done, total, label), in estimated passes of an image through the model.
            Default: shown on a terminal and in a notebook.
        command: the call that started the evaluation, for the card.
        class_names: names of the classes, by default their numbers. For a run the classes of the
            images are matched with its own by name.
        **options: eps (radius of the L-infinity ball in units of the image range, e.g. 8/255) and
            the other fields of `taet.settings.Evaluation`.

    A Module takes further options: train_class_counts (C,), the training images of each class,
    which decide head, body and tail; name, title and notes, for the card; and training_seed, with
    which the cards of one name are runs of one method. A run takes name, its row in tables, and
    weights (model, model-last or model-best); a run that was trained from a Module or on arrays in
    memory takes these as model and dataset.

    Raises:
        UserError: no, unknown or repeated attacks, a chosen step whose sum cannot reach eps,
            images, labels or a model that do not fit, an `out` that belongs to something else, an
            argument that does not apply to such a model.
    """
    check_value("threads", threads, Processes | None)
    if isinstance(model_or_run_dir, nn.Module):
        check_values(model_or_run_dir)
    own = OF_A_MODULE if isinstance(model_or_run_dir, nn.Module) else OF_A_RUN
    about = {name: options.pop(name) for name in own & options.keys()}
    subject = Subject.of(model_or_run_dir, images, labels, class_names=class_names, **about)
    # What is left in `options` must be settings of an evaluation: any other name is refused.
    subject = subject.changed({"attacks": attacks, **options}, str(device))
    place = None if out is None else RunFolder(Path(out))
    if place is not None and place.is_run:
        raise UserError(
            f"evaluate: {out} is a run, whose card is about its own model and data; allowed: "
            "another"
        )
    path = subject.card if place is None else place.card()
    if path is None and own is OF_A_RUN:
        raise UserError("evaluate: got images beside a run, which has its own; allowed: with out=")
    keep_freed_memory(subject.device)
    before = device_of(subject.model)
    try:
        runner = subject.runner(path and path.with_name(f"{path.stem}-state"))
        card = subject.card_of(runner).changed(command=command)
        with locked_by_job(None if path is None else RunFolder(path.parent)):
            # One process reads the old card, so that all agree.
            if path is not None:
                card = run_on_rank_zero(lambda: with_previous_columns(path, card))
            of_first = progress if rank() == 0 else False
            with chosen(of_first, f"evaluate {card.name or card.title}") as report:
                card = _with_columns(card, runner, subject.attacks, probe, threads, Meter(report))
            if path is not None:
                card = run_on_rank_zero(lambda: _with_images(path.parent, card, runner))
            if path is not None and rank() == 0:
                save_card(path, card)
                for batches in runner.opened:
                    batches.remove()
            gather(None)  # no process starts again before the card and its state are final
        return card
    finally:
        subject.model.to(before)


def _with_images(folder: Path, card: Card, runner: Runner) -> Card:
    """Return the card with the images of its strongest attack, and write their file.

    Images of an earlier evaluation stay if they are of this attack.
    """
    gallery = gallery_of(card, runner)
    if gallery is not None:
        keep_images(folder, gallery.images, gallery.sheet)
        return card.changed(images=gallery.images)
    column = strongest(card)
    if runner.groups is None or card.images is None or column is None:
        return card.changed(images=None)
    stay = card.images.attack == column.name and card.images.read(folder) is not None
    return card if stay else card.changed(images=None)


def _with_columns(
    card: Card,
    runner: Runner,
    attacks: Sequence[AttackSpec],
    probing: bool,
    threads: int | None,
    meter: Meter,
) -> Card:
    """Return the card with all columns, known and new, the facts of the probe, and its flags."""
    images, before, facts = probed_images(runner, attacks), card.columns, card.probe
    probed = facts.get("seed") == runner.seed and facts.get("images", 0) >= images
    probing = probing and len(attacks) > 1 and not probed
    later = images * probe_passes(runner.sites) if probing else 0
    with runner.frozen_and_exact():
        measured = _columns(runner, attacks, before, later, threads, meter)
    if probing:
        meter.begin()
        rows = even_sample(runner.labels, images, runner.seed)
        x, y = runner.batch(rows)
        noise = Draws(runner.seed, "probe", rows).start(x, card.threat["eps"])
        ticking = runner.model.ticking(later, lambda done: meter(done, later, "probe"))
        with using(threads or idle_threads()[0]), runner.frozen_and_exact(), ticking:
            # The first process probes alone, so that all agree.
            found = run_on_rank_zero(
                lambda: vars(probe(runner.model, x, y, noise, card.threat["eps"], runner.sites))
            )
        meter(later, later, "probe")
        facts = {
            "seed": runner.seed,
            **{name: value for name, value in found.items() if name != "batch_size"},
        }
    renewed = {column.name for column in measured}
    kept = (column for column in before if column.name not in renewed)
    return flagged(card.changed(columns=(*measured, *kept), probe=facts))


def _columns(
    runner: Runner,
    attacks: Sequence[AttackSpec],
    done: Sequence[Column],
    later: int,
    threads: int | None,
    meter: Meter,
) -> list[Column]:
    """Return the columns of the attacks, known or new; print the expected time of all new ones, and
    of each long one.

    `later`: the passes that follow the attacks. `threads` None: an attack uses the cores that are
    idle when it begins.
    """
    measured, pace = list[Column](), 0.0
    for place, attack in enumerate(attacks):
        known = [*measured, *done]
        if (column := matching(known, attack)) is not None:
            measured.append(column)
            continue
        passes = [
            runner.passes([each]) for each in attacks[place:] if matching(known, each) is None
        ]
        meter.begin(later=later + sum(passes[1:]))
        number, busy = (threads, "") if threads else idle_threads()
        with using(number):
            if attack.norm is not None:  # clean images take only a moment
                name, work = (
                    (attack.name, passes[0]) if pace else ("all attacks", later + sum(passes))
                )
                if not pace or work * pace > SAID_SECONDS:
                    pace = runner.pace(attack)
                    seconds, quick = work * pace, pace * runner.passes([QUICK])
                    is_worth = seconds > LONG_SECONDS and quick < WORTH * seconds
                    shorter = f"--attacks clean quick: {duration(quick)}" if is_worth else ""
                    text = "; ".join(filter(None, (f"{name}: {duration(seconds)}", shorter, busy)))
                    meter(0, max(passes[0], 1), f"{text}\n")
            measured.append(runner.column(attack, known, meter))
    return measured


def probed_images(runner: Runner, attacks: Sequence[AttackSpec]) -> int:
    """Return the number of probed images: one batch, or fewer where that would take more than the
    attacks' passes."""
    passes = sum(attack.passes(runner.num_classes) * len(runner.labels) for attack in attacks)
    affordable = int(passes / probe_passes(runner.sites))
    return min(runner.batch_size, len(runner.labels), max(FEWEST, affordable))


def attack_seconds(plan: TrainingPlan, model: nn.Module, attacks: Sequence[str] = ()) -> float:
    """Return the expected seconds of attacks, by default those of the run, and of the probe on its
    test images."""
    test, settings = plan.dataset.test, of_run(plan.run, {"attacks": tuple(attacks) or None})
    counted, classes = attacked(model, test.images), len(test.class_names)
    runner = Runner(
        counted, test.images, test.labels, classes, settings.batch_size, settings.seed, plan.device
    )
    specs = attacks_of(settings)
    passes = runner.passes(specs) + probed_images(runner, specs) * probe_passes(runner.sites)
    with plan.surroundings():
        return passes * runner.pace(specs[-1])
