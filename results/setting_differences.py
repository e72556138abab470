"""What single differences between our settings and the papers' are worth on a small network:
`python results/setting_differences.py`.

AT-BSL with ResNet-8 on long-tailed digits, ratio 10, 20 epochs, three seeds; two minutes on an idle
core. Each variant changes one thing. Writes setting-differences.json beside this file, whose table
is in docs/published-numbers.md.
"""

import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch

import taet
from taet import protocols, registry
from taet.evaluation import ResultCard
from taet.files import write_json
from taet.machine import environment
from taet.metrics.paired import difference
from taet.settings import override

HERE = Path(__file__).parent
OUT = HERE / "setting-differences.json"
SEEDS = (0, 1, 2)
ATTACKS = ("clean", "pgd-20")
EPS = 0.16
PAPER_EPS = 8 / 255
BASE = {
    "data.name": "digits-lt",
    "data.imbalance_ratio": 10.0,
    "data.test": "balanced",
    "model.name": "resnet8",
    "threat.eps": EPS,
    "threat.step_size": EPS / 4,
    "evaluation.step_size": EPS / 8,
    "training.epochs": 20,
    "training.batch_size": 64,
    "training.precision": "float32",
    "training.monitor_every": 0,
    "training.threads": 1,
}


class Variant(NamedTuple):
    """A method and the settings that it changes."""

    method: str
    changes: dict[str, Any]


VARIANTS = {
    "no input normalisation": Variant("at-bsl", {"model.normalize": "none"}),
    "a clean pass in train mode in each step": Variant("at-bsl-clean-pass", {}),
    "eps 0.031 and steps of 0.003 in place of 8/255 and 2/255 (both scaled by eps)": Variant(
        "at-bsl",
        {"threat.eps": 0.031 / PAPER_EPS * EPS, "threat.step_size": 0.003 / PAPER_EPS * EPS},
    ),
    "90 % of the training images": Variant("at-bsl", {"data.validation": 0.1}),
}


def cards(method: str, changes: dict[str, Any], folder: Path) -> list[ResultCard]:
    """Return the card of a training for each seed."""
    found = []
    for seed in SEEDS:
        run = override(protocols.taet(method), {**BASE, **changes, "seed": seed})
        out = folder / f"seed{seed}"
        taet.train(run, out=out)
        found.append(taet.evaluate(out, attacks=list(ATTACKS)))
        print(method, changes, f"seed {seed}", flush=True)
    return found


def accuracies(of: list[ResultCard]) -> dict[str, list[float]]:
    """Return the balanced accuracy in per cent of each seed, by attack."""
    return {
        attack: [round(100 * card.summary(attack).balanced, 2) for card in of] for attack in ATTACKS
    }


def minus(first: list[ResultCard], second: list[ResultCard], attack: str) -> list[float]:
    """Return the paired difference in points, and the ends of its interval."""
    found = difference(
        [card.column(attack).correct for card in first],
        [card.column(attack).correct for card in second],
        first[0].labels,
        first[0].num_classes,
    )
    return [round(100 * value, 2) for value in (found.value, found.low, found.high)]


def main() -> None:
    """Train and attack the base and every variant, and write the differences after each."""
    torch.set_num_threads(1)
    registry.add("methods", HERE / "clean_pass.py")
    measured: dict[str, Any] = {
        "command": "python results/setting_differences.py",
        "environment": environment(torch.device("cpu")),
        "settings": BASE,
        "seeds": SEEDS,
    }
    with tempfile.TemporaryDirectory() as folder:
        base = cards("at-bsl", {}, Path(folder) / "base")
        measured |= {"base": accuracies(base), "variants": {}}
        for number, (name, variant) in enumerate(VARIANTS.items()):
            changed = cards(variant.method, variant.changes, Path(folder) / f"variant{number}")
            measured["variants"][name] = {
                "changes": variant.changes,
                "accuracy": accuracies(changed),
                "minus_base": {attack: minus(changed, base, attack) for attack in ATTACKS},
            }
            write_json(OUT, measured)


if __name__ == "__main__":
    main()
