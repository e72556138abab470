"""Flags of a run's curve: under single-step training, robustness can vanish from one epoch to the next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from taet.formatting import percent
from taet.training.record import Epoch

LEFT = 0.5  # share of the best earlier robustness; below it, robustness counts as lost
GAP = 0.15  # of FGSM over PGD: in 43 of the 186 public runs of FastAT_Benchmark, all of methods known to collapse
FLAGS = ("catastrophic-overfitting", "robustness-lost")


def first_loss(pgd: Sequence[float], fgsm: Sequence[float] | None = None, chance: float = 0.0) -> int | None:
    """Return the first point at which PGD accuracy is at most half of its earlier maximum, or None.

    With accuracies under `fgsm`, a point counts only if accuracy under FGSM is 15 points higher than under PGD: the
    network resists single steps only (Wong et al., ICLR 2020, arXiv:2001.03994). A maximum of at most `chance` does
    not count, because there was no robustness to lose.
    """
    best = 0.0
    for number, robust in enumerate(pgd):
        if best > chance and robust <= LEFT * best and (fgsm is None or fgsm[number] - robust >= GAP):
            return number
        best = max(best, robust)
    return None


def training_flags(epochs: Sequence[Epoch]) -> Mapping[str, str]:
    """Return the text of every flag that the curve of a single-step run raises; other runs raise none."""
    watched = [(epoch.epoch, epoch.monitor) for epoch in epochs if epoch.monitor and "fgsm" in epoch.monitor.counts]
    pgd, fgsm = ([point.counts[of or point.attack].balanced_accuracy for _, point in watched] for of in ("", "fgsm"))
    chance = 1 / len(watched[0][1].attacked.total) if watched else 0.0
    name, found = FLAGS[0], first_loss(pgd, fgsm, chance)
    if found is None:
        name, found = FLAGS[1], first_loss(pgd, None, chance)
    if found is None:
        return {}
    epoch, point = watched[found]
    fell = f"In epoch {epoch} balanced accuracy under {point.attack} fell to {percent(pgd[found])} %, from up to "
    fell += f"{percent(max(pgd[:found]))} % before"
    why = f", while FGSM leaves {percent(fgsm[found])} %: the network resists only single-step attacks"
    remedy = "; take an earlier epoch (--selection best-validation), a smaller eps or stronger noise, or several steps."
    return {name: fell + (why if name == FLAGS[0] else "") + remedy}
