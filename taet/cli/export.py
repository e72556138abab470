"""`taet export RUN --format FORMAT`: a finished run as one file that runs without this package."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from taet.cli import flags
from taet.deployment.export import export

EXAMPLES = (
    "taet export runs/x --format onnx",
    "taet export runs/x --format pt2 --out classifier.pt2",
    "taet export runs/x --format safetensors --weights model-best --out weights.safetensors --force",
)
DESCRIPTION = """Write the model of a finished run to one file and print its path. pt2 (for torch.export.load) and onnx
(needs taet[onnx]) hold the whole way from grey levels, uint8 (N, H, W, C), to logits, resizing included where the run
resized its images; safetensors holds the weights alone. Each says inside which run and which classes it is of, and is
loaded back and compared with the model before it takes its name."""


@dataclass(frozen=True)
class ExportOptions:
    """A finished run and the file that it becomes."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of a finished run."""
    format: Literal["pt2", "onnx", "safetensors"]
    """Form of the file."""
    out: Path | None = None
    """File to write; RUN/artifacts/WEIGHTS.FORMAT if not given."""
    weights: Literal["model", "model-last", "model-best"] = "model"
    """What the run delivers, its last epoch, or its best one."""
    force: bool = False
    """Replace a file that is there."""


def run(arguments: list[str]) -> None:
    """Write the file and print its path."""
    parsed = read(arguments)
    print(export(parsed.run, parsed.format, parsed.out, parsed.weights, force=parsed.force))


def read(arguments: list[str]) -> ExportOptions:
    """Return what the words of the call mean."""
    return flags.parse(ExportOptions, arguments, prog="taet export", description=DESCRIPTION, examples=EXAMPLES)
