"""The one training loop: epochs of steps, a curve, checkpoints, and a run folder that any kill leaves resumable."""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from taet import config, methods, metrics, models
from taet.attacks.ball import frozen
from taet.attacks.noise import Source
from taet.attacks.progress import Progress
from taet.attacks.weighting import generation_weighting
from taet.config import Run
from taet.data import Dataset, Split, load
from taet.data.loader import Batch, Loader
from taet.distributed import copy_first, first, gather, in_any, in_turn, joined, rank, unless_one_ends, world_size
from taet.errors import UserError
from taet.files import file_sha256
from taet.methods import Attack, Method, Task
from taet.methods.base import Loss
from taet.models import Adapter, Classifier, CosineHead, memory_layout
from taet.models.sync_norm import average_statistics, normalisations, synchronised
from taet.models.view import View, make_view
from taet.randomness import derive_seed, generator
from taet.training import checkpoint
from taet.training.averaging import EMA_WARMUP, WeightAverage, ema_decay
from taet.training.checkpoint import WeightsAbout
from taet.training.decisive import run_hash
from taet.training.drift import Drift
from taet.training.environment import environment, keep_freed_memory, peak_memory_mb, resolve_device
from taet.training.finished import check_given
from taet.training.folder import RunFolder
from taet.training.graphs import Graphs
from taet.training.interruption import interruption
from taet.training.monitor import monitor
from taet.training.optimizer import build_optimizer, set_learning_rate
from taet.training.record import DataRecord, RunRecord, SelectionRecord, SplitRecord, StageRecord
from taet.training.running import Running
from taet.training.schedule import learning_rate, milestone_epochs
from taet.training.step import training_step
from taet.training.tensorboard import board
from taet.training.weight_perturbation import buffers_kept

LOOK_SECONDS = (
    0.5  # how often the loss is read for the progress line and checked: often enough to watch, too rare to cost
)


@dataclass(frozen=True, repr=False)
class TrainingResult:
    """A finished run: its folder, the model that it delivers (eval mode), the data, and one row per epoch."""

    folder: Path
    run: Run
    model: nn.Module
    dataset: Dataset
    history: tuple[dict[str, Any], ...]

    def __repr__(self) -> str:
        last: dict[str, Any] = next((row["monitor"] for row in reversed(self.history) if row["monitor"]), {})
        epochs = f"{len(self.history)} epoch{'' if len(self.history) == 1 else 's'}"
        lines = [f"{self.run.method} on {self.dataset.name}: {epochs}, {self.folder}"]
        for name, counts in last.items():
            if isinstance(counts, dict):
                balanced = metrics.balanced_accuracy(counts["correct"], counts["total"])
                lines.append(
                    f"  {name:8} balanced accuracy {100 * balanced:.2f} % ({last['split']}, last point of the curve)"
                )
        return "\n".join(lines)


def default_folder(run: Run) -> Path:
    """Folder that a run without `out` takes."""
    kind, _, path = run.data.name.rpartition(":")
    data = Path(path).resolve().stem if kind or "/" in path else path
    ratio = "" if run.data.imbalance_ratio is None else f"-ir{run.data.imbalance_ratio:g}"
    return Path("runs") / f"{run.method}-{data}{ratio}-{run.model.name}-{run.protocol}-seed{run.seed}"


def train(
    run: Run,
    *,
    out: str | Path | None = None,
    model: nn.Module | None = None,
    dataset: Dataset | None = None,
    progress: Progress | None = None,
    command: str = "",
    announce: Callable[[Trainer], None] | None = None,
) -> TrainingResult:
    """Train `run` from the start into the new folder `out` and return the result.

    `model` (images (N, C, H, W) in [0, 1] -> logits) and `dataset` replace what the run names; `command` says in the
    run's record how it was called; `announce` is called once, before the first step. A folder that exists is refused;
    KeyboardInterrupt leaves a checkpoint that `resume` continues bit-identically.

    Processes that torchrun started, which all make this call, share every batch; the first one alone writes.
    """
    folder = Path(out) if out is not None else default_folder(run)
    with joined(resolve_device(run.training.device).type):
        trainer = Trainer(run, folder, model=model, dataset=dataset, progress=progress)
        first(lambda: _begin(trainer, command))
        trainer.save()  # the first weights too are on the disk before they move, whoever made them
        if announce is not None:
            announce(trainer)
        return trainer.fit()


def _begin(trainer: Trainer, command: str) -> None:
    """Make the folder of a new run, with its record."""
    folder = trainer.folder
    if folder.is_taken:
        if not trainer.is_that_of(folder):
            raise UserError(f"{folder.path} exists and is not this run; choose another --out")
        way = (
            f"it is finished, see taet evaluate {folder.path}"
            if folder.is_done
            else f"continue it with --resume {folder.path}"
        )
        raise UserError(f"{folder.path} exists: {way}, or choose another --out")
    folder.create(trainer.description(command))


def resume(
    folder: str | Path,
    *,
    model: nn.Module | None = None,
    dataset: Dataset | None = None,
    progress: Progress | None = None,
) -> TrainingResult:
    """Continue the run in `folder` where its last checkpoint left it, or return it if it is finished.

    Processes that torchrun started share the work, in any number, whatever that of the run so far.
    """
    place = RunFolder(Path(folder))
    record = place.record
    check_given(place.path, record, "model", model)
    check_given(place.path, record, "dataset", dataset)
    run = config.override(record.run, {"training.threads": record.threads})
    with joined(resolve_device(run.training.device).type):
        begun = first(place.checkpoint.exists)
        if model is None:
            models.refuse_code_in(place.path, run.model.name)
            if run.model.weights is not None and not begun:
                _check_pretrained(Path(run.model.weights), place.path, str(record.pretrained_sha256))
        trainer = Trainer(run, place.path, model=model, dataset=dataset, progress=progress, begun=begun)
        for split, recorded in record.data.splits.items():
            found = trainer.dataset.splits.get(split)
            if found is None or found.sha256 != recorded.sha256:
                raise UserError(
                    f"the {split} images are not those that {place.path} was started with; nothing was changed"
                )
        if begun:
            trainer.restore()
            trainer.model.notes = record.model_notes
        else:  # killed before the first one: from the start again
            first(lambda: place.cut_metrics(0))
        return trainer.fit()


def _check_pretrained(path: Path, folder: Path, recorded: str) -> None:
    """Refuse to start again from another file of pretrained weights than the run's, whose SHA-256 is `recorded`."""
    found = file_sha256(path) if path.is_file() else ""
    if found != recorded:
        got = f"SHA-256 {found[:12]}" if found else "no file"
        raise UserError(f"weights {path}: got {got}; {folder} was started with SHA-256 {recorded[:12]}")


class Trainer:
    """State and loop of one run.

    Of a run that has `begun`, the weights are about to be restored: the file of pretrained ones is not read again.
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
        self.run, self.folder, self.progress = run, RunFolder(folder), progress if rank() == 0 else None
        self.device = resolve_device(run.training.device)
        self.given = {"model": model is not None, "dataset": dataset is not None}
        self.dataset = dataset if dataset is not None else in_turn(lambda: load(run.data))
        self.threads = run.training.threads or torch.get_num_threads()
        self.split_name, self.watched = self._watched_split()
        self.loader = Loader(
            self.dataset.train,
            batch_size=run.training.batch_size,
            seed=run.seed,
            augment=run.training.augment,
            mirror=self.dataset.mirror,
            channels_last=run.training.channels_last,
            device=self.device,
            sampling=run.training.sampling,
            workers=run.training.workers,
            part=rank(),
            parts=world_size(),
        )
        task = Task(
            class_counts=tuple(int(n) for n in self.dataset.class_counts),
            image_shape=self.dataset.image_shape,
            epochs=run.training.epochs,
            steps_per_epoch=len(self.loader),
            milestones=milestone_epochs(run),
            outer=run.outer,
            weighting=run.threat.weighting,
            seed=run.seed,
        )
        self.method = methods.build(run.method, run.settings, task).to(self.device)
        self.run = config.override(run, {"settings": self.method.config})
        self.model = self._model(model, None if begun else run.model.weights)
        if run.training.channels_last:
            self.model.notes += memory_layout.guard(self.model, self.method)
        self._check_processes()
        copy_first(self.model.state_dict().values())  # a module from memory may have been drawn anew in each
        self.optimizer = build_optimizer(self.model, run.training)
        self.view = self._view(self.model)
        captured = run.training.capture and self.device.type == "cuda" and world_size() == 1
        self.graphs = Graphs() if captured else None
        averaged = bool(run.training.ema) or run.training.swa < 1
        if run.training.swa < 1 and round(run.training.swa * run.training.epochs) >= run.training.epochs:
            raise UserError(
                f"swa: got {run.training.swa:g}; that leaves none of {run.training.epochs} epochs to average"
            )
        self.average = WeightAverage(self.model) if averaged else None
        self.drift = Drift(self.dataset.train, run.training.distance_images, self.device)
        self.epoch, self.step = 0, 0
        self.seconds = {"training": 0.0, "all": 0.0}  # of the epoch under way
        self.saved_at = time.monotonic()
        self.running = Running.empty(self.dataset.num_classes, self.device)
        self.predicted = self.method.class_counts.clone()
        self.weighting = generation_weighting(run.threat.weighting, self.method.class_counts, self.predicted)
        self.best_score, self.best_epoch = -math.inf, -1
        self.best_weights: dict[str, torch.Tensor] | None = None
        self.metrics_bytes = 0
        self.watched_batches = 0
        self.run_hash = run_hash(self.run)

    def _check_processes(self) -> None:
        """Refuse what several processes cannot share."""
        processes, training = world_size(), self.run.training
        if processes == 1:
            return
        if self.device.index is not None:
            raise UserError(f"device: got {self.device} for {processes} processes; allowed: auto, cuda or cpu")
        if training.batch_size < processes:
            got = f"got {training.batch_size} for {processes} processes"
            raise UserError(f"batch size: {got}; allowed: {processes} or more, an image for each")
        # Batch normalisation of a share of its own needs two images; that of all processes takes any.
        smallest = min(end - begin for begin, end in self.loader.bounds)
        if not training.sync_bn and normalisations(self.model, self.method) and smallest < 2 * processes:
            got = f"got batches of {smallest} images for {processes} processes"
            raise UserError(f"sync bn: {got}; allowed without it: {2 * processes} or more, two images for each")
        if len(set(gather(tuple(split.sha256 for split in self.dataset.splits.values())))) > 1:
            raise UserError("data: got other images in one process than in another; allowed: the same in all")

    def is_that_of(self, folder: RunFolder) -> bool:
        """Does `folder` hold this very run, whatever the machine?"""
        try:
            return run_hash(folder.record.run) == self.run_hash
        except UserError:
            return False

    def _watched_split(self) -> tuple[str, Split]:
        rule = self.run.training.selection
        if rule != "last" and not self.run.training.monitor_every:
            raise UserError(f"selection {rule} needs the curve; monitor every: got 0; allowed: 1 or more")
        if self.dataset.validation is not None and rule != "best-test":
            return "validation", self.dataset.validation
        if rule == "best-validation":
            remedy = "Dataset.from_arrays(validation=...)" if self.given["dataset"] else "--data.validation 0.1"
            raise UserError(f"selection best-validation needs a validation split: add {remedy}")
        return "test", self.dataset.test

    def _model(self, given: nn.Module | None, weights: str | None) -> Classifier | Adapter:
        classes, shape = self.dataset.num_classes, self.dataset.image_shape
        model: Classifier | Adapter
        if given is None:
            chosen = self.run.model
            built = models.build(
                chosen.name,
                classes,
                shape,
                seed=self.run.seed,
                head=self.method.task.head,
                stem=chosen.stem,
                weights=weights,
            )
            # A callable of the user's decides itself what its network does with images in [0, 1].
            if isinstance(built, Classifier) and chosen.normalize == "data" and not models.is_own(chosen.name):
                built.normalize_by(*self.dataset.train.channel_statistics())
            self._check_needs(built)
            model = built
        else:
            try:
                with torch.no_grad(), frozen(given.to(self.device)):
                    output = given(torch.zeros(2, *shape, device=self.device))
            except RuntimeError as error:
                raise UserError(
                    f"model: cannot take images of shape {shape}: {' '.join(str(error).split())}"
                ) from error
            if getattr(output, "shape", None) != (2, classes):
                got = tuple(output.shape) if isinstance(output, torch.Tensor) else f"a {type(output).__name__}"
                raise UserError(f"model: got {got} for 2 images; allowed: (2, {classes}), one logit per class")
            model = models.adapted(given, classes)
            self._check_needs(model)
        model.to(self.device)
        return model.to(memory_format=torch.channels_last) if self.run.training.channels_last else model

    def _view(self, model: nn.Module) -> View | None:
        """What the attack of a step runs on: cheaper than `model` and the same, but for batch statistics."""
        if self.run.threat.bn_mode == "train":
            return None
        dtype = torch.bfloat16 if self.run.training.precision == "bf16" else None
        return make_view(model, self.dataset.image_shape, dtype)

    def _check_needs(self, model: nn.Module) -> None:
        """Refuse a module from memory that lacks the features or the head that the method works with."""
        head, name = self.method.task.head, self.run.method
        if self.method.uses_features and not isinstance(model, Classifier):
            raise UserError(
                f"model: {name} reads its features, which a network has whose logits are those of a last linear layer; "
                "give such a network, or a taet.models.Classifier(body, head, ...)"
            )
        if head.kind == "linear":
            return
        found = model.head if isinstance(model, Classifier) else None
        if not (isinstance(found, CosineHead) and (found.scale, found.gamma) == (head.scale, head.gamma)):
            raise UserError(
                f"model: {name} needs a cosine head of scale {head.scale:g} and gamma {head.gamma:g}; give a "
                "taet.models.Classifier with a taet.models.CosineHead"
            )

    def description(self, command: str) -> RunRecord:
        """What run.json holds; `command` says how the run was called."""
        dataset, run = self.dataset, self.run
        leak = self.split_name == "test" and run.training.selection == "best-test"
        return RunRecord(
            schema=checkpoint.SCHEMA,
            settings=config.to_json(run),
            method_title=self.method.title,
            reference=self.method.reference,
            deviations=self.method.deviations,
            stages=self._stages(),
            selection=SelectionRecord(rule=run.training.selection, split=self.split_name, leak=leak),
            data=DataRecord(
                name=dataset.name,
                class_names=dataset.class_names,
                num_classes=dataset.num_classes,
                image_shape=dataset.image_shape,
                resized=dataset.resized,
                imbalance_ratio=dataset.imbalance_ratio,
                notes=dataset.notes,
                arrays=self.given["dataset"],
                splits={name: SplitRecord(**split.manifest()) for name, split in dataset.splits.items()},
            ),
            model_given=self.given["model"],
            head=self.method.task.head,
            parameters=sum(p.numel() for p in self.model.parameters()),
            model_notes=self.model.notes,
            pretrained_sha256=None if run.model.weights is None else file_sha256(Path(run.model.weights)),
            threads=self.threads,
            processes=world_size(),
            **environment(self.device),
            command=command,
        )

    def _stages(self) -> tuple[StageRecord, ...]:
        names = [self.method.task.stages[epoch] for epoch in range(self.run.training.epochs)]
        changes = [e for e, name in enumerate(names) if e == 0 or names[e - 1] != name]
        return tuple(StageRecord(stage=names[e], from_epoch=e + 1) for e in changes)

    # -- state ---------------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write checkpoint.pt; a run whose numbers are not finite stops instead and keeps the file it has."""
        self._check_finite()
        state = {
            "run_hash": self.run_hash,
            "splits": {name: split.sha256 for name, split in self.dataset.splits.items()},
            "model": self.model.state_dict(),
            "method": self.method.state_dict(),
            "method_optimizers": {name: o.state_dict() for name, o in self.method.optimizers.items()},
            "optimizer": self.optimizer.state_dict(),
            "epoch": self.epoch,
            "step": self.step,
            "running": vars(self.running.together()),
            "predicted": self.predicted,
            "best_score": self.best_score,
            "best_epoch": self.best_epoch,
            "best_weights": self.best_weights,
            "average": self.average and self.average.state(),
            "drift": self.drift.before,
            "weights": self.weighting.weights,
            "metrics_bytes": self.metrics_bytes,
            "seconds": self.seconds,
        }
        first(lambda: self.folder.save_checkpoint(state))
        self.saved_at = time.monotonic()

    def restore(self) -> None:
        """Take the state of checkpoint.pt and cut metrics.jsonl to what it knew."""
        state = self.folder.load_checkpoint(self.run_hash)
        if state["splits"] != {name: split.sha256 for name, split in self.dataset.splits.items()}:
            raise UserError(f"{self.folder.checkpoint} was written on other images; nothing was changed")
        try:
            self.model.load_state_dict(state["model"])
        except RuntimeError as error:
            detail = " ".join(str(error).split())
            raise UserError(f"the model is not the one that {self.folder.path} was started with: {detail}") from None
        self.method.load_state_dict(state["method"])
        for name, values in state["method_optimizers"].items():
            self.method.optimizers[name].load_state_dict(values)
        self.optimizer.load_state_dict(state["optimizer"])
        self.epoch, self.step, self.seconds = state["epoch"], state["step"], state["seconds"]
        self.running = Running(**state["running"]).to(self.device).divided()
        self.predicted = state["predicted"].to(self.device)
        self.best_score, self.best_epoch = state["best_score"], state["best_epoch"]
        self.best_weights = state["best_weights"]
        if self.average is not None:
            self.average.restore(state["average"])
        self.drift.restore(state["drift"])
        if self.weighting.weights is not None:
            self.weighting.weights.copy_(state["weights"])
        self.metrics_bytes = state["metrics_bytes"]
        first(lambda: self.folder.cut_metrics(self.metrics_bytes))

    def _check_finite(self) -> None:
        for name in sorted(self.running.sums, key=lambda part: part == "total"):  # name the part before the sum of all
            if not math.isfinite(self.running.sums[name].item()):
                what = "the loss" if name == "total" else f"the part {name} of the loss"
                self._stop_not_finite(what)
        if not all(torch.isfinite(p).all() for p in (*self.model.parameters(), *self.method.parameters())):
            self._stop_not_finite("a weight")

    def _stop_not_finite(self, what: str) -> None:
        raise UserError(
            f"{what} is not finite in epoch {self.epoch + 1}, step {self.step}; stopped; checkpoint.pt keeps the last "
            f"good state; a lower --lr than {self.run.training.lr:g} is the usual remedy"
        )

    # -- loop ----------------------------------------------------------------------------------------------------------

    def fit(self) -> TrainingResult:
        """Run to the end of the last epoch, from wherever the state is."""
        self.looked_at = self.mark = time.monotonic()
        keep_freed_memory(self.device)
        with (
            _global_state_kept(self.device, self.threads),
            interruption() as self.asked_to_stop,
            unless_one_ends(f"; {self.folder.checkpoint} is kept, go on with taet train --resume {self.folder.path}"),
            board(self.folder.tensorboard, self.run.training.tensorboard and rank() == 0) as self.write_scalars,
            synchronised(self.model, self.method, wanted=self.run.training.sync_bn),
        ):
            while self.epoch < self.run.training.epochs:
                self._train_epoch()
                self._end_epoch(self._watch(), self._measure_drift())
            return self._finish()

    def _train_epoch(self) -> None:
        run, epoch = self.run, self.epoch
        self.method.enter(epoch)
        if self.step == 0:
            self._rebalance()
            self.method.start_epoch(epoch, self.predicted)
        with contextlib.closing(self.loader.epoch(epoch, self.step)) as batches:
            for batch in batches:
                set_learning_rate(self.optimizer, learning_rate(run, epoch, self.step, len(self.loader)))
                self._seed_model(epoch, self.step)
                number = epoch * len(self.loader) + self.step
                place = self.loader.place(self.step)
                attack = self._attack(place, "attack", epoch, self.step)
                loss = self._step(
                    self.model, self.method, self.optimizer, batch, attack, epoch, number, self.view, self.graphs
                )
                if not run.training.sync_bn:
                    average_statistics(self.model, self.method)
                self.running.add(loss, batch.y, total=place[1])
                self.step += 1
                if self.average is not None and run.training.ema:
                    steps = run.training.epochs * len(self.loader)
                    self.average.add(self.model, ema_decay(number, round(EMA_WARMUP * steps), run.training.ema))
                self._pause("training")
        self._check_finite()
        swa_epoch = epoch - round(run.training.swa * run.training.epochs)
        # A run that was stopped while it watched comes here again, with the epoch averaged already.
        if self.average is not None and run.training.swa < 1 and self.average.models == swa_epoch:
            self.average.add_equally(self.model)

    def _step(
        self,
        model: nn.Module,
        method: Method,
        optimizer: torch.optim.Optimizer,
        batch: Batch,
        attack: Attack,
        epoch: int,
        number: int,
        view: View | None,
        graphs: Graphs | None = None,
    ) -> Loss:
        """A step of `epoch`, with the run's settings."""
        training = self.run.training
        try:
            return training_step(
                model,
                method,
                optimizer,
                batch,
                attack,
                autocast=training.precision == "bf16",
                awp=training.awp if epoch >= round(training.awp_start * training.epochs) else 0.0,
                number=number,
                view=view,
                graphs=graphs,
            )
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise UserError(
                f"batch size: a batch of {len(batch.y)} leaves batch normalisation one value per channel; "
                "take a larger --batch-size"
            ) from error

    def _rebalance(self) -> None:
        """Take the attack's weights to the predictions of the last epoch, in place: a captured step sees them."""
        counts = self.method.class_counts
        weights, _ = generation_weighting(self.run.threat.weighting, counts, self.predicted.to(counts.dtype))
        if self.weighting.weights is not None and weights is not None:
            self.weighting.weights.copy_(weights)

    def _seed_model(self, *purpose: str | int) -> None:
        """Seed what a user's model draws, such as dropout, in each process anew."""
        others = (rank(),) if rank() else ()
        torch.manual_seed(derive_seed(self.run.seed, "model", *purpose, *others))

    def _attack(self, place: tuple[int, int], *purpose: str | int) -> Attack:
        """The protocol's attack on images at `place` in their batch, with the noise that belongs to `purpose`."""
        source = Source(generator(self.device, self.run.seed, *purpose), *place)
        return Attack(self.run.threat, source, None, *self.weighting)

    def _examples(self, model: nn.Module, x: Tensor, y: Tensor, place: tuple[int, int], *purpose: str | int) -> Tensor:
        """What the method trains on where it is given x: the attack's examples, or x itself in a clean stage."""
        autocast = self.run.training.precision == "bf16"
        with (
            torch.enable_grad(),
            buffers_kept(model),  # an attack in train mode moves the statistics
            frozen(model, self.run.threat.bn_mode),
            torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=autocast),
        ):
            return self.method.perturb(model, x, y, self._attack(place, *purpose)).x

    def _measure_drift(self) -> list[float] | None:
        """Distance per class between this epoch's examples and those of the epoch before, where it is asked for."""
        return self.drift.measure(
            lambda number, place, x, y: self._examples(self.model, x, y, place, "drift", number),
            self.run.training.batch_size,
        )

    def _pause(self, doing: str) -> None:
        """Between two batches: keep time, show, save if it is due, and end here if the user asked for it.

        Clocks and signals differ between processes, so all do what is due in any: none may wait for the others alone.
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
            raise KeyboardInterrupt

    def _watched_epochs(self) -> list[int]:
        every, epochs = self.run.training.monitor_every, self.run.training.epochs
        return [e for e in range(epochs) if every and ((e + 1) % every == 0 or e + 1 == epochs)]

    def _watch(self) -> dict[str, Any] | None:
        """The point of the curve that belongs to this epoch, and the best weights so far where there may be such."""
        if self.epoch not in self._watched_epochs():
            return None
        run, split = self.run, self.watched
        model = self._deployed()
        counts = monitor(
            model,
            split,
            device=self.device,
            eps=run.threat.eps,
            step_size=run.evaluation.step_size,
            steps=run.training.monitor_steps,
            batch_size=run.evaluation.batch_size,
            seed=run.seed,
            channels_last=run.training.channels_last,
            pause=lambda: self._pause("watching"),
        )
        attacked = counts[f"pgd-{run.training.monitor_steps}"]
        score = metrics.balanced_accuracy(attacked["correct"], attacked["total"])
        if self._may_choose() and score > self.best_score:
            self.best_score, self.best_epoch = score, self.epoch
            self.best_weights = {name: value.cpu() for name, value in model.state_dict().items()}
        return {"split": self.split_name, **counts}

    def _may_choose(self) -> bool:
        """Is there a split to choose an epoch on? The test set is one only if the user says so, and it is a leak."""
        return self.split_name == "validation" or self.run.training.selection == "best-test"

    def _end_epoch(self, watched: dict[str, Any] | None, distance: list[float] | None) -> None:
        running = self.running.together()
        row = {
            "epoch": self.epoch + 1,
            "stage": self.method.stage,
            "lr": learning_rate(self.run, self.epoch, len(self.loader) - 1, len(self.loader)),  # of its last step
            "loss": {name: value.item() / running.images for name, value in running.sums.items()},
            "train": {"correct": running.correct.tolist(), "total": running.total.tolist()},
            "predicted": running.predicted.tolist(),
            "distance": distance,
            "monitor": watched,
            "seconds": round(self.seconds["all"], 3),
            "images_per_second": round(running.images / max(self.seconds["training"], 1e-9), 1),
            "peak_memory_mb": round(peak_memory_mb(self.device), 1),
        }
        self.metrics_bytes = first(lambda: self._append(row))
        self.predicted = running.predicted.to(self.predicted.dtype)
        self.running, self.watched_batches = Running.empty(self.dataset.num_classes, self.device), 0
        self.epoch, self.step, self.seconds = self.epoch + 1, 0, {"training": 0.0, "all": 0.0}
        self.save()
        self._show()

    def _append(self, row: dict[str, Any]) -> int:
        length = self.folder.append(row)
        self.write_scalars(row)
        return length

    def _finish(self) -> TrainingResult:
        """Write the weights that the run delivers, the others where they differ, and the mark that it is done."""
        last, best = self.run.training.epochs - 1, self.best_epoch
        weights = {"last": (self._deployed().state_dict(), last), "best": (self.best_weights, best)}
        chosen, other = ("last", "best") if self.run.training.selection == "last" else ("best", "last")

        def write() -> tuple[dict[str, Any], ...]:
            self._save_weights("model", *weights[chosen])
            if other == "last" or best not in (-1, last):
                self._save_weights(f"model-{other}", *weights[other])
            self.folder.finish()
            return self.folder.rows

        history = first(write)
        delivered = weights[chosen][0]
        assert delivered is not None
        self.model.load_state_dict(delivered)
        return TrainingResult(self.folder.path, self.run, self.model.eval(), self.dataset, history)

    def _save_weights(self, name: str, tensors: Mapping[str, torch.Tensor] | None, epoch: int) -> None:
        assert tensors is not None
        self.folder.save_weights(name, tensors, WeightsAbout(self.run.method, epoch + 1, self.run_hash))

    def _deployed(self) -> nn.Module:
        """A copy of the model as it is deployed: averaged weights where they are asked for, and the method's offset."""
        model = copy.deepcopy(self.model)
        if self.average is not None and self.average.models:
            model.load_state_dict(self.average.tensors)
            if self.run.training.swa < 1:
                self._estimate_statistics(model)
        model.get_buffer("offset").copy_(self.method.offset())
        return model

    def _estimate_statistics(self, model: nn.Module) -> None:
        """Set the statistics of batch normalisation to those of one epoch of the examples that `model` faces.

        An average of weights is a network that never saw a batch. The public code of SWA in this field passes clean
        images; a network trained on adversarial ones needs theirs.
        """
        attacked = copy.deepcopy(model)
        epoch = min(self.epoch, self.run.training.epochs - 1)
        self.method.enter(epoch)
        self._seed_model(epoch, "swa")

        def batches() -> Iterator[Tensor]:
            with contextlib.closing(self.loader.epoch(epoch)) as loaded:
                for step, batch in enumerate(loaded):
                    yield self._examples(attacked, batch.x, batch.y, self.loader.place(step), "swa", epoch, step)
                    self._pause("estimating")

        update_bn(batches(), model)
        if not self.run.training.sync_bn:
            average_statistics(model)

    # -- cost ---------------------------------------------------------------------------------------------------------

    def expected_seconds(self) -> float:
        """Return how long the run would take from its start, by a step of every stage on copies of what it trains.

        An epoch costs its passes (see `_units`) at the pace of its stage, the points of the curve at the fastest.
        """
        with (
            _global_state_kept(self.device, self.threads),
            synchronised(self.model, self.method, wanted=self.run.training.sync_bn),
        ):
            with contextlib.closing(self.loader.epoch(0)) as batches:
                batch = next(batches)
            stages = [self.method.task.stages[epoch] for epoch in range(self.run.training.epochs)]
            pace = {stage: self._pace(stages.index(stage), batch) for stage in dict.fromkeys(stages)}
        costs = zip(stages, map(self._units, range(len(stages))), strict=True)
        return sum(trained * pace[stage] + watched * min(pace.values()) for stage, (trained, watched) in costs)

    def _pace(self, epoch: int, batch: Batch) -> float:
        """Seconds of one pass of one image in a step of `epoch`: the second step, since the first sets things up."""
        model, method = copy.deepcopy((self.model, self.method))
        optimizer, view = build_optimizer(model, self.run.training), self._view(model)
        method.enter(epoch)
        method.start_epoch(epoch, self.predicted)
        place = self.loader.place(0)
        for number in range(2):
            begun = time.monotonic()
            attack = self._attack(place, "expected", epoch, number)
            loss = self._step(model, method, optimizer, batch, attack, epoch, number, view)
            loss.total.item()  # waits for the device
        return (time.monotonic() - begun) * len(self.dataset.train) / place[1] / self._units(epoch)[0]

    # -- progress ------------------------------------------------------------------------------------------------------

    def _show(self) -> None:
        if self.progress is None:
            return
        parts = [f"epoch {min(self.epoch + 1, self.run.training.epochs)}/{self.run.training.epochs}", self.method.stage]
        if self.running.images:
            parts.append(f"loss {self.running.sums['total'].item() / self.running.images:.3f}")
        self.progress(*self._work(), " · ".join(parts))

    def _work(self) -> tuple[float, float]:
        """Forward and backward passes of an image that are done, and that the run takes in all."""
        epochs = range(self.run.training.epochs)
        total = sum(sum(self._units(epoch)) for epoch in epochs)
        done = sum(sum(self._units(epoch)) for epoch in epochs[: self.epoch])
        if self.epoch < len(epochs):
            train, watch = self._units(self.epoch)
            batches = math.ceil(len(self.watched) / self.run.evaluation.batch_size)
            done += train * self.step / len(self.loader)
            if self.step == len(self.loader):
                done += watch * min(self.watched_batches / batches, 1)
        return done, total

    def _units(self, epoch: int) -> tuple[float, float]:
        """What an epoch's training and its point of the curve cost: a backward to the weights counts as two passes."""
        attack = 0 if self.method.task.stages[epoch] == "clean" else 2 * self.run.threat.steps
        watched = len(self.watched) if epoch in self._watched_epochs() else 0
        return len(self.dataset.train) * (3.0 + attack), watched * (2.0 + 2 * self.run.training.monitor_steps)


@contextlib.contextmanager
def _global_state_kept(device: torch.device, threads: int) -> Iterator[None]:
    """Leave the caller's random state and number of threads as they were."""
    before = torch.get_num_threads()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):  # manual_seed reaches every device
        torch.set_num_threads(threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)
