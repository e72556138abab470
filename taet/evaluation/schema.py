"""The stored form of result cards: its version, migration from older versions, and the check of stored numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping

from taet.errors import UserError
from taet.evaluation.packing import Json
from taet.formatting import short

KIND = "taet result card"
SCHEMA = 2
TOLERANCE = 1e-9  # between a stored and a recomputed share: far above rounding, far below one image

ADDED_2 = (
    "flip_rate",
    "class_flip_rate",
    "natural_error",
    "boundary_error",
    "weak_classes",
    "few_images",
    "median_distance",
    "roc_auc",
)
"""The numbers of a summary that schema 2 added."""


def check_schema(stored: object) -> int:
    """Return the schema of a stored card; raise a `UserError` if it is not a card or cannot be read by this version."""
    if not isinstance(stored, Mapping) or stored.get("kind") != KIND:
        raise UserError("not a result card")
    schema = stored.get("schema")
    if type(schema) is not int or not 1 <= schema <= SCHEMA:
        hint = "; update taet" if type(schema) is int and schema > SCHEMA else ""
        raise UserError(f"schema: got {short(schema)}; allowed: 1 to {SCHEMA}{hint}")
    return schema


def migrate(stored: Json) -> Json:
    """Return a stored card in the current schema, with fields that an older schema lacked marked as not measured.

    Summaries stay as they are: they are recomputed anyway and compared as far as they go.
    """
    if stored["schema"] == SCHEMA:
        return stored
    added = {"distances": None, "roc_auc": None, "curve": ""}
    return {**stored, "schema": SCHEMA, "columns": [{**column, **added} for column in stored["columns"]]}


def check_summary(where: str, stored: object, computed: Json, schema: int) -> None:
    """Raise a `UserError` if a stored summary differs from the recomputed one in any number that its schema has."""
    later = ADDED_2 if schema < 2 else ()
    _check(where, stored, {name: value for name, value in computed.items() if name not in later})


def _check(where: str, stored: object, computed: object) -> None:
    """Raise a `UserError` that names the value if a stored value differs from the recomputed one."""
    if isinstance(computed, dict) and isinstance(stored, dict) and stored.keys() == computed.keys():
        for key, value in computed.items():
            _check(f"{where} {key}", stored[key], value)
    elif isinstance(computed, list) and isinstance(stored, list) and len(stored) == len(computed):
        for index, value in enumerate(computed):
            _check(f"{where}[{index}]", stored[index], value)
    elif not _agree(stored, computed):
        raise UserError(f"{where}: stored {short(stored)}, recomputed from the masks {short(computed)}")


def _agree(stored: object, computed: object) -> bool:
    if bool in (type(stored), type(computed)) or not isinstance(stored, int | float):
        return stored == computed
    return isinstance(computed, int | float) and math.isclose(stored, computed, rel_tol=0, abs_tol=TOLERANCE)
