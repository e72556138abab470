"""A museum of broken defences: models that fool an attack, each with the attack that breaks it and the flag it raises.

Each is made from one small network on scikit-learn's digits (8 x 8, 64-96-10, ReLU), trained on examples of PGD-5 with
eps 0.05, so that the gap is the defence's and not the network's. The tests look at all of them.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from taet.attacks import pgd
from taet.attacks.differentiable import Replaced
from taet.attacks.objectives import Objective, margin
from taet.evaluation.facts import Merged, mean_draw
from taet.losses import cross_entropy

EPS, TRAIN_EPS = 0.1, 0.05
TRAIN, TEST = 1297, 300
HIDDEN, CLASSES = 96, 10
STEPS = 300


@functools.cache
def digits() -> tuple[Tensor, Tensor]:
    """All images (1797, 1, 8, 8) in [0, 1] with their labels, in one random order."""
    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    return torch.from_numpy(data.images / 16).float()[order, None], torch.from_numpy(data.target).long()[order]


def tested() -> tuple[Tensor, Tensor]:
    """The images that a defence is tried on."""
    x, y = digits()
    return x[TRAIN : TRAIN + TEST], y[TRAIN : TRAIN + TEST]


Change = Callable[[Tensor], Tensor]


def same(x: Tensor) -> Tensor:
    """What a defence leaves as it is."""
    return x


class Network(nn.Module):
    """Two layers with something before, between and after them."""

    def __init__(self, width: int = CLASSES, before: Change = same, hidden: Change = Tensor.relu, after: Change = same):
        super().__init__()
        self.first, self.last = nn.Linear(64, HIDDEN), nn.Linear(HIDDEN, width)
        self.before, self.hidden, self.after = before, hidden, after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.last(self.hidden(self.first(self.before(x).flatten(1)))))


Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]


def adversarial(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The loss of plain adversarial training."""
    x_adv = pgd(model, x, y, eps=TRAIN_EPS, steps=5, step_size=TRAIN_EPS / 4)
    return functional.cross_entropy(model(x_adv), y)


def fitted(model: nn.Module, loss: Loss, seed: int = 0) -> nn.Module:
    """Train a model on the training images."""
    x, y = digits()
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(STEPS):
        rows = torch.randint(0, TRAIN, (128,), generator=generator)
        optimizer.zero_grad()
        loss(model, x[rows], y[rows]).backward()
        optimizer.step()
    return model.eval()


def seeded(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """Build a model with weights drawn from a seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build()


@functools.cache
def base(seed: int = 0) -> nn.Module:
    """The network without a defence."""
    return fitted(seeded(Network, seed), adversarial, seed)


@functools.cache
def standard() -> nn.Module:
    """The same network trained on clean images."""
    return fitted(seeded(Network), lambda model, x, y: functional.cross_entropy(model(x), y))


def defended(**parts: Change) -> nn.Module:
    """The network's weights with other parts."""
    model = Network(**parts)
    model.load_state_dict(base().state_dict())
    return model.eval()


def stepped() -> nn.Module:
    """The first layer's outputs on a grid of half a standard deviation around their means, in place of MeanSparse."""
    model = base()
    with torch.no_grad():
        h = model.first(digits()[0][:TRAIN].flatten(1))  # type: ignore[operator]
        middle, width = h.mean(0), 0.5 * h.std(0)
    return defended(hidden=lambda h: (middle + width * ((h - middle) / width).round()).relu())


def quantised() -> nn.Module:
    """Images of seven grey levels."""
    return defended(before=lambda x: (6 * x).round() / 6)


def thresholded() -> nn.Module:
    """Black and white images."""
    return defended(before=lambda x: (x > 0.5).float())


def large_logits() -> nn.Module:
    """Logits times 1000, for which the cross-entropy is rounded to 0."""
    return defended(after=lambda z: 1000 * z)


def flat_softmax() -> nn.Module:
    """Logits over 100, as label smoothing, HE and RoBal at scale 1 give them."""
    return defended(after=lambda z: 0.01 * z)


def stochastic() -> nn.Module:
    """Each hidden unit is kept with probability 1/4, drawn at every call."""
    return defended(hidden=lambda h: 4 * h.relu() * torch.bernoulli(torch.full_like(h, 0.25)))


@functools.cache
def dummies() -> nn.Module:
    """A dummy class for every class, which adversarial examples are trained into (DUCAT): 20 logits."""

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        x_adv = pgd(model, x, y, eps=TRAIN_EPS, steps=5, step_size=TRAIN_EPS / 4)
        return functional.cross_entropy(model(x), y) + functional.cross_entropy(model(x_adv), CLASSES + y)

    return fitted(seeded(lambda: Network(2 * CLASSES)), loss)


class Winners(nn.Module):
    """Passes the 6 largest of the hidden units."""

    def forward(self, h: Tensor) -> Tensor:
        return h * (h >= h.topk(6).values[:, -1:])


@functools.cache
def k_winners() -> nn.Module:
    """Trained with the winners."""
    return fitted(seeded(lambda: Network(hidden=Winners())), adversarial)


@functools.cache
def batch_statistics() -> nn.Module:
    """The first layer's outputs are normalised by the statistics of the batch, also in eval mode."""
    norm = nn.BatchNorm1d(HIDDEN, track_running_stats=False)
    return fitted(seeded(lambda: Network(hidden=nn.Sequential(norm, nn.ReLU()))), adversarial)


# The table: which attack each defence fools, and which breaks it


def tried(
    model: nn.Module, objective: Objective = cross_entropy, view: Change | None = None, judge: Change | None = None
) -> float:
    """Share of the images that PGD-20 (step eps / 8) on `view`, by default the model, leaves correct."""
    x, y = tested()
    noise = torch.empty_like(x).uniform_(-EPS, EPS, generator=torch.Generator().manual_seed(1))
    attacked = model if view is None else view
    with torch.random.fork_rng():
        torch.manual_seed(0)
        x_adv = pgd(attacked, x, y, eps=EPS, steps=20, step_size=EPS / 8, start_noise=noise, objective=objective)
        return correct(judge or model, x_adv, y)


def correct(model: Change, x: Tensor, y: Tensor) -> float:
    """Share of images that a model classifies correctly."""
    with torch.no_grad():
        return float((model(x).argmax(1) == y).float().mean())


def in_batches_of_one_class(model: nn.Module, size: int = 25) -> float:
    """Accuracy on clean images in batches that are sorted by class."""
    x, y = tested()
    order = y.argsort()
    pairs = zip(x[order].split(size), y[order].split(size), strict=True)
    return sum(correct(model, *pair) * len(pair[1]) for pair in pairs) / len(y)


def noise_alone(model: nn.Module) -> float:
    """What is left of PGD where there is no gradient: its random start."""
    x, y = tested()
    noise = torch.empty_like(x).uniform_(-EPS, EPS, generator=torch.Generator().manual_seed(1))
    return correct(model, (x + noise).clamp(0, 1), y)


def by_many_draws(model: nn.Module) -> Change:
    """The mean probabilities of 64 draws."""
    return lambda x: torch.stack([model(x).softmax(1) for _ in range(64)]).mean(0)


class Attempt(NamedTuple):
    """An attack, and the share of the images that it leaves correct."""

    name: str
    left: Callable[[nn.Module], float]


PGD = Attempt("PGD", tried)
STRAIGHT = Attempt("PGD, straight-through", lambda model: tried(model, view=Replaced(model)))
SMOOTH = Attempt("PGD on the margin of a smooth gate", lambda model: tried(model, margin, Replaced(model, "smooth")))
MARGIN = Attempt("PGD on the margin", lambda model: tried(model, margin))
ALL_LOGITS = Attempt("PGD on all logits", lambda model: tried(model, judge=Merged(model, CLASSES)))
MERGED = Attempt("PGD on the margin of merged logits", lambda model: tried(Merged(model, CLASSES), margin))
ONE_DRAW = Attempt(
    "PGD on the margin of one draw a step", lambda model: tried(model, margin, judge=by_many_draws(model))
)
MANY_DRAWS = Attempt(
    "PGD on the margin of the mean of 32 draws",
    lambda model: tried(model, margin, functools.partial(mean_draw, model, 32), by_many_draws(model)),
)
START = Attempt("PGD (no gradient: its random start)", noise_alone)
BATCH = Attempt("PGD on the whole batch", tried)
ONE_CLASS = Attempt("no attack: batches of one class", in_batches_of_one_class)


class Exhibit(NamedTuple):
    """A broken defence."""

    name: str
    build: Callable[[], nn.Module]
    fooled: Attempt
    broken: Attempt
    gap: float
    """Least difference of the two shares: about half of what was measured."""
    judge: Callable[[nn.Module], Change] | None = lambda model: model
    """What decides whether an image of AutoAttack is classified correctly; None: AutoAttack cannot run."""


EXHIBITS = (
    Exhibit("activations on a grid around their means", stepped, PGD, STRAIGHT, 0.15),
    Exhibit("seven grey levels", quantised, PGD, STRAIGHT, 0.2),
    # It is refused, because no gradient reaches the image; AutoAttack's loss has none.
    Exhibit("black and white images", thresholded, START, STRAIGHT, 0.06, None),
    Exhibit("k-winners: 6 of 96 units", k_winners, PGD, SMOOTH, 0.06),
    Exhibit(
        *("a dummy class for every class", dummies, ALL_LOGITS, MERGED, 0.12), lambda model: Merged(model, CLASSES)
    ),
    Exhibit(*("a quarter of the units, drawn at every call", stochastic, ONE_DRAW, MANY_DRAWS, 0.03), by_many_draws),
    Exhibit("logits times 1000", large_logits, PGD, MARGIN, 0.15),
    Exhibit("logits over 100", flat_softmax, PGD, MARGIN, 0.07),
    # AutoAttack cannot run: it also attacks batches of one image, which have no deviation.
    Exhibit("batch statistics at test time", batch_statistics, BATCH, ONE_CLASS, 0.2, None),
)
