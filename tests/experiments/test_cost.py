"""Counted passes against what the specification of each method says."""

from __future__ import annotations

import json

import pytest

from taet.cli import main
from taet.errors import UserError
from taet.experiments import cost


@pytest.mark.parametrize(
    ("name", "forwards", "backwards"),
    [
        ("standard", 1, 1),
        ("at", 11, 11),
        ("trades", 13, 12),  # the natural logits of the attack are computed once
        ("mart", 12, 12),
        ("reat", 11, 11),
        ("robal", 12, 12),
        ("taet", 0.4 * 1 + 0.6 * 11, 0.4 * 1 + 0.6 * 11),
        ("adt", 36, 36),
    ],
)
def test_passes_are_those_of_the_formulas(name: str, forwards: float, backwards: float) -> None:
    import torch

    found = cost._Bench(name, {}, torch.device("cpu")).passes()
    assert found == pytest.approx((forwards, backwards))


def test_the_table_names_ratios_to_adversarial_training(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cost, "everything", lambda: [("at", {}), ("standard", {})])
    assert main(["list", "methods", "--cost", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    adversarial, standard = found["costs"]
    assert adversarial["passes_ratio"] == 1
    assert standard["passes_ratio"] == pytest.approx(1 / 11, abs=1e-3)
    assert (
        standard["spread"][0] <= standard["seconds_ratio"] <= standard["spread"][1] < 0.5 < adversarial["seconds_ratio"]
    )
    assert main(["list", "methods", "--cost"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:4] == ["at", "11.00", "11.00", "1.00"]


def test_only_methods_have_a_cost() -> None:
    from taet.cli import list as listing

    with pytest.raises(UserError, match="--cost: got attacks; allowed: methods"):
        listing.run(["attacks", "--cost"])
