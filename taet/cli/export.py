"""`taet export RUN --format FORMAT`: write a finished run as one file that runs without this package."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from taet.cli import flags
from taet.cli.subject import OfRun
from taet.deployment.export import export
from taet.models import trusted

EXAMPLES = (
    "taet export runs/x --format onnx",
    "taet export runs/x --format pt2 --out classifier.pt2",
    "taet export runs/x --format safetensors --weights model-best --out weights.safetensors --force",
)
DESCRIPTION = """Write the model of a finished run to one file and print its path. pt2 (for torch.export.load) and onnx
(needs taet[onnx]) compute logits from pixel values, uint8 (N, H, W, C), including the resizing of the run; safetensors
holds the weights only. Each file stores its run and class names. It is loaded and compared with the model before it
gets its final name."""


@dataclass(frozen=True, kw_only=True)
class ExportOptions(OfRun):
    """A finished run and the file to write."""

    format: Literal["pt2", "onnx", "safetensors"]
    """Format of the file."""
    out: Path | None = None
    """File to write. Default: RUN/artifacts/WEIGHTS.FORMAT."""
    force: bool = False
    """Replace an existing file."""


def run(arguments: list[str]) -> None:
    """Write the file and print its path."""
    parsed = flags.parse(ExportOptions, arguments, "taet export", DESCRIPTION, EXAMPLES)
    with trusted(parsed.trust_model):
        print(export(parsed.run, parsed.format, parsed.out, parsed.weights, force=parsed.force))
