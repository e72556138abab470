"""The examples and the snippets of docs/python.md run, and come to what they promise."""

from __future__ import annotations

import math
import re
import runpy
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

import taet
from taet import methods, protocols, registry, statistics
from taet.data import load
from taet.data.extra import read_extra
from taet.settings import Data, Run, override

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
PAGE = ROOT / "docs" / "python.md"
TRAINED_ON = (90, 69, 53, 41, 32, 25, 19, 15, 11, 9)  # digits of each class in hel_in_your_loop.py
MOST_LINES = 40  # of what a result prints of itself
MOST_CHARACTERS = 4_000
SHORT = {"data.max_count": 30, "training.epochs": 1, "threat.steps": 1, "training.monitor_steps": 1}
SHORT |= {"training.precision": "float32"}


def example(name: str) -> dict[str, Any]:
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Run folders on digits, with validation images, after some epochs."""
    place, made = tmp_path_factory.mktemp("runs"), dict[int, Path]()

    def run(epochs: int) -> Path:
        if epochs not in made:
            changes = {**SHORT, "data.max_count": None, "data.validation": 0.3, "data.test": "balanced"}
            changes |= {"model.name": "resnet8", "training.epochs": epochs, "data.test_max_count": 20}
            made[epochs] = place / f"at-{epochs}"
            taet.train(override(protocols.taet("at"), changes), out=made[epochs])
        return made[epochs]

    return run


def test_every_example_has_a_test() -> None:
    tested = set(re.findall(r'(?:example\("|def test_)(\w+)', Path(__file__).read_text(encoding="utf-8")))
    assert {path.stem for path in EXAMPLES.glob("*.py")} <= tested


@pytest.mark.full
def test_own_model(capsys: pytest.CaptureFixture[str]) -> None:
    card = example("own_model")["main"]()
    printed = capsys.readouterr().out
    assert [column.name for column in card.columns] == ["clean", "fgsm", "pgd-20"]
    assert all(column.name in printed for column in card.columns)
    assert len(card.labels) == 797
    clean, attacked = card.summary("clean"), card.summary("pgd-20")
    assert clean.balanced > 0.5
    assert 0.1 < attacked.balanced < clean.balanced  # 0.1 is chance
    counts = card.data["train_class_counts"]
    assert (counts[0], counts[-1]) == (60, 6)


@pytest.mark.full
def test_add_a_method(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    train = taet.train

    def shorter(run: Run, **options: Any) -> Any:
        return train(override(run, {"training.epochs": 2}), **options)

    monkeypatch.setattr(taet, "train", shorter)
    request.addfinalizer(lambda: registry.forget("methods", EXAMPLES / "add_a_method.py"))
    cards = example("add_a_method")["main"]()
    assert "Prediction-balanced AT" in capsys.readouterr().out
    assert list(cards) == ["at", "prediction-balanced"]
    task = methods.Task((30, 10, 10), (1, 8, 8), epochs=1, steps_per_epoch=1, milestones=())
    method = methods.build("prediction-balanced", None, task)
    method.start_epoch(0, torch.tensor([40.0, 5.0, 5.0]))
    assert method.weights[0] < 1 < method.weights[1] == method.weights[2], "a seldom predicted class weighs more"


def test_generate_extra(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The images are of their classes, follow from the training images and the seed alone, and can be extra images."""
    module, path = example("generate_extra"), tmp_path / "made.npz"
    module["main"]([str(path), "--per-class", "30"])
    assert "300 images, from 382 training images alone" in capsys.readouterr().out
    made = np.load(path)
    images, labels = made["images"], made["labels"]
    assert (images.shape, images.dtype, np.bincount(labels).tolist()) == ((300, 8, 8, 1), np.uint8, [30] * 10)
    data = load("digits-lt", imbalance_ratio=10, validation=0.2)
    again, _ = module["generate"](data.train, 30, seed=0)
    assert np.array_equal(images, again)
    centres = np.stack([data.train.images[data.train.labels == label].mean(0).ravel() for label in range(10)])
    distance = ((images.reshape(300, 1, -1) - centres) ** 2).sum(2)
    assert (distance.argmin(1) == labels).mean() > 0.8
    settings = {"extra": f"npz:{path}", "extra_source": "a Gaussian for each class"}
    extra = read_extra(Data(name="digits-lt", imbalance_ratio=10, validation=0.2, **settings), data)
    assert len(extra.split) == 300


@pytest.mark.full
def test_hel_in_your_loop(capsys: pytest.CaptureFixture[str]) -> None:
    source = (EXAMPLES / "hel_in_your_loop.py").read_text(encoding="utf-8")
    taken = re.findall(r"^from taet.*", source, re.M)
    assert [line.split()[1] for line in taken] == ["taet", "taet.attacks", "taet.losses"]
    counts = example("hel_in_your_loop")["main"]()
    rows = capsys.readouterr().out.splitlines()
    assert [row.split()[:2] for row in rows[2:12]] == [[str(c), str(n)] for c, n in enumerate(TRAINED_ON)]
    for correct, total in counts.values():
        assert total.sum() == 797
        assert statistics.balanced_accuracy(correct, total) > 0.4, "four times chance, under attack"


def test_lightning(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pytorch_lightning", reason="examples/lightning.py needs pip install pytorch-lightning")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Lightning, about loaders without workers
        counts = example("lightning")["main"](["--epochs", "2"])
    assert list(counts) == ["balanced softmax", "class-balanced sampler"]
    printed = capsys.readouterr().out
    for name, (correct, total) in counts.items():
        assert total.sum() == 797
        assert f"{name}: balanced {100 * statistics.balanced_accuracy(correct, total):.1f} %" in printed


def test_until_decided(trained: Callable[[int], Path], capsys: pytest.CaptureFixture[str]) -> None:
    module = example("until_decided")
    long, short = str(trained(12)), str(trained(1))
    decision = module["main"]([long, short, "--attack", "fgsm"])
    assert decision.reason == "decided"
    assert "the first is better" in capsys.readouterr().out
    assert 0 <= decision.low <= decision.high
    assert decision.images <= decision.of == 200
    assert module["main"]([long, long, "--attack", "fgsm"]).reason in ("exhausted", "hopeless")


@pytest.mark.filterwarnings("default")
def test_evidence_is_the_wealth_of_a_gambler_and_seldom_large_between_equal_models() -> None:
    module = example("until_decided")
    labels = np.repeat([0, 1, 2], [6, 3, 4])
    order = module["rounds"](labels, seed=0)
    weight = module["weights"](labels[order[0]])
    assert [sorted(labels[row].tolist()) for row in order] == [[0, 0, 1, 2]] * 3
    assert len({*order.ravel().tolist()}) == order.size
    draws = np.random.default_rng(0)
    d = draws.integers(-1, 2, (3, 4)).astype(float)
    plus, minus = module["evidence"](d, weight, 0.1)
    for found, sign in ((plus, 1), (minus, -1)):
        each = [math.prod(1 + bet * w * sign * (x - 0.1) for row in d for w, x in zip(weight, row, strict=True))
                for bet in module["BETS"]]  # fmt: skip
        assert found[-1] == pytest.approx(math.log(sum(each) / len(each)))
    # Class 0 favours one model and class 1 the other: D = 0, and looks at every round err with at most alpha.
    equal = np.stack(
        [draws.choice([1, 0], (400, 100), p=[0.3, 0.7]), -draws.choice([1, 0], (400, 100), p=[0.3, 0.7])], -1
    )
    plus, minus = module["evidence"](equal, np.ones(2))
    assert (np.maximum(plus, minus) >= math.log(2 / 0.05)).any(-1).mean() <= 0.05
    better = draws.choice([1, 0, -1], (200, 2), p=[0.3, 0.6, 0.1])
    low, high = module["interval"](better, np.ones(2), 0.05)
    assert 0 < low < 0.2 < high


def test_abstain(trained: Callable[[int], Path], capsys: pytest.CaptureFixture[str]) -> None:
    module = example("abstain")
    found = module["main"]([str(trained(12)), "--share", "0.6"])
    assert found.shape == (10,)
    assert np.isfinite(found).any()
    assert {*found[np.isfinite(found)]} <= {*module["CANDIDATES"]}
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 11
    assert "at most 60 %" in printed[-1]
    limit = module["upper_limits"](np.array([3, 0, 5]), np.array([20, 0, 5]), 1)
    assert stats.binom.cdf(3, 20, limit[0]) == pytest.approx(0.05)
    assert limit[1:].tolist() == [1, 1]


def test_embed(trained: Callable[[int], Path], tmp_path: Path) -> None:
    found = example("embed")["main"]([str(trained(12)), str(tmp_path / "x.png"), "--images", "6"])
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    assert list(found) == ["clean", "under PGD-20"]
    for side in found.values():
        assert -1 <= side["silhouette"] <= 1
        assert 0.1 < side["separability"] <= 1


def test_learning_curve(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module, changes = example("learning_curve"), {**SHORT, "data.test_max_count": 4, "training.monitor_every": 0}
    found = module["main"](["standard", "--seeds", "2", "--out", str(tmp_path)], changes)
    assert [len(rows) for rows in found.values()] == [10]
    assert len(capsys.readouterr().out.splitlines()) == 11
    recall = [np.full((2, 5), value) for value in (0.2, 0.4, 0.6)]
    of_all, last, following = module["gains"](recall, (10, 20, 40))
    assert (of_all, last.value, following.value) == pytest.approx((0.6, 0.2, 0.2))
    values = np.random.default_rng(0).random((3, 50))
    estimate = module["estimate"](values)
    seeds, images = values.mean(1).var(ddof=1) / 3, values.mean(0).var(ddof=1) / 50
    reach = math.sqrt(stats.t.ppf(0.975, 2) ** 2 * seeds + stats.t.ppf(0.975, 49) ** 2 * images)
    assert (estimate.high - estimate.low) / 2 == pytest.approx(reach)


def test_tune(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("optuna", reason="examples/tune.py needs pip install optuna")
    warnings.simplefilter("ignore")  # of Optuna, about its journal
    module = example("tune")
    module["SHARED"].update(SHORT | {"data.test_max_count": 2, "training.monitor_every": 0})
    module["SPACES"].pop("at")
    calls: list[Run] = []
    train = taet.train
    monkeypatch.setattr(taet, "train", lambda run, **options: calls.append(run) or train(run, **options))
    found = module["main"](["--trials", "2", "--out", str(tmp_path)])
    assert found.keys() == {"trades"}
    assert [run.training.tuned for run in calls] == [0, 0, 2]
    assert len({run.training.lr for run in calls[:2]}) == 2
    assert calls[0].settings.beta != calls[1].settings.beta
    assert module["main"](["--trials", "2", "--out", str(tmp_path)]) == found
    assert len(calls) == 3, "a search that ended is not done again"


def test_track(
    trained: Callable[[int], Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    module, folder = example("track"), trained(1)
    taet.evaluate(folder, attacks=["clean"])
    told = module["read"](folder)
    assert told.settings["training.epochs"] == "1"
    assert list(told.epochs) == [1]
    assert (
        told.results["test/clean/balanced accuracy"]
        == taet.evaluate(folder, attacks=["clean"]).summary("clean").balanced
    )
    module["main"]([str(folder)])
    assert "test/clean/accuracy" in capsys.readouterr().out
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(SystemExit, match="needs the package mlflow: pip install mlflow"):
        module["main"]([str(folder), "--to", "mlflow"])


def snippets() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)


@pytest.mark.full
def test_the_snippets_of_the_page_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for number, snippet in enumerate(snippets(), 1):
        exec(compile(snippet, f"{PAGE.name}, snippet {number}", "exec"), names)
    printed = capsys.readouterr().out
    for word in ("TAET", "pgd-5", "survive", "model.pt2", "Loss("):
        assert word in printed
    np.testing.assert_array_equal(names["digits"].test.images, names["result"].dataset.test.images)
    results = {name: value for name, value in names.items() if type(value).__module__.startswith("taet.")}
    assert {"result", "digits", "own", "card", "summary"} <= results.keys()
    for name, value in results.items():
        text = repr(value)
        assert len(text.splitlines()) <= MOST_LINES, f"{name} prints {len(text.splitlines())} lines"
        assert len(text) <= MOST_CHARACTERS, f"{name} prints {len(text)} characters"
