"""The training loop: epochs of steps, a curve, checkpoints; a run that is killed at any time can be resumed."""

from __future__ import annotations

import contextlib
import copy
import functools
import logging
import math
import shlex
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, TypedDict

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from taet import models
from taet.attacks.weighting import generation_weighting
from taet.data import DataFacts, Dataset, load
from taet.data.extra import read_extra
from taet.data.loader import Batch, Loader
from taet.distributed import copy_first, first, in_any, in_turn, rank, unless_one_ends, world_size
from taet.errors import UserError, custom_code, located
from taet.fields import NonNegative
from taet.models import memory_layout
from taet.models.sync_norm import average_statistics, synchronised
from taet.progress import Progress, reporting_to
from taet.settings import Run
from taet.training import checkpoint_parts
from taet.training.averaging import EMA_WARMUP, WeightAverage, ema_decay
from taet.training.checkpoint import WeightsAbout
from taet.training.checkpoint_parts import Part
from taet.training.curve import TrainingCurve, WatchedEpoch
from taet.training.decisive_settings import run_hash
from taet.training.drift import Drift
from taet.training.environment import keep_freed_memory, on_threads, peak_memory_mb, resolve_device
from taet.training.epoch_sums import EpochSums
from taet.training.estimate import work_of
from taet.training.folder import MetricsMark, RunFolder
from taet.training.graphs import Graphs
from taet.training.interruption import interruption
from taet.training.optimizer import build_optimizer, set_learning_rate
from taet.training.record import Epoch, MetricsRow, RunRecord
from taet.training.resolve import resolve
from taet.training.result import TrainingResult
from taet.training.schedule import learning_rate
from taet.training.setup import attack_view, build_model, check_processes, describe
from taet.training.speed import settle
from taet.training.step import Steps
from taet.training.tensorboard import Board

_logger = logging.getLogger(__name__)

LOOK_SECONDS = 0.5  # between two reads of the loss, for the progress line and the check for values that are not finite


class Spent(TypedDict):
    """Seconds of the current epoch."""

    training: NonNegative
    all: NonNegative


class Trainer:
    """State and loop of one run.

    With `begun` the weights will be restored, so the file of pretrained weights is not read again.
    """

    def __init__(
        self,
        run: Run,
        folder: Path,
        *,
        model: nn.Module | None,
        dataset: Dataset | None,
        progress: Progress | None,
        begun: bool = False,
    ) -> None:
        training = run.training
        self.folder, self.progress = RunFolder(folder), progress if rank() == 0 else None
        self.device = resolve_device(training.device)
        self.given = {"model_given": model is not None, "arrays": dataset is not None}
        with reporting_to(self.progress):
            self.dataset = dataset if dataset is not None else in_turn(lambda: load(run.data))
        facts = DataFacts.of(self.dataset)
        resolved = functools.partial(resolve, run, facts, processes=world_size(), arrays=dataset is not None)
        self.extra = None
        if resolved().mixture is not None:
            with reporting_to(self.progress):
                self.extra = in_turn(lambda: read_extra(run.data, self.dataset))
        self.resolved = resolved(extra_counts=None if self.extra is None else self.extra.split.class_counts.tolist())
        self.method = self.resolved.method.to(self.device)
        self.loader = Loader(
            self.dataset.train,
            training,
            seed=run.seed,
            mirror=self.dataset.mirror,
            device=self.device,
            part=rank(),
            parts=world_size(),
            extra=self.extra,
            mixture=self.resolved.mixture,
        )
        self.model = build_model(self.resolved, self.dataset, model, self.device, None if begun else run.model.weights)
        if training.channels_last:
            self.model.notes += memory_layout.guard(self.model, self.method)
        self.choices = first(lambda: settle(training, self.model, self.dataset.image_shape, self.device))
        values = {name: made.value for name, made in self.choices.items()}
        self.threads = training.threads or values.get("training.threads") or torch.get_num_threads()
        self.resolved = self.resolved.at(values.get("training.precision", training.precision))
        self.run = self.resolved.run
        self.run_hash = run_hash(self.run)
        smallest = min(end - begin for begin, end in self.loader.bounds)
        check_processes(self.run, self.device, smallest, self.model, self.method, self.hashes().values())
        copy_first(self.model.state_dict().values())  # processes may have different initial weights
        self.optimizer = build_optimizer(self.model, training)
        self.view = attack_view(self.model, self.run, self.dataset.image_shape)
        captured = training.capture and self.device.type == "cuda" and world_size() == 1
        self.graphs = Graphs() if captured else None
        averaged = bool(training.ema or self.method.average_decay) or self.resolved.averages_epochs
        self.average = WeightAverage(self.model) if averaged else None
        self.drift = Drift(self.dataset.train, training.distance_images, self.device)
        self.curve = TrainingCurve(self.resolved, self.dataset.splits[self.resolved.split], self.device)
        self.stages = self.method.task.stages
        self.work = work_of(self.run, self.stages, self.loader.per_epoch, self.curve.epochs, len(self.curve.split))
        self.board = Board(self.folder.tensorboard) if training.tensorboard and rank() == 0 else None
        # State; every part of it is named in `parts`.
        self.epoch, self.step = 0, 0
        self.seconds = {"training": 0.0, "all": 0.0}  # of the current epoch
        self.epoch_sums = EpochSums.empty(self.dataset.num_classes, self.device)
        self.predicted = self.method.exposure.clone()
        weighting = generation_weighting(run.threat.weighting, self.method.exposure, self.predicted)
        self.steps = Steps(self.run, self.device, weighting)
        self.metrics_bytes, self.metrics_sha256 = MetricsMark()
        # Not saved.
        self.watched_batches = 0
        self.asked_to_stop = threading.Event()
        self.mark = self.looked_at = self.saved_at = time.monotonic()

    def description(self, command: str) -> RunRecord:
        """Return the content of run.json; `command` is the call that started the run."""
        return describe(
            self.resolved, self.dataset, self.extra, self.model, self.threads, self.device, command, **self.given
        )

    @property
    def parts(self) -> dict[str, Part]:
        """The entries of a checkpoint."""
        return {
            "splits": Part(self.hashes, self._check_splits),
            "model": Part(self.model.state_dict, self._load_model),
            "method": checkpoint_parts.of(self.method),
            "method_optimizers": checkpoint_parts.each(self.method.optimizers),
            "optimizer": checkpoint_parts.optimizer(self.optimizer),
            "epoch": checkpoint_parts.field(self, "epoch", Annotated[int, Field(ge=0, le=self.run.training.epochs)]),
            "step": checkpoint_parts.field(self, "step", Annotated[int, Field(ge=0, le=len(self.loader))]),
            "running": checkpoint_parts.of(self.epoch_sums),
            "predicted": checkpoint_parts.in_place("predicted", self.predicted),
            "best_score": checkpoint_parts.attribute(self.curve, "best_score", _check_score),
            "best_epoch": checkpoint_parts.field(self.curve, "best_epoch", Annotated[int, Field(ge=-1)]),
            "best_weights": checkpoint_parts.weights(self.curve, "best_weights", self.model),
            "average": checkpoint_parts.of(self.average),
            "drift": checkpoint_parts.of(self.drift),
            "weights": checkpoint_parts.in_place("weights", self.steps.weighting.weights),
            "metrics_bytes": checkpoint_parts.field(self, "metrics_bytes", Annotated[int, Field(ge=0)]),
            "metrics_sha256": checkpoint_parts.field(self, "metrics_sha256", str),
            "seconds": checkpoint_parts.field(self, "seconds", Spent),
        }

    def save(self) -> None:
        """Write the checkpoint; if values are not finite, stop instead and keep the previous file."""
        self._check_finite()
        values = {"run_hash": self.run_hash} | {name: part.save() for name, part in self.parts.items()}
        first(lambda: self.folder.save_checkpoint(values))
        self.saved_at = time.monotonic()

    def restore(self) -> None:
        """Load the checkpoint, and truncate the metrics to their length at that time.

        A part that does not fit this run raises a UserError before anything is written.
        """
        values = {"metrics_sha256": ""} | self.folder.load_checkpoint(self.run_hash)  # absent in older checkpoints
        if missing := sorted(self.parts.keys() - values.keys()):
            raise UserError(
                f"{self.folder.checkpoint} lacks {missing[0]}: another version of taet wrote it; start a new run"
            )
        for name, part in self.parts.items():
            with located(str(self.folder.checkpoint)), custom_code(f"{name} does not fit this run"):
                part.load(values[name])
        first(lambda: self.folder.cut_metrics(MetricsMark(self.metrics_bytes, self.metrics_sha256)))

    def hashes(self) -> dict[str, str]:
        """Return the SHA-256 of the images of every split, and of the extra images."""
        extra = {} if self.extra is None else {"extra": self.extra.split}
        return {name: split.sha256 for name, split in (*self.dataset.splits.items(), *extra.items())}

    def _check_splits(self, recorded: dict[str, str]) -> None:
        if recorded != self.hashes():
            raise UserError("it was written on other images; nothing was changed")

    def _load_model(self, values: dict[str, Tensor]) -> None:
        with custom_code(f"the model is not the one that {self.folder.path} was started with"):
            checkpoint_parts.check_form("model", values, self.model.state_dict())
            self.model.load_state_dict(values)

    def _check_finite(self) -> None:
        sums = self.epoch_sums.sums
        for name in sorted(sums, key=lambda part: part == "total"):  # name a part rather than their sum
            if not math.isfinite(sums[name].item()):
                self._stop_not_finite("the loss" if name == "total" else f"the part {name} of the loss")
        if not all(torch.isfinite(p).all() for p in (*self.model.parameters(), *self.method.parameters())):
            self._stop_not_finite("a weight")

    def _stop_not_finite(self, what: str) -> None:
        raise UserError(
            f"{what} is not finite in epoch {self.epoch + 1}, step {self.step}; stopped; "
            f"{self.folder.checkpoint.name} keeps the last good state; a lower --lr than {self.run.training.lr:g} is "
            "the usual remedy"
        )

    def fit(self) -> TrainingResult:
        """Train from the current state to the end of the last epoch."""
        self.looked_at = self.mark = time.monotonic()
        keep_freed_memory(self.device)
        with (
            _global_state_kept(self.device, self.threads),
            interruption(self.asked_to_stop),
            unless_one_ends(f"; {self.folder.checkpoint} is kept; continue: taet train --resume {self.folder.path}"),
            contextlib.nullcontext() if self.board is None else contextlib.closing(self.board),
            synchronised(self.run.training.sync_bn),
        ):
            while self.epoch < self.run.training.epochs:
                self._train_epoch()
                self._end_epoch(self._watch(), self._measure_drift())
            return self._finish()

    def _train_epoch(self) -> None:
        run, epoch, steps = self.run, self.epoch, len(self.loader)
        self.method.enter(epoch)
        if self.step == 0:
            self._rebalance()
            self.method.start_epoch(epoch, self.predicted)
        with contextlib.closing(self.loader.epoch(epoch, self.step)) as batches:
            for batch in batches:
                set_learning_rate(self.optimizer, learning_rate(run, epoch, self.step, steps))
                self.steps.seed_model(epoch, self.step)
                number, place = epoch * steps + self.step, self.loader.place(self.step)
                attack = self.steps.attack(place, "attack", epoch, self.step)
                own = (self.model, self.method, self.optimizer)
                loss = self.steps.take(*own, batch, attack, epoch, number, self.view, self.graphs)
                self.epoch_sums.add(loss, batch.y, total=place[1])
                self.step += 1
                if self.average is not None and run.training.ema:
                    warmup = round(EMA_WARMUP * run.training.epochs * steps)
                    self.average.add(self.model, ema_decay(number, warmup, run.training.ema))
                self._pause("training")
        self._check_finite()
        # A run that was interrupted while measuring the curve comes here again, with this epoch already averaged.
        average, resolved = self.average, self.resolved
        if average is not None and resolved.averages_epochs and average.models == epoch - resolved.first_averaged:
            average.add_equally(self.model)

    def _rebalance(self) -> None:
        """Set the attack's weights to the predictions of the last epoch, in place for captured steps."""
        counts = self.method.exposure
        weights, _ = generation_weighting(self.run.threat.weighting, counts, self.predicted.to(counts.dtype))
        if weights is not None and self.steps.weighting.weights is not None:
            self.steps.weighting.weights.copy_(weights)

    def _measure_drift(self) -> list[float] | None:
        """Distance per class between the examples of this and of the previous epoch, if the run records it."""
        return self.drift.measure(
            lambda number, place, x, y: self.steps.examples(self.model, self.method, x, y, place, "drift", number),
            self.run.training.batch_size,
        )

    def _pause(self, doing: str) -> None:
        """Between two batches: measure time, show progress, save if due, and stop if the user asked for it.

        Clocks and signals differ between processes, so all processes act if it is due in any of them.
        """
        now = time.monotonic()
        self.seconds["all"] += now - self.mark
        self.seconds["training"] += now - self.mark if doing == "training" else 0.0
        self.mark = now
        self.watched_batches += world_size() if doing == "watching" else 0
        look, stop, save = in_any(
            now - self.looked_at > LOOK_SECONDS,
            self.asked_to_stop.is_set(),
            now - self.saved_at > 60 * self.run.training.save_minutes,
        )
        if look:
            self.looked_at = now
            self._check_finite()
            self._show()
        if stop or save:
            self.save()
        if stop:
            command = shlex.join(
                ["taet", "train", "--resume", str(self.folder.path), *models.consent(self.run.model.name)]
            )
            raise KeyboardInterrupt(f"progress is saved in {self.folder.path}; continue with: {command}")

    def _watch(self) -> WatchedEpoch | None:
        """Measure the point of the curve for this epoch, if it has one."""
        if self.epoch not in self.curve.epochs:
            return None
        pause = functools.partial(self._pause, "watching")
        if self.average is not None and self.method.average_decay:
            live = self.curve.look(self._deployed(averaged=False), pause).seen
            assert live is not None
            if self.method.admits(self.epoch, live):
                self.average.add_admitted(self.model, self.method.average_decay)
        return self.curve.measure(self._deployed(), self.epoch, pause)

    def _end_epoch(self, watched: WatchedEpoch | None, distance: list[float] | None) -> None:
        sums, steps = self.epoch_sums, len(self.loader)
        # Not where the curve is measured, because a run that is interrupted in between measures it again.
        if watched is not None and watched.seen is not None:
            self.method.feedback(self.epoch, watched.seen)
        correct, total, predicted = sums.together()
        row = Epoch.from_json(
            {
                "epoch": self.epoch + 1,
                "stage": self.method.stage,
                "lr": learning_rate(self.run, self.epoch, steps - 1, steps),  # of its last step
                "loss": {name: value.item() / sums.images for name, value in sums.sums.items()},
                "train": {"correct": correct.tolist(), "total": total.tolist()},
                "predicted": predicted.tolist(),
                "distance": distance,
                "distance_quartiles": self.drift.quartiles,
                "monitor": None if watched is None else watched.row,
                "seconds": round(self.seconds["all"], 3),
                "images_per_second": round(sums.images / max(self.seconds["training"], 1e-9), 1),
                "peak_memory_mb": round(peak_memory_mb(self.device), 1),
            }
        )
        self.metrics_bytes, self.metrics_sha256 = first(lambda: self.folder.append(row.to_json()))
        if self.board is not None:
            self.board.write(row)
        self.predicted = predicted.to(self.predicted.dtype)
        self.epoch_sums, self.watched_batches = EpochSums.empty(self.dataset.num_classes, self.device), 0
        self.epoch, self.step, self.seconds = self.epoch + 1, 0, {"training": 0.0, "all": 0.0}
        self.save()
        accuracies = ", ".join(f"{name} {100 * value:.1f} %" for name, value in row.balanced_accuracies.items())
        self._show(f"loss {row.loss['total']:.3f} · balanced accuracy: {accuracies}")

    def _finish(self) -> TrainingResult:
        """Write the delivered weights, those of other epochs if they differ, and the mark that the run is done."""
        if self.average is not None and self.method.average_decay and not self.average.models:
            _logger.warning("taet: no epoch passed the gate of the average; the run delivers its last weights")
        last, best = self.run.training.epochs - 1, self.curve.best_epoch
        weights = {"last": (self._deployed().state_dict(), last), "best": (self.curve.best_weights, best)}
        chosen, other = ("last", "best") if self.run.training.selection == "last" else ("best", "last")
        delivered, epoch = weights[chosen]
        assert delivered is not None

        def write() -> tuple[MetricsRow, ...]:
            self._save_weights("model", delivered, epoch)
            left, when = weights[other]
            if left is not None and when != epoch:
                self._save_weights(f"model-{other}", left, when)
            self.folder.finish()
            return tuple(epoch.to_json() for epoch in self.folder.metrics)

        history = first(write)
        self.model.load_state_dict(delivered)
        return TrainingResult(self.folder.path, self.run, self.model.eval(), self.dataset, history)

    def _save_weights(self, name: str, tensors: dict[str, Tensor], epoch: int) -> None:
        self.folder.save_weights(
            name, tensors, WeightsAbout(method=self.run.method, epoch=epoch + 1, run_hash=self.run_hash)
        )

    def _deployed(self, *, averaged: bool = True) -> nn.Module:
        """Copy the model for deployment: with averaged weights if the run uses them, and the method's offset."""
        model = copy.deepcopy(self.model)
        if averaged and self.average is not None and self.average.models:
            model.load_state_dict(self.average.tensors)
            if self.resolved.averages_epochs:
                self._estimate_statistics(model)
        model.get_buffer("offset").copy_(self.method.offset())
        return model

    def _estimate_statistics(self, model: nn.Module) -> None:
        """Set the statistics of batch normalisation by one epoch of training examples for `model`.

        Averaged weights have no statistics of their own. The public code of SWA in this field uses clean images; a
        network trained on adversarial images needs the statistics of those.
        """
        attacked = copy.deepcopy(model)
        epoch = min(self.epoch, self.run.training.epochs - 1)
        self.method.enter(epoch)
        self.steps.seed_model(epoch, "swa")

        def batches() -> Iterator[Tensor]:
            with contextlib.closing(self.loader.epoch(epoch)) as loaded:
                for step, batch in enumerate(loaded):
                    place = self.loader.place(step)
                    yield self.steps.examples(attacked, self.method, batch.x, batch.y, place, "swa", epoch, step)
                    self._pause("estimating")

        update_bn(batches(), model)
        if not self.run.training.sync_bn:
            average_statistics(model)

    def expected_seconds(self) -> float:
        """Return the estimated duration of the whole run, measured by a step of every stage on copies."""
        with (
            _global_state_kept(self.device, self.threads),
            synchronised(self.run.training.sync_bn),
        ):
            with contextlib.closing(self.loader.epoch(0)) as batches:
                batch = next(batches)
            return self.work.seconds(self.stages, lambda epoch: self._pace(epoch, batch))

    def _pace(self, epoch: int, batch: Batch) -> float:
        """Seconds of one pass of one image in a step of `epoch`: of the second step, as the first includes setup."""
        model, method = copy.deepcopy((self.model, self.method))
        optimizer = build_optimizer(model, self.run.training)
        view = attack_view(model, self.run, self.dataset.image_shape)
        method.enter(epoch)
        method.start_epoch(epoch, self.predicted)
        place = self.loader.place(0)
        for number in range(2):
            begun = time.monotonic()
            attack = self.steps.attack(place, "expected", epoch, number)
            loss = self.steps.take(model, method, optimizer, batch, attack, epoch, number, view)
            loss.total.item()  # waits for the device
        return (time.monotonic() - begun) * self.loader.per_epoch / place[1] / self.work.training[epoch]

    def _show(self, ended: str = "") -> None:
        """Show progress; `ended` describes an epoch that has just ended and is printed on its own line."""
        if self.progress is None:
            return
        epochs, sums = self.run.training.epochs, self.epoch_sums
        trained = self.step / len(self.loader)
        done = self.work.done(self.epoch, trained, self.watched_batches / self.curve.batches if trained == 1 else 0)
        if ended:
            self.progress(done, self.work.total, f"epoch {self.epoch}/{epochs} · {ended}\n")
            return
        label = [f"epoch {min(self.epoch + 1, epochs)}/{epochs}", self.method.stage]
        if sums.images:
            label.append(f"loss {sums.sums['total'].item() / sums.images:.3f}")
        self.progress(done, self.work.total, " · ".join(label))


def _check_score(value: object) -> None:
    """Refuse an invalid score; before the first point of the curve it is -inf."""
    if not isinstance(value, float) or math.isnan(value):
        raise TypeError("not a number")


@contextlib.contextmanager
def _global_state_kept(device: torch.device, threads: int) -> Iterator[None]:
    """Restore the caller's random state and number of threads afterwards."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    every_gpu = range(torch.cuda.device_count())  # manual_seed reaches every device
    with torch.random.fork_rng(every_gpu), on_threads(threads):
        yield
