"""Which attacks are the same, what options take, and what a card's attacks become."""

from typing import Any

import numpy as np
import pytest
import torch

from taet import registry
from taet.attacks import catalogue
from taet.attacks.catalogue import RecordedAttack, parse, stored
from taet.card.column import Column, Identity
from taet.errors import UserError
from taet.settings import Evaluation


def identity(name: str, eps: float | None, parameters: dict[str, Any]) -> Identity:
    nothing = {"correct": np.empty(0, np.bool_), "predictions": np.empty(0, np.int64)}
    return Column(
        name=name, norm="linf", eps=eps, bounded=True, parameters=parameters, **nothing
    ).identity


def of(name: str, **settings: Any) -> Identity:
    attack = parse(name, Evaluation(**settings))
    return identity(name, attack.eps, attack.parameters)


def test_attacks_are_the_same_whatever_their_seed_and_wherever_the_result_came_from() -> None:
    assert of("pgd-20", seed=1) == of("pgd-20")
    assert parse("pgd-20", Evaluation(seed=1)) != parse("pgd-20")  # a stored result is another draw
    assert of("pgd-20", step_size=0.1) != of("pgd-20")
    assert of("pgd-20", eps=0.1) != of("pgd-20")
    fast = parse("autoattack-fast")
    taken = {**fast.parameters, "from": "autoattack"}
    assert identity(fast.name, fast.eps, taken) == of(fast.name)


def test_a_worst_case_is_its_attacks_in_any_order() -> None:
    fgsm, pgd = (parse(name).to_json() for name in ("fgsm", "pgd-20"))

    def worst(*attacks: dict[str, Any]) -> Identity:
        return identity("worst-case", 0.1, {"attacks": list(attacks)})

    assert worst(fgsm, pgd) == worst(pgd, fgsm)
    assert worst(fgsm) != worst(pgd)


def test_settings_that_an_attack_of_this_package_cannot_have_are_refused() -> None:
    with pytest.raises(
        UserError, match="attack 'pgd-20' step size: got -1; allowed: a number, above 0"
    ):
        stored("pgd-20", "linf", 0.1, {"steps": 20, "step_size": -1.0, "seed": 0})
    with pytest.raises(UserError, match="attack 'cw-l2': got norm 'linf'; allowed: 'l2'"):
        stored("cw-l2", "linf", 0.1, {"c": "often"})


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("worst-case", {"attacks": []}),
        ("of-another-version", {"steps": 3}),
        ("pgd-20", {"steps": 20}),  # without its step
    ],
)
def test_what_is_unknown_here_is_kept_as_it_was_recorded(
    name: str, parameters: dict[str, Any]
) -> None:
    attack = stored(name, "linf", 0.1, parameters)
    assert isinstance(attack, RecordedAttack)
    assert (attack.name, attack.parameters, attack.eps) == (name, parameters, 0.1)
    with pytest.raises(UserError, match="is it a plugin"):
        attack(lambda x: x, torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64))
    assert catalogue.place("of-another-version") > catalogue.place("autoattack-l2-10")


def test_columns_from_before_a_setting_existed_are_another_attack() -> None:
    attack = parse("cw-l2:c=search")
    older = {key: value for key, value in attack.parameters.items() if key != "box"}
    again = stored(attack.name, attack.norm, attack.eps, older)
    assert again.parameters == older != attack.parameters
    assert again != attack


def test_every_attack_says_what_it_is_and_costs() -> None:
    for name, entry in registry.entries("attacks").items():
        title, _, cost = entry.title.partition("; ")
        assert title, name
        assert "pass" in cost or title == "the same in L2", name
