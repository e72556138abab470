"""A run of AutoAttack: its parts on batches of images, which are saved, resumed and shared between processes."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from taet.attacks.ball import BALL_TOLERANCE, Norm, choose, distance, project, verify
from taet.attacks.counted import WORK, Counted
from taet.attacks.precision import SearchPrecision
from taet.attacks.suite import SuiteResult
from taet.attacks.units import Unit, UnitStore, run_units
from taet.errors import UserError
from taet.progress import Progress

NORMS: Mapping[str, str] = {"linf": "Linf", "l2": "L2"}  # our names and those of the library
SQUARE_TILES = 5  # tiles per column of an image at the start of Square in L2

# The library logs a warning about points whose gradient is zero.
_logger = logging.getLogger(__name__)
_logger.addHandler(logging.NullHandler())


@dataclass(frozen=True)
class Plan:
    """The parts of a suite and their lengths."""

    norm: Norm
    parts: tuple[str, ...]
    iterations: int
    queries: int
    target_classes: int
    note: str | None
    """How the suite differs from the official one, which needs more classes; None if it does not differ."""

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


def as_float(x: Tensor) -> Tensor:
    """Return a contiguous float32 copy of images; uint8 is divided by 255, bit for bit as in training."""
    values = x.detach().to(torch.float32, memory_format=torch.contiguous_format, copy=True)
    return values.div_(255) if x.dtype == torch.uint8 else values


class Batches(NamedTuple):
    """The images of a suite, how they are cut, and the store of finished batches."""

    x: Tensor
    y: Tensor
    size: int
    device: torch.device
    state: UnitStore | None
    keep_examples: bool

    def of(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return images as the model takes them and their labels, where they are kept."""
        return as_float(self.x[indices]), self.y[indices]

    def broken(self, indices: Tensor, unit: Unit) -> int:
        """Return how many images of a batch are misclassified."""
        return int((unit["predictions"] != self.y[indices].cpu().numpy()).sum())


@dataclass(frozen=True)
class SuiteRun:
    """The attacks of a plan on batches of images."""

    model: Counted
    batches: Batches
    plan: Plan
    eps: float
    seed: int
    precision: SearchPrecision

    def run_all(self, natural: Tensor | None, progress: Progress | None) -> SuiteResult:
        """Run every part on the images that are still correct after the parts before it."""
        x, y = self.batches.x, self.batches.y
        x_adv = as_float(x) if self.batches.keep_examples else None
        predictions = y.clone() if natural is None else natural.to(y.device, copy=True)
        correct = predictions == y
        order = self.plan.parts if natural is not None else ("clean", *self.plan.parts)
        after, done, units = dict[str, Tensor](), 0, list[Unit]()
        for number, part in enumerate(order):
            survivors = correct.nonzero().flatten()
            later = sum(self.plan.cost(name) for name in order[number + 1 :])
            for indices, unit in self.run(part, survivors, progress, done, later):
                found = torch.from_numpy(unit["predictions"]).to(y.device)
                broken = indices[found != y[indices]]
                predictions[indices] = found
                correct[broken] = False
                if x_adv is not None:
                    x_adv[broken] = torch.from_numpy(unit["x_adv"]).to(x_adv.device)
                units.append({name: unit[name] for name in WORK})
            after[part] = correct.clone()
            done += len(survivors) * self.plan.cost(part)
        if progress is not None:
            progress(done, done, "done")
        parts = {part: after[part] for part in self.plan.parts}
        work = {name: sum(unit[name].item() for unit in units) for name in WORK}
        return SuiteResult(x_adv, predictions, correct, parts, self.plan.facts(), **work)

    def run(
        self, part: str, survivors: Tensor, progress: Progress | None, done: int, later: int
    ) -> Iterator[tuple[Tensor, Unit]]:
        """Run a part on the images that are still correct; return the indices and results of each batch.

        `done` are the passes before this part, and `later` those after it for each image that stays correct. The share
        that stays correct is estimated from the batches so far.
        """
        batches = torch.split(survivors, self.batches.size) if len(survivors) else ()
        attack, cost = self.attack(part), self.plan.cost(part)
        met = stood = 0

        def report(number: int, inside: float = 0) -> None:
            if progress is not None:
                before, standing = number * self.batches.size * cost, len(survivors) * (stood / met if met else 1)
                total = done + len(survivors) * cost + standing * later
                progress(done + before + inside, total, f"{part} {number + 1}/{len(batches)}")

        def compute(number: int) -> Unit:
            nonlocal met, stood
            indices = batches[number]
            with self.model.ticking(len(indices) * cost, lambda inside: report(number, inside)):
                unit = self._run_unit(part, attack, indices)
            met, stood = met + len(indices), stood + len(indices) - self.batches.broken(indices, unit)
            return unit

        units = run_units(
            len(batches),
            compute,
            state=self.batches.state,
            key=lambda number: f"{part}-{number}",
            valid=lambda number, unit: self._whole(part, batches[number], unit),
            begin=report,
        )
        return zip(batches, units, strict=True)

    def _run_unit(self, part: str, attack: Callable[[Tensor, Tensor], Tensor], indices: Tensor) -> Unit:
        """Attack one batch, check every adversarial image and return the results as arrays."""
        x, y = (given.to(self.batches.device) for given in self.batches.of(indices))
        work = self.model.measure()
        with self._watched(part, indices):
            with self.model.searching(self.precision, x.device.type):
                x_adv = attack(x.clone(), y.clone()).detach()
            if self.plan.norm == "l2":  # in float32 the library's scaling misses by up to 1e-5 at 224 x 224 pixels
                left = distance(x_adv, x, "l2") > self.eps + BALL_TOLERANCE
                x_adv = choose(left, project(x_adv, x, self.eps, "l2"), x_adv)
            # The largest logit in this same batch decides, as in the official evaluation: other batches round
            # differently.
            found = self.model.judge(x_adv).max(1).indices
        verify(part, x_adv, x, self.eps, self.plan.norm)
        return {
            "indices": indices.cpu().numpy(),
            "predictions": found.cpu().numpy(),
            "content": self._content(part, indices),
            **({"x_adv": x_adv[found != y].cpu().numpy()} if self.batches.keep_examples else {}),
            **work(),
        }

    @contextmanager
    def _watched(self, part: str, indices: Tensor) -> Iterator[None]:
        """Raise a `UserError` if logits or gradients are not finite: the library ignores some and fails on others."""
        failure: Exception | None = None
        try:
            yield
        except Exception as error:
            failure = error
        if self.model.unsound():
            images = f"images {int(indices[0])} to {int(indices[-1])}"
            raise UserError(f"model: logits or gradients not finite under {part} on {images}") from failure
        if failure is not None:
            raise failure

    def _content(self, part: str, indices: Tensor) -> NDArray[np.uint8]:
        """Hash of what decides a unit besides the model: images, labels and the settings of its part."""
        chosen = self.plan
        settings = [part, chosen.norm, self.eps, self.seed]
        settings += [] if self.precision == "float32" else [self.precision]
        settings += [chosen.queries] if part == "square" else [chosen.iterations, chosen.target_classes]
        digest = hashlib.sha256(repr(settings).encode())
        for given in self.batches.of(indices):
            digest.update(given.cpu().numpy().data)
        return np.frombuffer(digest.digest(), dtype=np.uint8)

    def _whole(self, part: str, indices: Tensor, unit: Unit) -> bool:
        """Return whether these are the complete results of this part on these images."""
        needed = {"content", "indices", "predictions", *WORK}
        if not needed | ({"x_adv"} if self.batches.keep_examples else set()) <= unit.keys():
            return False
        same = np.array_equal(unit["indices"], indices.cpu().numpy())
        same = same and np.array_equal(unit["content"], self._content(part, indices))
        if not same or unit["predictions"].shape != unit["indices"].shape:
            return False
        return not self.batches.keep_examples or len(unit["x_adv"]) == self.batches.broken(indices, unit)

    def attack(self, part: str) -> Callable[[Tensor, Tensor], Tensor]:
        """Return one attack of the official suite with the settings of the suite; "clean" changes nothing."""
        from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
        from pyautoattack.fab_pt import FABAttack_PT
        from pyautoattack.square import SquareAttack

        chosen = self.plan
        apgd = {"n_iter": chosen.iterations, "eot_iter": 1, "rho": 0.75, "logger": _logger}
        targets = {"n_target_classes": chosen.target_classes}

        def build(kind: Any, model: Any = self.model, **settings: Any) -> Callable[[Tensor, Tensor], Tensor]:
            common = {"norm": NORMS[chosen.norm], "eps": self.eps, "seed": self.seed, "device": self.batches.device}
            perturb: Callable[[Tensor, Tensor], Tensor] = kind(model, n_restarts=1, **common, **settings).perturb
            return perturb

        if part == "clean":
            return lambda x, _: x
        if part == "apgd-t":
            return build(APGDAttack_targeted, **targets, **apgd)
        if part == "fab-t":
            return build(FABAttack_PT, n_iter=chosen.iterations, targeted=True, **targets)
        if part == "square":
            rows, columns = self.batches.x.shape[2:]
            bottom, right = _margins(rows, columns) if chosen.norm == "l2" else (0, 0)
            square = build(
                SquareAttack,
                lambda x: self.model(x[..., :rows, :columns]),
                p_init=0.8,
                n_queries=chosen.queries,
                resc_schedule=False,
            )
            return lambda x, y: square(nn.functional.pad(x, (0, right, 0, bottom)), y)[..., :rows, :columns]
        return build(APGDAttack, loss=part.removeprefix("apgd-"), **apgd)


def _margins(rows: int, columns: int) -> tuple[int, int]:
    """Return how many rows and columns Square in L2 needs in addition.

    The library starts from square tiles, a fifth of the rows high, and fails if they reach beyond the image (24 x 24
    pixels, and many sizes that are not square). Such an image is attacked as the corner of a larger one.
    """

    def fits(rows: int, columns: int) -> bool:
        tile = rows // SQUARE_TILES
        start = (rows - tile * SQUARE_TILES) // 2
        return tile == 1 or (tile > 1 and all(start + size // tile * tile <= size for size in (rows, columns)))

    if fits(rows, columns):
        return 0, 0
    side = next(side for side in count(max(rows, columns)) if fits(side, side))
    return side - rows, side - columns
