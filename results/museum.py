"""Write the table of results/museum.md: what every broken defence fools, what breaks it and which flag rises.

python results/museum.py            prints the table
python results/museum.py --write    writes it
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from taet.attacks import autoattack  # noqa: E402
from taet.errors import UserError  # noqa: E402
from taet.evaluation import check, evaluate  # noqa: E402
from taet.evaluation.rules import MASKING  # noqa: E402
from tests import museum  # noqa: E402

PAGE = ROOT / "results" / "museum.md"
BEGIN, END = "<!-- museum: python results/museum.py --write -->\n", "<!-- end of museum -->"
MADE_FOR = {"dummy-classes", "eot-beats-one-draw"}  # attacks of `taet check --deep`
SOUND = {"the network itself": museum.base, "the same, trained on clean images": museum.standard}


def flags(model: nn.Module) -> str:
    """The flags of an evaluation, and of `taet check --deep`."""
    x, y = museum.tested()
    names = [str(label) for label in range(museum.CLASSES)]
    try:
        card = evaluate(model, x, y, ["fgsm", "pgd-20"], eps=museum.EPS, batch_size=len(y), probe=True)
    except UserError:
        return "refused: no gradient"
    checked = check(model, x, y, class_names=names, deep=True, eps=museum.EPS)
    found = [flag["flag"] for flag in card.flags if flag["flag"] in MASKING]
    found += [finding.what for finding in checked.findings if finding.what in MADE_FOR]
    return ", ".join(f"`{flag}`" for flag in found) or "none"


def by_autoattack(model: nn.Module, judge: museum.Change | None = None) -> float:
    """Share of the images that the official AutoAttack leaves correct, on the model as it is, in one batch."""
    x, y = museum.tested()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return museum.correct(judge or model, autoattack(model, x, y, eps=museum.EPS, batch_size=len(y)), y)


def rows() -> Iterator[str]:
    """The lines of the table."""
    yield "| defence | fools | leaves, % | AutoAttack leaves, % | broken by | leaves, % | flags |"
    yield "|---|---|---|---|---|---|---|"
    for name, build in SOUND.items():
        model = build()
        plain, margin = 100 * museum.tried(model), 100 * museum.tried(model, museum.margin)
        whole = f"{100 * by_autoattack(model):.1f}"
        yield f"| {name} | | {plain:.1f} (PGD) | {whole} | | {margin:.1f} (margin) | {flags(model)} |"
    for one in museum.EXHIBITS:
        model = one.build()
        fooled, broken = 100 * one.fooled.left(model), 100 * one.broken.left(model)
        whole = "cannot run" if one.judge is None else f"{100 * by_autoattack(model, one.judge(model)):.1f}"
        cells = (one.name, one.fooled.name, f"{fooled:.1f}", whole, one.broken.name, f"{broken:.1f}", flags(model))
        yield f"| {' | '.join(cells)} |"


def main() -> None:
    """Print or write the table."""
    torch.manual_seed(0)
    table = "\n".join(rows()) + "\n"
    if "--write" not in sys.argv:
        print(table)
        return
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{table}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


if __name__ == "__main__":
    main()
