"""The examples and the snippets of docs/python.md run, and come to what they promise."""

import json
import math
import re
import runpy
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy import stats

import taet
from taet import protocols, registry
from taet.data import load
from taet.data.extra import read_extra
from taet.metrics import accuracies
from taet.settings import Data, override
from tests.calls import forget

ROOT = Path(__file__).parents[1]
EXAMPLES, PAGE = ROOT / "examples", ROOT / "docs" / "python.md"
SHORT = {"data.max_count": 30, "training.epochs": 1, "threat.steps": 1, "training.monitor_steps": 1}
SHORT |= {"training.precision": "float32"}


def example(name: str) -> dict[str, Any]:
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))


DIGITS = {
    "data.max_count": None,
    "data.validation": 0.3,
    "data.test": "balanced",
    "data.test_max_count": 20,
    "model.name": "resnet8",
}


def trained_on_digits(out: Path, epochs: int) -> Path:
    """Train on digits with validation images, and return the folder of the run."""
    run = override(protocols.taet("at"), SHORT | DIGITS | {"training.epochs": epochs})
    return taet.train(run, out=out).folder


@pytest.fixture(scope="module")
def one_epoch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_on_digits(tmp_path_factory.mktemp("one") / "at", epochs=1)


@pytest.fixture(scope="module")
def twelve_epochs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_on_digits(tmp_path_factory.mktemp("twelve") / "at", epochs=12)


def test_every_example_has_a_test() -> None:
    tested = set(
        re.findall(r'(?:example\("|def test_)(\w+)', Path(__file__).read_text(encoding="utf-8"))
    )
    assert {path.stem for path in EXAMPLES.glob("*.py")} <= tested


@pytest.mark.full
def test_own_model(capsys: pytest.CaptureFixture[str]) -> None:
    card = example("own_model")["main"]()
    assert "pgd-20" in capsys.readouterr().out
    # 0.1 is chance
    assert 0.1 < card.summary("pgd-20").balanced < card.summary("clean").balanced > 0.5


def run_plugin(
    name: str,
    kind: registry.Kind,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> dict[str, Any]:
    """Run an example that registers itself, with two epochs, and return its cards."""
    train = taet.train
    monkeypatch.setattr(
        taet, "train", lambda run, out: train(override(run, {"training.epochs": 2}), out=out)
    )
    request.addfinalizer(lambda: forget(kind, EXAMPLES / f"{name}.py"))
    cards: dict[str, Any] = example(name)["main"]()
    return cards


@pytest.mark.full
def test_add_a_method(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    cards = run_plugin("add_a_method", "methods", monkeypatch, request)
    assert "Prediction-balanced AT" in capsys.readouterr().out
    assert list(cards) == ["at", "prediction-balanced"]


@pytest.mark.full
def test_add_a_loss(
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    cards = run_plugin("add_a_loss", "losses", monkeypatch, request)
    assert list(cards) == ["cross-entropy", "vector-scaling"]
    assert not np.array_equal(*(card.clean.predictions for card in cards.values()))


def test_generate_extra(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The images are of their classes, follow from the training images and the seed alone, and can
    be extra images."""
    module, path = example("generate_extra"), tmp_path / "made.npz"
    module["main"]([str(path), "--per-class", "30"])
    assert "300 images, from 382 training images alone" in capsys.readouterr().out
    images, labels = (np.load(path)[name] for name in ("images", "labels"))
    data = load("digits-lt", imbalance_ratio=10, validation=0.2)
    assert np.array_equal(images, module["generate"](data.train, 30, seed=0)[0])
    assert np.bincount(labels).tolist() == [30] * 10
    settings = {"extra": f"npz:{path}", "extra_source": "a Gaussian for each class"}
    extra = read_extra(Data(name="digits-lt", imbalance_ratio=10, validation=0.2, **settings), data)
    assert len(extra) == 300


@pytest.mark.full
def test_hel_in_your_loop(capsys: pytest.CaptureFixture[str]) -> None:
    counts = example("hel_in_your_loop")["main"]()
    rows = capsys.readouterr().out.splitlines()[2:12]
    assert [int(row.split()[1]) for row in rows] == [90, 69, 53, 41, 32, 25, 19, 15, 11, 9], (
        "digits that it trains on"
    )
    for correct, total in counts.values():
        assert accuracies.balanced_accuracy(correct, total) > 0.4, "four times chance, under attack"


def test_lightning(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip(
        "pytorch_lightning", reason="examples/lightning.py needs pip install pytorch-lightning"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Lightning, about loaders without workers
        counts = example("lightning")["main"](["--epochs", "2"])
    printed = capsys.readouterr().out
    for name, (correct, total) in counts.items():
        assert (
            f"{name}: balanced {100 * accuracies.balanced_accuracy(correct, total):.1f} %"
        ) in printed


@pytest.mark.full
def test_until_decided(
    one_epoch: Path, twelve_epochs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module, long, short = example("until_decided"), str(twelve_epochs), str(one_epoch)
    decision = module["main"]([long, short, "--attack", "fgsm"])
    assert decision.reason == "decided"
    assert "the first is better" in capsys.readouterr().out
    assert module["main"]([long, long, "--attack", "fgsm"]).reason in ("exhausted", "hopeless")


def test_evidence_is_seldom_large_between_equal_models_and_an_interval_holds_the_difference() -> (
    None
):
    module, draws = example("until_decided"), np.random.default_rng(0)
    # Class 0 favours one model and class 1 the other: D = 0, and looks at every round err with at
    # most alpha.
    one, other = draws.choice([1, 0], (2, 400, 100), p=[0.3, 0.7])
    plus, minus = module["evidence"](np.stack([one, -other], -1), np.ones(2))
    assert (np.maximum(plus, minus) >= math.log(2 / 0.05)).any(-1).mean() <= 0.05
    low, high = module["interval"](
        draws.choice([1, 0, -1], (200, 2), p=[0.3, 0.6, 0.1]), np.ones(2), 0.05
    )
    assert 0 < low < 0.2 < high


@pytest.mark.full
def test_abstain(twelve_epochs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = example("abstain")
    found = module["main"]([str(twelve_epochs), "--share", "0.6"])
    assert np.isfinite(found).any()
    assert "at most 60 %" in capsys.readouterr().out.splitlines()[-1]
    limit = module["upper_limits"](np.array([3, 0, 5]), np.array([20, 0, 5]), 1)
    assert stats.binom.cdf(3, 20, limit[0]) == pytest.approx(0.05)
    assert limit[1:].tolist() == [1, 1]


@pytest.mark.full
def test_embed(one_epoch: Path, tmp_path: Path) -> None:
    found = example("embed")["main"]([str(one_epoch), str(tmp_path / "x.png"), "--images", "6"])
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    assert all(0.1 < side["separability"] <= 1 for side in found.values())


@pytest.mark.full
def test_learning_curve(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module, changes = (
        example("learning_curve"),
        {**SHORT, "data.test_max_count": 4, "training.monitor_every": 0},
    )
    found = module["main"](["standard", "--seeds", "2", "--out", str(tmp_path)], changes)
    assert [len(rows) for rows in found.values()] == [10]
    assert capsys.readouterr().out.count("\n") == 11
    draw, labels = np.random.default_rng(0), np.arange(40) % 4 // 2
    own = {
        f"{part}_images": draw.integers(0, 256, (40, 8, 8, 3), np.uint8)
        for part in ("train", "test")
    }
    few = np.append(labels[:-1], 2)  # one image of a class, and none to test it
    np.savez(tmp_path / "own.npz", **own, train_labels=few, test_labels=labels)
    words = [
        "standard",
        "--data",
        f"npz:{tmp_path / 'own.npz'}",
        "--seeds",
        "2",
        "--out",
        str(tmp_path / "own"),
    ]
    module["main"](words, {"training.epochs": 1, "training.monitor_every": 0})
    lines = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert [line[:2] for line in lines] == [["0", "20"], ["1", "19"], ["2", "1"]]
    assert lines[2][2:] == ["images:", "too", "few", "here"]
    values = np.random.default_rng(0).random((3, 50))
    estimate = module["estimate"](values)
    seeds, images = values.mean(1).var(ddof=1) / 3, values.mean(0).var(ddof=1) / 50
    reach = math.sqrt(stats.t.ppf(0.975, 2) ** 2 * seeds + stats.t.ppf(0.975, 49) ** 2 * images)
    assert (estimate.high - estimate.low) / 2 == pytest.approx(reach)


@pytest.mark.full
def test_tune(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("optuna", reason="examples/tune.py needs pip install optuna")
    warnings.simplefilter("ignore")  # of Optuna, about its journal
    module = example("tune")
    module["SHARED"].update(SHORT | {"data.test_max_count": 2, "training.monitor_every": 0})
    module["SPACES"].pop("at")
    found = module["main"](["--trials", "2", "--out", str(tmp_path)])
    monkeypatch.setattr(taet, "train", None)
    assert module["main"](["--trials", "2", "--out", str(tmp_path)]) == found, (
        "a search that ended is not done again"
    )


def test_track(
    one_epoch: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module, folder = example("track"), one_epoch
    clean = taet.evaluate(folder, attacks=["clean"]).summary("clean").balanced
    told = module["read"](folder)
    assert (told.settings["training.epochs"], list(told.epochs)) == ("1", [1])
    assert told.results["test/clean/balanced accuracy"] == clean
    module["main"]([str(folder)])
    assert "test/clean/accuracy" in capsys.readouterr().out
    module["main"]([str(folder), "--to", "tensorboard", "--project", str(tmp_path)])
    assert [file.stat().st_size > 200 for file in (tmp_path / folder.name).iterdir()] == [True]
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(SystemExit, match="needs the package mlflow: pip install mlflow"):
        module["main"]([str(folder), "--to", "mlflow"])


@pytest.mark.full
def test_live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each epoch is logged once, and as soon as the run folder has it."""
    module, told = example("live"), list[tuple[int, int]]()
    run = override(protocols.taet("at"), SHORT | {"training.epochs": 3, "model.name": "resnet8"})
    folder = tmp_path / "run"

    def log(numbers: dict[str, float], epoch: int) -> None:
        assert numbers["loss.total"] > 0
        written = (folder / "metrics.jsonl").read_text(encoding="utf-8").count("\n")
        told.append((epoch, written))

    live = module["LiveLog"](folder, log)
    taet.train(run, out=folder, progress=live)
    assert told[0] == (1, 1), "the first epoch is logged while the second one runs"
    live()
    assert [epoch for epoch, _ in told] == [1, 2, 3]
    monkeypatch.chdir(tmp_path)
    module["main"](["--epochs", "1", "--out", str(tmp_path / "live")])
    assert [*(tmp_path / "taet-runs" / "live").iterdir()]


def test_live_hands_the_numbers_of_an_epoch_to_wandb(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, logged = list[dict[str, str]](), list[tuple[dict[str, float], int]]()
    run = SimpleNamespace(log=lambda numbers, step: logged.append((numbers, step)))

    def init(**how: str) -> SimpleNamespace:
        begun.append(how)
        return run

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    log = example("live")["wandb_log"]("first")
    log({"loss.total": 2.0}, 3)
    assert begun == [{"project": "taet-runs", "name": "first"}]
    assert logged == [({"loss.total": 2.0}, 3)]


def test_a_script_beside_a_folder_named_taet_imports_the_package(tmp_path: Path) -> None:
    """A clone has this name, and a script often lies beside it."""
    (tmp_path / "taet" / "examples").mkdir(parents=True)
    script = tmp_path / "script.py"
    script.write_text("import taet; print(taet.__version__, 'train' in dir(taet))")
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == [taet.__version__, "True"], done.stderr


def test_no_example_makes_a_folder_that_hides_the_package() -> None:
    for path in EXAMPLES.glob("*.py"):
        assert not re.search(r"""["']taet["'/]""", path.read_text(encoding="utf-8")), path.name


@pytest.mark.full
def test_the_tutorial_notebook_runs_and_draws_its_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = pytest.importorskip("matplotlib.pyplot", reason="the tutorial draws with matplotlib")
    figures.switch_backend("Agg")
    drawn: list[int] = []
    monkeypatch.setattr(figures, "show", lambda: drawn.append(len(figures.gcf().axes)))
    cells = json.loads((EXAMPLES / "tutorial.ipynb").read_text(encoding="utf-8"))["cells"]
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            source = "".join(cell["source"]).replace(
                '"training.epochs": 15', '"training.epochs": 4'
            )
            exec(compile(source, f"tutorial, {cell['id']}", "exec"), scope)
    figures.close("all")
    assert drawn == [1, 3, 1]
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("at-bsl", "tail", "significant"))
    stored = [output for cell in cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in stored) == 3


@pytest.mark.full
def test_the_snippets_of_the_page_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for number, snippet in enumerate(
        re.findall(r"^```python\n(.*?)^```", PAGE.read_text("utf-8"), re.M | re.S), 1
    ):
        exec(compile(snippet, f"{PAGE.name}, snippet {number}", "exec"), names)
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("TAET", "pgd-20", "survive", "model.pt2", "Loss("))
