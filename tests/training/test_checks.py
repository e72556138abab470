"""The checks of a training request: each refuses what cannot be trained, and accepts what can."""

from typing import Any

import pytest
import torch
from torch import nn

from taet import methods, models, protocols
from taet.data import DataFacts
from taet.data.loader import resampled
from taet.models import Adapter
from taet.randomness import generator
from taet.run.identity import CURVE
from taet.settings import Run, override
from taet.training.checks import (
    check_model,
    complete,
    idle_settings,
    milestone_epochs,
    monitored_epochs,
    refuse_idle_loss,
    resolve,
)
from tests.calls import one_line
from tests.training.conftest import Tiny

LONG_TAIL = DataFacts((50, 20, 10), (3, 32, 32), {"train": 80, "test": 30})
VALIDATED = DataFacts((50, 20, 10), (3, 32, 32), {"train": 80, "validation": 10, "test": 30})
MIXED = {
    "data.extra": "npz:extra.npz",
    "data.extra_fraction": 0.5,
    "data.extra_source": "drawn by a model",
}


def configured(tiny: Tiny, method: str, changes: dict[str, Any], **settings: Any) -> Run:
    """Return a tiny run of a method with settings of its own."""
    config = methods.find(method).Config(**settings)
    return tiny(method, {**changes, "settings": config})


# -- settings that contradict each other


@pytest.mark.parametrize("facts", [VALIDATED, None], ids=["data known", "data unknown"])
@pytest.mark.parametrize(
    ("method", "settings", "changes", "message", "allowed"),
    [
        (
            "at",
            {},
            {**MIXED, "training.sampling": "square-root"},
            "data extra: got sampling square-root; allowed: shuffled",
            {"training.sampling": "shuffled"},
        ),
        (
            "cfa",
            {"gate": "relative"},
            {"training.ema": 0.9, "data.validation": 0.1},
            r"cfa: got ema 0\.9 with its own average",
            {"training.ema": 0.0},
        ),
        (
            "cfa",
            {"gate": "relative"},
            {"training.swa": 0.5, "data.validation": 0.1},
            r"cfa: got swa 0\.5 with its own average",
            {"training.swa": 1.0},
        ),
        (
            "fare",
            {},
            {"model.tune": "head"},
            "fare: got the head to train; its loss has no labels; allowed: --model.tune all",
            {"model.tune": "all"},
        ),
        (
            "robust-lt",
            {"base": "trades"},
            {"threat.start": "none"},
            "got threat start none, where its attack has no slope",
            {"threat.start": "uniform"},
        ),
        (
            "at",
            {},
            {"training.swa": 0.9, "training.epochs": 3},
            r"swa: got 0\.9; that leaves none of 3 epochs",
            {"training.swa": 0.5},
        ),
        (
            "at",
            {},
            {"training.awp": 0.01, "training.awp_start": 0.9, "training.epochs": 3},
            r"awp start: got 0\.9; that leaves none of 3 epochs",
            {"training.awp_start": 0.5},
        ),
        (
            "at",
            {},
            {"training.selection": "best-test", "training.monitor_every": 0},
            "selection best-test needs the curve; monitor every: got 0",
            {"training.monitor_every": 1},
        ),
        (
            "trades",
            {},
            {"threat.weighting": "rw"},
            "its attack takes no class weights",
            {"threat.weighting": "none"},
        ),
        (
            "at",
            {},
            {"outer.drw": True, "training.milestones": (1.0,)},
            "a schedule without a milestone",
            {"training.milestones": (0.5,)},
        ),
    ],
)
def test_settings_that_exclude_each_other_are_refused_and_one_change_makes_them_allowed(
    tiny: Tiny,
    facts: DataFacts | None,
    method: str,
    settings: dict[str, Any],
    changes: dict[str, Any],
    message: str,
    allowed: dict[str, Any],
) -> None:
    run = configured(tiny, method, changes, **settings)
    with one_line(message):
        resolve(run, facts)
    assert resolve(override(run, allowed), facts).method


@pytest.mark.parametrize("method", ["at", "standard"])  # of its labels; attacks nothing
def test_an_attack_that_has_a_slope_at_the_image_may_start_there(tiny: Tiny, method: str) -> None:
    assert resolve(tiny(method, {"threat.start": "none"}), LONG_TAIL)


def test_a_method_that_attacks_in_no_epoch_is_no_base(tiny: Tiny) -> None:
    with one_line("which attacks in no epoch"):
        resolve(configured(tiny, "robust-lt", {}, base="standard"), LONG_TAIL)
    assert resolve(configured(tiny, "robust-lt", {}, base="trades"), LONG_TAIL)


# -- the split that the curve is measured on


def test_a_selection_on_validation_images_is_refused_without_them(tiny: Tiny) -> None:
    run = tiny("at", {"training.selection": "best-validation"})
    with one_line(r"needs a validation split: add --data\.validation 0\.1"):
        resolve(run, LONG_TAIL)
    assert resolve(run, VALIDATED).split == "validation"


def test_a_source_that_is_not_read_yet_may_have_a_validation_split_of_its_own(tiny: Tiny) -> None:
    assert resolve(tiny("at", {"training.selection": "best-validation"}), None).split == "test"


@pytest.mark.parametrize("changes", [{"data.validation": 0.1}, {"data.validation_per_class": 2}])
def test_a_validation_split_that_is_asked_for_has_the_curve(
    tiny: Tiny, changes: dict[str, Any]
) -> None:
    assert resolve(tiny("at", changes), None).split == "validation"


def test_a_selection_on_test_images_has_its_curve_on_them_beside_validation_images(
    tiny: Tiny,
) -> None:
    assert resolve(tiny("at", {"training.selection": "best-test"}), VALIDATED).split == "test"


# -- the epochs of the curve and of the schedule


@pytest.mark.parametrize(
    ("changes", "every"),
    [
        ({}, 10),
        ({"training.selection": "best-validation"}, 1),
        ({"training.selection": "best-test", "training.monitor_every": 5}, 5),
        ({"method": "cfa", "gate": "relative"}, 1),
        ({"method": "cfa"}, 10),
    ],
)
def test_a_curve_that_decides_nothing_has_ten_points(changes: dict[str, Any], every: int) -> None:
    method, gate = changes.pop("method", "at"), changes.pop("gate", None)
    given = {} if gate is None else {"settings": methods.find(method).Config(gate=gate)}
    run = override(protocols.taet(method), changes | given)
    decides = not CURVE & idle_settings(run)
    assert list(monitored_epochs(run, decides)) == [
        epoch for epoch in range(run.training.epochs) if (epoch + 1) % every == 0
    ]


def test_the_last_epoch_has_a_point_wherever_there_is_a_curve(tiny: Tiny) -> None:
    run = tiny("at", {"training.epochs": 8, "training.monitor_every": 3})
    assert monitored_epochs(run, learns=False) == (2, 5, 7)


def test_a_curve_of_every_no_epoch_has_no_point(tiny: Tiny) -> None:
    assert monitored_epochs(tiny("at", {"training.monitor_every": 0}), learns=False) == ()


def test_milestones_are_shares_of_the_epochs(tiny: Tiny) -> None:
    run = tiny("at", {"training.epochs": 40, "training.milestones": (0.75, 0.9)})
    assert milestone_epochs(run) == (30, 36)


# -- what a loss is told of the batches


@pytest.mark.parametrize("sampling", ["class-balanced", "square-root"])
def test_a_loss_takes_the_prior_of_the_batches(tiny: Tiny, sampling: str) -> None:
    method = resolve(tiny("at-bsl", {"training.sampling": sampling}), LONG_TAIL).method
    class_counts = torch.tensor(LONG_TAIL.class_counts)
    labels = torch.arange(len(class_counts)).repeat_interleave(class_counts)
    drawn = [labels[resampled(labels, generator("cpu", epoch), sampling)] for epoch in range(400)]
    mean_counts = torch.cat(drawn).bincount() / 400
    torch.testing.assert_close(method.drawn_class_counts, mean_counts, rtol=0.1, atol=0.1)


def test_shuffled_batches_have_the_prior_of_the_training_images(tiny: Tiny) -> None:
    counts = resolve(tiny("at-bsl"), LONG_TAIL).method.drawn_class_counts
    assert counts.tolist() == [50, 20, 10]


def test_a_class_without_images_is_drawn_by_no_sampling(tiny: Tiny) -> None:
    facts = DataFacts((50, 0, 10), (3, 32, 32), {"train": 60, "test": 30})
    run = tiny("at-bsl", {"training.sampling": "class-balanced"})
    assert resolve(run, facts).method.drawn_class_counts.tolist() == [30, 0, 30]


def test_classes_are_counted_with_their_extra_images_where_these_are_known(tiny: Tiny) -> None:
    resolved = resolve(tiny("at", MIXED), LONG_TAIL, extra_counts=(1, 2, 3))
    assert resolved.method.task.unique_class_counts == (51, 22, 13)
    unread = resolve(tiny("at", MIXED), LONG_TAIL)
    assert unread.method.task.unique_class_counts == LONG_TAIL.class_counts


# -- settings without effect


def test_settings_of_a_curve_that_nothing_learns_from_are_idle(tiny: Tiny) -> None:
    assert idle_settings(tiny("at")) >= CURVE
    assert not idle_settings(tiny("at", {"training.selection": "best-validation"})) & CURVE


def test_settings_of_extra_images_are_idle_without_them(tiny: Tiny) -> None:
    assert "data.extra_fraction" in idle_settings(tiny("at"))
    assert "data.extra_fraction" not in idle_settings(tiny("at", MIXED))


def test_steps_of_the_attack_are_idle_where_a_method_has_its_own(tiny: Tiny) -> None:
    assert "threat.steps" in idle_settings(tiny("standard"))
    assert "threat.steps" not in idle_settings(tiny("at"))


def test_a_label_loss_that_the_method_replaces_is_refused_where_it_was_given(tiny: Tiny) -> None:
    with one_line("at-bsl: got the outer loss cross-entropy; its own replaces it"):
        refuse_idle_loss(tiny("at-bsl"), ["outer.name"])
    refuse_idle_loss(tiny("at-bsl"), ["training.lr"])  # nobody asked for cross-entropy
    refuse_idle_loss(tiny("at"), ["outer.name"])


# -- the network


@pytest.mark.parametrize("method", ["at", "robal", "reat"])
def test_a_network_of_the_package_fits_a_method_with_any_head(tiny: Tiny, method: str) -> None:
    check_model(resolve(tiny(method), LONG_TAIL), LONG_TAIL)


def test_a_name_that_is_no_network_is_refused_before_the_data_are_known(tiny: Tiny) -> None:
    with one_line(r"unknown model 'resnet9'.*did you mean"):
        check_model(resolve(tiny("at", {"model.name": "resnet9"}), None), None)


@pytest.mark.parametrize(("method", "changes"), [("fare", {}), ("at", {"model.tune": "head"})])
def test_a_method_that_trains_a_given_network_only_is_refused_without_its_weights(
    tiny: Tiny, method: str, changes: dict[str, Any]
) -> None:
    # as in a comparison, before any run of it is trained
    with one_line("got no network to begin from; allowed: with --model.weights"):
        check_model(resolve(tiny(method, changes), LONG_TAIL), LONG_TAIL)


def test_a_check_leaves_the_network_that_other_runs_share_as_it_was(tiny: Tiny) -> None:
    with one_line("got no network to begin from"):
        check_model(resolve(tiny("at", {"model.tune": "lora:2"}), LONG_TAIL), LONG_TAIL)
    check_model(resolve(tiny("at"), LONG_TAIL), LONG_TAIL)  # would find the added parts


def whole_network() -> Adapter:
    """Return a network that gives logits, without features and a head that the package knows."""
    return Adapter(nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 3), nn.Softplus()), 3)


@pytest.mark.parametrize(
    ("method", "changes", "message"),
    [
        ("fare", {}, "fare needs features, which a network has only if"),
        ("at", {"model.tune": "head"}, "model tune: this network is used whole"),
        ("robal", {}, "robal needs a cosine head of scale"),
    ],
)
def test_a_network_without_the_parts_that_a_run_needs_is_refused(
    tiny: Tiny, method: str, changes: dict[str, Any], message: str
) -> None:
    resolved = resolve(tiny(method, changes), LONG_TAIL)
    with one_line(message):
        complete(whole_network(), resolved, fresh=False)


def test_a_network_without_a_known_head_trains_with_a_method_that_needs_logits_only(
    tiny: Tiny,
) -> None:
    complete(whole_network(), resolve(tiny("at"), LONG_TAIL), fresh=False)


def test_a_cosine_head_of_another_scale_is_refused(tiny: Tiny) -> None:
    resolved = resolve(tiny("robal"), LONG_TAIL)
    head = resolved.method.task.head
    fitting = models.build("resnet8", 3, (3, 32, 32), head=head)
    complete(fitting, resolved, fresh=True)
    fitting.head.scale = head.scale + 1
    with one_line("robal needs a cosine head of scale"):
        complete(fitting, resolved, fresh=True)
