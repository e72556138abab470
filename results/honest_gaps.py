"""Measure how often flags of masked gradients accuse honest models, and catch broken defences.

    python results/honest_gaps.py [CARD ...]     writes results/honest_gaps.json and the table of
                                                 docs/evaluation.md; rows of CARD are added

Honest models are those of the committed result cards and the networks of the museum without a
defence. Further cards make rows of the file, which stay there, and then the museum is not measured
again: small networks with other numbers of classes, trained for a few epochs by

    taet train METHOD --data npz:FILE --data.imbalance-ratio 5 --data.test balanced --model resnet8
        --recipe fast --epochs 12 (10 for road signs)
    taet evaluate RUN --attacks clean pgd-20 cw-linf-20 quick autoattack-fast
"""

import itertools
import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from results.museum import EXHIBITS, SOUND, flags  # noqa: E402
from taet.card.card import Card  # noqa: E402
from taet.evaluation.contrasts import count  # noqa: E402
from taet.evaluation.flags import MASKING, raised, suite_contrasts  # noqa: E402

FILE, PAGE = ROOT / "results" / "honest_gaps.json", ROOT / "docs" / "evaluation.md"
BEGIN, END = "<!-- flags: python results/honest_gaps.py -->\n", "<!-- end of flags -->"
SEEDS = range(3)  # of the museum's networks
FEW_BROKEN = 60  # a share of fewer broken images is mostly chance


def committed_cards() -> Iterator[Card]:
    """Yield every committed result card."""
    for path in sorted((ROOT / "results").rglob("*.json")):
        if b'"taet result card"' in path.read_bytes()[:200]:
            yield Card.load(path)


def row_of(card: Card) -> dict[str, Any]:
    """Return what decides the gap of one model, and its flags of masked gradients."""
    row = {
        "data": card.data["name"].removeprefix("npz:"),
        "method": card.method,
        "classes": card.num_classes,
        "eps": card.threat["eps"],
        "epochs": card.run.get("config", {}).get("training", {}).get("epochs"),
        "images": len(card.labels),
        "flags": [name for name in raised(card) if name in MASKING],
        "probed": card.facts is not None,
    }
    if card.clean is not None:
        row["clean"] = round(float(card.clean.correct.mean()), 4)
    contrasts = suite_contrasts(card)
    if contrasts:
        pair = max(contrasts, key=lambda contrast: contrast.gap)
        counts = count(pair, card)
        row["suite"] = pair.stronger.name
        row["suite_correct"] = round(float(pair.stronger.correct.mean()), 4)
        row["pgd_correct"] = round(float(pair.weaker.correct.mean()), 4)
        row["broken"] = counts.broken
        row["missed"] = counts.only_stronger - counts.only_weaker
    return row


def gaps(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the quantiles of the share of broken images that PGD misses, and the false alarms."""
    paired = [row for row in rows if "broken" in row]
    sure = [row for row in paired if row["broken"] >= FEW_BROKEN]
    found: dict[str, Any] = {"models": len(rows), "with AutoAttack or quick": len(paired)}
    found["probed"] = sum(row["probed"] for row in rows)
    found["false alarms"] = dict(Counter(name for row in rows for name in row["flags"]))
    if sure:
        shares = [row["missed"] / row["broken"] for row in sure]
        median, high = np.quantile(shares, [0.5, 0.95])
        found["missed"] = {
            "models": len(sure),
            "median": round(float(median), 3),
            "95 %": round(float(high), 3),
            "largest": round(max(shares), 3),
        }
    return found


def grouped(rows: list[dict[str, Any]], key: str, ends: tuple[float, ...]) -> dict[str, Any]:
    """Return `gaps` of the models in each range of a setting."""
    found = {}
    for low, high in itertools.pairwise(ends):
        inside = [row for row in rows if row.get(key) is not None and low <= row[key] < high]
        if inside:
            found[f"{key} {low:g} to {high:g}"] = gaps(inside)
    return found


def museum() -> dict[str, dict[str, Any]]:
    """Return how many of the museum's networks raise a flag, by what was put into them."""
    found = {}
    for name, build in SOUND.items():
        found[name] = raised_by(build, broken=False)
    for exhibit in EXHIBITS:
        found[exhibit.name] = raised_by(exhibit.build, broken=True)
    return found


def raised_by(build: Any, *, broken: bool) -> dict[str, Any]:
    """Return how many networks of a kind, one per seed, raise which flags."""
    every = [flags(build(seed)) for seed in SEEDS]
    return {
        "broken": broken,
        "networks": len(every),
        "flagged": sum(text != "none" for text in every),
        "flags": dict(Counter(name.strip("`") for text in every for name in text.split(", "))),
    }


def table(found: dict[str, Any]) -> Iterator[str]:
    """Yield the lines of the table of docs/evaluation.md."""
    yield "| models | n | raise a flag of masked gradients |"
    yield "|---|---|---|"
    classes = [row["classes"] for row in found["more"]["rows"]]
    small = f"small networks, {min(classes)} to {max(classes)} classes" if classes else "others"
    for name, rows in (("committed cards", found["cards"]), (small, found["more"])):
        models, accused = rows["gaps"]["models"], rows["gaps"]["accused"]
        alarms = rows["gaps"]["false alarms"]
        flags = ", ".join(f"`{flag}` on {cards}" for flag, cards in alarms.items())
        several = ", some on the same" if sum(alarms.values()) > accused else ""
        yield f"| honest: {name} | {models} | {accused}{flags and f' ({flags}{several})'} |"
    for broken, name in ((False, "honest: networks of the museum"), (True, "broken defences")):
        kinds = [kind for kind in found["museum"].values() if kind["broken"] == broken]
        networks = sum(kind["networks"] for kind in kinds)
        yield f"| {name} | {networks} | {sum(kind['flagged'] for kind in kinds)} |"


def main() -> None:
    """Write the file and the table."""
    torch.manual_seed(0)
    before = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
    more = before.get("more", {}).get("rows", []) + [row_of(Card.load(p)) for p in sys.argv[1:]]
    cards = [row_of(card) for card in committed_cards()]
    found: dict[str, Any] = {"cards": {"gaps": gaps(cards)}, "more": {"gaps": gaps(more)}}
    found["cards"] |= grouped(cards, "clean", (0, 0.4, 0.6, 0.8, 1.01))
    found["cards"] |= grouped(cards, "epochs", (1, 21, 61, 101, 501))
    found["cards"] |= grouped(cards, "eps", (0, 5 / 255, 10 / 255, 1))
    found["more"] |= grouped(more, "classes", (2, 4, 8, 16, 32, 64, 128))
    for part, rows in (("cards", cards), ("more", more)):
        found[part]["gaps"]["accused"] = sum(bool(row["flags"]) for row in rows)
    found["more"]["rows"] = more
    found["museum"] = before["museum"] if sys.argv[1:] else museum()
    FILE.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    lines = "\n".join(table(found)) + "\n"
    start, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    PAGE.write_text(f"{start}{BEGIN}\n{lines}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


if __name__ == "__main__":
    main()
