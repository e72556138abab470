"""Write the table of results/museum.md: what every broken defence fools, what breaks it and which
flag rises.

python results/museum.py            prints the table
python results/museum.py --write    writes it
"""

import functools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from taet.attacks import autoattack, pgd  # noqa: E402
from taet.attacks.differentiable import Replaced  # noqa: E402
from taet.attacks.objectives import Objective, margin  # noqa: E402
from taet.errors import UserError  # noqa: E402
from taet.evaluation import check, evaluate  # noqa: E402
from taet.evaluation.flags import MASKING  # noqa: E402
from taet.evaluation.probe import Merged, mean_draw  # noqa: E402
from taet.losses import cross_entropy  # noqa: E402
from tests.museum import (  # noqa: E402
    CLASSES,
    EPS,
    Change,
    base,
    batch_statistics,
    defended,
    dummies,
    flat_softmax,
    k_winners,
    large_logits,
    quantised,
    standard,
    stepped,
    stochastic,
    tested,
)

PAGE = ROOT / "results" / "museum.md"
BEGIN, END = "<!-- museum: python results/museum.py --write -->\n", "<!-- end of museum -->"
MADE_FOR = {"dummy-classes", "eot-beats-one-draw"}  # attacks of `taet check --deep`
SOUND = {"the network itself": base, "the same, trained on clean images": standard}


def thresholded(seed: int = 0) -> nn.Module:
    """Black and white images."""
    return defended(seed, before=lambda x: (x > 0.5).float())


def tried(
    model: nn.Module,
    objective: Objective = cross_entropy,
    view: Change | None = None,
    judge: Change | None = None,
) -> float:
    """Share of the images that PGD-20 (step eps / 8) on `view`, by default the model, leaves
    correct."""
    x, y = tested()
    noise = torch.empty_like(x).uniform_(-EPS, EPS, generator=torch.Generator().manual_seed(1))
    attacked = model if view is None else view
    with torch.random.fork_rng():
        torch.manual_seed(0)
        x_adv = pgd(
            attacked,
            x,
            y,
            eps=EPS,
            steps=20,
            step_size=EPS / 8,
            start_noise=noise,
            objective=objective,
        )
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
SMOOTH = Attempt(
    "PGD on the margin of a smooth gate",
    lambda model: tried(model, margin, Replaced(model, "smooth")),
)
MARGIN = Attempt("PGD on the margin", lambda model: tried(model, margin))
ALL_LOGITS = Attempt("PGD on all logits", lambda model: tried(model, judge=Merged(model, CLASSES)))
MERGED = Attempt(
    "PGD on the margin of merged logits", lambda model: tried(Merged(model, CLASSES), margin)
)
ONE_DRAW = Attempt(
    "PGD on the margin of one draw a step",
    lambda model: tried(model, margin, judge=by_many_draws(model)),
)
MANY_DRAWS = Attempt(
    "PGD on the margin of the mean of 32 draws",
    lambda model: tried(
        model, margin, functools.partial(mean_draw, model, 32), by_many_draws(model)
    ),
)
START = Attempt("PGD (no gradient: its random start)", noise_alone)
BATCH = Attempt("PGD on the whole batch", tried)
ONE_CLASS = Attempt("no attack: batches of one class", in_batches_of_one_class)


class Exhibit(NamedTuple):
    """A broken defence."""

    name: str
    build: Callable[..., nn.Module]
    fooled: Attempt
    broken: Attempt
    judge: Callable[[nn.Module], Change] | None = lambda model: model
    """What decides whether an image of AutoAttack is classified correctly; None: AutoAttack cannot
    run."""


EXHIBITS = (
    Exhibit("activations on a grid around their means", stepped, PGD, STRAIGHT),
    Exhibit("seven grey levels", quantised, PGD, STRAIGHT),
    # It is refused, because no gradient reaches the image; AutoAttack's loss has none.
    Exhibit("black and white images", thresholded, START, STRAIGHT, None),
    Exhibit("k-winners: 6 of 96 units", k_winners, PGD, SMOOTH),
    Exhibit(
        *("a dummy class for every class", dummies, ALL_LOGITS, MERGED),
        lambda model: Merged(model, CLASSES),
    ),
    Exhibit(
        *("a quarter of the units, drawn at every call", stochastic, ONE_DRAW, MANY_DRAWS),
        by_many_draws,
    ),
    Exhibit("logits times 1000", large_logits, PGD, MARGIN),
    Exhibit("logits over 100", flat_softmax, PGD, MARGIN),
    # AutoAttack cannot run: it also attacks batches of one image, which have no deviation.
    Exhibit("batch statistics at test time", batch_statistics, BATCH, ONE_CLASS, None),
)


def flags(model: nn.Module) -> str:
    """The flags of an evaluation, and of `taet check --deep`."""
    x, y = tested()
    names = [str(label) for label in range(CLASSES)]
    try:
        card = evaluate(model, x, y, ["fgsm", "pgd-100"], eps=EPS, batch_size=len(y), probe=True)
    except UserError:
        return "refused: no gradient"
    checked = check(model, x, y, class_names=names, deep=True, eps=EPS)
    found = [flag["flag"] for flag in card.flags if flag["flag"] in MASKING]
    found += [finding.what for finding in checked.findings if finding.what in MADE_FOR]
    return ", ".join(f"`{flag}`" for flag in found) or "none"


def by_autoattack(model: nn.Module, judge: Change | None = None) -> float:
    """Share of the images that the official AutoAttack leaves correct, on the model as it is, in
    one batch."""
    x, y = tested()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return correct(judge or model, autoattack(model, x, y, eps=EPS, batch_size=len(y)), y)


def rows() -> Iterator[str]:
    """The lines of the table."""
    yield "| defence | fools | leaves, % | AutoAttack leaves, % | broken by | leaves, % | flags |"
    yield "|---|---|---|---|---|---|---|"
    for name, build in SOUND.items():
        model = build()
        plain, other = 100 * tried(model), 100 * tried(model, margin)
        whole = f"{100 * by_autoattack(model):.1f}"
        yield (
            f"| {name} | | {plain:.1f} (PGD) | {whole} | | {other:.1f} (margin) | {flags(model)} |"
        )
    for one in EXHIBITS:
        model = one.build()
        fooled, broken = 100 * one.fooled.left(model), 100 * one.broken.left(model)
        whole = (
            "cannot run"
            if one.judge is None
            else f"{100 * by_autoattack(model, one.judge(model)):.1f}"
        )
        cells = (
            one.name,
            one.fooled.name,
            f"{fooled:.1f}",
            whole,
            one.broken.name,
            f"{broken:.1f}",
            flags(model),
        )
        yield f"| {' | '.join(cells)} |"


def main() -> None:
    """Print or write the table."""
    torch.manual_seed(0)
    table = "\n".join(rows()) + "\n"
    if "--write" not in sys.argv:
        print(table)
        return
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{table}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


if __name__ == "__main__":
    main()
