"""The performance scripts compare the same work, and say what they measured; speed itself is not
tested."""

import copy
import json
import os
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch._dynamo import config as dynamo
from torch._dynamo.utils import counters
from torch._functorch import config as functorch

from taet import methods
from taet.attacks.noise import Source
from taet.data import load as load_data
from taet.data.loader import Batch
from taet.methods import Attack, Task
from taet.models.view import make_view
from taet.settings import Data
from taet.training.state import State, build_optimizer
from taet.training.step import training_step
from tests.calls import one_line

FOLDER = Path(__file__).parents[1] / "performance"
Load = Callable[[str], ModuleType]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    """Import a benchmark as Python does that runs it: those beside it can be imported, and only
    meanwhile."""
    names = {path.stem for path in FOLDER.glob("*.py")}
    # such as docs/render.py
    others = {name: sys.modules.pop(name) for name in names & sys.modules.keys()}
    monkeypatch.syspath_prepend(str(FOLDER))
    yield __import__
    for name in names:
        sys.modules.pop(name, None)
    sys.modules.update(others)


def test_a_plain_step_and_ours_move_the_weights_alike(load: Load) -> None:
    plain, training = load("plain"), load("training")
    data = training.dataset(8)
    given = Namespace(model="resnet8", batch_size=8, steps=1, device="cpu", threads=1)
    run = training.settings(given, "float32", epochs=1)
    theirs = training.network(run, data).double()
    ours = copy.deepcopy(theirs).to(memory_format=torch.channels_last)
    x = torch.from_numpy(data.train.images).permute(0, 3, 1, 2).double() / 255
    y = torch.from_numpy(data.train.labels)
    noise = 0.001 * Source(torch.Generator().manual_seed(0)).normal(x)
    options = {
        "lr": run.training.lr,
        "momentum": run.training.momentum,
        "weight_decay": run.training.weight_decay,
    }
    optimizer = torch.optim.SGD(theirs.parameters(), **options)
    loss = plain.update(theirs, optimizer, plain.perturb(theirs, x, y, run.threat, noise), y)
    method = methods.build("at", {}, Task((1,) * 10, (3, 32, 32), epochs=1, steps_per_epoch=1))
    batch = Batch(torch.arange(8), x.contiguous(memory_format=torch.channels_last), y)
    attack = Attack(run.threat, Source(torch.Generator().manual_seed(0)))
    view = make_view(ours, (3, 32, 32))
    assert view is not None
    found = training_step(
        State(ours, method, build_optimizer(ours, run.training), view=view), batch, attack
    )
    assert found.total.item() == pytest.approx(loss, abs=1e-9)
    for mine, other in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, other, atol=1e-9, rtol=0)


@pytest.mark.full
def test_sides_that_are_processes_take_turns_and_are_recorded(tmp_path: Path) -> None:
    words = [
        "--model",
        "resnet8",
        "--batch-size",
        "8",
        "--rounds",
        "1",
        "--threads",
        "1",
        "--sides",
        "float32",
        "plain",
        "competent",
    ]
    command = [
        sys.executable,
        str(FOLDER / "training.py"),
        *words,
        "--out",
        str(tmp_path / "training-MODEL.json"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(FOLDER.parent / "src")}
    subprocess.run(command, env=environment, check=True, capture_output=True)
    result = json.loads((tmp_path / "training-resnet8.json").read_text(encoding="utf-8"))
    assert result["command"] == "python performance/training.py " + " ".join(words), (
        "without the place of its result"
    )
    row = result["ratios"]["float32 against plain"]
    assert row["ratio"] == pytest.approx(row["other"] / row["ours"], rel=0.01)
    ours, plain, competent = (
        result["sides"][side]["loss"] for side in ("float32", "plain", "competent")
    )
    assert competent == pytest.approx(plain, abs=0.2)
    # two steps, with other crops and other start noise
    assert ours == pytest.approx(plain, abs=0.2)


def test_a_point_of_the_smoke_script_that_passed_is_not_repeated(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    smoke, calls = load("gpu_smoke"), list[str]()

    def wrong(_: str) -> str:
        calls.append("wrong")
        raise AssertionError("not so")

    monkeypatch.setattr(
        smoke,
        "POINTS",
        {"right": lambda _: calls.append("right") or "as it should", "wrong": wrong},
    )
    monkeypatch.setattr(
        sys, "argv", ["gpu_smoke.py", "--device", "cpu", "--out", str(tmp_path / "smoke.json")]
    )
    monkeypatch.setattr(smoke, "environment", lambda _: here)
    here = {"versions": {}, "commit": "one", "device": "a"}
    assert smoke.main() == smoke.main() == 1
    assert calls == ["right", "wrong", "wrong"]
    for commit in ("other", "other+", "other+"):
        here["commit"] = commit
        assert smoke.main() == 1
    assert calls[3:] == ["right", "wrong"] * 3, (
        "points of another commit, or of files that differ from it, do not count"
    )
    said = capsys.readouterr().out
    assert said.startswith(
        "PASS  right: as it should (0 s)\nFAIL  wrong: AssertionError: not so (0 s)\n"
    )


@pytest.mark.full
def test_the_loop_of_pgd_in_one_graph_gives_the_images_of_the_package(
    load: Load,
) -> None:
    speed = load("gpu_speed")
    setup = speed.Setup(torch.device("cpu"), speed.TINY, "resnet8", "fast", batch=4)
    counters.clear()
    batch = setup.x, setup.y, setup.noise
    # what the script sets for its process is restored, also in what torch derives from it
    with dynamo.patch(trace_autograd_ops=False), functorch.patch(backward_pass_autocast="off"):
        found = [speed.attack_by(way, setup)(*batch) for way in ("whole loop", "recorded loop")]
        assert counters["stats"]["unique_graphs"] == 2, "one for the loop, and one for a step"
        expected = speed.attack_by("plain", setup)(*batch)
    assert all(torch.equal(x_adv, expected) for x_adv in found)
    torch.compiler.reset()


@pytest.mark.full
def test_every_point_of_the_speed_script_runs_at_a_tiny_size_and_once(tmp_path: Path) -> None:
    out = tmp_path / "speed.json"
    words = ["--device", "cpu", "--tiny", "--minutes", "60", "--out", str(out)]
    command = [sys.executable, str(FOLDER / "gpu_speed.py"), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    points = json.loads(out.read_bytes())["points"]
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == len(points) > 30
    assert all(point.get("same_loss", True) for point in points.values())


def test_the_speed_script_ends_in_time_and_goes_on_where_it_stopped(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    speed, calls = load("gpu_speed"), list[str]()

    def points(*_: object) -> Iterator[tuple[str, Callable[[], dict[str, float]]]]:
        for name in ("first", "second"):
            yield name, lambda name=name: calls.append(name) or {"images_per_second": 2.0}

    here = {"versions": {}, "commit": "one", "device": "a"}
    monkeypatch.setattr(speed, "environment", lambda _: here)
    monkeypatch.setattr(speed, "all_points", points)
    words = ["gpu_speed.py", "--device", "cpu", "--out", str(tmp_path / "speed.json")]
    monkeypatch.setattr(sys, "argv", [*words, "--minutes", "0"])
    assert speed.main() == 0
    assert capsys.readouterr().out == "2 points are left: call the command again\n"
    monkeypatch.setattr(sys, "argv", words)
    assert speed.main() == speed.main() == 0
    assert calls == ["first", "second"]


@pytest.mark.full
@pytest.mark.parametrize("point", ["versions", "no_synchronisation", "learning", "resume"])
def test_points_of_the_smoke_script_pass_on_a_cpu_as_far_as_they_go(point: str, load: Load) -> None:
    assert getattr(load("gpu_smoke"), point)("cpu")


def test_sides_take_turns_and_a_ratio_is_the_median_of_the_rounds(load: Load) -> None:
    called, common = list[str](), load("common")
    done = common.alternate(
        {name: lambda n=name: called.append(n) or len(called) for name in "ab"}, 3
    )
    assert "".join(called) == "ab" + "ab" + "ba" + "ab", "the first call does not count"
    assert done == {"a": [3, 6, 7], "b": [4, 5, 8]}
    row = common.ratio([1.0, 2.0, 1.0], [2.0, 10.0, 3.0])
    assert row == {"ratio": 3.0, "spread": [2.0, 5.0], "n": 3, "ours": 1.0, "other": 3.0}


@pytest.mark.full
def test_the_cost_model_is_that_of_the_paper_and_of_the_parts(load: Load) -> None:
    cost = load("cost")
    assert cost.rho(0.619, 10) == pytest.approx(0.139, abs=5e-4)
    assert cost.eta(0.619, 10, 0.4) == pytest.approx(0.656, abs=5e-4)
    assert cost.line_gamma({5: 1 + 5 * 0.5, 10: 1 + 10 * 0.5}) == pytest.approx(0.5)
    asked = {
        "model": "resnet8",
        "image_shape": (1, 8, 8),
        "classes": 10,
        "batch_size": 4,
        "precision": "float32",
    }
    asked |= {
        "steps": 3,
        "curve": (1,),
        "epochs": 10,
        "clean_epochs": 4,
        "rounds": 1,
        "threads": 1,
        "device": "cpu",
    }
    found = cost.measure(Namespace(**asked, methods=["standard", "at"]))
    clean, at = found["costs"]
    assert (clean["forwards"], clean["backwards"]) == (1, 1)
    assert (at["forwards"], at["backwards"], at["passes_ratio"], at["flops_ratio"]) == (4, 4, 1, 1)
    # A pass costs 1, back to the images 1 and back to the weights 2, but for the first layer, which
    # has no images.
    assert clean["flops_ratio"] == pytest.approx(3 / (3 * 2 + 3), rel=0.1)


def test_a_shipment_holds_code_and_the_images_that_a_run_needs(load: Load, tmp_path: Path) -> None:
    transport = load("transport")
    asked = Data(name="digits-lt", imbalance_ratio=10.0, test_max_count=5)
    size = transport.pack(tmp_path / "there", asked)
    assert size < transport.MOST_BYTES
    assert (tmp_path / "there" / "src" / "taet" / "__init__.py").exists()
    assert not (tmp_path / "there" / "results").exists()
    whole = tmp_path / "there" / "data" / "digits-lt.npz"
    assert not whole.exists()
    transport.join(whole)
    sent, expected = load_data(Data(name=f"npz:{whole}")), load_data(asked)
    for name, split in expected.splits.items():
        assert np.array_equal(sent.splits[name].labels, split.labels)
        assert np.array_equal(np.squeeze(sent.splits[name].images), np.squeeze(split.images))


def test_a_shipment_that_is_too_large_is_refused(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transport = load("transport")
    monkeypatch.setattr(transport, "MOST_BYTES", 2**20)
    with one_line(r"MiB; allowed: 1 MiB, e\.g\. with fewer test images"):
        transport.pack(tmp_path / "there", Data(name="digits-lt"))


def test_weights_travel_in_pieces_and_arrive_whole(load: Load, tmp_path: Path) -> None:
    transport, weights = load("transport"), bytes(range(256)) * 10
    path = tmp_path / "model.safetensors"
    path.write_bytes(weights)
    pieces = transport.cut(path, 1000)
    assert [piece.stat().st_size for piece in pieces] == [1000, 1000, 560]
    path.unlink()
    transport.join(path)
    assert path.read_bytes() == weights
    pieces[1].write_bytes(b"x" * 1000)
    with one_line("got pieces of other content"):
        transport.join(path)
    pieces[1].unlink()
    with one_line(r"got 2 of 3 pieces; missing: 2"):
        transport.join(path)
