"""Numbers and lists as text, as messages, tables and reports write them."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta

SHORT_NUMBER = 6  # characters of a size that is as readable as a fraction, such as 0.0125
MISSING = "–"  # stands for a number that was not measured
DURATION = re.compile(r"(?=.)(?:(\d{1,9})h)?(?:(\d{1,9})m)?(?:(\d{1,9})s)?", re.ASCII)
NUMBER = re.compile(
    r"[+-]?(\d{1,400}\.?\d{0,400}|\.\d{1,400})(e[+-]?\d{1,4})?", re.ASCII | re.IGNORECASE
)


def format_radius(eps: float, digits: int | None = 4, within: float = 1e-4) -> str:
    """Write a perturbation size as k/255 where it is a whole number of pixel values, e.g. 8/255.

    A quarter of one, such as 2.5/255, is written so as well, unless the size is a short number.

    Args:
        eps: size in units of the image range [0, 1].
        digits: significant digits of any other size; None writes it exactly, so that it is read
            back unchanged.
        within: largest difference of 255 eps from a whole number; with 0, only an eps of exactly
            k/255 is written in this way.
    """
    plain = str(eps) if digits is None else f"{eps:.{digits}g}"
    values = round(255 * eps)
    if values > 0 and _is_near(255 * eps, values, within, exact=values / 255 == eps):
        return f"{values}/255"
    if len(plain) <= SHORT_NUMBER and float(plain) == eps:
        return plain
    quarters = round(4 * 255 * eps) / 4
    if quarters > 0 and _is_near(255 * eps, quarters, within, exact=quarters / 255 == eps):
        return f"{quarters:g}/255"
    return plain


def _is_near(value: float, target: float, within: float, *, exact: bool) -> bool:
    return exact or (within > 0 and math.isclose(value, target, rel_tol=0, abs_tol=within))


def percent(share: float) -> str:
    """Write a share in [0, 1] in per cent, without the sign: 61.2; a dash for nan."""
    return MISSING if math.isnan(share) else f"{100 * share:.1f}"


def percent_interval(low: float, high: float, digits: int = 1) -> str:
    """Write an interval of shares in per cent: 58.0–64.1; a dash for nan."""
    return MISSING if math.isnan(low) else f"{100 * low:.{digits}f}–{100 * high:.{digits}f}"


def points(difference: float) -> str:
    """Write a difference of shares in percentage points, with its sign: +1.5, −0.3, 0.0."""
    text = f"{100 * difference:+.1f}".replace("-", "−")
    return "0.0" if text[1:] == "0.0" else text


def plural(number: int, noun: str) -> str:
    """Write a number with a regular noun: 1 cell, 3 cells."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def clock(seconds: float) -> str:
    """Write a duration as 0:03:07."""
    return str(timedelta(seconds=round(seconds)))


def duration(seconds: float) -> str:
    """Write an estimated duration in words.

    Examples are: about 20 seconds, about 5 minutes, about 2.5 hours, about 3.1 days.
    """
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"about {max(round(seconds, -1), 10):.0f} seconds"
    if minutes < 120:
        return f"about {minutes} minutes"
    return (
        (f"about {seconds / 3600:.1f} hours")
        if minutes < 48 * 60
        else f"about {seconds / 86400:.1f} days"
    )


def join_words(words: Iterable[str], most: int | None = None) -> str:
    """Write words as a list: a, b and c.

    Of more than `most` words, the first are named and the others counted.
    """
    items = list(words)
    if most is not None and len(items) > most:
        items = [*items[:most], f"{len(items) - most} more"]
    if len(items) < 2:
        return "".join(items)
    before = ", ".join(items[:-1])
    return f"{before} and {items[-1]}"


def format_value(value: object) -> str:
    """Write a value from a JSON file in words: `key value, key value` for an object."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {format_value(part)}" for key, part in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(format_value, value))
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown with the first row as its head.

    Cells are Markdown, with escaped bars.
    """
    head, *lines = ("| " + " | ".join(row) + " |" for row in rows)
    return "\n".join([head, "|" + "---|" * len(rows[0]), *lines])


def read_duration(text: str) -> float:
    """Return the seconds of a DURATION such as 2h30m, 90m or 600s."""
    hours, minutes, rest = (int(part or 0) for part in DURATION.findall(text)[0])
    return 3600.0 * hours + 60.0 * minutes + rest


def read_number(text: str) -> float:
    """Return a finite number as users write it, also as a fraction such as 8/255.

    Anything else raises a `ValueError`.
    """
    above, slash, below = text.partition("/")
    if not NUMBER.fullmatch(above) or (slash and not (NUMBER.fullmatch(below) and float(below))):
        raise ValueError(text)
    value = float(above) / float(below or 1)
    if not math.isfinite(value):
        raise ValueError(text)
    return value
