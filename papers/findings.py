"""What both papers claim and what the committed runs say of it, as docs/findings.md.

python papers/findings.py            the verdicts in the terminal
python papers/findings.py --write    docs/findings.md

The claims are in claims.py, their tests in rules.py.
"""

import argparse
import functools
import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import reproduce
from claims import CLAIMS, Claim, Related
from items import FOLDER, items, scale
from paired import paired, text
from rules import (
    WORDS,
    All,
    Differences,
    Line,
    Outcome,
    Study,
    Test,
    Untested,
    Word,
    bound_gap,
    committed,
)
from runs import Runs
from taet.formatting import markdown_table

PUBLISHED = ("full", "gpu")
"""The scales with the papers' networks, class counts, class order, epochs and steps."""
SMALL = ("cpu", "mini")
"""Smaller networks, and at mini fewer images: they decide nothing about the papers."""
FEWEST_SEEDS = 3
PAGE = FOLDER.parent / "docs" / "findings.md"


@dataclass(frozen=True)
class Verdict:
    """The verdict on a claim with its evidence."""

    word: Word
    scale: str
    """The scale that decided; empty if none did."""
    outcomes: Mapping[str, Outcome]
    """By scale, the largest first."""
    related: tuple[Line, ...]

    @property
    def evidence(self) -> list[tuple[str, Line]]:
        """Every line of evidence with where it is from."""
        lines = [(name, line) for name, of in self.outcomes.items() for line in of.evidence]
        return [*lines, *(("related", line) for line in self.related)]


def decide(claim: Claim, runs: Runs) -> Verdict:
    """Return the verdict of the published settings, and what smaller runs show."""
    word: Word = "not tested"
    decided = ""
    outcomes = {}
    for name in (*PUBLISHED, *SMALL):
        study = Study(runs, scale(name))
        outcome = claim.test.apply(study)
        tested = outcome.word != "not tested" and outcome.seeds >= FEWEST_SEEDS
        if name in PUBLISHED and not decided and tested:
            word, decided = outcome.word, name
        beside = [line for test in claim.beside for line in test.apply(study).evidence]
        outcomes[name] = Outcome(
            outcome.word, (*outcome.evidence, *beside), outcome.missing, outcome.seeds
        )
    related = tuple(line for of in claim.related for line in compare_related(claim.test, of))
    return Verdict(word, decided, outcomes, related)


def compare_related(test: Test, related: Related) -> Iterator[Line]:
    """Yield what committed cards with other settings show; nothing where they lack an attack."""
    if isinstance(test, All):
        test = test.parts[0]
    assert isinstance(test, Differences), related
    first = committed(related.folder, related.first)
    second = committed(related.folder, related.second)
    for attack in test.points:
        attacks = test.attacks or (attack, attack)
        found = test.difference(first, second, attacks)
        if found is not None:
            what = test.what(related.first, related.second, attacks)
            yield Line(f"{related.folder}: {what}", text(found))


def verdicts(runs: Runs) -> dict[str, Verdict]:
    """Return the verdict on every claim by name."""
    return {name: decide(claim, runs) for name, claim in CLAIMS.items()}


def page(runs: Runs) -> str:
    """Return the page of all claims, as Markdown: a pure function of the cards."""
    found = verdicts(runs)
    words = [verdict.word for verdict in found.values()]
    counts = ", ".join(f"{words.count(word)} {word}" for word in WORDS)
    lines = [("", "claim", "verdict at the published setting", "what we see")]
    for name, verdict in found.items():
        claim = CLAIMS[name]
        stated = f"{claim.says} ({claim.paper}, {claim.where})"
        lines.append((f"[{name}](#{name.lower()})", stated, verdict.word, claim.seen))
    parts = [
        HEAD.format(claims=len(found), counts=counts, run=what_was_run(runs)),
        markdown_table(lines),
        proofs(runs),
        EVIDENCE,
        *(evidence(name, verdict) for name, verdict in found.items()),
        "## Rules",
        rule_list(),
    ]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def what_was_run(runs: Runs) -> str:
    """Return a table of the scales: what they are, and how many of their runs are there."""
    options = argparse.Namespace(methods=[], seeds=[], again=False)
    lines = [("scale", "what it is", "decides", "runs that are there")]
    for name in (*PUBLISHED, *SMALL):
        cells = reproduce.cells([*items().values()], scale(name), runs, options)
        filled = sum(cell.measured is not None for cell in cells)
        decides = "yes" if name in PUBLISHED else "no"
        lines.append((f"`{name}`", scale(name).says, decides, f"{filled} of {len(cells)}"))
    return markdown_table(lines)


def rule_list() -> str:
    """Return each rule with its claims; the most common one is that of the claims not named."""
    claims_of: dict[str, list[str]] = {}
    for name, claim in CLAIMS.items():
        if claim.test.rule:
            claims_of.setdefault(claim.test.rule, []).append(name)
    common, *others = sorted(claims_of, key=lambda rule: -len(claims_of[rule]))
    lines = [f"- Claims that are not named below. {common}"]
    lines += [f"- {', '.join(claims_of[rule])}. {rule}" for rule in others]
    return "\n".join(lines)


def evidence(name: str, verdict: Verdict) -> str:
    """Return the folded evidence on a claim."""
    claim = CLAIMS[name]
    parts = [f"### {name}", f"{claim.says} ({claim.paper}, {claim.where})."]
    if isinstance(claim.test, Untested):
        parts.append(claim.test.because)
    lines = [("from", "compared", "found")]
    lines += [(where, line.what, line.found) for where, line in verdict.evidence]
    if len(lines) > 1:
        table = markdown_table(lines)
        parts.append(f'<details markdown="1"><summary>Evidence</summary>\n\n{table}\n\n</details>')
    elif not isinstance(claim.test, Untested):
        missing = ", ".join(verdict.outcomes[SMALL[-1]].missing)
        parts.append(f"Missing: {missing}.")
    return "\n\n".join(parts)


@functools.cache
def bound_gaps(runs: Runs) -> list[float]:
    """Return by how much theorem 1 exceeds the robust error, for every committed card that has
    it."""
    gaps = [bound_gap(measured.card) for measured in runs.every]
    return [gap for gap in gaps if not math.isnan(gap)]


def unbounded_lines() -> list[tuple[str, ...]]:
    """Return what TAET's CW leaves of four models, and what a search for its constant leaves."""
    attacks = ("cw-l2", "cw-l2:c=search,steps=30")
    lines: list[tuple[str, ...]] = [("model", "100 steps, c = 10", "search for c", "difference")]
    for name in ("at", "at-bsl", "robal", "taet"):
        cards = committed("cifar10-lt-attacks", name)
        card = next(iter(cards.values()))
        left = [f"{100 * card.summary(attack).balanced:.1f} %" for attack in attacks]
        found = paired(cards, cards, attacks)
        assert found is not None, name
        lines.append((name, *left, text(found)))
    return lines


def proofs(runs: Runs) -> str:
    """Return the results that need no training."""
    gaps = bound_gaps(runs)
    broken = sum(gap > 1e-9 for gap in gaps)
    return PROOFS.format(
        broken=broken,
        cards=len(gaps),
        most=100 * max(gaps),
        unbounded=markdown_table(unbounded_lines()),
    )


HEAD = """# Claims of both papers

What TAET ([arXiv:2503.01924](https://arxiv.org/abs/2503.01924)) and REAT
([arXiv:2307.10205](https://arxiv.org/abs/2307.10205)) claim, and what our runs say of it.

## What was run

{run}

**A verdict needs the papers' setting**: ResNet-18 or larger, the published class counts, class order and epochs, ten
attack steps, and three training seeds. No claim has that yet: at `gpu` AT-BSL and TAET were trained once each. So this
page decides nothing about either paper. [Five results that follow from formulas and public
code](#proved-without-a-network) need no run.

ResNet-8 decides nothing: under PGD-20, TAET minus AT-BSL is below 0 there (−3.1 points, three seeds) and above 0 for one
ResNet-18 each (+4.0). The last column of the table says what small runs show, so that you know what to run first. **A
sentence that names no seeds compares one run of each row**: its interval covers the test images only, and it speaks of
trained models, not of methods. All runs share one training subset and one class order, and none was tuned.
[How our numbers relate to the published ones](published-numbers.md) has the other differences.

## Claims

{claims} claims: {counts}. Claims that are settled by a proof, or that are notes of ours on a table, are not counted.
"""  # noqa: E501

PROOFS = """## Proved without a network

These results follow from the papers' formulas and from their public code. *Seen* marks what our small networks show beside
them; it illustrates a result and is no part of its proof.

1. **A weight on the loss of an image moves no adversarial example** under sign steps with batch normalisation in eval
   mode, as both public codes attack: a positive factor on the loss of one image does not change the sign of its own
   gradient, and images do not depend on each other. So RBL, RW, RWS and ENR (REAT, section 4.1 and table 2) train the same
   model as plain PGD, up to rounding, which [a test](../tests/methods/test_findings.py) checks. BRW shifts the logits and does have an effect.
   If table 2 was made in this way, differences between these rows have another cause, such as another seed.
   The printed differences between them are about as large as the printed standard errors.
2. **Theorem 1 of REAT does not hold as printed, nor with the missing 1/n_i put back.** As printed it bounds a share by a
   count of images. With 1/n_i it says that the robust risk is at least the mean over classes of natural error and
   disagreement. An image that is misclassified and changes its class under attack counts in both: if all images are like
   it, the risk is 1 and the bound is 2.
   The two are equal under attacks that leave misclassified images alone, as AutoAttack does.
   *Seen:* in {broken} of our {cards} evaluations the bound is above the measured robust error, by up to {most:.1f} points.
3. **Equation 13 of TAET has an error**: it also multiplies the clean stage by rho and divides by 1 + kappa gamma.
   Equation 12 with the same constants gives eta = 0.656, so that two stages save 34.4 % of the time and not 39.2 %.
4. **TAIL in REAT's public code is another term than equation 3.** It multiplies a mean over all pairs and features, which
   leaves about 1/D of the sum of pairwise divergences with D features. It holds the features of tail images fixed and, in
   most batches, pulls all others towards them. Equation 3 pulls together images of one class only, and pushes those of
   other classes apart; it has no lower bound.
   [Formulas](losses.md#tail_margin).
   *Seen:* a ResNet-8 that was trained with equation 3 diverged (`reat --method.form paper`: 13.0 % on clean images).
5. **An L2 attack without a bound measures its own optimiser.** Without a bound, an image that the network takes for
   another class is itself an allowed example, so every image can be broken; the accuracy that is left says how far the
   optimiser got. TAET's column CW is such an attack in its public code, stopped after 100 steps.
   *Seen:* with a search for its constant the attack leaves far fewer images, on four ResNet-8 of 23 to 32 % clean accuracy
   (CIFAR-10-LT, 500 test images):

{unbounded}
"""  # noqa: E501

EVIDENCE = """## Evidence

Differences are in points of balanced accuracy, paired on the same test images, with 95 % intervals. Where a claim has
several parts, its intervals are *corrected* so that together they cover with 95 %; so the same pair of rows can have
a wider interval under another claim. All parts must hold. *Related* rows are committed runs with other settings.
[Notes](notes-on-papers.md) have what was measured beside the claims, and errata.
"""  # noqa: E501


def main() -> None:
    """Print the verdicts, or write the page."""
    if "--write" in sys.argv:
        PAGE.write_text(page(Runs()), encoding="utf-8")
        return
    for name, verdict in verdicts(Runs()).items():
        print(f"{name:4}{verdict.word:15}{CLAIMS[name].says}")


if __name__ == "__main__":
    main()
