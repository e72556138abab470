"""The training loop: epochs of steps, a curve, checkpoints; a run that is killed at any time can be resumed."""

from __future__ import annotations

import contextlib
import copy
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from taet.distributed import first, rank, unless_one_ends
from taet.models.sync_norm import average_statistics, synchronised
from taet.training.checkpoint import WeightsAbout
from taet.training.curve import WatchedEpoch
from taet.training.drift import drift
from taet.training.environment import keep_freed_memory, on_threads, peak_memory_mb
from taet.training.interruption import interruption
from taet.training.optimizer import set_learning_rate
from taet.training.pauses import Pauses
from taet.training.prepare import TrainingPlan
from taet.training.record import Epoch
from taet.training.result import TrainingResult
from taet.training.schedule import learning_rate
from taet.training.state import State
from taet.training.step import enough_images, examples, training_step
from taet.training.tensorboard import Board

Observer = Callable[[TrainingPlan, State], Mapping[str, object]]
"""Called at the end of every epoch; what it returns is added to the row of the epoch."""

_logger = logging.getLogger(__name__)


def fit(plan: TrainingPlan, state: State, pause: Pauses, observe: Observer | None = None) -> TrainingResult:
    """Train from the current state to the end of the last epoch, and write what the run delivers."""
    training, folder = plan.run.training, pause.folder
    observers = [*([drift] if training.distance_images else []), *([observe] if observe else [])]
    board = Board(folder.tensorboard) if training.tensorboard and rank() == 0 else None
    keep_freed_memory(plan.device)
    with (
        surroundings(plan),
        interruption(pause.asked_to_stop),
        unless_one_ends(f"; {folder.checkpoint} is kept; continue: taet train --resume {folder.path}"),
        contextlib.closing(board) if board else contextlib.nullcontext(),
    ):
        pause.mark = pause.looked_at = time.monotonic()
        while state.epoch < training.epochs:
            train_epoch(plan, state, pause)
            point = watch(plan, state, pause)
            seen = {name: value for one in observers for name, value in one(plan, state).items()}
            row = end_epoch(plan, state, pause, point, seen)
            if board is not None:
                board.write(row)
        return deliver(plan, state, pause)


def train_epoch(plan: TrainingPlan, state: State, pause: Pauses) -> None:
    """Take the steps of the epoch that are left."""
    run, loader, epoch, average = plan.run, plan.loader, state.epoch, state.average
    state.begin_epoch()
    with contextlib.closing(loader.epoch(epoch, state.step)) as batches, enough_images(state):
        for batch in batches:
            set_learning_rate(state.optimizer, learning_rate(run, epoch, state.step, len(loader)))
            state.seed_model(epoch, state.step)
            place = loader.place(state.step)
            loss = training_step(state, batch, state.attack(place, "attack", epoch, state.step))
            state.sums.add(loss, batch.y, total=place[1])
            state.step += 1
            if average is not None and run.training.ema:
                average.update_parameters(state.model)
            pause("training")
    pause.check_finite()
    # A run that was interrupted while measuring the curve comes here again, with this epoch already averaged.
    resolved = plan.resolved
    if average is not None and resolved.averages_epochs and average.n_averaged == epoch - resolved.first_averaged:
        average.update_parameters(state.model)


def watch(plan: TrainingPlan, state: State, pause: Pauses) -> WatchedEpoch | None:
    """Measure the point of the curve for this epoch, if it has one, and keep the best weights."""
    curve, watching = plan.curve, partial(pause, "watching")
    if state.epoch not in curve.epochs:
        return None
    if state.average is not None and state.method.average_decay:
        live = curve.measure(deployed(plan, state, pause, averaged=False), watching).seen
        assert live is not None
        if state.method.admits(state.epoch, live):
            state.average.update_parameters(state.model)
    model = deployed(plan, state, pause)
    found = curve.measure(model, watching)
    if plan.resolved.chooses:
        state.keep_best(found.point.attacked.balanced_accuracy, model.state_dict())
    return found


def end_epoch(
    plan: TrainingPlan, state: State, pause: Pauses, watched: WatchedEpoch | None, seen: Mapping[str, object]
) -> Epoch:
    """Write the row of the epoch and go on to the next one."""
    # Not where the curve is measured, because a run that is interrupted in between measures it again.
    if watched is not None and watched.seen is not None:
        state.method.feedback(state.epoch, watched.seen)
    sums, steps = state.sums, len(plan.loader)
    correct, total, predicted = sums.together()
    row = Epoch.from_json(
        {
            "epoch": state.epoch + 1,
            "stage": state.method.stage,
            "lr": learning_rate(plan.run, state.epoch, steps - 1, steps),
            "loss": {name: value.item() / sums.images for name, value in sums.sums.items()},
            "train": {"correct": correct.tolist(), "total": total.tolist()},
            "predicted": predicted.tolist(),
            "monitor": None if watched is None else watched.point.model_dump(),
            "seconds": round(state.seconds, 3),
            "images_per_second": round(sums.images / max(state.training_seconds, 1e-9), 1),
            "peak_memory_mb": round(peak_memory_mb(plan.device), 1),
            **seen,
        }
    )
    state.mark = first(lambda: pause.folder.append(row.to_json()))
    state.end_epoch(predicted)
    pause.watched = 0
    pause.save()
    accuracies = ", ".join(f"{name} {100 * value:.1f} %" for name, value in row.balanced_accuracies.items())
    pause.show(f"loss {row.loss['total']:.3f} · balanced accuracy: {accuracies}")
    return row


def deliver(plan: TrainingPlan, state: State, pause: Pauses) -> TrainingResult:
    """Write the delivered weights, those of other epochs if they differ, and the mark that the run is done."""
    run, folder = plan.run, pause.folder
    if state.average is not None and state.method.average_decay and not state.average.n_averaged:
        _logger.warning("taet: no epoch passed the gate of the average; the run delivers its last weights")
    last = deployed(plan, state, pause).state_dict(), run.training.epochs - 1
    best = state.best_weights, state.best_epoch
    (delivered, epoch), (left, when) = (last, best) if run.training.selection == "last" else (best, last)
    assert delivered is not None
    assert epoch is not None

    def save(name: str, tensors: Mapping[str, Tensor], of: int) -> None:
        about = WeightsAbout(method=run.method, epoch=of + 1, run_hash=folder.record.run_hash)
        folder.save_weights(name, tensors, about)

    def write() -> tuple[Epoch, ...]:
        save("model", delivered, epoch)
        if left is not None and when is not None and when != epoch:
            save("model-best" if run.training.selection == "last" else "model-last", left, when)
        folder.finish()
        return folder.metrics

    history = tuple(row.to_json() for row in first(write))
    state.model.load_state_dict(delivered)
    return TrainingResult(folder.path, run, state.model.eval(), plan.dataset, history)


def deployed(plan: TrainingPlan, state: State, pause: Pauses, *, averaged: bool = True) -> nn.Module:
    """Copy the model for deployment: with averaged weights if the run uses them, and the method's offset."""
    model = copy.deepcopy(state.model)
    if averaged and state.average is not None and state.average.n_averaged:
        model.load_state_dict(state.average.module.state_dict())
        if plan.resolved.averages_epochs:
            _estimate_statistics(plan, state, pause, model)
    model.get_buffer("offset").copy_(state.method.offset())
    return model


def _estimate_statistics(plan: TrainingPlan, state: State, pause: Pauses, model: nn.Module) -> None:
    """Set the statistics of batch normalisation by one epoch of training examples for `model`.

    Averaged weights have no statistics of their own. The public code of SWA in this field uses clean images; a
    network trained on adversarial images needs the statistics of those.
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
                pause("estimating")

    update_bn(batches(), model)
    if not plan.run.training.sync_bn:
        average_statistics(model)


@contextlib.contextmanager
def surroundings(plan: TrainingPlan) -> Iterator[None]:
    """Compute as the run asks, and restore the caller's random state and number of threads afterwards."""
    if plan.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(plan.device)
    every_gpu = range(torch.cuda.device_count())  # manual_seed reaches every device
    with torch.random.fork_rng(every_gpu), on_threads(plan.threads), synchronised(plan.run.training.sync_bn):
        yield
