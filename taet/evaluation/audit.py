"""`taet audit`: a checklist on whether attacks on a model can be trusted, with the measured numbers."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from taet.attacks import pgd
from taet.attacks.ball import frozen
from taet.attacks.differentiable import Replaced
from taet.attacks.draws import Draws
from taet.attacks.inputs import check_output
from taet.attacks.objectives import Objective, margin
from taet.attacks.spec import Model
from taet.attacks.units import Unit, run_units
from taet.data.dataset import images_sha256
from taet.data.long_tail import even_sample
from taet.evaluation import bundles, diagnostics
from taet.evaluation.bundles import parse_attack
from taet.evaluation.card import ResultCard
from taet.evaluation.check import check
from taet.evaluation.checklist import ChecklistItem, Evidence, Status, checklist
from taet.evaluation.column import Json
from taet.evaluation.facts import AuditFacts
from taet.evaluation.image_arrays import as_unit
from taet.evaluation.measurement import Extent, measure
from taet.evaluation.probe import STEP_SHARE, STEPS
from taet.evaluation.runner import Runner
from taet.evaluation.subject import AnyModel, ImagesArgument, Subject, TestLabels, subject_of
from taet.evaluation.transfer import transfer_columns
from taet.evaluation.trial import user_errors
from taet.fields import Count, check_value
from taet.losses.long_tail import cross_entropy
from taet.progress import Meter, Progress
from taet.statistics import Ints

SCHEMA = 1
IMAGES = 250
ATTACKS = ("random-noise", "fgsm", "pgd-20", "pgd-20:restarts=5", "pgd-100", "cw-linf-20", "square")
DRAWS, JUDGED = 32, 64  # of a randomised model: for a gradient, and for a prediction


@dataclass(frozen=True)
class Audit:
    """The answered checklist with the evidence behind it."""

    model: str
    items: tuple[ChecklistItem, ...]
    evidence: Evidence
    notes: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether no question failed."""
        return all(item.status != "fail" for item in self.items)

    @property
    def counts(self) -> dict[str, int]:
        """Number of questions with each answer."""
        return {status: sum(item.status == status for item in self.items) for status in get_args(Status)}

    @property
    def sections(self) -> dict[str, list[ChecklistItem]]:
        """The items of each section, in order."""
        return {section: [*items] for section, items in groupby(self.items, key=lambda item: item.section)}

    @property
    def summary(self) -> str:
        """One line: the model and the number of questions with each answer."""
        return f"{self.model}: {', '.join(f'{count} {status}' for status, count in self.counts.items())}"

    def to_json(self) -> Json:
        """Return everything as plain JSON, with the result card of the sample."""
        return {
            "schema": SCHEMA,
            "model": self.model,
            "ok": self.ok,
            "counts": self.counts,
            "items": [{**vars(item), "flags": list(item.flags)} for item in self.items],
            "notes": list(self.notes),
            "facts": vars(self.evidence.facts),
            "sites": dict(self.evidence.sites),
            "test_images": self.evidence.total,
            "card": self.evidence.card.to_json(),
        }

    def __repr__(self) -> str:
        lines = [self.summary, *self.notes]
        marks = {"pass": "pass", "fail": "FAIL", "not applicable": "n/a "}
        for section, items in self.sections.items():
            lines += ["", section]
            for item in items:
                text = f"{item.question}{' ' if item.question.endswith('?') else ': '}{item.evidence}"
                lines += textwrap.wrap(text, 110, initial_indent=f"  {marks[item.status]}  ", subsequent_indent=8 * " ")
        return "\n".join(lines)


def audit(
    model_or_run_dir: AnyModel,
    images: ImagesArgument = None,
    labels: TestLabels | None = None,
    *,
    settings: Mapping[str, Any] | None = None,
    count: int = IMAGES,
    surrogate: tuple[str, nn.Module] | None = None,
    class_names: Sequence[str] | None = None,
    name: str | None = None,
    notes: Sequence[str] = (),
    weights: str = "model",
    device: str = "auto",
    state_dir: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    command: str = "",
    **changes: Any,
) -> Audit:
    """Attack a model on a sample of test images in the ways that show whether attacks can be trusted.

    Args:
        model_or_run_dir: a run folder, or a Module from images (N, C, H, W) in [0, 1] to logits (N, classes). Without a
            gradient it is attacked through differentiable replacements; with several logits per class, the largest one
            of each class is used.
        images, labels: with a Module, or in place of a run's own, as in `taet.evaluate`.
        settings: fields of `taet.settings.Evaluation` to change; `attacks` are added to `ATTACKS`. The step size is
            by default the model's own, in proportion to eps, and at least eps / 8.
        count: number of images in the sample, which is as even over the classes as possible.
        surrogate: name and Module of a similar model, whose adversarial examples are also evaluated.
        class_names: names of the classes.
        name: with a Module, its name.
        notes: with a Module, its origin in words.
        weights, device, state_dir, progress, command, **changes: as in `taet.evaluate`.

    Raises:
        UserError: as `taet.evaluate` and `taet.evaluation.check`.
    """
    check_value("images", count, Count)
    subject = subject_of(
        "audit", model_or_run_dir, images, labels, weights=weights, name=name, notes=notes, class_names=class_names
    )
    where = subject.on(device)
    subject, reaches, width = _attackable(subject, where)
    sampled = audit_sample(subject, bundles.changes(settings, **changes), count)
    meter = Meter(progress)
    meter.begin(alike=1)
    size = sampled.settings.batch_size
    found = check(
        subject.model.to(where), subject.images, subject.labels, class_names=subject.class_names, batch_size=size
    )
    card = measure(sampled, Extent(curves=("eps",)), device=where, state_dir=state_dir, progress=meter, command=command)
    runner = sampled.runner(where, state_dir)
    if surrogate is not None:
        card = _with_surrogate(card, runner, surrogate, sampled)
    facts = _facts(card, runner, reaches, width)
    evidence = Evidence(card, facts, runner.sites, len(subject.labels))
    called = str(model_or_run_dir) if not isinstance(model_or_run_dir, nn.Module) else subject.about["title"]
    return Audit(called, checklist(evidence, found.findings), evidence, tuple(notes))


class Merged(nn.Module):
    """A model with k logits for each of C classes; class c gets the largest of logits c, C + c, ..., (N, C)."""

    def __init__(self, model: nn.Module, classes: int) -> None:
        super().__init__()
        self.model, self.classes = model, classes

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x)
        return logits.view(len(x), -1, self.classes).amax(1)


class MeanDraw(nn.Module):
    """The mean of log-probabilities, (N, C), over several passes of a randomised model (EOT).

    The passes are not kept for the gradient, but repeated with the same random numbers.

    Source: Athalye, Engstrom, Ilyas, Kwok, ICML 2018, arXiv:1707.07397.
    """

    def __init__(self, model: nn.Module, draws: int) -> None:
        super().__init__()
        self.model, self.draws = model, draws

    def forward(self, x: Tensor) -> Tensor:
        answers = (checkpoint(self.model, x, use_reentrant=False) for _ in range(self.draws))
        total: Tensor = sum(answer.log_softmax(1) for answer in answers)
        return total / self.draws


def _attackable(subject: Subject, device: torch.device) -> tuple[Subject, bool, int]:
    """Return the subject with gradients, whether it had them already, and its number of logits.

    A model without a gradient is replaced by one with differentiable operations and the same outputs, if that has a
    gradient. Several logits per class are merged.
    """
    model = subject.model.to(device)
    x = as_unit(subject.images[:2]).to(device)
    logits, reaches = _answer(model, x)
    if not reaches and _answer(Replaced(model), x)[1]:
        model = Replaced(model).eval()
    else:
        reaches = True  # if it has none either, `make_runner` refuses it
    classes = len(subject.class_names or ())
    width = logits.shape[1]
    if classes and width > classes and width % classes == 0:
        model = Merged(model, classes).eval()
    return replace(subject, model=model), reaches, width


def _answer(model: nn.Module, x: Tensor) -> tuple[Tensor, bool]:
    """Return the logits of images, and whether they have a gradient."""
    failed = f"model: fails on images of shape {tuple(x.shape)} ({{reason}})"
    leaf = x.clone().requires_grad_()
    with frozen(model), torch.enable_grad(), user_errors(failed):
        output: object = model(leaf)
    logits = check_output(output, leaf)
    try:
        torch.autograd.grad(logits.sum(), leaf, allow_unused=True)
    except RuntimeError:  # for example of x // s, which has no derivative, or after a detach
        return logits, False
    return logits, True


def audit_sample(subject: Subject, changed: Mapping[str, Any], count: int) -> Subject:
    """Return a sample of the subject with the attacks to run on it: `ATTACKS` and those of the changed settings."""
    eps = changed.get("eps") or subject.eps
    # A run may keep the step of another ball, too short to cross its own.
    step_size = max(subject.settings.step_size * (eps / subject.eps), STEP_SHARE * eps)
    names = dict.fromkeys((*ATTACKS, *changed.get("attacks", ())))
    subject = subject.changed({"step_size": step_size, **changed, "attacks": tuple(names)})
    rows = even_sample(subject.labels, count, subject.settings.seed)
    images, labels = np.ascontiguousarray(subject.images[rows]), subject.labels[rows]
    return replace(subject, images=images, labels=labels, test_sha256=images_sha256(images, labels))


def _with_surrogate(card: ResultCard, runner: Runner, surrogate: tuple[str, nn.Module], subject: Subject) -> ResultCard:
    """Return the card with the column of examples made on another model, and its flags."""
    name, model = surrogate
    source = replace(subject, model=model).runner(runner.device, runner.state_dir)
    columns = transfer_columns(source, [runner], parse_attack("pgd-20", subject.settings, subject.eps), name=name)
    return diagnostics.flagged(card.changed(columns=(*card.columns, *columns)))


def _facts(card: ResultCard, runner: Runner, reaches: bool, width: int) -> AuditFacts:
    """Measure facts about some models only: attacks on the mean of many draws, and on every logit of a class."""
    count, classes = len(runner.labels), runner.num_classes
    facts = AuditFacts(images=count, reaches=reaches, classes=classes, logits=max(width, classes))
    assert card.facts is not None
    eps = card.threat["eps"]
    random, several = card.facts.repeat_difference > diagnostics.REPEAT_DIFFERENCE, width > classes
    if not random and not several:
        return facts
    measured: dict[str, Any] = {"draws": DRAWS, "judged": JUDGED} if random else {}
    batches = runner.batches()
    done = run_units(
        len(batches),
        lambda number: _contrasts(runner, eps, batches[number], random, several),
        state=runner.store("audit", [eps, runner.seed, random, several]),
        key=str,
        valid=lambda number, unit: all(mask.shape == batches[number].shape for mask in unit.values()),
    )
    for name in done[0]:
        measured[name] = sum(int(unit[name].sum()) for unit in done)
    return replace(facts, **measured)


def _contrasts(runner: Runner, eps: float, rows: Ints, random: bool, several: bool) -> Unit:
    """Return which images of a batch are correct under each of two attacks, and under the second only."""
    x, y = runner.batch(rows)
    noise = Draws(runner.seed, "audit", rows).start(x, eps)
    model = runner.model.model
    found: dict[str, Tensor] = {}

    def several_draws(x: Tensor) -> Tensor:
        return torch.stack([model(x).softmax(1) for _ in range(JUDGED)]).mean(0)

    def survives(seen: nn.Module, objective: Objective, judge: Model) -> Tensor:
        step = STEP_SHARE * eps
        x_adv = pgd(seen, x, y, eps=eps, steps=STEPS, step_size=step, start_noise=noise, objective=objective)
        with torch.no_grad():
            correct: Tensor = judge(x_adv).max(1).indices == y
            return correct

    with runner.still():
        torch.manual_seed(runner.seed)
        if random:
            found["one_correct"] = survives(model, margin, several_draws)
            found["mean_correct"] = survives(MeanDraw(model, DRAWS), margin, several_draws)
            found["only_mean_correct"] = found["mean_correct"] & ~found["one_correct"]
        if several:
            assert isinstance(model, Merged)
            found["raw_correct"] = survives(model.model, cross_entropy, model)
            found["merged_correct"] = survives(model, margin, model)
            found["only_merged_correct"] = found["merged_correct"] & ~found["raw_correct"]
    return {name: mask.cpu().numpy() for name, mask in found.items()}
