"""The distance between the examples of consecutive epochs, against its definition."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from taet.data import Dataset, Split
from taet.settings import Run, override
from taet.training import resume, train
from taet.training.drift import Drift
from taet.training.folder import RunFolder
from taet.training.trainer import Trainer


def split() -> Split:
    labels = np.array([0, 0, 0, 1, 2, 2])
    images = np.zeros((6, 4, 4, 1), np.uint8)
    return Dataset.from_arrays(images, labels, images, labels).train


def test_it_is_the_mean_distance_per_class() -> None:
    drift = Drift(split(), 2, torch.device("cpu"))
    assert drift.labels.tolist() == [0, 0, 1, 2, 2]
    moves = torch.tensor([0.1, 0.3, 0.0, 0.2, 0.2])
    seen = iter([torch.zeros(5), moves])

    def examples() -> Callable[..., Tensor]:
        shifts = iter(next(seen).split(2))
        return lambda _, __, x, ___: x + next(shifts).view(-1, 1, 1, 1)

    assert drift.measure(examples(), batch_size=2) is None
    found = drift.measure(examples(), batch_size=2)
    assert found == pytest.approx([0.2 * 4, 0, 0.2 * 4], rel=1e-6)  # sixteen pixels moved by d are 4 d apart
    assert drift.quartiles is not None
    assert np.array(drift.quartiles) == pytest.approx(np.array([[0.6, 0.8, 1.0], [0, 0, 0], [0.8] * 3]), rel=1e-6)


def test_nothing_is_attacked_where_nothing_is_asked_for() -> None:
    def never(*_: object) -> Tensor:
        raise AssertionError("called")

    assert Drift(split(), 0, torch.device("cpu")).measure(never, batch_size=2) is None


def rows(folder: Path) -> list[list[float] | None]:
    return [json.loads(line)["distance"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.sample(2)
@pytest.mark.parametrize("bn_mode", ["eval", "train"])
def test_a_run_records_it_and_goes_on_with_it(
    bn_mode: str, tiny: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tiny("taet", {"training.epochs": 5, "training.distance_images": 3, "threat.bn_mode": bn_mode})
    train(run, out=tmp_path / "whole")
    found = rows(tmp_path / "whole")
    assert found[0] is None
    epochs = RunFolder(tmp_path / "whole").metrics
    assert epochs[0].quartiles is None
    assert epochs[4].quartiles is not None
    assert epochs[4].quartiles.shape == (10, 3)
    assert found[1] == [0.0] * 10, "images are their own examples in the clean stage"
    assert all(distance is not None and min(distance) > 0 for distance in found[2:])
    train(override(run, {"training.distance_images": 0}), out=tmp_path / "plain")
    assert rows(tmp_path / "plain") == [None] * 5

    def weights(name: str) -> bytes:
        return b"".join(t.numpy().tobytes() for t in load_file(tmp_path / name / "model.safetensors").values())

    assert weights("whole") == weights("plain"), "measuring changes nothing"
    save = Trainer.save

    def stop(self: Trainer) -> None:
        save(self)
        if self.epoch == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "save", stop)
        with pytest.raises(KeyboardInterrupt):
            train(run, out=tmp_path / "cut")
    resume(tmp_path / "cut")
    assert rows(tmp_path / "cut") == found
