"""Memory, hours, price and communication of adversarial training on ImageNet-LT and iNaturalist 2018.

Counted on the CPU, for ResNet-50 on 224 x 224 pixels: arithmetic of a step of PGD-10 training, bytes that autograd
keeps for an image, and bytes that processes exchange in a step of every method. Hours follow from these with public
figures of GPUs and with assumptions, which are marked as such: no GPU was measured.

    python benchmarks/scale.py             counts (a few minutes of one core) and writes results/scale.json
    python benchmarks/scale.py --derive    uses the counts of that file
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from class_terms import SETS, kept_by, power_law_counts, rounded
from steps import operations
from torch import Tensor

from taet import methods, models, registry
from taet.attacks.ball import frozen
from taet.attacks.noise import Source
from taet.evaluation import ResultCard
from taet.files import write_json
from taet.losses import cross_entropy
from taet.methods.base import Attack, Step, Task
from taet.models.sync_norm import synchronised
from taet.models.view import make_view
from taet.randomness import generator
from taet.settings import Threat, from_json
from taet.training.environment import environment, resolve_device

HERE = Path(__file__).parent
RESULT = HERE / "results" / "scale.json"
NETWORK, SIDE, STEPS, EPOCHS, BATCH = "resnet50", 224, 10, 100, 128
"""Of the protocol taet, but for the network."""
GPUS = (1, 8, 64)
GLOBAL_BATCHES = (128, 8192)
MONITOR_STEPS = 20
FLOAT32 = 4
"""Bytes."""
# Images that are not trained on: Liu et al., CVPR 2019; the validation images of github.com/visipedia/inat_comp.
HELD_OUT = {"imagenet-lt": {"validation": 20_000, "test": 50_000}, "inaturalist-2018": {"test": 24_426}}
# A card with AutoAttack's forward and backward passes on a network that was trained with PGD.
CARD = HERE.parent / "results" / "cifar10-lt-attacks" / "at.json"


class Device(NamedTuple):
    """What is public about a GPU; dense arithmetic, in operations and bytes a second."""

    bfloat16: float
    float32: float
    memory: float
    link: float
    """To the other GPUs of a machine, one way."""
    network: float
    """Of the vendor's machine of eight to other machines, for each GPU, one way."""
    source: str


DEVICES = {
    "A100 80 GB": Device(312e12, 19.5e12, 80e9, 300e9, 25e9, "NVIDIA A100 and DGX A100 data sheets"),
    "H200": Device(989e12, 67e12, 141e9, 450e9, 50e9, "NVIDIA H200 and DGX H200 data sheets"),
}
# Clean training of this network on 224 pixels, images a second: in mixed precision on one and on eight A100 80 GB, in
# float32 on one V100, whose peak is 15.7e12 (its data sheet). NVIDIA/DeepLearningExamples, ResNet50 v1.5 for PyTorch.
PUBLIC = {"a100_bfloat16": 2470.0, "a100_bfloat16_8": 16621.0, "v100_float32": 367.0, "v100_peak": 15.7e12}
# Assumed, since no GPU was measured: shares of the peak that adversarial training reaches, lowest and highest; what is
# left of the speed of so many GPUs (of 8: what is public of clean training); seconds that a sum over processes takes
# besides its bytes; and the price of a GPU for an hour, in any currency.
ASSUMED: dict[str, Any] = {
    "utilisation": {"A100 80 GB": (0.1, 0.2), "H200": (0.05, 0.15)},
    "utilisation_float32": (0.3, 0.6),
    "efficiency": {"1": 1.0, "8": 0.84, "64": 0.7},
    "seconds_of_a_sum": 3e-5,
    "price": 3.0,
}


def images(shape: tuple[int, ...]) -> Tensor:
    return torch.rand(shape, generator=generator("cpu", 0, "images"))


def arithmetic(classes: int) -> dict[str, int]:
    """Operations for one image: a forward pass, one with the gradient of the image, and a step of PGD-10 training."""
    model = models.build(NETWORK, classes, (3, SIDE, SIDE))
    x, y = images((2, 3, SIDE, SIDE)), torch.zeros(2, dtype=torch.int64)
    attack = Attack(Threat(steps=STEPS), Source(generator("cpu", 0, "attack")))
    pixels = x.clone().requires_grad_()

    def step() -> None:
        with frozen(model):
            examples = attack(model, x, y)
        cross_entropy(model.train()(examples), y).mean().backward()  # type: ignore[no-untyped-call]

    with frozen(model):
        forward = operations(lambda: model(x))
        attacked = operations(lambda: torch.autograd.grad(cross_entropy(model(pixels), y).sum(), pixels))
    clean = operations(lambda: cross_entropy(model.train()(x), y).mean().backward())  # type: ignore[no-untyped-call]
    found = {"forward": forward, "attack_step": attacked, "clean_step": clean, "pgd_10_step": operations(step)}
    return {name: value // len(x) for name, value in found.items()}


def activations(classes: int) -> dict[str, int]:
    """Bytes that autograd keeps for each further image of a batch, in training and in the attack, by arithmetic."""
    model = models.build(NETWORK, classes, (3, SIDE, SIDE))

    def further(attacked: bool, dtype: torch.dtype) -> int:
        view = make_view(model, (3, SIDE, SIDE), None if dtype == torch.float32 else dtype) if attacked else None
        used = model.train() if view is None else view.module
        kept = []
        for count in (2, 3):
            x, y = images((count, 3, SIDE, SIDE)).requires_grad_(attacked), torch.zeros(count, dtype=torch.int64)
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
                kept.append(kept_by(lambda x=x, y=y: cross_entropy(used(x), y).mean(), *used.parameters())[1])  # type: ignore[misc]
        return kept[1] - kept[0]

    return {
        f"{what}_{name}": further(what == "attack", getattr(torch, name))
        for what in ("training", "attack")
        for name in ("bfloat16", "float32")
    }


@contextmanager
def processes(number: int) -> Iterator[list[int]]:
    """Inside, be the first of so many processes; of what would be exchanged the bytes are counted."""
    sent: list[int] = []

    def all_reduce(value: Tensor, *_: Any, **__: Any) -> None:
        sent.append(value.numel() * value.element_size())

    answers = {"is_initialized": True, "get_world_size": number, "get_rank": 0}
    with ExitStack() as stack:
        for name, answer in answers.items():
            stack.enter_context(mock.patch(f"torch.distributed.{name}", return_value=answer))
        stack.enter_context(mock.patch("torch.distributed.all_reduce", all_reduce))
        yield sent


def exchanged(name: str, knobs: Mapping[str, Any], counts: tuple[int, ...], number: int, *, sync: bool) -> list[int]:
    """Bytes of every sum over processes in a step of a method, the gradients' left out.

    Neither their number nor their sizes depend on the images, so that small ones do.
    """
    task = Task(counts, (3, 8, 8), epochs=EPOCHS, steps_per_epoch=sum(counts) // BATCH, milestones=(75, 90))
    method = methods.build(name, from_json(methods.find(name).Config, dict(knobs)), task)
    method.enter(EPOCHS - 1)
    model = models.build(NETWORK, len(counts), task.image_shape, head=method.task.head, stem="cifar")
    x, y = images((4, *task.image_shape)), torch.arange(4) * (len(counts) // 4)
    attack = Attack(Threat(steps=1), Source(generator("cpu", 0, "attack")))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with processes(number) as sent, synchronised(model, wanted=sync):
        with frozen(model):
            adversarial = method.perturb(model, x, y, attack)
        loss = method.loss(model.train(), x, y, adversarial)
        loss.total.backward()  # type: ignore[no-untyped-call]
        # Not the first step, in which LAS-AT's strategy learns, by a step of a copy of the model.
        method.after_step(model, Step(torch.arange(4), x, y, loss, attack, optimizer, number=1))
    return sent


def collectives(counts: tuple[int, ...]) -> dict[str, Any]:
    """Bytes and number of the sums over processes in a step: of methods, batch normalisation and gradients."""
    ways: dict[str, tuple[str, dict[str, Any]]] = {name: (name, {}) for name in registry.entries("methods")}
    ways |= {"harl, absent ema": ("harl", {"absent": "ema"}), "reat, form per-pair": ("reat", {"form": "per-pair"})}
    found = {name: exchanged(*way, counts, 2, sync=False) for name, way in ways.items()}
    norms = {str(number): exchanged("at", {}, counts, number, sync=True) for number in GPUS if number > 1}
    plain = len(found["at"])
    return {
        "methods": {name: {"sums": len(sent), "bytes": sum(sent)} for name, sent in found.items()},
        "batch_norm": {
            number: {"sums": len(sent) - plain, "bytes": sum(sent) - sum(found["at"])} for number, sent in norms.items()
        },
    }


def count() -> dict[str, Any]:
    """Everything that is counted, by set."""
    found = {}
    for name, about in SETS.items():
        model = models.build(NETWORK, about.classes, (3, SIDE, SIDE))
        found[name] = {
            "parameters": sum(value.numel() for value in model.parameters()),
            "operations": arithmetic(about.classes),
            "kept_bytes": activations(about.classes),
            "exchanged": collectives(tuple(power_law_counts(about).tolist())),
        }
    return found


def attacked() -> dict[str, float]:
    """Passes of AutoAttack for an image, as a card counted them, and what was left of the images."""
    card = ResultCard.load(CARD)
    column = card.column("autoattack")
    return {
        "forwards": column.forwards / len(card.labels),
        "backwards": column.backwards / len(card.labels),
        "accuracy": float(column.correct.mean()),
    }


def passed() -> dict[str, float]:
    """Bytes a second of what reads all images once, as benchmarks/streaming.py measured it."""
    found = json.loads((HERE / "results" / "streaming.json").read_text(encoding="utf-8"))
    seconds = found["disk"]["seconds"]
    return {name: found["bytes"] / seconds[name] for name in ("checksum", "statistics")}


def ring(size: float, gpus: int, device: Device) -> float:
    """Seconds of a sum over GPUs by a ring: each sends 2 (P - 1) / P times its bytes."""
    return 2 * (gpus - 1) / gpus * size / (device.link if gpus <= 8 else device.network)


def hours(operations: float, gpus: int, peak: float, utilisation: float) -> float:
    """Hours of arithmetic that is spread over GPUs."""
    efficiency: float = ASSUMED["efficiency"][str(gpus)]
    return operations / (gpus * peak * utilisation * efficiency) / 3600


def least_to_most(operations: float, gpus: int, peak: float, shares: tuple[float, float]) -> list[float]:
    """Hours at the highest and at the lowest utilisation."""
    return [hours(operations, gpus, peak, share) for share in reversed(shares)]


def memory(name: str, counted: Mapping[str, Any]) -> dict[str, Any]:
    """Bytes of a set and of the model's state, and how many images a GPU can train on at once, at most."""
    about, pixels = SETS[name], 3 * SIDE**2
    state = 3 * FLOAT32 * counted["parameters"]
    each = counted["kept_bytes"]["training_bfloat16"]
    stored = {"train": about.images, **HELD_OUT[name]}
    return {
        "stored_bytes": {part: number * pixels for part, number in stored.items()},
        "state_bytes": state,
        "logits_bytes": BATCH * about.classes * FLOAT32,
        "images_at_once": {device: int((public.memory - state) / each) for device, public in DEVICES.items()},
        "seconds_to": {what: pixels * sum(stored.values()) / speed for what, speed in passed().items()},
        "confusion_bytes": 8 * about.classes**2,
        "roc_auc_bytes": FLOAT32 * about.classes**2,
        "scores_bytes": stored["test"] * about.classes * FLOAT32,
    }


def time(name: str, counted: Mapping[str, Any], passes: Mapping[str, float]) -> dict[str, Any]:
    """Operations and hours of a training of EPOCHS epochs, of its curve, and of AutoAttack on the test images."""
    about, each = SETS[name], counted["operations"]
    backward = each["attack_step"] - each["forward"]
    watched = next(iter(HELD_OUT[name].values()))
    work = {
        "training": EPOCHS * about.images * each["pgd_10_step"],
        "clean_training": EPOCHS * about.images * each["clean_step"],
        "curve": EPOCHS * watched * ((MONITOR_STEPS + 2) * each["forward"] + MONITOR_STEPS * backward),
        "autoattack": HELD_OUT[name]["test"] * (passes["forwards"] * each["forward"] + passes["backwards"] * backward),
    }
    found: dict[str, Any] = {"operations": work}
    for what in work:
        found[what] = {}
        for device, public in DEVICES.items():
            exact = what in ("curve", "autoattack")  # evaluation is float32
            peak = public.float32 if exact else public.bfloat16
            shares = ASSUMED["utilisation_float32"] if exact else ASSUMED["utilisation"][device]
            found[what][device] = {str(gpus): least_to_most(work[what], gpus, peak, shares) for gpus in GPUS}
    return found


def communication(counted: Mapping[str, Any]) -> dict[str, Any]:
    """Milliseconds of a step's arithmetic at the highest utilisation, and of its sums over the GPUs."""
    sent, wait = counted["exchanged"], ASSUMED["seconds_of_a_sum"]
    terms = {name: sent["methods"][name] for name in ("harl", "reat", "reat, form per-pair")}
    found: dict[str, Any] = {}
    for device, public in DEVICES.items():
        for gpus in GPUS[1:]:
            sums = {
                "gradients": {"sums": 1, "bytes": FLOAT32 * counted["parameters"]},
                "batch_norm": sent["batch_norm"][str(gpus)],
                **terms,
            }
            seconds = {name: ring(sum_["bytes"], gpus, public) + wait * sum_["sums"] for name, sum_ in sums.items()}
            for batch in GLOBAL_BATCHES:
                peak = public.bfloat16 * ASSUMED["utilisation"][device][1]
                arithmetic = batch / gpus * counted["operations"]["pgd_10_step"] / peak
                row = {"arithmetic": arithmetic, **seconds}
                found[f"{device}, {gpus} GPUs, batch {batch}"] = {what: 1000 * value for what, value in row.items()}
    return found


def derive(counted: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that follows from counts, public figures and assumptions."""
    passes = attacked()
    step = counted["imagenet-lt"]["operations"]
    return {
        "public": {
            "devices": {name: device._asdict() for name, device in DEVICES.items()},
            "throughput": PUBLIC,
            "utilisation": {
                "A100 80 GB": PUBLIC["a100_bfloat16"] * step["clean_step"] / DEVICES["A100 80 GB"].bfloat16,
                "V100, float32": PUBLIC["v100_float32"] * step["clean_step"] / PUBLIC["v100_peak"],
            },
            "efficiency_of_8": PUBLIC["a100_bfloat16_8"] / (8 * PUBLIC["a100_bfloat16"]),
        },
        "assumed": ASSUMED,
        "autoattack_passes": passes,
        "sets": {
            name: {
                "memory": memory(name, counted[name]),
                "time": time(name, counted[name], passes),
                "communication": communication(counted[name]),
            }
            for name in SETS
        },
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--derive", action="store_true", help="take the counts of the file of the result")
    parser.add_argument("--out", type=Path, default=RESULT, help="file of the result (results/scale.json)")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.derive:
        result = json.loads(given.out.read_text(encoding="utf-8"))
    else:
        about = {"network": NETWORK, "side": SIDE, "steps": STEPS, "epochs": EPOCHS, "batch_size": BATCH}
        command = f"python benchmarks/{Path(__file__).name}"
        result = {**about, "counted": count(), "command": command, "environment": environment(resolve_device("cpu"))}
    result |= {"derived": rounded(derive(result["counted"]))}
    print(json.dumps(result["derived"], indent=1))
    given.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(given.out, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
