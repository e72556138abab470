"""AutoAttack: the official suite of four attacks, in batches that are saved, resumed and shared between processes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal, Self, Unpack, get_args

import torch
from torch import Tensor, nn

from taet.attacks.ball import Norm, frozen
from taet.attacks.counted import Counted
from taet.attacks.draws import Draws
from taet.attacks.inputs import check_labels, refusing
from taet.attacks.precision import SearchPrecision, exact_float32
from taet.attacks.spec import FIXED, Fields, Model
from taet.attacks.suite import Suite, SuiteArguments, SuiteResult
from taet.attacks.suite_run import NORMS, Batches, Plan, SuiteRun, as_float
from taet.attacks.units import UnitStore
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


MAX_TARGETS = 9  # target classes of the official suite
QUERIES = 5000  # of Square in the official suite
BATCH_SIZE = 250  # images, on which a few results depend, because a batch shares its random draws


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
    batch_size: int = BATCH_SIZE,
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
    work: SuiteArguments = {"batch_size": batch_size, "device": device, "natural": natural, "state": state}
    work["progress"] = progress
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
    seed: int = 0,
    precision: SearchPrecision = "float32",
    **work: Unpack[SuiteArguments],
) -> SuiteResult:
    """Run AutoAttack and return which part broke which example; arguments are those of `autoattack`.

    A part attacks the images that are still correct, in ascending order and in new batches. One part on one batch is
    the unit that is saved, resumed and given to a process; it depends on its images only, because every part is seeded
    on every batch. A model that is already `Counted` keeps its view. Images may also be uint8, which are divided by 255
    batch by batch. Another `precision` applies to the attacks only; the verdict stays in float32.
    """
    natural, batch_size, state = work.get("natural"), work.get("batch_size", BATCH_SIZE), work.get("state")
    check_settings(x, eps, norm, batch_size, natural)
    device = torch.device(work.get("device") or x.device)
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
        batches = Batches(x, y, batch_size, device, state, work.get("keep_examples", True))
        suite = SuiteRun(counted, batches, chosen, eps, seed, precision)
        return suite.run_all(natural, work.get("progress"))


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


def _count_classes(model: Counted, x: Tensor, y: Tensor, device: torch.device) -> int:
    """Return the number of logits, tried on one image; there must be one for each label."""
    first = as_float(x[:1]).to(device)
    width = model(first).shape[1]
    check_labels(int(y.min()), int(y.max()), width)
    return int(width)


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
        work["keep_examples"] = False
        return run_parts(model, x, y, **self._settings, **work)

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
