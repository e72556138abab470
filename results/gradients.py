"""Measure the gradients of TAET's second stage at its beginning: python results/gradients.py
[--root FOLDER].

TAET with its published factors, CIFAR-10-LT as at scale mini. After the clean stage, and 1 and 10
epochs later, on 16 training batches and the network as it is: the norm of the gradient of
cross-entropy on clean images, and of HEL, its weighted terms and balanced softmax on the same
PGD-10 examples; the cosines with balanced softmax; the classes missing in a batch; how far batch
normalisation's running means are from those of the batch, in standard deviations. Writes
gradients.json beside this file.
"""

import argparse
import copy
import itertools
import json
import tempfile
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy

from taet import protocols
from taet.attacks import pgd
from taet.losses import balanced_softmax, hierarchical_equalization
from taet.machine import environment
from taet.run.folder import RunFolder
from taet.settings import override
from taet.settings.schema import epoch_at
from taet.training.loop import TrainingMonitor, train_epoch
from taet.training.prepare import prepare

RATIOS, BATCHES, LATER = (10.0, 50.0), 16, (0, 1, 10)
COMPARED = ("bcl", "hdl", "hel")
SCALE = {
    "data.name": "cifar10-lt",
    "data.max_count": 1000,
    "data.test": "balanced",
    "model.name": "resnet8",
    "training.monitor_every": 0,
    "training.save_minutes": 1e4,
}


def flat(loss: Tensor, model: nn.Module) -> Tensor:
    """Return the gradient of a loss, one vector."""
    grads = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
    return torch.cat([grad.flatten() for grad in grads])


def drift(model: nn.Module, x: Tensor) -> float:
    """Return the mean distance of running means and means of a batch, in running standard
    deviations."""
    found = list[float]()

    def look(layer: nn.Module, given: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, nn.BatchNorm2d)
        assert layer.running_mean is not None
        assert layer.running_var is not None
        apart = given[0].mean((0, 2, 3)) - layer.running_mean
        found.append((apart.abs() / layer.running_var.sqrt().clamp(min=1e-3)).mean().item())

    layers = (layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d))
    hooks = [layer.register_forward_pre_hook(look) for layer in layers]
    with torch.no_grad():
        model.eval()(x)
    for hook in hooks:
        hook.remove()
    return mean(found)


def measured(plan: Any, model: nn.Module, epoch: int) -> dict[str, float]:
    """Return the means over the batches of an epoch."""
    rows, threat, counts = (
        list[dict[str, float]](),
        plan.run.threat,
        torch.tensor(plan.dataset.train.class_counts),
    )
    for _, x, y in itertools.islice(plan.loader.epoch(epoch, 0), BATCHES):
        draws = torch.Generator().manual_seed(len(rows))
        x_adv = pgd(
            model.eval(),
            x,
            y,
            eps=threat.eps,
            steps=threat.steps,
            step_size=threat.step_size,
            start_noise=draws,
        )
        row = {"drift_clean": drift(model, x), "drift_attacked": drift(model, x_adv)}
        row["absent"] = float((y.bincount(minlength=len(counts)) == 0).sum())
        copied = copy.deepcopy(model).train()
        clean = flat(cross_entropy(copied(x), y), copied)
        logits = copied(x_adv)
        hel = hierarchical_equalization(logits, y)
        balanced = flat(balanced_softmax(logits, y, counts).mean(), copied)
        grads = {name: 0.1 * flat(part, copied) for name, part in hel.parts.items()}
        grads |= {"hel": flat(hel.total, copied), "balanced_softmax": balanced}
        row |= {"clean": clean.norm().item()} | {
            name: grad.norm().item() for name, grad in grads.items()
        }
        cosines = {
            name: cosine_similarity(grads[name], balanced, dim=0).item() for name in COMPARED
        }
        rows.append(row | {f"cosine_{name}": cosine for name, cosine in cosines.items()})
    return {name: round(mean(row[name] for row in rows), 4) for name in rows[0]}


def of_ratio(ratio: float, root: str) -> list[dict[str, float]]:
    """Train TAET up to the last epoch of interest, and return what is measured before each."""
    changes = SCALE | {"data.root": root, "data.imbalance_ratio": ratio, "training.threads": 1}
    run, found = override(protocols.taet("taet"), changes), list[dict[str, float]]()
    with tempfile.TemporaryDirectory() as folder:
        plan, state = prepare(run)
        monitor = TrainingMonitor(plan, state, RunFolder(Path(folder)))
        switch = epoch_at(plan.resolved.method.config.clean_share, run.training.epochs)
        with plan.surroundings():
            while True:
                later = state.epoch - switch
                if later in LATER:
                    now = measured(plan, copy.deepcopy(state.model), state.epoch)
                    found.append({"epochs_after_switch": later} | now)
                    print(ratio, found[-1], flush=True)
                if later == LATER[-1]:
                    return found
                train_epoch(plan, state, monitor)
                state.end_epoch(state.sums.counts[2])


def main() -> None:
    """Measure every imbalance ratio and write the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", default="data", help="folder with cifar10.npz (data)")
    root = parser.parse_args().root
    rows = {f"{ratio:g}": of_ratio(ratio, root) for ratio in RATIOS}
    found = {
        "command": "python results/gradients.py",
        "ratios": rows,
        "environment": environment(torch.device("cpu")),
    }
    Path(__file__).with_suffix(".json").write_text(
        json.dumps(found, indent=2) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()
