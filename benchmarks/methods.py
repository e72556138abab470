"""Seconds of a training step of every method, compared with its arithmetic, both relative to PGD adversarial training.

The arithmetic is the floating-point operations of all forward and backward passes in a step, also of the method's own
networks. At a ratio of 1 the step is slower than that of adversarial training by exactly its additional arithmetic;
below 1 / 1.1, more than 10 % of the time is lost on something else, and the command ends with status 1. The number of
passes is given as well; it does not distinguish passes of the attack from those of the weights, whose backward pass has
twice the arithmetic, and leaves out the method's own networks.

    python benchmarks/methods.py                                ResNet-8 in float32, a few minutes
    python benchmarks/methods.py --methods las-at adt           some of them
    python benchmarks/methods.py --device cuda --precision bf16 --model resnet18
"""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from common import alternate, arguments, ratio, record, seconds, show
from steps import Steps

from taet.data.long_tail import long_tail_counts
from taet.experiments import cost
from taet.training.environment import keep_freed_memory, resolve_device

COUNTS = tuple(long_tail_counts(10, 5000, 10))  # CIFAR-10-LT, imbalance ratio 10
LEAST = round(1 / 1.1, 3)
AWP = 0.01  # of the AT family (Wu et al., NeurIPS 2020)


class Case(NamedTuple):
    """A method, its settings, and the length of its weight perturbation."""

    name: str
    knobs: Mapping[str, Any]
    awp: float = 0.0

    def __str__(self) -> str:
        knobs = [f" {name}={value}" for name, value in self.knobs.items()]
        return "".join([self.name, *knobs, f" awp={self.awp:g}" if self.awp else ""])


def cases(wanted: Sequence[str]) -> list[Case]:
    """Return every method and variant, and AWP; with `wanted`, only those with these names."""
    found = [Case(name, knobs) for name, knobs in cost.everything()] + [Case("at", {}, AWP)]
    return [case for case in found if not wanted or case.name in wanted]


def passes_ratios(wanted: Sequence[Case]) -> list[float]:
    """Return the passes of a step of each case, divided by those of adversarial training."""
    plain = [(case.name, case.knobs) for case in wanted]
    costs = cost.measure(timing=cost.Timing(batch_size=2, curve=(), rounds=1, precision="float32"), wanted=plain)[
        "costs"
    ]
    unit = 2 * (cost.Timing.default("steps") + 1)
    more = [2 / unit if case.awp else 0.0 for case in wanted]  # one pass more of each to perturb the weights
    return [round(found["passes_ratio"] + extra, 3) for found, extra in zip(costs, more, strict=True)]


def measure(case: Case, base: Steps, given: Namespace) -> dict[str, Any]:
    """Measure the steps of a method and of adversarial training in turn."""
    own = build(case, given)
    flops_ratio = own.flops() / base.flops()
    done = alternate(
        {
            "ours": lambda: seconds(own.run, own.device) / own.cycle,
            "other": lambda: seconds(base.run, base.device),
        },
        given.rounds,
    )
    row = ratio(done["ours"], [flops_ratio * value for value in done["other"]])
    return row | {"flops_ratio": round(flops_ratio, 3), "seconds_ratio": round(flops_ratio / row["ratio"], 3)}


def build(case: Case, given: Namespace) -> Steps:
    """Return the steps of a method with the settings of the command line."""
    return Steps(
        case.name,
        case.knobs,
        counts=COUNTS,
        batch_size=given.batch_size,
        model=given.model,
        awp=case.awp,
        bf16=given.precision == "bf16",
        device=resolve_device(given.device),
    )


def main() -> int:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    arguments(parser, out="methods.json")
    parser.add_argument("--methods", nargs="+", default=(), help="of all, those with these names")
    parser.add_argument("--model", default="resnet8", help="network (resnet8)")
    parser.add_argument("--batch-size", type=int, default=64, help="images per step (64)")
    parser.add_argument("--precision", choices=["float32", "bf16"], default="float32", help="of training (float32)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (cpu)")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    device = resolve_device(given.device)
    keep_freed_memory(device)
    load = os.getloadavg()
    wanted, base = cases(given.methods), build(Case("at", {}), given)
    ratios = {}
    for case, passes in zip(wanted, passes_ratios(wanted), strict=True):
        ratios[str(case)] = measure(case, base, given) | {"passes_ratio": passes}
    sizes = {name: getattr(given, name) for name in ("model", "batch_size", "precision", "threads")}
    show(record(given.out, device, ratios, load, asked=LEAST, **sizes))
    slow = [name for name, row in ratios.items() if row["ratio"] < LEAST]
    if slow:
        print(f"slower than the passes say by more than 10 %: {', '.join(slow)}")
    return int(bool(slow))


if __name__ == "__main__":
    sys.exit(main())
