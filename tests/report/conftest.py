"""Run folders made of real files: three methods, ten classes, twelve epochs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from taet.evaluation.card import ResultCard
from taet.evaluation.column import Column
from taet.settings import Run, override, to_json

METHODS = {"at": 0.45, "at-bsl": 0.55, "taet": 0.6}
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
ATTACKS = {"clean": 1.0, "fgsm": 0.7, "pgd-20": 0.6, "autoattack-10": 0.55, "autoattack": 0.5}
EPS = 8 / 255


def counts(num_classes: int, largest: int, ratio: float) -> np.ndarray:
    shares = ratio ** -(np.arange(num_classes) / max(num_classes - 1, 1))
    return np.maximum(1, np.round(largest * shares)).astype(np.int64)


def build_card(
    method: str, skill: float, names: Sequence[str], train: np.ndarray, test: np.ndarray, seed: int = 0, **changes: Any
) -> ResultCard:
    """Each attack breaks more than the one before; rare classes are right less often; errors go to common classes."""
    rng = np.random.default_rng([seed, *method.encode()])
    labels = np.repeat(np.arange(len(names)), test)
    chance = (0.35 + skill * (train / train.max()) ** 0.25)[labels].clip(0, 0.97)
    draw, wrong = rng.random(len(labels)), rng.choice(len(names), len(labels), p=train / train.sum())
    wrong = np.where(wrong == labels, (labels + 1) % len(names), wrong)
    columns = []
    for attack, share in ATTACKS.items():
        correct = draw < chance * share
        clean = attack == "clean"
        columns.append(
            Column(
                name=attack,
                norm=None if clean else "linf",
                eps=None if clean else EPS,
                bounded=not clean,
                parameters={} if clean else {"steps": 20, "step_size": EPS / 8, "seed": seed},
                correct=correct,
                predictions=np.where(correct, labels, wrong),
                parts={"apgd-ce": draw < chance * 0.53, "square": correct} if attack == "autoattack" else {},
                seconds=1.5,
                forwards=len(labels) * 20,
                backwards=len(labels) * 20,
            )
        )
    card: dict[str, Any] = {
        "method": method,
        "title": f"{method} in words",
        "protocol": "taet",
        "threat": {"norm": "linf", "eps": EPS},
        "seed": seed,
        "model": {"name": "small", "weights_sha256": f"{seed + 10:064x}", "parameters": 1000, "selection": "last"}
        | {"epoch": 12, "leak": False},
        "data": {"name": "digits-lt", "class_names": list(names), "test_sha256": "ab" * 32}
        | {"train_class_counts": train.tolist(), "imbalance_ratio": train.max() / train.min(), "notes": []},
        "batch_size": 250,
        "labels": labels,
        "columns": tuple(columns),
        "flags": ({"flag": "few-images", "text": "class nine has 9 test images."},) if method == "taet" else (),
        "environment": {"torch": "2.11", "device": "cpu"},
        "created": "2026-01-01T00:00:00+00:00",
        "command": f"taet evaluate runs/{method}",
    }
    return ResultCard(**(card | changes))


def epoch_row(epoch: int, method: str, train: np.ndarray, test: np.ndarray, skill: float) -> dict[str, Any]:
    stage = "train" if method != "taet" else "clean" if epoch <= 5 else "adversarial"
    grown = skill * (1 - np.exp(-epoch / 4)) * (train / train.max()) ** 0.2
    parts = {"bcl": 2.0 / epoch, "hdl": 0.3 / epoch, "rcel": 1.5 / epoch} if stage == "adversarial" else {}
    skew = (train**1.5 / (train**1.5).sum()) if epoch == 1 else train / train.sum()
    accuracy = {"total": test.tolist()}
    return {
        "epoch": epoch,
        "stage": stage,
        "lr": 0.1,
        "loss": {"total": 2.3 / epoch + (0.4 if stage == "adversarial" else 0)} | parts,
        "train": {"correct": (train // 2).tolist(), "total": train.tolist()},
        "predicted": np.round(skew * train.sum()).astype(int).tolist(),
        "monitor": {
            "split": "test",
            "clean": accuracy | {"correct": np.round(test * grown).astype(int).tolist()},
            "pgd-20": accuracy | {"correct": np.round(test * grown * 0.6).astype(int).tolist()},
        },
        "seconds": 1.25,
        "images_per_second": 400.0,
        "peak_memory_mb": 300.0,
    }


def write_run(
    path: Path,
    method: str = "at",
    *,
    names: Sequence[str] = NAMES,
    epochs: int = 12,
    seed: int = 0,
    evaluated: bool = True,
    examples: bool = True,
    channels: int = 3,
    selection: str = "last",
    deviations: Sequence[str] = (),
) -> Path:
    """Write a run folder with the files that training and evaluation write."""
    (path / "artifacts").mkdir(parents=True)
    train, test, skill = counts(len(names), 140, 10), counts(len(names), 90, 10), METHODS.get(method, 0.5)
    run = override(Run(method=method, seed=seed), {"training.selection": selection})
    stages = [{"stage": "clean", "from_epoch": 1}, {"stage": "adversarial", "from_epoch": 6}]
    record = {
        "schema": 1,
        "run": to_json(run),
        "method_title": f"{method} in words",
        "reference": "Authors, Venue, arXiv:0000.00000",
        "deviations": list(deviations),
        "versions": {"taet": "0.1.0", "torch": "2.11"},
        "commit": "0" * 40,
        "device": "cpu",
        "started": "2026-01-01T00:00:00+00:00",
        "data": {
            "name": "digits-lt",
            "class_names": list(names),
            "image_shape": [channels, 8, 8],
            "imbalance_ratio": 10.0,
            "notes": [],
            "arrays": False,
            "splits": {
                "train": {"indices": [], "sha256": "cd" * 32, "class_counts": train.tolist()},
                "test": {"indices": [], "sha256": "ab" * 32, "class_counts": test.tolist()},
            },
        },
        "stages": stages if method == "taet" else [{"stage": "train", "from_epoch": 1}],
        "selection": {"rule": selection},
        "model_given": False,
        "head": {"kind": "linear", "scale": 1.0, "gamma": 0.0},
        "threads": 1,
        "command": "taet train",
        "parameters": 1000,
    }
    (path / "run.json").write_text(json.dumps(record))
    rows = [epoch_row(epoch, method, train, test, skill) for epoch in range(1, epochs + 1)]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    drawn = save_examples(path / "artifacts" / "examples.npz", len(names), channels) if examples else None
    if evaluated:
        trained = {"config": json.loads(json.dumps(to_json(run))), "deviations": list(deviations)}
        card = build_card(method, skill, names, train, test, seed, examples_sha256=drawn, run=trained)
        model = {**card.model, "selection": selection, "leak": selection == "best-test"}
        card.changed(model=model).save(path / "evaluation.json")
    return path


def save_examples(path: Path, num_classes: int, channels: int) -> str:
    rng = np.random.default_rng(0)
    labels = np.arange(12) % num_classes
    row, column = np.mgrid[:8, :8]
    waves = 128 + 90 * np.sin((row + labels[:, None, None]) / 1.5) * np.cos(column / (1 + labels[:, None, None] / 4))
    images = np.repeat(waves[..., None], channels, axis=-1).astype(np.uint8)
    noise = EPS * np.sign(rng.standard_normal(images.shape))
    np.savez(
        path,
        images=images,
        adversarial=(images / 255 + noise).clip(0, 1).astype(np.float32),
        labels=labels,
        clean_predictions=labels,
        adversarial_predictions=np.where(labels % 3 == 0, labels, (labels + 1) % num_classes),
        attack="pgd-20",
        eps=EPS,
    )
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(autouse=True)
def drawing(request: pytest.FixtureRequest) -> None:
    """Draw no figures, except on pages of a whole module and in tests that are marked `drawn`."""
    if request.node.get_closest_marker("drawn") is None:
        request.getfixturevalue("outlined")


@pytest.fixture(scope="session")
def make_run() -> Callable[..., Path]:
    return write_run


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    return [write_run(folder / method, method) for method in METHODS]


@pytest.fixture
def make_card() -> Callable[..., ResultCard]:
    def build(method: str, seed: int = 0, **changes: Any) -> ResultCard:
        train, test = counts(10, 140, 10), counts(10, 90, 10)
        return build_card(method, METHODS.get(method, 0.5), NAMES, train, test, seed, **changes)

    return build


@pytest.fixture
def card() -> ResultCard:
    return build_card("at", 0.5, NAMES, counts(10, 140, 10), counts(10, 90, 10))
