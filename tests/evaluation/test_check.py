"""What `check` finds about sound models and about every way to spoil one, and that it leaves them as they were."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from taet.errors import UserError
from taet.evaluation.bundles import parse_attack
from taet.evaluation.check import Check, check
from taet.models.foreign import NORMALIZATIONS, Normalized
from taet.settings import Evaluation

LEVELS = (0.2, 0.4, 0.6, 0.8)
SUBJECTS = {
    "classes", "normalisation", "accuracy", "logits", "range", "gradients", "determinism", "batch", "precision",
    "eval mode",
}  # fmt: skip


class Brightness(nn.Module):
    """Right on every image below: the logit of a class falls with the distance of the mean grey from its level."""

    def __init__(self, centres: Any = LEVELS, scale: float = 50.0) -> None:
        super().__init__()
        self.centres, self.scale = nn.Parameter(torch.tensor(centres)), scale

    def forward(self, x: Tensor) -> Tensor:
        return -self.scale * (x.mean((1, 2, 3))[:, None] - self.centres).square()


@pytest.fixture(scope="module")
def data() -> tuple[np.ndarray, np.ndarray]:
    """120 images of four levels of grey, uint8, and their labels."""
    labels = np.arange(120) % 4
    noise = np.random.default_rng(0).normal(0, 10, (120, 8, 8, 3))
    levels = 255 * np.array(LEVELS)[labels][:, None, None, None]
    return np.clip(levels + noise, 0, 255).astype(np.uint8), labels


@pytest.fixture
def checked(data: tuple[np.ndarray, np.ndarray]) -> Callable[..., Check]:
    return lambda model, **options: check(model, *data, **{"attacks": ("clean",), **options})


def expecting(name: str) -> Brightness:
    """The same model for images that are normalised by the statistics of that name."""
    mean, std = (torch.tensor(values) for values in NORMALIZATIONS[name])
    return Brightness([float(((level - mean) / std).mean()) for level in LEVELS])


class Answer(nn.Module):
    """`change` of what the model answers."""

    def __init__(self, change: Callable[[Tensor], Any], before: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        super().__init__()
        self.network, self.change, self.before = Brightness(), change, before

    def forward(self, x: Tensor) -> Any:
        return self.change(self.network(self.before(x)))


def warned(found: Check) -> dict[str, str]:
    return {finding.subject: finding.text for finding in found.findings if not finding.ok}


# -- a sound model -----------------------------------------------------------------------------------------------------


def test_a_sound_model_is_ok(checked: Callable[..., Check]) -> None:
    found = checked(Brightness(), name="mine", class_names="abcd")
    assert found.ok
    assert {finding.subject for finding in found.findings} == SUBJECTS
    assert (found.model, found.parameters, found.num_classes, found.images, found.tried) == ("mine", 4, 4, 120, 120)
    assert found.image_shape == (3, 8, 8)
    assert found.accuracy == found.accuracies["none"] == 1
    assert found.forward_speed > 0
    assert found.gradient_speed > 0


def test_what_it_says_names_every_finding_and_attack(checked: Callable[..., Check]) -> None:
    found = checked(nn.Sequential(Brightness(), nn.Softmax(1)), attacks=("clean", "pgd-20"))
    lines = repr(found).splitlines()
    assert lines[0] == "Sequential: 4 parameters, 4 logits for images of 3 x 8 x 8; tried on 120 of 120 test images"
    assert sum(line.startswith("ok ") for line in lines) == len(SUBJECTS) - 1
    assert [line.split()[1] for line in lines if line.startswith("! ")] == ["logits"]
    assert lines[-1].startswith("all ")
    assert lines[-2].split()[:3] == ["pgd-20", "41", "120"]


def test_json_is_plain(checked: Callable[..., Check]) -> None:
    found = checked(Brightness())
    stored = json.loads(json.dumps(found.to_json()))
    assert stored == found.to_json()
    assert stored["ok"] is True
    assert {finding["subject"] for finding in stored["findings"]} == SUBJECTS


def test_a_batch_of_the_test_set_is_tried(checked: Callable[..., Check]) -> None:
    found = checked(Brightness(), batch_size=20)
    assert (found.tried, found.images) == (20, 120)
    tried = set()

    class Seeing(Brightness):
        def forward(self, x: Tensor) -> Tensor:
            tried.update(x.mean((1, 2, 3)).mul(5).round().int().tolist())
            return super().forward(x)

    checked(Seeing(), batch_size=20)
    assert {1, 2, 3, 4} <= tried, "images are drawn, not the first of a test set that may be sorted"


def test_the_time_of_an_attack_is_that_of_its_passes(checked: Callable[..., Check]) -> None:
    found = checked(Brightness(centres=(0.2, 0.4, 0.6, 0.45)), attacks=("clean", "pgd-20", "autoattack"))
    clean, chain, suite = found.costs
    forward, both = 1 / found.forward_speed, 1 / found.gradient_speed
    assert clean.seconds == pytest.approx(120 * forward)
    assert chain.seconds == pytest.approx(120 * (20 * both + forward))
    assert 0.3 < found.accuracy < 0.8
    assert suite.images == round(found.accuracy * 120), "AutoAttack takes up what is classified correctly"
    assert suite.passes == parse_attack("autoattack").passes(4)


def test_the_images_that_autoattack_takes_up_are_estimated_class_by_class(data: Any) -> None:
    images, labels = data
    few = np.flatnonzero(labels == 1)[:5]  # whose logit is never the largest
    rows = np.concatenate([np.flatnonzero(labels == 0), np.flatnonzero(labels == 2), few])
    model = Brightness(centres=(0.2, 9.0, 0.6, 9.0))
    found = check(model, images[rows], labels[rows], attacks=("autoattack",), batch_size=15)
    assert found.accuracy == pytest.approx(2 / 3), "five images of each class are tried"
    assert found.costs[0].images == 60


def test_a_protocol_stands_for_its_attacks(checked: Callable[..., Check]) -> None:
    assert [cost.attack for cost in checked(Brightness(), attacks=("taet",)).costs][:2] == ["clean", "fgsm"]
    assert [cost.attack for cost in checked(Brightness(), attacks=Evaluation.default("attacks")).costs] == [
        *Evaluation.default("attacks")
    ]


# -- what spoils an evaluation -----------------------------------------------------------------------------------------


def test_a_normalisation_that_is_missing_is_named(checked: Callable[..., Check]) -> None:
    found = checked(expecting("cifar10"))
    assert set(warned(found)) >= {"normalisation"}
    assert "100.0 % with --normalize " in warned(found)["normalisation"]
    assert "cifar10 100.0" in warned(found)["normalisation"]
    assert found.accuracies["cifar10"] == 1 > found.accuracies["none"]
    assert checked(Normalized(expecting("cifar10"), NORMALIZATIONS["cifar10"])).ok


def test_normalising_twice_is_seen(checked: Callable[..., Check]) -> None:
    inside = Normalized(expecting("cifar10"), NORMALIZATIONS["cifar10"])
    found = checked(Normalized(inside, NORMALIZATIONS["cifar10"]))
    assert "100.0 % with --normalize none" in warned(found)["normalisation"]


@pytest.mark.parametrize(
    ("scale", "shift", "flag"),
    [(2.0, -1.0, "--normalize 0.5,0.5,0.5/0.5,0.5,0.5"), (255.0, 0.0, "--normalize 0,0,0/0.00392157,0.00392157,")],
)
def test_another_scale_of_the_input_is_seen(
    checked: Callable[..., Check], scale: float, shift: float, flag: str
) -> None:
    network = Brightness([scale * level + shift for level in LEVELS], scale=50 / scale**2)
    assert flag in warned(checked(network))["normalisation"]


def test_a_better_accuracy_by_chance_is_no_finding(checked: Callable[..., Check]) -> None:
    found = checked(Normalized(Brightness(), NORMALIZATIONS["cifar10"]), batch_size=4)
    assert found.accuracies["none"] > found.accuracy, "four images decide nothing"
    assert "normalisation" not in warned(found)


@pytest.mark.parametrize(
    ("model", "subject", "text"),
    [
        (Answer(lambda z: z.softmax(1)), "logits", "probabilities, not logits"),
        (Answer(torch.sigmoid), "logits", "as after a sigmoid"),
        (Answer(lambda z: functional.pad(z, (0, 3), value=-99.0)), "classes", "7 logits, but labels 0 to 3 only"),
        (Answer(lambda z: 0 * z), "accuracy", "balanced accuracy 25.0 %, chance is 25.0 %"),
        (Answer(lambda z: z.bfloat16()), "precision", "outputs are torch.bfloat16"),
        (Answer(lambda z: functional.dropout(z, 0.2)), "determinism", "give different logits"),
        (Answer(lambda z: z - z.mean(0)), "batch", "the logits of an image depend on the other images"),
        (Answer(lambda z: z, before=lambda x: (255 * x).round() / 255), "gradients", "exactly zero on 120 of 120"),
        (Answer(lambda z: 1e4 * z), "gradients", "exactly zero"),
        (Answer(lambda z: z, before=lambda x: x + 0 / x.std()), "range", "not finite on black and white images"),
    ],
)  # fmt: skip
def test_what_spoils_an_evaluation_is_named_with_what_to_do(
    checked: Callable[..., Check], model: nn.Module, subject: str, text: str
) -> None:
    assert text in warned(checked(model))[subject]


def test_noise_drawn_for_each_image_is_not_blamed_on_the_batch(checked: Callable[..., Check]) -> None:
    found = checked(Answer(lambda z: z + 5 * torch.randn_like(z)))
    assert {*warned(found)} & {"determinism", "batch"} == {"determinism"}
    assert (
        next(one.text for one in found.findings if one.subject == "batch") == "not applicable: the model is randomised"
    )


def test_log_probabilities_are_logits(checked: Callable[..., Check]) -> None:
    found = checked(Answer(lambda z: z.log_softmax(1)))
    assert found.ok
    assert "log-probabilities" in repr(found)


class Restless(Brightness):
    """Batch statistics in eval mode, as of a layer that is called with training=True."""

    def __init__(self, persistent: bool) -> None:
        super().__init__()
        self.register_buffer("moving", torch.zeros(3), persistent)
        self.register_buffer("spread", torch.ones(3), persistent)
        self.least = 1

    def forward(self, x: Tensor) -> Tensor:
        normal = functional.batch_norm(x, self.moving, self.spread, training=len(x) >= self.least)
        return super().forward(0.5 + 0.2 * normal)


@pytest.mark.parametrize("persistent", [True, False])
def test_a_state_that_changes_in_eval_mode_is_given_back(checked: Callable[..., Check], persistent: bool) -> None:
    model = Restless(persistent)
    with pytest.raises(UserError, match="moving changes during a forward pass in eval mode"):
        checked(model)
    assert torch.equal(model.moving, torch.zeros(3))
    assert torch.equal(model.spread, torch.ones(3))
    model.least = 3  # so that the two images by which a wrong model is refused at once do not show it
    found = warned(checked(model))
    assert "its state changes in eval mode (moving and spread)" in found["eval mode"]
    assert "batch" in found
    assert torch.equal(model.moving, torch.zeros(3))
    assert torch.equal(model.spread, torch.ones(3))


def test_a_model_in_training_mode_is_tried_in_eval_mode_and_given_back(checked: Callable[..., Check]) -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(), Brightness()).train()
    random = torch.random.get_rng_state()
    found = checked(model)
    assert found.ok
    assert "it was in training mode and is tested in eval mode" in repr(found)
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert model[0].num_batches_tracked == 0
    checked(Answer(lambda z: functional.dropout(z, 0.2)))
    assert torch.equal(torch.random.get_rng_state(), random)


# -- what cannot be evaluated ------------------------------------------------------------------------------------------


def inplace(z: Tensor) -> Tensor:
    root = z.exp()
    root.add_(1)
    return root


class Picky(Brightness):
    """Raises on more than two images what is no RuntimeError."""

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > 2:
            raise KeyError(f"nothing for {len(x)}")
        return super().forward(x)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Answer(lambda z: (z, z)), "model output: got a tuple; allowed: one tensor of logits"),
        (Answer(lambda z: z.argmax(1)), r"model output: got shape \(2,\)"),
        (Answer(lambda z: z[:, :3]), "labels: got up to 3; allowed: 0 to 2, one per logit"),
        (Answer(lambda z: z / (z.detach().amax(1, True) < -0.01)), r"not finite on \d+ of 120 clean test images"),
        (Answer(lambda z: z.detach()), "no gradient reaches the image"),
        (Answer(inplace), r"model: fails on a batch of 120 images \(one of the variables needed for gradient"),
        (Picky(), r"model: fails on a batch of 120 images \('nothing for 120'\)"),
        (Brightness().double(), "weights that are not float32"),
        (nn.Sequential(nn.Conv2d(1, 4, 3), Brightness()), r"model: fails on images of shape \(2, 3, 8, 8\)"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_in_one_line(
    checked: Callable[..., Check], model: nn.Module, message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        checked(model)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_names": "abc"}, "model output: got 4 logits; allowed: 3, one per class"),
        ({"attacks": ("pdg-20",)}, r"unknown attack 'pdg-20'; .*did you mean 'pgd-20'\?"),
    ],
)
def test_mistakes_of_the_call_are_refused(checked: Callable[..., Check], options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        checked(Brightness(), **options)


def test_images_that_are_none_are_refused(data: tuple[np.ndarray, np.ndarray]) -> None:
    images, labels = data
    with pytest.raises(UserError, match="images: got int64; allowed: uint8"):
        check(Brightness(), images.astype(np.int64), labels)
    with pytest.raises(UserError, match="divide by 255"):
        check(Brightness(), images.astype(np.float32).transpose(0, 3, 1, 2), labels)
    with pytest.raises(UserError, match="labels: got int64"):
        check(Brightness(), images, labels[:-1])
