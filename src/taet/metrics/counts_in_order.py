"""Counts of the classes, by number or by name, in the order of the classes."""

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

from taet.errors import UserError, unknown


def in_class_order(counts: Any, class_names: Sequence[str] | None = None) -> Any:
    """Return counts in the order of the classes, if they say to which class each belongs.

    The keys of a mapping, and the index of a pandas Series such as `value_counts()`, which begins
    with the largest class, are numbers of classes, or names of `class_names`. Other counts, which
    are in this order already, are returned unchanged. A missing or an unknown class raises a
    `UserError`.
    """
    by_class = counts.to_dict() if hasattr(counts, "to_dict") else counts
    if not isinstance(by_class, Mapping):
        return counts
    if all(isinstance(key, Integral) and not isinstance(key, bool) for key in by_class):
        keys: list[Any] = list(range(len(class_names or by_class)))
    elif class_names is not None:
        keys = [*class_names]
        strange = next((str(key) for key in by_class if key not in keys), None)
        if strange is not None:
            raise unknown("class of the class counts", strange, keys)
    else:
        raise UserError(
            f"class counts: got counts by name, e.g. of {next(iter(by_class))!r}; allowed: by the "
            "number of the class, or in the order of the labels"
        )
    missing = next((key for key in keys if key not in by_class), None)
    if missing is not None or len(by_class) != len(keys):
        got = ", ".join(map(str, sorted(by_class)))
        raise UserError(
            f"class counts: got counts of {got}; allowed: one for each class, "
            f"{', '.join(map(str, keys))}"
        )
    return [by_class[key] for key in keys]
