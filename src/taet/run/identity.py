"""Which settings make two runs the same: asked by record, resume, compare, report and papers.

The role of each setting stands beside its field (`taet.settings.roles`).
"""

import contextlib
import functools
from collections.abc import Collection, Mapping
from typing import Any

from taet import registry
from taet.errors import UserError
from taet.files import Json, digest, file_sha256
from taet.settings import Data, Run, Training, flat
from taet.settings.roles import RETIRED_OF_MACHINE, Role, roles_of
from taet.settings.schema import from_json


@functools.cache
def roles() -> dict[str, Role]:
    """Return the role of every setting of a run by dotted name.

    A method's own settings decide the weights and are not listed.
    """
    return dict(roles_of(Run))


def names_with(*wanted: Role) -> frozenset[str]:
    """Return the dotted names of the settings with one of these roles, retired ones included."""
    found = {name for name, role in roles().items() if role in wanted}
    if Role.MACHINE in wanted:
        found.update(RETIRED_OF_MACHINE)
    return frozenset(found)


RETIRED = dict(flat({"data": Data.retired, "training": Training.retired}))
"""Settings of earlier versions by dotted name, with their defaults."""
CURVE = names_with(Role.CURVE) | {"training.monitor_images"}
"""Settings that decide weights only where the curve chooses the epoch or teaches the method."""


def role_of(name: str) -> Role:
    """Return the role of a setting; one of a method, or one that has left, decides the weights."""
    if name in CURVE:
        return Role.CURVE
    return roles().get(name, Role.WEIGHTS)


def training_settings(run: Run | Mapping[str, Any]) -> Json:
    """Return the settings of a run by dotted name, without those of the machine and the columns.

    Stored JSON is read as this version of taet reads a run; JSON that it cannot read is used as
    stored.
    """
    if isinstance(run, Run):
        values, retired = run.model_dump(), Json()
    else:
        values, retired = without(run, RETIRED), retired_settings(run)
        with contextlib.suppress(UserError):
            values = from_json(Run, values).model_dump()
    left_out = names_with(Role.MACHINE, Role.COLUMNS)
    found = Json()
    for name, value in flat(values):
        if name not in left_out:
            found[name] = list(value) if isinstance(value, tuple) else value
    if found.get("evaluation.eps") == found.get("threat.eps"):
        found["evaluation.eps"] = None  # the default means the same radius
    return found | retired


def naming_settings(settings: Mapping[str, Any], idle: Collection[str] = ()) -> Json:
    """Return those of `training_settings` that decide the weights of a run and so name its row.

    Replicates share a row, and the cards of a table share their images. `idle`: settings without
    an effect on the weights of this run (`idle_settings`).
    """
    naming = Json()
    for name, value in settings.items():
        if name not in idle and role_of(name) in (Role.WEIGHTS, Role.CURVE):
            naming[name] = value
    return naming


def differences(
    first: Mapping[str, Any], second: Mapping[str, Any], idle: Collection[str] = ()
) -> list[str]:
    """Return the names, sorted, of the settings in which two runs differ, replicates included.

    `first` and `second` are `training_settings`; `idle` as in `naming_settings`. 1 equals 1.0.
    """
    names = {*first, *second}.difference(idle)
    return sorted(name for name in names if first.get(name) != second.get(name))


def without(stored: Mapping[str, Any], names: Collection[str]) -> Json:
    """Return the stored JSON of a run without the settings of these dotted names.

    A part that is no object stays.
    """
    parts = {part: values for part, values in stored.items() if isinstance(values, Mapping)}
    kept = {
        part: {n: v for n, v in of.items() if f"{part}.{n}" not in names}
        for part, of in parts.items()
    }
    return {**stored, **kept}


def retired_settings(stored: Mapping[str, Any]) -> Json:
    """Return the retired settings of data and training that are not at their default, by dotted
    name."""
    machine = names_with(Role.MACHINE)
    found = Json()
    for name, value in flat(stored):
        if name in RETIRED and name not in machine and value != RETIRED[name]:
            found[name] = value
    return found


def run_hash(stored: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a run's JSON as stored, without settings of the machine.

    Checkpoints and weights have it.

    It is never computed from a Run, since later versions may have more settings.
    """
    return digest(without(stored, names_with(Role.MACHINE)))


def code_of(run: Run) -> dict[str, str]:
    """Return the SHA-256 of every plug-in that a run uses, by its part of the run."""
    methods = registry.entries("methods")
    entries = {
        "method": methods.get(run.method),
        "base": methods.get(str(getattr(run.settings, "base", ""))),
        "outer loss": registry.entries("losses").get(run.outer.name),
        "model": registry.entries("models").get(run.model.name),
    }
    return {
        part: file_sha256(entry.path) for part, entry in entries.items() if entry and entry.path
    }


def run_from_json(values: Mapping[str, Any]) -> Run:
    """Rebuild a Run from JSON, with the Config of its method; retired settings are ignored."""
    return from_json(Run, {**without(values, RETIRED), "settings": values.get("settings") or {}})
