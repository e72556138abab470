"""A network of the user's own and images from memory, as `train(model=..., dataset=...)`."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.testing import assert_close

from taet.data import Dataset
from taet.metrics import accuracies
from taet.run.folder import RunFolder
from taet.run.loading import load_run
from taet.settings import Run, override
from taet.training import TrainingResult, resume, train
from tests.calls import one_line
from tests.training.conftest import AssertSame, BeforeStep, Tiny


def network(classes: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.ReLU(), nn.Linear(16, classes))


def arrays(classes: int = 3, per_class: int = 10) -> Dataset:
    """Grey 6x6 images whose brightness tells the class."""
    draw, labels = np.random.default_rng(0), np.repeat(np.arange(classes), per_class)
    brightness = 80 * labels[:, None, None] + draw.integers(0, 40, (len(labels), 6, 6))
    images = brightness.astype(np.uint8)
    return Dataset.from_arrays(images, labels, images, labels)


def refusing_the_model(tiny: Tiny, folder: Path, model: Any, message: str) -> None:
    """Assert that a model is refused in one line and that no folder is made for it."""
    with one_line(message):
        train(tiny("at"), out=folder, model=model, dataset=arrays())
    assert not folder.exists()


@pytest.fixture(scope="module")
def run(tiny: Tiny) -> Run:
    """A run of 36 steps, which learns the brightness."""
    return tiny("taet", {"training.batch_size": 10, "training.epochs": 12, "training.lr": 0.1})


@pytest.fixture(scope="module")
def given() -> nn.Module:
    """The network that is trained by `whole`."""
    return network()


@pytest.fixture(scope="module")
def whole(run: Run, given: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> TrainingResult:
    """A finished run of the network on the arrays."""
    return train(run, out=tmp_path_factory.mktemp("own") / "run", model=given, dataset=arrays())


@pytest.fixture
def killed(run: Run, tmp_path: Path, killed_before: BeforeStep) -> Path:
    """The folder of the same run, which was killed before step 20."""
    with killed_before(20):
        train(run, out=tmp_path / "killed", model=network(), dataset=arrays())
    return tmp_path / "killed"


def test_a_plain_module_learns_arrays(whole: TrainingResult) -> None:
    assert accuracies.balanced_accuracy(**whole.history[-1]["monitor"]["clean"]) == 1.0


def test_the_network_that_was_given_is_left_as_it_was(
    whole: TrainingResult, given: nn.Module
) -> None:
    load_run(whole.folder, model=given, dataset=arrays())
    assert_close(given.state_dict(), network().state_dict(), rtol=0, atol=0)


def test_a_killed_run_ends_with_the_same_bits_when_both_are_given_again(
    killed: Path, whole: TrainingResult, assert_same: AssertSame
) -> None:
    resume(killed, model=network(), dataset=arrays())
    assert_same(killed, whole.folder)


def test_a_run_is_not_resumed_without_its_network_and_images(
    killed: Path, whole: TrainingResult
) -> None:
    for folder in (killed, whole.folder):
        with one_line(r"was trained with a .* from memory: give it again"):
            resume(folder)


def test_a_run_is_not_resumed_with_other_images(killed: Path) -> None:
    with one_line("the train images are not those"):
        resume(killed, model=network(), dataset=arrays(per_class=11))


def test_a_folder_that_holds_a_run_is_refused_before_the_network_is_tried(
    run: Run, whole: TrainingResult
) -> None:
    with one_line(f"{whole.folder} holds a run; choose another --out"):
        train(run, out=whole.folder, model=network(4), dataset=arrays())


class Through(nn.Module):
    """The network, whose images pass through a function first."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.network, self.function = network(), function

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(self.function(x))
        return logits


class Keeping(Through):
    """The network, which keeps its logits, with their graph, in a list."""

    def __init__(self) -> None:
        super().__init__(torch.clone)
        self.kept = list[Tensor]()

    def forward(self, x: Tensor) -> Tensor:
        self.kept = [super().forward(x)]
        return self.kept[0]


def quantised() -> nn.Module:
    with warnings.catch_warnings(action="ignore"):
        return torch.ao.quantization.quantize_dynamic(network().eval(), {nn.Linear}, torch.qint8)


REFUSED: list[tuple[str, Callable[[], Any], str]] = [
    ("classes", lambda: network(4), r"\(2, 4\).*allowed: \(2, 3\), one logit per class"),
    ("a class", lambda: nn.Linear, r"model: got .*; allowed: an nn\.Module"),
    (
        "probabilities",
        lambda: nn.Sequential(network(), nn.Softmax(1)),
        "model: got probabilities, which sum to 1 .*allowed: logits",
    ),
    (
        "frozen",
        lambda: network().requires_grad_(False),
        "model: got no parameter that needs a gradient",
    ),
    ("float64", lambda: network().double(), r"not float32; allowed: float32 \(call model.float"),
    (
        "a lazy layer",
        lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(3)),
        "without a shape; allowed: a lazy network after its first batch",
    ),
    (
        "quantised",
        quantised,
        r"got quantised layers \(1 and 3\), .*allowed: the network before it was quantised",
    ),
    ("a detached image", lambda: Through(torch.detach), "no gradient reaches the image"),
    ("what it keeps", Keeping, "model: cannot be copied after a forward pass"),
]


@pytest.mark.parametrize(
    ("build", "message"), [case[1:] for case in REFUSED], ids=[c[0] for c in REFUSED]
)
def test_a_network_that_cannot_be_trained_is_refused(
    tiny: Tiny, tmp_path: Path, build: Callable[[], Any], message: str
) -> None:
    refusing_the_model(tiny, tmp_path / "new", build(), message)


def test_a_list_of_tensors_is_no_data_set(tiny: Tiny, tmp_path: Path) -> None:
    with one_line(r"dataset: got .*; allowed: a taet\.data\.Dataset"):
        train(tiny("at"), out=tmp_path / "new", model=network(), dataset=[torch.zeros(3, 1, 6, 6)])  # type: ignore[arg-type]
    assert not (tmp_path / "new").exists()


def test_weights_of_a_file_and_a_network_from_memory_are_refused_together(
    run: Run, tmp_path: Path
) -> None:
    from_file = override(run, {"model.weights": "x.pt"})
    with one_line(r"model weights: got x\.pt and a network from memory; allowed: one of them"):
        train(from_file, out=tmp_path / "new", model=network(), dataset=arrays())
    assert not (tmp_path / "new").exists()


class Flattened(nn.Module):
    """Two convolutions, flattened by `.view`, which does not take all layouts."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.last = nn.Linear(4 * 36, 3)

    def forward(self, x: Tensor) -> Tensor:
        features = self.second(self.first(x).relu())
        return self.last(features.view(len(features), -1))


def test_a_network_with_view_trains_in_the_ordinary_layout_with_a_note(
    tiny: Tiny, tmp_path: Path
) -> None:
    done = train(tiny("at"), out=tmp_path / "run", model=Flattened(), dataset=arrays())
    notes = RunFolder(done.folder).record.model_notes
    assert any("not in channels_last, which its .view does not allow" in note for note in notes)


def test_a_graph_of_torch_export_is_refused_before_the_training(tiny: Tiny, tmp_path: Path) -> None:
    batch = {0: torch.export.Dim("batch")}
    graph = torch.export.export(network(), (torch.zeros(2, 1, 6, 6),), dynamic_shapes=(batch,))
    message = "model: got a graph of torch.export, .*allowed: the nn.Module"
    refusing_the_model(tiny, tmp_path / "new", graph.module(), message)


class TwoOutputs(nn.Module):
    """A network with an auxiliary classifier, which gives logits of its own in training."""

    def __init__(self) -> None:
        super().__init__()
        self.network = network()

    def forward(self, x: Tensor) -> object:
        logits = self.network(x)
        return (logits, logits) if self.training else logits


def test_auxiliary_outputs_are_refused_before_the_training(tiny: Tiny, tmp_path: Path) -> None:
    message = "model: got a tuple in training mode; allowed: one tensor of logits"
    refusing_the_model(tiny, tmp_path / "new", TwoOutputs(), message)


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_torchscript_is_refused_before_the_training(tiny: Tiny, tmp_path: Path) -> None:
    script = torch.jit.trace(network(), torch.zeros(2, 1, 6, 6))
    message = "model: got TorchScript, .*allowed: the nn.Module"
    refusing_the_model(tiny, tmp_path / "new", script, message)


def pruned() -> nn.Module:
    """The network with three quarters of its first weights pruned."""
    given = network()
    prune.l1_unstructured(given[1], "weight", 0.75)  # type: ignore[no-untyped-call]
    return given


def weight_normalised() -> nn.Module:
    given = network()
    torch.nn.utils.weight_norm(given[1])
    return given


def spectrally_normalised() -> nn.Module:
    given = network()
    torch.nn.utils.spectral_norm(given[1])
    return given


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated")
@pytest.mark.parametrize("build", [pruned, weight_normalised, spectrally_normalised])
def test_a_network_that_computes_its_weights_is_trained_and_loaded(
    tiny: Tiny, tmp_path: Path, build: Callable[[], nn.Module]
) -> None:
    given = build()
    given(torch.zeros(2, 1, 6, 6))  # from now on its weights have a graph
    done = train(
        tiny("las-at", {"training.ema": 0.9}), out=tmp_path / "run", model=given, dataset=arrays()
    )
    loaded = load_run(done.folder, model=given, dataset=arrays()).model
    x = torch.rand(2, 1, 6, 6)
    assert_close(loaded(x), done.model(x), rtol=0, atol=0)


def test_a_pruned_weight_stays_zero_in_training(tiny: Tiny, tmp_path: Path) -> None:
    given = pruned()
    done = train(tiny("at"), out=tmp_path / "run", model=given, dataset=arrays())
    is_kept = given.get_buffer("1.weight_mask").bool()
    weight = done.model.get_submodule("network.1").weight
    assert not weight[~is_kept].any()


class Scattered(nn.Module):
    """The network, which writes its logits into float32, whatever type they have."""

    def __init__(self) -> None:
        super().__init__()
        self.network = network()

    def forward(self, x: Tensor) -> Tensor:
        logits = self.network(x)
        positions = torch.arange(3).expand(len(x), -1)
        return torch.zeros(len(x), 3).scatter(1, positions, logits)


def test_a_network_that_fails_in_bf16_is_refused_with_the_option(
    tiny: Tiny, tmp_path: Path
) -> None:
    run = tiny("at", {"training.precision": "bf16"})
    with one_line("model: allowed: --precision float32; fails in bf16"):
        train(run, out=tmp_path / "new", model=Scattered(), dataset=arrays())


def test_one_logit_of_a_binary_network_is_refused_with_the_two_that_it_means(
    tiny: Tiny, tmp_path: Path
) -> None:
    with one_line(r"\(2, 1\).*torch.cat\(\[torch.zeros_like\(z\), z\], 1\)"):
        train(tiny("at"), out=tmp_path / "new", model=network(1), dataset=arrays(2))


def compiled() -> nn.Module:
    return torch.compile(network(), backend="eager")  # type: ignore[return-value]


@pytest.mark.parametrize("build", [network, pruned, compiled])
def test_features_are_the_inputs_of_a_last_linear_layer(
    tiny: Tiny, tmp_path: Path, build: Callable[[], nn.Module]
) -> None:
    done = train(tiny("reat"), out=tmp_path / "run", model=build(), dataset=arrays())
    loaded = load_run(done.folder, model=build(), dataset=arrays()).model
    assert loaded.features(torch.rand(2, 1, 6, 6)).shape == (2, 16)  # type: ignore[operator]


def test_a_killed_run_with_features_ends_with_the_same_bits(
    tiny: Tiny, tmp_path: Path, killed_before: BeforeStep, assert_same: AssertSame
) -> None:
    run = tiny("reat", {"training.batch_size": 10, "training.epochs": 2})
    whole = train(run, out=tmp_path / "whole", model=network(), dataset=arrays())
    with killed_before(4):
        train(run, out=tmp_path / "killed", model=network(), dataset=arrays())
    resume(tmp_path / "killed", model=network(), dataset=arrays())
    assert_same(tmp_path / "killed", whole.folder)


def test_the_last_layer_of_a_network_from_memory_is_trained_alone(
    tiny: Tiny, tmp_path: Path
) -> None:
    given = network()
    done = train(
        tiny("at", {"model.tune": "head"}), out=tmp_path / "run", model=given, dataset=arrays()
    )
    body = done.model.get_submodule("body")
    assert_close(body.get_parameter("1.weight"), given.get_parameter("1.weight"), rtol=0, atol=0)


def test_a_network_without_a_last_linear_layer_has_no_features(tiny: Tiny, tmp_path: Path) -> None:
    given = nn.Sequential(network(), nn.Tanh())
    with one_line("model: reat needs features, which a network has only if its logits come from"):
        train(tiny("reat"), out=tmp_path / "new", model=given, dataset=arrays())
