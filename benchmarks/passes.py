"""How much of the official AutoAttack is bare passes of the network, on one process: the bound of any speed-up.

The passes of a run are recorded, with the number of images of each and whether a gradient followed. Then the same
passes are made again without an attack, on the network as it is and in our cheaper form (`taet.models.view`). An
attack with the same flags makes all of these passes, so no implementation on one process is faster than they are.
Times are CPU seconds of one thread, so that other programs hardly matter; the sides take turns.
Ours is `taet.evaluate` without its probe.

    python benchmarks/passes.py                    a small network on scikit-learn's digits, 8 x 8, trained first
    python benchmarks/passes.py --run runs/x       the model of a finished run, on images of its test set
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyautoattack
import torch
from common import arguments, ratio, record
from evaluation import Subject, subject
from torch import Tensor, nn

import taet
from taet.models.view import make_view

Pass = tuple[int, bool]
"""Images of a pass, and whether a gradient followed."""


class Recorded(nn.Module):
    """A model that writes down its passes."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.passes = model, list[Pass]()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x)
        number = len(self.passes)
        self.passes.append((len(x), False))
        if logits.requires_grad:
            logits.register_hook(lambda _: self.passes.__setitem__(number, (len(x), True)))  # type: ignore[no-untyped-call]
        return logits


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", help="folder of a finished run with 10 classes or more; not given: trains on digits")
    parser.add_argument("--images", type=int, default=20, help="test images, spread over the test set (20)")
    parser.add_argument("--batch-size", type=int, default=20, help="images of a batch (20)")
    arguments(parser, out="passes.json", rounds=3, threads=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    load, of = os.getloadavg(), subject(given.run, given.images, given.batch_size)
    of.model.requires_grad_(False)
    result = measure(of, given.rounds, given.out, load)
    for name, row in result["ratios"].items():
        print(f"{name:48} {row['ratio']:.2f} ({row['spread'][0]:.2f} to {row['spread'][1]:.2f}, n = {row['n']})")
    return int(result["differing"] > 0)


def measure(of: Subject, rounds: int, out: Path, load: tuple[float, float, float]) -> dict[str, Any]:
    """Return and write the ratios: the package, called directly, over ours and over the bare passes."""
    recorded, flags = Recorded(of.model), dict[str, Tensor]()
    official(of, recorded)
    found = make_view(of.model, tuple(of.unit_images().shape[1:]))
    assert found is not None, "a network of this package"
    view = found.module.to(memory_format=torch.channels_last)
    sides: dict[str, Callable[[], object]] = {
        "official": lambda: flags.update(official=official(of, of.model)),
        "ours": lambda: flags.update(ours=ours(of)),
        "passes": lambda: replay(of, of.model, recorded.passes),
        "passes in our form": lambda: replay(of, view, recorded.passes),
    }
    spent: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):  # the run that was recorded has warmed up
        for name in list(sides) if number % 2 == 0 else reversed(list(sides)):
            spent[name].append(cpu_seconds(sides[name]))
    return record(
        out,
        of.device,
        {
            "our AutoAttack": ratio(spent["ours"], spent["official"]),
            "its passes alone": ratio(spent["passes"], spent["official"]),
            "its passes alone, in our form": ratio(spent["passes in our form"], spent["official"]),
            "the same, against our AutoAttack": ratio(spent["passes in our form"], spent["ours"]),
        },
        load,
        subject=of.about,
        images=len(of.labels),
        pixels=of.images.shape[1],
        batch_size=of.settings.batch_size,
        threads=1,
        passes=sum(count * (1 + backward) for count, backward in recorded.passes),
        standing=int(flags["official"].sum()),
        differing=int((flags["ours"] != flags["official"]).sum()),
    )


def cpu_seconds(work: Callable[[], object]) -> float:
    """CPU seconds of this process."""
    began = time.process_time()
    work()
    return time.process_time() - began


def official(of: Subject, model: nn.Module) -> Tensor:
    """Call the package; return which images are still correct, (N,)."""
    kind: Any = pyautoattack.AutoAttack  # type: ignore[attr-defined]
    suite = kind(model, norm="Linf", eps=of.eps, seed=of.settings.seed, device=of.device)
    y = torch.from_numpy(of.labels)
    _, predictions = suite.run_standard_evaluation(of.unit_images(), y, batch_size=of.settings.batch_size)
    correct: Tensor = predictions == y
    return correct


def ours(of: Subject) -> Tensor:
    """Evaluate with our suite alone."""
    given = {"eps": of.eps, "batch_size": of.settings.batch_size, "seed": of.settings.seed, "probe": False}
    card = taet.evaluate(of.model, of.images, of.labels, attacks=["autoattack"], device="cpu", **given)
    return torch.from_numpy(card.column("autoattack").correct)


def replay(of: Subject, model: nn.Module, passes: list[Pass]) -> None:
    """Make these passes without an attack."""
    images = of.unit_images()
    for count, backward in passes:
        x = images[:count]
        if not backward:
            with torch.no_grad():
                model(x)
            continue
        x = x.clone().requires_grad_()
        torch.autograd.grad(model(x).sum(), x)


if __name__ == "__main__":
    sys.exit(main())
