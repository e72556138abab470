"""AutoAttack, the official suite of four attacks, and Square, its random search, alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, Self, get_args

import torch
from torch import Tensor, nn

from taet.attacks.arithmetic import frozen_and_exact
from taet.attacks.ball import Norm
from taet.attacks.batch_store import BatchStore
from taet.attacks.counting_model import CountingModel
from taet.attacks.examples import Examples
from taet.attacks.inputs import check_labels, validate_inputs
from taet.attacks.noise import Draws
from taet.attacks.spec import FIXED, AttackSpec, Fields, Model
from taet.attacks.suite import Plan, SuiteResult, SuiteRun, as_float, official_square
from taet.errors import UserError
from taet.progress import Progress
from taet.settings import Evaluation
from taet.settings.types import Count

NAMES = {
    "autoattack": "the official standard suite in L-infinity, APGD-CE, APGD-T, FAB-T, Square "
    "(Croce & Hein 2020): the number to report; 9700 passes for an image that no attack breaks",
    "autoattack-fast": "its first two attacks, for development: an upper bound, usually close; "
    "2000 passes",
    "autoattack-10": "the four attacks with 10 iterations instead of the official 100, which some "
    "papers call AutoAttack: an upper bound; 5470 passes",
    "autoattack-l2": "the official standard suite in L2, for a norm that training did not use; "
    "9700 passes",
    "autoattack-l2-fast": "the first two attacks of autoattack-l2, for development: an upper "
    "bound; 2000 passes",
    "autoattack-l2-10": "autoattack-l2 with 10 iterations instead of 100: an upper bound; 5470 "
    "passes",
    "square": "random search without gradients, which reveals gradient masking (Andriushchenko et "
    "al. 2020); one pass per query, 1000 queries",
}

Version = Literal["standard", "fast", "10"]

MAX_TARGETS = 9  # target classes of the official suite
QUERIES = 5000  # of Square in the official suite
FEW_CLASSES: Mapping[int, tuple[tuple[str, ...], str | None]] = {
    2: (("apgd-ce", "fab-t", "square"), "2 classes: without APGD-T, which needs 4"),
    3: (
        ("apgd-ce", "apgd-dlr", "fab-t", "square"),
        "3 classes: APGD-DLR stands for APGD-T, which needs 4",
    ),
}
# images; it changes the result of a few, because the images of a batch share random draws
BATCH_SIZE = 250


@validate_inputs
def autoattack(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    norm: Norm = "linf",
    version: Version = "standard",
    batch_size: Count = BATCH_SIZE,
    seed: int = 0,
    checked: bool = False,
) -> Tensor:
    """Run the official suite of four attacks, and return adversarial images in the ball.

    An image that no attack of the suite breaks is returned clean. Every other image equals that of
    the official implementation with the same seed and batch size, except an image that float32
    rounding moved out of an L2 ball by more than 1e-6: it is projected back before the model judges
    it. With fewer than 10 classes the suite differs (see `AutoAttack.plan`). Processes that make
    the same call share the work.

    Args:
        model, x, y, checked: as in `pgd`; x are images (N, C, H, W).
        eps: radius of the ball, one number above 0, in units of the image range, e.g. 8/255.
        norm: "linf" or "l2".
        version: "standard", "fast" or "10" (see `taet list attacks`).
        batch_size: number of images that share random draws.
        seed: seed of the draws.

    Errors are those of `cw_l2`. Source: Croce, Hein, "Reliable evaluation of adversarial robustness
    with an ensemble of diverse parameter-free attacks", ICML 2020, arXiv:2003.01690; the attacks
    are those of the package pyautoattack.

    Example:
        >>> import torch
        >>> from taet.attacks import autoattack
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        >>> x, y = torch.rand(4, 1, 8, 8), torch.arange(4)
        >>> x_adv = autoattack(model, x, y, eps=8 / 255, version="fast")
        >>> bool((x_adv - x).abs().max() <= 8 / 255 + 1e-6)
        True
    """
    del checked  # `validate_inputs` has read it
    if isinstance(eps, Tensor):
        raise UserError(
            f"eps: got a tensor of shape {tuple(eps.shape)}; allowed: one number (all images share "
            "a ball)"
        )
    attack = AutoAttack(name="autoattack", norm=norm, eps=eps, version=version, seed=seed)
    outcome = attack.run_parts(model, x, y, batch_size=batch_size, keep_examples=True)
    assert outcome.x_adv is not None
    return outcome.x_adv


@dataclass(frozen=True, kw_only=True)
class AutoAttack(AttackSpec):
    """The official suite of `pyautoattack`: APGD-CE, APGD-T, FAB-T, Square. `-fast`: the first two.
    `-10`: 10 steps."""

    names: ClassVar[Mapping[str, Norm | None]] = {
        name: "l2" if "-l2" in name else "linf" for name in NAMES if name != "square"
    }
    order: ClassVar[int] = 7
    batch_independent: ClassVar[bool] = False
    usual_share: ClassVar[float] = 0.4
    gradient_free_parts: ClassVar[frozenset[str]] = frozenset({"square"})
    not_transferable: ClassVar[str] = "which leaves an image that it cannot break as it is"

    version: Annotated[Version, FIXED]

    @classmethod
    def make(cls, given: Fields, settings: Evaluation, radius: float) -> Self:
        suffix = given["name"].partition(":")[0].rpartition("-")[2]
        version = suffix if suffix in get_args(Version) else "standard"
        # In float32, as the official suite, unless its own option `precision` says otherwise.
        return super().make({"version": version, "precision": "float32", **given}, settings, radius)

    def run(self, model: Model, x: Tensor, y: Tensor, draws: Draws) -> Tensor:
        assert isinstance(model, nn.Module)
        outcome = self.run_parts(model, x, y, batch_size=len(x), keep_examples=True)
        assert outcome.x_adv is not None
        return outcome.x_adv

    def run_parts(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        natural: Tensor | None = None,
        batch_size: int = BATCH_SIZE,
        device: torch.device | str | None = None,
        state: BatchStore | None = None,
        progress: Progress = lambda *_: None,
        keep_examples: bool = False,
        examples: Examples | None = None,
    ) -> SuiteResult:
        """Attack images, float or uint8, in batches; return which part broke which image.

        `natural` are the classes (N,) predicted for x, if they are known. A `CountingModel` keeps
        its view. `examples` says which of the images that break are kept to be looked at.
        """
        if x.ndim != 4 or len(x) == 0:
            raise UserError(
                f"images: got shape {tuple(x.shape)}; allowed: (N, C, H, W) with N of 1 or more"
            )
        if not self.radius:
            raise UserError("eps: got 0; allowed: above 0 (without an attack: the clean accuracy)")
        device = torch.device(device or x.device)
        counted = model if isinstance(model, CountingModel) else CountingModel(model)
        with frozen_and_exact(device.type, counted), torch.no_grad():
            classes = int(counted(as_float(x[:1]).to(device)).shape[1])
            check_labels(int(y.min()), int(y.max()), classes)
            plan = self.plan(classes)
            suite = SuiteRun(
                counted, self, plan, x, y, batch_size, device, state, keep_examples, examples
            )
            return suite.run_all(natural, progress)

    def plan(self, num_classes: int) -> Plan:
        """Return the attacks of the suite, their lengths, and the number of target classes.

        There are min(9, C - 1) target classes.

        The targeted DLR loss needs four logits and the untargeted one three: C = 3 runs APGD-DLR, C
        = 2 neither.
        """
        parts, note = FEW_CLASSES.get(num_classes, (("apgd-ce", "apgd-t", "fab-t", "square"), None))
        if 3 < num_classes <= MAX_TARGETS:
            note = (
                f"attacks all {num_classes - 1} other classes; the standard suite attacks "
                f"{MAX_TARGETS}"
            )
        if self.version == "fast":
            parts = tuple(part for part in parts if part.startswith("apgd"))
        return Plan(
            parts,
            10 if self.version == "10" else 100,
            QUERIES,
            min(MAX_TARGETS, num_classes - 1),
            note,
        )

    def passes(self, num_classes: int) -> int:
        """Return the estimated passes for an image that no part breaks."""
        plan = self.plan(num_classes)
        return sum(map(plan.cost, plan.parts))


@dataclass(frozen=True, kw_only=True)
class Square(AttackSpec):
    """Random search over squares of the image: the last part of AutoAttack, alone, with a fifth of
    its queries.

    It lowers the margin z_y - max_{k != y} z_k by squares of +-eps, and stops once the image is
    misclassified. Source: Andriushchenko, Croce, Flammarion, Hein, ECCV 2020, arXiv:1912.00049.
    """

    names: ClassVar[Mapping[str, Norm | None]] = {"square": "linf"}
    order: ClassVar[int] = 6
    batch_independent: ClassVar[bool] = False
    gradient_free: ClassVar[bool] = True
    not_transferable: ClassVar[str] = "which leaves an image that it cannot break as it is"

    queries: Count = 1000
    """Passes of an image through the model."""

    def run(self, model: Model, x: Tensor, y: Tensor, draws: Draws) -> Tensor:
        with torch.no_grad(), torch.random.fork_rng(range(torch.cuda.device_count())):
            # The library writes into the logits.
            search = lambda images: model(images).clone()  # noqa: E731
            attack = official_square(
                search, self.queries, "linf", self.radius, self.seed or 0, x.device
            )
            return attack(as_float(x), y.clone()).detach().to(x.dtype)

    def passes(self, num_classes: int) -> int:
        return self.queries + 3
