"""A network of the user's own and images from memory, as `train(model=..., dataset=...)`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
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
