"""What both papers claim and what the committed runs say of it, as docs/findings.md.

python papers/findings.py            the verdicts in the terminal
python papers/findings.py --write    docs/findings.md
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace

import claims as tests
from items import FOLDER, scale
from rules import (
    WORDS,
    Study,
    Verdict,
    above,
    fails,
    more_separable,
    orders_reversed,
    published_order,
    steady,
    within,
)
from runs import Runs

TESTED = ("full", "cpu", "mini")
"""The scales that decide; smoke shows only that the machinery works."""


def claims() -> Mapping[str, Callable[[Study], Verdict]]:
    """The tests of claims.py by the names of the claims."""
    return {name: test for name, test in vars(tests).items() if re.fullmatch(r"[CR]\d+", name)}


def verdicts(runs: Runs) -> dict[str, Verdict]:
    """Return the verdict on each claim by its name, at the largest scale that has one."""
    found: dict[str, Verdict] = {}
    for name, test in claims().items():
        for at in (Study(runs, scale(size)) for size in TESTED):
            found[name] = replace(test(at), scale=at.scale.name)
            if found[name].word != "not tested":
                break
    return found


def page(runs: Runs) -> str:
    """The page of all claims, as Markdown: a pure function of the cards."""
    found, said = verdicts(runs), {name: _paragraphs(test) for name, test in claims().items()}
    counts = ", ".join(f"{word} {[one.word for one in found.values()].count(word)}" for word in WORDS)
    lines = [HEAD.format(claims=len(found), counts=counts), "| | claim | verdict | scale |", "|---|---|---|---|"]
    for name, one in found.items():
        size = one.scale if one.evidence and one.word != "not tested" else ""
        lines.append(f"| {name} | {said[name][0]} | **{one.word}** | {size} |")
    lines.append("\n## Evidence\n")
    for name, one in found.items():
        because = [*said[name][1:], f"{'; '.join(one.evidence)}."][0]
        outside = f" *Outside:* {'; '.join(one.outside)}." if one.outside else ""
        lines.append(f"- **{name}** {because}{outside}")
    lines += ["\n## Rules\n", *(f"- {of}: {_paragraphs(rule)[0]}" for of, rule in RULES.items())]
    return "\n".join([*lines, "", (FOLDER / "errata.md").read_text(encoding="utf-8")])


def _paragraphs(of: Callable[..., object]) -> list[str]:
    """Return the paragraphs of a docstring."""
    return [" ".join(part.split()) for part in (inspect.getdoc(of) or "").split("\n\n")]


RULES: Mapping[str, Callable[..., object]] = {
    "All others": above,
    "C11, C13, C25": within,
    "C3": published_order,
    "C26": orders_reversed,
    "R4": steady,
    "R11": fails,
    "R19": more_separable,
}
HEAD = """# Findings

What the two papers claim, and what our runs say of it. Verdicts on {claims} claims: {counts}.

**These are verdicts at small scale.** The runs behind them have the published epochs, attack and optimiser, but
ResNet-8 in place of ResNet-18, and at scale `mini` at most 1,000 training images in a class. Most compare one seed.
ResNet-18 at published size has not been run: a claim that does not hold here may hold there. Claims without a scale are
settled by a proof, public code or a measurement of cost.

`python papers/findings.py --write` makes this page from the committed cards. A verdict is that of the largest
[scale](reproduce.md#scales) with runs. Differences are in points of balanced accuracy, paired on the same test images,
with 95 % intervals; those of one claim share the error, and all must hold. With one seed an interval covers the test
images only: it says which of two models is better, not which method. *Outside* are committed runs with other settings,
which decide nothing.
"""


if __name__ == "__main__":
    if "--write" in sys.argv:
        (FOLDER.parent / "docs" / "findings.md").write_text(page(Runs()), encoding="utf-8")
    else:
        for name, one in verdicts(Runs()).items():
            print(f"{name:4}{one.word:15}{_paragraphs(claims()[name])[0]}")
