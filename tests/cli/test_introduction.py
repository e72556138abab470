"""What `taet train` says before it begins."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from taet.cli.train import introduction, read
from taet.methods.harl import Harl
from taet.settings import Run
from taet.training.trainer import Trainer


@pytest.mark.parametrize(
    ("method", "settings", "warned"),
    [
        ("harl", {"training.batch_size": 4}, True),
        ("taet", {"training.batch_size": 4}, True),
        ("harl", {"training.batch_size": 32}, False),  # holds most of the ten classes
        ("harl", {"training.batch_size": 4, "settings": Harl.Config(absent="skip")}, False),
        ("at", {"training.batch_size": 4}, False),
    ],
)
def test_a_batch_that_misses_most_classes_is_told_where_the_loss_counts_them_as_zero(
    method: str, settings: dict[str, Any], warned: bool, tiny: Callable[..., Run], tmp_path: Path
) -> None:
    trainer = Trainer(tiny(method, settings), tmp_path, model=None, dataset=None, progress=None)
    assert ("a batch of 4 misses 7 of 10 classes on average" in introduction(trainer, {})) == warned


@pytest.mark.parametrize(
    ("settings", "warned"),
    [
        ({"training.selection": "best-validation", "data.validation": 0.2}, True),
        ({"training.selection": "best-validation", "data.validation": 0.6, "data.max_count": 114}, False),
        ({"training.selection": "last", "data.validation": 0.2}, False),
    ],
)
def test_an_epoch_that_few_validation_images_choose_is_told(
    settings: dict[str, Any], warned: bool, tiny: Callable[..., Run], tmp_path: Path
) -> None:
    settings = {"data.imbalance_ratio": 1.0} | settings
    trainer = Trainer(tiny("at", settings), tmp_path, model=None, dataset=None, progress=None)
    said = introduction(trainer, {})
    assert ("so chance may decide which epoch is best; --selection last" in said) == warned
    if warned:
        assert "on 40 validation images, 4 of '0', a balanced accuracy has a standard error of up to 7.9 points" in said


@pytest.mark.parametrize(
    ("words", "network"),
    [
        ("at", "resnet8"),
        ("at --data cifar10-lt", "resnet8"),
        ("at --model resnet18", "resnet18"),
        ("at --protocol taet", "resnet18"),
        ("at --protocol reat --data cifar10-lt", "resnet18"),
    ],
)
def test_the_network_suits_images_and_machine_unless_it_or_its_protocol_is_named(
    words: str, network: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    run, decided = read(words.split()).planned()
    assert run.model.name == network
    assert list(decided) == (["model.name"] if network == "resnet8" else [])
    assert all("--protocol taet has resnet18" in made.why for made in decided.values())
