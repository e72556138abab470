"""The benchmarks compare the same work, and say what they measured; speed itself is not tested."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from taet import methods, models
from taet.attacks.noise import Source
from taet.data.loader import Batch
from taet.methods import Attack, Task
from taet.models.view import make_view
from taet.settings import Threat
from taet.training.optimizer import build_optimizer
from taet.training.prepare import prepare
from taet.training.state import State
from taet.training.step import training_step

FOLDER = Path(__file__).parents[1] / "benchmarks"
Load = Callable[[str], ModuleType]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    """Import a benchmark as Python does that runs it: those beside it can be imported, and only meanwhile."""
    names = {path.stem for path in FOLDER.glob("*.py")}
    others = {name: sys.modules.pop(name) for name in names & sys.modules.keys()}  # such as docs/render.py
    monkeypatch.syspath_prepend(str(FOLDER))
    yield __import__
    for name in names:
        sys.modules.pop(name, None)
    sys.modules.update(others)


def settings(training: ModuleType, **changes: Any) -> Any:
    given = {"model": "resnet8", "batch_size": 8, "steps": 1, "device": "cpu", "threads": 1, **changes}
    return training.settings(Namespace(**given), "float32", epochs=1)


def test_a_plain_step_and_ours_move_the_weights_alike(load: Load) -> None:
    plain, training = load("plain"), load("training")
    data = training.dataset(8)
    run = settings(training)
    theirs = training.network(run, data).double()
    ours = copy.deepcopy(theirs).to(memory_format=torch.channels_last)
    x = torch.from_numpy(data.train.images).permute(0, 3, 1, 2).double() / 255
    y = torch.from_numpy(data.train.labels)
    noise = 0.001 * Source(torch.Generator().manual_seed(0)).normal(x)

    options = {"lr": run.training.lr, "momentum": run.training.momentum, "weight_decay": run.training.weight_decay}
    optimizer = torch.optim.SGD(theirs.parameters(), **options)
    loss = plain.update(theirs, optimizer, plain.perturb(theirs, x, y, run.threat, noise), y)

    method = methods.build("at", {}, Task((1,) * 10, (3, 32, 32), epochs=1, steps_per_epoch=1))
    batch = Batch(torch.arange(8), x.contiguous(memory_format=torch.channels_last), y)
    attack = Attack(run.threat, Source(torch.Generator().manual_seed(0)))
    view = make_view(ours, (3, 32, 32))
    assert view is not None
    found = training_step(State(ours, method, build_optimizer(ours, run.training), view=view), batch, attack)

    assert found.total.item() == pytest.approx(loss, abs=1e-9)
    for mine, other in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, other, atol=1e-9, rtol=0)


def test_the_trainer_and_the_plain_loop_start_from_the_same_weights(load: Load) -> None:
    training = load("training")
    data, run = training.dataset(16), settings(training)
    plan, state = prepare(run, dataset=data)
    network = training.network(run, data)
    for name, value in network.state_dict().items():
        assert torch.equal(value, state.model.state_dict()[name]), name
    assert len(plan.loader) == len(training.plain.loader(data.train, 8, 0)) == 2


def test_the_plain_attack_stays_in_the_ball_and_takes_the_weights_to_train_mode(load: Load) -> None:
    plain = load("plain")
    model, threat = models.build("resnet8", 10), Threat()
    x, y = torch.rand(4, 3, 32, 32), torch.arange(4)
    x_adv = plain.perturb(model, x, y, threat)
    assert 0.5 * threat.eps < (x_adv - x).abs().max() <= threat.eps + 1e-6
    assert 0 <= x_adv.min() <= x_adv.max() <= 1
    assert not model.training
    plain.update(model, torch.optim.SGD(model.parameters(), 0.1), x_adv, y)
    assert model.training


@pytest.mark.full
def test_sides_that_are_processes_take_turns_and_are_recorded(tmp_path: Path) -> None:
    words = "--model resnet8 --batch-size 8 --rounds 1 --threads 1 --sides float32 plain".split()  # noqa: SIM905
    out = tmp_path / "training-MODEL.json"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(FOLDER.parent)}
    command = [sys.executable, str(FOLDER / "training.py"), *words, "--out", str(out)]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    result = json.loads((tmp_path / "training-resnet8.json").read_text(encoding="utf-8"))
    assert result["command"] == "python benchmarks/training.py " + " ".join(words)
    row = result["ratios"]["float32 against plain"]
    assert row["n"] == 1
    assert row["ratio"] == pytest.approx(row["other"] / row["ours"], rel=0.01)
    ours, plain = result["sides"]["float32"], result["sides"]["plain"]
    assert ours["loss"] == pytest.approx(plain["loss"], abs=0.2)  # two steps, with other crops and other start noise


def test_sides_take_turns_and_the_first_call_does_not_count(load: Load) -> None:
    called: list[str] = []

    def side(name: str) -> Callable[[], int]:
        return lambda: called.append(name) or len(called)

    done = load("common").alternate({"a": side("a"), "b": side("b")}, 3)
    assert "".join(called) == "ab" + "ab" + "ba" + "ab"
    assert done == {"a": [3, 6, 7], "b": [4, 5, 8]}


def test_a_ratio_is_the_median_of_the_rounds_with_its_spread(load: Load) -> None:
    row = load("common").ratio([1.0, 2.0, 1.0], [2.0, 10.0, 3.0])
    assert row == {"ratio": 3.0, "spread": [2.0, 5.0], "n": 3, "ours": 1.0, "other": 3.0}


def test_a_command_is_recorded_without_the_place_of_its_result(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/a/b/losses.py", "--out", "/x/y", "--rounds", "3", "--out=/z"])
    assert load("common").command() == "python benchmarks/losses.py --rounds 3"


def result_of(ratio: float, device: str = "cpu: A") -> dict[str, Any]:
    row = {"ratio": ratio, "spread": [ratio, ratio], "n": 1}
    return {"environment": {"device": device}, "ratios": {"x": row, f"only {ratio}": row}}


def test_a_ratio_that_fell_by_more_than_15_percent_is_reported(load: Load) -> None:
    falls = load("run").falls
    assert list(falls(result_of(4.0), result_of(3.41))) == []
    assert list(falls(result_of(4.0), result_of(5.0))) == []
    (line,) = falls(result_of(4.0), result_of(3.0))
    assert line == "x fell by 25 %, from 4.00 (4.00 to 4.00, n = 1) to 3.00 (3.00 to 3.00, n = 1)"
    (line,) = falls(result_of(4.0), result_of(3.0, "cpu: B"))
    assert line.endswith("; but measured on cpu: A before, now on cpu: B")
    assert list(falls({}, result_of(3.0))) == []


def test_outside_a_checkout_the_file_before_is_compared_with(load: Load, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"ratios": {}}', encoding="utf-8")
    assert load("run").committed(tmp_path / "a.json") == {"ratios": {}}


def test_recorded_passes_are_made_again_alike(load: Load) -> None:
    passes = load("passes")
    recorded, x = passes.Recorded(nn.Sequential(nn.Flatten(), nn.Linear(4, 3))), torch.rand(5, 1, 2, 2)
    for count, backward in ((5, True), (3, False), (2, True)):
        images = x[:count].clone().requires_grad_()
        logits = recorded(images)  # an attack may ask for a gradient that it does not use
        if backward:
            torch.autograd.grad(logits.sum(), images)
    found = list(recorded.passes)
    assert found == [(5, True), (3, False), (2, True)]
    recorded.passes.clear()
    passes.replay(Namespace(unit_images=lambda: x), recorded, found)
    assert recorded.passes == found


def asked(**changes: Any) -> Namespace:
    given = {"model": "resnet8", "image_shape": (1, 8, 8), "classes": 10, "batch_size": 4, "precision": "float32"}
    given |= {"steps": 3, "curve": (1,), "epochs": 10, "clean_epochs": 4, "rounds": 1, "threads": 1, "device": "cpu"}
    return Namespace(**given, methods=["standard", "at"], **changes)


def test_the_cost_model_is_that_of_the_paper_and_of_the_parts(load: Load) -> None:
    cost = load("cost")
    assert cost.rho(0.619, 10) == pytest.approx(0.139, abs=5e-4)
    assert cost.eta(0.619, 10, 0.4) == pytest.approx(0.656, abs=5e-4)
    assert cost.printed_eta(0.619, 10, 0.4) == pytest.approx(0.608, abs=5e-4)
    assert cost.line_gamma({5: 1 + 5 * 0.5, 10: 1 + 10 * 0.5}) == pytest.approx(0.5)
    found = cost.measure(asked())
    clean, at = found["costs"]
    assert (clean["forwards"], clean["backwards"]) == (1, 1)
    assert (at["forwards"], at["backwards"], at["passes_ratio"], at["flops_ratio"]) == (4, 4, 1, 1)
    # A pass costs 1, back to the images 1 and back to the weights 2, but for the first layer, which has no images.
    assert clean["flops_ratio"] == pytest.approx(3 / (3 * 2 + 3), rel=0.1)
    assert found["model"]["eta"]["median"] == pytest.approx(
        cost.eta(found["model"]["gamma"]["median"], 3, 0.4), rel=1e-3
    )


def test_peak_memory_counts_a_storage_until_it_is_freed(load: Load) -> None:
    cost, held = load("cost"), torch.zeros(1000)

    def work() -> None:
        for _ in range(3):  # never two at once
            made = held + 1
            del made

    assert cost.peak_bytes(work, [held, held[:10]], torch.device("cpu")) == 2 * 4000
