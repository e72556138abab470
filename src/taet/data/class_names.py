"""Names of classes: what is allowed, their usual order, and names that look alike."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence

from taet.data.notes import DataNote
from taet.errors import UNPRINTABLE, UserError
from taet.formatting import join_words

NUMBER = re.compile(r"-?\d{1,18}")
"""A numeric label; longer numbers are names."""
MISSING = ("", "NA", "N/A", "NaN", "nan", "NULL", "None")
"""No label or no group, as R, pandas and databases write it."""
LOOK_ALIKES = str.maketrans(
    "аеорсухіјѕԁԛԝһӏАВЕКМНОРСТУХІЈЅΑΒΕΖΗΙΚΜΝΟΡΤΥΧονρικυτ",
    "aeopcyxijsdqwhlABEKMHOPCTYXIJSABEZHIKMNOPTYXovpikut",
)
"""Letters of the Cyrillic and Greek alphabets that look like Latin ones."""


def check_names(names: Iterable[str], fewest: int = 2) -> tuple[str, ...]:
    """Return class names.

    Refused are fewer than `fewest`, and names that are empty, occur twice or cannot be printed.
    """
    names = tuple(names)
    if len(names) < fewest:
        got = ", ".join(map(repr, names)) or "none"
        raise UserError(f"class names: got {got}; allowed: {fewest} classes or more")
    known = set[str]()
    for name in names:
        if name in known:
            got = f"'{name}' twice"
        elif not name.strip() or UNPRINTABLE.search(name):
            got = f"{name[:40]!a}"
        else:
            known.add(name)
            continue
        raise UserError(
            f"class names: got {got}; allowed: a different name for each, text that can be printed"
        )
    return names


def by_number(labels: Iterable[str]) -> list[str]:
    """Return the different labels in the order of numbers if all are numbers, else as text."""
    names = sorted({*labels})
    all_numbers = all(NUMBER.fullmatch(name) for name in names)
    if all_numbers and len({int(name) for name in names}) == len(names):
        return sorted(names, key=int)
    return names


def alike_notes(names: Sequence[str]) -> list[DataNote]:
    """Return a note that names the classes whose names look alike, if there are any."""
    by_looks = defaultdict[str, list[str]](list)
    for name in names:
        by_looks[_looks(name)].append(name)
    alike = [name for name in names if len(by_looks[_looks(name)]) > 1]
    if not alike:
        return []
    shown = join_words([_with_hidden_characters(name) for name in alike], most=6)
    text = (
        "classes whose names differ in case, zeros, blanks, Unicode form, invisible or look-alike "
        f"characters only: {shown}"
    )
    return [DataNote(text, "alike-classes", names=tuple(alike))]


def _looks(name: str) -> str:
    """Return what a reader sees of a name: two names with the same look are easily confused."""
    if NUMBER.fullmatch(name):
        return str(int(name))
    shown = "".join(
        character
        for character in unicodedata.normalize("NFKC", name)
        if not _is_invisible(character)
    )
    latin = shown.translate(LOOK_ALIKES)
    return "".join(latin.casefold().split())


def _is_invisible(character: str) -> bool:
    """Whether a character has no width: a joiner, a mark of direction or order, a soft hyphen, a
    variation selector."""
    return unicodedata.category(character) in ("Cf", "Cc", "Zl", "Zp") or (
        "\ufe00" <= character <= "\ufe0f"
    )


def _with_hidden_characters(name: str) -> str:
    """Return a name in which blanks other than a space, invisible characters and look-alikes are
    escaped."""

    def is_hidden(character: str) -> bool:
        other_blank = character.isspace() and character != " "
        return other_blank or _is_invisible(character) or ord(character) in LOOK_ALIKES

    shown = "".join(ascii(char)[1:-1] if is_hidden(char) else char for char in name)
    return f"'{shown}'" if shown != shown.strip() or "  " in shown else shown
