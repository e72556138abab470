"""Seconds of an evaluation beside the straightforward way, and whether both give the same flags, image by image.

The straightforward way: per column a loop over a DataLoader of float images through the plain model in eval mode, with
textbook attacks whose `loss.backward()` computes the gradients of the parameters as well; AutoAttack by calling
pyautoattack. Both ways have the same model, images, batches and process, and change places every round. The random
starts of PGD are drawn once, as our evaluation draws them, and given to the other way, so every flag has to agree:
the command ends with status 1 if one does not.

    python benchmarks/evaluation.py                      a small network, first trained on scikit-learn's digits
    python benchmarks/evaluation.py --run runs/x         the model of a finished run, on images of its test set
"""

from __future__ import annotations

import argparse
import os
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyautoattack
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import taet
from taet import config, protocols
from taet.attacks.cw import BOX
from taet.attacks.objectives import margin
from taet.data.augmentation import to_unit
from taet.evaluation import parse_attack
from taet.evaluation.perturb import Draws
from taet.files import write_json
from taet.training.checkpoint import load_run
from taet.training.environment import environment, resolve_device

BUNDLE = "taet"
RESULT = Path(__file__).parent / "results" / "evaluation.json"
DIGITS = {  # as in the comparisons on the digits in results/, but a third of the epochs
    "model.name": "resnet8",
    "data.test": "balanced",
    "threat.eps": 0.16,
    "threat.step_size": 0.04,
    "evaluation.step_size": 0.02,
    "evaluation.batch_size": 200,
    "training.precision": "float32",
    "training.epochs": 20,
    "training.batch_size": 64,
    "training.monitor_every": 20,
}


class Subject(NamedTuple):
    """What is evaluated, and how."""

    about: str
    model: nn.Module
    images: NDArray[np.uint8]
    """(N, H, W, C)."""
    labels: NDArray[np.int64]
    settings: config.Evaluation
    eps: float
    device: torch.device

    def unit_images(self) -> Tensor:
        """(N, C, H, W), float32 in [0, 1]."""
        return to_unit(torch.from_numpy(self.images)).contiguous()


class Outcome(NamedTuple):
    """What one way of evaluating said, and how long it took."""

    correct: dict[str, NDArray[np.bool_]]
    """By column, (N,)."""
    seconds: dict[str, float]
    """By column."""
    total: float
    """Seconds from call to return."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--run", help="folder of a finished run with 10 classes or more; not given: trains on the digits"
    )
    parser.add_argument("--images", type=int, default=200, help="test images, spread over the test set (200)")
    parser.add_argument(
        "--rounds", type=int, default=5, help="times that both ways are measured; the first also pays for imports (5)"
    )
    parser.add_argument("--threads", type=int, default=1, help="of torch on the CPU (1)")
    parser.add_argument("--out", type=Path, default=RESULT, help="file of the result (results/evaluation.json)")
    given = parser.parse_args()
    of = subject(given.run, given.images)
    torch.set_num_threads(given.threads)  # training sets its own
    noises = starts(of)
    ways: list[Callable[[], Outcome]] = [lambda: evaluate(of), lambda: straightforward(of, noises)]
    rounds = []
    for number in range(given.rounds):
        order = (0, 1) if number % 2 == 0 else (1, 0)
        done = {place: ways[place]() for place in order}
        rounds.append((done[0], done[1]))
        print(f"round {number + 1} of {given.rounds}: {done[0].total:.1f} s, straightforward {done[1].total:.1f} s")
    result = summary(rounds) | {
        "subject": of.about,
        "images": len(of.labels),
        "batch_size": of.settings.batch_size,
        "eps": of.eps,
        "threads": given.threads,
        "load": os.getloadavg(),
        "command": shlex.join(["python", *sys.argv]),
        "environment": environment(of.device),
    }
    show(result)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(given.out, result)
    return int(any(column["differing"] for column in result["columns"].values()))


def subject(folder: str | None, count: int) -> Subject:
    """The model of a run folder, or one trained now, and `count` images from all over its test set."""
    if folder is None:
        with tempfile.TemporaryDirectory() as out:
            trained = taet.train(config.override(protocols.taet("at"), DIGITS), out=out)
        run, model, dataset = trained.run, trained.model, trained.dataset
    else:
        run, model, dataset, _ = load_run(folder)
    device = resolve_device("auto")
    rows = np.unique(np.linspace(0, len(dataset.test) - 1, count).astype(int))
    return Subject(
        about=f"{run.model.name} after {run.training.epochs} epochs of {run.method} on {run.data.name}",
        model=model.to(device).eval(),
        images=dataset.test.images[rows],
        labels=dataset.test.labels[rows],
        settings=run.evaluation,
        eps=run.threat.eps if run.evaluation.eps is None else run.evaluation.eps,
        device=device,
    )


def starts(of: Subject) -> dict[str, Tensor]:
    """The random start that our evaluation draws for each PGD, (N, C, H, W)."""
    x, rows = of.unit_images(), np.arange(len(of.labels))
    names = [name for name in protocols.COLUMNS[BUNDLE] if name.startswith("pgd")]
    return {name: Draws(of.settings.seed, name, rows).start(x, of.eps) for name in names}


def evaluate(of: Subject) -> Outcome:
    """Ours; the total holds its checks, its probe and the making of the card as well."""
    began = time.perf_counter()
    card = taet.evaluate(
        of.model,
        of.images,
        of.labels,
        attacks=BUNDLE,
        eps=of.eps,
        step_size=of.settings.step_size,
        batch_size=of.settings.batch_size,
        seed=of.settings.seed,
    )
    total = time.perf_counter() - began
    columns = {column.name: column for column in card.columns}
    return Outcome(
        {name: column.correct for name, column in columns.items()},
        {name: column.seconds for name, column in columns.items()},
        total,
    )


# --- the straightforward way ------------------------------------------------------------------------------------------


def straightforward(of: Subject, noises: Mapping[str, Tensor]) -> Outcome:
    """The same columns, one after another; `noises` are the random starts."""
    x, y = of.unit_images(), torch.from_numpy(of.labels)
    correct, seconds = {}, {}
    for name in protocols.COLUMNS[BUNDLE]:
        began = time.perf_counter()
        if name == "autoattack":
            suite = pyautoattack.AutoAttack(of.model, norm="Linf", eps=of.eps, seed=of.settings.seed, device=of.device)
            _, predictions = suite.run_standard_evaluation(x, y, batch_size=of.settings.batch_size)
            correct[name] = (predictions == y).numpy()
        else:
            loader = DataLoader(TensorDataset(x, y, noises.get(name, x)), of.settings.batch_size)
            flags = [survivors(of, name, *(part.to(of.device) for part in batch)) for batch in loader]
            correct[name] = torch.cat(flags).cpu().numpy()
        seconds[name] = time.perf_counter() - began
    return Outcome(correct, seconds, sum(seconds.values()))


def survivors(of: Subject, name: str, x: Tensor, y: Tensor, noise: Tensor) -> Tensor:
    """(N,): which images of a batch are still right in a column; `noise` is the random start, if it has one."""
    given = parse_attack(name, protocols.taet().evaluation, of.eps).parameters
    if name == "cw-l2":
        x = cw(of.model, x, y, given["c"], given["steps"], given["lr"])
    elif name == "fgsm":
        x = pgd(of.model, x, y, of.eps, of.eps, 1, torch.zeros_like(x))
    elif name.startswith("pgd"):
        x = pgd(of.model, x, y, of.eps, of.settings.step_size, given["steps"], noise)
    with torch.no_grad():
        return of.model(x).argmax(1) == y


def pgd(model: nn.Module, x: Tensor, y: Tensor, eps: float, step: float, steps: int, noise: Tensor) -> Tensor:
    """Signed gradient steps from x + noise."""
    x_adv = (x + noise).clamp(0, 1)
    for _ in range(steps):
        x_adv = x_adv.detach().requires_grad_()
        model.zero_grad()
        cross_entropy(model(x_adv), y).backward()
        assert x_adv.grad is not None
        x_adv = x_adv + step * x_adv.grad.sign()
        x_adv = torch.max(torch.min(x_adv, x + eps), x - eps).clamp(0, 1)
    return x_adv.detach()


def cw(model: nn.Module, x: Tensor, y: Tensor, c: float, steps: int, lr: float) -> Tensor:
    """Adam on ||x' - x||^2 + c max(-margin, 0) in tanh space; of all iterates the nearest that is misclassified."""
    w = torch.atanh(BOX * (2 * x - 1)).requires_grad_()
    optimizer = torch.optim.Adam([w], lr=lr)
    best, nearest = x.clone(), torch.full((len(x),), torch.inf, device=x.device)
    for _ in range(steps):
        x_adv = (torch.tanh(w) + 1) / 2
        logits = model(x_adv)
        squared = (x_adv - x).square().flatten(1).sum(1)
        optimizer.zero_grad()
        model.zero_grad()
        (squared + c * (-margin(logits, y)).clamp(min=0)).sum().backward()
        optimizer.step()
        better = (logits.argmax(1) != y) & (squared < nearest)
        best[better], nearest[better] = x_adv.detach()[better], squared.detach()[better]
    return best


# --- the comparison ---------------------------------------------------------------------------------------------------


def summary(rounds: list[tuple[Outcome, Outcome]]) -> dict[str, Any]:
    """Of all rounds: median seconds of both ways, straightforward over ours, and per column the flags that differ."""
    columns = {}
    for name in protocols.COLUMNS[BUNDLE]:
        differing = max(int((ours.correct[name] != other.correct[name]).sum()) for ours, other in rounds)
        pairs = [(ours.seconds[name], other.seconds[name]) for ours, other in rounds]
        columns[name] = compare(pairs) | {"correct": int(rounds[0][0].correct[name].sum()), "differing": differing}
    totals = [(ours.total, other.total) for ours, other in rounds]
    return {"rounds": len(rounds), "whole": compare(totals), "columns": columns}


def compare(pairs: list[tuple[float, float]]) -> dict[str, Any]:
    """Median seconds of (ours, straightforward), and of their ratio by pair the median, the least and the largest."""
    ratios = [other / ours for ours, other in pairs]
    ours, other = (statistics.median(side) for side in zip(*pairs, strict=True))
    return {
        "ours": round(ours, 3),
        "straightforward": round(other, 3),
        "ratio": round(statistics.median(ratios), 3),
        "spread": [round(min(ratios), 3), round(max(ratios), 3)],
    }


def show(result: Mapping[str, Any]) -> None:
    """Print the result as a table."""
    machine = result["environment"]
    print(f"{result['subject']}; {result['images']} images, eps {result['eps']:g}; {result['rounds']} rounds, medians")
    print(f"{machine['device']}, {result['threads']} threads, torch {machine['versions']['torch']}")
    print(f"{'column':12}{'ours s':>9}{'other s':>9}{'ratio':>7}  {'least-largest':14}{'differing flags'}")
    for name, row in [*result["columns"].items(), ("whole", result["whole"])]:
        spread = "-".join(f"{ratio:.2f}" for ratio in row["spread"])
        flags = row.get("differing", "")
        print(f"{name:12}{row['ours']:9.2f}{row['straightforward']:9.2f}{row['ratio']:7.2f}  {spread:14}{flags}")


if __name__ == "__main__":
    sys.exit(main())
