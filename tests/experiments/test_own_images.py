"""The settings that are chosen for the user's own images."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from taet import protocols
from taet.cli.train import read as read_call
from taet.errors import UserError
from taet.experiments.own_choices import FEWEST_EPOCHS, attacked, length, plan, planned
from taet.settings import Data, Run, override
from taet.training.checks import monitored_epochs

CPU, GPU = False, True  # has the machine an accelerator?


def fill(folder: Path, count: int, size: tuple[int, int]) -> None:
    folder.mkdir(parents=True)
    draw = np.random.default_rng(len(str(folder)))
    for number in range(count):
        Image.fromarray(draw.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(
            folder / f"{number}.png"
        )


def on(path: Path) -> Run:
    return override(protocols.taet("taet"), {"data.name": f"folder:{path}"})


@pytest.mark.parametrize(
    ("sizes", "here", "expected"),
    [
        ([(600, 450), (600, 450)], GPU, 224),
        ([(600, 450), (600, 450)], CPU, 32),
        ([(100, 90), (140, 70)], GPU, 64),
        ([(48, 40), (48, 40)], GPU, None),
    ],
)
def test_the_size_follows_the_images_and_the_machine(
    tmp_path: Path, sizes: list[tuple[int, int]], here: bool, expected: int | None
) -> None:
    for name, size in zip("ab", sizes, strict=True):
        fill(tmp_path / name, 3, size)
    run, choices = planned(on(tmp_path), here)
    assert run.data.size == expected
    assert run.model.name == ("resnet18" if here else "resnet8")
    assert (run.threat.steps, run.training.decay) == ((10, "steps") if here else (2, "one-cycle"))
    assert ("data.size" in choices) == (expected is not None)


@pytest.mark.parametrize("shape", [(28, 20), (40, 60)])
def test_images_that_are_not_square_are_resized_where_they_are_large_or_a_fit_is_asked_for(
    shape: tuple[int, int], tmp_path: Path
) -> None:
    images, labels = np.zeros((90, *shape), np.uint8), np.arange(90) % 2
    np.savez(
        tmp_path / "x.npz",
        train_images=images,
        train_labels=labels,
        test_images=images,
        test_labels=labels,
    )
    run = override(protocols.taet("at"), {"data.name": str(tmp_path / "x.npz")})
    assert planned(run, CPU)[0].data.size == (32 if max(shape) > 32 else None)
    assert planned(run, GPU)[0].data.size is None


def test_without_an_accelerator_a_run_has_a_budget_of_test_images() -> None:
    many = (60, 90, 720, 5000)
    made = attacked(Data(), many)["data.test_max_count"]
    taken = [min(count, made.value) for count in many]
    assert taken[0] == 60
    assert 2500 - len(many) < sum(taken) <= 2500
    assert f"{sum(taken):,} of 5,870 test images" in made.why
    assert attacked(Data(), (2000, 500)) == {}
    assert (
        attacked(Data(imbalance_ratio=10.0), many) == attacked(Data(test="validation"), many) == {}
    )


@pytest.mark.parametrize("training", [3, 639, 640, 60_000])
def test_an_epoch_has_enough_steps_and_a_run_enough_epochs(training: int) -> None:
    run = protocols.taet("at")
    values = {name: made.value for name, made in length(run, training, CPU).items()}
    batch, epochs = values["training.batch_size"], values["training.epochs"]
    assert batch in (128, 64, 32)
    assert batch == 32 or training / batch >= 20
    assert FEWEST_EPOCHS <= epochs <= 100
    steps = -(-training // batch)
    assert epochs in (FEWEST_EPOCHS, 100) or 2000 <= epochs * steps < 2000 + steps
    assert length(run, training, GPU)["training.epochs"].value == 100
    given = length(override(run, {"training.batch_size": 256}), training, CPU, batches=False)
    assert given["training.batch_size"].value == 256


def test_in_python_a_run_on_own_images_is_that_of_the_command_line(lesions: Path) -> None:
    run, choices = plan("taet", str(lesions))  # whose alpha is not the published one
    other, again = read_call(["taet", "--data", str(lesions)]).planned()
    assert (run, choices) == (other, again)
    assert (choices["threat.eps"].value, choices["settings.alpha"].value) == (8 / 255, 1)
    with pytest.raises(
        UserError, match="recipe fine-tune: got no weights to start from; add --model"
    ):
        read_call(["at", "--data", str(lesions), "--recipe", "fine-tune"])
    run, _ = plan("at", str(lesions), **{"data.size": 16})
    assert run.data.size == 16
    cases = {"--threat.eps 4/255": (2, 3, "one-cycle"), "--threat.steps 10": (10, 2, "steps")}
    cases |= {"--milestones 0.5 0.75": (10, 2, "steps")}
    cases |= {"--recipe fine-tune --model.weights x.pt": (10, 2, "cosine"), "": (2, 6, "one-cycle")}
    for words, expected in cases.items():
        run, _ = read_call(["at", "--data", str(lesions), *words.split()]).planned()
        assert (
            run.threat.steps,
            round(255 * run.threat.step_size, 6),
            run.training.decay,
        ) == expected
    run, _ = read_call(["reat", "--protocol", "reat", "--data", str(lesions)]).planned()
    # the curve selects among all of them
    assert len(monitored_epochs(run, learns=False)) == run.training.epochs
    run, choices = read_call(["dafa", "--method.base", "n-fgsm", "--data", str(lesions)]).planned()
    # its own step
    assert (run.threat.steps, "threat.steps" in choices, run.training.decay) == (
        10,
        False,
        "one-cycle",
    )
