"""`taet list KIND`: the names that other commands accept. Reads source text only, without importing torch."""

from __future__ import annotations

import json
from typing import Any, cast

from taet import registry
from taet.errors import UserError, unknown
from taet.protocols import PROTOCOLS, recipe_settings, recipes
from taet.settings import option

KINDS = ("methods", "attacks", "data", "models", "protocols", "recipes")
HELP = f"""usage: taet list {{{",".join(KINDS)}}} [--json]

Print the names of one kind, recipes with all their settings.

examples:
  taet list methods
  taet list attacks --json"""


def rows(kind: str) -> list[dict[str, Any]]:
    """Return every name of `kind` with its title; for a method also its paper and its deviations from the protocol."""
    if kind == "protocols":
        return [{"name": name, "title": (start.__doc__ or "").split("\n")[0]} for name, start in PROTOCOLS.items()]
    if kind == "recipes":
        return [
            {"name": name, "title": settings["title"], "settings": recipe_settings(name)}
            for name, settings in recipes().items()
        ]
    found = registry.entries(cast(registry.Kind, kind)).values()
    return [
        {"name": entry.name, "title": entry.title}
        | ({"reference": entry.reference} if entry.reference else {})
        | ({"deviations": list(entry.deviations)} if kind == "methods" else {})
        for entry in found
    ]


def run(arguments: list[str]) -> None:
    """Print the names of a kind."""
    if not arguments or {"-h", "--help"} & set(arguments):
        print(HELP)
        return
    kinds = [a for a in arguments if a != "--json"]
    if len(kinds) != 1:
        raise UserError(f"taet list takes one of {', '.join(KINDS)}; got {' '.join(kinds) or 'none'}")
    (kind,) = kinds
    if kind not in KINDS:
        raise unknown("kind", kind, KINDS)
    listed = rows(kind)
    if "--json" in arguments:
        print(json.dumps(listed, indent=1))
        return
    width = max(len(row["name"]) for row in listed)
    for row in listed:
        print(f"{row['name']:{width}}  {row['title']}")
        if "reference" in row:
            print(f"{'':{width}}  {row['reference']}")
        for setting, value in row.get("settings", {}).items():
            words = " ".join(map(str, value)) if isinstance(value, tuple) else value
            print(f"{'':{width}}  --{option(setting)} {words}")
        for text in row.get("deviations", ()):
            print(f"{'':{width}}  leaves the protocol: {text}")
