"""Several processes train every method as one does, however unevenly they share the batch: losses,
gradients, state.

Batch normalisation is over the images of all of them, in the model and in the network that LAS-AT
trains itself.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from taet.attacks.noise import Source
from taet.data.loader import Batch
from taet.methods import Method
from taet.methods.base import Attack
from taet.models import Classifier
from taet.models.classifier import build_head
from taet.models.sync_norm import synchronised
from taet.settings import Run, Threat, Training
from taet.training.state import State
from taet.training.step import training_step
from tests.calls import met

CLASSES, SAMPLES, STEPS = 5, 11, 2
SHAPE = (1, 4, 4)
# The labels leave class 4 out of the whole batch and others out of one share only.
LABELS = torch.tensor([0, 1, 0, 0, 1, 0, 2, 3, 3, 0, 2])

Case = Any  # of conftest.py
Values = dict[str, Tensor]
Results = tuple[dict[str, Values], list[dict[str, Values]]]


class Job(NamedTuple):
    """How the batch is cut, into images before and from `cut` on, and what else differs."""

    name: str
    cut: int
    awp: float = 0.0
    bn_mode: Any = "eval"


def jobs(case: Case) -> Iterator[Job]:
    """What every method is tried in."""
    if "base" not in case.knobs:
        yield Job("uneven shares, attacked in train mode", 7, bn_mode="train")
        yield Job("all images on one", SAMPLES)
    yield Job("one image on the other, at perturbed weights", 10, awp=0.01)


def prepared(case: Case) -> tuple[Method, Classifier]:
    """The method and a model in float64, the same on every process."""
    method: Method = case.build(classes=CLASSES, image_shape=SHAPE).double()
    generator = torch.Generator().manual_seed(0)
    maps = [nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Tanh(), nn.Flatten()]
    body = nn.Sequential(*maps, nn.Linear(12, 6, bias=False), nn.BatchNorm1d(6), nn.Tanh())
    model = Classifier(body, build_head(method.task.head, 6, CLASSES), CLASSES, channels=1).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(generator=generator)
    return method, model


def trained(case: Case, share: slice, job: Job) -> Values:
    """Losses, gradients, weights and the method's state after each of some steps on a share of the
    batch."""
    method, model = prepared(case)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    state = State(model, method, optimizer, Run(training=Training(awp=job.awp)))
    noise = torch.Generator().manual_seed(1)
    images = torch.rand(
        STEPS, SAMPLES, *SHAPE, generator=torch.Generator().manual_seed(2), dtype=torch.float64
    )
    threat = Threat(eps=0.1, step_size=0.05, steps=2, start="uniform", bn_mode=job.bn_mode)
    found: Values = {}
    for number, x in enumerate(images):
        state.step = number
        batch = Batch(torch.arange(SAMPLES)[share], x[share], LABELS[share])
        with synchronised():
            loss = training_step(state, batch, Attack(threat, Source(noise, share.start, SAMPLES)))
        values = {"loss": loss.total, "logits": loss.logits} | {
            f"part {name}": v for name, v in loss.parts.items()
        }
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
    wanted = (folder / "cases.txt").read_text().splitlines()
    plan = [(case, job) for case in CASES for job in jobs(case) if str(case) in wanted]
    if rank == 0:
        alone = {f"{case}/{job.name}": trained(case, slice(0, SAMPLES), job) for case, job in plan}
        torch.save(alone, folder / "alone.pt")
    found = {}
    with met(folder, rank):
        for case, job in plan:
            share = slice(0, job.cut) if rank == 0 else slice(job.cut, SAMPLES)
            found[f"{case}/{job.name}"] = trained(case, share, job)
        torch.save(found, folder / f"{rank}.pt")


@pytest.fixture(scope="module")
def results(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    side_by_side: Callable[[str, Path, int], None],
) -> Results:
    """What one process found in the chosen cases, and what each of two did; they meet through a
    file."""
    folder = tmp_path_factory.mktemp("processes")
    here = [
        item
        for item in request.session.items
        if item.path == request.path and hasattr(item, "callspec")
    ]
    (folder / "cases.txt").write_text("\n".join(str(item.callspec.params["case"]) for item in here))
    side_by_side(__file__, folder, 2)
    alone, *together = (
        torch.load(folder / f"{name}.pt", weights_only=True) for name in ("alone", 0, 1)
    )
    return alone, together


@pytest.mark.full
@pytest.mark.sample(4)
def test_two_processes_train_as_one(case: Case, results: Results) -> None:
    alone, together = results
    for job in jobs(case):
        expected, found = (
            alone[f"{case}/{job.name}"],
            [values[f"{case}/{job.name}"] for values in together],
        )
        assert found[0].keys() == found[1].keys() == expected.keys()
        for key, value in expected.items():
            shares = (
                [value[: job.cut], value[job.cut :]] if key.endswith(": logits") else [value, value]
            )
            for mine, share in zip(found, shares, strict=True):
                torch.testing.assert_close(
                    mine[key], share, rtol=1e-12, atol=1e-12, msg=f"{job.name}, {key}"
                )
