"""Abstention: confidence thresholds per class, tested on validation images under attack."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field
from torch import nn

from taet.attacks.clean import Clean
from taet.attacks.spec import AttackSpec
from taet.attacks.suite import Suite
from taet.data import Dataset
from taet.data.dataset import Split
from taet.errors import UserError, located
from taet.evaluation.bundles import parse_attack
from taet.evaluation.runner import make_runner
from taet.fields import Count, Name, Sha256, Share, Whole, check_value
from taet.files import check_seal, read_json, seal, write_json
from taet.formatting import count, listed, percent
from taet.progress import Meter, Progress
from taet.shapes import check_shape
from taet.statistics import Floats, Ints
from taet.training.checkpoint import tensors_digest
from taet.training.environment import resolve_device
from taet.training.finished import load_model, load_run
from taet.training.folder import BEST, DELIVERED, RunFolder
from taet.training.record import RunRecord
from taet.training.resolve import learns_from_validation

LEVEL = 0.95
"""Confidence level of the guarantee for all classes together."""
CANDIDATES = (0.0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
"""Candidate thresholds. They are fixed in advance, and the tests are corrected for their number."""
ATTACKS = ("pgd-20", "pgd-20:target=runner-up", "pgd-20:objective=pm")
"""Untargeted; and for high confidence in a wrong class, by its probability and by the margin."""
SCHEMA = 1
WrongShare = Annotated[float, Field(gt=0, lt=1)]


def needed(share: float, tests: int) -> int:
    """Return the least number of answers, all correct, that show an error rate below `share` in one of `tests`.

    (1 - share)^n <= (1 - LEVEL) / tests.
    """
    return math.ceil(math.log((1 - LEVEL) / tests) / math.log1p(-share))


def upper_limits(wrong: ArrayLike, answered: ArrayLike, tests: int) -> Floats:
    """Return simultaneous upper limits of the rate of wrong answers, given `wrong` among `answered`.

    The limits are Clopper and Pearson's, one-sided, each at the error (1 - LEVEL) / tests (Bonferroni); 1 without
    answers. Source: Clopper, Pearson, Biometrika 26, 1934.
    """
    from scipy import special  # imported here to keep the command line fast

    k, n = np.asarray(wrong, np.float64), np.asarray(answered, np.float64)
    limits = special.betaincinv(k + 1, np.maximum(n - k, 1), 1 - (1 - LEVEL) / tests)
    return np.where(k < n, limits, 1.0)


def lowest_safe(wrong: ArrayLike, answered: ArrayLike, share: float) -> Ints:
    """Return the index of the lowest candidate threshold that keeps the error rate, (...); -1 for none.

    Both counts are (S, ..., C, K): of S adversaries, C predicted classes and K candidates. A candidate is safe if its
    upper limit is at most `share` under every adversary, with C K tests. The number of
    adversaries needs no correction: that all limits fail is no likelier than that one fails.
    """
    answers = np.asarray(answered)
    limits = upper_limits(wrong, answers, answers.shape[-1] * answers.shape[-2])
    safe = (limits <= share).all(0)
    return np.where(safe.any(-1), safe.argmax(-1), -1)


def counts(predictions: Ints, scores: ArrayLike, labels: Ints, classes: int) -> tuple[Ints, Ints]:
    """Return the numbers of wrong and of all answers per predicted class and candidate threshold, both (C, K).

    Predictions, scores (the probability of the predicted class) and labels are (N,).
    """
    above = np.asarray(scores)[:, None] >= np.asarray(CANDIDATES)
    answered, wrong = np.zeros((2, classes, len(CANDIDATES)), np.int64)
    np.add.at(answered, predictions, above)
    np.add.at(wrong, predictions, above & (predictions != labels)[:, None])
    return wrong, answered


@dataclass(frozen=True, eq=False)
class Thresholds:
    """The least probability at which a model answers, per predicted class, and the guarantee that follows."""

    share: float
    """Largest share of wrong answers of a class."""
    adversaries: tuple[str, ...]
    """Attacks under each of which the guarantee holds."""
    class_names: tuple[str, ...]
    values: Floats
    """(C,): least probability of the predicted class for an answer; inf for a class that is never answered."""
    images: int
    """Number of validation images."""
    refused: tuple[str, ...] = ()
    """Reasons why classes are never answered, one sentence each."""

    def answered(self, labels: Ints, probabilities: NDArray[np.floating[Any]]) -> NDArray[np.bool_]:
        """Return which images (N,) are answered, for predicted classes (N,), -1 for none, and probabilities (N, C)."""
        found: NDArray[np.bool_] = (labels >= 0) & (np.max(probabilities, 1, initial=0.0) >= self.values[labels])
        return found

    def __str__(self) -> str:
        return (
            f"at most {percent(self.share)} % of the answers of each predicted class are wrong under each of "
            f"{listed(self.adversaries)}, with {percent(LEVEL, 0)} % confidence for all classes together, for images "
            f"drawn as the {count(self.images)} validation images were"
        )

    def to_json(self) -> dict[str, Any]:
        """Return the guarantee and the thresholds as plain values; None for a class that is never answered."""
        limits = [float(value) if np.isfinite(value) else None for value in self.values]
        thresholds = dict(zip(self.class_names, limits, strict=True))
        return {"share": self.share, "under": list(self.adversaries), "level": LEVEL, "thresholds": thresholds}


class CountsUnder(TypedDict):
    """Validation answers under one adversary: counts per predicted class and candidate threshold."""

    attack: dict[str, Any]
    wrong: list[list[Whole]]
    answered: list[list[Whole]]


class StoredAbstention(TypedDict):
    """The content of abstention.json."""

    schema: Count
    weights_sha256: Sha256
    validation_sha256: Sha256
    images: Count
    candidates: list[Share]
    class_names: list[Name]
    under: list[CountsUnder]


def thresholds(
    run_dir: str | os.PathLike[str],
    share: float,
    *,
    attacks: Sequence[str] = ATTACKS,
    weights: str = DELIVERED,
    device: str = "auto",
    progress: Progress | None = None,
    model: nn.Module | None = None,
    dataset: Dataset | None = None,
) -> Thresholds:
    """Return the thresholds with which at most `share` of a model's answers of each predicted class are wrong.

    The guarantee holds with 95 % confidence for all classes together, if all images are clean, or all are attacked by
    the same one of `attacks`, or by any mixture of these that does not depend on the image. It covers images from the
    distribution of the validation images, with the same proportions of classes. One image of each group is used. Other
    adversaries, such as those that know the thresholds, are not covered. Answers under attack are measured once and
    stored in the run folder, sealed and with the SHA-256 of the weights; other shares need no further attack.

    For each predicted class c and each threshold t of CANDIDATES, N validation images are answered and W of them wrong.
    Given N, W is binomial, so that Clopper and Pearson's limit at 0.05 / (C K) tests the error rate. The
    lowest threshold that passes is used.

    Source: Angelopoulos, Bates, Candes, Jordan, Lei, "Learn then Test", arXiv:2110.01052, with Bonferroni's correction
    over classes and thresholds; for one class and no adversary, Geifman, El-Yaniv, NeurIPS 2017, arXiv:1705.08500.

    Raises:
        UserError: a run without a validation split, or one that selected its weights on it or learned from it; too few
            validation images for any class; an attack without a ball, or without probabilities; stored counts that
            were changed or belong to other weights.
    """
    check_value("abstain share", share, WrongShare)
    path = Path(run_dir)
    run, network, record = load_model(path, weights, model=model)
    specs: list[AttackSpec] = [Clean(name="clean")]
    for name in dict.fromkeys(attacks):
        spec = in_ball(parse_attack(name, run.evaluation, run.threat.eps))
        if isinstance(spec, Suite):
            raise UserError(f"abstain attacks: got {spec.name}, which returns no probabilities; allowed: e.g. pgd-20")
        spec.check_classes(record.data.num_classes)
        specs.append(spec)
    folder = RunFolder(path)
    file, digest = folder.abstention(weights), tensors_digest(network.state_dict())
    wanted = [spec.to_json() for spec in specs]
    stored = _read(file, digest, record) if file.exists() else None
    if stored is None or [one["attack"] for one in stored["under"]] != wanted:
        _check_unseen(record, weights)
        _, network, data, record = load_run(path, weights, model=model, dataset=dataset)
        split = _one_of_each_group(_validation(data, record), run.seed)
        images, least = len(split), needed(share, len(data.class_names) * len(CANDIDATES))
        if images < least:
            got = f"got {count(images)} validation images for a share of {share:g}"
            raise UserError(f"abstain: {got}; allowed: {count(least)} or more answered as one class")
        with folder.own():
            under = _attacked(network.to(resolve_device(device)), split, specs, folder, run.evaluation.seed, progress)
            stored = {
                "schema": SCHEMA,
                "weights_sha256": digest,
                "validation_sha256": split.sha256,
                "images": images,
                "candidates": list(CANDIDATES),
                "class_names": list(record.data.class_names),
                "under": under,
            }
            write_json(file, seal(stored))
    return _chosen(stored, share)


def in_ball(attack: AttackSpec) -> AttackSpec:
    """Refuse clean images and unbounded attacks, for which survival is not defined."""
    if not attack.bounded:
        advice = "" if attack.norm is None else f", or {attack.name} with a radius of its own, such as eps=0.5"
        raise UserError(f"attack: got {attack.name}, which has no ball; allowed: e.g. pgd-20, autoattack{advice}")
    return attack


def _check_unseen(record: RunRecord, weights: str) -> None:
    """Refuse weights that depend on the validation images, on which the error rate would look too small."""
    part = ""
    if weights == BEST or (record.selection.rule == "best-validation" and weights == DELIVERED):
        part = "the epoch of these weights was chosen by the validation images"
    elif learns_from_validation(record.run):
        part = f"{record.method} learned from the validation images"
    elif record.run.training.tuned:
        raise UserError(
            "abstain: taet tune chose the settings of this run by the validation images; allowed: another run"
        )
    if part:
        raise UserError(f"abstain: {part}; allowed: weights that do not depend on them, as with --selection last")


def _validation(data: Dataset, record: RunRecord) -> Split:
    """Return the validation images, and check that they are those that the run held out."""
    if data.validation is None:
        raise UserError("abstain: the run held out no validation images; train it with --data.validation 0.2")
    recorded = record.data.splits.get("validation")
    if recorded is not None and recorded.sha256 != data.validation.sha256:
        raise UserError("abstain: the validation images are not those of the run: their SHA-256 differs")
    return data.validation


def _one_of_each_group(split: Split, seed: int) -> Split:
    """Keep one random image of each group, because the images of a group are not independent."""
    if split.groups is None:
        return split
    order = np.random.default_rng(seed).permutation(len(split))
    _, first = np.unique(split.groups[order], return_index=True)
    return split.choose(np.sort(order[first]))


def _attacked(
    network: nn.Module,
    split: Split,
    specs: Sequence[AttackSpec],
    folder: RunFolder,
    seed: int,
    progress: Progress | None,
) -> list[CountsUnder]:
    """Answers on the validation images under each attack; finished batches survive an interruption."""
    state, meter = folder.state("abstention"), Meter(progress)
    runner = make_runner(network, split.images, split.labels, seed=seed, state_dir=state)
    every, classes = np.arange(len(split)), len(split.class_names)
    under: list[CountsUnder] = []
    with runner.still():
        for place, spec in enumerate(specs):
            meter.begin(later=sum(runner.expected(one, len(split)) for one in specs[place + 1 :]))
            found = runner.attack(spec, every, None, runner.units(spec), meter)
            assert found.scores is not None
            wrong, answered = counts(found.predictions, found.scores.max(1), runner.labels, classes)
            under.append({"attack": spec.to_json(), "wrong": wrong.tolist(), "answered": answered.tolist()})
    runner.clear()
    return under


def _read(file: Path, digest: str, record: RunRecord) -> StoredAbstention:
    """Read stored counts; changed ones, and those of other weights, are refused."""
    try:
        values = read_json(file, links=False)
        with located(str(file)):
            check_shape("", values, StoredAbstention)
        sealed = check_seal(file, values)
        with located(str(file)):
            _check_counts(values, sealed, digest, record)
    except UserError as error:
        raise UserError(f"{error}; remove {file.name} to measure again") from None
    found: StoredAbstention = values
    return found


def _check_counts(values: StoredAbstention, sealed: bool, digest: str, record: RunRecord) -> None:
    """Refuse stored counts without a checksum, of other weights, of another version or of another shape."""
    if not sealed:
        raise UserError("it has no checksum")
    if values["weights_sha256"] != digest or values["class_names"] != list(record.data.class_names):
        raise UserError("it was made with other weights than the run's")
    if values["schema"] != SCHEMA or values["candidates"] != list(CANDIDATES):
        raise UserError("another version of taet wrote it")
    wanted = (record.data.num_classes, len(CANDIDATES))
    for one in values["under"]:
        if any([*map(len, one[name])] != [wanted[1]] * wanted[0] for name in ("wrong", "answered")):
            raise UserError(f"got counts of another shape; allowed: {wanted}")


def _chosen(stored: StoredAbstention, share: float) -> Thresholds:
    """Return the lowest thresholds that pass, and the reasons why classes have none."""
    wrong, answered = (np.array([one[name] for one in stored["under"]]) for name in ("wrong", "answered"))
    names, adversaries = tuple(stored["class_names"]), tuple(str(one["attack"]["name"]) for one in stored["under"])
    places, least = lowest_safe(wrong, answered, share), needed(share, answered[0].size)
    few = answered[:, :, 0].min(0)
    refused = [
        f"no answer is '{name}': of {count(stored['images'])} validation images {count(few[label])} are answered so; "
        f"needed: {count(least)} or more, if none is wrong"
        if few[label] < least
        else f"no answer is '{name}': no threshold keeps its wrong answers to {percent(share)} % under each attack"
        for label, name in enumerate(names)
        if places[label] < 0
    ]
    if (places < 0).all():
        raise UserError(f"abstain: no class can be answered; {refused[int(few.argmax())]}")
    values = np.where(places < 0, np.inf, np.array(CANDIDATES)[places])
    return Thresholds(share, adversaries, names, values, stored["images"], tuple(refused))
