"""Files of weights: what is none, or would become other weights in silence, is one line; code is never run."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from taet import models
from taet.models import Adapter, Classifier, Head, pretrained, resnet
from taet.models.weights import fill, read
from tests.calls import one_line

SHAPE = (3, 8, 8)
NOT_READ = "such as a normalisation, is not read"
PLAIN = "; its run did not normalise images (--model.normalize none)"


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


def saved(path: Path, tensors: Any) -> Path:
    save_file(tensors, path) if path.suffix == ".safetensors" else torch.save(tensors, path)
    return path


def same(model: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in state.items()}


@pytest.mark.parametrize(
    ("wrap", "note"),
    [
        (lambda state: {"state_dict": state, "epoch": 3}, " under 'state_dict'"),
        (lambda state: {"net": {"model": prefixed(state, "a.")}}, " under 'net.model', without the prefix 'a.'"),
        (lambda state: prefixed(state, "_orig_mod.module."), ", without the prefix '_orig_mod.module.'"),
        (lambda state: {**prefixed(state, "module."), "n_averaged": torch.tensor(3)}, ", without the prefix 'module.'"),
        (lambda state: prefixed(state, "module.0."), ", without the prefix 'module.0.'"),
        (lambda state: prefixed(state, "1."), f", without the prefix '1.'; a layer before it, {NOT_READ}"),
    ],
)
def test_weights_are_found_where_scripts_put_them(tmp_path: Path, wrap: Callable[..., Any], note: str) -> None:
    """Floating-point numbers may have another width."""
    source, model, path = network(), network(), tmp_path / "net.pth.tar"
    torch.save(wrap(source.double().state_dict()), path)
    assert fill(model, read(path)) == f"weights: 7 tensors of {path}{note}"
    assert same(model, source.float())


def with_weight(change: Callable[[Tensor], object]) -> Callable[[Path], object]:
    """Write weights of which one tensor is another."""
    state = network().state_dict()
    return lambda path: torch.save({**state, "0.weight": change(state["0.weight"])}, path)


def half(path: Path) -> None:
    torch.save(network().state_dict(), path)
    os.truncate(path, 700)


def flipped(path: Path) -> None:
    state = network().state_dict()
    torch.save(state, path)
    content = bytearray(path.read_bytes())
    content[content.index(state["0.weight"].numpy().tobytes())] ^= 0x40
    path.write_bytes(content)


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "int8": (with_weight(Tensor.char), "0.weight: got torch.int8; allowed: torch.float32 values"),
    "nan": (with_weight(lambda value: value * torch.nan), "allowed: torch.float32 values, all finite"),
    "another shape": (with_weight(lambda value: value.expand(10**9, 2, 3)), r"does not fit .* \(1000000000, 2, 3\)"),
    "text": (with_weight(lambda _: "q"), "holds no weights, its keys are 0.weight.*; allowed: names and tensors"),
    "a folder": (Path.mkdir, "allowed: the folder of a finished run"),
    "half a file": (half, "holds no weights that can be read"),
    "a flipped bit": (flipped, "holds no weights .*BadZipFile"),
    "a header that lies": (lambda path: path.write_bytes((10**17).to_bytes(8, "little") + b"{}"), "can be read"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_what_is_no_file_of_these_weights_is_one_line(case: str, tmp_path: Path) -> None:
    make, message = FAULTS[case]
    path = tmp_path / ("w.safetensors" if case == "a header that lies" else "w.pt")
    make(path)
    with one_line(message) as caught:
        fill(network(), read(path))
    assert str(path) in str(caught.value)


class Trap:
    """Unpickling it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_code_in_a_file_is_refused_and_never_run(tmp_path: Path) -> None:
    path, sprung = tmp_path / "net.pt", tmp_path / "sprung"
    torch.save({"state_dict": network().state_dict(), "args": Trap(sprung)}, path)
    with one_line(r"holds pickled code \(posix.mkdir\), which is never run"):
        read(path)
    assert not sprung.exists()


# To train from


@pytest.mark.parametrize("name", ["resnet8", "vit-mini-p4", "torchvision:shufflenet_v2_x0_5"])
def test_a_run_of_other_classes_gives_its_body(name: str, tmp_path: Path) -> None:
    source = models.build(name, 10, SHAPE, seed=1)
    source.normalize_by([0.4, 0.5, 0.6], [0.2, 0.3, 0.4])
    source.offset.copy_(torch.arange(10.0))
    path = saved(tmp_path / "model.safetensors", source.state_dict())
    fresh, model = models.build(name, 4, SHAPE, seed=2), models.build(name, 4, SHAPE, seed=2, weights=path)
    assert same(model.body, source.body)
    assert same(model.head, fresh.head)
    assert not model.offset.any()
    assert not model.mean.any()
    says = f"weights: {len(source.state_dict())} tensors of {path}; the head is fresh, since that of the file is for 10"
    assert model.notes == (*fresh.notes, f"{says} classes")


def test_a_run_of_as_many_classes_gives_its_head_as_well(tmp_path: Path) -> None:
    for head, other in ((Head(), Head("cosine")), (Head("cosine", scale=10), Head())):
        source = models.build("resnet8", 4, SHAPE, seed=1, head=head)
        path = saved(tmp_path / "model.pt", {"state_dict": source.state_dict()})
        model = models.build("resnet8", 4, SHAPE, seed=2, head=head, weights=str(path))
        assert same(model, source)
        assert model.notes[0].endswith(f"tensors of {path} under 'state_dict', its head included{PLAIN}")
        note = pretrained(models.build("resnet8", 4, SHAPE, head=other), path)
        assert note.endswith(f"the head is fresh, since that of the file is of another kind{PLAIN}")


@pytest.mark.parametrize("name", ["resnet8", "vit-mini-p4"])
def test_a_network_for_colours_reads_grey_images_as_all_three(name: str, tmp_path: Path) -> None:
    source = models.build(name, 4, SHAPE, seed=1).eval()
    path = saved(tmp_path / "model.safetensors", source.state_dict())
    model = models.build(name, 4, (1, *SHAPE[1:]), seed=2, weights=path).eval()
    grey = torch.rand(3, 1, *SHAPE[1:])
    torch.testing.assert_close(model(grey), source(grey.expand(-1, 3, -1, -1)))
    assert "made for colour, it reads a grey image as all three" in model.notes[-1]
    if name.startswith("vit"):
        with one_line("made for images of another size: --data.size"):
            models.build(name, 4, (3, 64, 64), weights=path)


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize(("classes", "head"), [(1000, "is fresh, since that of the file is for 1000 classes"), (4, "")])
def test_a_file_of_the_library_gives_its_body(tmp_path: Path, prefix: str, classes: int, head: str) -> None:
    """As torchvision's files: names without those of a Classifier, 1,000 classes, and, if old, no counters."""
    source = torchvision.models.shufflenet_v2_x0_5(weights=None, num_classes=classes)
    tensors = {key: value for key, value in source.state_dict().items() if not prefix or "batches" not in key}
    path = saved(tmp_path / "net.pth", prefixed(tensors, prefix))
    model = models.build("torchvision:shufflenet_v2_x0_5", 4, SHAPE, weights=path).eval()
    x = torch.rand(2, *SHAPE)
    assert isinstance(model, Classifier)
    source.eval().fc = nn.Identity() if head else source.fc
    assert torch.equal(model.features(x) if head else model(x), source(x))
    assert model.notes[-1].endswith(head or ", its head included")
    assert ("without the prefix 'module.'" in model.notes[-1]) == bool(prefix)


def test_a_network_that_is_used_whole_takes_all_of_its_weights_or_none(tmp_path: Path) -> None:
    source, model = (Adapter(nn.Sequential(nn.Conv2d(3, 4, 8), nn.Flatten()), 4) for _ in range(2))
    path = saved(tmp_path / "net.pt", source.state_dict())
    assert pretrained(model, path).startswith(f"weights: 3 tensors of {path}")
    assert same(model, source)
    other = Adapter(nn.Sequential(nn.Conv2d(3, 5, 8), nn.Flatten()), 5)
    with one_line(r"2 of 2 tensors, .* 0.weight: got \(4, 3, 8, 8\); allowed: \(5, 3, 8, 8\)"):
        pretrained(other, path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"0.weight": None}, r"the first 0.weight: got no such tensor; allowed: \(\d+, 3, 3, 3\)"),
        ({"head.weight": torch.ones(4, 64, dtype=torch.int8)}, "weight: got torch.int8"),
        ({"conv1.weight": torch.ones(1), "layer1.0.conv1.weight": torch.ones(1)}, "names are torchvision's: --model t"),
    ],
)
def test_a_body_or_a_head_that_does_not_fit_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    source = models.build("resnet8", 4, SHAPE)
    head = prefixed(source.head.state_dict(), "head.")
    tensors = {name: value for name, value in (source.body.state_dict() | head | change).items() if value is not None}
    with one_line(message):
        models.build("resnet8", 4, SHAPE, weights=saved(tmp_path / "net.pt", tensors))


@pytest.mark.parametrize(
    ("name", "counts", "wide"), [("preact-resnet18", (2, 2, 2, 2), False), ("wrn", (2, 2, 2), True)]
)
def test_robust_networks_of_robustbench_fit_ours(
    name: str, counts: tuple[int, ...], wide: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under the names that their files have, for 10 classes, with what we leave out, and without counters."""
    monkeypatch.setitem(resnet.LAYOUTS, "wrn", resnet.ResidualLayout((8, 16, 32), counts, resnet.PreActBlock, stem=4))
    source, model = (resnet.build(name, classes, (3, 32, 32), Head(), "auto") for classes in (10, 7))
    places = [(group, block) for group, count in enumerate(counts, 1) for block in range(count)]
    theirs = {"module.mu": torch.zeros(1, 3, 1, 1), "module.sub_block1.layer.0.bn1.weight": torch.ones(4)}
    last = len(places) + 1
    for key, value in source.state_dict().items():
        part, _, rest = key.partition(".")
        number, _, inner = rest.partition(".")
        if part == "head":
            found = f"{'fc' if wide else 'linear'}.{rest}"
        elif part != "body" or "batches" in key:
            continue
        elif number in ("0", str(last)):
            found = f"{'conv1' if number == '0' else 'bn1' if wide else 'bn'}.{inner}"
        else:
            group, block = places[int(number) - 1]
            inner = inner.replace("shortcut", "convShortcut" if wide else "shortcut.0")
            found = f"block{group}.layer.{block}.{inner}" if wide else f"layer{group}.{block}.{inner}"
        theirs[f"module.{found}"] = value
    note = pretrained(model, saved(tmp_path / "robust.pt", {"state_dict": theirs}))
    assert "the head is fresh, since that of the file is for 10 classes" in note
    assert same(model.body, source.body)
