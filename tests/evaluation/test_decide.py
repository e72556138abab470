"""Evaluating two models until one is better: the flags of whole evaluations, resumed, shared, and refused."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

import taet
from taet.errors import UserError
from taet.evaluation import DecisionCard, GivenImages, ResultCard, StopRule, sequential
from taet.evaluation.batch_store import BatchStore
from taet.files import seal
from taet.settings import Evaluation

SETTINGS = {"eps": 0.1, "step_size": 0.05, "batch_size": 16}
COUNTS = [120, 80, 40, 40]


def drawn() -> tuple[nn.Module, nn.Module, np.ndarray, np.ndarray]:
    """A linear model of the patterns of four classes, a worse one, and long-tailed test images."""
    generator = np.random.default_rng(0)
    labels = generator.permutation(np.repeat(np.arange(4), COUNTS))
    patterns = generator.uniform(80, 176, (4, 6, 6, 1))
    images = np.clip(patterns[labels] + generator.normal(0, 40, (len(labels), 6, 6, 1)), 0, 255).astype(np.uint8)
    models = []
    for blur in (0.0, 0.8):
        model = nn.Sequential(nn.Flatten(), nn.Linear(36, 4))
        noise = generator.normal(0, blur, (4, 36))
        with torch.no_grad():
            model[1].weight.copy_(torch.from_numpy((patterns.reshape(4, 36) - 128) / 128 + noise * 0.6))
            model[1].bias.zero_()
        models.append(model)
    return models[0], models[1], images, labels


def decide(attacks: Any = "pgd-3", **change: Any) -> DecisionCard:
    better, worse, images, labels = drawn()
    first, second = change.pop("sides", (better, worse))
    given = GivenImages(images, labels, train_class_counts=change.pop("train_class_counts", COUNTS))
    options = {"names": ("A", "B"), "settings": SETTINGS, **change}
    return taet.decide(first, second, given, attacks=attacks, **options)


def test_flags_are_those_of_whole_evaluations_and_the_test_follows_from_them() -> None:
    found = decide()
    better, worse, images, labels = drawn()
    for model, flags in ((better, found.correct[0]), (worse, found.correct[1])):
        whole = taet.evaluate(model, images, labels, attacks=["pgd-3"], settings=SETTINGS).column("pgd-3")
        np.testing.assert_array_equal(flags[0], whole.correct[found.rows])
    assert (found.reason, found.better("balanced"), found.attack) == ("decided", "A", "pgd-3")
    assert 0 < found.rows.size < found.total == sum(COUNTS)
    np.testing.assert_array_equal(found.rows, sequential.rounds(labels, 0)[: len(found.rows)])
    assert found.classes.tolist() == [0, 0, 0, 1, 1, 2, 3]
    first, second = found.looks["balanced"]
    assert first[-1] >= np.log(40) > first[:-1].max()
    assert second[-1] < 0
    one = found.findings["balanced"]
    assert one.low is not None
    assert 0 < one.low < one.estimate
    assert found.findings["tail"].images == 2 * len(found.rows)  # of four classes the tail is two
    text = repr(found)
    assert re.match(
        rf"A against B under pgd-3 on arrays: decided for A by .*, after {found.rows.size} of 280 images\n", text
    )
    assert re.search(r"balanced accuracy, A minus B: above \+\d+\.\d points \(A is better; estimate \+\d", text)


def test_it_says_which_accuracy_decides_and_that_the_other_one_is_a_second_test() -> None:
    second = "is a second test with 0.05 of its own"
    found = decide("clean")
    assert f"error probability 0.05; balanced accuracy decides, accuracy of the tail {second}" in repr(found)
    found = decide("clean", rule=StopRule(of="tail"))
    assert f"error probability 0.05; accuracy of the tail decides, balanced accuracy {second}" in repr(found)
    alone = decide("clean", train_class_counts=None)
    assert "error probability 0.05; balanced accuracy decides\n" in repr(alone)


def test_swapped_sides_say_the_same_of_the_other_one() -> None:
    better, worse, *_ = drawn()
    found, swapped = decide(), decide(sides=(worse, better), names=("B", "A"))
    assert swapped.better("balanced") == "A"
    np.testing.assert_array_equal(found.rows, swapped.rows)
    for of, (first, second) in found.looks.items():
        np.testing.assert_allclose(swapped.looks[of], (second, first))


def test_equal_models_end_undecided_or_within_a_margin() -> None:
    better, *_ = drawn()
    with torch.no_grad():
        twin = nn.Sequential(nn.Flatten(), nn.Linear(36, 4))
        twin.load_state_dict(better.state_dict())
        twin[1].weight.mul_(2)
    even = decide(sides=(better, twin), attacks="clean", settings={"batch_size": 16})
    assert (even.reason, even.better("balanced")) == ("hopeless", "")
    assert "the images that are left could not decide" in even.sentence
    small = decide(sides=(better, twin), attacks="clean", settings={"batch_size": 16}, rule=StopRule(within=0.2))
    assert small.reason == "within"
    assert "within 20.0 points of each other" in small.sentence


def test_a_worst_case_decides_on_the_same_flags_as_its_column() -> None:
    found = decide(["pgd-3", "fgsm"], worst_case=True)
    better, _, images, labels = drawn()
    whole = taet.evaluate(better, images, labels, attacks=["pgd-3", "fgsm"], worst_case=True, settings=SETTINGS)
    np.testing.assert_array_equal(found.correct[0][0], whole.column("worst-case").correct[found.rows])
    assert [attack["name"] for attack in found.attacks] == ["clean", "fgsm", "pgd-3"]


def test_several_pairs_of_models_are_their_mean() -> None:
    better, worse, *_ = drawn()
    with torch.no_grad():
        other = nn.Sequential(nn.Flatten(), nn.Linear(36, 4))
        other.load_state_dict(worse.state_dict())
        other[1].weight.mul_(0.5)
    found = decide(sides=((better, worse), (worse, other)), attacks="clean")
    assert found.correct[0].shape[0] == 2
    gains = found.correct[0].mean(0) - found.correct[1].mean(0)
    np.testing.assert_allclose(found.gains["balanced"].differences, gains)
    assert "2 pairs of models" in repr(found)


def test_killed_anywhere_it_goes_on_and_nothing_is_done_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, put, left, total = decide(), BatchStore.put, [0], [0]

    def dying(self: BatchStore, key: str, arrays: Any) -> None:
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        total[0] += "blocks" in self.folder.name
        put(self, key, arrays)

    monkeypatch.setattr(BatchStore, "put", dying)
    for _ in range(100):
        left[0] = 9
        try:
            found = decide(out=tmp_path / "x")
            break
        except KeyboardInterrupt:
            continue
    np.testing.assert_array_equal(found.rows, expected.rows)
    np.testing.assert_array_equal(found.correct, expected.correct)
    assert found.cost["forwards"] == expected.cost["forwards"]
    assert total[0] == 2 * -(-len(found.rows) // 2)  # two rounds of 7 images are a block of at most 16
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["decision.json"]


@pytest.mark.full
def test_out_of_time_it_goes_on_later_with_what_it_has(tmp_path: Path) -> None:
    begun = decide(out=tmp_path / "x", time_budget=1e-9)
    assert (begun.reason, len(begun.rows)) == ("time", 2)
    ended = decide(out=tmp_path / "x")
    assert ended.cost["known"] == 2 * begun.rows.size
    np.testing.assert_array_equal(ended.correct, decide().correct)
    again = decide(out=tmp_path / "x")  # nothing is left to do
    assert again.to_json() == ended.to_json()
    stricter = decide(out=tmp_path / "x", rule=StopRule(alpha=0.001))
    assert len(stricter.rows) > len(ended.rows)
    assert stricter.cost["known"] == 2 * ended.rows.size


def test_a_decision_is_not_sought_again_by_another_rule(tmp_path: Path) -> None:
    """If any of several orders might decide, equal models would be told apart more often than alpha says."""
    decide("clean", out=tmp_path)
    before = (tmp_path / "decision.json").read_bytes()
    for rule, message in (
        (StopRule(order_seed=1), "is by another rule, order_seed 0: got 1; allowed: "),
        (StopRule(alpha=0.06), r"is by another rule, alpha 0\.05: got 0\.06; allowed: "),
        (StopRule(of="tail"), "is by another rule, of 'balanced': got 'tail'; allowed: "),
        (StopRule(within=0.02), r"is by another rule, within None: got 0\.02; allowed: "),
    ):
        with pytest.raises(UserError, match=message) as caught:
            decide("clean", out=tmp_path, rule=rule)
        assert "\n" not in str(caught.value)
    assert (tmp_path / "decision.json").read_bytes() == before


def test_out_of_time_it_does_not_go_on_by_another_rule(tmp_path: Path) -> None:
    assert decide("clean", out=tmp_path, time_budget=1e-9).reason == "time"
    with pytest.raises(UserError, match="order_seed 0: got 1"):
        decide("clean", out=tmp_path, rule=StopRule(order_seed=1))


def test_fewer_comparisons_do_not_make_a_decision_easier(tmp_path: Path) -> None:
    decide("clean", out=tmp_path, comparisons=2)
    with pytest.raises(UserError, match=r"alpha 0\.025: got 0\.05"):
        decide("clean", out=tmp_path)


def test_earlier_decisions_save_the_work_on_a_model_that_is_there_again() -> None:
    better, worse, *_ = drawn()
    third = nn.Sequential(nn.Flatten(), nn.Linear(36, 4))
    before = decide()
    assert decide(sides=(better, third), known=[before]).cost["known"] > 0
    assert decide(sides=(third, worse), known=[before], attacks="fgsm").cost["known"] == 0


def test_comparisons_share_the_error_probability() -> None:
    alone, one_of_five = decide(), decide(comparisons=5)
    assert one_of_five.rule.alpha == pytest.approx(0.01)
    assert len(one_of_five.rows) > len(alone.rows)
    assert "0.05 for 5 comparisons together" in repr(one_of_five)


def test_a_decision_comes_back_from_its_file_and_a_changed_one_does_not(tmp_path: Path) -> None:
    found = decide(out=tmp_path)
    assert DecisionCard.load(tmp_path).to_json() == found.to_json()
    path = tmp_path / "decision.json"
    stored = json.loads(path.read_text())
    assert stored["summary"]["images"] == found.rows.size
    assert stored["summary"]["images_by_class"] == (len(found.rows) * np.array([3, 2, 1, 1])).tolist()
    for change, message in (
        ({"reason": "exhausted"}, "by its flags: after round"),
        ({"rows": [stored["rows"][0]] * len(stored["rows"])}, "an image is there twice"),
        ({"classes": [0, 0, 1, 1, 2, 2, 3]}, "does not fit the number of test images"),
        ({"rule": {**stored["rule"], "alpha": 0.001}}, "by its flags: none"),
        ({"summary": {**stored["summary"], "images": 5}}, "summary images: stored 5"),
        ({"correct": stored["correct"][:1]}, "got 1 sides"),
        ({"rule": {**stored["rule"], "within": 7}}, "within"),
        ({"schema": 9}, "update taet"),
    ):
        path.write_text(json.dumps(seal({key: value for key, value in stored.items() if key != "sha256"} | change)))
        with pytest.raises(UserError, match=message):
            DecisionCard.load(path)
    path.write_text(json.dumps(stored | {"attack": "autoattack"}))
    with pytest.raises(UserError, match="changed"):
        DecisionCard.load(path)


def test_it_is_no_result_card_and_no_table_can_take_it_for_one(tmp_path: Path) -> None:
    decide(out=tmp_path)
    with pytest.raises(UserError, match="not a result card"):
        ResultCard.load(tmp_path / "decision.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attacks": ["pgd-3", "fgsm"]}, r"got the attacks pgd-3, fgsm; allowed: one that decides"),
        ({"attacks": "cw-l2"}, "'cw-l2', which is unbounded"),
        ({"attacks": "pdg-3"}, "did you mean"),
        (
            {"rule": StopRule(of="tail"), "train_class_counts": None},
            "got the tail; allowed: on data whose training counts",
        ),
        ({"sides": (drawn()[0], drawn()[0])}, "the same weights on both sides"),
        ({"sides": (drawn()[0], drawn()[:2])}, "got 1 and 2 models"),
    ],
)
def test_mistakes_are_one_line(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        decide(**change)
    assert "\n" not in str(caught.value)


def test_whole_settings_are_refused_and_not_ignored() -> None:
    with pytest.raises(UserError, match="settings: got Evaluation; allowed: a mapping of fields of Evaluation"):
        decide(settings=Evaluation(eps=0.1))


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    decide(out=tmp_path / "x")
    with pytest.raises(UserError, match="about other attacks; allowed: another folder"):
        decide("fgsm", out=tmp_path / "x")
    better, _, images, labels = drawn()
    taet.evaluate(better, images, labels, attacks=["clean"], settings=SETTINGS, out=tmp_path / "y")
    with pytest.raises(UserError, match="holds a run or a result card"):
        decide(out=tmp_path / "y")


ATTACKS = (["pgd-3"], ["autoattack-10"])


def work(number: int, folder: Path) -> None:
    """What each process does."""
    sys.modules["taet.attacks.autoattack"].QUERIES = 20
    torch.set_num_threads(1)
    meeting_point = (folder / "meeting-point").as_uri()
    wait = timedelta(seconds=120)
    dist.init_process_group("gloo", init_method=meeting_point, rank=number, world_size=2, timeout=wait)
    for attack in ATTACKS:
        found = decide(attack, out=folder / f"{attack[0]}")
        np.savez(folder / f"{attack[0]}-{number}.npz", correct=np.array(found.correct))
    dist.destroy_process_group()


@pytest.mark.full
def test_several_processes_stop_where_one_does(
    tmp_path: Path, side_by_side: Callable[[str, Path, int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["taet.attacks.autoattack"], "QUERIES", 20)
    side_by_side(__file__, tmp_path, 2)
    for attack in ATTACKS:
        expected, shared = decide(attack), DecisionCard.load(tmp_path / attack[0])
        np.testing.assert_array_equal(shared.rows, expected.rows)
        np.testing.assert_array_equal(shared.correct, expected.correct)
        assert (shared.reason, shared.cost["forwards"]) == (expected.reason, expected.cost["forwards"])
        for number in range(2):
            with np.load(tmp_path / f"{attack[0]}-{number}.npz") as seen:
                np.testing.assert_array_equal(seen["correct"], expected.correct)


if __name__ == "__main__":
    work(int(sys.argv[1]), Path(sys.argv[2]))
