"""What `check` finds about sound models and spoilt ones; run folders are in
training/test_folder.py."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from taet.errors import UserError
from taet.evaluation import Check, check
from taet.machine import using
from tests.evaluation.conftest import Change, Changed

LEVELS = (0.2, 0.4, 0.6, 0.8)


class Brightness(nn.Module):
    """Right on every image below: the logit of a class falls with the distance of the mean grey
    from its level."""

    def __init__(self, centres: Any = LEVELS, scale: float = 50.0) -> None:
        super().__init__()
        self.centres, self.scale = nn.Parameter(torch.tensor(centres)), scale

    def forward(self, x: Tensor) -> Tensor:
        return -self.scale * (x.mean((1, 2, 3))[:, None] - self.centres).square()


def changed(change: Change) -> nn.Module:
    return Changed(change, Brightness())


@pytest.fixture(scope="module")
def data() -> tuple[np.ndarray, np.ndarray]:
    """120 images of four levels of grey, uint8, and their labels."""
    labels = np.arange(120) % 4
    noise = np.random.default_rng(0).normal(0, 10, (120, 8, 8, 3))
    levels = 255 * np.array(LEVELS)[labels][:, None, None, None]
    return np.clip(levels + noise, 0, 255).astype(np.uint8), labels


def wrong(found: Check) -> dict[str, str]:
    return {finding.what: finding.text for finding in found.findings if not finding.ok}


def test_a_sound_model_is_ok_and_left_as_it_was(data: tuple[np.ndarray, np.ndarray]) -> None:
    model, state = Brightness().train(), torch.random.get_rng_state()
    found = check(model, *data, attacks=["clean", "pgd-20"])
    assert found.ok
    parts = [
        "4 parameters, 4 logits for images of 3 x 8 x 8",
        "balanced accuracy 100.0 %",
        "clean and pgd-20: about",
    ]
    assert [text for text in parts if text not in str(found)] == []
    assert model.training
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_model_is_tried_and_timed_on_the_cores_that_are_idle(
    data: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        sys.modules["taet.evaluation.check"], "idle_threads", lambda: (1, "machine busy")
    )
    model, seen = Brightness(), set[int]()
    model.register_forward_pre_hook(lambda *_: seen.add(torch.get_num_threads()))
    with using(2):
        check(model, *data, attacks=["clean", "pgd-20"])
        assert torch.get_num_threads() == 2
    assert 1 in seen


@pytest.mark.parametrize(
    ("model", "what", "message"),
    [
        (
            changed(lambda model, x: model(x).roll(1, 1)),
            "accuracy",
            "are weights, normalisation, order of the classes",
        ),
        (changed(lambda model, x: (model(x) + 6).sigmoid()), "softmax-outputs", "or sigmoid"),
        (changed(lambda model, x: model((5 * x).round() / 5)), "zero-gradients", "exactly zero"),
    ],
)
def test_what_would_invalidate_an_evaluation_is_named(
    data: tuple[np.ndarray, np.ndarray], model: nn.Module, what: str, message: str
) -> None:
    found = check(model, *data, attacks=["clean"])
    assert not found.ok
    assert message in wrong(found)[what]


def test_a_state_that_changes_in_eval_mode_is_named_and_restored(
    data: tuple[np.ndarray, np.ndarray],
) -> None:
    model = changed(lambda inner, x: (model.seen.add_(float(len(x) > 2)), inner(x))[1])  # type: ignore[operator]
    model.register_buffer("seen", torch.zeros(()))
    assert ("its state changes in eval mode (seen)") in wrong(
        check(model, *data, attacks=["clean"])
    )["eval mode"]
    assert float(model.seen) == 0  # type: ignore[arg-type]


def test_a_model_that_cannot_be_evaluated_is_refused(data: tuple[np.ndarray, np.ndarray]) -> None:
    with pytest.raises(UserError, match="not finite on 120 of 120 clean test images"):
        check(changed(lambda model, x: model(x) * float("nan")), *data, attacks=["clean"])


def test_a_folder_of_nothing_is_refused(tmp_path: Path) -> None:
    (file := tmp_path / "net.pth").touch()
    for place, why in (
        (file, "it is a file"),
        (tmp_path / "none", "no such folder"),
        (tmp_path, "no run.json"),
    ):
        with pytest.raises(UserError, match=why):
            check(place)
