"""`taet.evaluate`: attack the model of a run folder, or any other, and return its result card."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from taet.data import Dataset
from taet.errors import UserError
from taet.evaluation import bundles
from taet.evaluation.card import ResultCard
from taet.evaluation.column import CurveName
from taet.evaluation.curves import curve_attacks
from taet.evaluation.measurement import Extent, measure
from taet.evaluation.subject import AnyModel, ImagesArgument, TestLabels, check_used, subject_of
from taet.progress import Progress
from taet.settings import Evaluation, Threat
from taet.training.folder import DELIVERED, RunFolder


def evaluate(
    model_or_run_dir: AnyModel,
    images: ImagesArgument = None,
    labels: TestLabels | None = None,
    *,
    settings: Evaluation | Mapping[str, Any] | None = None,
    curves: Sequence[CurveName] = (),
    worst_case: bool = False,
    probe: bool = True,
    device: str = "auto",
    name: str | None = None,
    class_names: Sequence[str] | None = None,
    train_class_counts: Sequence[int] | None = None,
    data_about: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
    out: str | os.PathLike[str] | None = None,
    weights: str = DELIVERED,
    model: nn.Module | None = None,
    dataset: Dataset | None = None,
    state_dir: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    command: str = "",
    **changes: Any,
) -> ResultCard:
    """Attack a model on test images and return the result card, which prints itself as a table.

    Everything is float32. Every attack faces all images, and the clean images are always the first column. Finished
    batches are saved, so that an evaluation that was killed continues where it stopped.

    Args:
        model_or_run_dir: a run folder, or any Module from images (N, C, H, W) in [0, 1] to logits (N, classes).
        images: with a Module, or in place of a run's own: uint8 (N, H, W, C) with pixel values 0 to 255, or floating
            point (N, C, H, W) in [0, 1]. Or `taet.evaluation.GivenImages`, with labels and what is known of them.
        labels: of those images: integers (N,), 0 to classes - 1.
        settings: settings of the attacks, or a mapping of those fields of `Evaluation` that change. Default: those of
            the run, or `taet.settings.Evaluation()`.
        curves: curves to measure, among steps, eps and logit-scale; each point is a column.
        worst_case: run the attacks one after another, each on the images that are still correct, and return that one
            column beside the clean one. Cheaper if only the worst case is needed.
        probe: test on a few images for problems that make attacks unreliable, such as masked gradients. It takes no
            more passes than the attacks do, unless these are very short; without it, the card has a flag that says so.
        device: auto (for a Module its own, for a run CUDA if available), cpu, cuda or cuda:N.
        name: with a Module, its name on the card. Default: its class.
        class_names: with a Module, names of the classes. Default: their numbers. With images in place of a run's own:
            the names of the classes that the labels count, which are matched with those of the run.
        train_class_counts: with a Module, training images per class, which decide head, body and tail.
        data_about: what the card says about the given images: name, imbalance_ratio, notes.
        notes: with a Module, its origin in words.
        out: folder of the card and its examples; not a run, and without a card of another model or of other images.
            Default: the run; for a Module nothing is saved.
        weights: with a run folder, which of its weights: model, model-last or model-best.
        model: with the folder of a run that was trained from a Module, a Module like it, which is given its weights.
        dataset: with the folder of a run that was trained on arrays in memory, those arrays again, unless `images`
            replaces them.
        state_dir: where finished batches are saved until the card is. Default: beside the card; without one, nowhere.
        progress: called as progress(done, total, label), in estimated passes of an image through the model.
        command: the command that started the evaluation; stored in the card.
        **changes: fields of `Evaluation` in place of those of the settings: `attacks`, one or more names of
            `taet list attacks`, optionally with options (pgd-20:restarts=5), or a protocol, taet or reat, for all
            columns of its paper; eps, step_size, batch_size, seed, ...; radii and steps in units of the image range,
            e.g. 8/255.

    Returns:
        The card. A run folder also gets it as evaluation.json, and images for figures as artifacts/examples.npz. What
        evaluation.json already contains is not measured again: columns with the same settings are reused and others
        stay. A card about another ball, batch size or software, or with other settings of the same attacks, is kept
        beside it under the time of its creation.

    Raises:
        UserError: no, unknown or repeated attacks, images out of range, labels that do not fit the model, a class name
            that the run does not know, a model that returns anything but finite logits (N, classes), an `out` that
            belongs to something else, an argument that says nothing of such a model.
    """
    whole, part = (settings, None) if isinstance(settings, Evaluation) else (None, settings)
    changed = bundles.changes(part, **changes)
    bundles.attacks_of((whole or Evaluation()).replace(**changed))  # a mistake is reported before anything is loaded
    curve_attacks(curves, Evaluation(), Threat().eps)
    folder = None if out is None else RunFolder(Path(out))
    if folder is not None and folder.is_run:
        raise UserError(f"evaluate: {out} is a run, whose card is about its own model and data; allowed: another")
    if isinstance(model_or_run_dir, nn.Module):
        of_run = {"weights": None if weights == DELIVERED else weights, "model": model, "dataset": dataset}
        check_used("evaluate", "a Module", "a run folder", **of_run)
    elif isinstance(model_or_run_dir, str | os.PathLike) and images is not None and folder is None:
        raise UserError("evaluate: got images beside a run, which has its own; allowed: with out=")
    subject = subject_of(
        "evaluate",
        model_or_run_dir,
        images,
        labels,
        weights=weights,
        model=model,
        dataset=dataset,
        name=name,
        notes=notes,
        class_names=class_names,
        train_class_counts=train_class_counts,
        data_about=data_about,
    )
    subject = replace(subject, settings=whole or subject.settings).changed(changed)
    if worst_case and "attacks" not in changed:
        subject = subject.changed({"attacks": ("clean", *(attack.name for attack in subject.inside))})
    return measure(
        subject,
        Extent(curves=tuple(curves), worst_case=worst_case, probe=probe),
        device=subject.on(device),
        path=subject.card if folder is None else folder.card(weights),
        new=out is not None,
        state_dir=state_dir,
        progress=progress,
        command=command,
    )
