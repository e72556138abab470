"""Every warning is also said in words that a reader outside the field understands."""

import re

import pytest

from taet.evaluation.flags import FLAGS
from taet.report.plain_words import meaning
from taet.training.curve import FLAGS as TRAINING_FLAGS
from tests.report.made import Page

TERMS = {"gradient", "gradients", "logit", "logits", "pgd", "ball", "eps", "probe", "masked"}


@pytest.mark.parametrize("name", [flag.name for flag in [*FLAGS, *TRAINING_FLAGS]])
def test_a_warning_has_a_meaning_and_a_remedy_without_terms_of_the_field(name: str) -> None:
    found, *remedy = meaning(name).split(". ")
    assert found
    assert remedy
    assert not TERMS & {*re.findall("[a-z]+", meaning(name).lower())}


def test_the_page_says_the_meaning_before_the_sentence_of_the_flag(page: Page) -> None:
    place = page.text.index(meaning("small-test-set"))
    assert place < page.text.index("With 368 test images, ") < page.text.index("small-test-set")


def test_a_flag_that_is_not_known_has_no_meaning() -> None:
    assert meaning("of-a-later-version") == ""
