"""Run the attacks of an evaluation whose results no stored card contains, and make the result card."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import nn

from taet.attacks.counted import Counted
from taet.attacks.spec import AttackSpec
from taet.data import Split
from taet.distributed import first, gather, rank
from taet.errors import UserError
from taet.evaluation import card_store, probe
from taet.evaluation.bundles import attacks_of
from taet.evaluation.card import DataAbout, Environment, ModelAbout, ResultCard
from taet.evaluation.column import WORST_CASE, Column, CurveName, plain
from taet.evaluation.curves import curve_attacks
from taet.evaluation.diagnostics import flagged
from taet.evaluation.examples import earlier, save_examples
from taet.evaluation.image_arrays import channels_first
from taet.evaluation.runner import USUAL, Runner, among, attack_split, count_classes, one_threat_model
from taet.evaluation.subject import Subject
from taet.formatting import duration
from taet.models import Classifier
from taet.models.view import make_view
from taet.progress import Meter, Progress
from taet.settings import Run
from taet.training.checkpoint import weights_digest
from taet.training.environment import environment, keep_freed_memory
from taet.training.folder import RunFolder
from taet.training.runs import owned


@dataclass(frozen=True, kw_only=True)
class Extent:
    """How much an evaluation measures with its attacks."""

    curves: tuple[CurveName, ...] = ()
    """Curves of the accuracy to measure in addition."""
    worst_case: bool = False
    """Run the attacks one after another, each on the images that the previous ones left correct: one column."""
    probe: bool = True
    """Test on a few images for problems that make attacks unreliable, such as masked gradients."""


def measure(
    subject: Subject,
    extent: Extent,
    *,
    device: torch.device,
    path: Path | None = None,
    new: bool = False,
    state_dir: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    command: str = "",
) -> ResultCard:
    """Measure what no stored card contains, and return the card.

    Args:
        subject: the model, its images and the settings of its attacks.
        extent: what else to measure.
        device: where the model is during the work.
        path: file in which the card is saved and earlier results are looked up.
        new: raise a `UserError` if the folder has the card of another model or of other images.
        state_dir: folder for finished batches. Default: beside the card.
        progress: as in `taet.evaluate`.
        command: the command that started the evaluation; stored in the card.
    """
    keep_freed_memory(device)
    folder = None if path is None else RunFolder(path.parent)
    if folder is not None and path is not None and state_dir is None:
        state_dir = folder.state(path.stem)
    with on_device(subject.model, device):
        if new and path is not None and path.exists():
            _refuse_card_of_another(path, subject)
        runner, card = begin(subject, device, state_dir, command)
        with owned(folder):
            known = known_card(path, card, runner)
            card = _measured(card, runner, subject, extent, known, progress)
            if folder is not None and path is not None and rank() == 0:
                examples = folder.examples(path)
                sha256 = save_examples(examples, known, card, runner, subject.attacks)
                card = card.changed(examples_sha256=sha256)
                card_store.put(path, card)
                with suppress(OSError):  # an old file of examples does no harm
                    earlier(examples).unlink()
                runner.clear()
            gather(None)  # no process starts again before the card and its state are final
        return card


def begin(
    subject: Subject, device: torch.device, state_dir: str | os.PathLike[str] | None, command: str = ""
) -> tuple[Runner, ResultCard]:
    """Return a runner for the model of a subject, which is on `device`, and its card without columns."""
    class_names = _class_names(subject, device)
    runner = Runner(
        _attacked(subject, device),
        subject.images,
        subject.labels,
        len(class_names),
        subject.settings.batch_size,
        subject.settings.seed,
        device,
        state_dir,
    )
    for attack in subject.attacks:
        attack.check_classes(runner.num_classes)
    machine = environment(device)
    model = {
        **subject.model_about,
        "weights_sha256": weights_digest(subject.model),
        "answers": plain(runner.fingerprint),
        "parameters": sum(parameter.numel() for parameter in subject.model.parameters()),
    }
    data = {
        **subject.data_about,
        "class_names": class_names,
        "train_class_counts": subject.train_class_counts,
        "test_sha256": subject.test_sha256,
    }
    card = ResultCard(
        **subject.about,
        threat={"norm": "linf", "eps": subject.eps},
        model=cast(ModelAbout, model),
        data=cast(DataAbout, data),
        batch_size=runner.batch_size,
        labels=subject.labels,
        columns=(),
        created=machine.pop("started"),
        environment=cast(Environment, machine),
        command=command,
    )
    return runner, card


def known_card(path: Path | None, card: ResultCard, runner: Runner) -> ResultCard | None:
    """Return the stored card if it has the same model, images, ball, batches and software."""
    if path is None:
        return None
    facts = {
        "model": {"weights_sha256": card.model["weights_sha256"]},
        "threat": card.threat,
        **card_store.conditions(card),
    }
    answers = runner.fingerprint
    return first(lambda: card_store.find(path, facts, runner.labels, answers))  # one process reads, so that all agree


def _measured(
    card: ResultCard,
    runner: Runner,
    subject: Subject,
    extent: Extent,
    known: ResultCard | None,
    progress: Progress | None,
) -> ResultCard:
    """Return the card with all columns, known and new, and with its flags."""
    listed, points = subject.attacks, curve_attacks(extent.curves, subject.settings, subject.eps)
    chain = one_threat_model(listed, runner.num_classes) if extent.worst_case else []
    listed = listed[:1] if chain else listed
    before = () if known is None else known.columns
    names = {attack.name for attack in listed}
    shown = {column.name for column in before if not column.curve}  # stays in tables, also with other settings
    drawn = [replace(point, curve="") if point.name in shown else point for point in points]
    attacks = [*listed, *(attack for attack in drawn if attack.name not in names)]
    work = _passes(runner, [*attacks, *chain])
    images = probe.count(runner, work)
    probed = {} if known is None or not probe.is_of(known.probe, runner.seed, images) else known.probe
    probing = extent.probe and not probed and bool(len(attacks) > 1 or chain)
    later = images * probe.passes(runner) if probing else 0
    if progress is not None:
        new = [attack for attack in [*attacks, *chain] if among(before, attack) is None]
        progress(0, max(_passes(runner, new) + later, 1), span(_seconds(runner, new, later)))
    meter = Meter(progress, later=later)
    measured = attack_split(runner, attacks, known=before, progress=meter)
    if chain:
        meter.begin(later=meter.later)
        measured = (*measured, runner.run_worst_case(chain, measured[0], meter))
    if probing:
        meter.begin()
        probed = probe.probe(runner, subject.eps, images, lambda done: meter(done, later, "probe"))
    elif known is not None and not probed:
        probed = known.probe  # of fewer images
    return flagged(card.changed(columns=(*measured, *_others(before, measured)), probe=probed))


def _passes(runner: Runner, attacks: Sequence[AttackSpec]) -> int:
    """Return the largest number of passes that attacks can take."""
    return sum(runner.expected(attack, len(runner.labels)) for attack in attacks)


def span(seconds: tuple[float, float]) -> str:
    """Format the usual and the largest number of seconds: about 3 minutes, at most about 12 minutes."""
    usual, most = map(duration, seconds)
    return usual if usual == most else f"{usual}, at most {most.removeprefix('about ')}"


def _seconds(runner: Runner, attacks: Sequence[AttackSpec], later: int) -> tuple[float, float]:
    """Return the usual and the largest seconds of attacks and `later` passes: a suite drops images that it breaks."""
    most, pace = _passes(runner, attacks), runner.seconds_of_pass()
    suites = _passes(runner, [attack for attack in attacks if attack.skips_misclassified])
    return (most - (1 - USUAL) * suites + later) * pace, (most + later) * pace


def attack_seconds(run: Run, model: nn.Module, test: Split, device: torch.device) -> tuple[float, float]:
    """Return the usual and the largest seconds of the attacks and the probe of a run on its test images."""
    asked, classes = run.evaluation, len(test.class_names)
    runner = Runner(Counted(model), test.images, test.labels, classes, asked.batch_size, asked.seed, device)
    attacks = attacks_of(asked, run.attack_eps)
    return _seconds(runner, attacks, probe.count(runner, _passes(runner, attacks)) * probe.passes(runner))


def _others(before: Sequence[Column], measured: Sequence[Column]) -> list[Column]:
    """Return the old columns that stay on the card; a worst case is dropped once a bounded attack was measured."""
    here = {column.name for column in measured}
    old = {column.identity for column in before}
    stale = any(column.bounded and column.identity not in old for column in measured)
    gone = here | ({*WORST_CASE.values()} if stale else set())
    return [column for column in before if column.name not in gone]


def _attacked(subject: Subject, device: torch.device) -> Counted:
    """Return the model for attacks; a network of this package gets a cheaper equivalent view."""
    channels, height, width = channels_first(np.asarray(subject.images[:1])).shape[1:]
    found = make_view(subject.model, (channels, height, width)) if isinstance(subject.model, Classifier) else None
    if found is None:
        return Counted(subject.model)
    # On the CPU the libraries would convert every tensor to this layout and back.
    layout = torch.channels_last if device.type == "cpu" else torch.preserve_format
    return Counted(subject.model, found.module.to(memory_format=layout))


def _class_names(subject: Subject, device: torch.device) -> list[str]:
    """Return one class name per logit of the model, by default its number."""
    width = count_classes(subject.model, subject.images, subject.labels, device)
    names = subject.class_names
    if names is not None and len(names) != width:
        raise UserError(f"model output: got {width} logits; allowed: {len(names)}, one per class")
    counts = subject.train_class_counts
    if counts is not None and len(counts) != width:
        raise UserError(f"training counts: got {len(counts)}; allowed: {width}, one per class")
    return [str(label) for label in range(width)] if names is None else names


def _refuse_card_of_another(path: Path, subject: Subject) -> None:
    """Raise a `UserError` if the stored card is about another model or other test images."""
    card = ResultCard.load(path)
    for what, there, here in (
        ("another model (weights", card.model["weights_sha256"], weights_digest(subject.model)),
        ("other test images (pixels and labels", card.data["test_sha256"], subject.test_sha256),
    ):
        if there != here:
            got = f"{what} SHA-256 {there[:12]}, here {here[:12]})"
            raise UserError(f"evaluate: {path} is about {got}; allowed: another folder")


@contextmanager
def on_device(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Move the model to a device, and back afterwards."""
    before = next((tensor.device for tensor in model.state_dict().values()), device)
    model.to(device)
    try:
        yield
    finally:
        model.to(before)
