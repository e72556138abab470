"""Replicates and budgets in a comparison."""

from pathlib import Path
from typing import Any

from taet.experiments.grid import cells_of, parse
from tests.calls import one_line

SMALL: dict[str, Any] = {
    "methods": ["at", "standard"],
    "data": ["digits-lt"],
    "imbalance": [10],
    "settings": {"model": "resnet8", "threat.steps": 2},
}


def test_a_replicate_redraws_seed_images_and_class_order(tmp_path: Path) -> None:
    grid = parse({**SMALL, "replicates": [1, 2]})
    cells = cells_of(grid, tmp_path)
    assert [cell.name for cell in cells[:2]] == [
        "at_digits-lt_ir10_replicate1",
        "standard_digits-lt_ir10_replicate1",
    ]
    run = cells[2].run
    assert run is not None
    assert (run.seed, run.data.seed, run.data.class_order) == (2, 2, 2)
    assert cells[2].settings["data.class_order"] == 2  # its command says so too


def test_data_that_are_not_cut_have_no_class_order_to_redraw(tmp_path: Path) -> None:
    plain = {name: value for name, value in SMALL.items() if name != "imbalance"}
    run = cells_of(parse({**plain, "data": ["gtsrb"], "replicates": [1]}), tmp_path)[0].run
    assert run is not None
    assert (run.data.seed, run.data.class_order) == (1, None)


def test_replicates_and_what_they_set_are_not_given_twice() -> None:
    with one_line("replicates: got seeds as well; allowed: one of them"):
        parse({**SMALL, "replicates": [1], "seeds": [3]})
    with one_line("replicates: got data.seed as well; allowed: one of them"):
        parse({**SMALL, "replicates": [1], "settings": {"data.seed": 3}})


def test_a_budget_in_passes_gives_each_method_its_epochs(tmp_path: Path) -> None:
    cells = cells_of(parse({**SMALL, "passes": 9}), tmp_path)
    epochs = {cell.method: cell.settings["training.epochs"] for cell in cells}
    assert epochs == {"at": 3, "standard": 9}


def test_a_budget_beside_epochs_is_refused() -> None:
    with one_line("passes: got epochs as well; allowed: one of them"):
        parse({**SMALL, "passes": 9, "settings": {"epochs": 3}})
