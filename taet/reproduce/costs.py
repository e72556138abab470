"""The estimated cost of a cell on one CPU core, from measured seconds of an epoch, of methods and of attacks."""

from __future__ import annotations

import functools
from typing import TypedDict

from taet import methods
from taet.evaluation.packing import Json
from taet.reproduce.cell_store import Store, StoredCell, attacks_on
from taet.reproduce.manifest import FOLDER, read_toml
from taet.settings import Threat, to_json
from taet.training.folder import RunFolder


class NetworkCost(TypedDict):
    """A measured epoch of AT."""

    seconds: float
    images: int
    cores: int


class CostsFile(TypedDict):
    """costs.toml."""

    without_steps: list[str]
    networks: dict[str, NetworkCost]
    methods: dict[str, float]
    attacks: dict[str, float]


@functools.cache
def costs() -> CostsFile:
    """The measured costs."""
    found: CostsFile = read_toml(FOLDER / "costs.toml", CostsFile)
    return found


def time_ratio(settings: Json) -> float | None:
    """Return the time of an epoch relative to AT with 10 steps, from the settings of a run; None if not measured.

    s x (clean epoch) + (1 - s) x (adversarial epoch) x (steps + 1)/11, with s the share of clean epochs
    """
    known, name = costs()["methods"], settings["method"]
    if name not in known or settings.get("training", {}).get("awp"):
        return None
    usual = to_json(methods.find(name).Config())
    own = {**usual, **(settings.get("settings") or {})}
    label = name if own.get("variant") == usual.get("variant") else f"{name} {own['variant']}"
    if own.get("base") != usual.get("base") or label not in known:
        return None
    clean, measured_share, share = known["standard"], usual.get("clean_share", 0.0), own.get("clean_share", 0.0)
    attacked = (known[label] - measured_share * clean) / (1 - measured_share)
    if name not in costs()["without_steps"]:
        attacked *= (settings.get("threat", {}).get("steps", Threat().steps) + 1) / (Threat().steps + 1)
    return float(share * clean + (1 - share) * attacked)


def seconds_left(store: Store, one: StoredCell) -> float | None:
    """Return the seconds of one core that a cell still needs; None if its network was never measured.

    epochs x images x (seconds of AT per image) x (epoch over AT's) + test images x (seconds of the missing attacks)
    """
    run, known = one.cell.run, costs()
    if run is None or one.state == "done":
        return 0.0
    network, facts = known["networks"].get(run.model.name), store.planner.facts_of(run.data)
    if network is None or facts is None:
        return None
    sizes = facts.sizes
    image = network["seconds"] / network["images"] * network["cores"]
    ratio = time_ratio(to_json(run))
    if ratio is None:  # a setting that was not measured
        ratio = known["methods"].get(run.method, 1.0) * (run.threat.steps + 1) / (Threat().steps + 1)
    is_trained = RunFolder(one.cell.folder).is_done  # a committed card has no weights, so its run is trained again
    epochs = 0 if is_trained else run.training.epochs * sizes["train"]
    left = [attack for attack in one.attacks if not is_trained or attack not in attacks_on(one.card)]
    missing = [attack.removeprefix("adaptive-").partition(":")[0] for attack in left]
    attacks = sum(known["attacks"].get(attack, 0.0) for attack in missing)
    reference = known["networks"]["resnet8"]
    wider = image / (reference["seconds"] / reference["images"])
    return epochs * image * ratio + sizes["test"] * attacks * wider
