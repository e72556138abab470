"""Predictions of a finished run for new images, and whether each survives an attack."""

import csv
import html
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from taet.attacks import catalogue
from taet.attacks.counting_model import CountingModel
from taet.attacks.examples import EveryExample
from taet.attacks.spec import AttackSpec, Clean
from taet.data.dataset import fingerprints
from taet.deployment.input_images import ImageSource, list_images, read_images
from taet.deployment.saved_images import prepare_folder, rounded, save_images
from taet.deployment.trained_model import TrainedModel, load
from taet.errors import UserError
from taet.evaluation.attack_sets import of_run
from taet.evaluation.runner import Runner, as_unit
from taet.formatting import plural
from taet.machine import float32_by_default, idle_threads, resolve_device, using
from taet.progress import Progress
from taet.settings import Run
from taet.settings.arguments import checked_arguments
from taet.settings.types import Count, check_value

if TYPE_CHECKING:
    import pandas

BATCH_SIZE = 250
SHOWN_ROWS = 20  # of the table in a notebook: the first and the last ones
DIGITS = 6  # of a probability in a table; `probabilities` has full precision
NO_CLASS = -1


@dataclass(frozen=True, eq=False, repr=False)
class Predictions:
    """Predictions for N images, in the given order.

    Example:
        >>> import taet
        >>> digits = taet.data.load("digits-lt")
        >>> found = taet.predict("runs/example", digits.test.images[:4], attack="pgd-2")
        >>> len(found), found.probabilities.shape, found.survives.shape
        (4, (4, 10), (4,))
    """

    paths: tuple[str, ...]
    """The files, or positions in an array."""
    labels: NDArray[np.int64]
    """(N,): the class of the largest logit; -1 for an image that could not be read."""
    class_names: tuple[str, ...]
    probabilities: NDArray[np.float32]
    """(N, C): softmax of the logits; nan for an image that could not be read."""
    survives: NDArray[np.bool_] | None
    """(N,): whether the class is the same under the attack, False for an unreadable image; None
    without an attack."""
    errors: tuple[str, ...]
    """Why an image could not be read; empty if it could."""
    attack: str
    """The attack, with its options; empty without one."""
    survives_rounded: NDArray[np.bool_] | None = None
    """(N,): the same of the attacked images that were saved, in 8 bits; None if none were."""
    notes: tuple[str, ...] = ()  # on the folders that were searched through

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def unread(self) -> int:
        """How many images could not be read."""
        return sum(map(bool, self.errors))

    def table(self, top: int = 1) -> "pandas.DataFrame":
        """Return a row per image, with path, class and probability.

        After an attack there is a column survives, and if any image has an error a column error.

        `top` above 1: the next classes follow as class_2, probability_2, and so on. None: the image
        could not be read.
        """
        import pandas  # takes a second and 50 MB, and only this needs it

        columns = self._columns(top)
        errors = columns.pop("error", None)
        table = pandas.DataFrame(columns, dtype=object)
        if errors is not None:
            table["error"] = errors
        return table

    def to_csv(self, top: int = 1) -> str:
        """Return the table as CSV with a header.

        The column survives is true or false, and unknown values are empty.
        """
        columns = self._columns(top)
        if "survives" in columns:
            words = {True: "true", False: "false", None: None}
            columns["survives"] = [words[survived] for survived in columns["survives"]]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
        return text.getvalue()

    def _columns(self, top: int) -> dict[str, list[Any]]:
        """Return the columns of the table; None is an unknown value."""
        ranked = np.argsort(-self.probabilities, axis=1, kind="stable")[:, :top]
        shares = np.take_along_axis(self.probabilities, ranked, 1).astype(np.float64).round(DIGITS)
        columns: dict[str, list[Any]] = {}
        for place, (labels, share) in enumerate(zip(ranked.T, shares.T, strict=True), 1):
            ending = "" if place == 1 else f"_{place}"
            columns[f"class{ending}"] = [self.class_names[label] for label in labels]
            columns[f"probability{ending}"] = share.tolist()
        if self.survives is not None:
            columns["survives"] = self.survives.tolist()
        for name, values in columns.items():
            columns[name] = [
                None if error else value for value, error in zip(values, self.errors, strict=True)
            ]
        columns = {"path": [*self.paths], **columns}
        if self.unread:
            columns["error"] = [error or None for error in self.errors]
        return columns

    def _repr_html_(self) -> str:
        """Return the summary and the table, as a notebook shows them; of many images the first and
        last rows."""
        table = self.table().to_html(index=False, na_rep="", max_rows=SHOWN_ROWS)
        return f"<p>{html.escape(repr(self))}</p>{table}"

    def __repr__(self) -> str:
        counts = np.bincount(self.labels[self.labels != NO_CLASS], minlength=len(self.class_names))
        by_count = np.argsort(-counts, kind="stable")
        classes = [f"{self.class_names[label]} {counts[label]}" for label in by_count]
        predicted = ", ".join(classes[: np.count_nonzero(counts)]) or "no class"
        parts = [f"{plural(len(self), 'image')}: {predicted}"]
        if self.survives is not None:
            attacked = len(self) - self.unread
            parts.append(f"{int(self.survives.sum())} of {attacked} survive {self.attack}")
        if self.survives_rounded is not None:
            parts.append(f"{int(self.survives_rounded.sum())} survive it rounded to 8 bits")
        if self.unread:
            parts.append(f"{self.unread} could not be read")
        return "; ".join(parts)


@checked_arguments
@float32_by_default()
def predict(
    run_dir: str | os.PathLike[str] | TrainedModel,
    images: ImageSource,
    *,
    attack: str | None = None,
    save: str | os.PathLike[str] | None = None,
    weights: str = "model",
    batch_size: int = BATCH_SIZE,
    device: str = "auto",
    progress: Progress | None = None,
    model: nn.Module | None = None,
) -> Predictions:
    """Return the predicted class of every image by a trained model; its data are not needed.

    Images are read and resized as in training; grey and colour are converted to match the model's
    images. Up to float32 rounding, a prediction does not depend on the other images or their order.

    Args:
        run_dir: a finished run, or what `taet.load` returned.
        images: files and folders (searched through, hidden files left out), or an array uint8 (N,
            H, W, C), C 1 or 3.
        attack: an attack, such as pgd-20 or pgd-20:restarts=5, with the run's ball and settings;
            `survives` says whether the predicted class (no label is known) survives it; this
            proves only that one attack failed.
        save: folder of PNG files, which `attack` needs: each image as it is (original), what was
            added to it, ten times as strong around grey (change), and the result (attacked). They
            have the size of the model's images, and are rounded to 8 bits so that they stay
            adversarial where that is possible: `survives_rounded`. Files of the same names are
            replaced.
        weights: which of a run's weights: model, model-last or model-best.
        batch_size: images that are in memory, and passed to the model, at a time.
        device: auto, cpu, cuda or cuda:N.
        progress: called as progress(done, total, label), in estimated passes of an image through
            the model.
        model: for a run that was trained from a Module in memory, a Module of the same structure.

    Raises:
        UserError: a run that is not finished, an unknown attack or one without a ball, no image. An
            unreadable file does not raise: `errors` has the reason.

    Example:
        >>> import taet
        >>> digits = taet.data.load("digits-lt")
        >>> found = taet.predict("runs/example", digits.test.images[:4])
        >>> found.probabilities.shape
        (4, 10)
    """
    check_value("batch size", batch_size, Count)
    listed, on_device = list_images(images), resolve_device(device)
    trained = run_dir
    if not isinstance(trained, TrainedModel):
        trained = load(trained, weights, model=model)
    spec = None if attack is None else _attack_in_a_ball(attack, trained.run)
    folder = None if save is None else Path(save)
    if folder is not None:
        if spec is None:
            raise UserError("save: got a folder without an attack; allowed: with one, e.g. pgd-20")
        prepare_folder(folder)
    classes, total = trained.class_names, len(listed.names)
    passes = 1 if spec is None else 1 + spec.passes(len(classes))
    # one batch without an attack takes less time than to look for idle cores
    takes_long = spec is not None or total > batch_size
    threads = idle_threads()[0] if takes_long else torch.get_num_threads()
    predictions = Predictions(
        listed.names,
        np.full(total, NO_CLASS, np.int64),
        classes,
        np.full((total, len(classes)), np.nan, np.float32),
        None if spec is None else np.zeros(total, np.bool_),
        ("",) * total,
        attack or "",
        None if folder is None else np.zeros(total, np.bool_),
        tuple(listed.notes),
    )
    counting = CountingModel(trained.model.to(on_device))
    errors: list[str] = []
    for start in range(0, total, batch_size):

        def report(inside: float, _: float, label: str, start: int = start) -> None:
            if progress is not None:
                progress(start * passes + inside, total * passes, label)

        chunk = listed.images[start : start + batch_size]
        batch = read_images(chunk, trained.image_shape, trained.background)
        rows, pixels = list[int](), list[NDArray[np.uint8]]()
        for row, image in enumerate(batch, start):
            if isinstance(image, str):
                errors.append(image)
            else:
                errors.append("")
                rows.append(row)
                pixels.append(image)
        if rows:
            stacked = np.stack(pixels)
            # The pixels of an image seed its random draws, by the first 63 bits of their hash.
            keys = (fingerprints(stacked).byteswap() >> 1).astype(np.int64)
            runner = Runner(
                counting,
                stacked,
                predictions.labels[rows],
                len(classes),
                batch_size,
                trained.run.evaluation.seed,
                on_device,
                keys=keys,
                groups=None if folder is None else np.zeros(len(rows), np.int64),
                keeps=EveryExample,
                keep_probabilities=True,
            )
            with using(threads):
                _predict_batch(predictions, rows, runner, spec, report)
            if folder is not None and spec is not None:
                _save_batch(predictions, rows, runner, spec, folder)
        report(len(batch) * passes, 0, f"{start + len(batch)} of {total} images")
    return replace(predictions, errors=tuple(errors))


def _attack_in_a_ball(attack: str, run: Run) -> AttackSpec:
    """Return an attack with a radius, by its name: survival of others is not defined."""
    spec = catalogue.parse(attack, of_run(run, {"attacks": attack}))
    if spec.eps is None:
        advice = ""
        if spec.norm is not None:
            advice = f", or {spec.name} with a radius of its own, such as eps=0.5"
        raise UserError(
            f"attack: got {spec.name}, which has no ball; allowed: e.g. pgd-20, autoattack{advice}"
        )
    return spec


def _predict_batch(
    predictions: Predictions,
    rows: Sequence[int],
    runner: Runner,
    spec: AttackSpec | None,
    report: Progress,
) -> None:
    """Write the predictions of a batch into these rows, and whether they survive the attack."""
    with runner.frozen_and_exact():
        clean, scores = runner.attack(Clean())
        predictions.labels[rows] = clean.predictions
        predictions.probabilities[rows] = scores
        if spec is not None and predictions.survives is not None:
            side_by_side = runner.batch_size if spec.batch_independent else 1
            attacked = replace(
                runner,
                labels=clean.predictions,
                batch_size=side_by_side,
                keep_probabilities=False,
            )
            outcome, _ = attacked.attack(spec, natural=clean.predictions, progress=report)
            predictions.survives[rows] = outcome.correct


def _save_batch(
    predictions: Predictions,
    rows: Sequence[int],
    runner: Runner,
    spec: AttackSpec,
    folder: Path,
) -> None:
    """Write the attacked images of a batch as files, and whether predictions survive these."""
    assert predictions.survives_rounded is not None
    assert spec.eps is not None
    original = np.asarray(runner.images)
    x_adv = as_unit(original).numpy()
    for example in runner.examples[spec.name]:
        x_adv[example.row] = example.x_adv
    with runner.frozen_and_exact():
        attacked, survives = rounded(
            runner.model,
            original,
            x_adv,
            predictions.labels[rows],
            spec.eps,
            spec.norm or "linf",
            runner.device,
        )
    predictions.survives_rounded[rows] = survives
    save_images(folder, rows, [predictions.paths[row] for row in rows], original, attacked)
