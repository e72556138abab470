"""An attack whose examples are made on another run: ATTACK@RUN."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from taet import protocols, train
from taet.attacks import fgsm
from taet.errors import UserError
from taet.evaluation import ResultCard, evaluate
from taet.evaluation.runner import Runner, as_unit
from taet.settings import override
from taet.training.runs import load_run

EPS = 0.1
CHANGES = {
    "model.name": "resnet8",
    "data.max_count": 40,
    "data.test_max_count": 20,
    "training.epochs": 4,
    "training.batch_size": 16,
    "training.monitor_every": 0,
    "training.threads": 1,
    "threat.eps": EPS,
    "threat.steps": 1,
    "evaluation.batch_size": 20,
    "evaluation.step_size": EPS / 8,
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two runs that differ in their seed alone, on 78 test images: four batches."""
    place = tmp_path_factory.mktemp("runs")
    settings = [override(protocols.taet("at"), CHANGES | {"seed": seed}) for seed in range(2)]
    first, second = (train(run, out=place / name).folder for name, run in zip("ab", settings, strict=True))
    return first, second


def test_a_column_is_what_a_naive_call_gives(runs: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    target, source = runs
    card = evaluate(target, attacks=["fgsm", f"fgsm@{source}"])
    column = card.column("fgsm@b")
    _, model, data, _ = load_run(target)
    _, other, _, _ = load_run(source)
    x, y = as_unit(np.asarray(data.test.images)), torch.from_numpy(data.test.labels)
    x_adv = torch.cat([fgsm(other, a, b, eps=EPS) for a, b in zip(x.split(20), y.split(20), strict=True)])
    with torch.no_grad():
        np.testing.assert_array_equal(column.predictions, model(x_adv).argmax(1).numpy())
    assert (column.norm, column.eps, column.bounded) == ("linf", EPS, True)
    assert column.parameters["source"] == {
        "name": "b",
        "weights_sha256": evaluate(source, attacks="clean").model["weights_sha256"],
    }
    assert column.is_transfer
    assert not column.ordinary
    assert list(card.worst_case().parts) == ["fgsm"], "it is no attack on the model itself"
    assert ResultCard.load(target).to_json() == card.to_json()
    monkeypatch.setattr(Runner, "attack", None)  # the second time nothing is run
    assert evaluate(target, attacks=[f"fgsm@{source}"]).column("fgsm@b").seconds == column.seconds


def test_the_attacked_model_itself_is_refused(runs: tuple[Path, Path]) -> None:
    with pytest.raises(UserError, match=f"attack @{runs[0]}: got the attacked model itself; allowed: another run"):
        evaluate(runs[0], attacks=[f"pgd-10@{runs[0]}"])


def test_a_run_of_other_classes_or_other_weights_is_refused(runs: tuple[Path, Path], tmp_path: Path) -> None:
    other = override(protocols.taet("at"), CHANGES | {"data.name": "digits-lt", "seed": 3})
    folder = train(other, out=tmp_path / "other").folder
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(UserError, match="was changed or damaged"):
        evaluate(runs[0], attacks=[f"fgsm@{folder}"])
