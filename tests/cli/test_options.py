"""Options from the fields of models: what is read, what is refused, and what --help says."""

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from taet import protocols
from taet.cli.options import POSITIONAL, Command, Options, RunPath, of_part, parse
from taet.errors import UserError
from taet.settings import Outer, Threat, Training
from taet.settings.schema import option
from taet.settings.types import Count


class Sample(Command):
    """What is tried here."""

    examples = ("taet sample run a.png",)

    run: Annotated[Path, POSITIONAL]
    """Run folder."""
    images: Annotated[tuple[Path, ...], POSITIONAL] = ()
    """Images."""
    top: Count = 1
    """Number of classes, 50 % of them. More words."""
    share: float | None = 0.5
    """A share."""
    form: Literal["csv", "json"] = "csv"
    """The format."""
    probe: bool = True
    """Whether it is probed."""
    force: bool = False
    """Whether it replaces."""
    jobs: Count | Literal["auto"] = 1
    """How many."""
    out: RunPath | None = None
    """Where."""


PARTS = [
    Options("threat", Threat()),
    Options("outer", Outer()),
    Options("training", Training(), bare=True),
]


def sample(*words: str) -> tuple[Sample, dict[str, Any]]:
    return parse(Sample, words, "taet sample", PARTS)


def test_words_are_read_as_the_types_of_their_fields() -> None:
    command, given = sample(
        *(
            "x",
            "a.png",
            "b.png",
            "--top=3",
            "--share",
            "1/4",
            "--form",
            "json",
            "--no-probe",
            "--force",
        ),
        *("--jobs", "auto", "--threat.eps", "8/255", "--outer", "focal", "--outer.gamma", "1e-1"),
        *(
            "--milestones",
            "0.5",
            "0.75",
            "--no-channels-last",
            "--training.threads",
            "none",
            "--epochs",
            "3",
        ),
    )
    assert (command.run, command.images) == (Path("x"), (Path("a.png"), Path("b.png")))
    assert (command.top, command.share, command.form) == (3, 0.25, "json")
    assert (command.probe, command.force, command.jobs) == (False, True, "auto")
    assert given == {
        "threat.eps": 8 / 255,
        "outer.name": "focal",
        "outer.gamma": 0.1,
        "training.milestones": (0.5, 0.75),
        "training.channels_last": False,
        "training.threads": None,
        "training.epochs": 3,
    }
    command, given = sample("x", "--outer.name", "focal", "--share", "none", "--threat.steps", "-1")
    assert command.share is None
    assert of_part(given, "outer") == {"name": "focal"}
    assert given["threat.steps"] == -1  # settings refuse it, with their own bounds


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "which RUN? see taet sample --help"),
        ("x --top", "--top: expected one argument; see taet sample --help"),
        ("x --top 1 --top 1", "--top: got it more than once; allowed: once"),
        ("x --topp 1", "unknown option --topp; did you mean --top?; see taet sample --help"),
        ("x --eps 1", "unknown option --eps; did you mean --threat.eps?; see taet sample --help"),
        ("x --top 0", "top: got 0; allowed: a whole number, 1 or more"),
        ("x --force=yes", "--force: ignored explicit argument 'yes'; see taet sample --help"),
        (
            "x --out=",
            "out: got ''; allowed: a path, in UTF-8, on one line, without a dash at its beginning",
        ),
    ],
)
def test_what_no_option_takes_is_one_line(words: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        sample(*words.split())
    assert str(caught.value) == message


def test_every_setting_of_a_run_is_an_option_of_train(taet: Any) -> None:
    start = protocols.taet()
    names = [
        f"{part}.{name}"
        for part, values in start.model_dump().items()
        if isinstance(values, dict)
        for name in values
    ]
    text = taet("train", "trades", "--help", "all").out
    for name in names:
        assert f"--{option(name)}" in text.replace("--no-", "--").replace(".no-", "."), name
    assert "--method.beta" in text
