"""Pretrained weights from a file: the body must fit, a head for other classes stays fresh, and that is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from taet import models
from taet.errors import UserError
from taet.models import Adapter, Classifier, Head, pretrained

SHAPE = (3, 8, 8)


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(model: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))


def saved(path: Path, tensors: Any) -> Path:
    save_file(tensors, path) if path.suffix == ".safetensors" else torch.save(tensors, path)
    return path


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
    count = len(source.state_dict())
    says = f"weights: {count} tensors of {path}; the head is fresh, since that of the file is for 10 classes"
    assert model.notes == (*fresh.notes, says)


def test_a_run_of_as_many_classes_gives_its_head_as_well(tmp_path: Path) -> None:
    source = models.build("resnet8", 4, SHAPE, seed=1)
    path = saved(tmp_path / "model.pt", {"state_dict": source.state_dict()})
    model = models.build("resnet8", 4, SHAPE, seed=2, weights=str(path))
    assert same(model, source)
    assert model.notes == (
        f"weights: {len(source.state_dict())} tensors of {path} under 'state_dict', its head included",
    )


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize(("classes", "head"), [(1000, "is fresh, since that of the file is for 1000 classes"), (4, "")])
def test_a_file_of_the_library_gives_its_body(tmp_path: Path, prefix: str, classes: int, head: str) -> None:
    """As torchvision's own files are: names without those of a Classifier, and a thousand classes."""
    source = torchvision.models.shufflenet_v2_x0_5(weights=None, num_classes=classes)
    path = saved(tmp_path / "net.pth", {prefix + name: value for name, value in source.state_dict().items()})
    model = models.build("torchvision:shufflenet_v2_x0_5", 4, SHAPE, weights=path).eval()
    x = torch.rand(2, *SHAPE)
    assert isinstance(model, Classifier)
    source.eval().fc = nn.Identity() if head else source.fc
    assert torch.equal(model.features(x) if head else model(x), source(x))
    assert model.notes[-1].endswith(head or ", its head included")
    assert ("without the prefix 'module.'" in model.notes[-1]) == bool(prefix)


def test_our_transformer_takes_the_weights_of_torchvisions(tmp_path: Path) -> None:
    source = torchvision.models.VisionTransformer(8, 4, 6, 4, 128, 512, num_classes=1000)
    path = saved(tmp_path / "vit.safetensors", source.state_dict())
    model = models.build("vit-mini-p4", 4, SHAPE, weights=path).eval()
    source.eval().heads = nn.Identity()
    x = torch.rand(2, *SHAPE)
    assert torch.equal(model.features(x), source(x))
    assert model.notes[-1].endswith("the head is fresh, since that of the file is for 1000 classes")


def test_a_cosine_head_stays_fresh_before_a_linear_one_and_takes_its_own(tmp_path: Path) -> None:
    head = Head("cosine", scale=10)
    path = saved(tmp_path / "linear.pt", models.build("resnet8", 4, SHAPE, seed=1).state_dict())
    fresh, model = models.build("resnet8", 4, SHAPE, head=head), models.build("resnet8", 4, SHAPE, head=head)
    assert pretrained(model, path).endswith("the head is fresh, since that of the file is of another kind")
    assert same(model.head, fresh.head)
    source = models.build("resnet8", 4, SHAPE, seed=1, head=head)
    assert pretrained(model, saved(tmp_path / "cosine.pt", source.state_dict())).endswith("its head included")
    assert same(model, source)


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_network_that_is_used_whole_takes_all_of_its_weights_or_none(tmp_path: Path, wrapped: bool) -> None:
    source = Adapter(nn.Sequential(nn.Conv2d(3, 4, 8), nn.Flatten()), 4)
    model = Adapter(nn.Sequential(nn.Conv2d(3, 4, 8), nn.Flatten()), 4)
    path = saved(tmp_path / "net.pt", (source if wrapped else source.network).state_dict())
    assert pretrained(model, path).startswith(f"weights: {3 if wrapped else 2} tensors of {path}")
    assert same(model, source)
    other = Adapter(nn.Sequential(nn.Conv2d(3, 5, 8), nn.Flatten()), 5)
    with pytest.raises(UserError, match=r"2 of another shape \(0.weight \(4, 3, 8, 8\) for \(5, 3, 8, 8\) and 0.bias"):
        pretrained(other, path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"0.weight": None}, r"does not fit the model: 1 missing \(0.weight\)"),
        ({"0.weight": torch.ones(16, 1, 3, 3)}, r"1 of another shape \(0.weight \(16, 1, 3, 3\) for \(16, 3, 3, 3\)\)"),
        ({"extra.weight": torch.ones(1)}, r"3 unexpected \(head.weight, head.bias and extra.weight\)"),
        ({"head.scale": torch.ones(1)}, r"3 unexpected \(head.weight, head.bias and head.scale\)"),
    ],
)
def test_a_body_that_does_not_fit_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    source = models.build("resnet8", 4, SHAPE)
    tensors = state(source.body) | {f"head.{name}": value for name, value in state(source.head).items()} | change
    path = saved(tmp_path / "net.pt", {name: value for name, value in tensors.items() if value is not None})
    with pytest.raises(UserError, match=message) as caught:
        models.build("resnet8", 4, SHAPE, weights=path)
    assert str(path) in str(caught.value)


def test_a_file_of_settings_alone_holds_no_body(tmp_path: Path) -> None:
    path = saved(tmp_path / "net.pt", {"offset": torch.zeros(4)})
    with pytest.raises(UserError, match=r"does not fit the model: \d+ missing"):
        models.build("resnet8", 4, SHAPE, weights=path)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"weights: got .*none.pt; allowed: a file that exists"):
        models.build("resnet8", 4, SHAPE, weights=tmp_path / "none.pt")


def test_torchvisions_names_are_known_where_they_do_not_fit(tmp_path: Path) -> None:
    torch.save(torchvision.models.resnet18(num_classes=3).state_dict(), tmp_path / "theirs.pth")
    with pytest.raises(
        UserError, match=r"does not fit the model: .*; the names are torchvision's: --model torchvision"
    ):
        models.build("resnet18", 3, (3, 96, 96), weights=tmp_path / "theirs.pth")
