"""Embeddings of clean and attacked images: a t-SNE picture, and measures, since a picture alone proves nothing."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike

from taet.errors import UserError, located, unknown
from taet.evaluation.bundles import parse_attack
from taet.evaluation.runner import Runner
from taet.evaluation.subject import subject_of
from taet.fields import Sha256
from taet.files import parse_json, read_bytes
from taet.models.classifier import Classifier
from taet.shapes import check_shape
from taet.statistics import Floats, Ints
from taet.training.checkpoint import weights_digest
from taet.training.folder import DELIVERED, WeightsName

Space = Literal["features", "logits"]
FOLDS = 5
PERPLEXITY = 30.0
DIGITS = 3
ROUNDING = 1e-9
"""Largest difference between a stored accuracy and that of the stored answers."""


@dataclass(frozen=True)
class Embedding:
    """Features or logits of some test images, clean and attacked."""

    name: str
    of: str
    """features (the input of the last layer) or logits."""
    attack: str
    seed: int
    weights_sha256: Sha256
    test_sha256: Sha256
    class_names: tuple[str, ...]
    train_class_counts: tuple[int, ...] | None
    rows: tuple[int, ...]
    """Positions of the images in the test set."""
    labels: tuple[int, ...]
    predictions: dict[str, list[int]]
    """By side, clean and attacked."""
    points: dict[str, list[list[float]]]
    """By side: positions in the common t-SNE of both sides, (N, 2) each."""
    numbers: dict[str, dict[str, float]]
    """By side: accuracy of the model, silhouette and linear separability, before t-SNE."""
    separated: dict[str, list[int]] = field(default_factory=dict)
    """By side: for each image the answer of a logistic regression that was fitted without it. None in older files."""

    def to_json(self) -> dict[str, Any]:
        """The embedding as JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Any) -> Embedding:
        """Check and build an embedding."""
        check_shape("", values, cls)
        counts, classes = values["train_class_counts"], len(values["class_names"])
        sides, labels = {*values["points"]}, values["labels"]
        separated = values.get("separated", {})
        answers = {"accuracy": values["predictions"], "linear_separability": separated}
        listed = [side for found in (values["points"], *answers.values()) for side in found.values()]
        whole = all(len(side) == len(labels) for side in (*listed, values["rows"]))
        if not whole or any(len(point) != 2 for side in values["points"].values() for point in side):
            raise UserError("got sides of several lengths; allowed: a point and an answer for each image")
        if any({*found} != sides for found in (values["numbers"], values["predictions"], separated or sides)):
            raise UserError("got other sides for points than for answers or numbers; allowed: the same")
        if not all(0 <= label < classes for label in labels):
            raise UserError(f"got a label that is no class; allowed: 0 to {classes - 1}")
        for name, side in ((name, side) for name, found in answers.items() for side in found):
            number = values["numbers"][side].get(name, math.nan)
            if not math.isclose(number, _balanced(answers[name][side], labels), abs_tol=ROUNDING):
                raise UserError(f"got {name} {number:g} of {side} images; allowed: that of the answers in the file")
        known = {one.name: values[one.name] for one in fields(cls) if one.name in values}  # a later version has others
        tuples = {name: tuple(values[name]) for name in ("class_names", "rows", "labels")}
        return cls(**{**known, **tuples, "train_class_counts": None if counts is None else tuple(counts)})


def load(path: Path) -> Embedding:
    """Read an embedding; raise a `UserError` for any other file."""
    with located(str(path)):
        return Embedding.from_json(parse_json(read_bytes(path), str(path)))


def embed(
    run: str | os.PathLike[str],
    attack: str = "pgd-20",
    *,
    of: Space = "features",
    classes: Sequence[str] = (),
    images: int = 100,
    seed: int = 0,
    weights: WeightsName = DELIVERED,
    device: str = "auto",
) -> Embedding:
    """Return the embedding of test images by the model of a run, clean and under an attack.

    Both sides share one t-SNE. Two measures describe the original space: the silhouette, -1 to 1, by the true classes,
    and the linear separability, the cross-validated balanced accuracy of a logistic regression on it.

    Args:
        run: a run folder.
        attack: an attack that makes examples: not clean, square or AutoAttack.
        of: features (the input of the last layer) or logits.
        classes: names of classes; by default all.
        images: number of test images of each class; the first ones are taken, or all if a class has fewer.
        seed: seed of t-SNE.
        weights: model, or model-last or model-best for another epoch of the run.
        device: auto, cpu, cuda or cuda:N.

    Raises:
        UserError: an unknown class, fewer than two classes or two images of a class, a model without features.

    Source: van der Maaten, Hinton, "Visualizing data using t-SNE", JMLR 2008; Rousseeuw, "Silhouettes", 1987.
    """
    folder = Path(run)
    subject = subject_of("embed", folder, weights=weights)
    chosen = parse_attack(attack, subject.settings, subject.train_eps)
    if chosen.not_transferable:
        raise UserError(f"embed: got {attack}, {chosen.not_transferable}; allowed: an attack such as fgsm or pgd-20")
    if of == "features" and not isinstance(subject.model, Classifier):
        raise UserError(f"embed: the model of {folder} has no features that are known; allowed: --of logits")
    names = subject.class_names or [str(label) for label in range(int(subject.labels.max()) + 1)]
    rows = _rows(subject.labels, names, classes, images)
    spaces, predictions = _spaces(subject.runner(subject.on(device)), chosen, rows, of)
    labels = subject.labels[rows]
    points = _tsne(np.concatenate([*spaces.values()]), seed)
    counts = subject.train_class_counts
    separated = {side: separate(space, labels, seed) for side, space in spaces.items()}
    return Embedding(
        name=folder.name if weights == DELIVERED else f"{folder.name} ({weights})",
        of=of,
        attack=chosen.name,
        seed=seed,
        weights_sha256=weights_digest(subject.model),
        test_sha256=subject.test_sha256,
        class_names=(*names,),
        train_class_counts=None if counts is None else (*counts,),
        rows=(*rows.tolist(),),
        labels=(*labels.tolist(),),
        predictions={side: found.tolist() for side, found in predictions.items()},
        points={side: part.tolist() for side, part in zip(spaces, np.split(points, 2), strict=True)},
        numbers={side: numbers_of(space, labels, predictions[side], separated[side]) for side, space in spaces.items()},
        separated={side: found.tolist() for side, found in separated.items()},
    )


def _rows(labels: Ints, names: Sequence[str], classes: Sequence[str], images: int) -> Any:
    """Return the first images of each chosen class, in the order of the test set."""
    for name in classes:
        if name not in names:
            raise unknown("class", name, names)
    chosen = [names.index(name) for name in dict.fromkeys(classes)] or [*np.unique(labels)]
    found = {label: np.flatnonzero(labels == label)[:images] for label in chosen}
    if len(found) < 2:
        raise UserError("embed: got one class; allowed: two or more")
    for label, rows in found.items():
        if len(rows) < 2:
            raise UserError(f"embed: got {len(rows)} test images of class {names[label]}; allowed: two or more")
    return np.sort(np.concatenate([*found.values()]))


def _spaces(runner: Runner, attack: Any, rows: Ints, of: Space) -> tuple[dict[str, Floats], dict[str, Ints]]:
    """Return features or logits (N, D) of both sides, and the predictions."""
    spaces: dict[str, list[Floats]] = {"clean": [], "attacked": []}
    answers: dict[str, list[Ints]] = {"clean": [], "attacked": []}
    model = runner.model.model
    with runner.still():
        for batch in runner.batches(rows):
            for side, x in zip(spaces, runner.perturb(attack, batch), strict=True):
                logits = runner.answers(attack, x, batch)
                with torch.no_grad():
                    space = model.features(x) if of == "features" and isinstance(model, Classifier) else logits
                spaces[side].append(space.flatten(1).double().cpu().numpy())
                answers[side].append(logits.argmax(1).cpu().numpy())
    joined = {side: np.concatenate(parts) for side, parts in answers.items()}
    return {side: np.concatenate(parts) for side, parts in spaces.items()}, joined


def _tsne(values: Floats, seed: int) -> Floats:
    """Return positions (N, 2), which depend only on the values and the seed."""
    from sklearn.manifold import TSNE

    perplexity = min(PERPLEXITY, (len(values) - 1) / 3)
    learner = TSNE(perplexity=perplexity, init="pca", learning_rate="auto", random_state=seed, n_jobs=1)
    return np.asarray(learner.fit_transform(values), np.float64).round(DIGITS)


def separate(space: Floats, labels: Ints, seed: int) -> Ints:
    """Return for each image the answer of a logistic regression on the space that was fitted to the other folds."""
    from sklearn import linear_model, model_selection, pipeline, preprocessing

    smallest = int(np.unique(labels, return_counts=True)[1].min())
    cut = model_selection.StratifiedKFold(min(FOLDS, smallest), shuffle=True, random_state=seed)
    learner = linear_model.LogisticRegression(max_iter=1000, random_state=seed)
    line = pipeline.make_pipeline(preprocessing.StandardScaler(), learner)
    return np.asarray(model_selection.cross_val_predict(line, space, labels, cv=cut), np.int64)


def numbers_of(space: Floats, labels: Ints, answers: Ints, separated: Ints) -> dict[str, float]:
    """Return the balanced accuracy of the predictions, the silhouette and the linear separability of the space."""
    from sklearn.metrics import silhouette_score

    silhouette = 0.0 if (space == space[0]).all() else float(silhouette_score(space, labels))
    accuracy, separability = (_balanced(found, labels) for found in (answers, separated))
    return {"accuracy": accuracy, "silhouette": silhouette, "linear_separability": separability}


def _balanced(answers: ArrayLike, labels: ArrayLike) -> float:
    found, true = np.asarray(answers), np.asarray(labels)
    return float(np.mean([(found[true == c] == c).mean() for c in np.unique(true)]))
