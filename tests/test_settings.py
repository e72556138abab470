"""A run as a value: checked when it is built, changed field by field, and to JSON and back."""

import json
import math
import typing
from typing import Annotated, Any, NotRequired, Required

import numpy as np
import pytest
from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from taet import methods, protocols, registry
from taet.errors import nearest
from taet.settings import Data, Evaluation, Outer, Run, Threat, Training, override
from taet.settings.schema import from_json
from taet.settings.types import (
    Count,
    LongSeed,
    OnlyWith,
    PartialShare,
    Radius,
    Ratio,
    Rule,
    Settings,
    check_value,
    read_text,
    refused,
)
from tests.calls import one_line


class Sample(Settings):
    """Fields of every kind."""

    label = "sample"

    count: Count = 1
    seed: LongSeed = 0
    radius: Radius = 8 / 255
    ratio: Ratio | None = None
    share: Annotated[PartialShare, Field(title="share of all")] = 0.5
    form: typing.Literal["a", "b"] = "a"
    power: Annotated[float, OnlyWith(form="b")] = 1.0
    pair: Annotated[tuple[int, int], Rule(lambda pair: pair[0] <= pair[1], "rising")] = (1, 2)
    words: Annotated[tuple[str, ...], Field(min_length=1)] = ("x",)
    on: bool = False


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"count": 0}, "sample count: got 0; allowed: a whole number, 1 or more"),
        ({"count": 10**7}, "sample count: got 10000000; allowed: a whole number, 1 to 1000000"),
        ({"count": 3.0}, "sample count: got 3.0; allowed: a whole number, 1 or more"),
        ({"count": "3"}, "sample count: got '3'; allowed: a whole number, 1 or more"),
        (
            {"radius": 8},
            "sample radius: got 8; allowed: a number, 0 to 1, in units of the image range, e.g. "
            "8/255; did",
        ),
        ({"radius": "8/0"}, "sample radius: got '8/0'; allowed: a number, 0 to 1"),
        (
            {"ratio": 0.02},
            "sample ratio: got 0.02; allowed: a number, 1 or more, largest class over smallest; "
            "did you mean 50?",
        ),
        ({"share": 1}, "share of all: got 1; allowed: a number, 0 or more, below 1"),
        ({"form": "c"}, "unknown form 'c'; allowed: a, b"),
        ({"form": "b", "power": -math.inf}, "sample power: got -inf; allowed: a number"),
        ({"power": 2.0}, "sample power: got 2; allowed: with form b only"),
        ({"pair": (2, 1)}, "sample pair: got (2, 1); allowed: 2 whole numbers, rising"),
        ({"pair": (1, "b")}, "sample pair[1]: got 'b'; allowed: a whole number"),
        ({"words": ()}, "sample words: got none; allowed: texts, at least 1"),
        ({"fromm": "a"}, "unknown field of Sample 'fromm'; allowed: count, form, on"),
    ],
)
def test_nonsense_is_refused_in_one_line(given: dict[str, Any], message: str) -> None:
    for build in (
        lambda: Sample(**given),
        lambda: from_json(Sample, given),
        lambda: Sample().replace(**given),
    ):
        with one_line() as caught:
            build()
        assert str(caught.value).startswith(message)


class Entry(TypedDict, total=False):
    name: Required[str]
    count: NotRequired[Count]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"name": 5}, "entry name: got 5; allowed: a text"),
        ({"name": "a", "count": 0}, "entry count: got 0; allowed: a whole number, 1 or more"),
    ],
)
def test_a_field_that_may_be_absent_is_refused_by_its_own_name(
    given: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(Entry).validate_python(given)
    assert str(refused(caught.value, Entry, "entry")) == message


def test_the_borders_are_allowed() -> None:
    Sample(count=10**6, radius=1, ratio=1, share=0, pair=[1, 1], power=2.0, form="b")  # type: ignore[arg-type]
    Threat(eps=0, step_size=0, steps=0)
    assert from_json(Sample, {"radius": "8/255"}).radius == 8 / 255
    check_value("eps", np.float32(0.5), Radius)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Evaluation(eps=0), "evaluation eps: got 0; allowed: a number, above 0, up to 1"),
        (
            lambda: Training(milestones=(75, 90)),
            r"milestones: got \(75, 90\); allowed: numbers, rising shares",
        ),
        (lambda: Data(size=3), "size: got 3; allowed: a whole number, 4 to 2048"),
        (
            lambda: Data(image_template="{}"),
            r"data image template: got '\{\}'; this setting has left",
        ),
        (lambda: Data(extra="folder:x"), "data extra: got 'folder:x' without a source"),
        (
            lambda: Outer(name="ldam", beta=0.9),
            "outer beta: got 0.9; allowed: with outer class-balanced or drw only",
        ),
        (
            lambda: Outer(name="focal", label_smoothing=0.1),
            "label smoothing: got 0.1; allowed: with outer cross-entropy or balanced-softmax or",
        ),
        (lambda: Training(awp_start=0.5), "awp start: got 0.5; allowed: with awp only"),
        (lambda: Training(ema=0.9, swa=0.5), "swa: got 0.5; allowed: with ema 0.0 only"),
        (lambda: Threat(step_size=0, start="none"), "threat steps: got 10 of 0 with start none"),
        (
            lambda: from_json(Run, {"threat": {"step": 7}}),
            r"unknown field of Threat 'step'.*did you mean 'steps'\?",
        ),
        (
            lambda: from_json(Run, {"method": "trades", "settings": {"beta": -1}}),
            "method beta: got -1; allowed: a number, 0 or",
        ),
        (
            lambda: override(Run(), {"training.epoch": 1}),
            "'training.epoch': field 'epoch'; allowed: .*; did you mean",
        ),
        (lambda: override(Run(), {"seed.x": 1}), "setting 'seed.x': seed has no fields"),
    ],
)
def test_what_a_run_refuses(build: Any, message: str) -> None:
    with one_line(message):
        build()


def test_the_nearest_name_is_a_similar_one() -> None:
    names = ("cross-entropy", "focal", "ldam", "pgd-20")
    assert [nearest(got, names) for got in ("foo", "pdg-20", "FOCAL")] == [None, "pgd-20", "focal"]


@pytest.mark.parametrize("order", [1, -1])
def test_override_sets_all_fields_of_a_part_at_once(order: int) -> None:
    changes = {"outer.name": "focal", "outer.gamma": 1.0, "training.epochs": np.int64(5), "seed": 1}
    changed = override(Run(), dict([*changes.items()][::order]))
    assert (changed.outer.name, changed.outer.gamma, changed.training.epochs, changed.seed) == (
        "focal",
        1.0,
        5,
        1,
    )
    back = {"outer.name": "cross-entropy", "outer.gamma": 2.0, "training.epochs": 100, "seed": 0}
    assert override(changed, back) == Run() == override(Run(), {})
    both = dict([("data", {"name": "cifar10-lt"}), ("data.size", 8)][::order])
    assert (override(Run(), both).data.name, override(Run(), both).data.size) == ("cifar10-lt", 8)


@pytest.mark.parametrize("name", sorted(registry.entries("methods")))
def test_a_run_goes_to_json_and_back(name: str) -> None:
    run = protocols.reat(name).replace(settings=methods.find(name).Config(), seed=3)
    values = json.loads(json.dumps(run.model_dump(), allow_nan=False))
    assert from_json(Run, values) == run
    assert json.loads(json.dumps(from_json(Run, values).model_dump())) == values


def test_numbers_stay_as_they_were_given() -> None:
    """A ratio of 10 and of 10.0 are written differently, and hashes of runs are taken of what is
    written."""
    for given in (10, 10.0):
        run = override(Run(), {"data.imbalance_ratio": given, "training.milestones": (0.5, 1)})
        assert json.dumps(run.model_dump()["data"]["imbalance_ratio"]) == json.dumps(given)
        assert json.dumps(run.model_dump()["training"]["milestones"]) == "[0.5, 1]"
        assert from_json(Run, run.model_dump()) == run
    assert type(Threat(eps=np.float32(0.5)).eps) is float


@pytest.mark.parametrize(
    ("text", "hint", "value"),
    [
        ("8/255", Radius, 8 / 255),
        ("1e-3", float, 1e-3),
        ("3", int | None, 3),
        ("none", int | None, None),
        ("none", str, "none"),
        ("true", bool, True),
        *((text, float, text) for text in ("nan", "1/0", "1/2/3", "1_000", "1e999", " 1", "٣")),
        *((text, int, text) for text in ("3.0", "1_0", "", "9" * 41)),
    ],
)
def test_text_is_read_as_the_type_of_its_field(text: str, hint: Any, value: Any) -> None:
    found = read_text(text, hint)
    assert (found, type(found)) == (value, type(value))
