"""Files in the form of public code become the network that the code has, or are refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from taet import models
from taet.models import foreign, resnet
from taet.models.weight_files.identification import describe_file
from taet.models.weight_files.stored_weights import read
from tests.calls import one_line
from tests.models.checkpoint_forms import FORMS
from tests.models.reference_networks import (
    PreActResNet18,
    ResNet18,
    random_statistics,
    under,
)

WIDTH = 8  # divides all widths of the networks that are run
CLASSES = tuple("abcdefghij")
SHAPE = (3, 32, 32)


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our networks, an eighth as wide."""
    for name, layout in resnet.LAYOUTS.items():
        widths = tuple(width // WIDTH for width in layout.widths)
        monkeypatch.setitem(resnet.LAYOUTS, name, layout._replace(widths=widths))


PAGE = Path(__file__).parents[2] / "docs" / "models-from-elsewhere.md"


def table() -> str:
    """The forms as a table of the documentation."""
    rows = ["| written by | holds | network here | |", "|---|---|---|---|"]
    for form in FORMS.values():
        network = f"`{form.network}`" if form.network else ""
        outcome = "loads" if form.network else "refused"
        if form.refused:
            outcome += f"; refused {form.refused}" if form.network else f": it {form.refused}"
        rows.append(f"| {form.written_by} | {form.holds} | {network} | {outcome} |")
    return "\n".join(rows)


def reference(form: str) -> nn.Module:
    torch.manual_seed(1)
    return random_statistics(FORMS[form].reference(WIDTH))


def saved(content: Any, path: Path) -> Path:
    torch.save(content, path)
    return path


def images() -> Tensor:
    return torch.rand(4, *SHAPE, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def logits(network: nn.Module) -> Tensor:
    return network(images())


def load(name: str, path: Path, **options: Any) -> tuple[nn.Module, tuple[str, ...]]:
    return foreign.load(name, CLASSES, SHAPE, path, **options)


@pytest.mark.parametrize("form", [form for form in FORMS if FORMS[form].network])
def test_a_file_loads_as_the_function_of_the_code_that_wrote_it(form: str, tmp_path: Path) -> None:
    theirs = reference(form)
    path = saved(FORMS[form].content(theirs), tmp_path / "net.pt")
    network, notes = load(FORMS[form].network, path)
    torch.testing.assert_close(logits(network), logits(theirs), rtol=1e-4, atol=1e-4)
    assert notes[0].startswith("weights: ")


@pytest.mark.parametrize(
    ("form", "model", "reason"),
    [
        (
            "rb_preact_in_resnet.py",
            "preact-resnet18",
            "does not normalise before its last layer.*another function",
        ),
        (
            "rb_dm_wrn28_swish",
            "wrn-28-10",
            "the names are those of --model dm-wrn-28-10 or dm-wrn-28-10-swish",
        ),
        ("rb_dm_preact18", "preact-resnet18", "names are those of --model dm-preact-resnet18 or"),
        ("cfa_preact", "resnet18", "those of --model preact-resnet18 or nfgsm-preact-resnet18"),
        ("trades_wrn34_module", "wrn-28-10", "the names are those of --model wrn-34-10"),
        ("rb_resnet18", "preact-resnet18", "the names are those of --model resnet18"),
    ],
)
def test_a_file_of_another_network_is_refused_with_the_name_of_that_network(
    form: str, model: str, reason: str, tmp_path: Path
) -> None:
    path = saved(FORMS[form].content(reference(form)), tmp_path / "net.pt")
    with one_line(reason):
        load(model, path)


@pytest.mark.parametrize("raw", [False, True])
def test_the_running_means_tell_two_networks_with_equal_names_apart(
    raw: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    theirs = PreActResNet18(WIDTH, raw=raw).train()
    for _ in range(3):
        theirs(nn.functional.interpolate(torch.rand(16, 3, 8, 8), size=32, mode="bilinear"))
    path = saved(under("", theirs.eval()), tmp_path / "net.pt")
    right, wrong = "preact-resnet18", "nfgsm-preact-resnet18"
    if raw:
        right, wrong = wrong, right
    torch.testing.assert_close(logits(load(right, path)[0]), logits(theirs), rtol=1e-4, atol=1e-4)
    with one_line(f"another function under the same names.*allowed: --model {right}"):
        load(wrong, path)


def test_where_the_running_means_do_not_tell_the_other_network_is_named(tmp_path: Path) -> None:
    path = saved(under("", PreActResNet18(WIDTH)), tmp_path / "net.pt")
    _, notes = load("preact-resnet18", path)
    assert "N-FGSM has the same names, and the file does not tell" in notes[0]


def test_the_activation_that_no_file_holds_is_said(tmp_path: Path) -> None:
    form = FORMS["rb_dm_wrn28_relu"]
    path = saved(form.content(reference("rb_dm_wrn28_relu")), tmp_path / "net.pt")
    _, notes = load("dm-wrn-28-10", path)
    assert "the file does not say whether its network has ReLU or Swish" in notes[0]
    assert notes[1] == (
        "normalisation: cifar10, as in the code of the network; the file has none, inside the model"
    )


@pytest.mark.parametrize(
    "form", ["gairat_resnet18_pthtar", "cfa_preact", "trades_wrn34_module", "rb_dm_preact18"]
)
def test_training_begins_from_the_body_of_every_file(form: str, tmp_path: Path) -> None:
    theirs = reference(form)
    path = saved(FORMS[form].content(theirs), tmp_path / "net.pt")
    model = models.build(FORMS[form].network, 10, SHAPE, weights=path)
    assert ", its head included" in model.notes[-1]
    other = models.build(FORMS[form].network, 4, SHAPE, weights=path)
    assert "the head is fresh, since that of the file is for 10 classes" in other.notes[-1]


def test_whose_names_were_recognised_is_said(tmp_path: Path) -> None:
    path = saved({"net": under("module.", ResNet18(WIDTH))}, tmp_path / "net.pt")
    _, notes = load("resnet18", path)
    assert notes[0] == (
        f"weights: 122 tensors of {path} under 'net', without the prefix 'module.', with the names "
        "of pytorch-cifar (kuangliu); AT-BSL, MART, DAFA, GAIRAT, LAS-AT, WAT, RobustBench"
    )


def test_the_documentation_has_every_form() -> None:
    assert table() in PAGE.read_text()


def test_torchvisions_resnet_is_ours_with_the_first_layers_for_large_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = resnet.ResidualLayout((64, 128, 256, 512), (2, 2, 2, 2))
    monkeypatch.setitem(resnet.LAYOUTS, "resnet18", whole)
    theirs = random_statistics(torchvision.models.resnet18(weights=None, num_classes=10))
    path = saved(theirs.state_dict(), tmp_path / "net.pt")
    large = (3, 96, 96)
    x = torch.rand(2, *large)
    network, notes = foreign.load("resnet18", CLASSES, large, path)
    with torch.no_grad():
        torch.testing.assert_close(network(x), theirs(x), rtol=1e-4, atol=1e-4)
    assert "with the names of torchvision" in notes[0]


# Beside the network


def state_of(network: nn.Module) -> dict[str, Tensor]:
    return dict(network.state_dict())


def test_a_second_head_does_not_take_the_place_of_the_first(tmp_path: Path) -> None:
    state = state_of(ResNet18(WIDTH))
    second = {"linear2.weight": torch.ones_like(state["linear.weight"])}
    path = saved({**state, **second}, tmp_path / "net.pt")
    with one_line("it also has linear2.weight; allowed: no tensor that the model lacks"):
        load("resnet18", path)


def test_class_weights_of_a_loss_are_left_out_and_named(tmp_path: Path) -> None:
    theirs = random_statistics(ResNet18(WIDTH))
    content = {**under("net.", theirs), "criterion.weight": torch.arange(10.0)}
    path = saved({"state_dict": content}, tmp_path / "lightning.ckpt")
    network, notes = load("resnet18", path)
    torch.testing.assert_close(logits(network), logits(theirs), rtol=1e-4, atol=1e-4)
    assert "but for criterion.weight, of a loss" in notes[0]


@pytest.mark.parametrize("wrapper", ["_orig_mod", "_fsdp_wrapped_module"])
def test_a_part_that_torch_wraps_keeps_its_name(wrapper: str, tmp_path: Path) -> None:
    theirs = random_statistics(ResNet18(WIDTH))
    content = {
        name.replace("layer1.", f"layer1.{wrapper}."): value
        for name, value in state_of(theirs).items()
    }
    network, _ = load("resnet18", saved(content, tmp_path / "net.pt"))
    torch.testing.assert_close(logits(network), logits(theirs), rtol=1e-4, atol=1e-4)


def description(content: dict[str, Tensor], folder: Path) -> list[str]:
    """What `taet check` says of a file."""
    return describe_file(read(saved(content, folder / "net.pt")))


def test_a_file_without_its_last_layer_is_for_training(tmp_path: Path) -> None:
    state = state_of(ResNet18(WIDTH))
    body = {name: value for name, value in state.items() if not name.startswith("linear.")}
    lines = description(body, tmp_path)
    assert lines[-2] == "last layer: not in the file, so it classifies nothing yet"
    assert lines[-1].startswith("to train it: taet train METHOD --model resnet18 --model.weights ")


def test_a_file_of_values_that_are_not_finite_is_for_nothing(tmp_path: Path) -> None:
    state = state_of(ResNet18(WIDTH))
    state["conv1.weight"] = state["conv1.weight"] * torch.nan
    lines = description(state, tmp_path)
    assert lines[-1] == "not to be used: some of these numbers are not finite"


def test_a_file_with_another_layer_than_the_last_one_is_for_training(tmp_path: Path) -> None:
    state = state_of(ResNet18(WIDTH))
    body = {name: value for name, value in state.items() if not name.startswith("linear.")}
    lines = description({**body, "projection.weight": torch.ones(5, 5)}, tmp_path)
    assert lines[-2] == "last layer: not in the file, so it classifies nothing yet"


@pytest.mark.parametrize("prefix", ["kd_loss.student.", "criterion.model."])
def test_a_network_inside_a_loss_has_its_own_tensors(prefix: str, tmp_path: Path) -> None:
    theirs = random_statistics(ResNet18(WIDTH))
    path = saved(under(prefix, theirs), tmp_path / "net.pt")
    network, notes = load("resnet18", path)
    torch.testing.assert_close(logits(network), logits(theirs), rtol=1e-4, atol=1e-4)
    assert "of a loss" not in notes[0]


@pytest.mark.parametrize(
    "beside",
    [
        under("kd_loss.teacher.", ResNet18(WIDTH)),
        {"criterion.model.linear2.weight": torch.ones(10, 64)},
        {"criterion.prototypes": torch.ones(10, 64)},
    ],
    ids=["a second network", "a second head", "a matrix"],
)
def test_more_than_class_weights_in_a_loss_is_refused(
    beside: dict[str, Tensor], tmp_path: Path
) -> None:
    inside = "criterion.model." if "criterion.model.linear2.weight" in beside else "model."
    content = {**under(inside, ResNet18(WIDTH)), **beside}
    with one_line("it also has "):
        load("resnet18", saved(content, tmp_path / "net.pt"))


def test_a_loss_below_a_common_prefix_is_left_out(tmp_path: Path) -> None:
    content = {**under("module.net.", ResNet18(WIDTH)), "module.criterion.weight": torch.ones(10)}
    _, notes = load("resnet18", saved(content, tmp_path / "net.pt"))
    assert "but for module.criterion.weight, of a loss" in notes[0]


def test_two_names_that_a_wrapper_tells_apart_are_refused(tmp_path: Path) -> None:
    first, second = ResNet18(WIDTH), ResNet18(WIDTH)
    content = {**under("m.", first), **under("m._orig_mod.", second)}
    with one_line("holds m.conv1.weight and m._orig_mod.conv1.weight, which are one name"):
        load("resnet18", saved(content, tmp_path / "net.pt"))
