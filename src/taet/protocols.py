"""The protocols: settings that all methods share, so that a comparison compares only the methods.

The profile `official` uses the published settings of each method instead.
"""

import functools
import tomllib
from collections.abc import Callable
from pathlib import Path

from taet.errors import UserError, unknown
from taet.settings import Data, Evaluation, Model, Run, Threat, Training, override
from taet.settings.types import to_python


def taet(method: str = Run.default("method")) -> Run:
    """The protocol of TAET (CVPR 2025, arXiv:2503.01924): 100 epochs, weights of the last epoch,
    long-tailed test set.

    SGD 0.1 with momentum 0.9, weight decay 5e-4, divided by ten at 75 % and 90 %; Linf 8/255, 10
    steps of 2/255 from 0.001 N(0, 1). Start noise, momentum and the long-tailed test set are from
    its public code, not from the text.

    Example:
        >>> import taet
        >>> run = taet.protocols.taet("at-bsl")
        >>> run.training.epochs, run.threat.steps
        (100, 10)
    """
    return Run(method=method, protocol="taet")


def reat(method: str = Run.default("method")) -> Run:
    """The protocol of REAT (arXiv:2307.10205): 80 epochs, weights of the best validation epoch,
    balanced test set.

    SGD as in `taet`, divided by ten at 60 and 75 of 80; Linf 8/255, 10 steps of 2/255 from U(-eps,
    eps); no input normalisation; evaluation by PGD with step 2/255. The paper chose its epoch on
    the test set; `--selection best-test` does the same and is marked as a leak.

    Example:
        >>> import taet
        >>> run = taet.protocols.reat()
        >>> run.training.epochs, run.threat.start
        (80, 'uniform')
    """
    return Run(
        method=method,
        protocol="reat",
        data=Data(default_imbalance_ratio=50.0, test="balanced", validation=0.1),
        model=Model(normalize="none"),
        threat=Threat(start="uniform"),
        training=Training(epochs=80, milestones=(60 / 80, 75 / 80), selection="best-validation"),
        evaluation=Evaluation(
            attacks=("clean", "pgd-20", "pgd-100", "cw-linf-100", "autoattack"),
            step_size=2 / 255,
            cw_constant=None,
            cw_bounded=True,
        ),
    )


def official(method: str = Run.default("method")) -> Run:
    """Each method with its own published optimiser, schedule and attack, to approximate papers, not
    to compare methods.

    Other settings stay as in `taet`. A method without published settings is a `UserError`.

    Example:
        >>> from taet.protocols import official
        >>> run = official("trades")
        >>> run.training.epochs, run.training.lr
        (76, 0.1)
    """
    from taet import methods  # imported here because a listing of the protocols needs no method

    cls = methods.find(method)
    if not cls.official:
        got = f"got {method}, which has no settings of its own to take"
        allowed = (
            "a method that has (where one wraps another: that base method itself), or the "
            "protocols taet and reat"
        )
        raise UserError(f"protocol official: {got}; allowed: {allowed}")
    return override(Run(method=method, protocol="official", settings=cls.Config()), cls.official)


COLUMNS: dict[str, tuple[str, ...]] = {
    "taet": Evaluation.default("attacks"),
    "reat": (
        *(
            "clean",
            "pgd-20",
            "pgd-100",
            "cw-linf-100",
            "autoattack",
            "adaptive-pgd-20",
            "adaptive-pgd-100",
        ),
        *("pgd-l2-20", "pgd-l2-100", "cw-l2", "adaptive-pgd-l2-20", "adaptive-pgd-l2-100"),
    ),
}
"""Every column of a paper's robustness tables; by default runs of `reat` use those of its main
tables."""

PROTOCOLS: dict[str, Callable[[str], Run]] = {"taet": taet, "reat": reat, "official": official}


@functools.cache
def recipes() -> dict[str, tuple[str, dict[str, object]]]:
    """Return the title of every recipe, and its settings by their dotted names, lists as tuples.

    Example:
        >>> from taet.protocols import recipes
        >>> title, settings = recipes()["fast"]
        >>> settings["training.epochs"], settings["threat.steps"]
        (60, 2)
    """
    stored = tomllib.loads(Path(__file__).with_name("recipes.toml").read_text(encoding="utf-8"))
    return {
        name: (of.pop("title"), {key: to_python(value) for key, value in of.items()})
        for name, of in stored.items()
    }


def start(protocol: str, method: str = Run.default("method"), recipe: str | None = None) -> Run:
    """Return the run of `protocol` for `method`, with the settings of `recipe` if given.

    Example:
        >>> from taet.protocols import start
        >>> run = start("taet", "at-bsl", recipe="fast")
        >>> run.method, run.training.epochs
        ('at-bsl', 60)
    """
    if protocol not in PROTOCOLS:
        raise unknown("protocol", protocol, PROTOCOLS)
    if recipe is not None and recipe not in recipes():
        raise unknown("recipe", recipe, recipes())
    settings = {} if recipe is None else recipes()[recipe][1]
    return override(PROTOCOLS[protocol](method), settings)
