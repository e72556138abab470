"""The flags of a single-step run: when they rise, that its curve has FGSM, and a run that
collapses."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from taet.run.record import Epoch
from taet.settings import Run
from taet.settings.schema import from_json
from taet.training import train
from taet.training.curve import training_flags
from tests.golden_numbers import Golden


def epochs(pgd: list[float], fgsm: list[float] | None) -> list[Epoch]:
    """Rows of a run with these balanced accuracies on ten classes of a hundred images."""

    def counts(share: float) -> dict[str, list[int]]:
        return {"correct": [round(100 * share)] * 10, "total": [100] * 10}

    rows = []
    for number, robust in enumerate(pgd):
        point: dict[str, Any] = {"split": "test", "clean": counts(0.9), "pgd-20": counts(robust)}
        point |= {} if fgsm is None else {"fgsm": counts(fgsm[number])}
        rows.append(
            {
                "epoch": number + 1,
                "stage": "adversarial",
                "loss": {},
                "monitor": point,
                "seconds": 1.0,
            }
        )
    return [from_json(Epoch, row) for row in rows]


def test_one_flag_at_most_says_when_how_far_and_why() -> None:
    inputs = Golden("collapse_flag").raw
    found = {name: training_flags(epochs(**accuracies)) for name, accuracies in inputs.items()}
    raised = {name: next(iter(flags), None) for name, flags in found.items()}
    expected = {
        "healthy": None,
        "collapse": "catastrophic-overfitting",
        "robustness_lost_otherwise": "robustness-lost",
        "gap_alone": None,
    }
    assert raised == expected
    (text,) = found["collapse"].values()
    assert "In epoch 4 balanced accuracy under pgd-20 fell to 5.0 %" in text
    assert not training_flags(epochs(inputs["collapse"]["pgd"], None)), (
        "a run of several steps has no such flag"
    )
    assert not training_flags(epochs([0.02, 0.08, 0.01], [0.1, 0.2, 0.5])), (
        "below chance there is nothing to lose"
    )
    assert not training_flags(epochs([0.3, 0.1, 0.4], [0.3, 0.1, 0.4])), "it recovered"
    assert (
        "In epoch 4 "
        in training_flags(epochs([0.3, 0.1, 0.4, 0.1], [0.3, 0.1, 0.4, 0.1]))["robustness-lost"]
    )
    assert not training_flags([])


@pytest.mark.full
def test_the_curve_of_a_single_step_run_has_fgsm(tiny: Callable[..., Run], tmp_path: Path) -> None:
    usual, single = ["split", "clean", "pgd-2"], ["split", "clean", "fgsm", "pgd-2"]
    courses = (("n-fgsm", 2, single), ("at", 2, usual), ("at", 1, single), ("standard", 1, usual))
    for method, steps, names in courses:
        changes = {
            "threat.steps": steps,
            "training.monitor_steps": 2,
            "training.precision": "float32",
        }
        changes["training.epochs"] = 1
        finished = train(tiny(method, changes), out=tmp_path / f"{method}-{steps}")
        for row in finished.history:
            point = row["monitor"]
            assert list(point) == names
            assert names == usual or sum(point["fgsm"]["correct"]) <= sum(point["clean"]["correct"])
