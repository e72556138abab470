"""Which attacks are the same, what options take, and what a card's attacks become."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest

from taet.attacks import catalogue
from taet.attacks.catalogue import RecordedAttack, parse, stored
from taet.attacks.spec import Identity, identity
from taet.errors import UserError
from taet.fields import Count, NonNegative, Positive, allowed_text, fits, read_text
from taet.settings import Evaluation


def of(name: str, **settings: Any) -> Identity:
    attack = parse(name, Evaluation(**settings))
    return identity(attack.name, attack.norm, attack.eps, attack.parameters)


def test_attacks_are_the_same_whatever_their_seed_and_wherever_the_result_came_from() -> None:
    assert of("pgd-20", seed=1) == of("pgd-20")
    assert parse("pgd-20", Evaluation(seed=1)) != parse("pgd-20")  # a stored result is another draw
    assert of("pgd-20", step_size=0.1) != of("pgd-20")
    assert of("pgd-20", eps=0.1) != of("pgd-20")
    fast = parse("autoattack-fast")
    taken = {**fast.parameters, "from": "autoattack"}
    assert identity(fast.name, fast.norm, fast.eps, taken) == of("autoattack-fast")
    assert len({of("fgsm"), of("fgsm"), of("pgd-2")}) == 2


def test_attacks_that_differ_in_one_setting() -> None:
    assert of("pgd-20").apart_from("steps") == of("pgd-100").apart_from("steps")
    assert of("pgd-20").apart_from("factor") == of("adaptive-pgd-20").apart_from("factor")
    assert of("pgd-20").apart_from("steps") != of("pgd-20:restarts=2").apart_from("steps")
    assert of("pgd-20").apart_from("eps", "step_size") == of("pgd-20:eps=0.5").apart_from("eps", "step_size")
    assert of("pgd-20").apart_from("steps") != of("pgd-l2-20").apart_from("steps")


def test_a_worst_case_is_its_attacks_in_any_order_and_depth() -> None:
    fgsm, pgd = (parse(name).to_json() for name in ("fgsm", "pgd-20"))

    def worst(*attacks: dict[str, Any]) -> Identity:
        return identity("worst-case", "linf", 0.1, {"attacks": list(attacks)})

    inner = {"name": "worst-case", "norm": "linf", "eps": 0.1, "attacks": [fgsm]}
    assert worst(fgsm, pgd) == worst(pgd, fgsm) == worst(pgd, inner)
    assert [member.name for member in worst(pgd, fgsm).members] == ["fgsm", "pgd-20"]
    assert worst(fgsm) != worst(pgd)


def test_settings_that_an_attack_of_this_package_cannot_have_are_refused() -> None:
    with pytest.raises(UserError, match="attack 'pgd-20' step size: got -1; allowed: above 0"):
        stored("pgd-20", "linf", 0.1, {"steps": 20, "step_size": -1.0, "seed": 0})
    with pytest.raises(UserError, match="attack 'cw-l2': got norm 'linf'; allowed: 'l2'"):
        stored("cw-l2", "linf", 0.1, {"c": "often"})


def test_fgsm_offers_no_divergence_which_has_no_gradient_at_the_image() -> None:
    with pytest.raises(UserError, match="objective got 'kl'; allowed: ce, cw, dlr, pm"):
        parse("fgsm:objective=kl")
    assert parse("pgd-20:objective=kl").parameters["objective"] == "kl"


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("worst-case", {"attacks": []}),
        ("of-another-version", {"steps": 3}),
        ("pgd-20", {"steps": 20}),  # without its step
    ],
)
def test_what_is_unknown_here_is_kept_as_it_was_recorded(name: str, parameters: dict[str, Any]) -> None:
    attack = stored(name, "linf", 0.1, parameters)
    assert isinstance(attack, RecordedAttack)
    assert (attack.name, attack.parameters, attack.bounded) == (name, parameters, True)
    assert attack != parse("pgd-20")
    assert catalogue.place("of-another-version") > catalogue.place("autoattack-l2-10")


@pytest.mark.parametrize(
    ("text", "hint", "value"),
    [
        ("8/255", Positive, 8 / 255),
        ("0", NonNegative, 0.0),
        ("3", Count, 3),
        ("search", Positive | Literal["search"], "search"),
        ("2", Positive | Literal["search"], 2.0),
        ("none", Positive | None, None),
        ("true", bool, True),
        ("7", Annotated[Count | None, "marked"], 7),
        ("any text", str, "any text"),
    ],
)
def test_options_are_read_by_their_type(text: str, hint: Any, value: object) -> None:
    assert read_text(text, hint) == value


@pytest.mark.parametrize(
    ("text", "hint", "allowed"),
    [
        ("0", Positive, "a number, above 0"),
        ("inf", Positive, "a number, above 0"),
        ("nan", NonNegative, "a number, 0 or more"),
        ("8/0", Positive, "a number, above 0"),
        ("2.5", Count, "a whole number, 1 or more"),
        ("often", Positive | Literal["search"], "a number, above 0, or search"),
        ("maybe", bool, "true or false"),
        ("c", Literal["a", "b"], "a, b"),
    ],
)
def test_what_an_option_does_not_take(text: str, hint: Any, allowed: str) -> None:
    assert not fits(read_text(text, hint), hint)
    assert allowed_text(hint) == allowed
