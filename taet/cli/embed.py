"""`taet embed RUN...`: a t-SNE plot of features or logits, clean and attacked, with measures of separability."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from pydantic import Field

from taet.cli import flags
from taet.errors import UserError
from taet.evaluation.embedding import Embedding, embed
from taet.fields import Count, Seed
from taet.files import make_folder, write_atomically
from taet.formatting import aligned, percent
from taet.models import trusted
from taet.training.folder import DELIVERED, WeightsName

EXAMPLES = (
    "taet embed runs/at-bsl runs/taet",
    "taet embed runs/reat --of logits --classes dog frog horse ship truck --out tail.png",
)
DESCRIPTION = """Plot features or logits of test images, clean and attacked, by t-SNE, and print measures of the
original space: the silhouette by true classes, and the linear separability, which is the cross-validated balanced
accuracy of a logistic regression. Compare models by these measures, not by the t-SNE plot. Writes the picture, and a
file OUT with the ending .json: coordinates, predictions, measures and the checksum of the weights."""


@dataclass(frozen=True)
class EmbedOptions:
    """Runs, images and the space that is plotted."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run folders, drawn side by side."""
    attack: str = "pgd-20"
    """Attack that makes the examples; not clean, square or AutoAttack."""
    of: Literal["features", "logits"] = "features"
    """features, the input of the last layer, or logits."""
    classes: tuple[str, ...] = ()
    """Names of classes. Default: all."""
    images: Annotated[Count, Field(ge=2)] = 100
    """Test images of each class, the first ones."""
    seed: Seed = 0
    """Seed of t-SNE."""
    weights: WeightsName = DELIVERED
    """Epoch: the one each run delivers, the last one, or the best one of the curve."""
    out: Path = Path("embedding.svg")
    """Picture, as .svg or .png."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    trust_model: tuple[str, ...] = ()
    """Names of the runs' models that are package.module:callable. Their code is imported and run only if they are named
    here."""


def run(arguments: list[str]) -> None:
    """Write the picture and the JSON, and print the numbers."""
    from taet.report import embeddings, figures

    parsed = read(arguments)
    with trusted(*parsed.trust_model):
        names = ("attack", "of", "classes", "images", "seed", "weights", "device")
        found = [embed(run, **{name: getattr(parsed, name) for name in names}) for run in parsed.runs]
    make_folder(parsed.out.parent)
    beside = parsed.out.with_suffix(".json")
    values = {"command": flags.call_text(["embed", *arguments]), "embeddings": [one.to_json() for one in found]}
    write_atomically(beside, (json.dumps(values) + "\n").encode())
    with figures.style():
        drawn = embeddings.draw(found, [one.name for one in found])
        write_atomically(parsed.out, figures.picture(drawn, parsed.out.suffix[1:]))
    print("\n".join(aligned([("", "side", "accuracy", "silhouette", "linear separability"), *_lines(found)])))
    print(f"{parsed.out}\n{beside}")


def _lines(found: list[Embedding]) -> list[tuple[str, ...]]:
    return [
        (one.name, side, percent(own["accuracy"]), f"{own['silhouette']:.3f}", percent(own["linear_separability"]))
        for one in found
        for side, own in one.numbers.items()
    ]


def read(arguments: list[str]) -> EmbedOptions:
    """Return the flags of a call; a picture of another kind is refused."""
    parsed = flags.parse(EmbedOptions, arguments, "taet embed", DESCRIPTION, EXAMPLES)
    if not parsed.runs:
        raise UserError("embed: got no run; allowed: one or more run folders")
    if parsed.out.suffix not in (".svg", ".png"):
        raise UserError(f"embed: --out: got {parsed.out}; allowed: a file that ends in .svg or .png")
    return parsed
