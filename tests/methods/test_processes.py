"""Several processes train every method as one does, however unevenly they share the batch: losses, gradients, state.

Batch normalisation is out of it: its statistics are those of each process, by design. So the model here has none, and
in the networks that a method trains itself (the generators of ADT, the strategy of LAS-AT) the statistics of each
sample stand in for those of the batch, on the same parameters.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from taet.attacks.noise import Source
from taet.config import Threat
from taet.data.loader import Batch
from taet.distributed import world_size
from taet.losses import cross_entropy
from taet.methods import Method, Task
from taet.methods.base import Adversarial, Attack, Loss
from taet.models import Classifier
from taet.models.heads import build_head
from taet.training.step import training_step

CLASSES, SAMPLES, PROCESSES, STEPS = 5, 11, 2, 2
SHAPE = (1, 4, 4)
# The labels leave class 4 out of the whole batch and others out of one share only.
LABELS = torch.tensor([0, 1, 0, 0, 1, 0, 2, 3, 3, 0, 2])
THREAT = Threat(eps=0.1, step_size=0.05, steps=2, start="uniform")

Case = Any  # of conftest.py
Values = dict[str, Tensor]


def jobs(case: Case) -> Iterator[tuple[str, float, int]]:
    """Name, weight perturbation, and where the batch is cut: into 7 and 4 images, or 10 and 1."""
    if "base" not in case.knobs:
        yield "uneven shares", 0.0, 7
    yield "one image on the other, at perturbed weights", 0.01, 10


class LocalMean(Method):
    """Adversarial training that averages over the images at hand."""

    knobs: Mapping[str, Any] = {}

    def __str__(self) -> str:
        return "local mean"

    def build(self, **_: Any) -> Method:
        return self

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, adversarial: Adversarial) -> Loss:
        logits = model(adversarial.x)
        return Loss(cross_entropy(logits, y).mean(), {}, logits)


LOCAL_MEAN = LocalMean(Method.Config(), Task((5, 4, 3, 2, 1), SHAPE, epochs=1, steps_per_epoch=1))


def by_sample(module: nn.Module) -> None:
    """Put normalisation by sample in the place of normalisation by batch, with the same parameters."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            norm = nn.GroupNorm(1, child.num_features)
            norm.weight, norm.bias = child.weight, child.bias
            setattr(module, name, norm)
        else:
            by_sample(child)


def prepared(case: Case) -> tuple[Method, Classifier]:
    """The method in float64 and a model without batch normalisation, the same on every process."""
    method: Method = case.build(classes=CLASSES, image_shape=SHAPE)
    method.double()
    by_sample(method)
    generator = torch.Generator().manual_seed(0)
    body = nn.Sequential(nn.Flatten(), nn.Linear(16, 6), nn.Tanh())
    model = Classifier(body, build_head(method.head(), 6, CLASSES), CLASSES, channels=1).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(generator=generator)
    return method, model


def trained(case: Case, share: slice, awp: float) -> Values:
    """Losses, gradients, weights and the method's state after each of some steps on a share of the batch."""
    method, model = prepared(case)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    noise = torch.Generator().manual_seed(1)
    images = torch.rand(STEPS, SAMPLES, *SHAPE, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found: Values = {}
    for number, x in enumerate(images):
        batch = Batch(torch.arange(SAMPLES)[share], x[share], LABELS[share])
        attack = Attack(THREAT, Source(noise, share.start, SAMPLES))
        loss = training_step(model, method, optimizer, batch, attack, autocast=False, awp=awp, number=number)
        values = {"loss": loss.total, "logits": loss.logits} | {f"part {name}": v for name, v in loss.parts.items()}
        for owner, module in (("model", model), ("method", method)):
            for name, parameter in module.named_parameters():
                values[f"{owner} {name}"] = parameter.detach()
                if parameter.grad is not None:
                    values[f"{owner} {name} gradient"] = parameter.grad
            values |= {f"{owner} {name}": buffer for name, buffer in module.named_buffers()}
        found |= {f"step {number}: {name}": value.clone() for name, value in values.items()}
    return found


def work(rank: int, folder: Path) -> None:
    """What each process does; the first one trains alone before they meet."""
    from conftest import CASES  # the folder of this file is where Python looks for modules

    torch.set_num_threads(1)
    whole = slice(0, SAMPLES)
    plan = [(case, name, awp, cut) for case in (*CASES, LOCAL_MEAN) for name, awp, cut in jobs(case)]
    if rank == 0:
        alone = {f"{case}/{name}": trained(case, whole, awp) for case, name, awp, _ in plan}
        torch.save(alone, folder / "alone.pt")
    dist.init_process_group(
        "gloo",
        init_method=(folder / "meeting-point").as_uri(),
        rank=rank,
        world_size=PROCESSES,
        timeout=timedelta(seconds=120),
    )
    assert world_size() == PROCESSES
    found = {}
    for case, name, awp, cut in plan:
        share = slice(0, cut) if rank == 0 else slice(cut, SAMPLES)
        found[f"{case}/{name}"] = trained(case, share, awp)
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(
    tmp_path_factory: pytest.TempPathFactory, side_by_side: Callable[[str, Path, int], None]
) -> tuple[dict[str, Values], list[dict[str, Values]]]:
    """What one process found, and what each of two did; they meet through a file and talk over the loopback device."""
    folder = tmp_path_factory.mktemp("processes")
    side_by_side(__file__, folder, PROCESSES)
    alone, *together = (torch.load(folder / f"{name}.pt", weights_only=True) for name in ("alone", 0, 1))
    return alone, together


def assert_as_one(case: Case, alone: dict[str, Values], together: list[dict[str, Values]]) -> None:
    for name, _, cut in jobs(case):
        expected, found = alone[f"{case}/{name}"], [values[f"{case}/{name}"] for values in together]
        assert found[0].keys() == found[1].keys() == expected.keys()
        for key, value in expected.items():
            shares = [value[:cut], value[cut:]] if key.endswith(": logits") else [value, value]
            for mine, share in zip(found, shares, strict=True):
                torch.testing.assert_close(mine[key], share, rtol=1e-12, atol=1e-12, msg=f"{name}, {key}")


def test_two_processes_train_as_one(case: Case, results: tuple[dict[str, Values], list[dict[str, Values]]]) -> None:
    assert_as_one(case, *results)


def test_a_mean_over_ones_own_share_is_found_out(results: tuple[dict[str, Values], list[dict[str, Values]]]) -> None:
    with pytest.raises(AssertionError, match="step 0: loss"):
        assert_as_one(LOCAL_MEAN, *results)


if __name__ == "__main__":
    work(int(sys.argv[1]), Path(sys.argv[2]))
