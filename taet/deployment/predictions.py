"""Predictions of a model as a plain table."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taet.formatting import plural

DIGITS = 6  # of a probability in rows; `probabilities` has full precision
NO_CLASS = -1
FORMULAS = ("=", "+", "-", "@", "\t", "\r")
"""First characters of cells that a spreadsheet takes for formulas."""


@dataclass(frozen=True, eq=False, repr=False)
class Predictions:
    """Predictions for N images, in the given order."""

    paths: tuple[str, ...]
    """The files, or positions in an array."""
    labels: NDArray[np.int64]
    """(N,): the class of the largest logit; -1 for an image that could not be read."""
    class_names: tuple[str, ...]
    probabilities: NDArray[np.float32]
    """(N, C): softmax of the logits; nan for an image that could not be read."""
    survives: NDArray[np.bool_] | None
    """(N,): whether the class is the same under the attack, False for an unreadable image; None without an attack."""
    errors: tuple[str, ...]
    """Why an image could not be read; empty if it could."""
    attack: str
    """The attack, with its options; empty without one."""

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def unread(self) -> int:
        """How many images could not be read."""
        return sum(map(bool, self.errors))

    def rows(self, top: int = 1) -> list[dict[str, Any]]:
        """Return plain values for each image: path, class, probability; survives after an attack; error if any has one.

        With `top` above 1 the next most likely classes follow as class_2, probability_2, and so on.
        """
        ranked = np.argsort(-self.probabilities, axis=1, kind="stable")[:, :top]
        rows: list[dict[str, Any]] = []
        for number, (path, error) in enumerate(zip(self.paths, self.errors, strict=True)):
            row: dict[str, Any] = {"path": path}
            for place, label in enumerate(ranked[number].tolist(), 1):
                ending = "" if place == 1 else f"_{place}"
                share = round(float(self.probabilities[number, label]), DIGITS)
                row |= {f"class{ending}": self.class_names[label], f"probability{ending}": share}
            if self.survives is not None:
                row["survives"] = bool(self.survives[number])
            if error:
                row = dict.fromkeys(row) | {"path": path}
            if self.unread:
                row["error"] = error or None
            rows.append(row)
        return rows

    def to_csv(self, top: int = 1) -> str:
        """Return the rows as CSV with a header: survives is true or false, and unknown values are empty.

        Text that a spreadsheet would take for a formula is prefixed with ' (OWASP, CSV injection).
        """
        rows, text = self.rows(top), io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(rows[0])
        table.writerows(map(_cell, row.values()) for row in rows)
        return text.getvalue()

    def to_json(self, top: int = 1) -> dict[str, Any]:
        """Return the names of the classes, the attack or None, and the rows, as plain JSON."""
        return {"class_names": list(self.class_names), "attack": self.attack or None, "images": self.rows(top)}

    def __repr__(self) -> str:
        counts = np.bincount(self.labels[self.labels != NO_CLASS], minlength=len(self.class_names))
        found = [f"{self.class_names[label]} {counts[label]}" for label in np.argsort(-counts, kind="stable")]
        named = ", ".join(found[: np.count_nonzero(counts)]) or "no class"
        parts = [f"{plural(len(self), 'image')}: {named}"]
        if self.survives is not None:
            parts.append(f"{int(self.survives.sum())} of {len(self) - self.unread} survive {self.attack}")
        if self.unread:
            parts.append(f"{self.unread} could not be read")
        return "; ".join(parts)


def _cell(value: str | float | None) -> str | float:
    if value is None or isinstance(value, bool):
        return {None: "", True: "true", False: "false"}[value]
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULAS) else value


def joined(parts: Sequence[Predictions]) -> Predictions:
    """Join the predictions of one or more batches."""
    masks = [part.survives for part in parts if part.survives is not None]
    return replace(
        parts[0],
        paths=tuple(path for part in parts for path in part.paths),
        labels=np.concatenate([part.labels for part in parts]),
        probabilities=np.concatenate([part.probabilities for part in parts]),
        survives=np.concatenate(masks) if masks else None,
        errors=tuple(error for part in parts for error in part.errors),
    )
