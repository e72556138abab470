"""What happens between two batches: the time is taken, progress is shown, the state is saved, and Ctrl-C is obeyed."""

from __future__ import annotations

import shlex
import threading
import time
from typing import Literal

from taet import models
from taet.distributed import first, in_any, rank, world_size
from taet.errors import UserError, custom_code, located
from taet.progress import Progress
from taet.training.folder import RunFolder
from taet.training.prepare import TrainingPlan
from taet.training.state import State

LOOK_SECONDS = 0.5  # between two reads of the loss, for the progress line and the check for values that are not finite


class Pauses:
    """The pauses of one run, in `folder`. Clocks and signals differ between processes; all act if one of them must."""

    def __init__(self, plan: TrainingPlan, state: State, folder: RunFolder, progress: Progress | None = None) -> None:
        self.plan, self.state, self.folder = plan, state, folder
        self.progress = progress if rank() == 0 else None
        self.work = plan.work
        self.watched = 0
        """Batches of the current point of the curve, of all processes."""
        self.asked_to_stop = threading.Event()
        self.mark = self.looked_at = self.saved_at = time.monotonic()

    def __call__(self, doing: Literal["training", "watching", "estimating"]) -> None:
        """Pause after a batch that was spent on this; raise KeyboardInterrupt, with all saved, if the user asked."""
        now, state = time.monotonic(), self.state
        state.seconds += now - self.mark
        state.training_seconds += now - self.mark if doing == "training" else 0.0
        self.mark = now
        self.watched += world_size() if doing == "watching" else 0
        look, stop, save = in_any(
            now - self.looked_at > LOOK_SECONDS,
            self.asked_to_stop.is_set(),
            now - self.saved_at > 60 * self.plan.run.training.save_minutes,
        )
        if look:
            self.looked_at = now
            self.check_finite()
            self.show()
        if stop or save:
            self.save()
        if stop:
            consent = models.consent(self.plan.run.model.name)
            command = shlex.join(["taet", "train", "--resume", str(self.folder.path), *consent])
            raise KeyboardInterrupt(f"progress is saved in {self.folder.path}; continue with: {command}")

    def check_finite(self) -> None:
        """Refuse to go on with a loss or a weight that is not finite."""
        if what := self.state.not_finite():
            raise UserError(
                f"{what} is not finite in epoch {self.state.epoch + 1}, step {self.state.step}; stopped; "
                f"{self.folder.checkpoint.name} keeps the last good state; a lower --lr than "
                f"{self.plan.run.training.lr:g} is the usual remedy"
            )

    def save(self) -> None:
        """Write the checkpoint; if values are not finite, stop instead and keep the previous file."""
        self.check_finite()
        values = {"run_hash": self.folder.record.run_hash, "images": self.plan.hashes, **self.state.state_dict()}
        first(lambda: self.folder.save_checkpoint(values))
        self.saved_at = time.monotonic()

    def restore(self) -> None:
        """Load the checkpoint, if there is one, and truncate the metrics to their length at that time.

        A checkpoint that does not fit this run raises a UserError before anything is written.
        """
        folder, state = self.folder, self.state
        if first(folder.checkpoint.exists):
            saved = folder.load_checkpoint(folder.record.run_hash)
            with located(str(folder.checkpoint)), custom_code("it does not fit this run"):
                if "images" not in saved:
                    raise UserError("another version of taet wrote it; start a new run")
                if saved["images"] != self.plan.hashes:
                    raise UserError("it was written on other images; nothing was changed")
                state.load_state_dict(saved)
            state.model.notes = folder.record.model_notes
        first(lambda: folder.cut_metrics(state.mark))

    def show(self, ended: str = "") -> None:
        """Show progress; `ended` describes an epoch that has just ended and is printed on its own line."""
        if self.progress is None:
            return
        state, epochs = self.state, self.plan.run.training.epochs
        trained = state.step / len(self.plan.loader)
        done = self.work.done(state.epoch, trained, self.watched / self.plan.curve.batches if trained == 1 else 0)
        if ended:
            self.progress(done, self.work.total, f"epoch {state.epoch}/{epochs} · {ended}\n")
            return
        label = [f"epoch {min(state.epoch + 1, epochs)}/{epochs}", state.method.stage]
        if state.sums.images:
            label.append(f"loss {state.sums.sums['total'].item() / state.sums.images:.3f}")
        self.progress(done, self.work.total, " · ".join(label))
