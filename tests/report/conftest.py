"""Cards of three methods on ten classes, made without models, and one small run that was
trained."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import taet
from taet import methods, protocols, report
from taet.card.card import ResultCard
from taet.card.column import Column
from taet.settings import Run, override
from tests.report.made import MakeCard, Page

SKILLS = {"at": 0.45, "at-bsl": 0.55, "taet": 0.6}
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
ATTACKS = {"clean": 1.0, "fgsm": 0.7, "pgd-20": 0.6, "autoattack-10": 0.55, "autoattack": 0.5}
EPS = 8 / 255


def counts(num_classes: int, largest: int) -> np.ndarray:
    shares = 10.0 ** -(np.arange(num_classes) / max(num_classes - 1, 1))
    return np.maximum(1, np.round(largest * shares)).astype(np.int64)


def build_card(
    method: str, seed: int = 0, names: tuple[str, ...] = NAMES, **changes: Any
) -> ResultCard:
    """Each attack breaks more than the one before; rare classes are right less often; errors go to
    common classes."""
    train, rng = counts(len(names), 140), np.random.default_rng([seed, *method.encode()])
    labels = np.repeat(np.arange(len(names)), counts(len(names), 90))
    chance = (0.35 + SKILLS.get(method, 0.5) * (train / train.max()) ** 0.25)[labels].clip(0, 0.97)
    draw, wrong = (
        rng.random(len(labels)),
        rng.choice(len(names), len(labels), p=train / train.sum()),
    )
    wrong = np.where(wrong == labels, (labels + 1) % len(names), wrong)
    columns = []
    for attack, share in ATTACKS.items():
        right, ball = draw < chance * share, {"norm": "linf", "eps": EPS, "bounded": True}
        ball |= {"parameters": {"steps": 20, "step_size": EPS / 8, "seed": seed}}
        ball = (
            {"norm": None, "eps": None, "bounded": False, "parameters": {}}
            if attack == "clean"
            else ball
        )
        columns.append(
            Column(name=attack, correct=right, predictions=np.where(right, labels, wrong), **ball)
        )
    card: dict[str, Any] = {
        **{"method": method, "title": f"{method} in words", "protocol": "taet", "seed": seed},
        "threat": {"norm": "linf", "eps": EPS},
        "model": {
            "name": "small",
            "weights_sha256": f"{seed + 10:064x}",
            "selection": "last",
            "epoch": 12,
        },
        "data": {"name": "digits-lt", "class_names": list(names), "test_sha256": "ab" * 32}
        | {"train_class_counts": train.tolist(), "imbalance_ratio": train.max() / train.min()},
        **{"batch_size": 250, "labels": labels, "columns": tuple(columns)},
        **{"created": "2026-01-01T00:00:00+00:00", "command": f"taet evaluate runs/{method}"},
    }
    return ResultCard(**(card | changes))


@pytest.fixture(scope="session")
def make_card() -> Callable[..., ResultCard]:
    return build_card


@pytest.fixture(scope="session")
def cards(make_card: Callable[..., ResultCard]) -> dict[str, ResultCard]:
    return {method: make_card(method) for method in SKILLS}


@pytest.fixture(scope="session")
def run(tiny: Callable[..., Run], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with its curve and its card."""
    folder = tmp_path_factory.mktemp("trained") / "at"
    taet.train(tiny("at", {"training.monitor_every": 1}), out=folder)
    taet.evaluate(folder, attacks=["clean", "fgsm", "curve-steps"])
    return folder


@pytest.fixture(scope="session")
def page(cards: dict[str, ResultCard], tmp_path_factory: pytest.TempPathFactory) -> Page:
    """The page of three methods."""
    return Page(report.write(cards.values(), tmp_path_factory.mktemp("page") / "report.html"))


@pytest.fixture(scope="session")
def of_run(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Page:
    """The page of a trained run."""
    return Page(report.write(run, tmp_path_factory.mktemp("page") / "report.html"))


@pytest.fixture
def trained(make_card: MakeCard) -> MakeCard:
    """Make the card of a run of a protocol with some settings changed."""

    def make(
        method: str = "at",
        seed: int = 0,
        /,
        protocol: str = "taet",
        about: Any = (),
        **changes: Any,
    ) -> ResultCard:
        changes = {name.replace("__", "."): value for name, value in changes.items()}
        own = {
            name.removeprefix("method."): changes.pop(name)
            for name in [*changes]
            if name.startswith("method.")
        }
        run = override(protocols.start(protocol, method), {**changes, "seed": seed})
        run = override(run, {"settings": override(methods.find(method).Config(), own)})
        card = make_card(
            method,
            seed,
            run={"config": json.loads(json.dumps(run.model_dump()))},
            protocol=protocol,
        )
        weights = f"{abs(hash((method, seed, protocol, *changes.items(), *own.items()))):064x}"
        model = {
            **card.model,
            "selection": run.training.selection,
            "weights_sha256": weights[:64],
            **dict(about),
        }
        return card.changed(model=model)

    return make
