"""Runs with extra images: what losses are told, what is recorded, and that a stop changes nothing."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from taet import evaluate, methods, report
from taet.cli import main
from taet.data import load
from taet.data.dataset import Split
from taet.errors import UserError
from taet.evaluation.card import ExtraAbout, ResultCard
from taet.losses.long_tail import log_prior, rebalancing_weights
from taet.losses.tail_margin import tail_classes
from taet.methods import Task
from taet.methods.robust_lt import class_budgets
from taet.settings import Outer, Run, from_json, to_json
from taet.shapes import check_shape
from taet.training import fit, resume, train
from taet.training.extra import kept_by
from taet.training.folder import RunFolder
from taet.training.record import ExtraRecord

AssertSame = Callable[[Path, Path], None]
COUNTS, EXPOSURE, DISTINCT = (50, 20, 10), (30.0, 25.0, 25.0), (60, 60, 60)
MIXED = {"data.extra_fraction": 0.5, "data.extra_classes": "inverse", "data.extra_source": "noise"}


def built(method: str, settings: dict[str, Any] | None = None, **more: Any) -> methods.Method:
    task = Task(
        COUNTS, (3, 8, 8), epochs=4, steps_per_epoch=3, milestones=(3,), exposure=EXPOSURE, distinct=DISTINCT, **more
    )
    return methods.build(method, settings, task)


def test_losses_that_undo_the_prior_are_told_that_of_the_batches() -> None:
    told = torch.tensor(EXPOSURE)
    for name, more in (("at-bsl", {}), ("reat", {}), ("at", {"outer": Outer(name="balanced-softmax")})):
        assert torch.equal(built(name, **more).outer.shift.float(), told.log())
    adjusted = built("at", outer=Outer(name="logit-adjustment", tau=2.0)).outer.shift
    assert torch.allclose(adjusted, 2 * log_prior(told.double()))
    robal = built("robal")
    assert torch.allclose(robal.offset(), robal.constants.tau_p * log_prior(told))  # type: ignore[attr-defined]


def test_weights_and_budgets_are_those_of_what_is_shown_and_margins_those_of_images() -> None:
    told = torch.tensor(EXPOSURE)
    assert torch.equal(built("reat").weights, rebalancing_weights(told, told))  # type: ignore[arg-type]
    assert torch.equal(built("robust-lt").rule.budgets, class_budgets(told, 0.3))  # type: ignore[union-attr]
    balanced = built("at", outer=Outer(name="class-balanced", beta=0.99)).outer
    assert torch.allclose(balanced.balanced, built("at", outer=Outer(name="class-balanced", beta=0.99)).outer.balanced)
    assert balanced.balanced[1] == balanced.balanced[2] > balanced.balanced[0]
    assert built("at", outer=Outer(name="ldam")).outer.margins.unique().numel() == 1  # 60 images of each class


def test_groups_of_classes_stay_those_of_the_real_images() -> None:
    counts = tuple(range(100, 0, -10))
    task = Task(counts, (3, 8, 8), epochs=4, steps_per_epoch=3, exposure=tuple(map(float, counts[::-1])))
    method = methods.build("reat", None, task)
    assert method.task.ranks == tuple(range(10))
    assert torch.equal(method.tail, tail_classes(torch.tensor(counts)))  # type: ignore[arg-type]
    assert 0 < int(method.tail.sum()) < 10  # type: ignore[union-attr, operator, arg-type]


def noise(path: Path, seed: int = 0) -> str:
    images = np.random.default_rng(seed).integers(0, 256, (40, 8, 8, 1), dtype=np.uint8)
    np.savez(path, images=images, labels=np.arange(40) % 10)
    return f"npz:{path}"


def test_a_fraction_of_0_is_no_extra_images(tiny: Callable[..., Run], tmp_path: Path, assert_same: AssertSame) -> None:
    settings = MIXED | {"data.extra": "npz:not-there.npz", "data.extra_fraction": 0.0}
    train(tiny("at-bsl"), out=tmp_path / "without")
    train(tiny("at-bsl", settings), out=tmp_path / "with")
    # The settings differ, and so do the records; weights and curves do not.
    for name in ("run.json", "done"):
        (tmp_path / "with" / name).write_bytes((tmp_path / "without" / name).read_bytes())
    assert_same(tmp_path / "with", tmp_path / "without")


def test_a_run_that_is_killed_and_resumed_is_the_run_that_was_not(
    tiny: Callable[..., Run], tmp_path: Path, assert_same: AssertSame, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tiny("at-bsl", MIXED | {"data.extra": noise(tmp_path / "noise.npz")})
    train(run, out=tmp_path / "whole")
    step, calls = fit.training_step, itertools.count()

    def stopping(*args: Any, **options: Any) -> Any:
        if next(calls) == 4:  # in the second epoch
            raise KeyboardInterrupt
        return step(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(fit, "training_step", stopping)
        with pytest.raises(KeyboardInterrupt):
            train(run, out=tmp_path / "stopped")
    noise(tmp_path / "noise.npz", seed=1)
    with pytest.raises(UserError, match=r"the extra images are not those that .*stopped was started with; nothing was"):
        resume(tmp_path / "stopped")
    noise(tmp_path / "noise.npz")
    resume(tmp_path / "stopped")
    assert_same(tmp_path / "stopped", tmp_path / "whole")


@pytest.mark.full
def test_source_and_what_it_saw_go_into_record_card_and_report(tiny: Callable[..., Run], tmp_path: Path) -> None:
    settings = MIXED | {"data.extra": noise(tmp_path / "noise.npz"), "data.extra_trained_on": "balanced-original"}
    train(tiny("at", settings), out=tmp_path / "mixed")
    train(tiny("at"), out=tmp_path / "plain")
    record = RunFolder(tmp_path / "mixed").record
    assert record.data.extra is not None
    sentence = (
        "extra images, 16 of 32 in every batch, by the rule inverse: noise; saw the removed tail: yes; labels: given; "
        "left out as repeats of images in test: 0 exact, 0 near"
    )
    assert record.data.extra.sentence == sentence == record.deviations[-1]
    assert record.data.extra.left_out == {"test": [0, 0]} or record.data.extra.left_out == {"test": (0, 0)}
    assert sum(record.data.extra.exposure) == pytest.approx(sum(record.data.train.class_counts))
    for name in ("mixed", "plain"):
        evaluate(tmp_path / name, attacks=["clean", "fgsm"])
    card = ResultCard.load(tmp_path / "mixed")
    about = card.data["extra"]
    assert (about["saw_removed_tail"], about["trained_on"], about["labels"]) == ("yes", "balanced-original", "given")
    assert (about["kept"], about["judge_sha256"], about["left_out"]) == (1.0, None, {"test": [0, 0]})
    assert about["left_out_by"].startswith("pixels, and 8 x 8 means")
    assert sentence in card.deviations
    assert "extra" not in ResultCard.load(tmp_path / "plain").data
    page = report.write([tmp_path / "mixed", tmp_path / "plain"], tmp_path / "report.html").read_text()
    assert "saw the removed tail" in page
    assert sentence in page


@pytest.mark.full
def test_other_test_images_than_those_compared_raise_a_flag(tiny: Callable[..., Run], tmp_path: Path) -> None:
    whole = load("digits-lt", test="balanced").test
    for name, extra in (("made", {"data.extra": noise(tmp_path / "noise.npz")}), ("copied", {"data.extra": "copies"})):
        one = MIXED | {"training.epochs": 1} | extra
        if name == "copied":
            del one["data.extra_source"]
        train(tiny("standard", one), out=tmp_path / name)
        given: list[dict[str, Any]] = [{}, {"images": whole.images, "labels": whole.labels}]
        given.append({"images": 255 - whole.images[:90], "labels": whole.labels[:90]})
        raised = []
        for place, images in enumerate(given):
            out = {} if not images else {"out": tmp_path / f"{name}{place}"}
            card = evaluate(tmp_path / name, attacks=["clean"], probe=False, **images, **out)
            raised.append([one["flag"] for one in card.flags if one["flag"] == "extra-not-compared"])
        assert raised == [[], [], [] if name == "copied" else ["extra-not-compared"]]


def test_the_search_for_repeats_shows_its_progress(
    tiny: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taet.progress.QUIET_SECONDS", 0.0)
    told: list[tuple[float, float, str]] = []
    run = tiny("standard", MIXED | {"training.epochs": 1, "data.extra": noise(tmp_path / "noise.npz")})
    train(run, out=tmp_path / "run", progress=lambda *said: told.append(said))
    assert (600, 600, "looking for near-duplicates") in told


class Prefers(nn.Module):
    """Finds an image the likelier of class 1 the brighter it is."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        value = x.mean((1, 2, 3))
        return torch.stack([-value, value], 1)


def test_a_filter_keeps_the_likeliest_of_each_class() -> None:
    images = np.zeros((7, 4, 4, 1), np.uint8) + np.array([9, 1, 5, 7, 2, 8, 3], np.uint8)[:, None, None, None]
    split = Split(images, np.array([0, 0, 0, 1, 1, 1, 1]), ("a", "b"), np.arange(7))
    kept = kept_by(Prefers(), split, 0.5, torch.device("cpu"))
    assert kept.tolist() == [1, 2, 3, 5]  # the two darkest of three, the two brightest of four
    assert kept_by(Prefers(), split, 1.0, torch.device("cpu")).tolist() == list(range(7))


def test_a_filter_has_seen_the_same_training_images(tiny: Callable[..., Run], tmp_path: Path) -> None:
    train(tiny("standard"), out=tmp_path / "judge")
    settings = MIXED | {"data.extra": noise(tmp_path / "noise.npz"), "data.extra_filter": 0.5}
    settings |= {"data.extra_filter_model": str(tmp_path / "judge"), "training.epochs": 1}
    train(tiny("at", settings), out=tmp_path / "run")
    found = RunFolder(tmp_path / "run").record.data.extra
    assert found is not None
    assert found.class_counts == (2,) * 10
    assert found.judge_sha256
    assert f"; filter: kept 0.5 of each class by the model {found.judge_sha256[:12]}; left out" in found.sentence
    about = evaluate(tmp_path / "run", attacks=["clean"], probe=False).data["extra"]
    assert (about["kept"], about["judge_sha256"]) == (0.5, found.judge_sha256)
    with pytest.raises(
        UserError, match=r"data extra filter model: '.*judge' was trained on other images; allowed: a run"
    ):
        train(tiny("at", settings | {"data.max_count": 12}), out=tmp_path / "other")


def test_a_filter_that_may_have_seen_other_images_is_refused(tiny: Callable[..., Run], tmp_path: Path) -> None:
    extra, one = noise(tmp_path / "noise.npz"), {"training.epochs": 1}
    train(tiny("standard", one | MIXED | {"data.extra": extra}), out=tmp_path / "fed")
    train(tiny("standard", one | {"data.extra": "copies"}), out=tmp_path / "copied")
    weights = str(tmp_path / "fed" / "model.safetensors")
    train(tiny("standard", one | {"model.weights": weights}), out=tmp_path / "tuned")
    settings = one | MIXED | {"data.extra": extra, "data.extra_filter": 0.5}
    for name, why in (("fed", "with extra images"), ("tuned", "from pretrained weights")):
        with pytest.raises(UserError, match=rf"^data extra filter model: '.*{name}' was trained {why}; allowed: a run"):
            train(tiny("at", settings | {"data.extra_filter_model": str(tmp_path / name)}), out=tmp_path / "run")
    train(tiny("at", settings | {"data.extra_filter_model": str(tmp_path / "copied")}), out=tmp_path / "run")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "--data.extra npz:{} --data.extra-source x --data.extra-fraction 1.5",
            "data extra fraction: got 1.5; allowed: 0 up to, not including, 1",
        ),
        ("--data.extra npz:{}", "without a source; add --data.extra-source"),
        ("--data.extra npz:nowhere.npz --data.extra-source x", "nowhere.npz"),
        ("--data.extra copies --sampling class-balanced", "data extra: got sampling class-balanced; allowed: shuffled"),
        ("--data.extra npz:{} --data.extra-source x --data.extra-classes uniform", "no image of class '9'"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    words: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (9, 8, 8, 1), dtype=np.uint8)
    np.savez(tmp_path / "nine.npz", images=images, labels=np.arange(9))  # none of class 9
    call = f"train at --model resnet8 --epochs 1 --out {tmp_path / 'run'} {words.format(tmp_path / 'nine.npz')}"
    assert main(call.split()) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert message in lines[-1]
    assert lines[-1].startswith("taet: error:")
    assert not (tmp_path / "run").exists()


def test_a_record_of_an_older_version_has_no_extra_images(tiny: Callable[..., Run]) -> None:
    values = to_json(tiny("at"))
    values["data"] = {name: value for name, value in values["data"].items() if not name.startswith("extra")}
    assert from_json(Run, json.loads(json.dumps(values)) | {"settings": None}).data == tiny("at").data


def test_the_sentence_says_labels_filter_and_what_was_left_out_as_far_as_recorded() -> None:
    known = {"source": "noise.", "saw_removed_tail": "no", "sha256": "ab" * 32, "per_batch": 1, "batch_size": 2}
    start = "extra images, 1 of 2 in every batch, by the rule prior: noise; saw the removed tail: no"
    left = {"validation": (0, 1), "test": (2, 3)}
    more: list[tuple[dict[str, Any], str]] = [
        ({}, ""),  # a record of an older version
        ({"labels": "pseudo"}, "; labels: pseudo"),
        ({"kept": 0.25, "judge_sha256": "cd" * 32}, "; filter: kept 0.25 of each class by the model cdcdcdcdcdcd"),
        ({"left_out": left}, "; left out as repeats of images in validation and test: 2 exact, 4 near"),
        ({"left_out": {"test": (0, 0)}}, "; left out as repeats of images in test: 0 exact, 0 near"),
    ]
    for values, end in more:
        assert ExtraRecord(**known, classes="prior", **values).sentence == start + end  # type: ignore[arg-type]


def test_a_card_checks_what_it_says_of_extra_images(tiny: Callable[..., Run], tmp_path: Path) -> None:
    train(tiny("standard", {"training.epochs": 1, "data.extra": "copies", "data.extra_fraction": 0.5}), out=tmp_path)
    stored = evaluate(tmp_path, attacks=["clean"], probe=False).data["extra"]
    assert (stored["trained_on"], stored["left_out"]) == ("this-set", {})
    later = ("trained_on", "labels", "kept", "judge_sha256", "left_out", "left_out_by")
    check_shape("extra", {name: value for name, value in stored.items() if name not in later}, ExtraAbout)
    for name, wrong in (("labels", 3), ("kept", -1.0), ("judge_sha256", "x"), ("left_out", {"test": [-1, 0]})):
        with pytest.raises(UserError, match=name):
            check_shape("extra", stored | {name: wrong}, ExtraAbout)
