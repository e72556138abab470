"""The audit answers every question from flags and numbers, and tells every defence of the museum."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from taet.errors import UserError
from taet.evaluation import audit, diagnostics
from taet.evaluation.audit import ATTACKS, Audit, MeanDraw, Merged, audit_sample
from taet.evaluation.checklist import QUESTIONS
from taet.evaluation.subject import GivenImages, subject_of
from taet.settings import Evaluation
from tests import museum

ASIDE = {
    "class-without-test-images",
    "few-images-per-class",
    "small-test-set",
    "extra-not-compared",
    "autoattack-variant",
}
"""Flags about the test images or the precision of the numbers, which answer no question."""
NAMES = [str(label) for label in range(museum.CLASSES)]


@pytest.fixture(autouse=True)
def short(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer queries, except in tests of every case."""
    if request.node.get_closest_marker("full") is None:
        names = [{"square": "square:queries=100", "random-noise": "random-noise:tries=5"}.get(n, n) for n in ATTACKS]
        monkeypatch.setattr(sys.modules["taet.evaluation.audit"], "ATTACKS", tuple(names))


def audited(model: nn.Module, **change: Any) -> Audit:
    x, y = museum.tested()
    settings: dict[str, Any] = {"settings": {"eps": museum.EPS}, "class_names": NAMES, "count": len(y), **change}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return audit(model, x, y, **settings)


def failed(found: Audit) -> set[str]:
    return {flag for item in found.items for flag in item.flags if item.status == "fail"}


def test_every_flag_answers_a_question_or_is_set_aside() -> None:
    rules = (*diagnostics.ATTACKS, *diagnostics.MODEL, *diagnostics.TEST_SET, *diagnostics.AUDIT)
    asked = [flag for question in QUESTIONS for flag in question.flags]
    assert len(asked) == len(set(asked))
    assert {*asked, *ASIDE} == {rule.flag for rule in rules}
    assert ASIDE.isdisjoint(asked)


@pytest.mark.full
@pytest.mark.parametrize("build", [museum.base, pytest.param(museum.standard, marks=pytest.mark.full)])
def test_sound_networks_fail_no_question(build: Callable[[], nn.Module]) -> None:
    found = audited(build())
    assert found.ok, found
    assert found.counts == {"pass": 21, "fail": 0, "not applicable": 6}


SHORT = museum.EXHIBITS[:3]
EACH = [one if one in SHORT else pytest.param(one, marks=pytest.mark.full) for one in museum.EXHIBITS]


@pytest.mark.sample(3)
@pytest.mark.parametrize("exhibit", EACH, ids=lambda exhibit: exhibit.name)
def test_a_defence_fools_an_attack_is_broken_by_another_and_raises_its_flag(exhibit: museum.Exhibit) -> None:
    model = exhibit.build()
    fooled, broken = exhibit.fooled(model), exhibit.broken(model)
    assert fooled - broken >= exhibit.gap, (fooled, broken)
    found = audited(model, count=300 if exhibit.flag == "eot-beats-one-draw" else 150)
    assert not found.ok
    # The derivatives of a smooth gate and of the identity do nearly as well; the second flag hides the first.
    expected = {exhibit.flag} | ({"straight-through-beats-gradients"} if exhibit.flag == "soft-beats-hard" else set())
    assert expected & failed(found)
    facts = found.evidence.facts
    batch = next(item for item in found.items if item.question == "batch")
    assert (batch.status == "not applicable") == (facts.draws > 0), batch
    assert (facts.logits, facts.classes) == (20 if exhibit.flag == "dummy-classes" else 10, 10)
    assert facts.draws == (32 if exhibit.flag == "eot-beats-one-draw" else 0)


class Floored(museum.Network):
    """Seven grey levels, by a division that has no derivative in torch."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward((x // (1 / 6)) / 6)


def test_a_model_that_divides_and_rounds_down_is_attacked_through_a_replacement() -> None:
    found = audited(museum.with_weights(Floored(), museum.base()), count=60)
    assert "no-gradient" in failed(found)
    assert found.evidence.sites
    assert not found.evidence.facts.reaches


@pytest.mark.parametrize(
    ("own", "given", "expected"),
    [
        ((1 / 255, 8 / 255), {}, 1 / 255),
        ((1 / 255, 8 / 255), {"eps": 0.1}, 0.1 / 8),
        ((1 / 255, 0.1), {}, 0.1 / 8),
        ((1 / 255, 0.1), {"eps": 0.1}, 0.1 / 8),
        ((1 / 255, 0.1), {"eps": 0.2}, 0.2 / 8),
        ((0.05, 0.1), {"eps": 0.2}, 0.1),
        ((1 / 255, 0.1), {"step_size": 1 / 255}, 1 / 255),
    ],
)
def test_the_step_crosses_the_ball_whatever_step_a_run_has(
    own: tuple[float, float], given: dict[str, Any], expected: float
) -> None:
    given_images = GivenImages(*museum.tested())
    subject = subject_of("audit", museum.base(), given_images)
    subject = replace(subject, settings=subject.settings.replace(step_size=own[0]), train_eps=own[1])
    sampled = audit_sample(subject, given, 10)
    assert sampled.settings.step_size == pytest.approx(expected, rel=1e-12)
    assert sampled.eps == given.get("eps", own[1])


def test_merged_logits_are_the_largest_of_each_class() -> None:
    table = nn.Embedding.from_pretrained(torch.tensor([[1.0, 2.0, 5.0, 0.0], [4.0, 1.0, 3.0, 2.0]]))
    torch.testing.assert_close(Merged(table, 2)(torch.tensor([0, 1])), torch.tensor([[5.0, 2.0], [4.0, 2.0]]))


def test_the_gradient_of_the_mean_draw_is_the_mean_of_the_gradients() -> None:
    model, x = museum.stochastic(), museum.tested()[0][:4].clone().requires_grad_()
    torch.manual_seed(3)
    (expected,) = torch.autograd.grad(sum(model(x).log_softmax(1)[:, 0].sum() for _ in range(5)) / 5, x)
    torch.manual_seed(3)
    (gradient,) = torch.autograd.grad(MeanDraw(model, 5)(x)[:, 0].sum(), x)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.full
def test_examples_of_a_surrogate_are_tried() -> None:
    sound = audited(museum.base(), surrogate=("other", museum.base(1)), count=100)
    assert {item.question: item for item in sound.items}[
        "Do white-box attacks break more images than examples transferred from a similar model?"
    ].status == "pass"
    masked = audited(museum.large_logits(), surrogate=("base", museum.base()), count=100)
    assert "transfer-beats-white-box" in failed(masked)


def test_it_goes_on_where_it_was_interrupted(tmp_path: Path) -> None:
    first = audited(museum.stepped(), state_dir=tmp_path, count=60)
    kept = sorted(tmp_path.rglob("*.npz"))
    assert len(kept) > 10
    stamps = [path.stat().st_mtime_ns for path in kept]
    again = audited(museum.stepped(), state_dir=tmp_path, count=60)
    assert [path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("*.npz"))] == stamps
    assert again.items == first.items


def test_everything_is_in_the_json_and_on_the_page() -> None:
    found = audited(museum.flat_softmax(), count=150, attacks=("pgd-5",), name="<b>", notes=("from & to",))
    values = json.loads(json.dumps(found.to_json()))
    assert values["counts"] == found.counts
    assert values["ok"] is False
    assert "pgd-5" in {column["name"] for column in values["card"]["columns"]}
    lines = str(found).splitlines()
    assert lines[0] == f"<b>: {found.counts['pass']} pass, {found.counts['fail']} fail, 6 not applicable"
    assert sum("FAIL" in line for line in lines) == found.counts["fail"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"count": 0}, "images: got 0"),
        ({"attacks": ("pdg-20",)}, "unknown attack 'pdg-20'"),
        ({"settings": {"eps": 8}}, "eps: got 8"),
        ({"settings": Evaluation(eps=0.1)}, "settings: got Evaluation; allowed: a mapping of fields of Evaluation"),
        ({"class_names": ["a", "b", "c"]}, "model output: got 10 logits; allowed: 3"),
    ],
)
def test_wrong_input_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        audited(museum.base(), **change)


def test_a_model_that_no_replacement_gives_a_gradient_is_refused_as_in_every_evaluation() -> None:
    class Table(museum.Network):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x.detach())

    with pytest.raises(UserError, match="no gradient reaches the image"):
        audited(museum.with_weights(Table(), museum.base()))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"name": "mine", "notes": ["x"]}, "audit: got name= and notes= beside a run, which has its own"),
        ({"class_names": NAMES}, "audit: got class_names= beside a run, which has its own; allowed: with images="),
        ({"labels": torch.zeros(3)}, "audit: got images without labels, or labels without images"),
    ],
)
def test_what_a_run_says_of_itself_is_not_given_again(given: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        audit(tmp_path, **given)
