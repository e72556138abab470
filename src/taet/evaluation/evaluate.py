"""`taet.evaluate`: attack the model of a run folder, or any other, and return its card."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
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
from taet.evaluation.target import ArrayOrTensor, EvaluationTarget, attacked, device_of
from taet.files import Json
from taet.formatting import duration
from taet.machine import float32_by_default, idle_threads, keep_freed_memory, using
from taet.network import check_network
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

    Example:
        >>> import taet
        >>> card = taet.evaluate("runs/example", attacks=["clean", "pgd-2"])
        >>> [column.name for column in card.columns]
        ['clean', 'pgd-2']
    """
    check_value("threads", threads, Processes | None)
    is_module = isinstance(model_or_run_dir, nn.Module)
    if isinstance(model_or_run_dir, nn.Module):
        check_network(model_or_run_dir)
    describing = OF_A_MODULE if is_module else OF_A_RUN
    about = {name: options.pop(name) for name in describing & options.keys()}
    target = EvaluationTarget.of(model_or_run_dir, images, labels, class_names=class_names, **about)
    # What is left in `options` must be settings of an evaluation: any other name is refused.
    target = target.changed({"attacks": attacks, **options}, str(device))
    path = target.card if out is None else _card_outside_runs(Path(out))
    if path is None and not is_module:
        raise UserError("evaluate: got images beside a run, which has its own; allowed: with out=")
    keep_freed_memory(target.device)
    before = device_of(target.model)
    try:
        state_dir = None if path is None else path.with_name(f"{path.stem}-state")
        runner = target.runner(state_dir)
        card = target.card_of(runner).changed(command=command)
        with locked_by_job(None if path is None else RunFolder(path.parent)):
            # One process reads the old card, so that all agree.
            if path is not None:
                card = run_on_rank_zero(lambda: with_previous_columns(path, card))
            of_first = progress if rank() == 0 else False
            with chosen(of_first, f"evaluate {card.name or card.title}") as report:
                card = _with_columns(card, runner, target.attacks, probe, threads, Meter(report))
            if path is not None:
                card = run_on_rank_zero(lambda: _with_images(path.parent, card, runner))
            if path is not None and rank() == 0:
                save_card(path, card)
                for batches in runner.opened:
                    batches.remove()
            gather(None)  # no process starts again before the card and its state are final
        return card
    finally:
        target.model.to(before)


def _card_outside_runs(folder: Path) -> Path:
    """Return the card of a folder, which must not be a run."""
    if RunFolder(folder).is_run:
        raise UserError(
            f"evaluate: {folder} is a run, whose card is about its own model and data; allowed: "
            "another"
        )
    return RunFolder(folder).card()


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
    images = probed_images(runner, attacks)
    probed = card.probe.get("seed") == runner.seed and card.probe.get("images", 0) >= images
    probing = probing and len(attacks) > 1 and not probed
    passes_of_probe = images * probe_passes(runner.sites) if probing else 0
    with runner.frozen_and_exact():
        measured = _columns(runner, attacks, card.columns, passes_of_probe, threads, meter)
    facts = card.probe
    if probing:
        facts = _probe_facts(runner, images, card.threat["eps"], threads, meter)
    renewed = {column.name for column in measured}
    others = [column for column in card.columns if column.name not in renewed]
    return flagged(card.changed(columns=(*measured, *others), probe=facts))


def _columns(
    runner: Runner,
    attacks: Sequence[AttackSpec],
    done: Sequence[Column],
    passes_of_probe: int,
    threads: int | None,
    meter: Meter,
) -> list[Column]:
    """Return the columns of the attacks, known or new; tell the expected time of all new ones, and
    of each long one.

    `threads` None: an attack uses the cores that are idle when it begins.
    """
    measured = list[Column]()
    estimate = _TimeEstimate(runner)
    for index, attack in enumerate(attacks):
        known = [*measured, *done]
        column = matching(known, attack)
        if column is not None:
            measured.append(column)
            continue
        following = [spec for spec in attacks[index + 1 :] if matching(known, spec) is None]
        passes = runner.passes([attack])
        passes_after = runner.passes(following) + passes_of_probe
        meter.begin(later=passes_after)
        number, busy = (threads, "") if threads else idle_threads()
        with using(number):
            if attack.norm is not None:  # clean images take only a moment
                expected = estimate.before(attack, passes, passes + passes_after)
                if expected:
                    line = "; ".join([*expected, busy] if busy else expected)
                    meter(0, max(passes, 1), f"{line}\n")
            measured.append(runner.column(attack, known, meter))
    return measured


@dataclass
class _TimeEstimate:
    """The expected time of attacks: before the first one that of all, then that of long ones."""

    runner: Runner
    pace: float = 0.0  # seconds of a pass; 0 until it is measured

    def before(self, attack: AttackSpec, passes: float, all_passes: float) -> list[str]:
        """Return what to tell before an attack; nothing before a short one, unless it is the first.

        `all_passes` are those of this attack and of everything after it.
        """
        if not self.pace:
            name, work = "all attacks", all_passes
        elif passes * self.pace > SAID_SECONDS:
            name, work = attack.name, passes
        else:
            return []
        self.pace = self.runner.pace(attack)
        seconds = work * self.pace
        parts = [f"{name}: {duration(seconds)}"]
        seconds_of_quick = self.pace * self.runner.passes([QUICK])
        if seconds > LONG_SECONDS and seconds_of_quick < WORTH * seconds:
            parts.append(f"--attacks clean quick: {duration(seconds_of_quick)}")
        return parts


def _probe_facts(
    runner: Runner, images: int, eps: float, threads: int | None, meter: Meter
) -> Json:
    """Probe the model on some images; return what a card keeps of it."""
    meter.begin()
    rows = even_sample(runner.labels, images, runner.seed)
    x, y = runner.batch(rows)
    noise = Draws(runner.seed, "probe", rows).start(x, eps)
    passes = images * probe_passes(runner.sites)
    ticking = runner.model.ticking(passes, lambda done: meter(done, passes, "probe"))
    with using(threads or idle_threads()[0]), runner.frozen_and_exact(), ticking:
        # The first process probes alone, so that all agree.
        facts = run_on_rank_zero(lambda: probe(runner.model, x, y, noise, eps, runner.sites))
    meter(passes, passes, "probe")
    stored = {name: value for name, value in vars(facts).items() if name != "batch_size"}
    return {"seed": runner.seed, **stored}


def probed_images(runner: Runner, attacks: Sequence[AttackSpec]) -> int:
    """Return the number of probed images: one batch, or fewer where that would take more than the
    attacks' passes."""
    passes = sum(attack.passes(runner.num_classes) * len(runner.labels) for attack in attacks)
    affordable = int(passes / probe_passes(runner.sites))
    return min(runner.batch_size, len(runner.labels), max(FEWEST, affordable))


def attack_seconds(plan: TrainingPlan, model: nn.Module, attacks: Sequence[str] = ()) -> float:
    """Return the expected seconds of attacks, by default those of the run, and of the probe on its
    test images."""
    test = plan.dataset.test
    settings = of_run(plan.run, {"attacks": tuple(attacks) or None})
    runner = Runner(
        attacked(model, test.images),
        test.images,
        test.labels,
        len(test.class_names),
        settings.batch_size,
        settings.seed,
        plan.device,
    )
    specs = attacks_of(settings)
    passes = runner.passes(specs) + probed_images(runner, specs) * probe_passes(runner.sites)
    with plan.surroundings():
        return passes * runner.pace(specs[-1])
