"""Our attacks beside those of two independent libraries, torchattacks and foolbox, on the same model and images.

Neither is a dependency: `python -m pip install torchattacks foolbox`, best in an environment of its own, since
torchattacks asks for an old `requests`. The models are trained here; with TAET_PEER_RUN, the folder of a finished run,
that run's model is attacked as well.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from taet.attacks import cw_l2, deepfool, fgsm, pgd
from taet.attacks.ball import distance
from taet.data import load
from taet.data.augmentation import to_unit
from taet.training.runs import load_run

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # theirs, about modules that have moved
    reason = "needs the peers: python -m pip install torchattacks foolbox"
    torchattacks = pytest.importorskip("torchattacks", reason=reason, exc_type=ImportError)
    foolbox = pytest.importorskip("foolbox", reason=reason, exc_type=ImportError)

pytestmark = pytest.mark.peer

COUNT = 100  # images: the standard error of a share of them is at most 5 points
STEPS = 20
BALLS = {"digits-lt": (0.12, 0.6), "cifar10-lt": (2 / 255, 0.2)}  # where some images fall and others do not
PEER_RUN = os.environ.get("TAET_PEER_RUN", "")


class Subject(NamedTuple):
    """A trained model and images with labels; radii of both balls, in which some images fall and others do not."""

    model: nn.Module
    x: Tensor
    y: Tensor
    eps: float
    eps_l2: float

    def broken(self, x_adv: Tensor) -> Tensor:
        """(N,): whether the model takes the image for another class than its own."""
        with torch.no_grad():
            return self.model(x_adv).argmax(1) != self.y

    def foolbox(self, attack: Any, **settings: float) -> Tensor:
        """Examples that an attack of foolbox makes; images that it gives up, which it returns black, as they were."""
        model = foolbox.PyTorchModel(self.model, bounds=(0, 1), device="cpu")
        x_adv: Tensor = attack.run(model, self.x, self.y, **settings)
        black = (x_adv == 0).flatten(1).all(1)
        return torch.where(black.view(-1, 1, 1, 1), self.x, x_adv)


@pytest.fixture(
    scope="module",
    params=[
        "digits-lt",
        pytest.param("cifar10-lt", marks=pytest.mark.data),
        pytest.param("run", marks=pytest.mark.skipif(not PEER_RUN, reason="TAET_PEER_RUN names no run folder")),
    ],
)
def subject(request: pytest.FixtureRequest) -> Subject:
    if request.param == "run":
        run, model, dataset, _ = load_run(PEER_RUN)
        balls = run.threat.eps, run.evaluation.eps_l2
    else:
        if request.param == "cifar10-lt" and not Path(os.environ.get("TAET_DATA", ""), "cifar10.npz").is_file():
            pytest.skip("TAET_DATA names no folder with cifar10.npz")
        dataset = load(request.param, max_count=2000 if request.param == "cifar10-lt" else None, test="balanced")
        model = train(to_unit(torch.from_numpy(dataset.train.images)), torch.from_numpy(dataset.train.labels))
        balls = BALLS[request.param]
    rows = torch.linspace(0, len(dataset.test) - 1, COUNT).long().unique()  # of every class, however they are sorted
    x, y = to_unit(torch.from_numpy(dataset.test.images)[rows]), torch.from_numpy(dataset.test.labels)[rows]
    return Subject(model.eval(), x, y, *balls)


def train(x: Tensor, y: Tensor) -> nn.Module:
    """A small network with batch normalisation, after eight epochs on clean images."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(x.shape[1], 16, 3, stride=2, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(128, 10),
        )
        optimizer = torch.optim.Adam(model.parameters(), 0.003)
        for _ in range(8):
            for batch in torch.randperm(len(x)).split(64):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
                optimizer.step()
    return model


def assert_same_flags(ours: Tensor, theirs: Tensor, subject: Subject) -> None:
    """The same images fall; some do, and others not."""
    broken = subject.broken(ours)
    assert 0.05 < broken.float().mean() < 0.95
    assert torch.equal(broken, subject.broken(theirs))


def assert_same_pixels(ours: Tensor, theirs: Tensor) -> None:
    """All but some pixels agree: rounding decides the sign of a gradient near zero, and of all that follows from it."""
    assert ((ours - theirs).abs() < 1e-6).float().mean() > 0.99


def norms(x_adv: Tensor, subject: Subject) -> Tensor:
    """(N,): L2 norm of the perturbation of each image that was right and fell; nan for the others."""
    fell = subject.broken(x_adv) & ~subject.broken(subject.x)
    return distance(x_adv, subject.x, "l2").masked_fill(~fell, torch.nan)


def assert_same_norms(ours: Tensor, theirs: Tensor, rel: float) -> None:
    """The same images fall, or all but one of a hundred, and of those 95 in a hundred at the same distance."""
    assert (ours.isnan() != theirs.isnan()).float().mean() <= 0.01
    ratio = (ours / theirs)[~(ours + theirs).isnan()]
    assert len(ratio) >= 0.1 * COUNT
    assert ((ratio - 1).abs() <= rel).float().mean() >= 0.95


def test_fgsm_is_theirs(subject: Subject) -> None:
    ours = fgsm(subject.model, subject.x, subject.y, eps=subject.eps)
    one_step = foolbox.attacks.LinfFastGradientAttack(random_start=False)
    for theirs in (
        torchattacks.FGSM(subject.model, eps=subject.eps)(subject.x, subject.y),
        subject.foolbox(one_step, epsilon=subject.eps),
    ):
        assert_same_flags(ours, theirs, subject)
        assert_same_pixels(ours, theirs)


def test_pgd_without_a_draw_is_theirs(subject: Subject) -> None:
    model, x, y, eps, _ = subject
    ours = pgd(model, x, y, eps=eps, steps=STEPS, step_size=eps / 8, start="none")
    chain = foolbox.attacks.LinfPGD(abs_stepsize=eps / 8, steps=STEPS, random_start=False)
    for theirs in (
        torchattacks.PGD(model, eps=eps, alpha=eps / 8, steps=STEPS, random_start=False)(x, y),
        subject.foolbox(chain, epsilon=eps),
    ):
        assert_same_flags(ours, theirs, subject)
        assert_same_pixels(ours, theirs)


def test_pgd_l2_without_a_draw_is_theirs(subject: Subject) -> None:
    # Where a gradient is as good as zero they stand still: torchattacks adds 1e-10 to its norm, foolbox takes 1e-12 at
    # least. We follow it. So pixels of images that are beyond doubt differ, but no flag does.
    model, x, y, _, eps = subject
    ours = pgd(model, x, y, eps=eps, steps=STEPS, step_size=eps / 5, norm="l2", start="none")
    chain = foolbox.attacks.L2PGD(abs_stepsize=eps / 5, steps=STEPS, random_start=False)
    for theirs in (
        torchattacks.PGDL2(model, eps=eps, alpha=eps / 5, steps=STEPS, random_start=False)(x, y),
        subject.foolbox(chain, epsilon=eps),
    ):
        assert_same_flags(ours, theirs, subject)
        assert (ours - theirs).abs().mean() < 1e-3 * eps


@pytest.mark.parametrize(("c", "rel"), [(0.1, 1e-3), (10.0, 1e-3), (None, 0.05)])
def test_cw_l2_is_that_of_foolbox(subject: Subject, c: float | None, rel: float) -> None:
    # What differs still: it measures from an image shrunk by 1e-6 about grey, ours by 5e-7, and in a search for c that
    # can decide a round. Its early stop, by the loss of the whole batch, is off.
    rounds = 5
    attack = foolbox.attacks.L2CarliniWagnerAttack(
        steps=STEPS,
        stepsize=0.05,
        abort_early=False,
        initial_const=1e-3 if c is None else c,
        binary_search_steps=rounds if c is None else 1,
    )
    # Ours searches with sine where foolbox has tanh.
    published: Any = {"box": "tanh", "steps": STEPS, "lr": 0.05, "search_steps": rounds}
    ours = cw_l2(subject.model, subject.x, subject.y, c=c, **published)
    assert_same_norms(norms(ours, subject), norms(subject.foolbox(attack), subject), rel)


def test_deepfool_is_that_of_foolbox(subject: Subject) -> None:
    ours = norms(deepfool(subject.model, subject.x, subject.y), subject)
    attack = foolbox.attacks.L2DeepFoolAttack(steps=50, candidates=10, overshoot=0.02)
    assert_same_norms(ours, norms(subject.foolbox(attack), subject), rel=1e-3)
