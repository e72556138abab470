"""What both papers claim and what the committed runs say of it, as docs/findings.md: one function a claim.

python papers/findings.py            the verdicts in the terminal
python papers/findings.py --write    docs/findings.md

The docstring of a function is the claim, with its place in the paper. Rules and sizes were written before the runs, but
for what docs/reproduce.md names. settled.toml has the claims that take no runs.
"""

import functools
import inspect
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace

from items import FOLDER, items, scale
from paired import Cards, attacks_on
from rules import (
    WORDS,
    Row,
    Study,
    Verdict,
    Word,
    above,
    bound_gaps,
    committed,
    differ,
    fails,
    more_separable,
    orders_reversed,
    published_order,
    row,
    steady,
    together,
    within,
)
from runs import Runs
from taet.evaluation import ResultCard
from taet.files import read_toml
from taet.formatting import percent, percent_interval

C, R = functools.partial(row, "taet"), functools.partial(row, "reat")
"""Runs of TAET's and of REAT's paper."""
AA = "autoattack"
TESTED = ("full", "gpu", "cpu", "mini")
"""The scales that decide; smoke shows only that the machinery works."""
OTHERS = ("at-bsl", "robal", "at", "adt", "reat", "las-at", "he", "gairat")
"""The methods of TAET's table 1 but TAET, MART and TRADES."""
TOO_SHORT = ("C3", "C4", "C8", "C10", "C11", "C12", "C13", "C14")
"""Claims on TAET that no run at `mini` decides: with the published number of steps TAET gains 3.3 points there."""


def _value(card: ResultCard, attack: str) -> str:
    """Return balanced accuracy with its interval."""
    found = card.summary(attack)
    return f"{percent(found.balanced)} % ({percent_interval(*found.balanced_interval)})"


def C1(at: Study) -> Verdict:
    """TAET beats AT-BSL by 5.31 points of balanced accuracy under AutoAttack (6.2 and table 1)"""
    outside = ["digits-lt-methods: taet - at-bsl"]
    return _or_quick(at, differ(at, [(C("taet"), C("at-bsl"))], {AA: 5.31}, outside=outside), 5.31)


def _or_quick(at: Study, found: Verdict, claimed: float, parts: int = 1) -> Verdict:
    """At scale gpu AT-BSL has `quick` in place of AutoAttack, close to it but no bound of it, so nothing is decided."""
    if found.word != "not tested" or at.scale.name != "gpu":
        return found
    first = replace(C("taet"), name=f"taet ({AA})")
    second = replace(C("at-bsl"), attacks=("quick",), name="at-bsl (quick)")
    beside = differ(at, [(first, second)], {AA: claimed}, attacks=(AA, "quick"), parts=parts)
    said = (*beside.evidence, *found.evidence)
    return beside if beside.word == "not tested" else Verdict("undecided", said, found.outside)


def C2(at: Study) -> Verdict:
    """TAET is 1.93 points of clean balanced accuracy above AT-BSL (table 1)"""
    outside = ["cifar10-lt-precision: taet-bf16 - at-bsl-bf16", "ham10000: taet - at-bsl"]
    return differ(at, [(C("taet"), C("at-bsl"))], {"clean": 1.93}, outside=outside)


def C3(at: Study) -> Verdict:
    """Under AutoAttack the eleven methods have the order of table 1"""
    return published_order(at, items()["taet/table1"], AA)


def C4(at: Study) -> Verdict:
    """MART is the second best under AutoAttack, and TRADES the worst (table 1)"""
    second = [(C("taet"), C("mart")), *((C("mart"), C(other)) for other in OTHERS)]
    worst = [(C(other), C("trades")) for other in (*OTHERS[:3], "mart", *OTHERS[3:], "taet")]
    outside = ["cifar10-lt-methods: mart - at-bsl", "cifar10-lt-methods: at - trades"]
    return differ(at, second + worst, {AA: 0}, outside=outside)


def C5(at: Study) -> Verdict:
    """REAT is below AT and AT-BSL under AutoAttack (table 1, against REAT's own paper)"""
    outside = ["cifar10-lt-methods: at-bsl - reat", "digits-lt-methods: at-bsl - reat"]
    return differ(at, [(C("at"), C("reat")), (C("at-bsl"), C("reat"))], {AA: 0}, outside=outside)


def C6(at: Study) -> Verdict:
    """TAET is better than AT-BSL on tail classes under PGD-20 (table 2)"""
    pairs, tail = [(C("taet"), C("at-bsl"))], (7, 10)
    beside = differ(at, pairs, {"cw-linf-100": 0}, ranks=tail).evidence
    flags = {flag["flag"] for card in at.cards(C("taet")).values() for flag in card.flags}
    warned = ["the card of TAET warns that PGD-20 overestimates it"] if "logit-scale" in flags else []
    return replace(differ(at, pairs, {"pgd-20": 0}, ranks=tail), outside=(*beside, *warned))


def C7(at: Study) -> Verdict:
    """The clean stage adds 7.19 points of clean accuracy and 1.04 under AutoAttack (6.3)"""
    found = differ(at, [(C("taet"), C("harl"))], {"clean": 7.19, AA: 1.04}, outside=["cifar10-lt-methods: taet - harl"])
    off = {"alpha": 0.0, "beta": 0.0, "gamma": 0.0}
    alone = C("taet", **off), C("taet", **off, outer="balanced-softmax")
    pairs = [(replace(one, name=f"clean, then {of}"), C(of)) for one, of in zip(alone, ("at", "at-bsl"), strict=True)]
    without_hel = differ(at, pairs, {"clean": 0, AA: 0}).evidence
    known = (said for said in without_hel if not said.startswith("missing"))
    return replace(found, evidence=(*found.evidence, *known))


def C8(at: Study) -> Verdict:
    """40 of 100 clean epochs are the best split (figure 7)"""
    others = [C("harl"), *(C("taet", clean_share=share) for share in (0.2, 0.6, 0.8))]
    return differ(at, [(C("taet"), other) for other in others], {AA: 0})


def C9(at: Study) -> Verdict:
    """HEL is better than balanced softmax on tail classes under attack (3.2)"""
    outside = ["cifar10-lt-methods: harl - at-bsl"]
    return differ(at, [(C("harl"), C("at-bsl"))], {AA: 0}, ranks=(7, 10), outside=outside)


def C10(at: Study) -> Verdict:
    """The three terms of HEL together are better than each alone (6.4 and figure 6)"""
    alone = [C("taet", beta=0, gamma=0), C("taet", alpha=0, gamma=0), C("taet", alpha=0, beta=0)]
    return differ(at, [(C("taet"), one) for one in alone], {"pgd-20": 0})


def C11(at: Study) -> Verdict:
    """The weights of HEL hardly matter: within 4 points under PGD-20 (table 4)"""
    weights = [(a, b, c) for b in (0.1, 0.05) for a, c in ((0.1, 0.1), (0.1, 0.05), (0.05, 0.1), (0.05, 0.05))]
    others = [C("taet", alpha=a, beta=b, gamma=c) for a, b, c in weights if (a, b, c) != (0.1, 0.1, 0.1)]
    return differ(at, [(C("taet"), other) for other in others], {"pgd-20": 4}, within)


def C12(at: Study) -> Verdict:
    """Ten training steps are 11.4 points better under AutoAttack than five (table 9)"""
    return differ(at, [(C("taet"), C("taet", steps=5))], {AA: 11.4})


def C13(at: Study) -> Verdict:
    """Clean accuracy stays within 6 points from 5 to 40 training steps (B.4 and table 9)"""
    five, *more = (C("taet", steps=steps) for steps in (5, 20, 30, 40))
    pairs = [(C("taet"), five), *((C("taet"), one) for one in more), *((five, one) for one in more)]
    return differ(at, pairs, {"clean": 6}, within)


def C14(at: Study) -> Verdict:
    """Training steps of 3/255 are 6.57 points better under AutoAttack than steps of 1/255 (table 10)"""
    return differ(at, [(C("taet", step_size="3/255"), C("taet", step_size="1/255"))], {AA: 6.57})


def C17(at: Study) -> Verdict:
    """TAET is more robust at every imbalance ratio (table 5)"""
    pairs = [(C("taet", ratio=ratio), C("at-bsl", ratio=ratio)) for ratio in (10, 20, 50, 100)]
    return _or_quick(at, differ(at, pairs, {AA: 0}), 0, len(pairs))


def C18(at: Study) -> Verdict:
    """TAET has the better clean accuracy on CIFAR-100-LT, imbalance ratio 10 (table 8)"""
    return differ(at, [(C("taet", "cifar100-lt"), C("at-bsl", "cifar100-lt"))], {"clean": 0})


def C20(at: Study) -> Verdict:
    """TAET is the most robust method on DermaMNIST (table 3)"""
    mine, *others = (C(m, "dermamnist", model="vit-b16") for m in ("taet", "at-bsl", "trades", "mart", "adt"))
    return differ(at, [(mine, other) for other in others], {AA: 0})


def C21(at: Study) -> Verdict:
    """A larger gamma would help the rarest classes (6.2)"""
    usual, larger = C("taet", "dermamnist", model="vit-b16"), C("taet", "dermamnist", model="vit-b16", gamma=0.2)
    return differ(at, [(larger, usual)], {"pgd-20": 0}, ranks=(5, 7))


def C25(at: Study) -> Verdict:
    """AutoAttack with 10 iterations, as in the public code, is within 0.5 points of the official (one TAET model)"""
    outside = ["cifar10-lt-attacks: taet", "digits-lt-attacks: taet"]
    attacks = ("autoattack-10", AA)
    return differ(at, [(C("taet"), C("taet"))], {AA: 0.5}, within, attacks=attacks, outside=outside)


def C26(at: Study) -> Verdict:
    """Plain accuracy orders the methods in another way than balanced accuracy (5 and table 6)"""
    return orders_reversed(at, items()["taet/table1"], ("clean", AA))


# The claims of REAT.


def R4(at: Study) -> Verdict:
    """Predictions of adversarial examples are stable between epochs (4.1)"""
    return steady(at, [R("at-bsl"), R("reat")])


def R5(at: Study) -> Verdict:
    """REAT beats AT-BSL by 0.93 points under AutoAttack (tables 1 to 3 and 8)"""
    outside = ["cifar10-lt-methods: reat - at-bsl", "digits-lt-methods: reat - at-bsl"]
    found = differ(at, [(R("reat"), R("at-bsl"))], {AA: 0.93}, outside=outside)
    paper = [card for card in at.cards(R("reat", form="paper")).values() if AA in attacks_on(card)]
    said = (f"reat (form paper) clean {_value(card, 'clean')}, autoattack {_value(card, AA)}" for card in paper)
    return replace(found, outside=(*said, *found.outside))


def R8(at: Study) -> Verdict:
    """Balanced softmax is 3 points (AutoAttack) and 12 (clean) above focal, class-balanced, LDAM (table 1)"""
    others = [R("at", outer=loss) for loss in ("focal", "class-balanced", "ldam")]
    return differ(at, [(R("at-bsl"), other) for other in others], {AA: 3, "clean": 12})


def R9(at: Study) -> Verdict:
    """REAT improves on AT with every loss (table 1)"""
    pairs = [(R("reat", outer=loss), R("at", outer=loss)) for loss in ("focal", "class-balanced", "ldam")]
    return differ(at, [*pairs, (R("reat"), R("at-bsl"))], {AA: 0})


def R10(at: Study) -> Verdict:
    """PGD-AT is better than TRADES and MART (table 7)"""
    folders, others = ("cifar10-lt-methods", "digits-lt-methods"), ("trades", "mart")
    outside = [f"{folder}: at - {other}" for folder in folders for other in others]
    return differ(at, [(R("at"), R(other)) for other in others], {AA: 0}, outside=outside)


def R11(at: Study) -> Verdict:
    """TRADES, MART and AWP do not converge with balanced softmax (5 and appendix D)"""
    rows = [R("trades", outer="balanced-softmax"), R("mart", outer="balanced-softmax"), R("at-bsl", awp=0.01)]
    folder = "digits-lt-methods/ra+bsl"
    return fails(at, rows, f"{folder}: trades - at", f"{folder}: mart - at")


def R12(at: Study) -> Verdict:
    """RoBal's robustness is masked: an attack on scaled logits takes 4.9 points (table 3)"""
    attacks = ("adaptive-pgd-20:factor=0.1", "pgd-20")  # the paper's PGD-20 at scale 1, and its adaptive one at 10
    return differ(at, [(R("robal"), R("robal"))], {"pgd-20": 4.92}, attacks=attacks)


def R13(at: Study) -> Verdict:
    """RoBal neglects the body classes, of rank 4 to 6 in the text and 4 to 7 in the code (5.2 and figure 5)"""
    outside = ["cifar10-lt-methods: reat - robal", "digits-lt-methods: reat - robal"]
    text = differ(at, [(R("reat"), R("robal"))], {AA: 0}, ranks=(4, 6), outside=outside, parts=2)
    code = differ(at, [(R("reat"), R("robal"))], {AA: 0}, ranks=(4, 7), parts=2)
    return Verdict(together([text.word, code.word]), text.evidence + code.evidence, text.outside)


def R14(at: Study) -> Verdict:
    """Imbalance costs more than lack of data: as many balanced images give 6.6 points under AutoAttack (table 8)"""
    return differ(at, [(R("at", "cifar10-balanced-small"), R("at-bsl"))], {AA: 6.6})


def R17(at: Study) -> Verdict:
    """It is easier to lift clean accuracy than robustness (5.2)"""
    outside = ["cifar10-lt-ir10: at-bsl - at", "cifar10-lt-methods: at-bsl - at"]
    return differ(at, [(R("at-bsl"), R("at"))], {"clean": 0}, less=AA, outside=outside)


def R18(at: Study) -> Verdict:
    """The robust risk is at least the mean over classes of natural error and disagreement (theorem 1)"""
    gaps = [found for one in at.runs.every if (found := bound_gaps(one.card))]
    most = [max(gap for _, gap in found) for found in gaps]
    strongest = [min(found, key=lambda pair: pair[0])[1] for found in gaps]
    broken, decided = (sum(gap > 1e-9 for gap in of) for of in (most, strongest))
    said = f"{broken} of {len(gaps)} committed cards exceed the bound under one of their attacks ({decided} under the "
    why = "an image that is misclassified and changes its class under attack is counted twice"
    word: Word = "does not hold" if broken else "undecided"
    return Verdict(word, (f"{said}strongest), by up to {100 * max(most):.1f} points: {why}",), scale="all")


def R19(at: Study) -> Verdict:
    """Features are more separable with REAT (smoothed in the paper, not smoothed here) (figure 10)"""
    return more_separable(at, R("reat"), R("at-bsl"))


def R20(at: Study) -> Verdict:
    """REAT beats AT-BSL under L2 attacks, too, at imbalance ratio 50 (table 12)"""
    return differ(at, [(R("reat"), R("at-bsl"))], {"pgd-l2-20": 0})


def claims() -> dict[str, Callable[[Study], Verdict]]:
    """Return the tests above by the names of the claims."""
    return {name: test for name, test in globals().items() if re.fullmatch(r"[CR]\d+", name)}


def largest(test: Callable[[Study], Verdict], runs: Runs) -> Verdict:
    """Return the verdict at the largest scale with runs; outside is what the next smaller one with runs says.

    At `mini` a training has a fifth of the published steps, too few to test TAET.
    """
    verdict = Verdict("not tested", ())
    for size in TESTED:
        one = test(Study(runs, scale(size)))
        if verdict.word == "not tested":
            verdict = replace(one, scale=one.scale or size)
            if one.scale:  # of all runs
                break
        elif one.word != "not tested":
            smaller = (f"scale {size}, {said}" for said in one.evidence if not said.startswith("missing"))
            return replace(verdict, outside=(*verdict.outside, *smaller))
    if verdict.scale == "mini" and test.__name__ in TOO_SHORT and verdict.word != "not tested":
        return replace(verdict, word="not tested", evidence=(f"mini: {verdict.word}", *verdict.evidence))
    return verdict


def verdicts(runs: Runs) -> dict[str, tuple[str, Verdict]]:
    """Return each claim in words with its verdict, of the largest scale that has one, or settled without runs."""
    found: dict[str, tuple[str, Verdict]] = {}
    for name, test in claims().items():
        found[name] = _paragraphs(test)[0], largest(test, runs)
    for name, entry in read_toml(FOLDER / "settled.toml").items():
        found[name] = entry["says"], Verdict(entry["verdict"], (" ".join(entry["because"].split()),))
    return dict(sorted(found.items(), key=lambda pair: (pair[0][0], int(pair[0][1:]))))


class Tuned(Study):
    """The runs of a study, but of TAET those with factors that are better on validation images."""

    def cards(self, row: Row) -> Cards:
        return committed("cifar10-lt-fast", "taet-protocol") if row == C("taet") else super().cards(row)


def tuned(runs: Runs) -> list[str]:
    """Return the verdicts on TAET against AT-BSL with tuned factors: on the idea, not on the published constants."""
    found = {name: claims()[name](Tuned(runs, scale("cpu"))) for name in ("C1", "C2", "C6")}
    return [f"- **{name}** {one.word}: {'; '.join(one.evidence)}" for name, one in found.items()]


def page(runs: Runs) -> str:
    """The page of all claims, as Markdown: a pure function of the cards."""
    found = verdicts(runs)
    words = [one.word for _, one in found.values()]
    counts = ", ".join(f"{word} {words.count(word)}" for word in WORDS)
    lines = [HEAD.format(claims=len(found), counts=counts), "| | claim | verdict | scale |", "|---|---|---|---|"]
    for name, (says, one) in found.items():
        lines.append(f"| {name} | {says} | **{one.word}** | {one.scale if one.word != 'not tested' else ''} |")
    lines += [IDEA, *tuned(runs), "\n## Evidence\n"]
    for name, (_, one) in found.items():
        outside = f" *Outside:* {'; '.join(one.outside)}." if one.outside else ""
        lines.append(f"- **{name}** {'; '.join(one.evidence).rstrip('.')}.{outside}")
    lines += ["\n## Rules\n", *(f"- {of}: {_paragraphs(rule)[0]}" for of, rule in RULES.items())]
    return "\n".join([*lines, ""])


def _paragraphs(of: Callable[..., object]) -> list[str]:
    """Return the paragraphs of a docstring."""
    return [" ".join(part.split()) for part in (inspect.getdoc(of) or "").split("\n\n")]


RULES: Mapping[str, Callable[..., object]] = {
    "Claims not named below": above,
    "C11, C13, C25": within,
    "C3": published_order,
    "C26": orders_reversed,
    "R4": steady,
    "R11": fails,
    "R19": more_separable,
}
IDEA = """
## TAET with tuned factors

Not the published factors but alpha 1 and beta = gamma = 0, [better on validation
images](notes-on-papers.md#taet-with-tuned-factors); scale `cpu`:
"""
HEAD = """# Findings

What the two papers claim, and what our runs say of it. Verdicts on {claims} claims: {counts}.

**Most are verdicts at small scale.** The runs have the published epochs, attack and optimiser, but ResNet-8 in place
of ResNet-18, at scale `mini` at most 1,000 training images in a class and [a fifth of the
steps](notes-on-papers.md#taet-with-tuned-factors), and most of them one seed. At published size (`gpu`) AT-BSL and TAET
have one run each; there C1, C2 and C17 are undecided and C6 holds, so other verdicts may change too. Runs at `mini`
have too few steps for TAET: what they say of claims on it is in their evidence only. Claims without a scale are not
tested, or settled by what their evidence names.

A verdict is that of the largest [scale](reproduce.md#scales) with runs. Differences are in points of balanced
accuracy, paired on the same test images, with 95 % intervals for all parts of a claim together (R11: for each), and all
parts must hold.
With one seed an interval covers the test images only: it says which of two models is better, not which method.
*Outside* are runs at the next smaller scale or with other settings, which decide nothing.
[Notes](notes-on-papers.md) have what was measured beside the claims, and errata.
"""


if __name__ == "__main__":
    if "--write" in sys.argv:
        (FOLDER.parent / "docs" / "findings.md").write_text(page(Runs()), encoding="utf-8")
    else:
        for name, (says, one) in verdicts(Runs()).items():
            print(f"{name:4}{one.word:15}{says}")
