"""Every field of a stored card is of its type and within its bounds, whatever a file says."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from taet.errors import UserError
from taet.evaluation import ResultCard
from taet.files import seal
from taet.shapes import check_shape

RESULTS = Path(__file__).parents[2] / "results"
CARD = RESULTS / "digits-lt-precision" / "at-bsl-bf16-seed0.json"
Evaluated = Callable[..., ResultCard]
Place = tuple[str | int, ...]


def nested(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


DELETED = object()
VALUES = {
    "deleted": DELETED,
    "null": None,
    "text": "x",
    "number": 5,
    "negative": -1,
    "half": 0.5,
    "nan": math.nan,
    "inf": math.inf,
    "big": 1e300,
    "huge": 10**30,
    "digits": 10**400,
    "list": [],
    "object": {},
    "true": True,
    "surrogate": "\ud800",
    "long": "y" * 10_000,
    "deep": nested(3000),
}


def places(value: Any, place: Place = ()) -> Iterator[Place]:
    """Yield where every field is, and the first two entries of every list."""
    if place:
        yield place
    if isinstance(value, dict):
        for name, entry in value.items():
            yield from places(entry, (*place, name))
    if isinstance(value, list):
        for number, entry in enumerate(value[:2]):
            yield from places(entry, (*place, number))


def changed(stored: Any, place: Place, value: Any) -> Any:
    """Return a copy with another value at one place."""
    first, *rest = place
    copy = stored.copy()
    if rest:
        copy[first] = changed(stored[first], tuple(rest), value)
    elif value is DELETED:
        del copy[first]
    else:
        copy[first] = value
    return copy


def survey(stored: dict[str, Any], every: list[Place]) -> tuple[int, set[tuple[Place, str]]]:
    """Change every place in every way; return how many cards were refused in one line, and which changes were not."""
    refused, accepted = 0, set()
    for place in every:
        for name, value in VALUES.items():
            try:
                repr(ResultCard.from_json(changed(stored, place, value)))
                accepted.add((place, name))
            except UserError as error:
                if "\n" in str(error) or len(str(error)) > 600:
                    raise
                refused += 1
    return refused, accepted


OPTIONAL = {"parameters", "selection", "epoch", "leak", "notes", "answers", "train_class_counts", "imbalance_ratio"}


@pytest.mark.full
def test_no_field_outside_the_columns_has_a_value_that_it_cannot_have() -> None:
    stored = json.loads(CARD.read_text())
    stored["columns"] = []
    every = [place for place in places(stored) if place[0] != "columns" and place[:2] != ("run", "config")]
    refused, accepted = survey(stored, every)
    assert refused > 800
    impossible = {"nan", "inf", "huge", "digits", "surrogate", "deep"}
    assert {name for _, name in accepted}.isdisjoint(impossible)
    for place, name in accepted:
        assert name != "deleted" or place[0] in ("environment", "probe", "run") or {*place} & (OPTIONAL | {0, 1}), place
        assert name != "negative" or place[-1] == "seed" or place[1:2] == ("answers",), place


def test_no_field_of_a_column_has_a_value_that_it_cannot_have() -> None:
    stored = json.loads(CARD.read_text())
    stored["columns"] = stored["columns"][2:3]
    every = [place for place in places(stored) if place[0] == "columns" and place[2:3] != ("summary",)]
    refused, accepted = survey(stored, every)
    assert refused > 400
    for place, name in accepted:
        assert name not in {"nan", "inf", "huge", "digits", "surrogate", "deep"}, (place, name)
        assert name != "negative" or place[-1] == "seed", place


@pytest.mark.full
def test_no_field_of_any_kind_of_card_ends_in_a_traceback() -> None:
    for folder in ("own-data", "digits-lt-attacks", "cifar10-lt-attacks"):
        stored = json.loads(min((RESULTS / folder).glob("*.json")).read_text())
        assert survey(stored, [*places(stored)])[0] > 3000


def test_an_evaluation_refuses_a_changed_card_or_goes_on_from_it(evaluated: Evaluated, tmp_path: Path) -> None:
    check_reuse(evaluated, tmp_path, step=67)


@pytest.mark.full
def test_an_evaluation_refuses_every_changed_card_or_goes_on_from_it(evaluated: Evaluated, tmp_path: Path) -> None:
    check_reuse(evaluated, tmp_path, step=1)


def check_reuse(evaluated: Evaluated, folder: Path, step: int) -> None:
    """Change a card in every `step`-th way, with a checksum that fits, and evaluate again if it can be read."""
    expected = evaluated("pgd-3", "autoattack-fast", out=folder)
    path = folder / "evaluation.json"
    stored = json.loads(path.read_text())
    every = [place for place in places(stored) if "summary" not in place]
    cases = [(place, value) for place in every for value in VALUES.values()]
    for place, value in cases[::step]:
        if not readable(changed(stored, place, value)):
            continue
        for old in folder.glob("*.json"):
            old.unlink()
        path.write_text(json.dumps(seal(changed(stored, place, value))))
        try:
            card = evaluated("pgd-3", "autoattack-fast", out=folder)
        except UserError as error:
            if "\n" in str(error):
                raise
            continue
        for column in card.columns[:3]:
            assert column.correct.tolist() == expected.column(column.name).correct.tolist(), (place, value)


def readable(stored: Any) -> bool:
    try:
        ResultCard.from_json(stored)
    except UserError:
        return False
    return True


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("threat", "norm"), "l7", "unknown threat norm 'l7'; allowed: l2, linf"),
        (("threat", "eps"), "x", "threat eps: got 'x'; allowed: a number"),
        (("threat", "eps"), 0, "threat eps: got 0; allowed: above 0"),
        (("threat", "eps"), 8, r"threat eps: got 8; allowed: 0 to 1.*did you mean 8/255\?"),
        (("batch_size",), math.inf, "batch_size: got inf; allowed: a whole number"),
        (("batch_size",), 10**400, "batch_size: got a whole number of 1329 bits; allowed: up to 64"),
        (("model", "weights_sha256"), "ab", "model weights_sha256: got 'ab'; allowed: 64 hexadecimal digits"),
        (("data", "class_names"), ["a"], "data class_names: got 1; allowed: 2 to 65536"),
        (("data", "train_class_counts", 0), "x", r"data train_class_counts\[0\]: got 'x'; allowed: a whole number"),
        (("run", "config", "training", "epochs"), 0, "run config training epochs: got 0; allowed: 1 or more"),
        (("flags",), [{"flag": "a"}], r"flags\[0\]: the field 'text' is missing"),
        (("probe", "images"), 0, "probe images: got 0; allowed: 1 or more"),
        (("probe", "zero_gradients"), DELETED, "probe: the field 'zero_gradients' is missing"),
        (("columns", 1, "name"), 5, r"columns\[1\] name: got 5; allowed: a text"),
        (("columns", 1, "norm"), "l7", r"unknown columns\[1\] norm 'l7'; allowed: l2, linf"),
        (("columns", 1, "norm"), "l2", "attack 'pgd-20': got norm 'l2'; allowed: 'linf', as its name says"),
        (("columns", 1, "norm"), None, "attack 'pgd-20': got norm None; allowed: 'linf', as its name says"),
        (("columns", 1, "eps"), None, "attack 'pgd-20': got no eps; allowed: a number, since this attack needs a ball"),
        (("columns", 1, "eps"), 3.0, "attack 'pgd-20': eps: got 3; allowed: 0 to 1"),
        (("columns", 1, "parameters", "steps"), "x", "attack 'pgd-20': got steps 'x'; allowed: 20, as its name says"),
        (("columns", 1, "parameters", "steps"), 10, "attack 'pgd-20': got steps 10; allowed: 20, as its name says"),
        (("columns", 1, "parameters", "step_size"), "x", "attack 'pgd-20' step size: got 'x'; allowed: a number"),
        (("columns", 1, "parameters", "source"), {"name": "b"}, "source: the field 'weights_sha256' is missing"),
        (("columns", 1, "forwards"), math.inf, r"columns\[1\] forwards: got inf; allowed: a whole number"),
        (("columns", 1, "correct", "count"), 10**9, r"a field has the wrong form \(.* bytes for 1000000000 bits\)"),
        (("columns", 1, "roc_auc", "shape"), [-1], r"columns\[1\] roc_auc shape\[0\]: got -1; allowed: 0 to"),
        (("columns", 1, "correct", "bits"), "é", "a field has the wrong form"),
    ],
)
def test_what_is_wrong_is_said_with_what_is_allowed(place: Place, value: Any, message: str) -> None:
    stored = json.loads(CARD.read_text())
    with pytest.raises(UserError, match=message):
        ResultCard.from_json(changed(stored, place, value))


def test_a_field_of_a_later_version_is_not_looked_at_but_for_its_bounds() -> None:
    stored = json.loads(CARD.read_text())
    assert ResultCard.from_json({**stored, "later": [1]}).to_json() == ResultCard.from_json(stored).to_json()
    with pytest.raises(UserError, match="model later: got nan"):
        ResultCard.from_json(changed(stored, ("model", "later"), math.nan))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": {"name": Path("x")}}, "data name: got PosixPath"),
        ({"model": {"name": "a", "weights_sha256": "0" * 63}}, "allowed: 64 hexadecimal"),
        ({"data": {"name": "a", "note": math.inf}}, "data note: got inf"),
    ],
)
def test_a_card_that_could_not_be_read_again_is_never_made(change: dict[str, Any], message: str) -> None:
    known = ResultCard.load(CARD)
    fields = {name: getattr(known, name) for name in vars(known) if name != "facts"}
    change = {name: {**fields[name], **value} for name, value in change.items()}
    with pytest.raises(UserError, match=message):
        ResultCard(**{**fields, **change})


def test_only_the_keys_of_an_object_are_texts() -> None:
    with pytest.raises(UserError, match="data: a name: got 1; allowed: a text"):
        check_shape("data", {1: 2}, dict[str, Any])
