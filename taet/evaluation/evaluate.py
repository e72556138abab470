"""Attacking a model of a run folder, or any other, and making its result card."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from taet.attacks.counted import Counted
from taet.attacks.progress import Meter, Progress
from taet.attacks.spec import AttackSpec
from taet.config import Evaluation, Threat
from taet.data import Dataset
from taet.distributed import gather, rank
from taet.errors import UserError
from taet.evaluation import diagnostics, probe, shelf
from taet.evaluation.bundles import check_attacks, expand, parse_attacks
from taet.evaluation.card import ResultCard
from taet.evaluation.column import WORST_CASE, Column
from taet.evaluation.curves import curve_attacks
from taet.evaluation.examples import save_examples
from taet.evaluation.images import Images, channels_first
from taet.evaluation.runner import Runner, attack_split, count_classes, one_threat_model
from taet.evaluation.subject import Subject, from_module, from_run, from_run_on
from taet.models import Classifier
from taet.models.view import make_view
from taet.training.checkpoint import weights_digest
from taet.training.environment import environment, keep_freed_memory, resolve_device
from taet.training.folder import RunFolder


def evaluate(
    model_or_run_dir: nn.Module | str | os.PathLike[str],
    images: Images | Tensor | None = None,
    labels: NDArray[Any] | Tensor | None = None,
    *,
    attacks: Sequence[str] | str | None = None,
    curves: Sequence[str] = (),
    worst_case: bool = False,
    eps: float | None = None,
    step_size: float | None = None,
    eps_l2: float | None = None,
    step_size_l2: float | None = None,
    batch_size: int | None = None,
    seed: int | None = None,
    device: str = "auto",
    name: str | None = None,
    class_names: Sequence[str] | None = None,
    train_class_counts: Sequence[int] | None = None,
    data_about: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
    out: str | os.PathLike[str] | None = None,
    weights: str = "model",
    model: nn.Module | None = None,
    dataset: Dataset | None = None,
    state_dir: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    command: str = "",
) -> ResultCard:
    """AttackSpec a model on test images and return the result card, which prints itself as a table.

    Everything is float32. Every attack faces all images, the clean ones are always the first column, and finished
    batches are kept, so that an evaluation that was killed goes on where it was.

    Args:
        model_or_run_dir: a run folder, or any Module from images (N, C, H, W) in [0, 1] to logits (N, classes).
        images: with a Module, or in place of a run's own: uint8 (N, H, W, C), grey levels 0 to 255, or floating point
            (N, C, H, W) in [0, 1].
        labels: of those images: integers (N,), 0 to classes - 1.
        attacks: one or more names of `taet list attacks`, with options where wanted (pgd-20:restarts=5), or a protocol,
            taet or reat, for all columns of its paper. Not given: the run's, or those of `taet.config.Evaluation`; so
            too eps to seed.
        curves: of steps, eps and logit-scale, those to be measured; each point is a column of its own.
        worst_case: run the attacks one after another, each on the images that those before it left correct, and
            return that one column beside the clean one: cheaper, where only the worst case is asked for.
        eps: radius of the L-infinity ball in units of the image range, e.g. 8/255.
        step_size: step of PGD, same units.
        eps_l2: radius of the L2 ball, same units.
        step_size_l2: length of a step of PGD in the L2 ball.
        batch_size: images per batch; stored, since AutoAttack's result depends on it in a few examples.
        seed: seed of every random start, drawn per image and attack.
        device: auto (for a Module where it is, for a run CUDA where there is one), cpu, cuda or cuda:N.
        name: with a Module, what the card calls it; its class where not given.
        class_names: with a Module, names of the classes; their numbers where not given. With images in place of a
            run's own, the names of the classes that their labels count: the run's classes of these names are meant.
        train_class_counts: with a Module, training images per class, which decide head, body and tail.
        data_about: what the card says about images that were given: name, imbalance_ratio, notes.
        notes: with a Module, where it comes from, in words.
        out: folder of the card and its examples, which is no run and has no card of another model or other images.
            Not given: the run's; with a Module nothing is kept.
        weights: with a run folder, which of its weights: model, model-last or model-best.
        model: with the folder of a run that was trained from a Module, one like it; it is given the run's weights.
        dataset: with the folder of a run that was trained on arrays in memory, those arrays again, unless `images`
            takes their place.
        state_dir: with a Module, where finished batches are kept; in `out`, or nowhere, if not given.
        progress: called as progress(done, total, label), in estimated passes of an image through the model.
        command: how this was started; stored in the card.

    Returns:
        The card; a run folder also gets it as evaluation.json, and images for figures in artifacts/examples.npz. What
        that file holds already is not measured again: columns with the same settings are taken from it, others stay in
        it, and a card about another ball, batch size or software, or with other settings of the same attacks, is kept
        beside it under the time of its making.

    Raises:
        UserError: no, unknown or repeated attacks, images out of range, labels that do not fit the model, a class name
            that a run does not know, a model that returns anything but finite logits (N, classes), an `out` that
            belongs to something else.
    """
    asked = [attacks] if isinstance(attacks, str) else attacks
    if asked is not None:  # a typing mistake is told before anything is loaded
        check_attacks(Evaluation(attacks=tuple(asked)))
    curve_attacks(curves, Evaluation(), Threat().eps)
    if out is not None and RunFolder(Path(out)).is_run:
        raise UserError(f"evaluate: {out} is a run, whose card is about its own model and data; allowed: another")
    path: Path | None = None
    if isinstance(model_or_run_dir, str | os.PathLike):
        folder = Path(model_or_run_dir)
        path = RunFolder(folder if out is None else Path(out)).card(weights)
        if (images is None) != (labels is None) or (images is not None and out is None):
            raise UserError("evaluate: got images beside a run, which has its own; allowed: with labels= and out=")
        if images is None or labels is None:
            subject = from_run(folder, weights, model, dataset)
        else:
            subject = from_run_on(folder, weights, model, images, labels, class_names, data_about)
    elif not isinstance(model_or_run_dir, nn.Module):
        kind = type(model_or_run_dir).__name__
        raise UserError(f"evaluate: got a {kind}; allowed: a torch.nn.Module, or the folder of a run")
    elif model is not None or dataset is not None:
        raise UserError("evaluate: got model= or dataset= beside a Module; allowed: with a run folder that needs them")
    elif images is None or labels is None:
        raise UserError("evaluate: got a model without images and labels; allowed: both, or a run folder alone")
    else:
        path = None if out is None else RunFolder(Path(out)).card()
        called = name or type(model_or_run_dir).__name__
        subject = from_module(
            model_or_run_dir, images, labels, called, class_names, train_class_counts, data_about, notes
        )
    chosen: dict[str, Any] = {
        "eps": eps,
        "step_size": step_size,
        "eps_l2": eps_l2,
        "step_size_l2": step_size_l2,
        "batch_size": batch_size,
        "seed": seed,
    }
    given = {name: value for name, value in chosen.items() if value is not None}
    radius = next(size for size in (eps, subject.settings.eps, subject.train_eps) if size is not None)
    names_asked = subject.settings.attacks if asked is None else asked
    settings = dataclasses.replace(expand(names_asked, subject.settings, radius), **given)
    listed = parse_attacks(["clean", *(name for name in settings.attacks if name != "clean")], settings, radius)
    if worst_case and asked is None:  # of the attacks that a run faces anyway, those in its ball
        listed = listed[:1] + [attack for attack in listed if (attack.norm, attack.eps) == ("linf", radius)]
    where = subject.place if device == "auto" else resolve_device(device)
    keep_freed_memory(where)
    with _on(subject.model, where):
        if out is not None and path is not None and path.exists():
            _refuse_card_of_another(path, subject)
        names = _class_names(subject, where)
        runner = Runner(
            _attacked(subject, where),
            subject.images,
            subject.labels,
            len(names),
            settings.batch_size,
            settings.seed,
            where,
        )
        for attack in listed:
            attack.check_classes(len(names))
        return _measured(
            subject,
            runner,
            radius,
            listed[:1] if worst_case else listed,
            curve_attacks(curves, settings, radius),
            one_threat_model(listed[1:], len(names)) if worst_case else [],
            names,
            path,
            RunFolder(path.parent).state(path.stem) if path is not None else state_dir,
            progress,
            command,
        )


def _measured(
    subject: Subject,
    runner: Runner,
    radius: float,
    listed: Sequence[AttackSpec],
    points: Sequence[AttackSpec],
    chain: Sequence[AttackSpec],
    class_names: list[str],
    path: Path | None,
    state_dir: str | os.PathLike[str] | None,
    progress: Progress | None,
    command: str,
) -> ResultCard:
    """Run what is not known yet, and return the card, which is saved at `path`.

    `listed` are the attacks asked for, `points` those of curves, `chain` those of a worst case.
    """
    machine = environment(runner.device)
    model_about = {
        **subject.model_about,
        "weights_sha256": weights_digest(subject.model),
        "answers": runner.fingerprint.tolist(),
        "parameters": sum(parameter.numel() for parameter in subject.model.parameters()),
    }
    threat = {"norm": "linf", "eps": radius}
    known: ResultCard | None = None
    if path is not None and rank() == 0:
        facts = {
            "model": {"weights_sha256": model_about["weights_sha256"]},
            "data": {"test_sha256": subject.test_sha256},
            "threat": threat,
            "batch_size": runner.batch_size,
            "environment": {"versions": machine["versions"], "device": machine["device"]},
        }
        known = shelf.find(path, facts, runner.fingerprint)
    known = gather(known)[0]  # one process looks, so that all leave out the same
    before = () if known is None else known.columns
    probed = {} if known is None or not probe.is_of(known.probe, runner.seed) else known.probe
    probing = not probed and bool(len(listed) > 1 or points or chain)
    meter = Meter(progress, later=probe.passes(runner) if probing else 0)
    asked = {attack.name for attack in listed}
    shown = {column.name for column in before if not column.curve}  # stays in the tables with other settings, too
    drawn = [replace(point, curve="") if point.name in shown else point for point in points]
    columns = [*listed, *(attack for attack in drawn if attack.name not in asked)]
    measured = attack_split(runner, columns, known=before, state_dir=state_dir, progress=meter)
    if chain:
        meter.begin(later=meter.later)
        measured = (*measured, runner.run_worst_case(chain, measured[0], state_dir, meter))
    if probing:
        meter.begin()
        probed = probe.probe(runner, radius, state_dir, lambda done: meter(done, probe.passes(runner), "probe"))
    card = ResultCard(
        **subject.about,
        threat=threat,
        model=model_about,
        data={
            **subject.data_about,
            "class_names": class_names,
            "train_class_counts": subject.train_class_counts,
            "test_sha256": subject.test_sha256,
        },
        batch_size=runner.batch_size,
        labels=subject.labels,
        columns=(*measured, *_others(before, measured)),
        probe=probed,
        created=machine.pop("started"),
        environment=machine,
        command=command,
    )
    card = dataclasses.replace(card, flags=diagnostics.flags(card))
    if path is not None and rank() == 0:
        shelf.put(path, card)
        save_examples(RunFolder(path.parent).examples, card, runner, listed)
        for units in runner.opened:
            units.remove()
    gather(None)  # no process begins anew before the card and its state are as they will be
    return card


def _others(before: Sequence[Column], measured: Sequence[Column]) -> list[Column]:
    """Return the columns that stay; a worst case does not once something new was measured in a ball."""
    here = {column.name for column in measured}
    old = {column.identity for column in before}
    stale = any(column.bounded and column.identity not in old for column in measured)
    gone = here | ({*WORST_CASE.values()} if stale else set())
    return [column for column in before if column.name not in gone]


def _attacked(subject: Subject, device: torch.device) -> Counted:
    """The model as attacks see it; of a network of known build a view, which agrees with it."""
    if not isinstance(subject.model, Classifier):
        return Counted(subject.model)
    channels, height, width = channels_first(np.asarray(subject.images[:1])).shape[1:]
    found = make_view(subject.model, (channels, height, width))
    if found is None:
        return Counted(subject.model)
    # On the CPU the libraries work in this layout in any case, and turn every tensor into it and back.
    layout = torch.channels_last if device.type == "cpu" else torch.preserve_format
    return Counted(subject.model, found.module.to(memory_format=layout))


def _class_names(subject: Subject, device: torch.device) -> list[str]:
    """Return the names of the classes, which must be as many as the model has logits; numbers where none are given."""
    width = count_classes(subject.model, subject.images, subject.labels, device)
    names = subject.class_names
    if names is not None and len(names) != width:
        raise UserError(f"model output: got {width} logits; allowed: {len(names)}, one per class")
    counts = subject.train_class_counts
    if counts is not None and len(counts) != width:
        raise UserError(f"training counts: got {len(counts)}; allowed: {width}, one per class")
    return [str(label) for label in range(width)] if names is None else names


def _refuse_card_of_another(path: Path, subject: Subject) -> None:
    """Refuse to put the card of one model or of one test set in the place of another's."""
    card = ResultCard.load(path)
    facts = {
        "another model (weights": (card.model.get("weights_sha256"), weights_digest(subject.model)),
        "other test images (pixels and labels": (card.data.get("test_sha256"), subject.test_sha256),
    }
    for what, (there, here) in facts.items():
        if there != here:
            raise UserError(
                f"evaluate: {path} is about {what} SHA-256 {str(there)[:12]}, here {here[:12]}); "
                "allowed: another folder"
            )


@contextmanager
def _on(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Keep the model on a device, and bring it back afterwards."""
    before = next((tensor.device for tensor in model.state_dict().values()), device)
    model.to(device)
    try:
        yield
    finally:
        model.to(before)
