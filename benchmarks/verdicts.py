"""Train small models of many methods, and attack each with the official suite, the cheap tier, and in bfloat16.

The networks of 64-96-10 units (`perceptron-*`) are attacked on 1,000 digits that they were not trained on: the test
set, and what the cut to a long tail removed from the training set. Finished runs at published length, whose cards hold
the official suite on 1,000 images, get the cheap tier beside it.

    TAET_DATA=... nice python benchmarks/verdicts.py --runs runs/verdicts
    nice python benchmarks/verdicts.py --runs runs/verdicts --models --finished runs/reproduce/runs/taet_...

A model that is trained, and a column that is measured, is not done again; cards that are missing are left out. Seconds
are CPU seconds of one thread, so that other programs hardly matter. The result is results/verdicts.json, from which
`python docs/render.py --write` makes the tables of docs/evaluation.md.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from common import command
from torch import nn

import taet
from taet import protocols
from taet.data import load
from taet.evaluation import ResultCard
from taet.evaluation.column import Column
from taet.evaluation.diagnostics import masking
from taet.files import write_json
from taet.models import trusted
from taet.settings import Data, override
from taet.training.folder import RunFolder


class Subject(NamedTuple):
    """A model of the comparison: its method, its settings, and the balls it is attacked in."""

    method: str
    changes: Mapping[str, Any]
    norms: tuple[str, ...] = ("linf",)


def perceptron(num_classes: int) -> nn.Module:
    """A network of one hidden layer for 8 x 8 pixels, `verdicts:perceptron`."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, num_classes))


DIGITS = {  # as in results/digits-lt-methods, but half of the epochs, and all test images
    "model.name": "resnet8",
    "data.test": "balanced",
    "threat.eps": 0.16,
    "threat.step_size": 0.04,
    "evaluation.step_size": 0.02,
    "evaluation.batch_size": 200,
    "training.precision": "float32",
    "training.epochs": 30,
    "training.batch_size": 64,
    "training.monitor_every": 0,
}
CIFAR = {  # as in results/cifar10-lt-methods, but half of the training images, and more test images
    "model.name": "resnet8",
    "data.name": "cifar10-lt",
    "data.max_count": 500,
    "data.test": "balanced",
    "evaluation.batch_size": 150,
    "training.epochs": 8,
    "training.monitor_every": 0,
}
PERCEPTRON = {
    **DIGITS,
    "model.name": "verdicts:perceptron",
    "threat.eps": 0.1,
    "threat.step_size": 0.025,
    "evaluation.step_size": 0.0125,
    "evaluation.batch_size": 1000,
}
UNSEEN = 1000  # digits that the perceptrons are attacked on, as even over the classes as they are there
PER_CLASS = 30  # test images of each class that are attacked
BOTH = ("linf", "l2")
RESULT = Path(__file__).parents[1] / "results" / "verdicts.json"
SINGLE_STEP = {"threat.steps": 1, "threat.step_size": 0.2, "threat.start": "uniform"}
SUBJECTS = {
    "digits-at": Subject("at", DIGITS, BOTH),
    "digits-at-bsl": Subject("at-bsl", DIGITS, BOTH),
    "digits-taet": Subject("taet", DIGITS),
    "digits-reat": Subject("reat", DIGITS),
    "digits-trades": Subject("trades", DIGITS, BOTH),
    "digits-mart": Subject("mart", DIGITS),
    "digits-robal": Subject("robal", DIGITS, BOTH),
    "digits-he": Subject("he", DIGITS),
    "digits-standard": Subject("standard", DIGITS),
    "digits-awp": Subject("at-bsl", {**DIGITS, "training.awp": 0.01}),
    "digits-one-step": Subject("at", {**DIGITS, **SINGLE_STEP}),
    "cifar-at": Subject("at", CIFAR, BOTH),
    "cifar-at-bsl": Subject("at-bsl", CIFAR),
    "cifar-robal": Subject("robal", CIFAR),
    **{
        f"perceptron-{method}": Subject(method, PERCEPTRON, BOTH)
        for method in ("at", "at-bsl", "trades", "mart", "robal", "taet")
    },
}
OFFICIAL = {"linf": "autoattack", "l2": "autoattack-l2:eps=0.5"}
CHEAP = {"linf": "quick", "l2": "quick-l2:eps=0.5"}
SEARCH = {"linf": ("pgd-20", "pgd-20:precision=bf16", "quick:precision=bf16", "autoattack:precision=bf16"), "l2": ()}
SPENT = "cpu-seconds.json"
PUBLISHED = "published-"  # cards of finished runs, beside those of SUBJECTS


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/verdicts"), help="folder of the models and cards")
    parser.add_argument("--models", nargs="*", choices=SUBJECTS, default=list(SUBJECTS), help="all")
    parser.add_argument("--finished", nargs="*", type=Path, default=[], help="folders of finished runs; none")
    parser.add_argument("--norms", nargs="*", choices=BOTH, default=list(BOTH), help="both")
    parser.add_argument("--attacks", nargs="*", help="of those that are compared; all")
    parser.add_argument("--out", type=Path, default=RESULT, help="file of the result (results/verdicts.json)")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with trusted(PERCEPTRON["model.name"]):
        for name in given.models:
            train(given.runs / name, SUBJECTS[name])
        for norm in given.norms:
            attacks = [OFFICIAL[norm], CHEAP[norm], *SEARCH[norm]]
            for name in given.models:
                if norm in SUBJECTS[name].norms:
                    attacked(given.runs, name, [one for one in attacks if one in (given.attacks or attacks)])
        for run in given.finished:
            published(given.runs, run)
    write(given.out, given.runs)
    return 0


def train(out: Path, subject: Subject) -> None:
    """Train a model unless its folder is there."""
    if not RunFolder(out).is_done:
        run = override(protocols.taet(subject.method), subject.changes)
        taet.train(run, out=out)
        print("trained", out.name, flush=True)


def attacked(runs: Path, name: str, attacks: list[str]) -> None:
    """Put a model's columns on its card, on images that it has not seen; those that it has are not measured again."""
    data = RunFolder(runs / name).record.run.data
    images, labels, class_names = unseen(data) if name.startswith("perceptron") else tested(data)
    out = runs / "cards" / name
    for attack in ["clean", *attacks]:
        given = {"class_names": class_names, "attacks": [attack], "out": out, "device": "cpu"}
        timed(out, attack, lambda given=given: taet.evaluate(runs / name, images, labels, **given))


def published(runs: Path, run: Path) -> None:
    """Put the cheap tier beside the official suite on a copy of a finished run."""
    record = RunFolder(run).record.run
    about = (record.method, f"ir{record.data.imbalance_ratio:g}", f"{record.training.epochs}-epochs")
    out = runs / "cards" / f"{PUBLISHED}{'-'.join(about)}"
    if not out.exists():
        shutil.copytree(run, out)
    timed(out, CHEAP["linf"], lambda: taet.evaluate(out, attacks=[OFFICIAL["linf"], CHEAP["linf"]], device="cpu"))


def timed(out: Path, attack: str, evaluate: Callable[[], ResultCard]) -> None:
    """Evaluate unless it is done, and keep its CPU seconds beside the card."""
    if (out / "evaluation.json").exists() and attack in {column.name for column in ResultCard.load(out).columns}:
        return
    began = time.process_time()
    column = evaluate().column(attack)
    write_json(out / SPENT, {**spent(out), attack: round(time.process_time() - began, 1)})
    print(out.name, attack, f"{int(column.correct.sum())} of {len(column.correct)}", flush=True)


def spent(folder: Path) -> dict[str, float]:
    """Return the CPU seconds of the columns that were measured here."""
    path = folder / SPENT
    found: dict[str, float] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


def tested(data: Data) -> tuple[Any, Any, tuple[str, ...]]:
    """Return PER_CLASS test images of each class."""
    dataset = load(data.replace(test_max_count=PER_CLASS))
    return dataset.test.images, dataset.test.labels, dataset.class_names


def unseen(data: Data) -> tuple[Any, Any, tuple[str, ...]]:
    """Return UNSEEN images: the whole test set, and training images that the cut to a long tail removed."""
    cut, whole = load(data), load(data.replace(imbalance_ratio=1.0))
    removed = np.setdiff1d(whole.train.indices, cut.train.indices)
    generator = np.random.default_rng(0)
    drawn = generator.choice(len(removed), UNSEEN - len(whole.test), replace=False)
    rows = np.flatnonzero(np.isin(whole.train.indices, removed[drawn]))
    images = np.concatenate([whole.test.images, whole.train.images[rows]])
    return images, np.concatenate([whole.test.labels, whole.train.labels[rows]]), whole.class_names


def write(out: Path, runs: Path) -> None:
    """Write what the cards say, one row per model and ball, and one per model and attack searched in bfloat16."""
    names = [*SUBJECTS, *sorted(path.name for path in (runs / "cards").glob(f"{PUBLISHED}*"))]
    folders = {name: runs / "cards" / name for name in names if (runs / "cards" / name / "evaluation.json").exists()}
    cards = {name: ResultCard.load(folder) for name, folder in folders.items()}
    tiers = [
        tier(name, card, norm)
        for norm in BOTH
        for name, card in cards.items()
        if {CHEAP[norm], OFFICIAL[norm]} <= {column.name for column in card.columns}
    ]
    searched = [
        search(name, card, column, spent(folders[name]))
        for name, card in cards.items()
        for column in card.columns
        if column.attack.precision != "float32"
    ]
    machine = next(iter(cards.values())).environment
    write_json(out, {"command": command(), "environment": machine, "quick": tiers, "search": searched})


def tier(name: str, card: ResultCard, norm: str) -> dict[str, Any]:
    """Return how far the cheap tier is from the official suite, in points, image by image and in passes."""
    official, cheap = card.column(OFFICIAL[norm]), card.column(CHEAP[norm])
    whole, bound = card.summary_of(official), card.summary_of(cheap)
    passes = [column.forwards + column.backwards for column in (official, cheap)]
    return {
        "model": name,
        "attack": cheap.name,
        "eps": cheap.eps,
        "images": len(card.labels),
        "clean": round(100 * card.summary("clean").balanced, 2),
        "autoattack": round(100 * whole.balanced, 2),
        "quick": round(100 * bound.balanced, 2),
        "only_autoattack_breaks": int((cheap.correct & ~official.correct).sum()),
        "only_quick_breaks": int((official.correct & ~cheap.correct).sum()),
        "worst_class_gap": round(100 * (bound.worst_class[1] - whole.worst_class[1]), 2),
        "passes": passes,
        "fewer_passes": round(passes[0] / passes[1], 1),
        "masking": masking(card),
    }


def search(name: str, card: ResultCard, column: Column, seconds: Mapping[str, float]) -> dict[str, Any]:
    """Return how the search in another precision differs from that of the same attack in float32."""
    exact = card.column(column.name.partition(":")[0])
    return {
        "model": name,
        "attack": column.name,
        "images": len(card.labels),
        "correct": [int(exact.correct.sum()), int(column.correct.sum())],
        "differing": int((exact.correct != column.correct).sum()),
        "cpu_seconds": [seconds.get(exact.name), seconds.get(column.name)],
    }


if __name__ == "__main__":
    sys.exit(main())
