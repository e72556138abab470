"""A few images of each class under attack, saved for the report."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from taet.attacks.spec import AttackSpec
from taet.evaluation.card import ResultCard
from taet.evaluation.column import Column, Ints
from taet.evaluation.images import as_unit
from taet.evaluation.runner import Runner
from taet.files import write_atomically

MOST_EXAMPLES = 24  # images that are saved


def save_examples(path: Path, card: ResultCard, runner: Runner, attacks: Sequence[AttackSpec]) -> None:
    """Save a few images of each class under the PGD with most steps, preferring those that it breaks."""
    chains = [attack for attack in attacks if attack.ascent_steps and attack.norm == "linf"]
    chains = [attack for attack in chains if any(column.name == attack.name for column in card.columns)]
    if not chains:
        return
    attack = max(chains, key=lambda chain: chain.ascent_steps)
    if _steps(path, card) > attack.ascent_steps:
        return  # the file holds those of a stronger attack, which is still in the card
    clean = card.column("clean")
    rows = _example_rows(card.labels, clean, card.column(attack.name), card.num_classes)
    with runner.still():
        _, x_adv = runner.perturb(attack, rows)
        predictions = runner.answers(attack, x_adv, rows).argmax(1)
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        images=np.rint(255 * as_unit(runner.images[rows]).permute(0, 2, 3, 1).numpy()).astype(np.uint8),
        adversarial=x_adv.permute(0, 2, 3, 1).cpu().numpy(),
        labels=card.labels[rows],
        clean_predictions=clean.predictions[rows],
        adversarial_predictions=predictions.cpu().numpy(),
        attack=np.array(attack.name),
        eps=np.array(attack.eps),
    )
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, buffer.getvalue())


def _steps(path: Path, card: ResultCard) -> int:
    """Return the steps of the attack that made the images of a file; 0 if the card has no such column."""
    try:
        with path.open("rb") as file, np.load(file) as stored:
            name = str(stored["attack"])
    except Exception:  # the file is missing or damaged
        return 0
    return next((column.attack.ascent_steps for column in card.columns if column.name == name), 0)


def _example_rows(labels: Ints, clean: Column, attacked: Column, num_classes: int) -> Ints:
    """Choose up to `MOST_EXAMPLES` images, equally many of each class, in the order of the classes."""
    interest = clean.correct.astype(int) + (clean.correct & ~attacked.correct)
    rows: list[int] = []
    for label in range(num_classes):
        members = np.flatnonzero(labels == label)
        best = members[np.argsort(-interest[members], kind="stable")]
        rows.extend(best[: max(1, MOST_EXAMPLES // num_classes)])
    return np.asarray(rows[:MOST_EXAMPLES], dtype=np.int64)
