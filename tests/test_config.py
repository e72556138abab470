"""A run as a value: checked when built, changed field by field, and to JSON and back."""

from __future__ import annotations

import dataclasses
import json
import math
import typing
from typing import Annotated, Any

import numpy as np
import pytest
from annotated_types import Ge, Gt, Interval, Le, Lt, MinLen, MultipleOf

from taet import config, methods, protocols, registry
from taet.bounds import OnlyWith, Rule, Settings, Share, bounds_text, check_value
from taet.config import Data, Evaluation, Model, Outer, Run, Threat, Training
from taet.errors import UserError
from taet.training.record import run_from_json

PARTS = (Data, Model, Threat, Training, Evaluation)
CHOICES = [
    (part, field.name)
    for part in PARTS
    for field in dataclasses.fields(part)
    if typing.get_origin(typing.get_type_hints(part)[field.name]) is typing.Literal
]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Threat(eps=8), r"threat eps: got 8; allowed: 0 to 1.*did you mean 8/255\?"),
        (lambda: Threat(eps=-0.1), r"threat eps: got -0\.1; allowed: 0 to 1"),
        (lambda: Threat(eps=300), r"threat eps: got 300; allowed: 0 to 1.*8/255$"),
        (lambda: Threat(eps=math.nan), "threat eps: got nan"),
        (lambda: Threat(step_size=2), r"threat step size: got 2;.*did you mean 2/255\?"),
        (lambda: Threat(steps=-1), "threat steps: got -1; allowed: 0 or more"),
        (lambda: Evaluation(eps=4), r"evaluation eps: got 4;.*did you mean 4/255\?"),
        (lambda: Evaluation(step_size=1.5), "evaluation step size: got 1.5"),
        (lambda: Evaluation(batch_size=0), "evaluation batch size: got 0; allowed: 1 or more"),
        (lambda: Evaluation(attacks=()), "attacks: got none; allowed: at least 1"),
        (lambda: Data(imbalance_ratio=0.02), r"imbalance ratio: got 0\.02; allowed: 1 or more.*did you mean 50\?"),
        (
            lambda: Data(imbalance_ratio=0),
            r"imbalance ratio: got 0; allowed: 1 or more \(largest class over smallest\)$",
        ),
        (lambda: Data(imbalance_ratio=math.inf), "imbalance ratio: got inf"),
        (lambda: Data(imbalance_ratio=math.nan), "imbalance ratio: got nan"),
        (lambda: Data(max_count=0), "max count: got 0; allowed: 1 or more"),
        (lambda: Data(test_max_count=-3), "test max count: got -3"),
        (lambda: Data(validation=1.0), "validation share: got 1; allowed: 0 up to, not including, 1"),
        (lambda: Data(size=3), "size: got 3; allowed: 4 to 2048 pixels"),
        (lambda: Training(epochs=0), "epochs: got 0; allowed: 1 or more"),
        (lambda: Training(batch_size=0), "batch size: got 0; allowed: 1 or more"),
        (lambda: Training(lr=0), "learning rate: got 0; allowed: above 0"),
        (lambda: Training(lr=math.inf), "learning rate: got inf"),
        (lambda: Training(momentum=1), "momentum: got 1"),
        (lambda: Training(weight_decay=-1e-4), "weight decay: got -0.0001"),
        (lambda: Training(milestones=(0.9, 0.75)), "milestones: got .*; allowed: rising shares"),
        (lambda: Training(milestones=(75, 90)), "milestones: got .*; allowed: rising shares"),
        (lambda: Training(monitor_steps=0), "monitor steps: got 0"),
        (lambda: Training(monitor_every=-1), "monitor every: got -1"),
        (lambda: Training(threads=0), "threads: got 0"),
    ],
)
def test_nonsense_is_refused_in_one_line(build: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        build()
    assert "\n" not in str(caught.value)


def test_the_borders_of_what_is_allowed_are_allowed() -> None:
    Threat(eps=0, step_size=0, steps=0)
    Threat(eps=1, step_size=1)
    Data(imbalance_ratio=1, max_count=1, validation=0, size=4)
    Training(epochs=1, batch_size=1, momentum=0, weight_decay=0, milestones=(), monitor_every=0, threads=1)
    Training(milestones=(0.5, 0.5, 1.0))


@pytest.mark.parametrize(("part", "name"), CHOICES, ids=lambda value: getattr(value, "__name__", value))
def test_a_value_outside_its_choices_is_refused(part: Any, name: str) -> None:
    allowed = typing.get_args(typing.get_type_hints(part)[name])
    near = allowed[0] + "x"
    for build in (lambda: part(**{name: near}), lambda: config.from_json(part, {name: near})):
        with pytest.raises(UserError, match=near):
            build()


@pytest.mark.parametrize(
    ("part", "values"),
    [
        (Training, {"epochs": "5"}),
        (Training, {"milestones": ["a"]}),
        (Run, {"training": 5}),
    ],
    ids=str,
)
def test_a_value_of_the_wrong_type_is_refused(part: Any, values: dict[str, Any]) -> None:
    """A run.json that was edited by hand: one line, never a traceback."""
    with pytest.raises(UserError):
        config.from_json(part, values)


def test_everything_is_frozen() -> None:
    for part in (Run(), *(kind() for kind in PARTS)):
        name = dataclasses.fields(part)[0].name
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(part, name, "other")


def test_override_replaces_dotted_fields_and_leaves_the_rest() -> None:
    run = Run()
    changed = config.override(run, {"training.epochs": 5, "seed": 1, "threat.eps": 4 / 255})
    assert (changed.training.epochs, changed.seed, changed.threat.eps) == (5, 1, 4 / 255)
    assert config.override(changed, {"training.epochs": 100, "seed": 0, "threat.eps": 8 / 255}) == run
    assert run == Run()
    assert config.override(run, {}) == run


def test_override_checks_each_part_again() -> None:
    with pytest.raises(UserError, match="did you mean 8/255"):
        config.override(Run(), {"threat.eps": 8})


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("training.epoch", "did you mean 'epochs'?"),
        ("trainin.epochs", "did you mean 'training'?"),
        ("threat.epsilon", "did you mean 'eps'?"),
        ("sed", "did you mean 'seed'?"),
        ("seed.x", "seed.x"),
        ("training.epochs.first", "training.epochs.first"),
    ],
)
def test_override_refuses_an_unknown_field_with_the_nearest_match(path: str, hint: str) -> None:
    with pytest.raises(UserError) as caught:
        config.override(Run(), {path: 1})
    assert hint in str(caught.value)
    assert path in str(caught.value)


@pytest.mark.parametrize("names", [("outer.name", "outer.gamma"), ("outer.gamma", "outer.name")])
def test_override_does_not_depend_on_the_order_within_a_part(names: tuple[str, str]) -> None:
    values = {"outer.name": "focal", "outer.gamma": 1.0}
    run = config.override(Run(), {name: values[name] for name in names})
    assert (run.outer.name, run.outer.gamma) == ("focal", 1.0)


def test_override_refuses_a_part_and_a_field_of_it() -> None:
    with pytest.raises(UserError, match=r"'outer\.gamma': outer is given as a whole as well"):
        config.override(Run(), {"outer": Outer("focal"), "outer.gamma": 1.0})


@pytest.mark.parametrize("protocol", sorted(protocols.PROTOCOLS))
def test_a_run_goes_to_json_and_back(protocol: str) -> None:
    run = protocols.start(protocol, "at")
    values = json.loads(json.dumps(config.to_json(run), allow_nan=False))
    assert run_from_json(values) == config.override(run, {"settings": methods.find("at").Config()})


@pytest.mark.parametrize("name", sorted(registry.entries("methods")))
def test_the_settings_of_every_method_go_to_json_and_back(name: str) -> None:
    kind = methods.find(name).Config
    values = json.loads(json.dumps(config.to_json(kind()), allow_nan=False))
    assert config.from_json(kind, values) == kind()
    assert set(values) == {field.name for field in dataclasses.fields(kind)}
    inside = config.to_json(dataclasses.replace(Run(), method=name, settings=kind()))
    assert inside["settings"] == config.to_json(kind())


def test_from_json_takes_defaults_for_what_is_missing_and_refuses_what_is_unknown() -> None:
    assert config.from_json(Run, {}) == Run()
    assert config.from_json(Run, {"threat": {"steps": 7}}) == Run(threat=Threat(steps=7))
    with pytest.raises(UserError, match=r"unknown field of Threat 'step'.*did you mean 'steps'\?"):
        config.from_json(Run, {"threat": {"step": 7}})
    with pytest.raises(UserError, match=r"did you mean 50\?"):
        config.from_json(Run, {"data": {"imbalance_ratio": 0.02}})


def test_the_defaults_hold_exact_fractions() -> None:
    assert Threat().eps * 255 == pytest.approx(8, rel=1e-15)
    assert Threat().step_size * 255 == pytest.approx(2, rel=1e-15)


def test_numpy_numbers_become_plain_ones() -> None:
    run = config.override(Run(), {"training.epochs": np.int64(3), "threat.eps": np.float32(0.5)})
    assert json.loads(json.dumps(config.to_json(run)))["training"]["epochs"] == 3
    assert type(run.threat.eps) is float


@pytest.mark.parametrize("minutes", [float("nan"), float("inf"), -1.0])
def test_minutes_between_checkpoints_are_finite(minutes: float) -> None:
    with pytest.raises(UserError, match="save minutes"):
        Training(save_minutes=minutes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gamma": 1.0}, "^outer gamma: got 1; allowed: with outer focal only$"),
        ({"name": "focal", "tau": 2.0}, "^outer tau: got 2; allowed: with outer logit-adjustment only$"),
        ({"name": "ldam", "beta": 0.9}, "^outer beta: got 0.9; allowed: with outer class-balanced or drw only$"),
        ({"name": "class-balanced", "scale": 5.0}, "outer scale"),
        ({"name": "balanced-softmax", "focal_form": "sigmoid"}, "outer focal form"),
    ],
)
def test_a_constant_that_the_outer_loss_has_not_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Outer(**changes)


def test_deferred_weights_have_their_constants_under_any_outer_loss() -> None:
    assert Outer(name="ldam", drw=True, beta=0.9, divide_by="batch").beta == 0.9


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"awp_start": 0.5}, "awp start: got 0.5; allowed: with awp above 0"),
        ({"workers": 2}, "workers: got 2; allowed: with"),
    ],
)
def test_what_would_do_nothing_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Training(**changes)


@dataclasses.dataclass(frozen=True)
class Plain:
    """A Config that does not check itself, as a custom method's may be."""

    power: Annotated[float, Ge(0), Le(4)] = 1.0
    form: Annotated[typing.Literal["a", "b"], OnlyWith(power=2.0)] = "a"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"power": 9.0}, "method power: got 9; allowed: 0 to 4"),
        ({"power": math.nan}, "method power: got nan; allowed: 0 to 4"),
        ({"power": "x"}, "method power: got 'x'; allowed: a number, 0 to 4"),
        ({"form": "c"}, "unknown form 'c'; allowed: a, b"),
        ({"form": "b"}, "method form: got 'b'; allowed: with power 2.0 only"),
    ],
)
def test_a_config_that_does_not_check_itself_is_checked_in_a_run(values: dict[str, Any], message: str) -> None:
    for build in (lambda: Run(settings=Plain(**values)), lambda: config.from_json(Plain, values, "method")):
        with pytest.raises(UserError, match=f"^{message}"):
            build()
    assert Run(settings=Plain(power=2.0, form="b")).settings.form == "b"


@pytest.mark.parametrize(
    ("hint", "text"),
    [
        (float, ""),
        (Annotated[float, Gt(0), Le(1e38)], "above 0, up to 1e+38"),
        (Annotated[int, Ge(1)] | None, "1 or more"),
        (Annotated[int | None, Ge(1)], "1 or more"),
        (Annotated[float, Interval(ge=0, lt=1)], "0 up to, not including, 1"),
        (Annotated[float, Lt(3)], "below 3"),
        (tuple[Annotated[float, Gt(0)], ...], "each above 0"),
        (Annotated[Share, Gt(0)], "above 0, up to 1"),
    ],
)
def test_bounds_in_words(hint: Any, text: str) -> None:
    assert bounds_text(hint) == text


def test_a_declaration_that_is_not_checked_is_an_error_of_the_program() -> None:
    with pytest.raises(TypeError, match="MultipleOf"):
        check_value("size", 5, Annotated[int, MultipleOf(2)])


tried: list[int] = []


def is_odd(value: int) -> bool:
    tried.append(value)
    return value % 2 == 1


@dataclasses.dataclass(frozen=True)
class Odd(Settings):
    number: Annotated[int, Rule(is_odd, "odd")] = 1


def test_a_default_is_checked_once_and_every_other_value_each_time() -> None:
    for number in (1, 1, 1, 1001, 1001):
        Odd(number)
    assert tried == [1, 1001, 1001]
    with pytest.raises(UserError, match="number: got 2; allowed: odd"):
        Odd(2)


@dataclasses.dataclass(frozen=True)
class Unusual(Settings):
    """What a custom method may declare: NumPy numbers, notes that cannot be hashed, a field without a default."""

    text: Annotated[Any, MinLen(1)]
    lr: Annotated[float, {"unit": "per step"}] = np.float32(0.5)  # type: ignore[assignment]


def test_fields_of_custom_settings() -> None:
    unusual = Unusual("a")
    assert json.dumps(dataclasses.asdict(unusual)) == '{"text": "a", "lr": 0.5}'
    with pytest.raises(UserError, match=r"text: got ''; allowed: .*at least 1"):
        Unusual("")


def test_a_default_that_its_field_does_not_allow_is_refused_each_time() -> None:
    @dataclasses.dataclass(frozen=True)
    class Wrong(Settings):
        number: Annotated[int, Ge(5)] = 1

    for _ in range(2):
        with pytest.raises(UserError, match="number: got 1; allowed: 5 or more"):
            Wrong()
