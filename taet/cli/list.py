"""`taet list KIND`: the names that other commands take. Reads source text only, so it answers at once.

With --cost the methods are run, which takes a minute or two.
"""

from __future__ import annotations

import json
from typing import Any, cast

from taet import registry
from taet.errors import UserError, unknown
from taet.protocols import PROTOCOLS

KINDS = ("methods", "attacks", "data", "models", "protocols")
HELP = f"""usage: taet list {{{",".join(KINDS)}}} [--json] [--cost]

--cost, for methods: measure here and now how many forward and backward passes of the classifier a training step takes,
and its seconds beside a step of PGD-10 adversarial training (ResNet-8, 32 x 32 images, mean over a whole run).

examples:
  taet list methods
  taet list methods --cost
  taet list attacks --json"""


def rows(kind: str) -> list[dict[str, Any]]:
    """Every name of `kind` with one line about it, a method's paper, and where it leaves the protocol."""
    if kind == "protocols":
        return [{"name": name, "title": (start.__doc__ or "").split("\n")[0]} for name, start in PROTOCOLS.items()]
    found = registry.entries(cast(registry.Kind, kind)).values()
    return [
        {"name": entry.name, "title": entry.title}
        | ({"reference": entry.reference} if entry.reference else {})
        | ({"deviations": list(entry.deviations)} if kind == "methods" else {})
        for entry in found
    ]


def costs(as_json: bool) -> None:
    """Measure and print what the methods cost."""
    from taet.cli.progress import progress
    from taet.experiments.cost import measure

    with progress("cost") as report:
        found = measure(progress=report)
    if as_json:
        print(json.dumps(found, indent=1))
        return
    print(f"{'':22} forward  backward  passes  seconds (least to largest of {found['rounds']}), PGD-10 AT = 1")
    for cost in found["costs"]:
        name = " ".join([cost["name"], *map(str, cost["settings"].values())])
        low, high = cost["spread"]
        print(
            f"{name:22} {cost['forwards']:7.2f} {cost['backwards']:9.2f} {cost['passes_ratio']:7.2f} "
            f"{cost['seconds_ratio']:8.2f} ({low:.2f} to {high:.2f})"
        )
    where = found["environment"]["device"]
    print(f"{found['network']}, batches of {found['batch_size']}, {found['threads']} threads, {where}")


def run(arguments: list[str]) -> None:
    """Print the names of one kind."""
    if not arguments or {"-h", "--help"} & set(arguments):
        print(HELP)
        return None
    kinds = [a for a in arguments if a not in ("--json", "--cost")]
    if len(kinds) != 1:
        raise UserError(f"taet list takes one of {', '.join(KINDS)}; got {' '.join(kinds) or 'none'}")
    (kind,) = kinds
    if kind not in KINDS:
        raise unknown("kind", kind, KINDS)
    if "--cost" in arguments:
        if kind != "methods":
            raise UserError(f"--cost: got {kind}; allowed: methods")
        return costs("--json" in arguments)
    listed = rows(kind)
    if "--json" in arguments:
        print(json.dumps(listed, indent=1))
        return None
    width = max(len(row["name"]) for row in listed)
    for row in listed:
        print(f"{row['name']:{width}}  {row['title']}")
        if "reference" in row:
            print(f"{'':{width}}  {row['reference']}")
        for text in row.get("deviations", ()):
            print(f"{'':{width}}  leaves the protocol: {text}")
    return None
