"""The cost of training on this machine: the cost model of the TAET paper, memory, and every method
relative to AT.

    python performance/cost.py                             about a minute for a small model
    python performance/cost.py --model resnet18 --clean-epochs 60 --methods at trades taet
    python performance/cost.py --methods all --device cuda --precision bf16

Training steps are those of real runs, on random images that are on the device: an epoch is its
steps, without data loading and evaluation. Passes are counted with the attack on the model itself;
operations are the multiplications and additions of convolutions and matrix products, by torch's own
formulas. Seconds are measured `--rounds` times in this process, after one round that fills caches;
the two times of a ratio are measured one after the other. A measured number is {"median", "spread":
[least, largest]} over rounds.

With F and B the passes of a step on clean images, F' and B_adv those of one step of the attack (in
the paper F' = F), s the clean share of the epochs and kappa the steps of the attack, TAET takes,
relative to adversarial training,

    gamma = (F' + B_adv) / (F + B),    rho = 1 / (1 + kappa gamma),    eta = s rho + 1 - s
    (equation 12)

of the time; never below 1 - s, however cheap a clean epoch is. Equation 13 prints s rho^2 + 1 - s:
it divides the cost of a clean epoch twice. Source: TAET, CVPR 2025, arXiv:2503.01924, appendices C
and D.
"""

import math
import os
import sys
import time
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from common import arguments, record, seconds, wait
from memory import Storages, peak_bytes
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from taet import methods, models, registry
from taet.attacks.ball import frozen
from taet.attacks.noise import Source
from taet.data.loader import Batch
from taet.data.long_tail import long_tail_counts
from taet.losses import cross_entropy
from taet.machine import keep_freed_memory, resolve_device
from taet.methods import Attack, Task
from taet.methods.base import Adversarial
from taet.models import Classifier
from taet.models.classifier import guard_layout
from taet.models.view import make_view
from taet.settings import Run, Threat, Training
from taet.settings.schema import epoch_at
from taet.training.passes import PassCounter
from taet.training.state import State, build_optimizer
from taet.training.step import training_step

Floats = NDArray[np.float64]
REPEATS = 5  # of short work, so that the resolution of the clock and interruptions matter little
CYCLE = 20  # steps between two updates of LAS-AT's strategy network, the rarest event of a step
TOTAL, RATIO = 50_000, 10.0  # images and imbalance ratio of CIFAR-10-LT before and after the cut
LR = 1e-3  # keeps the weights finite on random labels
RECORDED = (
    "classes",
    "batch_size",
    "precision",
    "steps",
    "epochs",
    "clean_epochs",
    "rounds",
    "threads",
)
METHODS = ("at", "robal", "reat", "taet")  # of REAT's table 14, and TAET

# Published: TAET, appendices C and D and beside table 9; REAT (arXiv:2307.10205), table 14:
# ResNet-18, one V100.
GAMMA, CLEAN_SHARE, MEMORY_MB, XI_MB = 0.619, 0.4, 1629.42, 651.77
EPOCH_SECONDS = {5: 54.0, 10: 85.0, 30: 208.0, 40: 270.0}
BY_MULTIPLICATIONS = 2 / 3
"""gamma of a deep network: a pass forward or back to the images costs 1 (F, F', B_adv), back to the
weights 2 (B)."""


def rho(gamma: Any, steps: int) -> Any:
    """Return the cost of a clean epoch relative to an adversarial one."""
    return 1 / (1 + steps * gamma)


def eta(gamma: Any, steps: int, clean_share: float) -> Any:
    """Return the cost of TAET relative to adversarial training, by equation 12."""
    return clean_share * rho(gamma, steps) + 1 - clean_share


def printed_eta(gamma: Any, steps: int, clean_share: float) -> Any:
    """Return the same by equation 13, as printed."""
    return clean_share * rho(gamma, steps) ** 2 + 1 - clean_share


def line_gamma(seconds: Mapping[int, float], clean_share: float = 0.0) -> float:
    """Return gamma by the least-squares line through the seconds of an epoch by attack steps.

    The line's value at 0 steps is F + B, its slope F' + B_adv. The seconds are a mean over epochs,
    of which a share `clean_share` is clean.
    """
    attack_step, clean = np.polyfit(list(seconds), list(seconds.values()), 1)
    return float(attack_step / (1 - clean_share) / clean)


# --- what is counted while a function runs


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operations; FlopCounterMode has the same, but its tracking of modules refuses a
    gradient of the image."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func.overloadpacket)
        self.total += (
            0 if formula is None else int(formula(*args, **(kwargs or {}), out_val=result))
        )
        return result


# --- one method


class Steps:
    """Training steps of one method on random images, with its own network, optimiser and attacked
    view, as in a run."""

    def __init__(self, name: str, settings: Mapping[str, Any], given: Namespace) -> None:
        torch.manual_seed(0)
        self.device, self.kappa, epochs = resolve_device(given.device), given.steps, given.epochs
        counts = tuple(long_tail_counts(given.classes, TOTAL // given.classes, RATIO))
        shape, self.source = (
            tuple(given.image_shape),
            Source(torch.Generator(self.device).manual_seed(0)),
        )
        milestones = tuple(epoch_at(share, epochs) for share in Training().milestones)
        task = Task(counts, shape, epochs=epochs, steps_per_epoch=CYCLE, milestones=milestones)
        self.images, self.method = sum(counts), methods.build(name, settings, task).to(self.device)
        self.model = models.build(given.model, len(counts), shape, head=self.method.task.head).to(
            self.device
        )
        self.model.to(memory_format=torch.channels_last)
        guard_layout(self.model, self.method)
        self.optimizer = build_optimizer(self.model, Training(lr=LR))
        self.bf16 = given.precision == "bf16"
        self.view = make_view(self.model, shape, torch.bfloat16 if self.bf16 else None)
        self.attacked = self.model if self.view is None else self.view.module
        stages = self.method.task.stages
        self.stages = [
            (stages.index(stage), stages.count(stage) / epochs) for stage in dict.fromkeys(stages)
        ]
        """First epoch of each stage, and its share of the run."""
        self.cycle = CYCLE if hasattr(self.method, "strategy") or self.method.single_step else 2
        """Number of steps measured per stage: without learned state outside the network, all steps
        are alike."""
        self.enter(0)

    def enter(self, epoch: int) -> None:
        """Begin an epoch."""
        self.method.enter(epoch)
        self.method.start_epoch(epoch, self.method.class_counts)

    def batch(self, size: int) -> Batch:
        """Return `size` random images with random labels, the same in every call."""
        draw, classes = torch.Generator().manual_seed(0), len(self.method.class_counts)
        x = torch.rand(size, *self.method.task.image_shape, generator=draw).to(self.device)
        y = torch.randint(classes, (size,), generator=draw).to(self.device)
        return Batch(
            torch.arange(size).to(self.device), x.contiguous(memory_format=torch.channels_last), y
        )

    def attack(self, steps: int | None = None) -> Attack:
        """Return the protocol's attack, with kappa or with `steps` steps."""
        return Attack(Threat(steps=self.kappa if steps is None else steps), self.source)

    def step(
        self, batch: Batch, number: int = 0, *, steps: int | None = None, viewed: bool = True
    ) -> None:
        """Make one training step as in a run; `viewed`: attack the view."""
        run, view = (
            Run(training=Training(precision="bf16" if self.bf16 else "float32")),
            self.view if viewed else None,
        )
        state = State(self.model, self.method, self.optimizer, run, step=number, view=view)
        training_step(state, batch, self.attack(steps))

    def mean(self, cost: Callable[[], Floats], batch: Batch, *, viewed: bool = True) -> Floats:
        """Return the increase of `cost` by a step, mean over a run."""
        total = np.zeros_like(cost())
        for epoch, share in self.stages:
            self.enter(epoch)
            before = cost()
            for number in range(self.cycle):
                self.step(batch, number, viewed=viewed)
            total += share * (cost() - before) / self.cycle
        return total

    def passes(self) -> tuple[float, float]:
        """Return the forward and backward passes of the network per image and step, mean over a
        run."""
        counter = PassCounter()
        body = (
            self.model.body
            if isinstance(self.model, Classifier)
            else self.model.get_submodule("network")
        )
        batch = self.batch(2)

        def images() -> Floats:
            return np.array([counter.forward, counter.backward], float)

        with counter.counting(body):
            passed = self.mean(images, batch, viewed=False) / len(batch.y)
        forwards, backwards = passed.tolist()
        return forwards, backwards

    def operations(self) -> float:
        """Return the operations of a step with two images, mean over a run."""
        counter = _Operations()
        with counter:
            found = self.mean(lambda: np.array(float(counter.total)), self.batch(2), viewed=False)
        return float(found)

    def seconds(self, batch: Batch) -> float:
        """Return the seconds of a step, mean over a run."""

        def now() -> Floats:
            wait(self.device)
            return np.array(time.perf_counter())

        return float(self.mean(now, batch))

    def timed(self, work: Callable[[], object], repeats: int = 1) -> float:
        """Return the mean seconds of `work()`."""
        return seconds(lambda: [work() for _ in range(repeats)], self.device) / repeats

    def memory(self, batch: Batch) -> tuple[float, float]:
        """Return the memory of weights, optimiser, view and batch between steps, and the peak, in
        10^6 bytes."""
        self.step(batch)  # so that the optimiser has its state
        self.optimizer.zero_grad(set_to_none=True)
        held = [*self.held(), *batch]
        # Twice: the gradients of the first step still exist when the second begins, as in a run.
        peak = peak_bytes(lambda: [self.step(batch) for _ in range(2)], held, self.device)
        return Storages(held).bytes / 1e6, peak / 1e6

    def held(self) -> Iterator[Tensor]:
        """Yield the tensors that exist between steps: parameters, buffers, gradients, the
        optimiser's state."""
        for module in (self.model, self.attacked, self.method):
            yield from module.buffers()
            yield from module.parameters()
            yield from (
                parameter.grad for parameter in module.parameters() if parameter.grad is not None
            )
        for state in self.optimizer.state.values():
            yield from (value for value in state.values() if isinstance(value, Tensor))


# --- the measurement


def spread(values: Floats) -> dict[str, Any]:
    """Return median, least and largest of measured values to four digits, the precision of the
    clock."""
    median, low, high = (
        float(f"{value:.4g}") for value in (np.median(values), values.min(), values.max())
    )
    return {"median": median, "spread": [low, high]}


def one_round(
    clean: Steps, adversarial: Steps, two_stage: Steps, batch: Batch, curve: Iterable[int]
) -> dict[str, float]:
    """Measure every part once, in seconds of a batch; parts that are compared are measured one
    after the other."""
    attacked = adversarial.attacked
    autocast = partial(torch.autocast, clean.device.type, torch.bfloat16, enabled=clean.bf16)

    def forward() -> None:
        clean.model.train()
        with autocast():
            clean.method.loss(clean.model, batch.x, batch.y, Adversarial(batch.x))

    def attack_forward() -> None:
        with frozen(attacked), autocast():
            cross_entropy(attacked(batch.x.detach().requires_grad_()), batch.y)

    def attack() -> None:
        with frozen(attacked), autocast():
            adversarial.attack()(attacked, batch.x, batch.y)

    return {
        "F": clean.timed(forward, REPEATS),
        "F + B": clean.timed(lambda: clean.step(batch), REPEATS),
        "F'": clean.timed(attack_forward, REPEATS),
        "F' + B_adv": clean.timed(attack) / adversarial.kappa,
        "AT": adversarial.seconds(batch),
        "TAET": two_stage.seconds(batch),
        **{f"AT {n}": clean.timed(partial(adversarial.step, batch, steps=n)) for n in curve},
    }


def model_costs(at: Mapping[str, Floats], given: Namespace, epoch_steps: int) -> dict[str, Any]:
    """Return the parts, and ratios within rounds, of the seconds `at` by part, (rounds,) each."""
    share, steps = given.clean_epochs / given.epochs, given.steps
    clean, attack = at["F + B"], at["F' + B_adv"]
    gamma = attack / clean
    parts = {"forward": at["F"], "backward": clean - at["F"], "attack_forward": at["F'"]}
    parts |= {"attack_backward": attack - at["F'"], "gamma": gamma, "rho": rho(gamma, steps)}
    parts |= {"eta": eta(gamma, steps, share), "printed_eta": printed_eta(gamma, steps, share)}
    table = sorted({*range(0, given.epochs + 1, max(given.epochs // 10, 1)), given.clean_epochs})
    curve = [
        {
            "steps": n,
            "epoch_seconds": spread(epoch_steps * at[f"AT {n}"]),
            "ratio": spread(at[f"AT {n}"] / at["AT"]),
            "predicted_over_measured": spread((clean + n * attack) / at[f"AT {n}"]),
        }
        for n in given.curve
    ]
    return {
        "model": {name: spread(values) for name, values in parts.items()},
        "measured_eta": spread(at["TAET"] / at["AT"]),
        "predicted_over_measured": spread(parts["eta"] / (at["TAET"] / at["AT"])),
        "by_clean_epochs": [
            {"clean_epochs": n, "eta": spread(eta(gamma, steps, n / given.epochs))} for n in table
        ],
        "curve": curve,
    }


def memory(clean: Steps, adversarial: Steps, batch: Batch, clean_share: float) -> dict[str, float]:
    """Return the peak memory of a clean and of an adversarial step in 10^6 bytes, M_delta and
    xi."""
    held, of_clean = clean.memory(batch)
    _, of_adversarial = adversarial.memory(batch)
    extra = of_adversarial - of_clean
    megabytes = {
        "held_mb": held,
        "clean_mb": of_clean,
        "adversarial_mb": of_adversarial,
        "extra_mb": extra,
        "xi_mb": clean_share * extra,
        "images_mb": 4 * math.prod(batch.x.shape) / 1e6,
    }
    return {name: round(value, 2) for name, value in megabytes.items()}


def method_cost(
    steps: Steps, base: Steps, batch: Batch, rounds: int, epoch_steps: int
) -> dict[str, Any]:
    """Return passes, operations and seconds of a method, each measured right before those of
    adversarial training."""
    forwards, backwards = steps.passes()
    steps.seconds(batch)  # once for the caches
    pairs = np.array([(steps.seconds(batch), base.seconds(batch)) for _ in range(rounds)])
    ratios = np.ones(len(pairs)) if steps is base else pairs[:, 0] / pairs[:, 1]
    return {
        "forwards": round(forwards, 2),
        "backwards": round(backwards, 2),
        "passes_ratio": round((forwards + backwards) / sum(base.passes()), 3),
        "flops_ratio": round(steps.operations() / base.operations(), 3),
        "seconds_ratio": round(float(np.median(ratios)), 3),
        "spread": [round(float(ratios.min()), 3), round(float(ratios.max()), 3)],
        "epoch_seconds": spread(epoch_steps * pairs[:, 0])["median"],
    }


def measure(given: Namespace) -> dict[str, Any]:
    """Measure the cost model, memory and the methods of the command line."""
    share = given.clean_epochs / given.epochs
    clean, adversarial = Steps("standard", {}, given), Steps("at", {}, given)
    two_stage, batch = Steps("taet", {"clean_share": share}, given), clean.batch(given.batch_size)
    epoch_steps = math.ceil(clean.images / given.batch_size)
    rounds = [
        one_round(clean, adversarial, two_stage, batch, given.curve)
        for _ in range(given.rounds + 1)
    ]
    parts = {part: np.array([found[part] for found in rounds[1:]]) for part in rounds[0]}
    costs = []
    for name in registry.entries("methods") if given.methods == ["all"] else given.methods:
        steps = adversarial if name == "at" else Steps(name, {}, given)
        cost = method_cost(steps, adversarial, batch, given.rounds, epoch_steps)
        costs.append({"name": name, "settings": {}, **cost})
    return {
        "network": given.model,
        "image_shape": list(given.image_shape),
        "images": clean.images,
        **{name: getattr(given, name) for name in RECORDED},
        **model_costs(parts, given, epoch_steps),
        "memory": memory(clean, adversarial, batch, share),
        "costs": costs,
    }


def show(found: Mapping[str, Any]) -> None:
    """Print the numbers next to those of the papers."""

    def text(measured: Mapping[str, Any], factor: float = 1.0) -> str:
        return (
            f"{factor * measured['median']:.3f} "
            f"({' to '.join(f'{factor * end:.3f}' for end in measured['spread'])})"
        )

    steps, share = found["steps"], found["clean_epochs"] / found["epochs"]
    print(f"parts of a step, milliseconds of a batch of {found['batch_size']}")
    for name in ("forward", "backward", "attack_forward", "attack_backward"):
        print(f"  {name:16} {text(found['model'][name], 1000)}")
    print(
        f"TAET beside adversarial training: kappa = {steps}, {100 * share:.0f} % of the epochs "
        "clean"
    )
    known = {"published gamma": GAMMA, "multiplications alone": BY_MULTIPLICATIONS}
    known["seconds of adversarial epochs"] = line_gamma(EPOCH_SECONDS)
    known["the same, if means over a run"] = line_gamma(EPOCH_SECONDS, CLEAN_SHARE)
    for name, gamma in known.items():
        print(f"  {name:30} gamma {gamma:.3f}, eta {eta(gamma, steps, share):.3f}")
    print(
        f"  {'predicted here':30} gamma {text(found['model']['gamma'])}, eta "
        f"{text(found['model']['eta'])}"
    )
    print(f"  {'measured here':30} eta {text(found['measured_eta'])}")
    for point in found["curve"]:
        theirs = EPOCH_SECONDS.get(point["steps"])
        beside = (
            ""
            if theirs is None
            else (f"; TAET's seconds {theirs / EPOCH_SECONDS[10]:.2f} beside its 10 steps")
        )
        print(f"  {point['steps']:2} steps: {text(point['ratio'])} of {steps} steps{beside}")
    print(f"memory, 10^6 bytes (TAET: M_delta {MEMORY_MB}, xi {XI_MB}): {found['memory']}")
    print("methods: passes, operations and seconds beside AT; seconds of an epoch")
    for row in found["costs"]:
        name = " ".join([row["name"], *map(str, row["settings"].values())])
        ratios = f"{row['passes_ratio']:6.2f} {row['flops_ratio']:6.2f} {row['seconds_ratio']:6.2f}"
        print(
            f"  {name:24} {ratios} ({' to '.join(map(str, row['spread']))}) "
            f"{row['epoch_seconds']:8.1f}"
        )


def main() -> int:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    arguments(parser, "cost.json")
    parser.add_argument("--methods", nargs="*", default=[*METHODS], help="or all")
    parser.add_argument("--model", default="resnet8")
    parser.add_argument(
        "--image-shape", type=int, nargs=3, default=(3, 32, 32), help="channels, height, width"
    )
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--precision", choices=["float32", "bf16"], default="float32")
    parser.add_argument("--steps", type=int, default=10, help="of the attack: kappa")
    parser.add_argument(
        "--curve", type=int, nargs="*", default=(5, 20, 30, 40), help="other numbers of steps"
    )
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--clean-epochs", type=int, default=40, help="of TAET")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (cpu)")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    keep_freed_memory(resolve_device(given.device))
    load = os.getloadavg()
    show(record(given.out, given.device, {}, load, **measure(given)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
