"""`taet export RUN --format FORMAT`: write a finished run as one file that runs without this
package."""

from pathlib import Path
from typing import Literal

from taet.cli.options import OfTrained, parse
from taet.cli.trained import open_trained


class Export(OfTrained):
    """Write the model of a finished run to one file and print its path. pt2 (for torch.export.load)
    and onnx (needs taet[onnx]) compute logits from pixel values, uint8 (N, H, W, C), including the
    resizing of the run; safetensors holds the weights only. Each file is compared with the model
    before it gets its final name.
    """

    examples = (
        "taet export runs/x --format onnx",
        "taet export runs/x --format safetensors --weights model-best --out weights.safetensors "
        "--force",
    )

    format: Literal["pt2", "onnx", "safetensors"]
    """Format of the file."""
    out: Path | None = None
    """File to write. Default, of a run: RUN/artifacts/WEIGHTS.FORMAT."""
    force: bool = False
    """Replace an existing file."""


def run(words: list[str]) -> None:
    """Write the file and print its path."""
    command, _ = parse(Export, words, "taet export")

    from taet.deployment import export
    from taet.models import trusted

    with trusted(command.trust_model):
        path = export(
            open_trained(command),
            command.format,
            command.out,
            command.weights or "model",
            force=command.force,
        )
    print(path)
