"""AutoAttack: the official suite of four attacks, run in units that can be saved, resumed and told apart."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from taet.attacks.ball import check_floating, frozen, verify
from taet.attacks.counted import Counted
from taet.attacks.precision import exact_float32
from taet.attacks.progress import Progress, ticking
from taet.config import check_ball
from taet.errors import UserError, unknown

NAMES = {
    "autoattack": "the official standard suite: APGD-CE, APGD-T, FAB-T, Square (Croce & Hein 2020)",
    "autoattack-fast": "its first two attacks, APGD-CE and APGD-T, for development",
    "autoattack-10": "the four attacks with 10 iterations where the official ones have 100: an upper bound",
}

Version = Literal["standard", "fast", "10"]
Arrays = Mapping[str, NDArray[Any]]

MAX_TARGETS = 9  # classes that the official suite aims at
QUERIES = 5000  # of Square in the official suite

# The library warns here about points whose gradient is zero.
_logger = logging.getLogger(__name__)
_logger.addHandler(logging.NullHandler())


class State(Protocol):
    """Where finished units of work are kept; what `get` returns was once given to `put`, or is None."""

    def get(self, key: str) -> Arrays | None: ...

    def put(self, key: str, arrays: Arrays) -> None: ...


@dataclass(frozen=True)
class Plan:
    """Which attacks run, and how long."""

    parts: tuple[str, ...]
    iterations: int
    queries: int
    target_classes: int
    note: str | None
    """How the suite differs from the official one because there are too few classes for it; None where it does not."""

    def cost(self, part: str) -> int:
        """Estimated passes through the model per image: an iteration of APGD takes 2 (forward, backward), of FAB 3."""
        gradient = {"apgd-ce": 2, "apgd-dlr": 2, "apgd-t": 2 * self.target_classes, "fab-t": 3 * self.target_classes}
        return self.queries if part == "square" else gradient[part] * self.iterations


@dataclass(frozen=True, eq=False)
class Outcome:
    """What AutoAttack did to each of N examples."""

    x_adv: Tensor | None
    """(N, C, H, W): the example that broke, the clean one where none did; None where examples were not kept."""
    predictions: Tensor
    """(N,): class of the clean example where that is wrong, else of the example that broke, else the label."""
    correct: Tensor
    """(N,): correct on the clean example and under every part."""
    parts: dict[str, Tensor]
    """(N,) still correct after each part, in the order they ran."""
    plan: Plan
    seconds: float
    forwards: int
    backwards: int


def plan(num_classes: int, version: Version = "standard") -> Plan:
    """Return the attacks of a version for a number of classes.

    With 4 classes or more: APGD-CE, APGD-T, FAB-T, Square, aiming at min(9, C - 1) classes. The targeted DLR loss needs
    four logits and the plain one three, so with C = 3 APGD-DLR stands for APGD-T, and with C = 2 it is left out.
    """
    if version not in ("standard", "fast", "10"):
        raise unknown("AutoAttack version", str(version), ("standard", "fast", "10"))
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
    return Plan(parts, 10 if version == "10" else 100, QUERIES, min(MAX_TARGETS, num_classes - 1), note)


def autoattack(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    version: Version = "standard",
    batch_size: int = 250,
    seed: int = 0,
    device: torch.device | str | None = None,
    state: State | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """Return adversarial images in the L-infinity ball, the clean ones where no attack of the suite succeeded.

    The images are, one by one, those of the official implementation with the same seed and batch size. The model is put
    in eval mode and back; its parameters and gradients, the global random state and the precision switches are as they
    were.

    Args:
        model: from images to logits (N, classes).
        x: images (N, C, H, W), floating point in [0, 1].
        y: labels (N,), int64.
        eps: radius of the ball in units of the image range.
        version: "standard", "fast" or "10" (see `taet list attacks`).
        batch_size: images per batch; the result depends on it in a few examples, since a batch shares its random draws.
        seed: seed of every part on every batch.
        device: where the model is; x's device where it is not given.
        state: finished units are put there, and are taken from there instead of being run again.
        progress: called as progress(done, total, label) before each unit and at most twice a second inside it, in
            estimated passes of an image through the model.

    Raises:
        UserError: images that are not floating point in [0, 1], labels out of range, a model that returns no logits.

    Source: Croce, Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free
    attacks", ICML 2020, arXiv:2003.01690; the attacks are those of the package pyautoattack.
    """
    outcome = run_parts(
        model,
        x,
        y,
        eps=eps,
        version=version,
        batch_size=batch_size,
        seed=seed,
        device=device,
        state=state,
        progress=progress,
    )
    assert outcome.x_adv is not None
    return outcome.x_adv


def run_parts(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    version: Version = "standard",
    batch_size: int = 250,
    seed: int = 0,
    device: torch.device | str | None = None,
    keep_examples: bool = True,
    state: State | None = None,
    progress: Progress | None = None,
) -> Outcome:
    """Run AutoAttack and return which part broke which example; arguments are those of `autoattack`.

    A part meets the survivors of the parts before it, in ascending order, cut into batches anew. One part on one batch
    is the unit that is saved and resumed; it depends on its images alone, since every part is seeded on every batch.
    Without `keep_examples` the adversarial images are neither returned nor saved.
    """
    check_inputs(x, y, eps, batch_size)
    device = x.device if device is None else torch.device(device)
    every_gpu = range(torch.cuda.device_count())
    counted, seconds, parts = Counted(model), 0.0, dict[str, Tensor]()
    x_adv = x.detach().float().clone() if keep_examples else None
    with torch.no_grad(), frozen(counted), exact_float32(device.type), torch.random.fork_rng(every_gpu):
        began = time.perf_counter()
        predictions, num_classes = _predict(counted, x, y, batch_size, device)
        seconds += time.perf_counter() - began
        forwards, backwards = counted.forwards, 0
        chosen = plan(num_classes, version)
        correct = predictions == y
        done = 0
        for number, part in enumerate(chosen.parts):
            survivors = correct.nonzero().flatten()
            units = torch.split(survivors, batch_size) if len(survivors) else ()
            for batch, indices in enumerate(units):
                ahead = len(survivors) - batch * batch_size
                later = int(correct.sum()) * sum(chosen.cost(name) for name in chosen.parts[number + 1 :])
                total, label = done + ahead * chosen.cost(part) + later, f"{part} {batch + 1}/{len(units)}"
                expected = len(indices) * chosen.cost(part)

                def report(passes: float, done: float = done, total: float = total, label: str = label) -> None:
                    if progress is not None:
                        progress(done + passes, total, label)

                report(0)
                labels = y[indices]
                unit = _restore(state, f"{part}-{batch}", indices, labels, keep_examples)
                if unit is None:
                    images = x[indices].float().contiguous().to(device)
                    attack = _attack(part, chosen, counted, eps, seed, device)
                    with ticking(counted, expected, report):
                        unit = _run_unit(part, attack, counted, images, labels.to(device), eps, keep_examples)
                    unit["indices"] = indices.cpu().numpy()
                    if state is not None:
                        state.put(f"{part}-{batch}", unit)
                found = torch.from_numpy(unit["predictions"]).to(y.device)
                broken = indices[found != labels]
                predictions[indices] = found
                correct[broken] = False
                if x_adv is not None:
                    x_adv[broken] = torch.from_numpy(unit["x_adv"]).to(x_adv.device)
                seconds += float(unit["seconds"])
                forwards += int(unit["forwards"])
                backwards += int(unit["backwards"])
                done += expected
            parts[part] = correct.clone()
        if progress is not None:
            progress(done, done, "done")
    return Outcome(x_adv, predictions, correct, parts, chosen, seconds, forwards, backwards)


def check_inputs(x: Tensor, y: Tensor, eps: float, batch_size: int) -> None:
    """Refuse images that are not floating point in [0, 1], labels that are not int64, and a radius outside [0, 1]."""
    check_ball("eps", eps)
    if batch_size < 1:
        raise UserError(f"batch size: got {batch_size}; allowed: 1 or more")
    check_floating(x)
    if x.ndim != 4 or len(x) == 0:
        raise UserError(f"images: got shape {tuple(x.shape)}; allowed: (N, C, H, W) with N of 1 or more")
    if not bool(((x >= 0) & (x <= 1)).all()):
        raise UserError(f"images: got values from {x.min():g} to {x.max():g}; allowed: 0 to 1, without NaN")
    if y.dtype != torch.int64 or y.shape != (len(x),):
        raise UserError(f"labels: got {y.dtype} {tuple(y.shape)}; allowed: torch.int64 ({len(x)},)")
    if int(y.min()) < 0:
        raise UserError(f"labels: got {int(y.min())}; allowed: 0 or more")


def _predict(model: Counted, x: Tensor, y: Tensor, batch_size: int, device: torch.device) -> tuple[Tensor, int]:
    """Return the classes predicted for clean images, (N,), and the number of classes."""
    predictions = torch.empty_like(y)
    for start in range(0, len(x), batch_size):
        rows = slice(start, start + batch_size)
        logits = model(x[rows].float().contiguous().to(device))
        if not bool(logits.isfinite().all()):
            raise UserError(f"model output: not finite on images {start} to {min(rows.stop, len(x)) - 1}")
        predictions[rows] = logits.max(1).indices.to(y.device)
    if int(y.max()) >= logits.shape[1]:
        raise UserError(
            f"labels: got up to {int(y.max())}; allowed: 0 to {logits.shape[1] - 1}, one per logit of the model"
        )
    return predictions, logits.shape[1]


def _run_unit(
    part: str,
    attack: Callable[[Tensor, Tensor], Tensor],
    model: Counted,
    x: Tensor,
    y: Tensor,
    eps: float,
    keep_examples: bool,
) -> dict[str, NDArray[Any]]:
    """Attack one batch, check every example that comes back, and return what happened as arrays."""
    began, forwards, backwards = time.perf_counter(), model.forwards, model.backwards
    x_adv = attack(x.clone(), y.clone()).detach()
    # The largest logit of this very batch decides, as in the official evaluation: another batching may round otherwise.
    found = model(x_adv).max(1).indices
    verify(part, x_adv, x, eps)
    unit = {"predictions": found.cpu().numpy()}
    if keep_examples:
        unit["x_adv"] = x_adv[found != y].cpu().numpy()
    unit["seconds"] = np.float64(time.perf_counter() - began)
    unit["forwards"] = np.int64(model.forwards - forwards)
    unit["backwards"] = np.int64(model.backwards - backwards)
    return unit


def _restore(state: State | None, key: str, indices: Tensor, labels: Tensor, keep_examples: bool) -> Arrays | None:
    """Return a finished unit if it is whole and is about these images."""
    unit = None if state is None else state.get(key)
    needed = {"indices", "predictions", "seconds", "forwards", "backwards"} | ({"x_adv"} if keep_examples else set())
    if unit is None or not needed <= unit.keys():
        return None
    same = np.array_equal(unit["indices"], indices.cpu().numpy()) and unit["predictions"].shape == unit["indices"].shape
    broken = int((unit["predictions"] != labels.cpu().numpy()).sum()) if same else -1
    return unit if same and (not keep_examples or len(unit["x_adv"]) == broken) else None


def _attack(
    part: str, chosen: Plan, model: nn.Module, eps: float, seed: int, device: torch.device
) -> Callable[[Tensor, Tensor], Tensor]:
    """Return one attack of the official suite, set as the suite sets it."""
    from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
    from pyautoattack.fab_pt import FABAttack_PT
    from pyautoattack.square import SquareAttack

    kind: Any
    apgd = {"n_iter": chosen.iterations, "eot_iter": 1, "rho": 0.75, "logger": _logger}
    settings: dict[str, Any]
    if part == "apgd-t":
        kind, settings = APGDAttack_targeted, {"n_target_classes": chosen.target_classes, **apgd}
    elif part == "fab-t":
        kind = FABAttack_PT
        settings = {"n_target_classes": chosen.target_classes, "n_iter": chosen.iterations, "targeted": True}
    elif part == "square":
        kind, settings = SquareAttack, {"p_init": 0.8, "n_queries": chosen.queries, "resc_schedule": False}
    else:
        kind, settings = APGDAttack, {"loss": part.removeprefix("apgd-"), **apgd}
    attack = kind(model, norm="Linf", eps=eps, seed=seed, n_restarts=1, verbose=False, device=device, **settings)
    perturb: Callable[[Tensor, Tensor], Tensor] = attack.perturb
    return perturb
