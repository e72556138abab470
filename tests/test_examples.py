"""The examples and the snippets of docs/python.md run, and come to what they promise."""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import taet
from taet import methods, registry, statistics
from taet.data import load
from taet.data.extra import read_extra
from taet.settings import Data, Run, override

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
NOTEBOOK = EXAMPLES / "taet_demo.ipynb"
PAGE = ROOT / "docs" / "python.md"
TRAINED_ON = (90, 69, 53, 41, 32, 25, 19, 15, 11, 9)  # digits of each class in hel_in_your_loop.py
MOST_LINES = 40  # of what a result prints of itself
MOST_CHARACTERS = 4_000


def code_cells() -> list[str]:
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_every_example_has_a_test() -> None:
    expected = {
        "add_a_method.py",
        "generate_extra.py",
        "hel_in_your_loop.py",
        "lightning.py",
        "own_model.py",
        "taet_demo.ipynb",
    }
    assert {path.name for path in EXAMPLES.iterdir() if path.is_file()} == expected


@pytest.mark.full
def test_own_model(capsys: pytest.CaptureFixture[str]) -> None:
    card = runpy.run_path(str(EXAMPLES / "own_model.py"))["main"]()
    printed = capsys.readouterr().out
    assert [column.name for column in card.columns] == ["clean", "fgsm", "pgd-20"]
    assert all(column.name in printed for column in card.columns)
    assert len(card.labels) == 797
    clean, attacked = card.summary("clean"), card.summary("pgd-20")
    assert clean.balanced > 0.5
    assert 0.1 < attacked.balanced < clean.balanced  # 0.1 is chance
    counts = card.data["train_class_counts"]
    assert (counts[0], counts[-1]) == (60, 6)
    assert counts == sorted(counts, reverse=True)


@pytest.mark.full
@pytest.mark.parametrize("epochs", [2, pytest.param(20, marks=pytest.mark.full)])
def test_add_a_method(
    epochs: int,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    train = taet.train

    def shorter(run: Run, **options: Any) -> Any:
        assert run.training.epochs == 20
        return train(override(run, {"training.epochs": epochs}), **options)

    monkeypatch.setattr(taet, "train", shorter)
    request.addfinalizer(lambda: registry.forget("methods", EXAMPLES / "add_a_method.py"))
    cards = runpy.run_path(str(EXAMPLES / "add_a_method.py"))["main"]()
    assert "Prediction-balanced AT" in capsys.readouterr().out
    assert list(cards) == ["at", "prediction-balanced"]
    for card in cards.values():
        assert [column.name for column in card.columns] == ["clean", "pgd-20"]
        assert card.summary("clean").balanced > 0.5 or epochs == 2
    task = methods.Task((30, 10, 10), (1, 8, 8), epochs=1, steps_per_epoch=1, milestones=())
    method = methods.build("prediction-balanced", None, task)
    method.start_epoch(0, torch.tensor([40.0, 5.0, 5.0]))
    assert method.weights[0] < 1 < method.weights[1] == method.weights[2], "a seldom predicted class weighs more"


def test_generate_extra(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The images are of their classes, follow from the training images and the seed alone, and can be extra images."""
    example, path = runpy.run_path(str(EXAMPLES / "generate_extra.py")), tmp_path / "made.npz"
    example["main"]([str(path), "--per-class", "30"])
    assert "300 images, from 382 training images alone" in capsys.readouterr().out
    made = np.load(path)
    images, labels = made["images"], made["labels"]
    assert (images.shape, images.dtype, np.bincount(labels).tolist()) == ((300, 8, 8, 1), np.uint8, [30] * 10)
    data = load("digits-lt", imbalance_ratio=10, validation=0.2)
    again, _ = example["generate"](data.train, 30, seed=0)
    other, _ = example["generate"](data.train, 30, seed=1)
    assert np.array_equal(images, again)
    assert not np.array_equal(images, other)
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
    counts = runpy.run_path(str(EXAMPLES / "hel_in_your_loop.py"))["main"]()
    rows = capsys.readouterr().out.splitlines()
    assert [row.split()[:2] for row in rows[2:12]] == [[str(c), str(n)] for c, n in enumerate(TRAINED_ON)]
    for column, (name, (correct, total)) in enumerate(counts.items(), 3):
        recalls = [f"{100 * value:.1f}" for value in statistics.per_class_accuracy(correct, total)]
        assert [row.split()[column] for row in rows[2:12]] == recalls
        assert total.sum() == 797
        assert statistics.balanced_accuracy(correct, total) > 0.4, "four times chance, under attack"
        assert any(row.startswith(f"{name}: balanced") for row in rows)


def test_lightning(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pytorch_lightning", reason="examples/lightning.py needs pip install pytorch-lightning")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Lightning, about loaders without workers
        counts = runpy.run_path(str(EXAMPLES / "lightning.py"))["main"](["--epochs", "2"])
    assert list(counts) == ["balanced softmax", "class-balanced sampler"]
    printed = capsys.readouterr().out
    for name, (correct, total) in counts.items():
        assert total.sum() == 797
        assert 0 < correct.sum() < 797
        assert f"{name}: balanced {100 * statistics.balanced_accuracy(correct, total):.1f} %" in printed


def test_the_notebook_is_clean() -> None:
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    assert notebook["cells"][0]["cell_type"] == "markdown"
    common = {"cell_type", "id", "metadata", "source"}
    for cell in notebook["cells"]:
        wanted = common | ({"execution_count", "outputs"} if cell["cell_type"] == "code" else set())
        assert cell.keys() == wanted, cell["id"]
        assert re.fullmatch(r"[a-z-]{1,64}", cell["id"])
        assert not cell["metadata"]
        if cell["cell_type"] == "code":
            assert (cell["execution_count"], cell["outputs"]) == (None, []), f"{cell['id']} was run: clear its output"
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])


@pytest.mark.full
def test_the_notebook_runs_anywhere_and_writes_nowhere_else(tmp_path: Path) -> None:
    here, temporary, program = tmp_path / "here", tmp_path / "temporary", tmp_path / "program.py"
    here.mkdir()
    temporary.mkdir()
    last = "print('figures', len(plt.get_fignums()))"  # which Agg keeps open, since it cannot show them
    program.write_text("\n".join([*code_cells(), last]), encoding="utf-8")
    environment = {
        **os.environ,
        "MPLBACKEND": "Agg",
        "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
        "TMPDIR": str(temporary),
    }
    quiet = ("-W", "error", "-W", "ignore:FigureCanvasAgg is non-interactive:UserWarning")
    ran = subprocess.run(
        [sys.executable, *quiet, str(program)], cwd=here, env=environment, capture_output=True, text=True, timeout=300
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr == ""
    assert list(here.iterdir()) == []
    (made,) = temporary.glob("taet-demo-*")
    assert {path.name for path in made.iterdir()} == {"at", "taet", "report.html"}
    assert "AT and TAET on long-tailed digits" in (made / "report.html").read_text(encoding="utf-8")
    cards = [json.loads((made / name / "evaluation.json").read_text()) for name in ("at", "taet")]
    for card in cards:
        assert card["columns"][0]["summary"]["balanced"] > 0.6
        assert card["columns"][2]["summary"]["balanced"] > 0.2, "twice chance, under attack"
    printed = ran.stdout.splitlines()
    assert printed[-1] == "figures 4"
    assert sum(line.startswith("pgd-20 ") for line in printed) == len(cards)
    assert sum(line.startswith("{'path':") for line in printed) == 10


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
    assert [row["attack"] for row in names["rows"]] == ["clean", "fgsm", "pgd-5"]
    assert {len(column) for column in names["recalls"].values()} == {10}
    np.testing.assert_array_equal(names["digits"].test.images, names["result"].dataset.test.images)
    json.dumps(names["rows"])
    results = {name: value for name, value in names.items() if type(value).__module__.startswith("taet.")}
    assert {"result", "digits", "own", "card", "summary", "answers"} <= results.keys()
    for name, value in results.items():
        text = repr(value)
        assert len(text.splitlines()) <= MOST_LINES, f"{name} prints {len(text.splitlines())} lines"
        assert len(text) <= MOST_CHARACTERS, f"{name} prints {len(text)} characters"
