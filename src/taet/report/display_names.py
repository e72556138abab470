"""The rows of a report under the names that papers print: AT-BSL for at-bsl."""

import contextlib
from collections.abc import Iterable
from dataclasses import replace

from taet import methods
from taet.errors import UserError
from taet.report.entries import TableEntry
from taet.report.results import Results


def with_display_names(results: Results) -> Results:
    """Return the results of one test set, each row with the name of its method as papers print it.

    A name that its user gave stays. So does a name whose row would be called as another one is.
    """
    names = _display_names(results.entries)
    shown = [replace(entry, row=names.get(entry.row, entry.row)) for entry in results.entries]
    return Results(tuple(shown), results.waiting, results.title)


def _display_names(entries: Iterable[TableEntry]) -> dict[str, str]:
    names: dict[str, str] = {}
    taken = {entry.row for entry in entries}
    for entry in entries:
        method = entry.card.method
        is_of_method = entry.row == method or entry.row.startswith(f"{method} ")
        is_given = entry.card.name is not None or entry.card.seed is None  # a model without a run
        if is_given or entry.row in names or not is_of_method:
            continue
        with contextlib.suppress(UserError):  # a method that is not known here
            name = methods.find(method).title + entry.row.removeprefix(method)
            if name not in taken:
                names[entry.row] = name
                taken.add(name)
    return names
