"""One table says what each setting decides, and everybody who compares runs asks it."""

from typing import Annotated, Any, ClassVar

import pytest
from pydantic import Field

from taet.run.identity import (
    differences,
    names_with,
    naming_settings,
    role_of,
    roles,
    run_hash,
    training_settings,
)
from taet.settings import Run, override
from taet.settings.roles import Role, roles_of
from taet.settings.types import Settings


def test_a_setting_without_a_role_decides_the_weights() -> None:
    class New(Settings):
        sharpness: float = 0.0

    assert dict(roles_of(New, "training.")) == {"training.sharpness": Role.WEIGHTS}


def test_a_role_stands_beside_the_bounds_of_its_field_or_on_its_class() -> None:
    class New(Settings):
        role: ClassVar[Role] = Role.EVALUATION
        patience: int = 0
        seed: Annotated[int, Field(ge=0), Role.REPLICATE] = 0

    assert dict(roles_of(New)) == {"patience": Role.EVALUATION, "seed": Role.REPLICATE}


def test_replicates_are_the_seed_the_seed_of_the_data_and_the_class_order() -> None:
    assert names_with(Role.REPLICATE) == {"seed", "data.seed", "data.class_order"}


def changed(name: str) -> Any:
    """Another value of a setting, of its own type."""
    values: dict[str, Any] = {"training.lr": 0.2, "seed": 1, "data.seed": 1, "training.threads": 3}
    return values[name]


@pytest.mark.parametrize(
    ("name", "names_a_row", "is_another_run"),
    [
        ("training.lr", True, True),
        ("seed", False, True),
        ("data.seed", False, True),
        ("training.threads", False, False),
    ],
)
def test_rows_and_runs_are_told_apart_by_the_role(
    name: str, names_a_row: bool, is_another_run: bool
) -> None:
    first, second = Run(), override(Run(), {name: changed(name)})
    settings = training_settings(first), training_settings(second)
    assert (naming_settings(settings[0]) != naming_settings(settings[1])) == names_a_row
    assert differences(*settings) == ([name] if is_another_run else [])
    stored = first.model_dump(mode="json"), second.model_dump(mode="json")
    assert (run_hash(stored[0]) != run_hash(stored[1])) == is_another_run


def test_a_whole_number_and_its_float_are_one_value() -> None:
    settings = training_settings(Run())
    assert differences({**settings, "training.swa": 1}, {**settings, "training.swa": 1.0}) == []


def test_every_setting_of_a_run_is_in_the_table() -> None:
    assert {name for name in roles() if role_of(name) is not roles()[name]} == set()
    assert {"training.awp", "outer.tau", "data.train_share"} <= names_with(Role.WEIGHTS)
