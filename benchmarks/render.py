"""Put the figures of benchmarks/results/*.json between the markers of docs/speed.md and docs/until-decided.md.

python benchmarks/render.py            says which page is out of date
python benchmarks/render.py --write    writes them
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from common import RESULTS
from profiles import text

DOCS = RESULTS.parents[1] / "docs"
PAGES = (DOCS / "speed.md", DOCS / "until-decided.md")
MARK = re.compile(
    r"(<!-- figures of (\w+): python benchmarks/render\.py --write -->\n).*?(<!-- end of figures -->)", re.S
)

Result = Mapping[str, Any]


def read(names: str) -> list[Result]:
    """The results whose files have such names, in their order."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob(names))]


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table in Markdown; all columns but the first are numbers."""
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def measured(result: Result) -> str:
    """How and on what a result was measured."""
    machine = result["environment"]
    threads = f", {result['threads']} threads" if "threads" in result else ""
    load = result["load"][0]
    level = f", {machine['instructions']}" if machine.get("instructions") else ""
    where = f"{machine['device'].partition(': ')[2]}{level}{threads}, torch {machine['versions']['torch']}"
    return f"`{result['command']}`, {where}, load before it {load:g}."


def factor(row: Mapping[str, Any]) -> list[str]:
    """Cells of a ratio: how many times as fast, the least and the largest, and in how many rounds."""
    low, high = row["spread"]
    return [f"**{row['ratio']:.2f}**", f"{low:.2f}–{high:.2f}", str(row["n"])]


FACTOR = ("times as fast", "least–largest", "n")


def training() -> str:
    """Ratios of every model, then images a second, losses and memory of the sides."""
    results = read("training-*.json")
    ratios = [
        [f"{result['model']}, batch {result['batch_size']}: {name}", *factor(row)]
        for result in results
        for name, row in result["ratios"].items()
    ]
    sides = [
        [
            f"{result['model']}: {name}",
            f"{side['images_per_second']:.1f}",
            f"{side['loss']:.3f}",
            f"{side['peak_memory_mb']:.0f}",
        ]
        for result in results
        for name, side in result["sides"].items()
    ]
    heads = ("side", "images a second", "mean loss", "peak memory, 10^6 bytes")
    tables = [table(("training", *FACTOR), ratios), table(heads, sides)]
    return "\n\n".join([*tables, *map(measured, results)])


def evaluation() -> str:
    """Ratios by column."""
    parts = []
    for result in read("evaluation*.json"):
        rows = [*result["columns"].items(), *result["ratios"].items()]
        cells = ([name, *factor(row), row["differing"]] for name, row in rows)
        subject = f"{result['subject']}, {result['images']} images."
        parts += [table(("column", *FACTOR, "differing flags"), cells), f"{subject} {measured(result)}"]
    return "\n\n".join(parts)


def passes() -> str:
    """What the passes of the network leave to gain in AutoAttack."""
    parts = []
    for result in read("passes*.json"):
        cells = ([name, *factor(row), f"{100 / row['ratio']:.0f} %"] for name, row in result["ratios"].items())
        subject = (
            f"{result['subject']}, {result['images']} images of {result['pixels']} x {result['pixels']} in batches of "
            f"{result['batch_size']}, of which {result['standing']} stand, {result['passes']:,} passes of an image."
        )
        heads = ("against the official AutoAttack", *FACTOR, "share of its CPU time")
        parts += [table(heads, cells), f"{subject} {measured(result)}"]
    return "\n\n".join(parts)


def losses() -> str:
    """Ratios by term."""
    return ratios("term", "losses*.json")


def methods() -> str:
    """Ratios by method."""
    return ratios("method", "methods*.json")


def ratios(what: str, names: str) -> str:
    """The ratios of results, as they are called there."""
    parts = []
    for result in read(names):
        cells = ([name, *factor(row)] for name, row in result["ratios"].items())
        parts += [table((what, *FACTOR), cells), measured(result)]
    return "\n\n".join(parts)


def scaling() -> str:
    """Exponents of time and memory along every axis beside those of the arithmetic, and ratios of processes."""
    parts = []
    for result in read("scaling*.json"):
        cells = []
        for name, row in result["exponents"].items():
            low, high = row["spread"]
            memory = row.get("memory_exponent", "")
            sizes = ", ".join(f"{size:,}" for size in row["sizes"])
            exponent = f"{row['exponent']:.2f} ({low:.2f}–{high:.2f})"
            cells.append([name, sizes, exponent, f"{row['arithmetic']:.2f}", memory, row["n"]])
        heads = ("along", "sizes", "exponent of seconds", "of the arithmetic", "of peak memory", "n")
        processes = ([name, *factor(row)] for name, row in result["ratios"].items())
        parts += [table(heads, cells), table(("processes", *FACTOR), processes), measured(result)]
    return "\n\n".join(parts)


def roofline() -> str:
    """Peak and what is achieved, shares of a step by kind of operation, and the speed of every convolution."""
    parts = []
    for result in read("roofline*.json"):
        precisions = result["precisions"]
        cells = [
            [name, f"{row['peak']:.0f}", f"{row['achieved']:.0f}", f"**{100 * row['fraction']:.0f} %**"]
            for name, row in precisions.items()
        ]
        heads = (f"{result['model']}, batch {result['batch_size']}", "peak, GFLOP/s", "achieved", "of the peak")
        kinds = next(iter(precisions.values()))["kinds"]
        shares = ([kind, *(f"{100 * row['kinds'][kind]:.1f} %" for row in precisions.values())] for kind in kinds)
        layers = (
            [f"{of[0]['number']} × {of[0]['layer']}", *(f"{layer[way]:.0f}" for layer in of for way in PASSES)]
            for of in zip(*(row["layers"] for row in precisions.values()), strict=True)
        )
        copy = f"A copy moves {result['copy_gb_per_second']:g} GB a second. {measured(result)}"
        ways = [f"{name}: {way}" for name in precisions for way in PASSES]
        parts += [table(heads, cells), table(("share of a step", *precisions), shares)]
        parts += [table(("convolution, GFLOP/s", *ways), layers), copy]
    return "\n\n".join(parts)


PASSES = ("forward", "input", "weights")


def profiles() -> str:
    """One step of every side as text."""
    parts = []
    for result in read("profiles-*.json"):
        for name, side in result["sides"].items():
            parts.append(f"{result['model']}, {name}:\n\n```text\n{text(side)}\n```")
        parts.append(measured(result))
    return "\n\n".join(parts)


def until_decided() -> str:
    """Error rates and sample sizes of simulated evaluations that stop when they are decided."""
    (result,) = read("until-decided.json")

    def share(part: int, row: Mapping[str, Any]) -> str:
        return f"{100 * part / row['runs']:.1f} %"

    nulls = [
        [
            row["name"],
            f"{100 * row['differing']:.0f} %",
            f"**{share(row['for_first'] + row['for_second'], row)}**",
            share(row["interval_missed"], row),
            "" if row["mcnemar_every_100"] is None else share(row["mcnemar_every_100"], row),
        ]
        for row in result["nulls"]
    ]
    differences = [
        [
            f"{row['points']:.0f} points, {row['name']}",
            f"{100 * row['differing']:.0f} %",
            share(row["for_first"], row),
            share(row["for_second"], row),
            f"**{row['median_images']:,}**",
            "–".join(f"{end:,}" for end in row["quartiles"]),
            f"{row['images']:,}",
            share(row["interval_missed"], row),
        ]
        for row in result["differences"]
    ]
    heads = ("no difference", "images that differ", "false decisions", "interval missed", "McNemar, every 100 images")
    others = ("images that differ", "decided rightly", "wrongly", "median images", "quartiles", "of", "interval missed")
    made = f"n = {result['nulls'][0]['runs']:,} a row; an undecided one counts with all images: `{result['command']}`."
    return "\n\n".join([table(heads, nulls), table(("difference", *others), differences), made])


def until_decided_cards() -> str:
    """How soon pairs of committed result cards would have been decided."""
    (result,) = read("until-decided-cards.json")
    rows = [
        [
            f"{row['folder']}: {row['first']} minus {row['second']}, {row['attack']}",
            f"{row['points']:+.1f}",
            "yes" if row["decided_on_all"] else "no",
            f"{row['for_first']} / {row['for_second']}",
            f"**{row['median_images']:,}**",
            "–".join(f"{end:,}" for end in row["quartiles"]),
            f"{row['images']:,}",
        ]
        for row in result["pairs"]
    ]
    heads = ("cards", "points on all images", "paired test on all decides", "of 100 orders, for the first / second")
    made = f"n = {result['pairs'][0]['orders']} orders a row: `{result['command']}`. Images until a stop of any kind."
    return "\n\n".join([table((*heads, "median images", "quartiles", "of"), rows), made])


BLOCKS: Mapping[str, Callable[[], str]] = {
    block.__name__: block
    for block in (
        *(training, evaluation, passes, losses, methods, scaling, roofline, profiles),
        *(until_decided, until_decided_cards),
    )
}


def rendered(page: str) -> str:
    """The text of the page with the figures between its markers."""
    return MARK.sub(lambda found: f"{found[1]}{BLOCKS[found[2]]()}\n{found[3]}", page)


if __name__ == "__main__":
    for page in PAGES:
        before = page.read_text(encoding="utf-8")
        after = rendered(before)
        if "--write" in sys.argv:
            page.write_text(after, encoding="utf-8")
        elif after != before:
            sys.exit(f"docs/{page.name} is out of date: python benchmarks/render.py --write")
