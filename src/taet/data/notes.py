"""Notes on a data set: sentences for a reader, each with a kind and numbers for code."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, NamedTuple, Self

from pydantic import PlainSerializer, WrapValidator
from pydantic_core import to_jsonable_python

from taet.errors import printable

# What the sentences in files of older versions say, which store no kinds and numbers.
OLD_REPEATED = re.compile(r"(\d+) of (\d+) test images are also in train\b")
OLD_IMAGE_FILE = re.compile(
    r"[^\s']*\.(?:bmp|gif|jfif|jpe|jpe?g|pgm|png|ppm|tiff?|webp)\b", re.IGNORECASE
)


class DataNote(str):
    """A sentence about the images of a data set.

    Code asks for `kind` and `numbers`, never for words of the sentence.
    """

    kind: str
    numbers: Mapping[str, Any]

    def __new__(cls, text: str, kind: str = "", /, **numbers: object) -> Self:
        """Make a note; `numbers` are the counts and names that the sentence has."""
        note = super().__new__(cls, text)
        note.kind = kind
        note.numbers = numbers
        return note


class OfTraining(DataNote):
    """A note on training or validation images.

    It is left out of the results of models that were not trained on them.
    """


class Repeated(NamedTuple):
    """How many test images are also among the training images."""

    in_training: int
    test_images: int

    def __str__(self) -> str:
        return f"{self.in_training} of {self.test_images} test images are also in train"


def repeated_in_training(notes: Iterable[str]) -> Repeated | None:
    """Return how many test images are also training images, from the first note that says it."""
    for note in notes:
        if isinstance(note, DataNote) and "repeated_in_training" in note.numbers:
            return Repeated(*note.numbers["repeated_in_training"])
    return None


def naming_image_files(notes: Iterable[str]) -> list[str]:
    """Return the notes that name image files."""
    return [note for note in notes if isinstance(note, DataNote) and note.numbers.get("files")]


def printable_note(note: str) -> str:
    """Return a note whose text and names can be printed: they are shown and stored."""
    if not isinstance(note, DataNote):
        return printable(note)
    numbers = {name: _printable(value) for name, value in note.numbers.items()}
    return type(note)(printable(note), note.kind, **numbers)


def _printable(value: object) -> object:
    """Return a value of a note's numbers with texts that can be printed."""
    if isinstance(value, str):
        return printable(value)
    if type(value) is tuple:
        return tuple(map(_printable, value))
    return value


# Notes in files: one with a kind is an object, any other its sentence alone.


def note_to_json(note: str) -> Any:
    """Return a note as a file stores it."""
    if not isinstance(note, DataNote) or not note.kind:
        return str(note)
    numbers = to_jsonable_python(note.numbers, fallback=lambda number: number.tolist())
    return {"text": str(note), "kind": note.kind, "numbers": numbers}


def note_from_json(stored: Any) -> Any:
    """Return the note that a file stores; what is no note stays, for the check to refuse."""
    if isinstance(stored, DataNote):
        return stored
    if isinstance(stored, str):
        return _sentence_of_older_version(stored)
    if not isinstance(stored, Mapping):
        return stored
    text, kind, numbers = (stored.get(field) for field in ("text", "kind", "numbers"))
    if isinstance(text, str) and isinstance(kind, str) and isinstance(numbers, Mapping):
        return DataNote(text, kind, **numbers)
    return stored


def _sentence_of_older_version(text: str) -> str:
    """Return a sentence with the numbers that code asks for: older files store sentences alone."""
    numbers: dict[str, object] = {}
    if repeated := OLD_REPEATED.search(text):
        numbers["repeated_in_training"] = tuple(map(int, repeated.groups()))
    if files := OLD_IMAGE_FILE.findall(text):
        numbers["files"] = tuple(files)
    return DataNote(text, "of-an-older-version", **numbers) if numbers else text


def _checked_note(stored: Any, check: Callable[[Any], str]) -> str:
    """Return the note that a file stores, with its kind; refuse what is none."""
    note: str = note_from_json(stored)
    check(note)
    return note


StoredNote = Annotated[str, WrapValidator(_checked_note), PlainSerializer(note_to_json)]
"""The type of a note in files."""

VALIDATION_IS_TEST = DataNote(
    "no test images are given: the validation images are the test set, and nothing is chosen by "
    "them",
    "validation-is-test",
)
