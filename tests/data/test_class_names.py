"""Names of classes: what is refused, their order, and names that look alike."""

import unicodedata

import pytest

from taet.data.class_names import alike_notes, by_number, check_names
from tests.calls import one_line


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a"], "got 'a'; allowed: 2 classes or more"),
        (["a", "a"], "got 'a' twice; allowed: a different name for each"),
        (["a", " "], "got ' '; allowed: .* text that can be printed"),
        (["a", "b\x1b[2J"], r"got 'b\\x1b\[2J'; allowed"),
        (["a", "\ud800"], r"got '\\ud800'; allowed"),
    ],
)
def test_names_that_cannot_tell_classes_apart_are_refused(names, message):
    with one_line(message):
        check_names(names)


def test_numbers_are_in_the_order_of_numbers():
    assert by_number(["10", "2", "-1", "2"]) == ["-1", "2", "10"]


def test_other_names_are_in_the_order_of_text():
    assert by_number(["10", "2", "b"]) == ["10", "2", "b"]


def test_numbers_that_are_equal_are_in_the_order_of_text():
    assert by_number(["10", "2", "02"]) == ["02", "10", "2"]


@pytest.mark.parametrize(
    "other",
    [
        pytest.param("NV", id="case"),
        pytest.param("n v", id="blank"),
        pytest.param("nv ", id="trailing blank"),
        pytest.param("n\u00a0v", id="no-break space"),
        pytest.param("nv\u200d", id="zero-width joiner"),
        pytest.param("n\u200bv", id="zero-width space"),
        pytest.param("\ufeffnv", id="byte-order mark"),
        pytest.param("nv\u200e", id="mark of direction"),
        pytest.param("n\u00adv", id="soft hyphen"),
        pytest.param("nv\u2028", id="line separator"),
        pytest.param("nv\u2060", id="word joiner"),
        pytest.param("nv\ufe0f", id="variation selector"),
        pytest.param("\uff4e\uff56", id="full width"),
        pytest.param("n\u03bd", id="Greek"),
    ],
)
def test_a_name_that_looks_like_another_is_noted(other):
    (note,) = alike_notes(["mel", "nv", other])
    assert note.kind == "alike-classes"
    assert note.numbers["names"] == ("nv", other)


def test_numbers_with_zeros_before_them_look_alike():
    (note,) = alike_notes(["01", "1", "2"])
    assert note.numbers["names"] == ("01", "1")


def test_two_unicode_forms_of_a_name_look_alike():
    names = [unicodedata.normalize(form, "nævus é") for form in ("NFC", "NFD")]
    (note,) = alike_notes(names)
    assert note.numbers["names"] == tuple(names)


def test_the_note_shows_what_cannot_be_seen():
    (note,) = alike_notes(["nv", "nv\u200d", "n\u0443", "ny", "nv "])
    assert str(note).endswith(r"only: nv, nv\u200d, n\u0443, ny and 'nv '")


def test_different_names_are_not_noted():
    assert alike_notes(["mel", "nv", "1", "10", "a b", "a-b"]) == []
