"""What every label loss that the registry finds keeps to, those of plug-ins too."""

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from taet import losses, registry
from taet.cli import main
from taet.errors import UserError
from taet.files import file_sha256
from taet.losses import LabelLoss
from taet.losses.label_loss import Classes
from taet.losses.outer import OuterLoss
from taet.run.folder import RunFolder
from taet.settings import Outer
from tests.calls import one_line

EXAMPLE = Path(__file__).parents[2] / "examples" / "add_a_loss.py"
COUNTS = torch.tensor([400.0, 90, 25, 10, 0], dtype=torch.float64)
every_loss = pytest.mark.parametrize("name", sorted(registry.entries("losses")))


def built(name: str, scale: float = 1.0) -> LabelLoss:
    kind = losses.find(name)
    return kind.of_run(Outer(name=name), Classes(COUNTS, COUNTS, scale))


def batch(dtype: torch.dtype = torch.float64, samples: int = 12) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    logits = 3 * torch.randn(samples, len(COUNTS), generator=generator, dtype=torch.float64)
    labels = torch.randint(len(COUNTS), (samples,), generator=generator)
    return logits.to(dtype), labels


@every_loss
def test_it_says_where_it_is_published(name: str) -> None:
    reference = losses.find(name).reference
    assert name == "cross-entropy" or re.search(r"\b(19|20)\d\d\b", reference)
    assert (registry.find("losses", name).reference or "") == reference


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_has_one_finite_value_for_every_image(name: str, dtype: torch.dtype) -> None:
    logits, labels = batch(dtype)
    value = built(name)(logits, labels)
    assert value.shape == labels.shape
    assert value.dtype == dtype
    assert torch.isfinite(value).all()


@every_loss
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_outer_loss_gives_it_at_least_float32(name: str, dtype: torch.dtype) -> None:
    logits, labels = batch(dtype)
    assert OuterLoss(Outer(name=name), COUNTS)(logits, labels).dtype == torch.float32


@every_loss
def test_the_loss_of_an_image_does_not_depend_on_the_others(name: str) -> None:
    logits, labels = batch()
    loss = built(name)
    torch.testing.assert_close(loss(logits, labels)[3:7], loss(logits[3:7], labels[3:7]))


@every_loss
def test_its_gradient_is_that_of_finite_differences(name: str) -> None:
    logits, labels = batch(samples=3)
    loss = built(name)
    assert torch.autograd.gradcheck(lambda z: loss(z, labels), logits.requires_grad_())


@every_loss
def test_it_stores_nothing_and_has_nothing_to_train(name: str) -> None:
    loss = built(name)
    assert not loss.state_dict()
    assert not [*loss.parameters()]


@every_loss
def test_a_step_against_its_gradient_raises_the_logit_of_the_label(name: str) -> None:
    logits, labels = batch()
    (slope,) = torch.autograd.grad(built(name)(logits.requires_grad_(), labels).sum(), logits)
    assert (slope.gather(1, labels[:, None]) < 0).all()


@every_loss
def test_a_loss_that_adds_the_prior_is_least_at_the_same_logits_plus_a_constant(name: str) -> None:
    """Its minimum over the logits of one example moves with the counts; others do not."""
    loss, zeros = built(name), torch.zeros(1, len(COUNTS), dtype=torch.float64)
    prepared = loss.shifted(zeros)
    assert bool((prepared == zeros).all()) != loss.adds_prior


# Plug-ins


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of a user with the loss of the example."""
    (tmp_path / "losses").mkdir()
    (tmp_path / "losses" / "own.py").write_bytes(EXAMPLE.read_bytes())
    monkeypatch.setenv("TAET_PLUGINS", str(tmp_path))
    return tmp_path


TRAIN = (
    "train at --outer vector-scaling --data.max-count 20 --model resnet8 --epochs 1 "
    "--threat.steps 1 --monitor-steps 1 --threads 1"
)


@pytest.mark.usefixtures("plugins")
def test_a_loss_of_a_user_is_listed_with_its_paper(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "losses"]) == 0
    shown = capsys.readouterr().out
    assert "vector-scaling    logits are divided and shifted by class" in shown
    assert "Kini et al., NeurIPS 2021" in shown


@pytest.mark.usefixtures("plugins")
def test_a_loss_of_a_user_is_a_choice_of_the_command_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["train", "--help"]) == 0
    assert "logit-adjustment|vector-scaling" in "".join(capsys.readouterr().out.split())


def test_a_run_knows_the_code_of_its_loss(
    plugins: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = plugins / "run"
    assert main([*TRAIN.split(), "--out", str(folder)]) == 0
    source = plugins / "losses" / "own.py"
    assert RunFolder(folder).record.code == {"outer loss": file_sha256(source)}
    source.write_text(source.read_text().replace("0.3, 1.0", "0.2, 1.0"))
    (folder / "done").unlink()
    assert main(["train", "--resume", str(folder)]) == 2
    assert "the plug-in of the outer loss is not the file that" in capsys.readouterr().err


@pytest.mark.usefixtures("plugins")
def test_the_example_is_the_formula_of_vector_scaling() -> None:
    logits, labels = batch()
    counts = COUNTS.clamp(min=1)
    scaled = logits / (counts.max() / counts) ** 0.3 + (counts / counts.sum()).log()
    expected = torch.nn.functional.cross_entropy(scaled, labels, reduction="none")
    torch.testing.assert_close(built("vector-scaling")(logits, labels), expected)


def test_an_unknown_loss_is_refused_with_the_nearest_match() -> None:
    with one_line(r"unknown outer loss 'ballanced-softmax'; allowed: .*mean 'balanced-softmax'\?"):
        Outer(name="ballanced-softmax")


def test_a_loss_that_was_there_in_training_may_be_a_plug_in() -> None:
    with one_line(r"unknown outer loss 'vs'.*is it a plugin\? name its folder in TAET_PLUGINS"):
        Outer(name="vs")


def test_another_value_than_a_text_is_refused_with_the_names() -> None:
    with one_line("outer name: got 3; allowed: balanced-softmax, class-balanced, cross-entropy"):
        Outer(name=3)  # type: ignore[arg-type]


def test_a_file_without_a_label_loss_is_refused(plugins: Path) -> None:
    (plugins / "losses" / "none.py").write_text("NAMES = {'none': 'a file without any loss'}\n")
    with one_line("got 0 label losses; allowed: one class that extends LabelLoss"):
        losses.find("none")


def test_a_loss_with_one_value_for_a_batch_is_refused(plugins: Path) -> None:
    (plugins / "losses" / "mean.py").write_text(
        "from taet.losses import LabelLoss\n"
        "NAMES = {'mean': 'a loss with one value for a batch'}\n"
        "class Mean(LabelLoss):\n"
        "    def forward(self, logits, labels):\n"
        "        return super().forward(logits, labels).mean()\n"
    )
    with pytest.raises(UserError, match=r"outer loss mean: got shape \(\) for 12 labels"):
        OuterLoss(Outer(name="mean"), COUNTS)(*batch())
