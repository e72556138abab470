"""Whether the parts of a card agree: classes, columns and images with the labels."""

from collections.abc import Sequence

from taet.card.column import Column
from taet.card.images import CardImages
from taet.errors import UserError
from taet.metrics.intervals import Ints


def check_classes(labels: Ints, num_classes: int, train_counts: Sequence[int] | None) -> None:
    """Refuse training counts and labels of other classes than those that are named."""
    if train_counts is not None and len(train_counts) != num_classes:
        raise UserError(
            f"data train_class_counts: got {len(train_counts)}; allowed: {num_classes}, one per "
            "class"
        )
    if len(labels) and labels.max() >= num_classes:
        raise UserError(
            f"labels: got {labels.max()}; allowed: 0 to {num_classes - 1}, one per class name"
        )


def check_columns(columns: Sequence[Column], labels: Ints) -> None:
    """Refuse an attack with two columns, and a column that does not agree with the labels."""
    names = [column.name for column in columns]
    if len(set(names)) < len(names):
        raise UserError(f"columns: got {', '.join(names)}; allowed: each attack once")
    for column in columns:
        _check_column(column, labels)


def _check_column(column: Column, labels: Ints) -> None:
    """Refuse a column of other images, or whose mask is not where its predictions are right."""
    for array in (column.predictions, column.correct, *column.parts.values()):
        if array.shape != labels.shape:
            raise UserError(
                f"column '{column.name}': has not one entry for each of {len(labels)} images"
            )
    right = column.predictions == labels
    if (column.correct != right).any():
        raise UserError(
            f"column '{column.name}' correct: does not agree with its predictions and the labels"
        )


def check_images(images: CardImages, columns: Sequence[Column], count: int) -> None:
    """Refuse images of an attack, or of one of `count` test images, that the card does not have."""
    has_clean = any(column.norm is None for column in columns)
    if not has_clean or images.attack not in [column.name for column in columns]:
        raise UserError(
            f"images attack: got '{images.attack}'; allowed: a column of the card, beside clean"
        )
    rows = [image.row for image in images.images]
    if max(rows) >= count:
        raise UserError(f"images row: got {max(rows)}; allowed: 0 to {count - 1}, a test image")
