"""Verdicts on claims are by rule, and what the page says is what the cards show."""

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

import findings
import rules
from claims import CLAIMS, Claim
from items import scale
from runs import Runs
from taet.metrics.paired import Difference

PAGE = Path(__file__).parents[2] / "docs" / "findings.md"


@pytest.fixture(scope="module")
def committed() -> Runs:
    return Runs()


@dataclass(frozen=True)
class Holds:
    """A test that holds at one scale, with some seeds."""

    scale: str
    seeds: int
    rule: str = ""

    def apply(self, study: rules.Study) -> rules.Outcome:
        if study.scale.name != self.scale:
            return rules.Outcome("not tested")
        return rules.Outcome("holds", seeds=self.seeds)


def verdict(test: rules.Test, tmp_path: Path) -> findings.Verdict:
    return findings.decide(Claim("TAET", "says", "where", test, "seen"), Runs(tmp_path, tmp_path))


# What decides


@pytest.mark.parametrize("scale", ["full", "gpu"])
def test_three_seeds_at_the_published_setting_decide(scale: str, tmp_path: Path) -> None:
    found = verdict(Holds(scale, seeds=3), tmp_path)
    assert (found.word, found.scale) == ("holds", scale)


@pytest.mark.parametrize("seeds", [1, 2])
def test_fewer_seeds_decide_nothing(seeds: int, tmp_path: Path) -> None:
    found = verdict(Holds("gpu", seeds), tmp_path)
    assert (found.word, found.scale) == ("not tested", "")


@pytest.mark.parametrize("scale", ["cpu", "mini"])
def test_smaller_networks_decide_nothing(scale: str, tmp_path: Path) -> None:
    assert verdict(Holds(scale, seeds=9), tmp_path).word == "not tested"


@pytest.mark.parametrize("name", CLAIMS)
def test_without_runs_no_claim_is_tested(name: str, tmp_path: Path) -> None:
    assert verdict(CLAIMS[name].test, tmp_path).word == "not tested"


# Rules


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [
        (1, 3, "holds"),
        (1, 1.9, "does not hold"),  # a gain below half of the claimed one
        (-1, 3, "undecided"),
        (-1, 1, "undecided"),
        (-3, -1, "does not hold"),
    ],
)
def test_a_claimed_gain_is_decided_by_the_interval(low: float, high: float, word: str) -> None:
    claimed = 4
    found = Difference((low + high) / 200, low / 100, high / 100, p=1.0)
    assert rules.larger(found, claimed) == word


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [(-3, 4, "holds"), (-3, 4.1, "undecided"), (4.1, 5, "does not hold")],
)
def test_a_claimed_equality_is_decided_by_the_interval(low: float, high: float, word: str) -> None:
    most = 4
    found = Difference((low + high) / 200, low / 100, high / 100, p=1.0)
    assert rules.within(found, most) == word


@pytest.mark.parametrize(
    ("parts", "word"),
    [
        (["holds", "holds"], "holds"),
        (["holds", "undecided", "does not hold"], "does not hold"),
        (["holds", "not tested", "undecided"], "not tested"),
        ([], "not tested"),
    ],
)
def test_all_parts_must_hold_and_one_that_fails_is_enough(
    parts: list[rules.Word], word: str
) -> None:
    assert rules.together(parts) == word


# The page


@pytest.mark.full
def test_the_page_of_claims_is_in_step_with_the_cards(committed: Runs) -> None:
    written = PAGE.read_text(encoding="utf-8")
    assert findings.page(committed) == written, "run: python papers/findings.py --write"


@pytest.mark.full
@pytest.mark.parametrize("name", CLAIMS)
def test_numbers_in_what_we_see_are_those_of_the_evidence(name: str, committed: Runs) -> None:
    claim = CLAIMS[name]
    found = findings.decide(claim, committed)
    evidence = " ".join(line.found for _, line in found.evidence)
    evidence += getattr(claim.test, "because", "")
    for number in re.findall(r"\d+\.\d+|\d+(?= %)", claim.seen):
        assert number in evidence or number in claim.says, (name, number)


@pytest.mark.parametrize("name", CLAIMS)
def test_a_claim_names_its_place_in_the_paper(name: str) -> None:
    assert re.search(r"section|table|figure|appendi", CLAIMS[name].where)


@pytest.mark.parametrize("name", findings.PUBLISHED)
def test_a_scale_that_decides_trains_reat_on_all_published_images(name: str) -> None:
    assert scale(name).of("settings", "reat")["data.validation"] == 0.0
