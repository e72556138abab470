"""A finished run as one file that runs without this package: an ExportedProgram, ONNX, or the weights alone."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

import taet
from taet.deployment.graph import Deployed
from taet.errors import UserError, located, unknown
from taet.evaluation.trial import user_errors
from taet.files import make_folder, write_atomically
from taet.randomness import generator
from taet.training.checkpoint import METADATA, WeightsAbout, weights_digest
from taet.training.finished import load_model
from taet.training.folder import RunFolder
from taet.training.record import RunRecord

TOLERANCE = 1e-4  # largest difference from the model's logits, relative to the largest of them or to 1
TRIED = (1, 3)  # batch sizes on which a written file is tested


def export(
    run_dir: str | os.PathLike[str],
    format: str,
    out: str | os.PathLike[str] | None = None,
    weights: str = "model",
    *,
    force: bool = False,
    model: nn.Module | None = None,
) -> Path:
    """Write the model of a finished run with its preprocessing and the deployed offset, and return the file's path.

    The graph maps `images` uint8 (N, H, W, C), pixel values 0 to 255, to `logits` float32 (N, classes), for any N. If
    the run's images were resized (`--data.size`; gtsrb always), H and W are arbitrary, and the graph resizes as Pillow
    does (see `taet.deployment.graph.resize`); else they are the run's. safetensors holds the weights alone. The file is
    loaded back and its logits are compared with the model's before it gets its name.

    Args:
        run_dir: a finished run.
        format: pt2 (`torch.export.load`), onnx (needs taet[onnx]) or safetensors.
        out: the file. Default: artifacts/WEIGHTS.FORMAT in the run.
        weights: which of the run's weights: model, model-last or model-best.
        force: replace an existing file.
        model: for a run that was trained from a Module in memory, a Module of the same structure.

    Raises:
        UserError: an unknown format, a missing package, an existing file, a model that cannot be exported.
    """
    if format not in FORMATS:
        raise unknown("format", format, FORMATS)
    chosen, folder = FORMATS[format], RunFolder(Path(run_dir))
    missing = [package for package in chosen.packages if importlib.util.find_spec(package) is None]
    if missing:
        raise UserError(f"format {format} needs the package {missing[0]}: pip install 'taet[onnx]'")
    path = folder.artifact(f"{weights}.{format}") if out is None else Path(out)
    if path.exists() and not force:
        raise UserError(f"{path} exists already; allowed: another --out, or --force to replace it")
    _, network, record = load_model(folder.path, weights, model=model)
    folder.check_plain()  # artifacts might be a link
    channels, *size = record.data.image_shape
    deployed = Deployed(network, (size[0], size[1]), resizes=record.resizes, fit=record.fit).eval()
    about = json.dumps(_metadata(folder.weights_about(weights), record, deployed), ensure_ascii=False)
    # of other lengths than the model's, tied to none and not square
    sides = [factor * side + 3 for factor, side in zip((2, 3), size, strict=True)] if record.resizes else size
    shape = (*sides, channels)
    with (
        located(str(folder.path)),
        user_errors(f"model: fails on images of shape {shape} ({{reason}})"),
        torch.no_grad(),
    ):
        deployed(_noise(2, shape))
    with _quiet(), torch.no_grad():
        content = chosen.written(deployed, _noise(2, shape), about)
        make_folder(path.parent)
        write_atomically(path, content, check=lambda part: _check(format, part, deployed, shape))
    return path


def _metadata(written: WeightsAbout, record: RunRecord, deployed: Deployed) -> dict[str, Any]:
    """Return the run hash, method, epoch, ball, weights, classes and image shape that an exported file keeps."""
    return {
        **written._asdict(),
        "taet": taet.__version__,
        "weights_sha256": weights_digest(deployed.model),  # as in the run's result card
        "eps": record.run.threat.eps,
        "class_names": record.data.class_names,
        "image_shape": record.data.image_shape,
        "resizes": deployed.resizes,
        "fit": deployed.fit,
    }


def _captured(deployed: Deployed, example: Tensor) -> torch.export.ExportedProgram:
    """The graph of a model, for any batch size and, if it resizes, any image size."""
    try:
        program = torch.export.export(
            deployed, (example,), dynamic_shapes={"images": _axes(deployed, torch.export.Dim)}
        )
    except Exception as error:  # the tracer and a custom model may raise anything
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"model: torch.export cannot trace it: {type(error).__name__}: {reason}") from error
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)  # paths and source lines of this machine
    return program


def _axes(deployed: Deployed, named: Callable[[str], Any]) -> dict[int, Any]:
    """The axes of the images with variable length."""
    return {
        axis: named(name) for axis, name in enumerate(("batch", "height", "width") if deployed.resizes else ["batch"])
    }


def _pt2(deployed: Deployed, example: Tensor, about: str) -> bytes:
    buffer = io.BytesIO()
    torch.export.save(_captured(deployed, example), buffer, extra_files={f"{METADATA}.json": about})
    return buffer.getvalue()


def _of_pt2(path: Path, _: Deployed) -> Callable[[Tensor], Tensor]:
    with path.open("rb") as file:
        return torch.export.load(file).module()


def _onnx(deployed: Deployed, example: Tensor, about: str) -> bytes:
    program: Any = torch.onnx.export(
        _captured(deployed, example),
        dynamo=True,
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes={"images": _axes(deployed, str)},
        verbose=False,
    )
    program.model.metadata_props[METADATA] = about
    content: bytes = program.model_proto.SerializeToString()
    return content


def _of_onnx(path: Path, _: Deployed) -> Callable[[Tensor], Tensor]:
    runtime: Any = importlib.import_module("onnxruntime")
    session = runtime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def _safetensors(deployed: Deployed, _: Tensor, about: str) -> bytes:
    state = deployed.model.state_dict()  # copied, because safetensors refuses tied weights, which share memory
    return save({name: tensor.clone().contiguous() for name, tensor in state.items()}, metadata={METADATA: about})


def _of_safetensors(path: Path, deployed: Deployed) -> Callable[[Tensor], Tensor]:
    tensors = {f"model.{name}": tensor for name, tensor in load_file(path).items()}
    return lambda images: torch.func.functional_call(deployed, tensors, (images,))


class Format(NamedTuple):
    """How a format is written and executed."""

    written: Callable[[Deployed, Tensor, str], bytes]
    loaded: Callable[[Path, Deployed], Callable[[Tensor], Tensor]]
    packages: tuple[str, ...] = ()


FORMATS: Mapping[str, Format] = {
    "pt2": Format(_pt2, _of_pt2),
    "onnx": Format(_onnx, _of_onnx, ("onnx", "onnxruntime", "onnxscript")),
    "safetensors": Format(_safetensors, _of_safetensors),
}


def _check(format: str, path: Path, deployed: Deployed, shape: tuple[int, ...]) -> None:
    """Refuse a file whose logits differ from those of the model."""
    answer = FORMATS[format].loaded(path, deployed)
    for number in TRIED:
        images = _noise(number, shape)
        wanted = deployed(images)
        apart = float((answer(images) - wanted).abs().max())
        if not apart <= TOLERANCE * max(1.0, float(wanted.abs().max())):
            raise UserError(f"{format}: the file's logits differ from the model's by {apart:.2g}; nothing was written")


def _noise(number: int, shape: tuple[int, ...]) -> Tensor:
    draws = generator("cpu", 0, "export", number)
    return torch.randint(256, (number, *shape), dtype=torch.uint8, generator=draws)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide the messages of exporters from the user."""
    nowhere = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        warnings.simplefilter("ignore")
        yield
