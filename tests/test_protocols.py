"""The two protocols, number by number, as they are published."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from taet import config, methods, protocols, registry
from taet.config import Run
from taet.data import load
from taet.errors import UserError


def test_taet_is_the_default() -> None:
    run = protocols.start("taet", "harl")
    assert dataclasses.replace(run, method="at") == Run()
    assert (run.method, run.protocol) == ("harl", "taet")
    training, threat = run.training, run.threat
    assert (training.epochs, training.batch_size, training.lr) == (100, 128, 0.1)
    assert (training.momentum, training.weight_decay) == (0.9, 5e-4)
    assert [share * 100 for share in training.milestones] == [75, 90]
    assert training.selection == "last"
    assert (threat.eps, threat.step_size, threat.steps) == (8 / 255, 2 / 255, 10)
    assert (threat.start, threat.bn_mode) == ("gaussian", "eval")
    assert (run.data.test, run.data.validation) == ("long-tailed", 0)
    assert run.evaluation.step_size == 1 / 255


def test_reat() -> None:
    run = protocols.start("reat", "at")
    training, threat = run.training, run.threat
    assert run.protocol == "reat"
    assert (training.epochs, training.batch_size, training.lr) == (80, 128, 0.1)
    assert (training.momentum, training.weight_decay) == (0.9, 5e-4)
    assert [share * 80 for share in training.milestones] == [60, 75]
    assert training.selection == "best-validation"
    assert (threat.eps, threat.step_size, threat.steps) == (8 / 255, 2 / 255, 10)
    assert (threat.start, threat.bn_mode) == ("uniform", "eval")
    assert (run.data.test, run.data.validation) == ("balanced", 0.1)
    assert run.evaluation.step_size == 2 / 255
    assert {"pgd-20", "pgd-100", "autoattack"} <= set(run.evaluation.attacks)


def test_every_protocol_keeps_the_method_and_says_its_own_name() -> None:
    for name, start in protocols.PROTOCOLS.items():
        run = start("at-bsl")
        assert (run.method, run.protocol) == ("at-bsl", name)
        assert run.settings in (None, methods.find("at-bsl").Config())
        assert (start.__doc__ or "").strip()


@pytest.mark.parametrize("name", registry.entries("methods"))
def test_official_is_each_method_with_its_own_settings(name: str) -> None:
    run, cls = protocols.official(name), methods.find(name)
    assert run.protocol == "official"
    assert isinstance(run.settings, cls.Config)
    for path, value in cls.official.items():
        found = run
        for key in path.replace("method.", "settings.").split("."):
            found = getattr(found, key)
        assert found == value, path


def test_an_unknown_protocol_is_refused_with_the_nearest_match() -> None:
    with pytest.raises(UserError, match=r"unknown protocol 'teat'; allowed: official, reat, taet; did you mean"):
        protocols.start("teat", "at")


def test_the_ratio_of_a_protocol_is_for_sets_that_are_made_long_tailed(tmp_path: Path) -> None:
    labels = np.repeat(np.arange(2), (40, 8))
    images = np.zeros((48, 8, 8), np.uint8)
    path = tmp_path / "own.npz"
    np.savez(path, train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    settings = config.to_json(protocols.reat("at").data)
    assert load(**{**settings, "name": str(path), "validation": 0.0}).class_counts.tolist() == [40, 8]
    assert load(**{**settings, "validation": 0.0}).imbalance_ratio > 40
