"""An attack of one's own is a column like any other, and cannot deceive the evaluation."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.calls import forget, one_line
from tests.evaluation.conftest import Evaluated


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Return a function that offers the attack `mine` with a body."""
    (tmp_path / "attacks").mkdir()
    monkeypatch.setenv("TAET_PLUGINS", str(tmp_path))

    def put(body: str) -> None:
        forget("attacks", tmp_path / "attacks" / "mine.py")
        lines = (
            "import torch",
            'NAMES = {"mine": "of my own"}',
            "def mine(model, x, y, *, eps):",
            f"    {body}",
        )
        (tmp_path / "attacks" / "mine.py").write_text("\n".join(lines))

    return put


@pytest.mark.sample(3)
@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return x + 2 * eps", "mine: .* images left the ball"),
        ("x.copy_(torch.rand_like(x)); return x", "mine: .* images left the ball"),
        ("return x[:1]", "attack 'mine': returned shape .*; allowed: images in the shape of x"),
        ("raise ValueError('no')", r"mine\.py: mine: ValueError: no"),
        (
            "next(model.parameters()).data.add_(1); return x",
            "attack 'mine': changed .* of the model",
        ),
    ],
)
def test_what_it_must_not_do_is_one_line(
    evaluated: Evaluated, write: Callable[[str], None], body: str, message: str
) -> None:
    write(body)
    before = evaluated("pgd-5")
    with one_line(message):
        evaluated("mine")
    assert (
        evaluated("pgd-5").column("pgd-5").correct.tolist()
        == before.column("pgd-5").correct.tolist()
    )


def test_its_draws_are_those_of_the_seed(
    evaluated: Evaluated, write: Callable[[str], None]
) -> None:
    write("return (x + eps * torch.randn_like(x).sign()).clamp(0, 1)")
    torch.manual_seed(1)
    first = evaluated("mine").column("mine")
    torch.manual_seed(2)
    state = torch.random.get_rng_state()
    np.testing.assert_array_equal(evaluated("mine").column("mine").predictions, first.predictions)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_another_text_is_another_attack(
    evaluated: Evaluated, write: Callable[[str], None], tmp_path: Path
) -> None:
    write("return (x + eps * torch.randn_like(x).sign()).clamp(0, 1)")
    evaluated("mine", out=tmp_path / "card")
    write("return x")
    card = evaluated("mine", out=tmp_path / "card")
    assert (card.column("mine").predictions == card.column("clean").predictions).all()
