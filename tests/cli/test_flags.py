"""From words to a Run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from taet import protocols
from taet.cli.evaluate import read as read_evaluation
from taet.cli.flags import without
from taet.cli.train import parse
from taet.errors import UserError
from taet.settings import Evaluation, override
from tests.calls import configure


@pytest.mark.parametrize(
    ("words", "name", "expected"),
    [
        ("--threat.eps 8/255", "threat.eps", 8 / 255),
        ("--threat.eps=8/255", "threat.eps", 8 / 255),
        ("--threat.step-size 1.5/255", "threat.step_size", 1.5 / 255),
        ("--evaluation.eps-l2 128/255", "evaluation.eps_l2", 128 / 255),
        ("--milestones 60/80 75/80", "training.milestones", (60 / 80, 75 / 80)),
        ("--data.root runs/8/255", "data.root", "runs/8/255"),
        ("--data x", "data.name", "x"),
        ("--data.name x", "data.name", "x"),
        ("--model=resnet8", "model.name", "resnet8"),
        ("--outer focal", "outer.name", "focal"),
        ("--no-capture", "training.capture", False),
        ("--data.size None", "data.size", None),
    ],
)
def test_given_options_change_the_run(words: str, name: str, expected: object) -> None:
    request = parse("at", words.split())
    assert request.given == {name: expected, "seed": 0}
    assert request.run() == override(request.start, request.given)


def test_options_that_may_be_none_stay_in_their_column(taet: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    lines = taet("evaluate", "--help").out.splitlines()
    columns = {
        line.index(said)
        for said in ("auto, cpu", "Radius of the L-inf", "Step of PGD")
        for line in lines
        if said in line
    }
    assert len(columns) == 1
    assert len({len(line) for line in lines if line.startswith("  --")}) == 1
    assert not any("{None}" in line for line in lines)


@pytest.mark.parametrize("command", ["audit", "compare", "predict"])
def test_the_description_is_wrapped_to_the_terminal(taet: Any, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    page = taet(command, "--help").out
    prose = [line for line in page.split("examples:")[0].splitlines() if not line.startswith(" ")]
    assert max(map(len, prose)) <= 100
    assert "\n\n\n" not in page
    assert "(default: )" not in page
    assert command != "compare" or 'methods = [                 # or "all"\n    "at"' in page


def test_a_default_that_the_text_says_is_not_said_again(taet: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    page = " ".join(taet("train", "--help").out.split())
    assert "(default:" not in page.split("--evaluate ", 1)[1].split("--no-evaluate", 1)[0]


def test_help_shows_bounds_and_the_defaults_of_the_protocol(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    with pytest.raises(SystemExit) as caught:
        configure("trades", ["--protocol", "reat", "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert "Passes over the training images. (1 or more; default: 80)" in text
    assert "Highest learning rate. (above 0; default: 0.1)" in text
    assert "default: 8/255)" in text
    assert "(0 or more; default: 6)" in text  # of the method's own beta


def test_without_removes_an_option_and_its_value() -> None:
    words = ["a", "--processes", "2", "b", "--processes=3"]
    assert without(words, "--processes") == ["a", "b"]
    assert without(words, "--seed") == words


@pytest.mark.sample(3)
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("at --epochs x", "--epochs: got 'x'; allowed: a whole number, 1 or more"),
        ("at --epochs 3 --epochs=1.5", "--epochs: got '1.5'; allowed: a whole number, 1 or more"),
        ("at --data.size x", "--data.size: got 'x'; allowed: a whole number, 4 to 2048 pixels"),
        (
            "at --threat.eps x --seed 3",
            "--threat.eps: got 'x'; allowed: a number, 0 to 1, in units of the image range, e.g. 8/255",
        ),
        (
            "at --milestones 0.5 x",
            "--milestones: got '0.5 x'; allowed: numbers, rising shares of the epochs, e.g. 0.75 0.9",
        ),
        (
            "las-at --method.eps 3",
            "--method.eps: got '3'; allowed: two whole numbers, lowest and highest, within 0 to 255",
        ),
        ("at --lr", "--lr needs a value"),
        ("at stray", "got 'stray', which no option takes"),
        ("at --method.beta 3", "unknown option --method.beta; at has none of its own"),
        ("trades --method.bta 3", "unknown option --method.bta; did you mean --method.beta?"),
        ("trades --method.steps 3", "unknown option --method.steps"),
        ("at --thret.eps 3", "unknown option --thret.eps; did you mean --threat.eps?"),
        ("at --training.epochs 3", "unknown option --training.epochs; did you mean --epochs?"),
        ("at --modl x", "unknown option --modl; did you mean --model?"),
    ],
)
def test_a_mistake_says_what_was_got_and_what_is_allowed(words: str, message: str) -> None:
    method, *rest = words.split()
    with pytest.raises(UserError) as caught:
        configure(method, rest)
    assert str(caught.value) == f"{message}; see taet train {method} --help"


def test_no_option_is_the_protocol() -> None:
    run, out = configure("at", [])
    assert (override(run, {"settings": None}), out) == (protocols.taet("at"), None)


def test_a_protocol_sets_the_other_defaults() -> None:
    run, _ = configure("at-bsl", ["--protocol", "reat", "--epochs", "8"])
    expected = override(protocols.reat("at-bsl"), {"training.epochs": 8, "settings": run.settings})
    assert run == expected
    assert run.training.selection == "best-validation"
    assert (run.data.imbalance_ratio, run.data.default_imbalance_ratio) == (None, 50)


def test_every_part_of_a_run_has_its_flags() -> None:
    words = "--data cifar10-lt --data.imbalance-ratio 20 --model=resnet8 --threat.eps 4/255 --lr 0.05 --outer "
    words += (
        "balanced-softmax --milestones 0.5 0.8 --evaluation.attacks clean pgd-7 --method.absent skip --seed 3 --out x"
    )
    run, out = configure("harl", words.split())
    assert (run.method, run.seed, out) == ("harl", 3, Path("x"))
    assert (run.data.name, run.data.imbalance_ratio, run.model.name) == ("cifar10-lt", 20, "resnet8")
    assert (run.threat.eps, run.training.lr, run.outer.name) == (4 / 255, 0.05, "balanced-softmax")
    assert (run.training.milestones, run.evaluation.attacks) == ((0.5, 0.8), ("clean", "pgd-7"))
    assert run.settings.absent == "skip"


def test_an_attack_with_a_typo_is_refused_before_the_training() -> None:
    with pytest.raises(UserError, match=r"unknown attack 'pgd20'.*did you mean 'pgd-20'"):
        configure("at", ["--evaluation.attacks", "clean", "pgd20"])


def test_every_field_of_an_evaluation_is_an_option_of_evaluate() -> None:
    words = "runs/x --attacks clean pgd-7 --eps 4/255 --step-size 1/255 --eps-l2 1 --step-size-l2 0.5 --batch-size 9"
    parsed = read_evaluation(
        [*words.split(), "--cw-bounded", "--cw-constant", "None", "--seed", "3", "--search-precision", "bf16"]
    )
    assert parsed.evaluation == {
        "attacks": ("clean", "pgd-7"),
        "eps": 4 / 255,
        "step_size": 1 / 255,
        "eps_l2": 1.0,
        "step_size_l2": 0.5,
        "cw_constant": None,
        "cw_bounded": True,
        "batch_size": 9,
        "seed": 3,
        "search_precision": "bf16",
    }
    assert set(parsed.evaluation) == {*Evaluation.model_fields}
