"""Runs with extra images: what losses are told, what is recorded, and that a stop changes
nothing."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from taet import evaluate, methods
from taet.data import load
from taet.errors import UserError
from taet.losses.long_tail import log_prior
from taet.methods import Task
from taet.run.folder import RunFolder
from taet.settings import Outer
from taet.training import resume, train
from tests.training.conftest import AssertSame, BeforeStep, Tiny

COUNTS, EXPOSURE, DISTINCT = (50, 20, 10), (30.0, 25.0, 0.5), (60, 60, 60)
MIXED = {"data.extra_fraction": 0.5, "data.extra_source": "noise"}


def built(method: str, settings: dict[str, Any] | None = None, **more: Any) -> methods.Method:
    task = Task(
        COUNTS,
        (3, 8, 8),
        epochs=4,
        steps_per_epoch=3,
        milestones=(3,),
        drawn_class_counts=EXPOSURE,
        unique_class_counts=DISTINCT,
        **more,
    )
    return methods.build(method, settings, task)


def test_losses_that_undo_the_prior_are_told_that_of_the_batches() -> None:
    told = torch.tensor(EXPOSURE)
    for name, more in (
        ("at-bsl", {}),
        ("reat", {}),
        ("at", {"outer": Outer(name="balanced-softmax")}),
    ):
        assert torch.equal(built(name, **more).outer.label_loss.shift.float(), told.log())
    adjusted = built("at", outer=Outer(name="logit-adjustment", tau=2.0)).outer.label_loss.shift
    assert torch.allclose(adjusted, 2 * log_prior(told.double()))
    robal = built("robal")
    assert torch.allclose(robal.offset(), robal.constants["tau_p"] * log_prior(told))  # type: ignore[attr-defined]


def noise(path: Path, seed: int = 0) -> str:
    images = np.random.default_rng(seed).integers(0, 256, (40, 8, 8, 1), dtype=np.uint8)
    np.savez(path, images=images, labels=np.arange(40) % 10)
    return f"npz:{path}"


@pytest.mark.full
def test_a_run_that_is_killed_and_resumed_is_the_run_that_was_not(
    tiny: Tiny, tmp_path: Path, assert_same: AssertSame, killed_before: BeforeStep
) -> None:
    run = tiny("at-bsl", MIXED | {"data.extra": noise(tmp_path / "noise.npz")})
    train(run, out=tmp_path / "whole")
    with killed_before(4):  # in the second epoch
        train(run, out=tmp_path / "stopped")
    noise(tmp_path / "noise.npz", seed=1)
    with pytest.raises(
        UserError,
        match=r"the extra images are not those that .*stopped was started with; nothing was",
    ):
        resume(tmp_path / "stopped")
    noise(tmp_path / "noise.npz")
    resume(tmp_path / "stopped")
    assert_same(tmp_path / "stopped", tmp_path / "whole")


@pytest.mark.full
def test_source_and_counts_go_into_record_card_and_deviations(tiny: Tiny, tmp_path: Path) -> None:
    train(
        tiny("at", MIXED | {"data.extra": noise(tmp_path / "noise.npz"), "training.epochs": 1}),
        out=tmp_path / "run",
    )
    record = RunFolder(tmp_path / "run").record
    extra = record.data.extra
    assert [*extra["class_counts"]] == [4] * 10
    assert extra["draw"] == pytest.approx([0.1] * 10)
    assert sum(extra["exposure"]) == pytest.approx(sum(record.data.train.class_counts))
    sentence = "extra images, 16 of 32 in every batch: noise"
    assert record.deviations[-1].startswith(sentence)
    whole, raised = load("digits-lt", test="balanced").test, []
    given: list[dict[str, Any]] = [{}, {"images": whole.images, "labels": whole.labels}]
    given.append({"images": 255 - whole.images[:90], "labels": whole.labels[:90]})
    for place, images in enumerate(given):
        out = {"out": tmp_path / str(place)} if images else {}
        card = evaluate(tmp_path / "run", attacks=["clean"], probe=False, **images, **out)
        assert card.data["extra"]["source"] == "noise"
        raised.append([one["flag"] for one in card.flags if one["flag"] == "extra-not-compared"])
    assert raised == [[], [], ["extra-not-compared"]]
