"""The training loop: epochs of steps, a curve, checkpoints; a run that is killed at any time can be
resumed."""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
import time
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from taet import protocols
from taet.data.augmentation import as_tensor, to_unit
from taet.distributed import (
    any_rank,
    batch_slice,
    global_sum,
    rank,
    reporting_peer_exit,
    run_on_rank_zero,
    world_size,
)
from taet.errors import UserError, prefix_errors, wrapping_user_code
from taet.files import Json
from taet.formatting import join_words
from taet.machine import interruption, keep_freed_memory, peak_memory_mb
from taet.methods.base import ClassFeedback
from taet.network import copied
from taet.progress import Progress
from taet.run.folder import BEST, DELIVERED, LAST, RunFolder
from taet.run.loading import resume_call
from taet.run.record import Counts, CurvePoint, Epoch
from taet.settings import Run
from taet.settings.schema import epoch_at, from_json, option
from taet.training.prepare import TrainingPlan
from taet.training.schedule import learning_rate
from taet.training.state import BestEpoch, State
from taet.training.step import examples, training_step

# between two reads of the loss, for the progress line and the check for values that are not finite
LOOK_SECONDS = 0.5
QUARTILES = (0.25, 0.5, 0.75)

_logger = logging.getLogger(__name__)


class Snapshot(NamedTuple):
    """Weights of a run after an epoch."""

    epoch: int
    """From 1."""
    weights: Mapping[str, Tensor]


def fit(plan: TrainingPlan, state: State, monitor: TrainingMonitor) -> None:
    """Train from the current state to the end of the last epoch, and write what the run
    delivers."""
    folder = monitor.folder
    keep_freed_memory(plan.device)
    with (
        plan.surroundings(),
        interruption(monitor.asked_to_stop),
        reporting_peer_exit(f"; {folder.checkpoint} is kept; continue: {resume_call(folder)}"),
    ):
        monitor.mark = monitor.looked_at = time.monotonic()
        while state.epoch < plan.run.training.epochs:
            train_epoch(plan, state, monitor)
            point, seen = measure_curve(plan, state, monitor)
            end_epoch(plan, state, monitor, point, seen)
        deliver(plan, state, monitor)


def train_epoch(plan: TrainingPlan, state: State, monitor: TrainingMonitor) -> None:
    """Train the remaining steps of the current epoch."""
    run, loader, epoch, average = plan.run, plan.loader, state.epoch, state.average
    state.begin_epoch()
    monitor.add_time()
    with contextlib.closing(loader.epoch(epoch, state.step)) as batches:
        for batch in batches:
            for group in state.optimizer.param_groups:
                group["lr"] = learning_rate(run, epoch, state.step, len(loader))
            state.seed_model(epoch, state.step)
            shard = loader.shard(state.step)
            loss = training_step(state, batch, state.attack(shard, "attack", epoch, state.step))
            state.sums.add(loss, batch.y, total=shard.total)
            state.step += 1
            if average is not None and run.training.ema:
                average.update_parameters(state.model)
            monitor.between_batches(training=True)
    monitor.check_finite()
    # A run that was interrupted while measuring the curve comes here again, with this epoch already
    # averaged.
    since = epoch - epoch_at(run.training.swa, run.training.epochs)
    if average is not None and run.training.swa < 1 and average.n_averaged == since:
        average.update_parameters(state.model)


def measure_curve(
    plan: TrainingPlan, state: State, monitor: TrainingMonitor
) -> tuple[CurvePoint | None, ClassFeedback | None]:
    """Measure the point of the curve for this epoch, if it has one, and keep the best weights."""
    if state.epoch not in plan.curve.epochs:
        return None, None
    if (
        state.average is not None
        and state.method.average_decay is not None
        and state.last_offered_epoch < state.epoch
    ):
        _, live = plan.curve.measure(
            deployed(plan, state, monitor, averaged=False), monitor.between_batches
        )
        assert live is not None
        if state.method.accepts_epoch(state.epoch, live):
            state.average.update_parameters(state.model)
        # a run that is stopped while it measures the curve comes here again
        state.last_offered_epoch = state.epoch
    model = deployed(plan, state, monitor)
    point, seen = plan.curve.measure(model, monitor.between_batches)
    # which leaks test data
    if plan.resolved.split == "validation" or plan.run.training.selection == "best-test":
        score = point.attacked.balanced_accuracy
        if state.best is None or score > state.best.score:
            weights = {name: value.cpu() for name, value in model.state_dict().items()}
            state.best = BestEpoch(score, state.epoch, weights)
    return point, seen


def epoch_row(
    plan: TrainingPlan, state: State, counts: Tensor, point: CurvePoint | None, distances: Json
) -> Epoch:
    """Return the row of metrics.jsonl of the epoch that is trained; `counts` (3, C): correct, all
    and predicted examples of each class, over all processes."""
    sums, steps = state.sums, len(plan.loader)
    correct, total, predicted = counts
    values = {
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
    }
    return from_json(Epoch, values)


def end_epoch(
    plan: TrainingPlan,
    state: State,
    monitor: TrainingMonitor,
    point: CurvePoint | None,
    seen: ClassFeedback | None,
) -> None:
    """Write the row of the epoch and go on to the next one."""
    distances = drift(plan, state)
    monitor.add_time()
    # Not in `measure_curve`: a run that is interrupted in between measures the curve again.
    if seen is not None:
        state.method.feedback(state.epoch, seen)
    counts = global_sum(state.sums.counts)
    row = epoch_row(plan, state, counts, point, distances)
    state.rows.append(row.model_dump(mode="json"))
    state.end_epoch(counts[2])
    monitor.save()
    run_on_rank_zero(lambda: monitor.folder.write_metrics(state.rows))
    accuracies = []
    if row.trained:
        accuracies.append(_balanced({"training": row.trained}))
    if point is not None:
        accuracies.append(f"{point.split}: {_balanced(point.counts)}")
    monitor.show(f"loss {row.loss['total']:.3f} · balanced accuracy: {'; '.join(accuracies)}")


def _balanced(counts: Mapping[str, Counts]) -> str:
    """Return the balanced accuracy of each of these, by name."""
    return ", ".join(f"{name} {100 * of.balanced_accuracy:.1f} %" for name, of in counts.items())


def drift(plan: TrainingPlan, state: State) -> Json:
    """Return how far the adversarial examples moved since the previous epoch, per class.

    Mean and quartiles of the L2 distance, in image units (REAT, figure 3). The examples are those
    of the first `distance_images` of every class, not augmented, with the same start noise in every
    epoch. Empty in the first epoch; 0 for a class without images.
    """
    split, per_class = plan.dataset.train, plan.run.training.distance_images
    if not per_class:
        return {}
    num_classes = len(split.class_names)
    rows = np.concatenate(
        [np.flatnonzero(split.labels == label)[:per_class] for label in range(num_classes)]
    )
    x = to_unit(as_tensor(split.images[rows]).to(plan.device))
    y = torch.from_numpy(split.labels[rows]).to(plan.device)
    previous, state.examples = state.examples, _all_examples(state, x, y)
    if previous is None:
        return {}
    distances = (state.examples - previous).flatten(1).norm(dim=1).double()
    sums = distances.new_zeros(num_classes).index_add(0, y, distances)
    images = y.bincount(minlength=num_classes).clamp(min=1)
    quartiles = []
    for label in range(num_classes):
        of_class = distances[y == label].cpu().numpy()
        found = np.quantile(of_class, QUARTILES).tolist() if of_class.size else [0.0] * 3
        quartiles.append(found)
    return {"distance": (sums / images).tolist(), "distance_quartiles": quartiles}


def _all_examples(state: State, x: Tensor, y: Tensor) -> Tensor:
    """Return the training inputs for x (N, C, H, W); each process makes its share of every
    batch."""
    batch_size = state.run.training.batch_size
    x_adv = torch.zeros_like(x)
    for number, start in enumerate(range(0, len(x), batch_size)):
        total = min(batch_size, len(x) - start)
        own = batch_slice(total, rank(), world_size())
        rows = slice(start + own.start, start + own.stop)
        attack = state.attack((own.start, total), "drift", number)
        x_adv[rows] = examples(state, state.model, x[rows], y[rows], attack)
    return global_sum(x_adv)  # zero for images of other processes


def deliver(plan: TrainingPlan, state: State, monitor: TrainingMonitor) -> None:
    """Write the delivered weights, those of other epochs if they differ, and the mark that the run
    is done."""
    run, folder = plan.run, monitor.folder
    if (
        state.average is not None
        and state.method.average_decay is not None
        and not state.average.n_averaged
    ):
        _logger.warning(
            "taet: no epoch passed the gate of the average; the run delivers its last weights"
        )
    last = Snapshot(run.training.epochs, deployed(plan, state, monitor).state_dict())
    best = None if state.best is None else Snapshot(state.best.epoch + 1, state.best.weights)
    if run.training.selection == "last":
        files = {DELIVERED: last}
        if best is not None:
            files[BEST] = best
    else:
        files = {DELIVERED: best or last, LAST: last}

    def write() -> None:
        for name, snapshot in files.items():
            folder.save_weights(name, snapshot.weights, snapshot.epoch)
        folder.finish()

    run_on_rank_zero(write)
    state.model.load_state_dict(files[DELIVERED].weights)


def deployed(
    plan: TrainingPlan, state: State, monitor: TrainingMonitor, *, averaged: bool = True
) -> nn.Module:
    """Copy the model for deployment: with averaged weights if the run uses them, and the method's
    offset."""
    model = copied(state.model)
    if averaged and state.average is not None and state.average.n_averaged:
        model.load_state_dict(state.average.module.state_dict())
        if plan.run.training.swa < 1 and not getattr(model, "still", False):
            _estimate_statistics(plan, state, monitor, model)
    model.get_buffer("offset").copy_(state.method.offset())
    return model


def _estimate_statistics(
    plan: TrainingPlan, state: State, monitor: TrainingMonitor, model: nn.Module
) -> None:
    """Estimate the batch normalisation statistics of `model` on one epoch of training examples.

    Averaged weights have no statistics of their own. The public code of SWA in this field uses
    clean images; a network trained on adversarial images needs statistics of adversarial images.
    """
    attacked, loader = copied(model), plan.loader
    epoch = min(state.epoch, plan.run.training.epochs - 1)
    state.method.enter(epoch)
    state.seed_model(epoch, "swa")

    def batches() -> Iterator[Tensor]:
        with contextlib.closing(loader.epoch(epoch)) as loaded:
            for step, batch in enumerate(loaded):
                attack = state.attack(loader.shard(step), "swa", epoch, step)
                yield examples(state, attacked, batch.x, batch.y, attack)
                monitor.between_batches()

    update_bn(batches(), model)


def remedy_of_divergence(run: Run) -> str:
    """Return what to change in the settings of a run that diverged.

    These are the settings that are larger than in its protocol, else the learning rate.
    """
    usual = protocols.start(run.protocol, run.method).training
    larger = []
    for name in ("lr", "weight_decay", "momentum", "awp"):
        chosen, allowed = getattr(run.training, name), getattr(usual, name)
        if chosen > allowed:
            larger.append(f"--{option(f'training.{name}')} {allowed:g} in place of {chosen:g}")
    if larger:
        return f"with {join_words(larger)}, as in protocol {run.protocol}"
    return f"with a lower --lr than {run.training.lr:g}"


class TrainingMonitor:
    """What happens between two batches, in all processes: time, progress, checkpoints, Ctrl-C."""

    def __init__(
        self, plan: TrainingPlan, state: State, folder: RunFolder, progress: Progress | None = None
    ) -> None:
        self.plan, self.state, self.folder = plan, state, folder
        self.progress = progress if rank() == 0 else None
        self.asked_to_stop = threading.Event()
        self.mark = self.looked_at = self.saved_at = time.monotonic()
        # per image, by epoch
        self.passes = [0, *itertools.accumulate(map(plan.passes, state.method.task.stages))]

    def between_batches(self, *, training: bool = False) -> None:
        """Pause after a training batch or before a curve batch; on a stop signal save and raise
        KeyboardInterrupt."""
        now = self.add_time(training)
        look, stop, save = any_rank(
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
        return KeyboardInterrupt(
            f"progress is saved in {self.folder.path}; continue with: {resume_call(self.folder)}"
        )

    def add_time(self, training: bool = False) -> float:
        """Add the time since the last call to the epoch's and, if `training`, its training time;
        return the time."""
        now = time.monotonic()
        self.state.seconds += now - self.mark
        self.state.training_seconds += now - self.mark if training else 0.0
        self.mark = now
        return now

    def check_finite(self) -> None:
        if what := self.state.not_finite():
            if rank() == 0:
                self.folder.mark_diverged(what, self.state.epoch, self.state.step)
            place = f"epoch {self.state.epoch + 1}, step {self.state.step}"
            raise UserError(
                f"{what} is not finite in {place}; stopped. A resumed run would meet it again: "
                f"start a new one, {remedy_of_divergence(self.plan.run)}"
            )

    def save(self) -> None:
        """Write the checkpoint; if values are not finite, stop instead and keep the previous
        file."""
        self.check_finite()
        values = self.state.state_dict()
        run_on_rank_zero(lambda: self.folder.save_checkpoint(values))
        self.saved_at = time.monotonic()

    def restore(self) -> None:
        """Load the checkpoint if there is one, and rewrite the metrics as they were when it was
        saved."""
        folder, state = self.folder, self.state
        if run_on_rank_zero(folder.checkpoint.exists):
            saved = folder.load_checkpoint()
            with (
                prefix_errors(str(folder.checkpoint)),
                wrapping_user_code("it does not fit this run"),
            ):
                state.load_state_dict(saved)
                if what := state.not_finite():
                    raise UserError(f"{what} is not finite")
            state.model.notes = folder.record.model_notes
        run_on_rank_zero(folder.unmark_diverged)
        if state.rows:
            run_on_rank_zero(lambda: folder.write_metrics(state.rows))

    def show(self, ended: str = "") -> None:
        """Show the share of the work that is done; `ended` describes an epoch that has just ended,
        on its own line."""
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
        self.progress(
            begun + (after - begun) * state.step / len(self.plan.loader), self.passes[-1], label
        )
