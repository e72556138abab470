"""The training loop: epochs of steps, a curve, checkpoints; a run that is killed at any time can be resumed."""

from __future__ import annotations

import contextlib
import copy
import itertools
import logging
import shlex
import threading
import time
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from taet import models
from taet.data.augmentation import as_tensor, to_unit
from taet.distributed import global_sum, in_any, on_first, rank, share, unless_one_ends, world_size
from taet.errors import UserError, custom_code, located
from taet.files import Json
from taet.methods.base import Seen
from taet.progress import Progress
from taet.settings import epoch_at, from_json
from taet.training.environment import interruption, keep_freed_memory, peak_memory_mb
from taet.training.folder import BEST, DELIVERED, LAST, RunFolder
from taet.training.prepare import TrainingPlan
from taet.training.record import CurvePoint, Epoch
from taet.training.state import State, learning_rate
from taet.training.step import examples, training_step

LOOK_SECONDS = 0.5  # between two reads of the loss, for the progress line and the check for values that are not finite
QUARTILES = (0.25, 0.5, 0.75)

_logger = logging.getLogger(__name__)


def fit(plan: TrainingPlan, state: State, pause: Pauses) -> None:
    """Train from the current state to the end of the last epoch, and write what the run delivers."""
    folder = pause.folder
    keep_freed_memory(plan.device)
    with (
        plan.surroundings(),
        interruption(pause.asked_to_stop),
        unless_one_ends(f"; {folder.checkpoint} is kept; continue: {resume_call(folder)}"),
    ):
        pause.mark = pause.looked_at = time.monotonic()
        while state.epoch < plan.run.training.epochs:
            train_epoch(plan, state, pause)
            point, seen = watch(plan, state, pause)
            end_epoch(plan, state, pause, point, seen)
        deliver(plan, state, pause)


def train_epoch(plan: TrainingPlan, state: State, pause: Pauses) -> None:
    """Train the remaining steps of the current epoch."""
    run, loader, epoch, average = plan.run, plan.loader, state.epoch, state.average
    state.begin_epoch()
    pause.add_time()
    with contextlib.closing(loader.epoch(epoch, state.step)) as batches:
        for batch in batches:
            for group in state.optimizer.param_groups:
                group["lr"] = learning_rate(run, epoch, state.step, len(loader))
            state.seed_model(epoch, state.step)
            place = loader.place(state.step)
            loss = training_step(state, batch, state.attack(place, "attack", epoch, state.step))
            state.sums.add(loss, batch.y, total=place[1])
            state.step += 1
            if average is not None and run.training.ema:
                average.update_parameters(state.model)
            pause(training=True)
    pause.check_finite()
    # A run that was interrupted while measuring the curve comes here again, with this epoch already averaged.
    since = epoch - epoch_at(run.training.swa, run.training.epochs)
    if average is not None and run.training.swa < 1 and average.n_averaged == since:
        average.update_parameters(state.model)


def watch(plan: TrainingPlan, state: State, pause: Pauses) -> tuple[CurvePoint | None, Seen | None]:
    """Measure the point of the curve for this epoch, if it has one, and keep the best weights."""
    if state.epoch not in plan.curve.epochs:
        return None, None
    if state.average is not None and state.method.average_decay is not None and state.asked < state.epoch:
        _, live = plan.curve.measure(deployed(plan, state, pause, averaged=False), pause)
        assert live is not None
        if state.method.admits(state.epoch, live):
            state.average.update_parameters(state.model)
        state.asked = state.epoch  # a run that is stopped while it measures the curve comes here again
    model = deployed(plan, state, pause)
    point, seen = plan.curve.measure(model, pause)
    if plan.resolved.split == "validation" or plan.run.training.selection == "best-test":  # which leaks test data
        score = point.attacked.balanced_accuracy
        if state.best is None or score > state.best[0]:
            state.best = score, state.epoch, {name: value.cpu() for name, value in model.state_dict().items()}
    return point, seen


def end_epoch(plan: TrainingPlan, state: State, pause: Pauses, point: CurvePoint | None, seen: Seen | None) -> None:
    """Write the row of the epoch and go on to the next one."""
    distances = drift(plan, state)
    pause.add_time()
    # Here and not in `watch`, because a run that is interrupted in between measures the curve again.
    if seen is not None:
        state.method.feedback(state.epoch, seen)
    sums, steps = state.sums, len(plan.loader)
    correct, total, predicted = global_sum(sums.counts)
    row = from_json(
        Epoch,
        {
            "epoch": state.epoch + 1,
            "stage": state.method.stage,
            "lr": learning_rate(plan.run, state.epoch, steps - 1, steps),
            "loss": {name: value.item() / sums.images for name, value in sums.sums.items()},
            "train": {"correct": correct.tolist(), "total": total.tolist()},
            "predicted": predicted.tolist(),
            "monitor": None if point is None else point.model_dump(),
            "seconds": round(state.seconds, 3),
            "images_per_second": round(sums.images / max(state.training_seconds, 1e-9), 1),
            "peak_memory_mb": round(peak_memory_mb(plan.device), 1),
            **distances,
        },
    )
    state.rows.append(row.model_dump(mode="json"))
    state.end_epoch(predicted)
    pause.save()
    on_first(lambda: pause.folder.write_metrics(state.rows))
    counts = {"training": row.trained, **({} if point is None else point.counts)}
    accuracies = ", ".join(f"{name} {100 * count.balanced_accuracy:.1f} %" for name, count in counts.items() if count)
    pause.show(f"loss {row.loss['total']:.3f} · balanced accuracy: {accuracies}")


def drift(plan: TrainingPlan, state: State) -> Json:
    """Return mean and quartiles per class of the L2 distance between the examples of this and of the previous epoch.

    The examples are those of the first `distance_images` of every class, not augmented, with the same start noise in
    every epoch; distances are in image units (REAT, figure 3). Empty in the first epoch; 0 for a class without images.
    """
    split, size, per_class = plan.dataset.train, plan.run.training.batch_size, plan.run.training.distance_images
    if not per_class:
        return {}
    classes = range(len(split.class_names))
    rows = np.concatenate([np.flatnonzero(split.labels == label)[:per_class] for label in classes])
    x = to_unit(as_tensor(split.images[rows]).to(plan.device))
    y = torch.from_numpy(split.labels[rows]).to(plan.device)
    x_adv = torch.zeros_like(x)
    for number, start in enumerate(range(0, len(x_adv), size)):
        total = min(size, len(x_adv) - start)
        own = share(total, rank(), world_size())
        part = slice(start + own.start, start + own.stop)
        attack = state.attack((own.start, total), "drift", number)
        x_adv[part] = examples(state, state.model, x[part], y[part], attack)
    x_adv = global_sum(x_adv)  # zero for images of other processes
    previous, state.examples = state.examples, x_adv
    if previous is None:
        return {}
    distances = (x_adv - previous).flatten(1).norm(dim=1).double()
    sums = distances.new_zeros(len(classes)).index_add(0, y, distances)
    by_class = [distances[y == label].cpu().numpy() for label in classes]
    return {
        "distance": (sums / y.bincount(minlength=len(classes)).clamp(min=1)).tolist(),
        "distance_quartiles": [np.quantile(d, QUARTILES).tolist() if d.size else [0.0] * 3 for d in by_class],
    }


def deliver(plan: TrainingPlan, state: State, pause: Pauses) -> None:
    """Write the delivered weights, those of other epochs if they differ, and the mark that the run is done."""
    run, folder = plan.run, pause.folder
    if state.average is not None and state.method.average_decay is not None and not state.average.n_averaged:
        _logger.warning("taet: no epoch passed the gate of the average; the run delivers its last weights")
    last = run.training.epochs - 1, deployed(plan, state, pause).state_dict()
    best = None if state.best is None else state.best[1:]
    delivered, other = (last, {BEST: best}) if run.training.selection == "last" else (best or last, {LAST: last})
    files = {DELIVERED: delivered} | {name: weights for name, weights in other.items() if weights is not None}

    def write() -> None:
        for name, (epoch, weights) in files.items():
            folder.save_weights(name, weights, epoch + 1)
        folder.finish()

    on_first(write)
    state.model.load_state_dict(delivered[1])


def deployed(plan: TrainingPlan, state: State, pause: Pauses, *, averaged: bool = True) -> nn.Module:
    """Copy the model for deployment: with averaged weights if the run uses them, and the method's offset."""
    model = copy.deepcopy(state.model)
    if averaged and state.average is not None and state.average.n_averaged:
        model.load_state_dict(state.average.module.state_dict())
        if plan.run.training.swa < 1 and not getattr(model, "still", False):
            _estimate_statistics(plan, state, pause, model)
    model.get_buffer("offset").copy_(state.method.offset())
    return model


def _estimate_statistics(plan: TrainingPlan, state: State, pause: Pauses, model: nn.Module) -> None:
    """Estimate the batch normalisation statistics of `model` on one epoch of training examples.

    Averaged weights have no statistics of their own. The public code of SWA in this field uses clean images; a network
    trained on adversarial images needs statistics of adversarial images.
    """
    attacked, loader = copy.deepcopy(model), plan.loader
    epoch = min(state.epoch, plan.run.training.epochs - 1)
    state.method.enter(epoch)
    state.seed_model(epoch, "swa")

    def batches() -> Iterator[Tensor]:
        with contextlib.closing(loader.epoch(epoch)) as loaded:
            for step, batch in enumerate(loaded):
                attack = state.attack(loader.place(step), "swa", epoch, step)
                yield examples(state, attacked, batch.x, batch.y, attack)
                pause()

    update_bn(batches(), model)


def resume_call(folder: RunFolder) -> str:
    """Return the command, or the call in Python, that continues a run."""
    record, path = folder.record, str(folder.path)
    given = {"model": record.model_given, "dataset": record.data.arrays}
    if any(given.values()):  # a command cannot name what is in memory
        return f"taet.resume({', '.join([repr(path), *(f'{name}=...' for name in given if given[name])])})"
    return shlex.join(["taet", "train", "--resume", path, *models.consent(record.run.model.name)])


class Pauses:
    """Called between two batches, in all processes: measures time, shows progress, saves the state, obeys Ctrl-C."""

    def __init__(self, plan: TrainingPlan, state: State, folder: RunFolder, progress: Progress | None = None) -> None:
        self.plan, self.state, self.folder = plan, state, folder
        self.progress = progress if rank() == 0 else None
        self.asked_to_stop = threading.Event()
        self.mark = self.looked_at = self.saved_at = time.monotonic()
        self.passes = [0, *itertools.accumulate(map(plan.passes, state.method.task.stages))]  # per image, by epoch

    def __call__(self, *, training: bool = False) -> None:
        """Pause after a training batch or before a curve batch; on a stop signal save and raise KeyboardInterrupt."""
        now = self.add_time(training)
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
            raise self.stopped()

    def stopped(self) -> KeyboardInterrupt:
        """Return the KeyboardInterrupt that says where progress is saved and how to continue."""
        return KeyboardInterrupt(f"progress is saved in {self.folder.path}; continue with: {resume_call(self.folder)}")

    def add_time(self, training: bool = False) -> float:
        """Add the time since the last call to the epoch's and, if `training`, its training time; return the time."""
        now = time.monotonic()
        self.state.seconds += now - self.mark
        self.state.training_seconds += now - self.mark if training else 0.0
        self.mark = now
        return now

    def check_finite(self) -> None:
        if what := self.state.not_finite():
            place = f"in epoch {self.state.epoch + 1}, step {self.state.step}; stopped"
            kept, lr = f"{self.folder.checkpoint.name} keeps the last good state", self.plan.run.training.lr
            raise UserError(f"{what} is not finite {place}; {kept}; a lower --lr than {lr:g} is the usual remedy")

    def save(self) -> None:
        """Write the checkpoint; if values are not finite, stop instead and keep the previous file."""
        self.check_finite()
        values = self.state.state_dict()
        on_first(lambda: self.folder.save_checkpoint(values))
        self.saved_at = time.monotonic()

    def restore(self) -> None:
        """Load the checkpoint if there is one, and rewrite the metrics as they were when it was saved."""
        folder, state = self.folder, self.state
        if on_first(folder.checkpoint.exists):
            saved = folder.load_checkpoint()
            with located(str(folder.checkpoint)), custom_code("it does not fit this run"):
                state.load_state_dict(saved)
            state.model.notes = folder.record.model_notes
        if state.rows:
            on_first(lambda: folder.write_metrics(state.rows))

    def show(self, ended: str = "") -> None:
        """Show the share of the work that is done; `ended` describes an epoch that has just ended, on its own line."""
        if self.progress is None:
            return
        state, epochs = self.state, self.plan.run.training.epochs
        if ended:
            label = f"epoch {state.epoch}/{epochs} · {ended}\n"
        else:
            label = f"epoch {min(state.epoch + 1, epochs)}/{epochs} · {state.method.stage}"
            if state.sums.images:
                label += f" · loss {state.sums.sums['total'].item() / state.sums.images:.3f}"
        begun, after = (self.passes[min(epoch, epochs)] for epoch in (state.epoch, state.epoch + 1))
        self.progress(begun + (after - begun) * state.step / len(self.plan.loader), self.passes[-1], label)
