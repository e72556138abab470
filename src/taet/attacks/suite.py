"""A run of AutoAttack: the parts of the official suite, one after the other."""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor

from taet.attacks.ball import BALL_TOLERANCE, Norm, choose, distance, projection, verify
from taet.attacks.batch_store import BatchStore, Unit, in_batches
from taet.attacks.counting_model import WORK, CountingModel
from taet.attacks.examples import Example, Examples, stored_examples
from taet.attacks.spec import AttackSpec, Model
from taet.errors import UserError
from taet.files import digest
from taet.progress import Progress

NORMS: Mapping[Norm, str] = {"linf": "Linf", "l2": "L2"}  # our names and those of the library
SuitePart = Callable[[Tensor, Tensor], Tensor]  # (x, y) -> x_adv

# Silences the library's warning about points whose gradient is zero.
_logger = logging.getLogger(__name__)
_logger.addHandler(logging.NullHandler())


@dataclass(frozen=True)
class Plan:
    """The parts of a suite and their lengths."""

    parts: tuple[str, ...]
    iterations: int
    queries: int
    target_classes: int
    note: str | None  # how the suite differs from the official one, which needs more classes

    def cost(self, part: str) -> int:
        """Return the estimated passes through the model per image.

        An iteration of APGD takes 2 (forward, backward), of FAB 3.
        """
        apgd, fab = 2 * self.iterations, 3 * self.iterations
        targeted = {"apgd-t": apgd * self.target_classes, "fab-t": fab * self.target_classes}
        return {"clean": 1, "apgd-ce": apgd, "apgd-dlr": apgd, **targeted, "square": self.queries}[
            part
        ]

    def facts(self) -> dict[str, object]:
        """Return what a result card stores about the suite, as plain values.

        Settings that no part uses are left out.
        """
        facts: dict[str, object] = {"parts": list(self.parts), "iterations": self.iterations}
        if {"apgd-t", "fab-t"} & set(self.parts):
            facts["target_classes"] = self.target_classes
        if "square" in self.parts:
            facts["queries"] = self.queries
        return facts | ({"note": self.note} if self.note else {})


@dataclass(frozen=True, eq=False)
class SuiteResult:
    """The result of a suite on N examples.

    Seconds are summed over batches and so over processes.
    """

    # (N, C, H, W): the example that fooled the model, else the clean one; None if not kept
    x_adv: Tensor | None
    predictions: Tensor  # (N,): class predicted for x_adv, also if that is not kept
    # (N,): whether the clean example and the result of every part are classified correctly
    correct: Tensor
    parts: dict[str, Tensor]  # (N,) still correct after each part, in the order they ran
    facts: dict[str, object]  # what a result card stores about the parts
    seconds: float
    forwards: int
    backwards: int
    # the first image of each group that broke, as it broke
    examples: list[Example]


def as_float(x: Tensor) -> Tensor:
    """Return a contiguous float32 copy of images.

    uint8 is divided by 255, bit for bit as in training.
    """
    values = x.detach().to(torch.float32, memory_format=torch.contiguous_format, copy=True)
    return values.div_(255) if x.dtype == torch.uint8 else values


@dataclass(eq=False)
class _StateOfImages:
    """What the parts that have run so far did to N images."""

    y: Tensor  # (N,)
    predictions: Tensor  # (N,), and the next two as in SuiteResult
    correct: Tensor
    x_adv: Tensor | None
    correct_after: dict[str, Tensor] = field(default_factory=dict)
    work: list[Unit] = field(default_factory=list)  # seconds and passes of each batch
    examples: list[Example] = field(default_factory=list)

    @classmethod
    def before(cls, y: Tensor, natural: Tensor | None, x_adv: Tensor | None) -> Self:
        """Return the state before the first part.

        Without predictions on the clean images, `natural`, all images count as correct.
        """
        predictions = y.clone() if natural is None else natural.to(y.device, copy=True)
        return cls(y, predictions, predictions == y, x_adv)

    def update(self, indices: Tensor, unit: Unit) -> None:
        """Take over the result of a part on the images at `indices`."""
        predicted = torch.from_numpy(unit["predictions"]).to(self.y.device)
        self.predictions[indices] = predicted
        broken = indices[predicted != self.y[indices]]
        self.correct[broken] = False
        if self.x_adv is not None:
            self.x_adv[broken] = torch.from_numpy(unit["x_adv"]).to(self.x_adv.device)
        self.work.append({name: unit[name] for name in WORK})
        self.examples += stored_examples([unit])

    def result(self, plan: Plan, wanted: Examples | None) -> SuiteResult:
        """Return the result after the last part; of the examples, the first that are `wanted`."""
        examples = self.examples
        if wanted is not None:
            examples = wanted.first(examples, self.predictions.cpu().numpy())
        return SuiteResult(
            self.x_adv,
            self.predictions,
            self.correct,
            parts={part: self.correct_after[part] for part in plan.parts},
            facts=plan.facts(),
            **{name: sum(unit[name].item() for unit in self.work) for name in WORK},
            examples=examples,
        )


@dataclass(frozen=True)
class SuiteRun:
    """The attacks of a plan on batches of images.

    A part attacks the images that are still correct, in ascending order and in new batches. One
    part on one batch is the unit of saving and resuming; it depends on its images only, because
    every part is seeded on every batch.
    """

    model: CountingModel
    attack: AttackSpec  # norm, radius, seed and precision of every part
    plan: Plan
    x: Tensor
    y: Tensor
    batch_size: int
    device: torch.device
    state: BatchStore | None
    keep_examples: bool
    examples: Examples | None = None  # which of the images that break are kept to be looked at

    def run_all(self, natural: Tensor | None, progress: Progress) -> SuiteResult:
        """Run every part.

        `natural` are the predictions on the clean images, (N,), if they are known.
        """
        cost = self.plan.cost
        x_adv = as_float(self.x) if self.keep_examples else None
        state = _StateOfImages.before(self.y, natural, x_adv)
        parts = self.plan.parts if natural is not None else ("clean", *self.plan.parts)
        passes_done = 0
        for number, part in enumerate(parts):
            survivors = state.correct.nonzero().flatten()
            passes_to_come = len(survivors) * sum(map(cost, parts[number:]))
            total = passes_done + passes_to_come
            for indices, unit in self.run(part, survivors, progress, passes_done, total):
                state.update(indices, unit)
            state.correct_after[part] = state.correct.clone()
            passes_done += len(survivors) * cost(part)
        progress(passes_done, passes_done, "done")
        return state.result(self.plan, self.examples)

    def run(
        self, part: str, survivors: Tensor, progress: Progress, done: int, total: int
    ) -> Iterator[tuple[Tensor, Unit]]:
        """Attack the `survivors` with a part; return indices and results of each batch.

        `done` passes came before.
        """
        batches = torch.split(survivors, self.batch_size) if len(survivors) else ()
        # each part begins anew: an image that breaks later may come first
        examples = None if self.examples is None else replace(self.examples)
        work = partial(self._run_unit, part, self.part(part), examples)
        cost = self.plan.cost(part)

        def report(passes: float, number: int) -> None:
            progress(done + passes, total, f"{part} {number + 1}/{len(batches)}")

        def key(number: int) -> str:  # names the images, which depend on the parts before
            return f"{part}-{number}-{digest(batches[number].tolist())[:16]}"

        found = in_batches(
            batches, work, model=self.model, cost=cost, report=report, state=self.state, key=key
        )
        return zip(batches, found, strict=True)

    def _run_unit(
        self, part: str, attack: SuitePart, examples: Examples | None, indices: Tensor
    ) -> Unit:
        """Attack one batch, check every adversarial image and return the results as arrays."""
        x, y = as_float(self.x[indices]).to(self.device), self.y[indices].to(self.device)
        eps, norm, work = self.attack.radius, self.attack.norm or "linf", self.model.measure()
        try:
            with self.model.searching(self.attack.precision, x.device.type):
                x_adv = attack(x.clone(), y.clone()).detach()
            # in float32 the library's scaling misses by up to 1e-5 at 224 x 224 pixels
            if norm == "l2":
                outside = distance(x_adv, x, "l2") > eps + BALL_TOLERANCE
                x_adv = choose(outside, projection(x, eps, "l2")(x_adv), x_adv)
            # The largest logit in this batch decides, as in the official evaluation: others round
            # differently.
            logits = self.model.exact_logits(x_adv)
            predicted = logits.max(1).indices
        finally:  # the library ignores some values that are not finite and fails on others
            if self.model.unsound():
                images = f"images {int(indices[0])} to {int(indices[-1])}"
                raise UserError(f"model: logits or gradients not finite under {part} on {images}")
        verify(part, x_adv, x, eps, norm)
        broken = predicted != y
        kept = {"x_adv": x_adv[broken].cpu().numpy()} if self.keep_examples else {}
        if examples is not None:
            rows = indices.to(self.device)[broken].cpu().numpy()
            kept |= examples.of_batch(rows, x_adv[broken], logits[broken])
        return {"predictions": predicted.cpu().numpy(), **kept, **work()}

    def part(self, name: str) -> SuitePart:
        """Return one attack of the official suite with its settings; "clean" changes nothing."""
        from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
        from pyautoattack.fab_pt import FABAttack_PT

        plan, eps = self.plan, self.attack.radius
        norm, seed = self.attack.norm or "linf", self.attack.seed or 0
        if name == "square":
            return official_square(self.model, plan.queries, norm, eps, seed, self.device)
        apgd = {"n_iter": plan.iterations, "eot_iter": 1, "rho": 0.75, "logger": _logger}
        targets = {"n_target_classes": plan.target_classes}

        def build(kind: Any, **settings: object) -> SuitePart:
            common = {
                "norm": NORMS[norm],
                "eps": eps,
                "seed": seed,
                "device": self.device,
                "n_restarts": 1,
            }
            return kind(self.model, **common, **settings).perturb

        if name == "clean":
            return lambda x, _: x
        if name == "apgd-t":
            return build(APGDAttack_targeted, **targets, **apgd)
        if name == "fab-t":
            return build(FABAttack_PT, n_iter=plan.iterations, targeted=True, **targets)
        return build(APGDAttack, loss=name.removeprefix("apgd-"), **apgd)


def official_square(
    model: Model, queries: int, norm: Norm, eps: float, seed: int, device: torch.device
) -> SuitePart:
    """Return the random search of the official suite."""
    from pyautoattack.square import SquareAttack

    search = {
        "p_init": 0.8,
        "n_queries": queries,
        "n_restarts": 1,
        "seed": seed,
        "resc_schedule": False,
    }
    return SquareAttack(model, norm=NORMS[norm], eps=eps, device=device, **search).perturb  # type: ignore[no-untyped-call]
