"""The runs that most tests of training look at, trained once, and ways to stop one."""

import itertools
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from torch import Tensor

import taet
from taet.methods.base import Loss
from taet.settings import Run
from taet.training import TrainingResult, loop, resume, train
from taet.training.state import State

Tiny = Callable[..., Run]
AssertSame = Callable[[Path, Path], None]
BeforeStep = Callable[..., AbstractContextManager[None]]


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it, nothing is tidied up."""


@pytest.fixture(scope="session")
def result(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> TrainingResult:
    """TAET, so that there are two stages and the parts of HEL; float32; with a card."""
    run = tiny(
        "taet", {"training.epochs": 3, "training.precision": "float32", "data.test_max_count": 2}
    )
    made = train(run, out=tmp_path_factory.mktemp("result") / "run")
    taet.evaluate(made.folder, attacks=("clean", "fgsm"))
    return made


@pytest.fixture
def folder(result: TrainingResult, tmp_path: Path) -> Path:
    """A copy of the folder of that run, to be damaged."""
    return Path(shutil.copytree(result.folder, tmp_path / "run"))


@pytest.fixture
def before_step() -> BeforeStep:
    """Within this context, something is done before the step with an index."""

    @contextmanager
    def inside(at: int, do: Callable[[], object]) -> Iterator[None]:
        step, calls = loop.training_step, itertools.count()

        def stepped(*given: Any) -> Any:
            if next(calls) == at:
                do()
            return step(*given)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "training_step", stepped)
            yield

    return inside


@pytest.fixture
def killed_before(before_step: BeforeStep) -> BeforeStep:
    """Within this context, the run is killed before the step with an index."""

    def kill() -> None:
        raise Killed

    @contextmanager
    def inside(at: int) -> Iterator[None]:
        with before_step(at, kill), pytest.raises(Killed):
            yield

    return inside


class Step(NamedTuple):
    """A step that was taken: the weights after it, its learning rate, labels and loss."""

    weights: dict[str, Tensor]
    lr: float
    labels: Tensor
    loss: Loss


@contextmanager
def recorded_steps() -> Iterator[list[Step]]:
    """Within this context, every training step is recorded."""
    steps: list[Step] = []
    training_step = loop.training_step

    def recording(state: State, batch: Any, attack: Any) -> Loss:
        loss = training_step(state, batch, attack)
        weights = {name: value.clone() for name, value in state.model.state_dict().items()}
        steps.append(Step(weights, state.optimizer.param_groups[0]["lr"], batch.y, loss))
        return loss

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "training_step", recording)
        yield steps


@pytest.fixture
def steps_seen() -> Iterator[list[Step]]:
    """Every step that is taken in the test."""
    with recorded_steps() as steps:
        yield steps


@pytest.fixture(scope="session")
def go_on() -> Callable[[Run, Path], None]:
    """What a user does after a kill."""

    def again(run: Run, folder: Path) -> None:
        if (folder / "run.json").exists():
            resume(folder)
        else:
            train(run, out=folder)

    return again
