"""The compiled network that is attacked: where it is used, what it captures, and what if it
fails."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

import taet
from taet import methods
from taet.models.view import can_compile
from taet.settings import Run, override
from taet.training import resume, train
from taet.training.compilation import choose_compilation
from tests.methods.conftest import METHODS
from tests.training.conftest import BeforeStep, Tiny

COMPILED = {"training.compile": True}
pytestmark = pytest.mark.skipif(not can_compile(), reason="this PyTorch compiles no view")


def generate_no_code(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    """Let graphs be captured but computed by torch's usual kernels."""
    compile_ = torch.compile

    def capture(forward: Any, *, mode: str, **options: Any) -> Any:
        assert mode == "reduce-overhead"
        return compile_(forward, backend=backend, **options)

    monkeypatch.setattr(torch, "compile", capture)


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], int]]:
    """Return how many graphs were captured since the test began; no code is generated for them."""
    generate_no_code(monkeypatch, "eager")
    counters.clear()
    yield lambda: counters["stats"]["unique_graphs"]
    torch.compiler.reset()


def choices_of(folder: Path) -> dict[str, str]:
    choices: dict[str, str] = json.loads((folder / "run.json").read_bytes())["choices"]
    return choices


@pytest.mark.parametrize(
    ("asked", "device_type", "plain_seconds", "compiled"),
    [
        (None, "cuda", 240.0, True),
        (None, "cuda", 60.0, False),
        (None, "cpu", 1e6, False),
        (True, "cuda", 1.0, True),
        (True, "cpu", 1.0, True),
        (False, "cuda", 1e6, False),
    ],
)
def test_a_run_is_compiled_where_it_is_asked_for_or_a_gpu_repays_it(
    asked: bool | None, device_type: str, plain_seconds: float, compiled: bool
) -> None:
    assert choose_compilation(asked, device_type, plain_seconds).compiled == compiled


def test_the_reason_names_the_seconds_of_compiling_and_those_it_saves() -> None:
    reason = choose_compilation(None, "cuda", 440.0).reason
    assert reason == "takes about 30 seconds, saves about 2 minutes"


def test_a_run_on_a_cpu_is_compiled_only_where_it_is_asked_for(
    tiny: Tiny, tmp_path: Path, captured: Callable[[], int]
) -> None:
    train(tiny(), out=tmp_path / "plain")
    assert captured() == 0
    assert "training.compile" not in choices_of(tmp_path / "plain")
    train(tiny("at", COMPILED), out=tmp_path / "compiled")
    assert captured() == 1
    assert choices_of(tmp_path / "compiled")["training.compile"].startswith("True: asked for; ")


@pytest.mark.full
def test_nothing_is_captured_between_stages_epochs_and_for_a_short_batch(
    tiny: Tiny, tmp_path: Path, captured: Callable[[], int]
) -> None:
    run = tiny("taet", COMPILED | {"training.epochs": 3, "training.monitor_every": 1})
    result = train(run, out=tmp_path / "run")
    stages = [row["stage"] for row in result.history]
    images, batch_size = len(result.dataset.train), run.training.batch_size
    assert stages == ["clean", "adversarial", "adversarial"]
    assert images % batch_size
    taet.evaluate(result.folder, attacks=("clean", "fgsm"))
    assert captured() == 1


def test_a_run_goes_on_as_it_is_where_compiling_fails(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> Callable[[Tensor], Tensor]:
        def call(_: Tensor) -> Tensor:
            raise RuntimeError("no compiler here")

        return call

    plain = train(tiny(), out=tmp_path / "plain")
    monkeypatch.setattr(torch, "compile", broken)
    result = train(tiny("at", COMPILED), out=tmp_path / "run")
    reason = "False: compiling failed: RuntimeError: no compiler here"
    assert choices_of(result.folder)["training.compile"] == reason
    for weight, expected in zip(result.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(weight, expected)


def test_a_run_says_that_an_attack_in_train_mode_is_not_compiled(
    tiny: Tiny, tmp_path: Path
) -> None:
    result = train(tiny("at", COMPILED | {"threat.bn_mode": "train"}), out=tmp_path / "run")
    reason = "False: no attack on a view of the model in eval mode"
    assert choices_of(result.folder)["training.compile"] == reason


# -- every method, and with the real compiler what changes a step


def same_losses(run: Run, out: Path) -> None:
    """Train plain and compiled: the losses agree, up to the rounding of sums in another order."""
    plain = train(override(run, {"training.compile": False}), out=out / "plain")
    compiled = train(override(run, COMPILED), out=out / "compiled")
    assert choices_of(compiled.folder)["training.compile"].startswith("True: ")
    for row, expected in zip(compiled.history, plain.history, strict=True):
        assert row["loss"]["total"] == pytest.approx(expected["loss"]["total"], rel=0.02)


@pytest.mark.full
@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_alike_captured(
    name: str, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate_no_code(monkeypatch, "aot_eager")
    if name in ("standard", "fare"):
        pytest.skip("has no attack, or begins from a trained network")
    changes: dict[str, Any] = {"training.epochs": 4, "training.precision": "float32"}
    if methods.find(name).needs_feedback:
        changes["data.validation_per_class"] = 2
    same_losses(tiny(name, changes), tmp_path)


@pytest.mark.full
@pytest.mark.parametrize(
    "changes",
    [
        {"training.awp": 0.01},
        {"training.ema": 0.99},
        {"training.augment": "randaugment"},
        {"training.precision": "bf16"},
        {"model.name": "vit-mini-p4"},
    ],
    ids=str,
)
def test_a_run_trains_alike_compiled(changes: dict[str, Any], tiny: Tiny, tmp_path: Path) -> None:
    same_losses(tiny("at", {"training.precision": "float32"} | changes), tmp_path)


@pytest.mark.full
def test_a_compiled_run_is_resumed(
    tiny: Tiny, tmp_path: Path, killed_before: BeforeStep, captured: Callable[[], int]
) -> None:
    run = tiny("at", COMPILED | {"training.save_minutes": 0.0})
    whole = train(run, out=tmp_path / "whole")
    with killed_before(2):
        train(run, out=tmp_path / "run")
    resumed = resume(tmp_path / "run")
    assert captured() == 3
    for weight, expected in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(weight, expected)
