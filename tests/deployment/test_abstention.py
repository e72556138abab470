"""A model answers only where its validation answers under attack show that few are wrong; the promise is simulated."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy import stats

import taet
from taet import methods, protocols
from taet.data import Dataset
from taet.deployment import abstention, predict, thresholds
from taet.deployment.abstention import CANDIDATES, counts, lowest_safe, needed, upper_limits
from taet.errors import UserError
from taet.files import seal
from taet.settings import override
from taet.training.resolve import learns_from_validation

FAST = ("pgd-2",)
TRIALS = 4000
ABOVE = 1 - np.array(CANDIDATES)
"""Share of the scores at or above each candidate, where scores are uniform in [0, 1]."""


def cells(share: float, rise: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Chance of a right and of a wrong answer by predicted class and threshold, (C, K), in closed form.

    Scores are uniform; the share of wrong answers above a threshold t is `share` - rise t of each class.
    """
    classes = np.array([0.5, 0.3, 0.2])[:, None]
    wrong = classes * ABOVE * (share - rise * np.array(CANDIDATES))
    return classes * ABOVE - wrong, wrong


def drawn(share: float, images: int, rise: float = 0.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Counts of wrong and of all answers, (TRIALS, C, K), of so many independent validation images."""
    right, wrong = cells(share, rise)
    steps = np.stack([cell - np.append(cell[:, 1:], np.zeros((3, 1)), 1) for cell in (right, wrong)])
    found = np.random.default_rng(seed).multinomial(images, steps.ravel() / steps.sum(), TRIALS)
    above = found.reshape(TRIALS, *steps.shape)[..., ::-1].cumsum(-1)[..., ::-1]
    return above[:, 1], above.sum(1)


def false_claims(places: np.ndarray, truth: np.ndarray, share: float) -> float:
    """Share of the trials in which a class is answered although more than `share` of its answers are wrong."""
    risk = np.append(truth, np.zeros((3, 1)), 1)[np.arange(3), places]  # of place -1: never answered
    return float((risk > share).any(1).mean())


@pytest.mark.parametrize(("share", "images", "rise"), [(0.1, 1500, 0.0), (0.3, 400, 0.0), (0.3, 4000, 0.05)])
def test_false_promises_are_rare(share: float, images: int, rise: float) -> None:
    true = share * 1.02
    truth = true - rise * np.array(CANDIDATES)[None] + np.zeros((3, 1))
    wrong, answered = drawn(true, images, rise)
    made = false_claims(lowest_safe(wrong[None], answered[None], share), truth, share)
    assert made <= stats.binom.ppf(0.999, TRIALS, 0.05) / TRIALS
    # The same limits without the number of tests promise too much: the test can fail.
    careless = upper_limits(wrong, answered, 1) <= share
    places = np.where(careless.any(-1), careless.argmax(-1), -1)
    assert rise or false_claims(places, truth, share) > 0.08


def test_images_drawn_class_by_class_break_no_promise() -> None:
    """A validation split has a fixed number of images of each class, not a drawn one."""
    share, images, draws = 0.3, np.array([300, 180, 120]), np.random.default_rng(1)
    confusion = np.array([[0.70, 0.20, 0.10], [0.20, 0.70, 0.10], [0.2, 0.2, 0.6]])
    joint = (images / images.sum())[:, None] * confusion
    truth = 1 - np.diag(joint) / joint.sum(0)
    bins = np.append(ABOVE[:-1] - ABOVE[1:], ABOVE[-1])
    rows = zip(images, confusion, strict=True)
    found = np.stack([draws.multinomial(n, np.outer(row, bins).ravel(), TRIALS) for n, row in rows], 1)
    above = found.reshape(TRIALS, 3, 3, len(CANDIDATES))[..., ::-1].cumsum(-1)[..., ::-1]
    answered = above.sum(1)
    wrong = answered - np.stack([above[:, c, c] for c in range(3)], 1)
    truths = np.repeat(truth[:, None], len(CANDIDATES), 1)
    tight = float(truth.min()) * 0.98
    assert tight < share
    made = false_claims(lowest_safe(wrong[None], answered[None], tight), truths, tight)
    assert made <= stats.binom.ppf(0.999, TRIALS, 0.05) / TRIALS


def test_safe_thresholds_are_found_where_there_are_any() -> None:
    wrong, answered = drawn(0.05, 6000)
    places = lowest_safe(wrong[None], answered[None], 0.1)
    assert (places == 0).mean() > 0.9  # all images are answered
    both = lowest_safe(np.stack([wrong, answered]), np.stack([answered, answered]), 0.1)
    assert (both == -1).all()  # under the second adversary every answer is wrong


def test_limits_are_clopper_and_pearsons() -> None:
    limits = upper_limits([0, 3, 20, 20, 0], [50, 50, 50, 20, 0], 33)
    for place, (k, n) in enumerate([(0, 50), (3, 50), (20, 50)]):
        assert stats.binom.cdf(k, n, limits[place]) == pytest.approx(0.05 / 33)
    assert limits[3:].tolist() == [1.0, 1.0]


@pytest.mark.parametrize(("share", "tests"), [(0.1, 110), (0.2, 77), (0.01, 22)])
def test_the_least_number_of_answers(share: float, tests: int) -> None:
    least = needed(share, tests)
    assert upper_limits(0, least, tests) <= share < upper_limits(0, least - 1, tests)


def test_counts_by_predicted_class_and_threshold() -> None:
    predictions, labels = np.array([0, 0, 1, 2, 0]), np.array([0, 1, 1, 0, 0])
    wrong, answered = counts(predictions, [0.95, 0.6, 0.5, 1.0, 0.1], labels, 3)
    assert answered[:, 0].tolist() == [3, 1, 1]
    assert answered[:, CANDIDATES.index(0.6)].tolist() == [2, 0, 1]  # at the threshold is answered
    assert wrong[:, CANDIDATES.index(0.6)].tolist() == [1, 0, 1]
    assert wrong[:, CANDIDATES.index(0.7)].tolist() == [0, 0, 1]


@pytest.fixture(scope="module")
def noisy(dataset: Dataset) -> Dataset:
    """Validation images of the same colours as the training images, of which the run saw none."""
    draws = np.random.default_rng(5)
    labels = np.arange(450) % 3
    colours = 110 + 40 * np.eye(3)[labels] + draws.normal(0, 12, (450, 3))
    images = np.clip(colours[:, None, None] + draws.normal(0, 40, (450, 16, 16, 3)), 0, 255).astype(np.uint8)
    split = dataclasses.replace(dataset.test, images=images, labels=labels, indices=np.arange(450))
    return dataclasses.replace(dataset, validation=split)


@pytest.fixture(scope="module")
def run(noisy: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that held out validation images."""
    folder = tmp_path_factory.mktemp("abstaining") / "run"
    given = {"model.name": "resnet8", "threat.eps": 0.02, "threat.steps": 1, "training.epochs": 4}
    given |= {"training.batch_size": 8, "training.monitor_every": 0, "training.precision": "float32"}
    given |= {"training.threads": 1, "evaluation.step_size": 0.02, "training.lr": 0.05}
    taet.train(override(protocols.taet("at"), given), out=folder, dataset=noisy)
    return folder


@pytest.fixture(scope="module")
def rule(run: Path, noisy: Dataset) -> abstention.Thresholds:
    return thresholds(run, 0.5, attacks=FAST, dataset=noisy)


def test_answers_of_a_run(run: Path, noisy: Dataset, rule: abstention.Thresholds) -> None:
    """Without an attack the share is kept on the images that chose the thresholds; the file says what was counted."""
    found = predict(run, noisy.validation.images, abstain=0.5, abstain_attacks=FAST)  # type: ignore[union-attr]
    labels = noisy.validation.labels  # type: ignore[union-attr]
    assert found.answered is not None
    assert found.answered.sum() > 0
    stored = json.loads((run / "abstention.json").read_text())
    assert [one["attack"]["name"] for one in stored["under"]] == ["clean", "pgd-2"]
    for label in range(3):
        mine = found.answered & (found.labels == label)
        if math.isfinite(rule.values[label]):
            place = CANDIDATES.index(rule.values[label])
            assert stored["under"][0]["answered"][label][place] == mine.sum()
            assert stored["under"][0]["wrong"][label][place] == (mine & (labels != label)).sum()
        else:
            assert not mine.any()
    assert not (run / "abstention-state").exists()
    row = found.rows()[0]
    assert row["answered"] is bool(found.answered[0])
    assert found.to_json()["abstain"]["under"] == ["clean", "pgd-2"]
    assert "answered" in found.to_csv().splitlines()[0]
    assert repr(found).endswith(f"{found.answered.sum()} of 450 answered")


def test_the_first_attack_serves_every_share(run: Path, rule: abstention.Thresholds) -> None:
    """Neither data nor attacks are needed again, and a smaller share has higher thresholds."""
    before = (run / "abstention.json").stat().st_mtime_ns
    again = thresholds(run, 0.5, attacks=FAST)
    np.testing.assert_array_equal(again.values, rule.values)
    assert (thresholds(run, 0.45, attacks=FAST).values >= rule.values).all()
    assert (run / "abstention.json").stat().st_mtime_ns == before
    assert "at most 50.0 % of the answers of each predicted class are wrong under each of clean and pgd-2" in str(rule)


@pytest.mark.usefixtures("rule")
@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"images": 451}, "was changed or damaged"),
        ({"weights_sha256": "ab" * 32, "seal": True}, "made with other weights than the run's; remove abstention.json"),
        ({"candidates": [0.5], "seal": True}, "another version of taet wrote it"),
        ({"under": [], "images": "x"}, "images: got 'x'"),
        ({"sha256": None}, "it has no checksum"),
    ],
)
def test_a_changed_file_is_refused(change: dict[str, Any], match: str, run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    stored = json.loads((copy / "abstention.json").read_text()) | change
    stored = {name: value for name, value in stored.items() if value is not None}
    resealed = stored.pop("seal", False)
    (copy / "abstention.json").write_text(json.dumps(seal(stored) if resealed else stored))
    with pytest.raises(UserError, match=match) as caught:
        thresholds(copy, 0.5, attacks=FAST)
    assert str(caught.value).count(str(copy)) == 1
    assert str(caught.value).endswith("; remove abstention.json to measure again")


@pytest.mark.full
def test_what_is_refused(run: Path, trained: Path, noisy: Dataset, dataset: Dataset, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    for share in (0.0, 1.0):
        with pytest.raises(UserError, match=f"abstain share: got {share:g}; allowed: above 0, below 1"):
            thresholds(run, share, attacks=FAST)
    with pytest.raises(UserError, match="got autoattack, which returns no probabilities; allowed: "):
        thresholds(run, 0.5, attacks=["autoattack"])
    with pytest.raises(UserError, match="attack: got clean, which has no ball"):
        thresholds(run, 0.5, attacks=["clean"])
    with pytest.raises(UserError, match=r"abstain: the run held out no validation images; train it with --data\.valid"):
        thresholds(trained, 0.5, attacks=FAST, dataset=dataset)
    (copy / "abstention.json").unlink(missing_ok=True)
    least = needed(0.01, 33)
    with pytest.raises(UserError, match=f"got 450 validation images for a share of 0.01; allowed: {least} or more"):
        thresholds(copy, 0.01, attacks=FAST, dataset=noisy)
    other = dataclasses.replace(noisy, validation=noisy.test)
    with pytest.raises(UserError, match="validation images are not those of the run"):
        thresholds(copy, 0.5, attacks=FAST, dataset=other)
    record = json.loads((copy / "run.json").read_text())
    assert not (copy / "abstention.json").exists()
    assert record["selection"]["rule"] == "last"
    with pytest.raises(UserError, match=r"no class can be answered; no answer is '\w+': .* needed: \d+ or more"):
        thresholds(run, 0.02, attacks=FAST, dataset=noisy)


def test_a_run_that_was_tuned_on_the_validation_images_is_refused() -> None:
    run = override(protocols.taet("at"), {"training.tuned": 40})
    record: Any = SimpleNamespace(run=run, method="at", selection=SimpleNamespace(rule="last"))
    with pytest.raises(UserError, match="abstain: taet tune chose the settings of this run by the validation images"):
        abstention._check_unseen(record, "model")


@pytest.mark.parametrize(
    ("method", "settings", "learns"),
    [("at", {}, False), ("wat", {}, True), ("cfa", {}, False), ("cfa", {"gate": "relative"}, True)],
)
def test_which_methods_learn_from_validation_images(method: str, settings: dict[str, Any], learns: bool) -> None:
    run = override(protocols.taet(method), {"settings": methods.find(method).Config(**settings)})
    assert learns_from_validation(run) is learns


def test_one_image_of_each_group_is_used(noisy: Dataset) -> None:
    split = dataclasses.replace(noisy.validation, groups=np.arange(450) // 3)  # type: ignore[type-var]
    kept = abstention._one_of_each_group(split, 0)  # type: ignore[arg-type]
    assert len(kept) == 150
    assert sorted(kept.groups.tolist()) == list(range(150))  # type: ignore[union-attr]
    assert len(set((kept.indices % 3).tolist())) == 3
