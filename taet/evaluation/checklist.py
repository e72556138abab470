"""The checklist of `taet audit`: questions from Carlini et al., each answered by flags and numbers.

Source: Carlini, Athalye, Papernot, Brendel, Rauber, Tsipras, Goodfellow, Madry, Kurakin, "On evaluating adversarial
robustness", 2019, arXiv:1902.06705, section 4.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from taet.evaluation.card import ResultCard
from taet.evaluation.check import RANDOMISED, Finding
from taet.evaluation.contrasts import accuracy, asked
from taet.evaluation.curves import WHOLE, curves
from taet.evaluation.diagnostics import audit_flags
from taet.evaluation.facts import AuditFacts, ModelFacts
from taet.formatting import listed, percent, percent_interval, size

Status = Literal["pass", "fail", "not applicable"]
MODEL, SEVERE, PITFALLS, READER = "The model", "Common severe flaws", "Common pitfalls", "For the reader"


@dataclass(frozen=True)
class ChecklistItem:
    """One answered question."""

    section: str
    question: str
    status: Status
    evidence: str
    flags: tuple[str, ...] = ()
    """Flags that were raised."""


@dataclass(frozen=True)
class Evidence:
    """The results from which the checklist is answered."""

    card: ResultCard
    facts: AuditFacts
    sites: Mapping[str, int]
    """Operations without a gradient, with the number of calls; 0: they could not be replaced."""
    total: int
    """Number of test images; the card covers a sample of them."""

    @property
    def probe(self) -> ModelFacts:
        """The facts of the probe."""
        assert self.card.facts is not None
        return self.card.facts

    def shares(self, names: Sequence[str]) -> str:
        """Return the accuracies under the attacks with these names that were run, as text."""
        found = [column for column in asked(self.card) if {column.name, column.attack.base} & {*names}]
        return ", ".join(f"{column.name} {percent(accuracy(column))} %" for column in found)


@dataclass(frozen=True)
class Question:
    """A question of the checklist."""

    section: str
    question: str
    flags: tuple[str, ...]
    """Flags that mean the answer is no."""
    evidence: Callable[[Evidence], str]
    """The measured numbers; empty where the question does not apply."""
    otherwise: str = ""
    """Why it does not apply."""

    def answer(self, evidence: Evidence, raised: Mapping[str, str]) -> ChecklistItem:
        """Return the answer, given the flags that were raised."""
        wrong = {flag: raised[flag] for flag in self.flags if flag in raised}
        said = self.evidence(evidence)
        status: Status = "fail" if wrong else "pass" if said else "not applicable"
        text = " ".join([*wrong.values(), said and f"Measured: {said}."]) if wrong else said or self.otherwise
        return ChecklistItem(self.section, self.question, status, text.strip(), tuple(wrong))


def checklist(evidence: Evidence, found: Sequence[Finding]) -> tuple[ChecklistItem, ...]:
    """Return every question with its answer, the questions of `taet check` first."""
    raised = audit_flags(evidence.card, evidence.facts)
    return (*map(_checked, found), *(question.answer(evidence, raised) for question in QUESTIONS))


def _checked(found: Finding) -> ChecklistItem:
    status: Status = "not applicable" if found.text == RANDOMISED else "pass" if found.ok else "fail"
    text = found.text.removeprefix(f"{status}: ")
    return ChecklistItem(MODEL, found.subject, status, text)


def _threat(found: Evidence) -> str:
    card = found.card
    return (
        f"untargeted, white-box, L-infinity, eps {size(card.threat['eps'])}; {len(card.labels)} of {found.total} test "
        f"images, spread over the classes as evenly as possible; seed {card.probe.get('seed')}"
    )


def _clean(found: Evidence) -> str:
    card = found.card
    if card.clean is None:
        return ""
    summary = card.summary_of(card.clean)
    low, high = summary.balanced_interval
    return f"balanced accuracy {percent(summary.balanced)} % (95 % interval {percent_interval(low, high)} %)"


def _reaches(found: Evidence) -> str:
    facts = found.probe
    zero, unsound = facts.zero_gradients, facts.nonfinite_gradients
    return (
        f"of {facts.images} images, {zero} have a gradient of zero and {unsound} one that is not finite; logits with "
        f"and without gradients differ by {facts.gradient_difference:.1g}"
    )


def _losses(found: Evidence) -> str:
    facts = found.probe
    scaled = f"pgd-20 on logits times {facts.logit_factor:.3g} {percent(facts.scaled_pgd_correct / facts.images)} %"
    return f"{found.shares(('pgd-20', 'cw-linf-20'))}; {scaled}"


def _budgets(found: Evidence) -> str:
    points = next((curve.points for curve in curves(found.card) if curve.name == "eps"), ())
    return ", ".join(f"eps {size(eps) if eps < WHOLE else 1} {percent(accuracy(column))} %" for eps, column in points)


def _whole(found: Evidence) -> str:
    return ", ".join(_budgets(found).split(", ")[-1:])


def _described(found: Evidence) -> str:
    return f"audit.json holds the settings of {len(found.card.columns)} attacks and the result for every image"


def _diverse(found: Evidence) -> str:
    return listed(column.name for column in asked(found.card) if column.norm is not None)


def _gradient_free(found: Evidence) -> str:
    free = [column.name for column in asked(found.card) if column.attack.gradient_free]
    return found.shares(free) and f"{found.shares(free)}; with gradients: {found.shares(('pgd-100', 'cw-linf-20'))}"


def _transfer(found: Evidence) -> str:
    made = [column for column in found.card.columns if column.is_transfer]
    return ", ".join(f"{column.name} {percent(accuracy(column))} %" for column in made)


def _random(found: Evidence) -> str:
    facts = found.facts
    if not facts.draws:
        return ""
    one, mean = (percent(count / facts.images) for count in (facts.one_correct, facts.mean_correct))
    return (
        f"PGD-20 with one draw per step {one} %, with the mean gradient of {facts.draws} draws {mean} %; predictions "
        f"are the mean of {facts.judged} draws"
    )


def _operations(found: Evidence) -> str:
    if not found.sites:
        return ""
    facts, named = found.probe, listed(found.sites, most=5)
    if not facts.replaced:
        return f"{named} found, but not replaced; write a differentiable replacement of your own"
    plain, straight, smooth = (
        percent(count / facts.images)
        for count in (facts.pgd_correct, facts.straight_pgd_correct, facts.smooth_pgd_correct)
    )
    return (
        f"{named} found; PGD-20 leaves {plain} %, with the identity as their derivative {straight} %, on a smooth "
        f"surrogate with the same weights {smooth} %"
    )


QUESTIONS: tuple[Question, ...] = (
    Question(SEVERE, "Is the threat model stated?", (), _threat),
    Question(
        SEVERE,
        "Do attacks cover the whole defence, from the logits to the image?",
        (
            "no-gradient",
            "zero-gradients",
            "nonfinite-gradients",
            "gradient-path-differs",
            "changes-between-calls",
            "batch-dependent",
        ),
        _reaches,
    ),
    Question(
        SEVERE,
        "Is the loss of the attacks suitable for the model?",
        (
            "softmax-outputs",
            "dummy-classes",
            "logit-scale",
            "margin-beats-cross-entropy",
            "adaptive-beats-plain",
            "autoattack-far-below-pgd",
        ),
        _losses,
    ),
    Question(SEVERE, "Is the clean accuracy valid?", ("at-chance", "selected-on-test-set"), _clean),
    Question(
        SEVERE,
        "Do iterative attacks break more images than one-step attacks?",
        ("one-step-beats-many-step",),
        lambda found: found.shares(("fgsm", "pgd-20")),
    ),
    Question(SEVERE, "Does accuracy fall as eps grows?", ("accuracy-rises-with-eps",), _budgets),
    Question(SEVERE, "Does accuracy reach 0 when eps allows any image?", ("does-not-reach-zero",), _whole),
    Question(SEVERE, "Are the attacks described?", (), _described),
    Question(PITFALLS, "Are the attacks diverse?", (), _diverse),
    Question(
        PITFALLS,
        "Do gradient-based attacks break more images than gradient-free ones, including random noise?",
        ("black-box-beats-gradients",),
        _gradient_free,
        "no gradient-free attack was run; add square",
    ),
    Question(
        PITFALLS,
        "Do white-box attacks break more images than examples transferred from a similar model?",
        ("transfer-beats-white-box",),
        _transfer,
        "give a similar model with --surrogate RUN",
    ),
    Question(
        PITFALLS,
        "If the model is randomised, do attacks use the mean of many draws?",
        ("randomised", "eot-beats-one-draw"),
        _random,
        "the model is deterministic",
    ),
    Question(
        PITFALLS,
        "Are operations without a gradient attacked through differentiable replacements?",
        ("straight-through-beats-gradients", "soft-beats-hard"),
        _operations,
        "none found",
    ),
    Question(
        PITFALLS,
        "Have the attacks converged (steps, restarts, step size)?",
        ("pgd-too-short", "pgd-not-converged", "unbounded-attack-not-converged"),
        lambda found: found.shares(("pgd-20", "pgd-100")),
    ),
    Question(READER, "Are prior attacks on similar defences considered?", (), lambda _: "", "not tested automatically"),
    Question(READER, "Are broader threat models tested?", (), lambda _: "", "see taet evaluate --attacks pgd-l2-20"),
    Question(READER, "Are the model and its code released?", (), lambda _: "", "not tested automatically"),
)
