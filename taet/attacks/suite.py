"""A run of AutoAttack, whose parts on batches of images are saved, resumed and shared between processes."""

import contextlib
import hashlib
import io
import logging
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from taet.attacks.ball import BALL_TOLERANCE, Norm, choose, distance, projection, verify
from taet.attacks.counted import WORK, Counted
from taet.attacks.spec import AttackSpec, Model
from taet.distributed import gather, rank, unless_one_ends, world_size
from taet.errors import UserError
from taet.files import digest, make_folder, write_atomically
from taet.progress import Progress

NORMS: Mapping[Norm, str] = {"linf": "Linf", "l2": "L2"}  # our names and those of the library
SuitePart = Callable[[Tensor, Tensor], Tensor]  # (x, y) -> x_adv
Unit = Mapping[str, NDArray[Any]]  # the arrays of a unit of work, by name

# Silences the library's warning about points whose gradient is zero.
_logger = logging.getLogger(__name__)
_logger.addHandler(logging.NullHandler())


class BatchStore:
    """A folder with one file per finished batch of an attack, from which a killed evaluation continues.

    Each file begins with a SHA-256 of its content and of `identity`, a hash of all that determines the results. A file
    of another identity, or a damaged file, counts as missing.
    """

    def __init__(self, root: Path, attack: str, identity: str) -> None:
        self.folder = root / f"{re.sub('[^a-z0-9-]', '_', attack)}-{identity[:16]}"
        self.identity = identity

    def get(self, key: str) -> Unit | None:
        """Return the arrays of a finished batch, or None."""
        path = self.folder / f"{key}.npz"
        content = path.read_bytes() if path.is_file() else b""
        if content[:32] != self._sha256(content[32:]):
            return None
        with np.load(io.BytesIO(content[32:]), allow_pickle=False) as file:
            return dict(file)

    def put(self, key: str, arrays: Unit) -> None:
        """Save the arrays of a batch; after a kill the file is complete or missing."""
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)  # type: ignore[arg-type]
        make_folder(self.folder)
        write_atomically(self.folder / f"{key}.npz", self._sha256(buffer.getvalue()) + buffer.getvalue())

    def _sha256(self, content: bytes) -> bytes:
        return hashlib.sha256(self.identity.encode() + content).digest()

    def remove(self) -> None:
        """Delete the files, and the parent folder once it is empty."""
        shutil.rmtree(self.folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.folder.parent.rmdir()


def in_batches(
    batches: Sequence[Any],
    work: Callable[[Any], Unit],
    *,
    model: Counted,
    cost: float,
    report: Callable[[float, int], None],
    state: BatchStore | None,
    key: Callable[[int], str] = str,
) -> list[Unit]:
    """Return the result of `work` on each batch of indices; `state` keeps finished ones under the names of `key`.

    With P processes, all of which must make the same call, process r works on the batches r, r + P, r + 2P, ...;
    afterwards each process has all results. `report(passes, number of the batch)` counts `cost` passes per image.
    """

    def unit(number: int) -> Unit:
        result = None if state is None else state.get(key(number))
        if result is None:
            before = cost * sum(map(len, batches[:number]))
            report(before, number)
            with model.ticking(len(batches[number]) * cost, lambda passes: report(before + passes, number)):
                result = work(batches[number])
            if state is not None:
                state.put(key(number), result)
        return result

    own = {number: unit(number) for number in range(rank(), len(batches), world_size())}
    with unless_one_ends("; finished batches are kept" if state is not None else ""):
        results = {number: unit for units in gather(own) for number, unit in units.items()}
    return [results[number] for number in range(len(batches))]


@dataclass(frozen=True)
class Plan:
    """The parts of a suite and their lengths."""

    parts: tuple[str, ...]
    iterations: int
    queries: int
    target_classes: int
    note: str | None  # how the suite differs from the official one, which needs more classes

    def cost(self, part: str) -> int:
        """Estimated passes through the model per image: an iteration of APGD takes 2 (forward, backward), of FAB 3."""
        apgd, fab = 2 * self.iterations, 3 * self.iterations
        targeted = {"apgd-t": apgd * self.target_classes, "fab-t": fab * self.target_classes}
        return {"clean": 1, "apgd-ce": apgd, "apgd-dlr": apgd, **targeted, "square": self.queries}[part]

    def facts(self) -> dict[str, object]:
        """Return what a result card stores about the suite, as plain values, without settings that no part uses."""
        facts: dict[str, object] = {"parts": list(self.parts), "iterations": self.iterations}
        if {"apgd-t", "fab-t"} & set(self.parts):
            facts["target_classes"] = self.target_classes
        if "square" in self.parts:
            facts["queries"] = self.queries
        return facts | ({"note": self.note} if self.note else {})


@dataclass(frozen=True, eq=False)
class SuiteResult:
    """The result of a suite on N examples; seconds are summed over batches and so over processes."""

    x_adv: Tensor | None  # (N, C, H, W): the example that fooled the model, else the clean one; None if not kept
    predictions: Tensor  # (N,): class predicted for x_adv, also if that is not kept
    correct: Tensor  # (N,): whether the clean example and the result of every part are classified correctly
    parts: dict[str, Tensor]  # (N,) still correct after each part, in the order they ran
    facts: dict[str, object]  # what a result card stores about the parts
    seconds: float
    forwards: int
    backwards: int


def as_float(x: Tensor) -> Tensor:
    """Return a contiguous float32 copy of images; uint8 is divided by 255, bit for bit as in training."""
    values = x.detach().to(torch.float32, memory_format=torch.contiguous_format, copy=True)
    return values.div_(255) if x.dtype == torch.uint8 else values


@dataclass(frozen=True)
class SuiteRun:
    """The attacks of a plan on batches of images.

    A part attacks the images that are still correct, in ascending order and in new batches. One part on one batch is
    the unit of saving and resuming; it depends on its images only, because every part is seeded on every batch.
    """

    model: Counted
    attack: AttackSpec  # norm, radius, seed and precision of every part
    plan: Plan
    x: Tensor
    y: Tensor
    batch_size: int
    device: torch.device
    state: BatchStore | None
    keep_examples: bool

    def run_all(self, natural: Tensor | None, progress: Progress) -> SuiteResult:
        """Run every part; `natural` are the predictions on the clean images, (N,), if they are known."""
        y, cost, done = self.y, self.plan.cost, 0
        x_adv = as_float(self.x) if self.keep_examples else None
        predictions = y.clone() if natural is None else natural.to(y.device, copy=True)
        correct, after, units = predictions == y, dict[str, Tensor](), list[Unit]()
        order = self.plan.parts if natural is not None else ("clean", *self.plan.parts)
        for number, part in enumerate(order):
            survivors = correct.nonzero().flatten()
            total = done + len(survivors) * sum(map(cost, order[number:]))
            for indices, unit in self.run(part, survivors, progress, done, total):
                predicted = torch.from_numpy(unit["predictions"]).to(y.device)
                broken = indices[predicted != y[indices]]
                predictions[indices] = predicted
                correct[broken] = False
                if x_adv is not None:
                    x_adv[broken] = torch.from_numpy(unit["x_adv"]).to(x_adv.device)
                units.append({name: unit[name] for name in WORK})
            after[part] = correct.clone()
            done += len(survivors) * cost(part)
        progress(done, done, "done")
        parts = {part: after[part] for part in self.plan.parts}
        work = {name: sum(unit[name].item() for unit in units) for name in WORK}
        return SuiteResult(x_adv, predictions, correct, parts, self.plan.facts(), **work)

    def run(
        self, part: str, survivors: Tensor, progress: Progress, done: int, total: int
    ) -> Iterator[tuple[Tensor, Unit]]:
        """Attack the `survivors` with a part; return indices and results of each batch. `done` passes came before."""
        batches = torch.split(survivors, self.batch_size) if len(survivors) else ()
        work, cost = partial(self._run_unit, part, self.part(part)), self.plan.cost(part)

        def report(passes: float, number: int) -> None:
            progress(done + passes, total, f"{part} {number + 1}/{len(batches)}")

        def key(number: int) -> str:  # names the images, which depend on the parts before
            return f"{part}-{number}-{digest(batches[number].tolist())[:16]}"

        found = in_batches(batches, work, model=self.model, cost=cost, report=report, state=self.state, key=key)
        return zip(batches, found, strict=True)

    def _run_unit(self, part: str, attack: SuitePart, indices: Tensor) -> Unit:
        """Attack one batch, check every adversarial image and return the results as arrays."""
        x, y = as_float(self.x[indices]).to(self.device), self.y[indices].to(self.device)
        eps, norm, work = self.attack.radius, self.attack.norm or "linf", self.model.measure()
        try:
            with self.model.searching(self.attack.precision, x.device.type):
                x_adv = attack(x.clone(), y.clone()).detach()
            if norm == "l2":  # in float32 the library's scaling misses by up to 1e-5 at 224 x 224 pixels
                outside = distance(x_adv, x, "l2") > eps + BALL_TOLERANCE
                x_adv = choose(outside, projection(x, eps, "l2")(x_adv), x_adv)
            # The largest logit in this batch decides, as in the official evaluation: others round differently.
            predicted = self.model.judge(x_adv).max(1).indices
        finally:  # the library ignores some values that are not finite and fails on others
            if self.model.unsound():
                images = f"images {int(indices[0])} to {int(indices[-1])}"
                raise UserError(f"model: logits or gradients not finite under {part} on {images}")
        verify(part, x_adv, x, eps, norm)
        kept = {"x_adv": x_adv[predicted != y].cpu().numpy()} if self.keep_examples else {}
        return {"predictions": predicted.cpu().numpy(), **kept, **work()}

    def part(self, name: str) -> SuitePart:
        """Return one attack of the official suite with the settings of the suite; "clean" changes nothing."""
        from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
        from pyautoattack.fab_pt import FABAttack_PT

        plan, eps = self.plan, self.attack.radius
        norm, seed = self.attack.norm or "linf", self.attack.seed or 0
        if name == "square":
            return official_square(self.model, plan.queries, norm, eps, seed, self.device)
        apgd = {"n_iter": plan.iterations, "eot_iter": 1, "rho": 0.75, "logger": _logger}
        targets = {"n_target_classes": plan.target_classes}

        def build(kind: Any, **settings: object) -> SuitePart:
            common = {"norm": NORMS[norm], "eps": eps, "seed": seed, "device": self.device, "n_restarts": 1}
            return kind(self.model, **common, **settings).perturb

        if name == "clean":
            return lambda x, _: x
        if name == "apgd-t":
            return build(APGDAttack_targeted, **targets, **apgd)
        if name == "fab-t":
            return build(FABAttack_PT, n_iter=plan.iterations, targeted=True, **targets)
        return build(APGDAttack, loss=name.removeprefix("apgd-"), **apgd)


def official_square(model: Model, queries: int, norm: Norm, eps: float, seed: int, device: torch.device) -> SuitePart:
    """Return the random search of the official suite."""
    from pyautoattack.square import SquareAttack

    search = {"p_init": 0.8, "n_queries": queries, "n_restarts": 1, "seed": seed, "resc_schedule": False}
    return SquareAttack(model, norm=NORMS[norm], eps=eps, device=device, **search).perturb  # type: ignore[no-untyped-call]
