"""`taet list KIND`: the names that other commands take. Reads source text only, so it answers at once."""

from __future__ import annotations

import json
from typing import cast

from taet import registry
from taet.errors import UserError, unknown
from taet.protocols import PROTOCOLS

KINDS = ("methods", "attacks", "data", "models", "protocols")
HELP = f"""usage: taet list {{{",".join(KINDS)}}} [--json]

examples:
  taet list methods
  taet list attacks --json"""


def titles(kind: str) -> dict[str, str]:
    """Every name of `kind` with one line about it."""
    if kind == "protocols":
        return {name: (start.__doc__ or "").split("\n")[0] for name, start in PROTOCOLS.items()}
    return {name: entry.title for name, entry in registry.entries(cast(registry.Kind, kind)).items()}


def run(arguments: list[str]) -> None:
    """Print the names of one kind."""
    if not arguments or {"-h", "--help"} & set(arguments):
        print(HELP)
        return
    kinds = [a for a in arguments if a != "--json"]
    if len(kinds) != 1:
        raise UserError(f"taet list takes one of {', '.join(KINDS)}; got {' '.join(kinds) or 'none'}")
    (kind,) = kinds
    if kind not in KINDS:
        raise unknown("kind", kind, KINDS)
    names = titles(kind)
    if "--json" in arguments:
        print(json.dumps([{"name": name, "title": title} for name, title in names.items()], indent=1))
        return
    width = max(map(len, names))
    for name, title in names.items():
        print(f"{name:{width}}  {title}")
