"""Seconds of an evaluation, compared with a plain script, and whether both give the same flags,
image by image.

The script: for each column a loop over a DataLoader of float images with the model in eval mode,
and textbook attacks; AutoAttack by calling pyautoattack. `competent` needs no gradient of the
parameters, `plain` has them computed at each `loss.backward()`, as in much research code. All sides
have the same model, images and batches, and alternate every round. Each has its own process, since
settings of the memory allocator hold for a process; only one works at a time. The random starts of
PGD are drawn once, as in our evaluation, and given to the script, so all flags must agree:
otherwise the command ends with status 1.

    python performance/evaluation.py                      a small network, first trained on
    scikit-learn's digits python performance/evaluation.py --run runs/x         the model of a
    finished run, on images of its test set python performance/evaluation.py --sides competent
    torchattacks adv-lib --out peers.json

Other sides: `torchattacks` 3 (Kim, arXiv:2010.01950) and `adv-lib` 0.2 (Rony, Ben Ayed), which must
be installed: the columns that they have, with frozen parameters. They draw random starts of their
own, so a few flags may differ. The AutoAttack of torchattacks is left out: its two APGD make 10
steps, not 100 (`steps` of `torchattacks.APGD`).
"""

import argparse
import operator
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyautoattack
import torch
from common import alternate, answer, arguments, asked, processes, ratio, record
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import taet
from taet import protocols
from taet.attacks.cw_l2 import BOX
from taet.attacks.noise import Draws
from taet.attacks.objectives import margin
from taet.data.augmentation import to_unit
from taet.evaluation import parse_attack
from taet.machine import resolve_device
from taet.run.loading import load_run
from taet.settings import Evaluation, override

BUNDLE = "taet"
OURS, SCRIPTS, LIBRARIES = "ours", ("competent", "plain"), ("torchattacks", "adv-lib")
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
    settings: Evaluation
    eps: float
    device: torch.device

    def unit_images(self) -> Tensor:
        """(N, C, H, W), float32 in [0, 1]."""
        return to_unit(torch.from_numpy(self.images)).contiguous()


class Outcome(NamedTuple):
    """The flags of one way of evaluating, and its seconds."""

    correct: dict[str, list[bool]]
    """By column that this way has, of each image."""
    seconds: dict[str, float]
    """By column."""
    total: float
    """Seconds from call to return."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--run",
        help="folder of a finished run with 10 classes or more; not given: trains on the digits",
    )
    parser.add_argument(
        "--images", type=int, default=200, help="test images, spread over the test set (200)"
    )
    parser.add_argument(
        "--batch-size", type=int, default=50, help="images of a batch, for every way (50)"
    )
    arguments(parser, "evaluation.json")
    others = (*SCRIPTS, *LIBRARIES)
    parser.add_argument(
        "--sides", nargs="+", choices=others, default=SCRIPTS, help="what to compare ours with"
    )
    parser.add_argument("--side", choices=(OURS, *others), help=argparse.SUPPRESS)
    parser.add_argument("--subject", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side is not None:
        measure(given.side, torch.load(given.subject, weights_only=False), given.threads)
        return 0
    load = os.getloadavg()
    with tempfile.TemporaryDirectory() as folder:
        of, path = subject(given.run, given.images, given.batch_size), Path(folder) / "subject.pt"
        torch.save(of, path)
        with processes([OURS, *given.sides], "--subject", str(path)) as ways:
            done = alternate(ways, given.rounds)
    rounds = {way: [Outcome(**one) for one in found] for way, found in done.items()}
    ratios = {
        f"{name}, {other}": row
        for other in given.sides
        for name, row in compared(rounds, other).items()
    }
    result = record(
        given.out,
        of.device,
        ratios,
        load,
        subject=of.about,
        images=len(of.labels),
        batch_size=of.settings.batch_size,
        eps=of.eps,
        threads=given.threads,
    )
    show(result)
    return int(any(row["differing"] for name, row in ratios.items() if name.endswith(SCRIPTS)))


def measure(way: str, of: Subject, threads: int) -> None:
    """Evaluate one way, on request."""
    torch.set_num_threads(threads)
    noises = starts(of)
    while True:
        asked()
        if way == OURS:
            done = evaluate(of)
        else:
            of.model.requires_grad_(way == "plain")
            done = library(of, way) if way in LIBRARIES else script(of, noises)
        answer(done._asdict())


def subject(folder: str | None, count: int, batch_size: int) -> Subject:
    """Return the model of a run folder, or one trained now, and `count` images spread over its test
    set."""
    if folder is None:
        with tempfile.TemporaryDirectory() as out:
            trained = taet.train(override(protocols.taet("at"), DIGITS), out=out)
        run, model, dataset = trained.run, trained.model, trained.dataset
    else:
        run, model, dataset, _ = load_run(folder)
    device = resolve_device("auto")
    rows = np.unique(np.linspace(0, len(dataset.test) - 1, count).astype(int))
    return Subject(
        about=f"{run.model.name} after {run.training.epochs} epochs of {run.method} on "
        f"{run.data.name}",
        model=model.to(device).eval(),
        images=dataset.test.images[rows],
        labels=dataset.test.labels[rows],
        settings=run.evaluation.replace(batch_size=batch_size),
        eps=run.attack_eps,
        device=device,
    )


def starts(of: Subject) -> dict[str, Tensor]:
    """Return the random start that our evaluation draws for each PGD, (N, C, H, W)."""
    x, rows = of.unit_images(), np.arange(len(of.labels))
    names = [name for name in protocols.COLUMNS[BUNDLE] if name.startswith("pgd")]
    return {name: Draws(of.settings.seed, name, rows).start(x, of.eps) for name in names}


def evaluate(of: Subject) -> Outcome:
    """Run our evaluation; the total includes its checks, its probe and the result card."""
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
    return Outcome(
        {column.name: column.correct.tolist() for column in card.columns},
        {column.name: column.seconds for column in card.columns},
        total,
    )


# --- the other ways


def script(of: Subject, noises: Mapping[str, Tensor]) -> Outcome:
    """Run the same columns one after another; `noises` are the random starts."""
    x, y = of.unit_images(), torch.from_numpy(of.labels)
    correct, seconds = {}, {}
    for name in protocols.COLUMNS[BUNDLE]:
        began = time.perf_counter()
        if name == "autoattack":
            kind: Any = pyautoattack.AutoAttack  # type: ignore[attr-defined]
            suite = kind(of.model, norm="Linf", eps=of.eps, seed=of.settings.seed, device=of.device)
            _, predictions = suite.run_standard_evaluation(x, y, batch_size=of.settings.batch_size)
            correct[name] = (predictions == y).tolist()
        else:
            loader = DataLoader(TensorDataset(x, y, noises.get(name, x)), of.settings.batch_size)
            flags = [
                survivors(of, name, *(part.to(of.device) for part in batch)) for batch in loader
            ]
            correct[name] = torch.cat(flags).tolist()
        seconds[name] = time.perf_counter() - began
    return Outcome(correct, seconds, sum(seconds.values()))


def library(of: Subject, name: str) -> Outcome:
    """Run the columns that a library has with the settings of ours."""
    model, step = of.model, of.settings.step_size
    if name == "torchattacks":
        import torchattacks  # type: ignore[import-not-found]

        attacks: dict[str, Any] = {
            "fgsm": torchattacks.FGSM(model, of.eps),
            "pgd-20": torchattacks.PGD(model, of.eps, step, 20),
            "pgd-100": torchattacks.PGD(model, of.eps, step, 100),
        }
    else:
        from adv_lib.attacks import pgd_linf  # type: ignore[import-not-found]

        common = {"model": model, "ε": of.eps, "absolute_step_size": step, "random_init": True}
        attacks = {f"pgd-{steps}": partial(pgd_linf, steps=steps, **common) for steps in (20, 100)}
    x, y = of.unit_images(), torch.from_numpy(of.labels)
    correct, seconds = {}, {}
    for column, attack in attacks.items():
        began, flags = time.perf_counter(), []
        for batch in DataLoader(TensorDataset(x, y), of.settings.batch_size):
            images, labels = (part.to(of.device) for part in batch)
            x_adv = attack(inputs=images, labels=labels)
            with torch.no_grad():
                flags.append(model(x_adv).argmax(1) == labels)
        correct[column], seconds[column] = torch.cat(flags).tolist(), time.perf_counter() - began
    return Outcome(correct, seconds, sum(seconds.values()))


def survivors(of: Subject, name: str, x: Tensor, y: Tensor, noise: Tensor) -> Tensor:
    """Return which images of a batch are classified correctly in a column, (N,); `noise`: its
    random start."""
    given = parse_attack(name, protocols.taet().evaluation.replace(eps=of.eps)).parameters
    if name == "cw-l2":
        x = cw(of.model, x, y, given["c"], given["steps"], given["lr"])
    elif name == "fgsm":
        x = pgd(of.model, x, y, of.eps, of.eps, 1, torch.zeros_like(x))
    elif name.startswith("pgd"):
        x = pgd(of.model, x, y, of.eps, of.settings.step_size, given["steps"], noise)
    with torch.no_grad():
        correct: Tensor = of.model(x).argmax(1) == y
    return correct


def pgd(
    model: nn.Module, x: Tensor, y: Tensor, eps: float, step: float, steps: int, noise: Tensor
) -> Tensor:
    """Signed gradient steps from x + noise."""
    x_adv = (x + noise).clamp(0, 1)
    for _ in range(steps):
        x_adv = x_adv.detach().requires_grad_()
        model.zero_grad()
        cross_entropy(model(x_adv), y).backward()  # type: ignore[no-untyped-call]
        assert x_adv.grad is not None
        x_adv = x_adv + step * x_adv.grad.sign()
        x_adv = torch.max(torch.min(x_adv, x + eps), x - eps).clamp(0, 1)
    return x_adv.detach()


def cw(model: nn.Module, x: Tensor, y: Tensor, c: float, steps: int, lr: float) -> Tensor:
    """Adam on ||x' - x||^2 + c max(-margin, 0) in tanh space; return the nearest misclassified
    iterate."""
    w = torch.atanh(BOX * (2 * x - 1)).requires_grad_()
    optimizer = torch.optim.Adam([w], lr=lr)
    best, nearest = x.clone(), torch.full((len(x),), torch.inf, device=x.device)
    for _ in range(steps):
        x_adv = (torch.tanh(w) + 1) / 2
        logits = model(x_adv)
        squared = (x_adv - x).square().flatten(1).sum(1)
        optimizer.zero_grad()
        model.zero_grad()
        (squared + c * (-margin(logits, y)).clamp(min=0)).sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        better = (logits.argmax(1) != y) & (squared < nearest)
        best[better], nearest[better] = x_adv.detach()[better], squared.detach()[better]
    return best


# --- the comparison


def compared(rounds: Mapping[str, Sequence[Outcome]], other: str) -> dict[str, Any]:
    """Return by column the ratio, the number of correct images, and the most flags that differ in a
    round.

    `whole` is the ratio of all columns, from call to return.
    """
    ours, theirs = rounds[OURS], rounds[other]
    by_column: dict[str, Any] = {}
    for name in theirs[0].correct:
        differing = [
            sum(map(operator.ne, mine.correct[name], yours.correct[name]))
            for mine, yours in zip(ours, theirs, strict=True)
        ]
        our_seconds = [outcome.seconds[name] for outcome in ours]
        their_seconds = [outcome.seconds[name] for outcome in theirs]
        by_column[name] = ratio(our_seconds, their_seconds) | {
            "correct": sum(ours[0].correct[name]),
            "differing": max(differing),
        }
    if other in SCRIPTS:
        differing_in_all = sum(row["differing"] for row in by_column.values())
        seconds = ratio([outcome.total for outcome in ours], [outcome.total for outcome in theirs])
        by_column["whole"] = seconds | {"differing": differing_in_all}
    return by_column


def show(result: Mapping[str, Any]) -> None:
    """Print the result as a table."""
    machine, rows = result["environment"], result["ratios"]
    print(
        f"{result['subject']}; {result['images']} images, eps {result['eps']:g}; medians over "
        "rounds"
    )
    print(f"{machine['device']}, {result['threads']} threads, torch {machine['versions']['torch']}")
    print(
        f"{'':28}{'ours s':>9}{'other s':>9}{'ratio':>7}  {'least-largest':14}{'differing flags'}"
    )
    for name, row in rows.items():
        spread = "-".join(f"{ratio:.2f}" for ratio in row["spread"])
        print(
            f"{name:28}{row['ours']:9.2f}{row['other']:9.2f}{row['ratio']:7.2f}  "
            f"{spread:14}{row['differing']}"
        )


if __name__ == "__main__":
    sys.exit(main())
