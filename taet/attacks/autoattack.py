"""AutoAttack: the official suite of four attacks, in batches that are saved, resumed and shared between processes."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count
from typing import Annotated, Any, ClassVar, Literal, Self, Unpack, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from taet.attacks.ball import BALL_TOLERANCE, Norm, choose, distance, frozen, project, verify
from taet.attacks.counted import WORK, Counted
from taet.attacks.draws import Draws
from taet.attacks.inputs import check_labels, check_type, refusing
from taet.attacks.precision import SearchPrecision, exact_float32
from taet.attacks.spec import FIXED, Fields, Model
from taet.attacks.suite import Suite, SuiteArguments, SuiteResult
from taet.attacks.units import Unit, UnitStore, run_units
from taet.errors import UserError, unknown
from taet.fields import Count, check_radius, check_value
from taet.progress import Progress
from taet.settings import Evaluation

NAMES = {
    "autoattack": "the official standard suite in L-infinity, APGD-CE, APGD-T, FAB-T, Square (Croce & Hein 2020): the "
    "number to report; 9700 passes for an image that no attack breaks",
    "autoattack-fast": "its first two attacks, for development: an upper bound, usually close; 2000 passes",
    "autoattack-10": "the four attacks with 10 iterations instead of the official 100, which some papers call "
    "AutoAttack: an upper bound; 5470 passes",
    "autoattack-l2": "the official standard suite in L2, for a norm that training did not use; 9700 passes",
    "autoattack-l2-fast": "the first two attacks of autoattack-l2, for development: an upper bound; 2000 passes",
    "autoattack-l2-10": "autoattack-l2 with 10 iterations instead of 100: an upper bound; 5470 passes",
}

Version = Literal["standard", "fast", "10"]
NORMS: Mapping[str, str] = {"linf": "Linf", "l2": "L2"}  # our names and those of the library

MAX_TARGETS = 9  # target classes of the official suite
QUERIES = 5000  # of Square in the official suite
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


def plan(num_classes: int, version: Version = "standard", norm: Norm = "linf") -> Plan:
    """Return the attacks of a version for a number of classes.

    With 4 classes or more: APGD-CE, APGD-T, FAB-T, Square, aiming at min(9, C - 1) classes. The targeted DLR loss needs
    four logits and the untargeted one three, so C = 3 runs APGD-DLR instead of APGD-T, and C = 2 neither. Parts,
    iterations and targets are the same in both norms.
    """
    if version not in get_args(Version):
        raise unknown("AutoAttack version", str(version), get_args(Version))
    if norm not in NORMS:
        raise unknown("norm", str(norm), NORMS)
    if num_classes < 2:
        raise UserError(f"AutoAttack: got a model with {num_classes} class; allowed: 2 or more")
    parts: tuple[str, ...] = ("apgd-ce", "apgd-t", "fab-t", "square")
    note = None
    if num_classes == 3:
        parts = ("apgd-ce", "apgd-dlr", "fab-t", "square")
        note = "3 classes: APGD-DLR stands for APGD-T, which needs 4"
    elif num_classes == 2:
        parts = ("apgd-ce", "fab-t", "square")
        note = "2 classes: without APGD-T, which needs 4"
    elif num_classes <= MAX_TARGETS:
        note = f"attacks all {num_classes - 1} other classes; the standard suite attacks {MAX_TARGETS}"
    if version == "fast":
        parts = tuple(part for part in parts if part.startswith("apgd"))
    return Plan(norm, parts, 10 if version == "10" else 100, QUERIES, min(MAX_TARGETS, num_classes - 1), note)


@refusing
def autoattack(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    norm: Norm = "linf",
    version: Version = "standard",
    batch_size: int = 250,
    seed: int = 0,
    device: torch.device | str | None = None,
    natural: Tensor | None = None,
    state: UnitStore | None = None,
    progress: Progress | None = None,
    checked: bool = False,
) -> Tensor:
    """Return adversarial images in the ball, or the clean image if no attack of the suite succeeded.

    Every image equals that of the official implementation with the same seed and batch size, except an image that
    float32 rounding moved out of an L2 ball by more than 1e-6: it is projected back before the model judges it. It also
    runs in cases where the official suite fails: with fewer than 10 classes (see `plan`), and in L2 at some image
    sizes. The model's mode, parameters and gradients, the global random state and the precision switches are restored.
    Several processes (`taet.distributed.joined`) that make the same call share the work, and each returns everything.

    Args:
        model: from images to logits (N, classes).
        x: images (N, C, H, W), floating point in [0, 1], in any memory layout, e.g. (N, H, W, C) permuted.
        y: labels (N,), int64.
        eps: radius of the ball in units of the image range, above 0; in L-infinity at most 1.
        norm: "linf" or "l2".
        version: "standard", "fast" or "10" (see `taet list attacks`).
        batch_size: images per batch; a few results depend on it, because a batch shares its random draws.
        seed: seed of every part on every batch.
        device: device of the model. Default: that of x.
        natural: classes (N,) that the model predicts for x, if they are known already.
        state: store of finished batches, which are not run again on the same images and labels with the same settings.
            The caller makes sure that the model is the same.
        progress: called as progress(done, total, label) before each batch and at most twice a second inside it, in
            estimated passes of an image through the model.
        checked: skip the checks of the model, images and labels, as in `pgd`.

    Raises:
        UserError: invalid inputs, as in `pgd`; images of another shape; an eps that is not one number above 0; a model
            whose logits or gradients are not finite on some image.

    Source: Croce, Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free
    attacks", ICML 2020, arXiv:2003.01690; the attacks are those of the package pyautoattack.
    """
    del checked  # `refusing` has read it
    where = x.device if device is None else torch.device(device)
    work = SuiteArguments(natural=natural, batch_size=batch_size, device=where, state=state, progress=progress)
    outcome = run_parts(model, x, y, eps=eps, norm=norm, version=version, seed=seed, **work)
    assert outcome.x_adv is not None
    return outcome.x_adv


def run_parts(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    norm: Norm = "linf",
    version: Version = "standard",
    batch_size: int = 250,
    seed: int = 0,
    device: torch.device | str | None = None,
    natural: Tensor | None = None,
    precision: SearchPrecision = "float32",
    keep_examples: bool = True,
    state: UnitStore | None = None,
    progress: Progress | None = None,
) -> SuiteResult:
    """Run AutoAttack and return which part broke which example; arguments are those of `autoattack`.

    A part attacks the images that are still correct, in ascending order and in new batches. One part on one batch is
    the unit that is saved, resumed and given to a process; it depends on its images only, because every part is seeded
    on every batch. Without `keep_examples` the adversarial images are neither returned nor saved. A model that is
    already `Counted` keeps its view. Images may also be uint8, which are divided by 255 batch by batch. Another
    `precision` applies to the attacks only; the verdict stays in float32.
    """
    check_settings(x, eps, norm, batch_size, natural)
    device = x.device if device is None else torch.device(device)
    every_gpu = range(torch.cuda.device_count())
    counted = model if isinstance(model, Counted) else Counted(model)
    with (
        torch.inference_mode(False),  # the attacks need gradients, also inside the caller's inference mode
        torch.no_grad(),
        frozen(counted),
        exact_float32(device.type),
        torch.random.fork_rng(every_gpu),
    ):
        chosen = plan(_count_classes(counted, x, y, device), version, norm)
        suite = SuiteRun(counted, x, y, eps, chosen, batch_size, seed, device, precision, keep_examples, state)
        x_adv = as_float(x) if keep_examples else None
        predictions = y.clone() if natural is None else natural.to(y.device, copy=True)
        correct = predictions == y
        order = chosen.parts if natural is not None else ("clean", *chosen.parts)
        after, done = dict[str, Tensor](), 0
        units: list[Unit] = []
        for number, part in enumerate(order):
            survivors = correct.nonzero().flatten()
            later = sum(chosen.cost(name) for name in order[number + 1 :])
            for indices, unit in suite.run(part, survivors, progress, done, later):
                found = torch.from_numpy(unit["predictions"]).to(y.device)
                broken = indices[found != y[indices]]
                predictions[indices] = found
                correct[broken] = False
                if x_adv is not None:
                    x_adv[broken] = torch.from_numpy(unit["x_adv"]).to(x_adv.device)
                units.append({name: unit[name] for name in WORK})
            after[part] = correct.clone()
            done += len(survivors) * chosen.cost(part)
        if progress is not None:
            progress(done, done, "done")
    parts = {part: after[part] for part in chosen.parts}
    work = {name: sum(unit[name].item() for unit in units) for name in WORK}
    return SuiteResult(x_adv, predictions, correct, parts, chosen.facts(), **work)


def check_settings(x: Tensor, eps: float, norm: Norm, batch_size: int, natural: Tensor | None) -> None:
    """Raise a `UserError` for a wrong shape of images, predictions, radius or batch size; callers check the values."""
    if isinstance(eps, Tensor):
        raise UserError(f"eps: got a tensor of shape {tuple(eps.shape)}; allowed: one number (all images share a ball)")
    check_radius("eps", eps, norm)
    if eps == 0:
        raise UserError("eps: got 0; allowed: above 0 (without an attack: the clean accuracy)")
    check_value("batch size", batch_size, Count)
    if x.ndim != 4 or len(x) == 0:
        raise UserError(f"images: got shape {tuple(x.shape)}; allowed: (N, C, H, W) with N of 1 or more")
    if natural is not None and (natural.dtype != torch.int64 or natural.shape != (len(x),)):
        got = f"{natural.dtype} {tuple(natural.shape)}"
        raise UserError(f"natural predictions: got {got}; allowed: torch.int64 ({len(x)},)")


def as_float(x: Tensor) -> Tensor:
    """Return a contiguous float32 copy of images; uint8 is divided by 255, bit for bit as in training."""
    values = x.detach().to(torch.float32, memory_format=torch.contiguous_format, copy=True)
    return values.div_(255) if x.dtype == torch.uint8 else values


def _count_classes(model: Counted, x: Tensor, y: Tensor, device: torch.device) -> int:
    """Return the number of logits, tried on one image; there must be one for each label."""
    first = as_float(x[:1]).to(device)
    check_type(model, first)  # of other images, too, the suite makes float32
    width = model(first).shape[1]
    check_labels(int(y.min()), int(y.max()), width)
    return int(width)


@dataclass(frozen=True)
class SuiteRun:
    """The attacks of a plan, their images, and the store of finished batches."""

    model: Counted
    x: Tensor
    y: Tensor
    eps: float
    plan: Plan
    batch_size: int
    seed: int
    device: torch.device
    precision: SearchPrecision
    keep_examples: bool
    state: UnitStore | None

    def run(
        self, part: str, survivors: Tensor, progress: Progress | None, done: int, later: int
    ) -> Iterator[tuple[Tensor, Unit]]:
        """Run a part on the images that are still correct; return the indices and results of each batch.

        `done` are the passes before this part, and `later` those after it for each image that stays correct. The share
        that stays correct is estimated from the batches so far.
        """
        batches = torch.split(survivors, self.batch_size) if len(survivors) else ()
        attack, cost = self.attack(part), self.plan.cost(part)
        met = stood = 0

        def report(number: int, inside: float = 0) -> None:
            if progress is not None:
                before, standing = number * self.batch_size * cost, len(survivors) * (stood / met if met else 1)
                total = done + len(survivors) * cost + standing * later
                progress(done + before + inside, total, f"{part} {number + 1}/{len(batches)}")

        def compute(number: int) -> Unit:
            nonlocal met, stood
            indices = batches[number]
            with self.model.ticking(len(indices) * cost, lambda inside: report(number, inside)):
                unit = self._run_unit(part, attack, indices)
            met, stood = met + len(indices), stood + len(indices) - self._broken(indices, unit)
            return unit

        units = run_units(
            len(batches),
            compute,
            state=self.state,
            key=lambda number: f"{part}-{number}",
            valid=lambda number, unit: self._whole(part, batches[number], unit),
            begin=report,
        )
        return zip(batches, units, strict=True)

    def _run_unit(self, part: str, attack: Callable[[Tensor, Tensor], Tensor], indices: Tensor) -> Unit:
        """Attack one batch, check every adversarial image and return the results as arrays."""
        x, y = (given.to(self.device) for given in self._batch(indices))
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
            **({"x_adv": x_adv[found != y].cpu().numpy()} if self.keep_examples else {}),
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

    def _batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return images as the model takes them and their labels, where they are kept."""
        return as_float(self.x[indices]), self.y[indices]

    def _content(self, part: str, indices: Tensor) -> NDArray[np.uint8]:
        """Hash of what decides a unit besides the model: images, labels and the settings of its part."""
        chosen = self.plan
        settings = [part, chosen.norm, self.eps, self.seed]
        settings += [] if self.precision == "float32" else [self.precision]
        settings += [chosen.queries] if part == "square" else [chosen.iterations, chosen.target_classes]
        digest = hashlib.sha256(repr(settings).encode())
        for given in self._batch(indices):
            digest.update(given.cpu().numpy().data)
        return np.frombuffer(digest.digest(), dtype=np.uint8)

    def _broken(self, indices: Tensor, unit: Unit) -> int:
        """Return how many images of a batch are misclassified."""
        return int((unit["predictions"] != self.y[indices].cpu().numpy()).sum())

    def _whole(self, part: str, indices: Tensor, unit: Unit) -> bool:
        """Return whether these are the complete results of this part on these images."""
        needed = {"content", "indices", "predictions", *WORK}
        if not needed | ({"x_adv"} if self.keep_examples else set()) <= unit.keys():
            return False
        same = np.array_equal(unit["indices"], indices.cpu().numpy())
        same = same and np.array_equal(unit["content"], self._content(part, indices))
        if not same or unit["predictions"].shape != unit["indices"].shape:
            return False
        return not self.keep_examples or len(unit["x_adv"]) == self._broken(indices, unit)

    def attack(self, part: str) -> Callable[[Tensor, Tensor], Tensor]:
        """Return one attack of the official suite with the settings of the suite; "clean" changes nothing."""
        from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
        from pyautoattack.fab_pt import FABAttack_PT
        from pyautoattack.square import SquareAttack

        chosen = self.plan
        apgd = {"n_iter": chosen.iterations, "eot_iter": 1, "rho": 0.75, "logger": _logger}
        targets = {"n_target_classes": chosen.target_classes}

        def build(kind: Any, model: Any = self.model, **settings: Any) -> Callable[[Tensor, Tensor], Tensor]:
            common = {"norm": NORMS[chosen.norm], "eps": self.eps, "seed": self.seed, "device": self.device}
            perturb: Callable[[Tensor, Tensor], Tensor] = kind(model, n_restarts=1, **common, **settings).perturb
            return perturb

        if part == "clean":
            return lambda x, _: x
        if part == "apgd-t":
            return build(APGDAttack_targeted, **targets, **apgd)
        if part == "fab-t":
            return build(FABAttack_PT, n_iter=chosen.iterations, targeted=True, **targets)
        if part == "square":
            rows, columns = self.x.shape[2:]
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


@dataclass(frozen=True, kw_only=True)
class AutoAttack(Suite):
    """The official standard suite, through the package `pyautoattack`: APGD-CE, APGD-T, FAB-T, Square.

    It takes 100 iterations, 9 target classes and 5,000 queries. `-fast` is its first two parts, for development, at no
    extra cost next to the whole suite. `-10` is the four parts with 10 iterations, as in another library whose results
    several papers report as AutoAttack; an upper bound.
    """

    names: ClassVar[Mapping[str, Norm | None]] = {name: "l2" if "-l2" in name else "linf" for name in NAMES}
    order: ClassVar[int] = 7
    batch_independent: ClassVar[bool] = False
    skips_misclassified: ClassVar[bool] = True
    gradient_free_parts: ClassVar[frozenset[str]] = frozenset({"square"})
    not_transferable: ClassVar[str] = "which leaves an image that it cannot break as it is"

    version: Annotated[Version, FIXED]

    @classmethod
    def make(cls, given: Fields, settings: Evaluation, radius: float) -> Self:
        last = given["name"].partition(":")[0].rpartition("-")[2]
        version = last if last in get_args(Version) else "standard"
        # Official unless its own option asks for something else.
        return super().make({"version": version, "precision": "float32", **given}, settings, radius)

    def run(self, model: Model, x: Tensor, y: Tensor, draws: Draws) -> Tensor:
        assert isinstance(model, nn.Module)
        outcome = run_parts(model, x, y, **self._settings, batch_size=len(x))
        assert outcome.x_adv is not None
        return outcome.x_adv

    def run_parts(self, model: nn.Module, x: Tensor, y: Tensor, **work: Unpack[SuiteArguments]) -> SuiteResult:
        return run_parts(model, x, y, **self._settings, keep_examples=False, **work)

    @property
    def _settings(self) -> dict[str, Any]:
        ball = {"eps": self.radius, "norm": self.norm or "linf"}
        return {**ball, "version": self.version, "seed": self.seed or 0, "precision": self.precision}

    def plan(self, num_classes: int) -> Plan:
        """Return the parts and how long they run."""
        return plan(num_classes, self.version, self.norm or "linf")

    def parts(self, num_classes: int) -> tuple[str, ...]:
        return self.plan(num_classes).parts

    def passes(self, num_classes: int) -> int:
        """Estimated passes of an image that no part breaks."""
        chosen = self.plan(num_classes)
        return sum(chosen.cost(part) for part in chosen.parts)

    def facts(self, num_classes: int) -> dict[str, object]:
        return self.plan(num_classes).facts()

    @property
    def is_reference(self) -> bool:
        return self.version == "standard"

    def whole(self) -> AutoAttack | None:
        """Return the standard suite for the fast one, which is its beginning.

        Both have the same attacks, seeds and batches, and no later part touches an image that an earlier one broke. It
        does not hold for version "10", whose attacks are shorter.
        """
        if self.version != "fast":
            return None
        return replace(self, name=self.name.replace("-fast", ""), version="standard")
