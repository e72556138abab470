"""`taet gate`: fails where the paired test is decided against the new model, and only there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from taet.evaluation import Column, ResultCard
from taet.statistics import difference

ACTION = Path(__file__).parents[2] / ".github" / "actions" / "gate" / "action.yml"
LABELS = np.repeat(np.arange(4), 50)
IN_BALL = {"norm": "linf", "eps": 0.1, "bounded": True}
ATTACKS: dict[str, dict[str, Any]] = {
    "clean": {"norm": None, "eps": None, "bounded": False},
    "pgd-20": {**IN_BALL, "parameters": {"steps": 20, "step_size": 0.01}},
    "deepfool": {"norm": "l2", "eps": None, "bounded": False},
}


def write(path: Path, lost: dict[str, int], images: str = "cd" * 32, **change: Any) -> Path:
    """Write a card whose columns `lost` have so many wrong images, the first of every class in turn."""
    order = np.argsort(np.arange(200) % 50, kind="stable")  # a class after another
    columns = []
    for name, count in lost.items():
        predictions = LABELS.copy()
        predictions[order[:count]] = (predictions[order[:count]] + 1) % 4
        about = {"parameters": {}, **ATTACKS.get(name, IN_BALL), **change.get(name, {})}
        columns.append(Column(name=name, correct=predictions == LABELS, predictions=predictions, **about))
    data = {"name": "toy", "class_names": list("abcd"), "test_sha256": images}
    model = {"name": "small", "weights_sha256": "ab" * 32, "leak": False}
    threat = {"norm": "linf", "eps": 0.1}
    names = {"method": "at", "title": "AT", "protocol": "taet", "seed": 0, "batch_size": 50}
    card = ResultCard(**names, threat=threat, model=model, data=data, labels=LABELS, columns=tuple(columns))
    card.save(path)
    return path


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return write(tmp_path / "old.json", {"clean": 20, "pgd-20": 100, "deepfool": 190})


@pytest.mark.parametrize(
    ("clean", "attacked", "code", "decisions"),
    [
        (20, 60, 0, ["undecided", "better"]),
        (20, 140, 1, ["undecided", "worse"]),
        (23, 104, 0, ["undecided", "undecided"]),
        (60, 60, 1, ["worse", "better"]),
        (20, 100, 0, ["undecided", "undecided"]),
    ],
)
def test_it_fails_where_the_new_model_is_known_to_be_worse(
    taet: Any, old: Path, clean: int, attacked: int, code: int, decisions: list[str]
) -> None:
    new = write(old.with_name("new.json"), {"clean": clean, "pgd-20": attacked, "deepfool": 199})
    outcome = taet("gate", old, new)
    assert (outcome.code, outcome.err) == (code, "")
    header, *rows, last = outcome.out.splitlines()
    assert header.split()[-1] == "decision"
    assert [row.split()[0] for row in rows] == ["clean", "pgd-20"]  # no accuracy under an attack without a bound
    assert [row.split()[-1] for row in rows] == decisions
    assert last.startswith("FAIL: worse in " if code else "pass: ")
    found = json.loads(taet("gate", old, new, "--json").out)
    assert found["passed"] is (code == 0)
    masks = [ResultCard.load(path).column("pgd-20").correct for path in (new, old)]
    expected = difference(*masks, LABELS, 4, comparisons=2)
    row = found["columns"][1]
    assert (row["difference"], row["low"], row["high"], row["p"]) == (
        expected.value, expected.low, expected.high, expected.p,
    )  # fmt: skip
    assert row["difference"] == pytest.approx((100 - attacked) / 200)


def test_a_loss_within_the_margin_passes(taet: Any, old: Path) -> None:
    new = write(old.with_name("new.json"), {"clean": 20, "pgd-20": 120, "deepfool": 190})
    call = ("gate", old, new, "--columns", "pgd-20", "--margin")
    assert taet(*call, "0.02").code == 1
    outcome = taet(*call, "0.08")  # the interval reaches above -8 points
    assert outcome.code == 0
    assert "worse, within the margin" in outcome.out


def test_the_columns_share_the_error(taet: Any, old: Path) -> None:
    """Seven more images lost: p = 2 * 0.5^7 = 0.016, which decides alone, and not among four."""
    same = dict.fromkeys(("fgsm", "cw-linf-20", "quick"), 100)
    old = write(old, {"pgd-20": 100, **same})
    new = write(old.with_name("new.json"), {"pgd-20": 107, **same})
    assert taet("gate", old, new, "--columns", "pgd-20").code == 1
    assert taet("gate", old, new).code == 0


def test_a_named_column_and_the_worst_case_are_compared(taet: Any, old: Path) -> None:
    new = write(old.with_name("new.json"), {"clean": 20, "pgd-20": 140, "deepfool": 190})
    assert taet("gate", old, new, "--columns", "clean").code == 0
    assert taet("gate", old, new, "--columns", "worst-case").code == 1
    assert taet("gate", old, new, "--columns", "deepfool").code == 0


@pytest.mark.parametrize(
    ("lost", "change", "options", "message"),
    [
        ({"clean": 1, "pgd-20": 1}, {"images": "ee" * 32}, [], "allowed: the same images"),
        (
            {"clean": 1},
            {},
            [],
            "the new card has no column pgd-20; allowed: the same columns, or --columns clean",
        ),
        (
            {"clean": 1, "pgd-20": 1},
            {"pgd-20": {**IN_BALL, "parameters": {"steps": 20, "step_size": 0.02}}},
            [],
            "'pgd-20' was measured with step_size 0.02 and 0.01; allowed: the same settings",
        ),
        ({"clean": 1, "pgd-20": 1}, {}, ["--columns", "pdg-20"], "did you mean 'pgd-20'?"),
        ({"clean": 1, "pgd-20": 1}, {}, ["--columns", "clean", "clean"], "allowed: each once"),
        ({"clean": 1, "pgd-20": 1}, {}, ["--margin", "1"], "margin: got 1; allowed: 0 up to, not including, 1"),
        ({"deepfool": 1}, {}, [], "the new card has no column clean, pgd-20; allowed: the same columns\n"),
    ],
)
def test_cards_that_cannot_be_compared_are_one_line(
    taet: Any, old: Path, lost: dict[str, int], change: dict[str, Any], options: list[str], message: str
) -> None:
    new = write(old.with_name("new.json"), lost, **change)
    outcome = taet("gate", old, new, *options)
    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (2, "", 1)
    assert message in outcome.err


def test_a_damaged_card_and_a_missing_one_are_one_line(taet: Any, old: Path) -> None:
    new = write(old.with_name("new.json"), {"clean": 20, "pgd-20": 140})
    new.write_text(new.read_text().replace('"seed": 0', '"seed": 1'))
    assert "was changed or damaged" in taet("gate", old, new).err
    assert taet("gate", old, old.with_name("none.json")).code == 2
    assert taet("gate", old).code == 2


@pytest.mark.full
@pytest.mark.parametrize(("attacked", "code"), [(60, 0), (140, 1)])
def test_the_github_action_runs_the_gate(old: Path, attacked: int, code: int) -> None:
    new = write(old.with_name("$(touch injected).json"), {"clean": 20, "pgd-20": attacked, "deepfool": 190})
    outcome = act(old.parent, OLD=old.name, NEW=new.name, COLUMNS_OF_CARDS="clean pgd-20", MARGIN="0.01")
    assert outcome.returncode == code, outcome.stderr
    assert "pgd-20" in (old.parent / "summary").read_text()
    name, *lines, end = (old.parent / "output").read_text().splitlines()
    assert (name, end) == ("verdict<<END_OF_VERDICT", "END_OF_VERDICT")
    assert json.loads("\n".join(lines))["passed"] is (code == 0)
    assert not (old.parent / "injected").exists()


@pytest.mark.full
def test_the_github_action_gates_columns_that_stand_in_several_lines(old: Path) -> None:
    new = write(old.with_name("new.json"), {"clean": 20, "pgd-20": 140, "deepfool": 190})
    outcome = act(old.parent, OLD=old.name, NEW=new.name, COLUMNS_OF_CARDS="clean\n pgd-20\n", MARGIN="0")
    assert outcome.returncode == 1, outcome.stderr
    assert "pgd-20" in outcome.stdout


@pytest.mark.full
def test_the_github_action_fails_on_cards_that_cannot_be_compared(old: Path) -> None:
    outcome = act(old.parent, OLD=old.name, NEW="none.json", COLUMNS_OF_CARDS="", MARGIN="0")
    assert outcome.returncode == 2
    assert "none.json" in outcome.stderr


def act(place: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the last step of the action as GitHub does, with its inputs as variables."""
    step = yaml.safe_load(ACTION.read_text())["runs"]["steps"][-1]
    assert set(step["env"]) == {*variables}
    assert "${{" not in step["run"]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    files = {"GITHUB_STEP_SUMMARY": str(place / "summary"), "GITHUB_OUTPUT": str(place / "output")}
    root = {"PYTHONPATH": str(ACTION.parents[3])}
    return subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
        cwd=place, env={**os.environ, "PATH": path, **files, **root, **variables},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
