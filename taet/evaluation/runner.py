"""Run attacks on a whole test set, batch by batch: one column per attack."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from taet import statistics
from taet.attacks import differentiable
from taet.attacks.ball import distance, frozen, verify
from taet.attacks.counted import WORK, Counted
from taet.attacks.draws import Draws
from taet.attacks.inputs import check_labels
from taet.attacks.precision import exact_float32
from taet.attacks.spec import AttackSpec
from taet.attacks.suite import Suite
from taet.attacks.units import Unit, run_units
from taet.data.dataset import images_sha256
from taet.errors import UserError
from taet.evaluation.batch_store import BatchStore
from taet.evaluation.column import Column
from taet.evaluation.image_arrays import TestImages, as_arrays, as_unit, channels_first
from taet.evaluation.model_guard import restored
from taet.evaluation.trial import attempt, input_gradient, user_errors
from taet.files import digest
from taet.progress import Meter, Progress
from taet.statistics import Ints
from taet.training.checkpoint import weights_digest
from taet.training.environment import version

UNIT = {"predictions", "scores", "distances", *WORK}
TRIED, QUICK = 32, 1.0  # images that are timed; a whole batch is timed as well if that takes fewer seconds
USUAL = 0.55
"""Usual share of its largest number of passes that a suite takes, as it attacks only images that are still correct: on
the cards in results/ the medians are 0.53 for autoattack and 0.57 for autoattack-fast, the maximum is 0.69."""
FINGERPRINT = 4  # number of images whose outputs distinguish two models


def attack_split(
    runner: Runner, attacks: Sequence[AttackSpec], *, known: Sequence[Column] = (), progress: Progress | None = None
) -> tuple[Column, ...]:
    """Run every attack on all images, in float32, and return one column each, in the order of `attacks`.

    Columns of the same attacks and settings in `known`, which has the same model and images, are reused.
    """
    # A suite that is the first part of a longer one comes last, because it costs nothing after the longer one.
    order = sorted(attacks, key=lambda attack: isinstance(attack, Suite) and attack.whole() is not None)
    correct, meter = len(runner.labels), Meter(progress)
    columns: dict[str, Column] = {}
    with runner.still():
        for place, attack in enumerate(order):
            meter.begin(later=sum(runner.expected(one, correct) for one in order[place + 1 :]))
            there = [*columns.values(), *known]
            found = among([column for column in there if runner.is_complete(column)], attack)
            columns[attack.name] = found or runner.run(attack, there, meter)
            if attack.norm is None:
                correct = int(columns[attack.name].correct.sum())
    return tuple(columns[attack.name] for attack in attacks)


def among(columns: Sequence[Column], attack: AttackSpec) -> Column | None:
    """Return the column of this attack with these settings and this seed, if there is one."""
    for column in columns:
        known = column.attack
        if known.name == attack.name and not known.identity.differences(attack.identity, seeds=True):
            # The column may have been measured for a curve only, and now be requested by name.
            return column if attack.curve else column.changed(curve="")
    return None


def count_classes(model: nn.Module, images: TestImages, labels: Ints, device: torch.device) -> int:
    """Return the number of logits, found on two images; raise a `UserError` for a model that cannot be attacked."""
    if any(tensor.is_floating_point() and tensor.dtype != torch.float32 for tensor in model.parameters()):
        raise UserError("model: got weights that are not float32; allowed: float32 (call model.float())")
    with torch.inference_mode(False), restored(model) as changes, frozen(model), exact_float32(device.type):
        x = as_unit(images[:2]).to(device)
        with user_errors(f"model: fails on images of shape {tuple(x.shape)} ({{reason}})"):
            logits = Counted(model)(x.clone().requires_grad_())
        changed = changes()
    if changed:
        raise UserError(
            f"model: {changed[0]} changes during a forward pass in eval mode; allowed: one that does not change"
        )
    if not logits.requires_grad:
        raise UserError("model: no gradient reaches the image; is there a detach, no_grad or argmax in forward?")
    width = logits.shape[1]
    if width < 2:
        raise UserError(f"model output: got {width} logit an image; allowed: one per class, 2 or more")
    check_labels(int(labels.min()), int(labels.max()), width)
    return int(width)


@dataclass(frozen=True)
class Runner:
    """A model and its test images, which are attacked in batches."""

    model: Counted
    images: TestImages
    labels: Ints
    num_classes: int
    batch_size: int
    seed: int
    device: torch.device
    state_dir: str | os.PathLike[str] | None = None
    """Folder of finished batches, from which an interrupted evaluation continues."""
    opened: list[BatchStore] = field(default_factory=list)
    """Stores of finished batches that were used; they are removed when the card is written."""

    @contextmanager
    def still(self) -> Iterator[None]:
        """Put the model in eval mode with frozen parameters and exact float32; restore all and the random state."""
        every_gpu = range(torch.cuda.device_count())  # a model may draw random numbers
        with (
            torch.inference_mode(False),  # attacks need gradients, also inside the caller's inference mode
            frozen(self.model),
            exact_float32(self.device.type),
            torch.random.fork_rng(every_gpu),
        ):
            yield

    def is_complete(self, column: Column) -> bool:
        """Return whether a column has all current measurements; clean columns of old cards lack ROC-AUC."""
        return column.norm is not None or column.roc_auc is not None or not self.pairs

    def expected(self, attack: AttackSpec, correct: int) -> int:
        """Return the expected passes of an attack if `correct` images are classified correctly."""
        met = correct if attack.skips_misclassified else len(self.labels)
        return met * attack.passes(self.num_classes)

    def seconds_of_pass(self) -> float:
        """Return the seconds of one pass of an image, from a forward and a backward pass of a batch, if that is quick.

        Otherwise only `TRIED` images are timed, which overestimates the time of an image in a batch.
        """
        whole = min(self.batch_size, len(self.labels))
        few = min(TRIED, whole)
        seconds = self._seconds(few)
        return min(seconds, self._seconds(whole)) if few < whole and seconds * 2 * whole < QUICK else seconds

    def _seconds(self, images: int) -> float:
        x, y = self.batch(np.arange(images))
        with self.still():
            for _ in range(2):  # the first run fills caches
                begun = time.monotonic()
                input_gradient(self.model, x, y).sum().item()  # waits for the device
        return (time.monotonic() - begun) / (2 * len(x))

    @property
    def pairs(self) -> bool:
        """Whether the ROC-AUC of every pair of classes is stored; with very many classes it would be too large."""
        return self.num_classes <= statistics.PAIRED_CLASSES

    @cached_property
    def sites(self) -> dict[str, int]:
        """Operations of the model that stop or distort its gradient, from `taet.attacks.differentiable.find`."""
        x, _ = self.batch(np.arange(min(FINGERPRINT, len(self.labels))))
        with self.still():
            return differentiable.find(self.model.model, x)

    @cached_property
    def identity(self) -> str:
        """Hash of the model's layers, weights and first logits, the images, the labels, and the software."""
        network = self.model.model
        software = [self.device.type, version("torch"), version("pyautoattack")]
        rounded = np.round(self.fingerprint, 3).tolist()
        images = images_sha256(self.images, self.labels)
        return digest([repr(network), weights_digest(network), rounded, images, software])

    @cached_property
    def fingerprint(self) -> NDArray[np.float64]:
        """Logits and gradient norms of the first images, which distinguish models with equal weights."""
        x, y = self.batch(np.arange(min(FINGERPRINT, len(self.labels))))
        with self.still():
            torch.manual_seed(0)  # a model that draws random numbers draws the same ones
            tried = attempt(self.model, x, y)
        slopes = tried.gradient.flatten(1).norm(dim=1, keepdim=True)
        values = torch.cat([tried.logits, slopes], 1).cpu().double().numpy()
        return np.where(np.isfinite(values), values, np.nan)  # attacks report on which images they are not finite

    def units(self, attack: AttackSpec, after: Sequence[AttackSpec] = ()) -> BatchStore | None:
        """Return the store of an attack's finished batches; `after` are the attacks that selected its images."""
        return self.store(attack.name, [attack.to_json(), self.batch_size, *(one.to_json() for one in after)])

    def store(self, name: str, settings: Sequence[object]) -> BatchStore | None:
        """Return a store of finished work that depends on these settings, the model and the images."""
        if self.state_dir is None:
            return None
        self.opened.append(BatchStore(Path(self.state_dir), name, digest([self.identity, *settings])))
        return self.opened[-1]

    def clear(self) -> None:
        """Remove the finished work, which the card now contains."""
        for store in self.opened:
            store.remove()

    def batches(self, rows: Ints | None = None) -> list[Ints]:
        """Split rows of the test set, by default all, into batches in ascending order."""
        every = np.arange(len(self.labels)) if rows is None else rows
        return [every[start : start + self.batch_size] for start in range(0, len(every), self.batch_size)]

    def batch(self, rows: Ints) -> tuple[Tensor, Tensor]:
        """Return the images `rows` in [0, 1] and their labels, on the model's device."""
        with torch.inference_mode(False):  # so that gradients with respect to them exist
            return as_unit(self.images[rows]).to(self.device), torch.from_numpy(self.labels[rows]).to(self.device)

    def perturb(self, attack: AttackSpec, rows: Ints) -> tuple[Tensor, Tensor]:
        """Return the images `rows`, clean and under attack; every adversarial image is checked."""
        x, y = self.batch(rows)
        draws = self.draws(attack, rows)
        # Copies, because a custom attack may write into its arguments.
        with self._guarded(attack, draws), self.model.searching(attack.precision, x.device.type):
            x_adv = attack.run(self.model, x.clone(), y.clone(), draws)
        verify(attack.name, x_adv, x, attack.eps, attack.norm or "linf")
        return x, x_adv

    def draws(self, attack: AttackSpec, rows: Ints) -> Draws:
        """Return the random draws of an attack on these images."""
        return Draws(self.seed, attack.noise_key, rows)

    @contextmanager
    def _guarded(self, attack: AttackSpec, draws: Draws) -> Iterator[None]:
        """Protect the model and the random state from a custom attack."""
        if attack.source_sha256 is None:
            yield
            return
        with restored(self.model) as changes, frozen(self.model):
            draws.seed_torch()
            yield
            changed = changes()
        if changed:
            raise UserError(f"attack '{attack.name}': changed {changed[0]} of the model; allowed: none of it")

    def answers(self, attack: AttackSpec, x_adv: Tensor, rows: Ints) -> Tensor:
        """Return the logits of adversarial images; raise a `UserError` if they are not finite."""
        with torch.no_grad():
            logits = self.model.judge(x_adv)
        if not bool(logits.isfinite().all()):
            raise UserError(f"model output: not finite under '{attack.name}' on images {rows[0]} to {rows[-1]}")
        return logits

    def run(self, attack: AttackSpec, there: Sequence[Column], progress: Progress) -> Column:
        """Run one attack on all images; `there` are columns of the same model that may save work."""
        if isinstance(attack, Suite):
            longer = attack.whole()
            found = None if longer is None else among(there, longer)
            if found is not None and found.parts.keys() >= {*attack.parts(self.num_classes)}:
                parts, predictions = attack.beginning(found.parts, found.predictions, self.labels, self.num_classes)
                facts = {**attack.facts(self.num_classes), "from": found.name}
                return Column.of(attack, predictions, self.labels, parameters=facts, parts=parts, roc_auc=found.roc_auc)
        clean = next((column.predictions for column in there if column.norm is None), None)
        every = np.arange(len(self.labels))
        result = self.attack(attack, every, clean, self.units(attack), progress)
        scores = result.scores if self.pairs else None
        return Column.of(
            attack,
            result.predictions,
            self.labels,
            parameters=result.parameters,
            parts=result.parts if isinstance(attack, Suite) else {},
            distances=result.distances if attack.minimal else None,
            roc_auc=None if scores is None else statistics.pairwise_auc(scores, self.labels),
            **result.work,
        )

    def run_worst_case(self, attacks: Sequence[AttackSpec], clean: Column, progress: Progress | None) -> Column:
        """Run attacks of one threat model, cheapest first, each on the images that are still correct."""
        order, meter = one_threat_model(attacks, self.num_classes), Meter(progress)
        predictions = clean.predictions.copy()
        work: dict[str, Any] = dict.fromkeys(WORK, 0)
        parts: dict[str, NDArray[np.bool_]] = {}
        with self.still():
            for number, attack in enumerate(order):
                before = predictions == self.labels
                rows = np.flatnonzero(before)
                meter.begin(later=sum(len(rows) * one.passes(self.num_classes) for one in order[number + 1 :]))
                result = self.attack(attack, rows, predictions[rows], self.units(attack, order[:number]), meter)
                predictions[rows] = result.predictions
                work = {name: work[name] + result.work[name] for name in WORK}
                for part, mask in result.parts.items():
                    parts[part] = before.copy()
                    parts[part][rows] = mask
        chain, norm, eps = (attack.to_json() for attack in order), order[0].norm or "linf", order[0].eps
        return Column.worst_of(chain, norm, eps, predictions, self.labels, parts=parts, **work)

    def attack(
        self, attack: AttackSpec, rows: Ints, natural: Ints | None, units: BatchStore | None, progress: Progress
    ) -> _Result:
        """Attack the images `rows`; `natural` are the predictions on clean images, if known."""
        if len(rows) == 0:
            parts = attack.parts(self.num_classes) if isinstance(attack, Suite) else (attack.name,)
            return _Result(rows, dict.fromkeys(parts, np.ones(0, dtype=bool)), dict.fromkeys(WORK, 0))
        labels = self.labels[rows]
        if not isinstance(attack, Suite):
            done = self.in_batches(attack, rows, partial(self._measure, attack), UNIT, units, progress)
            predictions, scores, distances = (
                np.concatenate([unit[name] for unit in done]) for name in ("predictions", "scores", "distances")
            )
            work = {name: sum(unit[name].item() for unit in done) for name in WORK}
            return _Result(predictions, {attack.name: predictions == labels}, work, scores, distances)
        with user_errors(_failed(attack)):
            outcome = attack.run_parts(
                self.model,
                channels_first(np.asarray(self.images) if len(rows) == len(self.labels) else self.images[rows]),
                torch.from_numpy(labels),
                natural=None if natural is None else torch.from_numpy(natural),
                batch_size=self.batch_size,
                device=self.device,
                state=units,
                progress=lambda done, total, label: progress(done, total, f"{attack.name}: {label}"),
            )
        return _Result(
            outcome.predictions.numpy(),
            {part: mask.numpy() for part, mask in outcome.parts.items()},
            {name: getattr(outcome, name) for name in WORK},
            parameters=outcome.facts,
        )

    def in_batches(
        self,
        attack: AttackSpec,
        rows: Ints,
        measure: Callable[[Ints], Unit],
        needed: Collection[str],
        units: BatchStore | None,
        progress: Progress,
        later: int = 0,
    ) -> list[Unit]:
        """Return "rows", and what `measure` returns, of every batch of the images `rows` under an attack.

        Finished batches are saved in `units`; one without an array of the names `needed` is measured again. For the
        progress, `later` is the number of passes of an image after the attack.
        """
        batches, passes = self.batches(rows), attack.passes(self.num_classes) + later

        def report(number: int, inside: float = 0) -> None:
            progress(min(number * self.batch_size, len(rows)) * passes + inside, len(rows) * passes, attack.name)

        def compute(number: int) -> Unit:
            expected = len(batches[number]) * passes
            with user_errors(_failed(attack)), self.model.ticking(expected, lambda inside: report(number, inside)):
                return {"rows": batches[number], **measure(batches[number])}

        def is_complete(number: int, unit: Unit) -> bool:
            return unit.keys() >= {"rows", *needed} and np.array_equal(unit["rows"], batches[number])

        done = run_units(len(batches), compute, state=units, key=str, valid=is_complete, begin=report)
        report(len(batches))
        return done

    def _measure(self, attack: AttackSpec, rows: Ints) -> Unit:
        """Attack one batch, check every adversarial image and return the results."""
        work = self.model.measure()
        x, x_adv = self.perturb(attack, rows)
        logits = self.answers(attack, x_adv, rows)
        predictions = logits.max(1).indices.cpu().numpy()
        moved = distance(x_adv, x, attack.norm or "linf").cpu().numpy()
        return {
            "predictions": predictions,
            "scores": logits.softmax(1).cpu().numpy(),
            "distances": np.where(predictions != self.labels[rows], moved, np.nan).astype(np.float32),
            **work(),
        }


def _failed(attack: AttackSpec) -> str:
    return f"'{attack.name}' failed in the model: {{kind}}: {{reason}}"


def make_runner(
    model: nn.Module,
    images: TestImages | Tensor,
    labels: NDArray[Any] | Tensor,
    *,
    batch_size: int = 250,
    seed: int = 0,
    state_dir: str | os.PathLike[str] | None = None,
) -> Runner:
    """Return a runner for a Module, from images in [0, 1] to logits, and its test images; both are checked.

    Images are uint8 (N, H, W, C), or floating point (N, C, H, W) in [0, 1]; labels (N,) are 0 to classes - 1.
    Finished batches are saved in `state_dir`.
    """
    device = next((tensor.device for tensor in model.state_dict().values()), torch.device("cpu"))
    pixels, classes = as_arrays(images, labels)
    width = count_classes(model, pixels, classes, device)
    return Runner(Counted(model), pixels, classes, width, batch_size, seed, device, state_dir)


@dataclass(frozen=True, eq=False)
class _Result:
    """The result of an attack on N images."""

    predictions: Ints
    parts: dict[str, NDArray[np.bool_]]
    """(N,) still correct after each part of a suite, or after the attack."""
    work: dict[str, Any]
    scores: NDArray[np.float32] | None = None
    """(N, C): softmax of the logits under the attack."""
    distances: NDArray[np.float32] | None = None
    """(N,): norm of each perturbation that fools the model, nan for the others."""
    parameters: dict[str, Any] = field(default_factory=dict)


def one_threat_model(attacks: Sequence[AttackSpec], num_classes: int) -> list[AttackSpec]:
    """Return attacks ordered by cost; they must share one ball and contain at most one suite."""
    chain = sorted((attack for attack in attacks if attack.norm), key=lambda one: one.passes(num_classes))
    balls = list(dict.fromkeys((attack.norm, attack.eps) for attack in chain))
    if len(balls) != 1 or balls[0][1] is None:
        named = ", ".join(f"{one.name} ({one.norm}, {one.eps and f'{one.eps:g}'})" for one in chain)
        raise UserError(f"worst case: got {named or 'no attack'}; allowed: attacks of one norm and radius")
    suites = [attack.name for attack in chain if isinstance(attack, Suite)]
    if len(suites) > 1:
        raise UserError(f"worst case: got {' and '.join(suites)}; allowed: one version of AutoAttack")
    return chain
