"""The training loop repeats bit for bit, disturbs nothing around it, and stops where it must."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from taet.deployment.hub import publish
from taet.run.folder import RunFolder, weights_digest
from taet.run.loading import check_free, load_model, load_run
from taet.settings import override
from taet.training import loop, resume, train
from tests.calls import one_line
from tests.training.conftest import AssertSame, BeforeStep, Tiny


def test_the_same_run_repeats_bit_for_bit(
    tiny: Tiny, tmp_path: Path, assert_same: AssertSame
) -> None:
    for name in ("first", "second"):
        train(tiny("at"), out=tmp_path / name)
    assert_same(tmp_path / "second", tmp_path / "first")


def test_another_seed_gives_other_weights(tiny: Tiny, tmp_path: Path) -> None:
    run = tiny("at", {"training.epochs": 1})
    first, other = (
        train(override(run, {"seed": seed}), out=tmp_path / str(seed)) for seed in (0, 1)
    )
    assert weights_digest(other.model) != weights_digest(first.model)


class Global(NamedTuple):
    """The state of the caller's random generators."""

    torch: Any
    numpy: Any
    python: Any

    @classmethod
    def now(cls) -> "Global":
        numpy = np.random.get_state()[1].tolist()  # noqa: NPY002
        return cls(torch.get_rng_state().tolist(), numpy, random.getstate())


def test_a_training_leaves_the_random_state_of_the_caller_alone(tiny: Tiny, tmp_path: Path) -> None:
    before = Global.now()
    train(tiny("at", {"training.epochs": 1}), out=tmp_path / "run")
    assert Global.now() == before


def test_a_training_leaves_the_threads_of_the_caller_alone(tiny: Tiny, tmp_path: Path) -> None:
    own = torch.get_num_threads()
    torch.set_num_threads(2)
    train(tiny("at", {"training.epochs": 1, "training.threads": 1}), out=tmp_path / "run")
    after = torch.get_num_threads()
    torch.set_num_threads(own)
    assert after == 2


@pytest.mark.full
@pytest.mark.parametrize(
    ("context", "changes"),
    [
        # Within it autocast keeps the weights that it cast, whatever a step changes.
        (torch.autocast("cpu", enabled=False), {"training.precision": "bf16"}),
        (
            torch.autocast("cpu", enabled=False),
            {"training.precision": "bf16", "training.awp": 0.01},
        ),
        (torch.autocast("cpu", torch.bfloat16), {"training.precision": "bf16"}),
        (torch.inference_mode(), {}),
    ],
)
def test_a_context_of_the_caller_around_a_training_changes_nothing(
    context: Any, changes: dict[str, Any], tiny: Tiny, tmp_path: Path
) -> None:
    run = tiny("at", changes | {"training.epochs": 1})
    alone = train(run, out=tmp_path / "alone")
    with context:
        within = train(run, out=tmp_path / "within")
    assert weights_digest(alone.model) == weights_digest(within.model)


@pytest.fixture
def float64_by_default() -> Iterator[None]:
    """Make float64 the default type of the caller."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def usual(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch, trained where float32 is the default."""
    run = tiny("at", {"training.epochs": 1})
    return train(run, out=tmp_path_factory.mktemp("usual") / "run").folder


@pytest.mark.usefixtures("float64_by_default")
def test_a_caller_whose_default_is_float64_trains_the_same_run(
    usual: Path, tiny: Tiny, tmp_path: Path, assert_same: AssertSame
) -> None:
    train(tiny("at", {"training.epochs": 1}), out=tmp_path / "run")
    assert torch.get_default_dtype() == torch.float64
    assert_same(tmp_path / "run", usual)


@pytest.mark.usefixtures("float64_by_default")
def test_a_caller_whose_default_is_float64_loads_a_run_in_float32(usual: Path) -> None:
    loaded = load_run(usual)
    assert torch.get_default_dtype() == torch.float64
    assert {value.dtype for value in loaded.model.parameters()} == {torch.float32}


def test_progress_rises_to_the_whole(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[float, float, str]] = []
    monkeypatch.setattr(loop, "LOOK_SECONDS", 0.0)
    train(tiny("taet"), out=tmp_path / "run", progress=lambda *args: told.append(args))
    done, total, _ = zip(*told, strict=True)
    assert list(done) == sorted(done)
    assert done[-1] == total[-1]
    assert len(set(total)) == 1


def test_training_and_a_resumed_run_show_their_progress_where_somebody_watches(
    tiny: Tiny,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    killed_before: BeforeStep,
) -> None:
    monkeypatch.setattr("taet.progress.is_watched", lambda: True)
    run = tiny("at", {"training.epochs": 2})
    with killed_before(1):
        train(run, out=tmp_path / "cut")
    resume(tmp_path / "cut")
    assert f"resume {tmp_path / 'cut'}: 100 %" in capsys.readouterr().err
    train(run, out=tmp_path / "run")
    assert "at: 100 %" in capsys.readouterr().err
    train(run, out=tmp_path / "quiet", progress=False)
    assert capsys.readouterr().err == ""


def test_progress_names_epoch_and_stage(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts: list[str] = []
    monkeypatch.setattr(loop, "LOOK_SECONDS", 0.0)
    train(tiny("taet"), out=tmp_path / "run", progress=lambda _, __, text: texts.append(text))
    assert "epoch 1/2" in texts[0]
    assert any("clean" in text for text in texts)


# -- a loss that is not finite


def test_a_lower_learning_rate_may_help_after_divergence(tiny: Tiny) -> None:
    assert loop.remedy_of_divergence(tiny("at")) == "with a lower --lr than 0.02"


def test_settings_above_the_protocol_may_help_after_divergence(tiny: Tiny) -> None:
    heavy = tiny("at", {"training.weight_decay": 1e6, "training.lr": 0.2})
    assert loop.remedy_of_divergence(heavy) == (
        "with --lr 0.1 in place of 0.2 and --weight-decay 0.0005 in place of 1e+06, as in protocol "
        "taet"
    )


DIVERGED = (
    "the part hdl of the loss is not finite in epoch 2, step 3; .* with a lower --lr than 0.02"
)


@pytest.fixture
def diverged(tiny: Tiny, tmp_path: Path) -> Path:
    """The folder of a run that stopped in its second epoch, whose second step gave no number."""
    training_step = loop.training_step
    steps = 0

    def without_a_number_once(*given: Any) -> Any:
        nonlocal steps
        steps += 1
        loss = training_step(*given)
        return loss._replace(parts={"hdl": torch.tensor(float("nan"))}) if steps == 5 else loss

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "training_step", without_a_number_once)
        patch.setattr(loop, "LOOK_SECONDS", 600.0)  # the loss is read when the epoch ends
        with one_line(DIVERGED):
            train(tiny("at"), out=tmp_path / "run")
    return tmp_path / "run"


def test_a_loss_that_is_not_finite_stops_the_run_at_the_last_whole_epoch(diverged: Path) -> None:
    checkpoint = torch.load(diverged / "checkpoint.pt", weights_only=True)
    assert checkpoint["epoch"] == len(RunFolder(diverged).metrics) == 1
    assert not (diverged / "done").exists()


def test_the_folder_of_a_run_that_diverged_says_what_was_not_finite(diverged: Path) -> None:
    assert RunFolder(diverged).has_diverged
    stored = json.loads((diverged / "diverged").read_bytes())
    assert stored["what"] == "the part hdl of the loss"
    assert stored["epoch"] == 1


@pytest.mark.full
def test_nobody_is_told_to_resume_a_run_that_diverged(diverged: Path, tmp_path: Path) -> None:
    with one_line("not finished; its training diverged: train a new one, with a lower --lr$"):
        publish(diverged, f"folder:{tmp_path / 'published'}")
    with one_line("the run is not finished; its training diverged: train a new one"):
        load_model(diverged)
    with one_line("holds a run; choose another --out, or remove the folder$"):
        check_free(RunFolder(diverged))


def test_a_run_that_goes_on_is_not_marked_as_diverged(diverged: Path) -> None:
    resume(diverged)
    assert not RunFolder(diverged).has_diverged


def test_a_run_that_diverged_goes_on_once_the_fault_is_over(diverged: Path) -> None:
    assert len(resume(diverged).history) == 2


# -- where a run may be written


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    """A file of the user's in the folder that was chosen for the run."""
    (tmp_path / "notes.txt").write_text("mine")
    return tmp_path / "notes.txt"


def test_a_folder_that_holds_other_files_is_refused_and_left_alone(tiny: Tiny, notes: Path) -> None:
    with one_line(f"{notes.parent} exists and is no run; choose another --out"):
        train(tiny("at"), out=notes.parent)
    assert [*notes.parent.iterdir()] == [notes]


def test_a_file_in_the_place_of_the_folder_is_refused_and_left_alone(
    tiny: Tiny, notes: Path
) -> None:
    with one_line(r"notes\.txt exists"):
        train(tiny("at"), out=notes)
    assert notes.read_text() == "mine"
