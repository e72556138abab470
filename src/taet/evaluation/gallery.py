"""The images that an evaluation keeps with its card: for head, body and tail, one that survives the
strongest attack and one that breaks."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from taet.attacks.autoattack import AutoAttack
from taet.attacks.examples import Example, Examples, stored_examples
from taet.card.card import Card
from taet.card.column import Column
from taet.card.images import CardImage, CardImages, ImagePixels, Sheet, sheet_of
from taet.evaluation.runner import Runner
from taet.metrics.accuracies import Ints, class_groups

GROUPS = ("head", "body", "tail")
DRAWN_CHANNELS = (1, 3)


class KeptImages(NamedTuple):
    """What a card says of its images, and their file."""

    images: CardImages
    sheet: Sheet


class Attempt(NamedTuple):
    """What was made of an image, and by which attack; "" for the strongest."""

    example: Example
    made_by: str


def groups_of(labels: Ints, train_counts: Sequence[int] | None) -> Ints:
    """Return the group of each image, (N,): 0, 1, 2 for head, body and tail; 0 for all where the
    classes have no rank."""
    groups = np.zeros_like(labels)
    if train_counts is None or len({*train_counts}) == 1:
        return groups
    members = class_groups(train_counts)
    for number, name in enumerate(GROUPS):
        groups[np.isin(labels, members[name])] = number
    return groups


def strongest(card: Card) -> Column | None:
    """Return the strongest attack of a card in a ball, that of its threat if there is one: a
    complete suite, else the one with the lowest balanced accuracy, of equal ones that of the most
    passes."""
    return min(_in_the_ball(card), key=lambda column: _strength(card, column), default=None)


def _in_the_ball(card: Card) -> list[Column]:
    """Return the attacks in the ball of the card's threat, or those in any ball if it has none."""
    in_a_ball = [column for column in card.columns if column.ordinary and column.eps is not None]
    ball_of_threat = card.threat["norm"], card.threat["eps"]
    in_that_ball = [column for column in in_a_ball if column.ball == ball_of_threat]
    return in_that_ball or in_a_ball


def _strength(card: Card, column: Column) -> tuple[bool, float, int]:
    """Return the sort key of an attack, the strongest first."""
    attack = column.attack
    complete = isinstance(attack, AutoAttack) and attack.version == "standard"
    passes = column.forwards + column.backwards
    return not complete, card.summary_of(column).balanced, -passes


def gallery_of(card: Card, runner: Runner) -> KeptImages | None:
    """Return the images of a card's strongest attack, if this evaluation made them; None if not."""
    column, clean = strongest(card), card.clean
    if column is None or clean is None or column.name not in runner.examples:
        return None
    assert runner.groups is not None  # without them no attack keeps examples
    examples = Examples(runner.groups, card.labels, clean.predictions)
    made = {example.row: Attempt(example, "") for example in runner.examples[column.name]}
    with runner.frozen_and_exact():
        for row in examples.survivors(column.predictions):
            if row not in made or not _is_changed(made[row].example, runner):
                made[row] = _attempt(card, column, runner, examples, row)
        rows = np.array(sorted(made, key=lambda row: (examples.groups[row], row)), np.int64)
        if not len(rows):
            return None
        x, probabilities = _clean(runner, rows, clean.predictions)
    attempts = [made[row] for row in rows]
    attacked = torch.from_numpy(np.stack([attempt.example.x_adv for attempt in attempts]))
    sheet = sheet_of(_pixels(x), _pixels(attacked))
    images = tuple(
        CardImage(
            row=attempt.example.row,
            clean_probability=probability,
            probability=attempt.example.probability,
            made_by=attempt.made_by,
        )
        for attempt, probability in zip(attempts, probabilities, strict=True)
    )
    about = CardImages(attack=column.name, sha256=sheet.sha256, every=sheet.every, images=images)
    return KeptImages(about, sheet)


def _is_changed(example: Example, runner: Runner) -> bool:
    x, _ = runner.batch(np.array([example.row]))
    return not np.array_equal(x.cpu().numpy()[0], example.x_adv)


def _attempt(card: Card, column: Column, runner: Runner, examples: Examples, row: int) -> Attempt:
    """Return what another attack in the ball made of an image that the strongest left as it is.

    It is the strongest that changes every image. Its random draws are those of the image, so this
    is what it made of it in the evaluation. Without such an attack the image stays as it is.
    """
    rows = np.array([row])
    others = [
        other
        for other in _in_the_ball(card)
        if other is not column and other.attack.batch_independent
        if not other.attack.not_transferable and other.correct[row]
    ]
    for other in sorted(others, key=lambda other: _strength(card, other)):
        own = Examples(examples.groups, examples.labels, examples.natural)
        unit = runner.measure(other.attack, own, rows)
        if unit["predictions"][0] == card.labels[row]:
            (example,) = stored_examples([unit])
            return Attempt(example, other.name)
    x, probabilities = _clean(runner, rows, examples.natural)
    return Attempt(Example(row, x[0].cpu().numpy(), probabilities[0]), "")


def _clean(runner: Runner, rows: Ints, predictions: Ints) -> tuple[Tensor, list[float]]:
    """Return images as they are, and how probable the model finds their predicted classes."""
    x, _ = runner.batch(rows)
    with torch.no_grad():
        probabilities = runner.model.exact_logits(x).softmax(1).cpu()
    chosen = probabilities.gather(1, torch.from_numpy(predictions[rows])[:, None])
    return x, chosen[:, 0].tolist()


def _pixels(x: Tensor) -> ImagePixels:
    """Return images in [0, 1], (N, C, H, W), as uint8 (N, H, W, C)."""
    pixels = (255 * x).round().to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).cpu().numpy()
