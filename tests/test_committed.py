"""Committed numbers: golden ones are tested, and differences in texts are those of the cards."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import taet
from taet import registry
from taet.evaluation import ResultCard
from tests.test_docs import render

ROOT = Path(__file__).parents[1]
SHOWN = [  # differences in hand-written text: page, cards, first row, second row, attack
    ("README.md", "digits-lt-methods/*", "taet", "at", "autoattack"),
    ("README.md", "digits-lt-methods/*", "harl", "at", "autoattack"),
    ("README.md", "digits-lt-[cm]*s/*", "taet (alpha 1, beta 1, gamma 1)", "taet", "autoattack"),
    ("README.md", "digits-lt-[cm]*s/*", "harl (alpha 1, beta 1, gamma 1)", "at", "autoattack"),
    ("README.md", "reproduce/cpu/*", "taet", "at-bsl", "autoattack"),
    ("docs/fine-tuning.md", "ham10000-fine-tune/*", "trades", "standard", "clean"),
    ("docs/fine-tuning.md", "ham10000-fine-tune/*", "trades", "standard", "autoattack-fast"),
]


@pytest.mark.parametrize("page", sorted({page for page, *_ in SHOWN}))
def test_differences_in_texts_are_those_of_the_cards(page: str) -> None:
    text = " ".join((ROOT / page).read_text(encoding="utf-8").replace("−", "-").split())
    for _, cards, first, second, attack in (one for one in SHOWN if one[0] == page):
        paths = [path for path in ROOT.glob(f"results/{cards}.json") if ".embedding-" not in path.name]
        results = taet.results(*map(str, paths))
        rows = [min((row for row in results.rows if row.startswith(name)), key=len) for name in (first, second)]
        found = results.difference(*rows, attack)
        assert found is not None
        value, low, high = (100 * one for one in (found.value, found.low, found.high))
        forms = (f"{low:+.1f} to {high:+.1f}", f"{-high:.1f} to {-low:.1f}")
        assert any(form in text for form in forms), (page, first, second, forms)
        assert f"{abs(value):.1f}" in text


@pytest.mark.full
def test_the_result_cards_name_the_commands_that_made_them_and_no_machine() -> None:
    cards = [path for path in sorted((ROOT / "results").glob("*/**/*.json")) if ".embedding-" not in path.name]
    assert cards
    for path in cards:
        card = ResultCard.load(path)
        assert card.command.startswith("taet evaluate")
        assert card.run["command"].startswith("taet ")
        assert not re.search(r"/(tmp|home|work|root)/", path.read_text(encoding="utf-8")), path


def test_every_golden_number_is_checked_by_a_test_and_named_on_a_page() -> None:
    """Averages and weight perturbation are no method's, so no page names theirs."""
    page = render()
    named = {key for name in registry.entries("methods") for key in page.golden_keys(name)}
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    families = set(re.findall(r'f"(\w+_)\{', tests))
    for path in (ROOT / "tests" / "golden").glob("*.json"):
        if path.stem == "long_tail":  # whose test runs over every key
            continue
        for key in json.loads(path.read_text(encoding="utf-8")):
            assert f'"{key}"' in tests or any(key.startswith(family) for family in families), f"{key} has no test"
            assert path.stem != "methods" or key in named, f"{key} is on no page"
