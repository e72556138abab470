"""Adversarial robustness under long-tailed data: train, attack, report. Importing this does not
import torch."""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

_LAZY = {
    "compare": "taet.experiments.compare",
    "train": "taet.training",
    "resume": "taet.training",
    "evaluate": "taet.evaluation",
    "plan": "taet.experiments.own_choices",
    "results": "taet.report.results",
    "Results": "taet.report.results",
    "Card": "taet.evaluation",
    "ResultCard": "taet.evaluation",
    "predict": "taet.deployment",
    "export": "taet.deployment",
    "load": "taet.deployment",
}
_FOLDERS = [
    "attacks",
    "data",
    "deployment",
    "evaluation",
    "experiments",
    "losses",
    "methods",
    "metrics",
    "models",
]
_FOLDERS += ["protocols", "report", "settings", "training"]

if TYPE_CHECKING:
    from taet.deployment.export import export as export
    from taet.deployment.predict import predict as predict
    from taet.deployment.trained_model import load as load
    from taet.evaluation.evaluate import evaluate as evaluate
    from taet.experiments.compare import compare as compare
    from taet.experiments.own_choices import plan as plan
    from taet.report.results import results as results
    from taet.training.train import resume as resume
    from taet.training.train import train as train


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    if name in _FOLDERS:
        return importlib.import_module(f"taet.{name}")
    raise AttributeError(f"module 'taet' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY, *_FOLDERS])
