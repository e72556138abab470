"""A finished run as one file that runs without this package: an ExportedProgram, ONNX, or the
weights alone."""

from __future__ import annotations

import importlib
import io
import json
import os
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

import taet
from taet.data.augmentation import to_unit
from taet.deployment.trained_model import TrainedModel, load
from taet.errors import UserError, needed, unknown, wrapping_user_code
from taet.files import check_output, make_folder, write_atomically
from taet.models.tuning import merge
from taet.network import copied
from taet.randomness import generator
from taet.run.folder import ARTIFACTS, METADATA, folder_of, weights_digest
from taet.settings.arguments import checked_arguments

FORMATS = {"pt2": (), "onnx": ("onnx", "onnxruntime", "onnxscript"), "safetensors": ()}
"""The formats, and the packages that each needs."""
# largest difference from the model's logits, relative to the largest of them or to 1
TOLERANCE = 1e-4
TRIED = (1, 3)  # batch sizes on which a written file is tested
# older versions of torch.export refuse a size without an end
LARGEST = 2**31 - 1  # number of images, and of pixels of a side
# Pillow keeps the weights of 8-bit images as whole multiples of 2^-22 (PRECISION_BITS in
# Resample.c)
FRACTION = 2**22


@checked_arguments
def export(
    run_dir: str | os.PathLike[str] | TrainedModel,
    format: str,
    out: str | os.PathLike[str] | None = None,
    weights: str = "model",
    *,
    force: bool = False,
    model: nn.Module | None = None,
) -> Path:
    """Write the model of a finished run, with its preprocessing, and return the file's path.

    The graph maps `images` uint8 (N, H, W, C) to `logits` float32 (N, classes), for any N, and
    includes the logit offset of the method. If the run's images were resized, H and W are
    arbitrary, and the graph resizes as Pillow does (see `resize`); else they are the run's. The
    logits of the loaded file are compared with the model's before it gets its name.

    Args:
        run_dir: a finished run, or what `taet.load` returned.
        format: pt2 (`torch.export.load`), onnx (needs taet[onnx]) or safetensors.
        out: the file. Default, of a run: artifacts/WEIGHTS.FORMAT in it.
        weights: which of the run's weights: model, model-last or model-best.
        force: replace an existing file.
        model: for a run that was trained from a Module in memory, a Module of the same structure.

    Raises:
        UserError: an unknown format, a missing package, an existing file, a model that cannot be
            exported.

    Example:
        >>> import taet
        >>> taet.export("runs/example", "safetensors", out="model.safetensors").name
        'model.safetensors'
    """
    if format not in FORMATS:
        raise unknown("format", format, FORMATS)
    for package in FORMATS[format]:
        needed(package, f"format {format}", "onnx")
    path = _path(run_dir, format, out, weights)
    check_output(path, ARTIFACTS)
    if path.exists() and not force:
        raise UserError(f"{path} exists already; allowed: another --out, or --force to replace it")
    if isinstance(run_dir, TrainedModel):
        trained = replace(run_dir, model=copied(run_dir.model))
    else:
        trained = load(run_dir, weights, model=model)
    merge(trained.model)
    channels, *size = trained.image_shape
    deployed = Deployed(trained.model, (size[0], size[1]), resizes=trained.resizes).eval()
    about = {
        **trained.about,
        "taet": taet.__version__,
        "weights_sha256": weights_digest(trained.model),  # as in the run's result card
        "eps": trained.run.threat.eps,
        "class_names": trained.class_names,
        "image_shape": trained.image_shape,
        "resizes": trained.resizes,
    }
    # sides that differ from the model's and from each other, so that the graph cannot fix them
    sides = (
        [factor * side + 3 for factor, side in zip((2, 3), size, strict=True)]
        if trained.resizes
        else size
    )
    shape = (*sides, channels)
    hidden = io.StringIO()  # exporters print to it
    with (
        warnings.catch_warnings(action="ignore"),
        redirect_stdout(hidden),
        redirect_stderr(hidden),
        torch.no_grad(),
    ):
        with wrapping_user_code(f"{path}: model: fails on images of shape {shape}"):
            deployed(_noise(2, shape))
        content = _content(
            format, deployed, _noise(2, shape), json.dumps(about, ensure_ascii=False)
        )
        make_folder(path.parent)
        write_atomically(path, content, check=lambda part: _check(format, part, deployed, shape))
    return path


def _path(
    run_dir: str | os.PathLike[str] | TrainedModel,
    format: str,
    out: str | os.PathLike[str] | None,
    weights: str,
) -> Path:
    if out is not None:
        return Path(out)
    if isinstance(run_dir, TrainedModel):
        raise UserError("export: got a model without a run; allowed: with out, the file to write")
    return folder_of(run_dir).path / ARTIFACTS / f"{weights}.{format}"


def _content(format: str, deployed: Deployed, example: Tensor, about: str) -> bytes:
    """Return the content of the file, with `about` as metadata, for any batch size and, if it
    resizes, image size."""
    if format == "safetensors":
        # Copied, because safetensors refuses tied weights, which share memory.
        state = {
            name: tensor.clone().contiguous()
            for name, tensor in deployed.model.state_dict().items()
        }
        return save(state, metadata={METADATA: about})
    axes = ("batch", "height", "width") if deployed.resizes else ("batch",)
    with wrapping_user_code("model: torch.export cannot trace it"):
        dims = {axis: torch.export.Dim(name, max=LARGEST) for axis, name in enumerate(axes)}
        program = torch.export.export(deployed, (example,), dynamic_shapes={"images": dims})
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)  # paths and source lines of this machine
    if format == "pt2":
        buffer = io.BytesIO()
        torch.export.save(program, buffer, extra_files={f"{METADATA}.json": about})
        return buffer.getvalue()
    how: dict[str, Any] = {
        "input_names": ["images"],
        "output_names": ["logits"],
        "dynamo": True,
        "verbose": False,
    }
    onnx: Any = torch.onnx.export(program, dynamic_shapes={"images": dict(enumerate(axes))}, **how)
    onnx.model.metadata_props[METADATA] = about
    return onnx.model_proto.SerializeToString()


def _loaded(format: str, path: Path, deployed: Deployed) -> Callable[[Tensor], Tensor]:
    """Return the function from images to logits of the file; of a file of weights, that of the
    model with them."""
    if format == "safetensors":
        tensors = {f"model.{name}": tensor for name, tensor in load_file(path).items()}
        return lambda images: torch.func.functional_call(deployed, tensors, (images,))
    if format == "pt2":
        with path.open("rb") as file:
            return torch.export.load(file).module()
    runtime: Any = importlib.import_module("onnxruntime")
    session = runtime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def _check(format: str, path: Path, deployed: Deployed, shape: tuple[int, ...]) -> None:
    """Refuse a file whose logits differ from those of the model."""
    loaded = _loaded(format, path, deployed)
    for images in (_noise(number, shape) for number in TRIED):
        expected = deployed(images)
        gap = float((loaded(images) - expected).abs().max())
        if not gap <= TOLERANCE * max(1.0, float(expected.abs().max())):
            raise UserError(
                f"{format}: the file's logits differ from the model's by {gap:.2g}; nothing was "
                "written"
            )


def _noise(number: int, shape: tuple[int, ...]) -> Tensor:
    draws = generator("cpu", 0, "export", number)
    return torch.randint(256, (number, *shape), dtype=torch.uint8, generator=draws)


class Deployed(nn.Module):
    """images uint8 (N, H, W, C), pixel values 0 to 255 -> logits float32 (N, classes).

    With `resizes`, images of any H and W are resized to `size` (height, width); else H and W must
    equal `size`.
    """

    def __init__(self, model: nn.Module, size: tuple[int, int], *, resizes: bool) -> None:
        super().__init__()
        self.model, self.size, self.resizes = model, size, resizes

    def forward(self, images: Tensor) -> Tensor:
        x = resize(images, *self.size).to(torch.float32) / 255 if self.resizes else to_unit(images)
        return self.model(x)


def resize(images: Tensor, height: int, width: int) -> Tensor:
    """Resize images as Pillow resizes each of them.

    uint8 (N, H, W, C) -> (N, C, height, width), integer pixel values in float64. Along the rows
    first, then along the columns, each rounded half up; products and sums are exact. A value may
    differ by 1 where Pillow, from version 13 on, begins with the columns.
    """
    _, rows, columns, _ = images.shape
    along_rows = bilinear_weights(columns, width, images.device)
    along_columns = bilinear_weights(rows, height, images.device)
    levels = images.permute(0, 3, 1, 2).to(torch.float64)
    levels = torch.floor(levels @ along_rows.T + 0.5)
    return torch.floor(along_columns @ levels + 0.5)


def bilinear_weights(source: int, target: int, device: torch.device) -> Tensor:
    """Weights (target, source), float64, of Pillow's bilinear filter along one side of an image.

    w_oi ~ max(0, 1 - |i + 1/2 - (o + 1/2) s| / max(s, 1)) with s = source / target; each row sums
    to 1, up to rounding to multiples of 2^-22 (the algorithm of Pillow's Resample.c). Both sizes
    may be symbols of a graph.
    """
    length, side = (
        torch.scalar_tensor(n, dtype=torch.float64, device=device) for n in (source, target)
    )
    outputs, inputs = (
        torch.arange(size, dtype=torch.float64, device=device) + 0.5 for size in (target, source)
    )
    scale = length / side
    weights = (1 - (inputs - outputs[:, None] * scale).abs() / scale.clamp(min=1)).relu()
    return torch.floor(weights / weights.sum(1, keepdim=True) * FRACTION + 0.5) / FRACTION
