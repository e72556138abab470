"""`taet list KIND`: the names that other commands accept. Reads source text only, without importing
torch."""

import json
from typing import Annotated, Literal, cast

from taet import registry
from taet.cli.options import POSITIONAL, Command, parse
from taet.files import Json
from taet.protocols import PROTOCOLS, recipes
from taet.settings.schema import option_words

ATTACK_SETS = {
    "taet": "all attacks of the TAET paper's tables",
    "reat": "all attacks of the REAT paper's tables",
    "curve-eps": "pgd-20 at seven radii, from a quarter of eps to the whole range of pixels",
    "curve-steps": "pgd with 1 to 100 steps",
    "curve-logit-scale": "pgd-20 on logits times 0.01 to 100, which shows a saturated loss",
}
"""Names of several attacks at once, which `--attacks` takes too."""


class List(Command):
    """Print the names of one kind: methods, losses, attacks, data, models, protocols, or recipes.

    Recipes are printed with all their settings.
    """

    examples = ("taet list methods", "taet list attacks --json")

    kind: Annotated[
        Literal["methods", "losses", "attacks", "data", "models", "protocols", "recipes"],
        POSITIONAL,
    ]
    """methods, losses, attacks, data, models, protocols or recipes."""
    as_json: bool = False
    """Print JSON."""


def rows(kind: str) -> list[Json]:
    """Return every name of `kind` with its title; for a method also its paper and its deviations
    from the protocol."""
    if kind == "protocols":
        return [
            {"name": name, "title": registry.summary(start.__doc__ or "")}
            for name, start in PROTOCOLS.items()
        ]
    if kind == "recipes":
        return [
            {"name": name, "title": title, "settings": own}
            for name, (title, own) in recipes().items()
        ]
    found = [
        {"name": entry.name, "title": entry.title}
        | ({"reference": entry.reference} if entry.reference else {})
        | ({"deviations": list(entry.deviations)} if kind == "methods" else {})
        for entry in registry.entries(cast(registry.Kind, kind)).values()
    ]
    if kind == "attacks":
        found += [{"name": name, "title": title} for name, title in ATTACK_SETS.items()]
    return found


def run(words: list[str]) -> None:
    """Print the names of a kind."""
    command, _ = parse(List, words, "taet list")
    listed = rows(command.kind)
    if command.as_json:
        print(json.dumps(listed, indent=1))
        return
    width = max(len(row["name"]) for row in listed)
    for row in listed:
        print(f"{row['name']:{width}}  {row['title']}")
        below = [row["reference"]] if "reference" in row else []
        below += [" ".join(option_words(*setting)) for setting in row.get("settings", {}).items()]
        below += [f"leaves the protocol: {text}" for text in row.get("deviations", ())]
        for text in below:
            print(f"{'':{width}}  {text}")
