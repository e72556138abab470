"""Several processes train every method as one does, however unevenly they share the batch: losses, gradients, state.

Batch normalisation is over the images of all of them, in the model and in the networks that a method trains itself (the
generators of ADT, the strategy of LAS-AT).
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from taet.attacks.ball import BNMode
from taet.attacks.noise import Source
from taet.data.loader import Batch
from taet.distributed import world_size
from taet.losses import cross_entropy
from taet.methods import Method, Task
from taet.methods.base import Adversarial, Attack, Loss
from taet.models import Classifier
from taet.models.heads import build_head
from taet.models.sync_norm import synchronised
from taet.settings import Run, Threat, Training
from taet.training.curve import FeedbackSums
from taet.training.state import State
from taet.training.step import training_step

CLASSES, SAMPLES, PROCESSES, STEPS = 5, 11, 2, 2
SHAPE = (1, 4, 4)
# The labels leave class 4 out of the whole batch and others out of one share only.
LABELS = torch.tensor([0, 1, 0, 0, 1, 0, 2, 3, 3, 0, 2])
THREAT = Threat(eps=0.1, step_size=0.05, steps=2, start="uniform")

Case = Any  # of conftest.py
Values = dict[str, Tensor]


class Job(NamedTuple):
    """How the batch is cut, into images before and from `cut` on, and what else differs."""

    name: str
    cut: int
    awp: float = 0.0
    bn_mode: BNMode = "eval"
    synchronised: bool = True


def jobs(case: Case) -> Iterator[Job]:
    """What every method is tried in."""
    if "base" not in case.knobs:
        yield Job("uneven shares, attacked in train mode", 7, bn_mode="train")
        yield Job("all images on one", SAMPLES)
    yield Job("one image on the other, at perturbed weights", 10, awp=0.01)


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


OWN_STATISTICS = Job("statistics of each", 7, synchronised=False)
REFRESHED = ("las-at",)
"""Methods whose `after_step` runs the model with its statistics."""
LOCAL_MEAN = LocalMean(Method.Config(), Task((5, 4, 3, 2, 1), SHAPE, epochs=1, steps_per_epoch=1))


def prepared(case: Case) -> tuple[Method, Classifier]:
    """The method and a model in float64, the same on every process."""
    method: Method = case.build(classes=CLASSES, image_shape=SHAPE)
    method.double()
    generator = torch.Generator().manual_seed(0)
    maps = [nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Tanh(), nn.Flatten()]
    body = nn.Sequential(*maps, nn.Linear(12, 6, bias=False), nn.BatchNorm1d(6), nn.Tanh())
    model = Classifier(body, build_head(method.task.head, 6, CLASSES), CLASSES, channels=1).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(generator=generator)
    return method, model


def trained(case: Case, share: slice, job: Job) -> Values:
    """Losses, gradients, weights and the method's state after each of some steps on a share of the batch."""
    method, model = prepared(case)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    noise = torch.Generator().manual_seed(1)
    images = torch.rand(STEPS, SAMPLES, *SHAPE, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found: Values = {}
    run = Run(training=Training(awp=job.awp, sync_bn=job.synchronised))
    for number, x in enumerate(images):
        batch = Batch(torch.arange(SAMPLES)[share], x[share], LABELS[share])
        attack = Attack(THREAT.replace(bn_mode=job.bn_mode), Source(noise, share.start, SAMPLES))
        with synchronised(job.synchronised):
            state = State(model, method, optimizer, run, step=number)
            loss = training_step(state, batch, attack)
        values = {"loss": loss.total, "logits": loss.logits} | {f"part {name}": v for name, v in loss.parts.items()}
        for owner, module in (("model", model), ("method", method)):
            for name, parameter in module.named_parameters():
                values[f"{owner} {name}"] = parameter.detach()
                if parameter.grad is not None:
                    values[f"{owner} {name} gradient"] = parameter.grad
            values |= {f"{owner} {name}": buffer for name, buffer in module.named_buffers()}
        found |= {f"step {number}: {name}": value.clone() for name, value in values.items()}
    return found


def told(cut: int, rank: int | None = None) -> Values:
    """What feedback holds of images that two processes share, or of all of them."""
    share = slice(0, SAMPLES) if rank is None else (slice(0, cut), slice(cut, SAMPLES))[rank]
    draw = torch.Generator().manual_seed(3)
    clean, attacked = torch.randn(2, SAMPLES, CLASSES, generator=draw)
    sums = FeedbackSums(torch.bincount(LABELS, minlength=CLASSES))
    if len(LABELS[share]):
        sums.add(LABELS[share], clean[share], attacked[share])
    seen = sums.seen("validation")
    return {name: value for name, value in vars(seen).items() if isinstance(value, Tensor)}


def work(rank: int, folder: Path) -> None:
    """What each process does; the first one trains alone before they meet."""
    from conftest import CASES  # the folder of this file is where Python looks for modules

    torch.set_num_threads(1)
    whole = slice(0, SAMPLES)
    wanted = (folder / "cases.txt").read_text().splitlines()
    plan = [(case, job) for case in (*CASES, LOCAL_MEAN) for job in jobs(case) if str(case) in wanted]
    plan += [(case, OWN_STATISTICS) for case in CASES if case.name == "at" or case.name in REFRESHED]
    if rank == 0:
        alone = {f"{case}/{job.name}": trained(case, whole, job) for case, job in plan}
        torch.save(alone | {"told": told(SAMPLES)}, folder / "alone.pt")
    dist.init_process_group(
        "gloo",
        init_method=(folder / "meeting-point").as_uri(),
        rank=rank,
        world_size=PROCESSES,
        timeout=timedelta(seconds=120),
    )
    assert world_size() == PROCESSES
    found = {}
    for case, job in plan:
        share = slice(0, job.cut) if rank == 0 else slice(job.cut, SAMPLES)
        found[f"{case}/{job.name}"] = trained(case, share, job)
    found |= {f"told of {cut}": told(cut, rank) for cut in (7, SAMPLES)}
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    side_by_side: Callable[[str, Path, int], None],
) -> tuple[dict[str, Values], list[dict[str, Values]]]:
    """What one process found in the chosen cases, and what each of two did; they meet through a file."""
    folder = tmp_path_factory.mktemp("processes")
    calls = [
        item.callspec.params
        for item in request.session.items
        if item.path == request.path and hasattr(item, "callspec")
    ]
    (folder / "cases.txt").write_text("\n".join([str(LOCAL_MEAN), *(str(call["case"]) for call in calls)]))
    side_by_side(__file__, folder, PROCESSES)
    alone, *together = (torch.load(folder / f"{name}.pt", weights_only=True) for name in ("alone", 0, 1))
    return alone, together


def assert_as_one(case: Case, job: Job, alone: dict[str, Values], together: list[dict[str, Values]]) -> None:
    expected, found = alone[f"{case}/{job.name}"], [values[f"{case}/{job.name}"] for values in together]
    assert found[0].keys() == found[1].keys() == expected.keys()
    for key, value in expected.items():
        shares = [value[: job.cut], value[job.cut :]] if key.endswith(": logits") else [value, value]
        for mine, share in zip(found, shares, strict=True):
            torch.testing.assert_close(mine[key], share, rtol=1e-12, atol=1e-12, msg=f"{job.name}, {key}")


def test_two_processes_train_as_one(case: Case, results: tuple[dict[str, Values], list[dict[str, Values]]]) -> None:
    for job in jobs(case):
        assert_as_one(case, job, *results)


def test_feedback_holds_the_images_of_all(results: tuple[dict[str, Values], list[dict[str, Values]]]) -> None:
    alone, together = results
    for found in together:
        for cut in (7, SAMPLES):  # of these, none for the second
            torch.testing.assert_close(found[f"told of {cut}"], alone["told"], rtol=1e-12, atol=1e-12)
            for name in ("images", "clean", "confusion"):
                assert torch.equal(found[f"told of {cut}"][name], alone["told"][name])


def test_a_mean_over_ones_own_share_is_found_out(results: tuple[dict[str, Values], list[dict[str, Values]]]) -> None:
    for job in jobs(LOCAL_MEAN):
        with pytest.raises(AssertionError, match="step 0: loss"):
            assert_as_one(LOCAL_MEAN, job, *results)


def test_statistics_of_ones_own_share_are_found_out(
    results: tuple[dict[str, Values], list[dict[str, Values]]], stages: Callable[[str], list[Case]]
) -> None:
    (case,) = stages("at")
    with pytest.raises(AssertionError, match="statistics of each, step 0: loss"):
        assert_as_one(case, OWN_STATISTICS, *results)


def test_processes_with_statistics_of_their_own_stay_alike(
    results: tuple[dict[str, Values], list[dict[str, Values]]], stages: Callable[[str], list[Case]]
) -> None:
    for case in itertools.chain(*map(stages, REFRESHED)):
        mine, other = (values[f"{case}/{OWN_STATISTICS.name}"] for values in results[1])
        state = [key for key in mine if ": model " in key or ": method " in key]
        assert any("running_mean" in key for key in state)
        assert not [key for key in state if not torch.equal(mine[key], other[key])], case


if __name__ == "__main__":
    work(int(sys.argv[1]), Path(sys.argv[2]))
