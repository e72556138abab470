"""Notes on a data set: what files keep of them, and what older files have instead."""

import json

import pytest

from taet.data.notes import (
    DataNote,
    OfTraining,
    Repeated,
    naming_image_files,
    note_from_json,
    note_to_json,
    printable_note,
    repeated_in_training,
)


def read_back(note: str) -> str:
    return note_from_json(json.loads(json.dumps(note_to_json(note))))


def test_a_file_keeps_the_kind_and_the_numbers_of_a_note() -> None:
    note = read_back(OfTraining("five of them", "identical-images", count=5, names=("a", "b")))
    assert (note, note.kind) == ("five of them", "identical-images")
    assert note.numbers == {"count": 5, "names": ["a", "b"]}


def test_a_note_without_a_kind_is_stored_as_its_sentence() -> None:
    assert note_to_json(DataNote("cut to a profile")) == "cut to a profile"
    assert read_back("cut to a profile") == "cut to a profile"


def test_code_finds_repeated_images_by_the_numbers_of_a_note_not_by_its_words() -> None:
    note = read_back(DataNote("in other words", "any", repeated_in_training=Repeated(2, 9)))
    assert repeated_in_training(["of no kind", note]) == (2, 9)
    assert repeated_in_training(["of no kind", DataNote("of another", "masks", count=2)]) is None


def test_code_finds_file_names_by_the_names_of_a_note_not_by_its_words() -> None:
    named, unnamed = DataNote("in other words", "any", files=("a.png",)), DataNote("x.png", "any")
    assert naming_image_files([read_back(named), unnamed, "of no kind"]) == [named]


@pytest.mark.parametrize("name", ["a/Ann.PNG", "b.jpeg", "c.jpe", "d.tif", "e.pgm", "f.webp"])
def test_a_sentence_of_an_older_file_has_the_numbers_that_code_asks_for(name: str) -> None:
    text = f"identical images: 1 of 3 test images are also in train, e.g. '{name}'"
    note = note_from_json(text)
    assert note == text
    assert repeated_in_training([note]) == (1, 3)
    assert note.numbers["files"] == (name,)


@pytest.mark.parametrize("text", ["90 image files, 9x9 pixels", "labels are those of 'a.csv'"])
def test_other_sentences_of_older_files_have_none(text: str) -> None:
    assert repeated_in_training([note_from_json(text)]) is None
    assert naming_image_files([note_from_json(text)]) == []


@pytest.mark.parametrize("damaged", [5, {"text": 5}, {"text": "a", "kind": "b"}])
def test_what_is_no_note_stays_for_the_check_to_refuse(damaged: object) -> None:
    assert note_from_json(damaged) is damaged


def test_names_in_a_note_can_be_printed() -> None:
    note = printable_note(DataNote("a\x1b", "any", files=("a\x1b", ("\udce9.png", 1))))
    assert (note, note.numbers) == ("a\\x1b", {"files": ("a\\x1b", ("\\udce9.png", 1))})
