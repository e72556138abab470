"""Progress of long work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

Progress = Callable[[float, float, str], None]
"""Called as progress(done, total, label). Attacks count passes of an image through the model."""


@dataclass
class Meter:
    """Progress of several pieces of work as one; `begin` starts the next piece, a call reports from inside it."""

    report: Progress | None
    later: float = 0
    """Expected size of all pieces to come."""
    alike: int = 0
    """Number of pieces to come that are expected to be as large as the current one."""
    before: float = 0
    here: float = 0
    ended: bool = False

    def begin(self, later: float = 0, alike: int = 0) -> None:
        """Start the next piece of work; the arguments say what comes after it."""
        self.before, self.here = self.before + self.here, 0
        self.later, self.alike = later, alike

    def __call__(self, done: float, total: float, label: str) -> None:
        """Report progress inside the current piece; the end of everything is reported once."""
        self.here = done
        so_far, whole = self.before + done, self.before + total * (1 + self.alike) + self.later
        again, self.ended = self.ended and so_far >= whole, so_far >= whole
        if self.report is not None and not again:
            self.report(so_far, whole, label)
