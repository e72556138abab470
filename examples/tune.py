"""Tune every method with the same number of trials, on validation images alone; then look at the
test images once.

    pip install optuna
    python examples/tune.py --trials 20 --out runs/tuned

Optuna proposes settings (ask), a run is trained with them, and its balanced accuracy under PGD-20
on the validation images is the answer (tell). Trials are kept in OUT, so the same call continues a
search that stopped. In the end the methods are trained with their best settings and compared on the
test images. Each run records the number of trials (`training.tuned`), which cards and tables show.
Two rules keep such a comparison fair: as many trials for every method, and no test image before the
last step.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import taet
from taet import protocols
from taet.settings import Run, override

Space = Mapping[str, Callable[[Any], Any]]
"""By dotted name of a setting: how a trial of Optuna draws its value."""

DATA = {"data.imbalance_ratio": 10.0, "data.validation": 0.2, "data.test": "balanced"}
SHARED: dict[str, Any] = {
    "model.name": "resnet8",
    "threat.eps": 0.1,
    "threat.step_size": 0.025,
    "training.epochs": 20,
}
LR = {"training.lr": lambda trial: trial.suggest_float("training.lr", 0.01, 0.3, log=True)}
SPACES: dict[str, Space] = {
    "at": LR,
    "trades": {**LR, "method.beta": lambda trial: trial.suggest_float("method.beta", 1.0, 10.0)},
}
ATTACK = "pgd-20"


def run_of(method: str, settings: Mapping[str, Any]) -> Run:
    """Return the run of a method; `method.*` are its own settings."""
    return override(protocols.taet(method), {**DATA, **SHARED, **settings})


def value(run: Run, folder: Path) -> float:
    """Train a run and return its balanced accuracy under attack on the validation images."""
    result, images = taet.train(run, out=folder), taet.data.load(run.data).validation
    assert images is not None, "DATA holds out validation images"
    card = taet.evaluate(
        result.model,
        images.images,
        images.labels,
        attacks=[ATTACK],
        eps=run.threat.eps,
    )
    return card.summary(ATTACK).balanced


def search(method: str, space: Space, trials: int, out: Path, seed: int) -> dict[str, Any]:
    """Return the best settings of a method after `trials` trials, which `out` keeps."""
    import optuna  # pip install optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    out.mkdir(parents=True, exist_ok=True)
    journal = optuna.storages.journal.JournalFileBackend(str(out / "trials.journal"))
    study = optuna.create_study(
        study_name=method,
        storage=optuna.storages.JournalStorage(journal),
        direction="maximize",
        load_if_exists=True,
    )
    while (number := sum(trial.state.is_finished() for trial in study.trials)) < trials:
        # what follows is the same after an interruption
        study.sampler = optuna.samplers.TPESampler(seed=seed + number)
        trial = study.ask()
        settings = {name: draw(trial) for name, draw in space.items()}
        study.tell(trial, value(run_of(method, settings), out / f"{method}-{trial.number:04}"))
        print(f"{method}: trial {number + 1} of {trials}, best {100 * study.best_value:.1f}")
    return dict(study.best_params)


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Tune and compare the methods; return their balanced accuracy under attack on the test
    images."""
    parser = argparse.ArgumentParser(
        description="Tune methods on validation images, and compare them on test images."
    )
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("runs/tuned"))
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    best = {
        name: search(name, space, given.trials, given.out, given.seed)
        for name, space in SPACES.items()
    }
    found = {}
    for name, settings in best.items():
        run = run_of(name, {**settings, "training.tuned": given.trials})
        folder = given.out / f"{name}-best-of-{given.trials}"
        result = taet.resume(folder) if folder.exists() else taet.train(run, out=folder)
        if result.run.data != run.data:
            raise SystemExit(f"{folder} holds a run on other data; choose another --out")
        card = taet.evaluate(result.folder, attacks=["clean", ATTACK])
        found[name] = card.summary(ATTACK).balanced
        print(
            f"{name} with {settings}: {100 * found[name]:.1f} % of the test images under {ATTACK}"
        )
    return found


if __name__ == "__main__":
    main()
