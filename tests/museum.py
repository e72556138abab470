"""A museum of broken defences: models that fool an attack. `results/museum.py` has the attacks that
break them.

Each is made from one small network on scikit-learn's digits (8 x 8, 64-96-10, ReLU), trained on
examples of PGD-5 with eps 0.05, so that the gap is the defence's and not the network's. The tests
look at all of them.
"""

import functools
from collections.abc import Callable

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from taet.attacks import pgd

EPS, TRAIN_EPS = 0.1, 0.05
TRAIN, TEST = 1297, 300
HIDDEN, CLASSES = 96, 10
STEPS = 300


@functools.cache
def digits() -> tuple[Tensor, Tensor]:
    """All images (1797, 1, 8, 8) in [0, 1] with their labels, in one random order."""
    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    return torch.from_numpy(data.images / 16).float()[order, None], torch.from_numpy(
        data.target
    ).long()[order]


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

    def __init__(
        self,
        width: int = CLASSES,
        before: Change = same,
        hidden: Change = Tensor.relu,
        after: Change = same,
    ):
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
def standard(seed: int = 0) -> nn.Module:
    """The same network trained on clean images."""

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return functional.cross_entropy(model(x), y)

    return fitted(seeded(Network, seed), loss, seed)


def defended(seed: int = 0, **parts: Change) -> nn.Module:
    """The network's weights with other parts."""
    model = Network(**parts)
    model.load_state_dict(base(seed).state_dict())
    return model.eval()


def stepped(seed: int = 0) -> nn.Module:
    """The first layer's outputs on a grid of half a standard deviation around their means, in place
    of MeanSparse."""
    model = base(seed)
    with torch.no_grad():
        h = model.first(digits()[0][:TRAIN].flatten(1))  # type: ignore[operator]
        middle, width = h.mean(0), 0.5 * h.std(0)
    return defended(seed, hidden=lambda h: (middle + width * ((h - middle) / width).round()).relu())


def quantised(seed: int = 0) -> nn.Module:
    """Images of seven grey levels."""
    return defended(seed, before=lambda x: (6 * x).round() / 6)


def large_logits(seed: int = 0) -> nn.Module:
    """Logits times 1000, for which the cross-entropy is rounded to 0."""
    return defended(seed, after=lambda z: 1000 * z)


def flat_softmax(seed: int = 0) -> nn.Module:
    """Logits over 100, as label smoothing, HE and RoBal at scale 1 give them."""
    return defended(seed, after=lambda z: 0.01 * z)


def stochastic(seed: int = 0) -> nn.Module:
    """Each hidden unit is kept with probability 1/4, drawn at every call."""
    return defended(seed, hidden=lambda h: 4 * h.relu() * torch.bernoulli(torch.full_like(h, 0.25)))


@functools.cache
def dummies(seed: int = 0) -> nn.Module:
    """A dummy class for every class, which adversarial examples are trained into (DUCAT): 20
    logits."""

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        x_adv = pgd(model, x, y, eps=TRAIN_EPS, steps=5, step_size=TRAIN_EPS / 4)
        return functional.cross_entropy(model(x), y) + functional.cross_entropy(
            model(x_adv), CLASSES + y
        )

    return fitted(seeded(lambda: Network(2 * CLASSES), seed), loss, seed)


class Winners(nn.Module):
    """Passes the 6 largest of the hidden units."""

    def forward(self, h: Tensor) -> Tensor:
        return h * (h >= h.topk(6).values[:, -1:])


@functools.cache
def k_winners(seed: int = 0) -> nn.Module:
    """Trained with the winners."""
    return fitted(seeded(lambda: Network(hidden=Winners()), seed), adversarial, seed)


@functools.cache
def batch_statistics(seed: int = 0) -> nn.Module:
    """The first layer's outputs are normalised by the statistics of the batch, also in eval
    mode."""
    norm = nn.BatchNorm1d(HIDDEN, track_running_stats=False)
    model = seeded(lambda: Network(hidden=nn.Sequential(norm, nn.ReLU())), seed)
    return fitted(model, adversarial, seed)
