"""From words to a Run."""

from __future__ import annotations

import pytest

from taet import protocols
from taet.cli.flags import normalise, take
from taet.cli.train import configure
from taet.config import override
from taet.errors import UserError


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["--eps", "8/255"], ["--eps", repr(8 / 255)]),
        (["--eps=8/255"], [f"--eps={8 / 255!r}"]),
        (["--threat.eps=1.5/255"], [f"--threat.eps={1.5 / 255!r}"]),
        (["--out", "runs/8/255"], ["--out", "runs/8/255"]),
        (["--data", "x"], ["--data.name", "x"]),
        (["--model=resnet8"], ["--model.name=resnet8"]),
        (["--data.size", "8"], ["--data.size", "8"]),
        (["--eps", "8/0"], ["--eps", "8/0"]),
        (["npz:a/1/2"], ["npz:a/1/2"]),
    ],
)
def test_normalise(given: list[str], expected: list[str]) -> None:
    assert normalise(given) == expected


def test_take_removes_a_flag() -> None:
    arguments = ["a", "--protocol", "reat", "b", "--out=x"]
    assert take(arguments, "--protocol") == "reat"
    assert take(arguments, "--out") == "x"
    assert take(arguments, "--seed") is None
    assert arguments == ["a", "b"]
    for words in (["--protocol"], ["--protocol", "--data.max-count", "20"], ["--protocol="]):
        with pytest.raises(UserError, match=r"^--protocol needs a value$"):
            take(words, "--protocol")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("at --epochs x", "--epochs: got 'x'; allowed: a whole number"),
        ("at --epochs 3 --epochs=1.5", "--epochs: got '1.5'; allowed: a whole number"),
        ("at --data.size x", "--data.size: got 'x'; allowed: a whole number"),
        ("at --threat.eps x --seed 3", "--threat.eps: got 'x'; allowed: a number, e.g. 8/255"),
        ("at --milestones 0.5 x", "--milestones: got '0.5 x'; allowed: numbers"),
        ("las-at --method.eps 3", "--method.eps: got '3'; allowed: two whole numbers"),
        ("at --lr", "--lr needs a value"),
        ("at stray", "got 'stray', which belongs to no option"),
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
    assert (run.method, run.seed, out) == ("harl", 3, "x")
    assert (run.data.name, run.data.imbalance_ratio, run.model.name) == ("cifar10-lt", 20, "resnet8")
    assert (run.threat.eps, run.training.lr, run.outer.name) == (4 / 255, 0.05, "balanced-softmax")
    assert (run.training.milestones, run.evaluation.attacks) == ((0.5, 0.8), ("clean", "pgd-7"))
    assert run.settings.absent == "skip"


def test_only_sizes_of_the_ball_are_fractions() -> None:
    assert normalise(["--out", "2026/11", "--threat.eps", "8/255", "--step-size=1/255", "4/2"]) == [
        "--out",
        "2026/11",
        "--threat.eps",
        repr(8 / 255),
        f"--step-size={1 / 255!r}",
        "4/2",
    ]


def test_an_attack_with_a_typo_is_refused_before_the_training() -> None:
    with pytest.raises(UserError, match=r"unknown attack 'pgd20'.*did you mean 'pgd-20'"):
        configure("at", ["--evaluation.attacks", "clean", "pgd20"])
