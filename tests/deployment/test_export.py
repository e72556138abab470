"""An exported file gives the model's logits wherever it runs, and says where it comes from."""

import importlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

import taet
from taet import protocols
from taet.data import Dataset
from taet.data.image_files import picture, scaled
from taet.deployment import export as export_run
from taet.deployment.export import resize
from taet.models import resnet, vit
from taet.models.weight_files.stored_weights import read
from taet.run.folder import RunFolder
from taet.run.loading import load_model
from taet.settings import override
from tests.calls import one_line

Make = Callable[..., Path]
Draw = Callable[..., np.ndarray]
FORMATS = [pytest.param(name, marks=pytest.mark.full) for name in ("pt2", "onnx")]


@pytest.fixture
def answers() -> Callable[[Path], Callable[[np.ndarray], Tensor]]:
    """Load a file without this package: uint8 images -> logits."""

    def load(path: Path) -> Callable[[np.ndarray], Tensor]:
        if path.suffix == ".pt2":
            program = torch.export.load(path).module()
            return lambda images: program(torch.from_numpy(images)).detach()
        session = importlib.import_module("onnxruntime").InferenceSession(path)
        (given,), (found,) = session.get_inputs(), session.get_outputs()
        assert (given.name, given.type, found.name) == ("images", "tensor(uint8)", "logits")
        return lambda images: torch.from_numpy(session.run(["logits"], {"images": images})[0])

    return load


@pytest.fixture(scope="session")
def exported(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The run as a file of a format, written once, in a folder that is made for it."""
    folder = tmp_path_factory.mktemp("exported") / "new folder"

    def write(format: str) -> Path:
        if format == "onnx":
            pytest.importorskip("onnxruntime", reason="pip install 'taet[onnx]'")
        path = folder / f"robal.{format}"
        return path if path.exists() else export_run(trained, format, path)

    return write


@pytest.mark.full
@pytest.mark.parametrize(("model", "shape"), [("resnet8", (1, 12, 20)), ("vit-mini-p4", (3, 8, 8))])
@pytest.mark.parametrize("format", FORMATS)
def test_images_of_one_size_by_a_network_and_a_transformer(
    format: str,
    model: str,
    shape: tuple[int, int, int],
    make_run: Make,
    tmp_path: Path,
    answers: Any,
    pictures: Draw,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # exporters take long
    monkeypatch.setitem(resnet.LAYOUTS, "resnet8", resnet.ResidualLayout((8,), (1,)))
    layout = {"patch_size": 4, "hidden_dim": 16, "num_layers": 1, "num_heads": 2, "mlp_dim": 32}
    monkeypatch.setitem(vit.LAYOUTS, "vit-mini-p4", layout)
    folder = make_run(tmp_path / "run", model, shape)
    answer = answers(export_run(folder, format))
    for batch in (1, 5):
        images = pictures(batch, (*shape[1:], shape[0]))
        x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
        torch.testing.assert_close(
            answer(images), load_model(folder)[1](x).detach(), rtol=0, atol=1e-4
        )


@pytest.mark.parametrize("format", FORMATS)
def test_the_file_says_what_predict_says_and_resizes_images_as_the_run_does(
    format: str, make_run: Make, tmp_path: Path, answers: Any, pictures: Draw
) -> None:
    folder = make_run(tmp_path / "run", "resnet8", (3, 12, 12), resized=True)
    answer = answers(export_run(folder, format))
    assert load_model(folder)[1].offset.abs().max() > 0.1  # of RoBal, beside its cosine head
    for batch, *size in ((1, 12, 12), (3, 40, 30), (2, 7, 9)):
        images = pictures(batch, (*size, 3))
        found, logits = taet.predict(folder, images), answer(images)
        np.testing.assert_allclose(found.probabilities, logits.softmax(1), atol=1e-5)
        np.testing.assert_array_equal(found.labels, logits.argmax(1))


def metadata(path: Path) -> dict[str, Any]:
    if path.suffix == ".pt2":
        files = {"taet.json": ""}
        torch.export.load(path, extra_files=files)
        return dict(json.loads(files["taet.json"]))
    if path.suffix == ".onnx":
        onnx: Any = importlib.import_module("onnx")
        model = onnx.load(path)
        onnx.checker.check_model(model)
        return dict(json.loads({entry.key: entry.value for entry in model.metadata_props}["taet"]))
    with safe_open(path, "pt") as file:
        return dict(json.loads(file.metadata()["taet"]))


@pytest.mark.parametrize("format", [*FORMATS, "safetensors"])
def test_a_file_names_its_run_and_no_machine(
    format: str, exported: Callable[[str], Path], trained: Path, dataset: Dataset, tmp_path: Path
) -> None:
    path = exported(format)
    about = metadata(path)
    assert about["taet"] == taet.__version__
    assert (about["method"], about["epoch"], about["eps"], about["resizes"]) == (
        "robal",
        12,
        0.05,
        True,
    )
    assert (about["class_names"], about["image_shape"]) == (["red", "green", "blue"], [3, 16, 16])
    assert about["run_hash"] == RunFolder(trained).record.run_hash
    if format == "safetensors":
        (odd := tmp_path / os.fsdecode(b"\xff.safetensors")).write_bytes(path.read_bytes())
        # the library of the format opens no name that is not UTF-8
        for place in (path, f"run:{trained}", odd):
            assert read(place).class_names() == ("red", "green", "blue")
            read(place).check_size((1, 16, 16))
            with one_line("got images of 8 x 8 pixels; allowed: 16 x 16, as in its training"):
                read(place).check_size((3, 8, 8))
    card = taet.evaluate(trained, attacks="clean", dataset=dataset, out=tmp_path)
    assert about["weights_sha256"] == card.model["weights_sha256"]
    content = path.read_bytes()
    for place in (
        Path(taet.__file__).parents[1],
        Path(torch.__file__).parents[1],
        path.parent,
        trained,
    ):
        assert str(place).encode() not in content


def test_a_file_that_answers_otherwise_is_not_kept(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = sys.modules["taet.deployment.export"]
    monkeypatch.setattr(
        module, "_loaded", lambda _, __, deployed: lambda images: deployed(images) + 2e-3
    )
    with one_line(r"the file's logits differ from the model's by 0\.002; nothing was written"):
        export_run(trained, "safetensors", tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())


class Counting(nn.Module):
    """A network that looks at the values of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(1)[:, : int(x.sum()) % 2 + 1].mean(1, keepdim=True))


def test_mistakes_are_one_line(
    trained: Path, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(match: str, *arguments: Any, **options: Any) -> None:
        with one_line(match):
            export_run(*arguments, **options)

    refused(
        r"unknown format 'onxx'; allowed: onnx, pt2, safetensors; did you mean 'onnx'\?",
        trained,
        "onxx",
    )
    run = override(protocols.taet("standard"), {"training.monitor_every": 0, "training.epochs": 1})
    taet.train(run, out=tmp_path / "odd", model=Counting(), dataset=dataset)
    refused(
        "trained with a model from memory: give it again, from Python, as model=",
        tmp_path / "odd",
        "pt2",
    )
    refused("model: torch.export cannot trace it: ", tmp_path / "odd", "pt2", model=Counting())
    monkeypatch.setitem(sys.modules, "onnx", None)
    refused(r"format onnx needs the package onnx: pip install 'taet\[onnx\]'", trained, "onnx")


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("before", "after"),
    [
        *(((100, 80), (32, 32)), ((8, 8), (32, 20)), ((1, 1), (5, 7)), ((37, 225), (224, 37))),
        *(((20, 13), (32, 32)), ((1, 70), (9, 9)), ((117, 30), (9, 9))),
    ],
)
def test_every_grey_level_is_pillows(
    before: tuple[int, int], after: tuple[int, int], channels: int, pictures: Draw
) -> None:
    """Or one apart where Pillow may begin with the columns."""
    images = pictures(4, (*before, channels))
    expected = np.stack([np.asarray(scaled(picture(image), after[::-1])) for image in images])
    found = resize(torch.from_numpy(images), *after).permute(0, 2, 3, 1).numpy()
    steep = before[0] > 2 * before[1]
    np.testing.assert_allclose(
        found, expected.reshape(found.shape), rtol=0, atol=1.01 if steep else 0
    )
