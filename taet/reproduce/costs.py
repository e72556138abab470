"""The estimated cost of a cell on one CPU core, from measured seconds of an epoch, of methods and of attacks."""

from __future__ import annotations

import functools
from typing import TypedDict

from taet.config import Threat
from taet.reproduce.cell_store import Store, StoredCell, attacks_on
from taet.reproduce.manifest import FOLDER, read_toml
from taet.training.folder import RunFolder


class NetworkCost(TypedDict):
    """A measured epoch of AT."""

    seconds: float
    images: int
    cores: int


class CostsFile(TypedDict):
    """costs.toml."""

    networks: dict[str, NetworkCost]
    methods: dict[str, float]
    attacks: dict[str, float]


@functools.cache
def costs() -> CostsFile:
    """The measured costs."""
    found: CostsFile = read_toml(FOLDER / "costs.toml", CostsFile)
    return found


def seconds_left(store: Store, one: StoredCell) -> float | None:
    """Return the seconds of one core that a cell still needs; None if its network was never measured.

    epochs x images x (seconds of AT per image) x (method over AT) x (steps + 1)/11 + test images x (seconds of the
    missing attacks)
    """
    run, known = one.cell.run, costs()
    if run is None or one.state == "done":
        return 0.0
    network = known["networks"].get(run.model.name)
    if network is None:
        return None
    facts = store.planner.facts_of(run.data)
    if facts is None:
        return None
    sizes = facts.sizes
    image = network["seconds"] / network["images"] * network["cores"]
    steps = (run.threat.steps + 1) / (Threat().steps + 1)
    trained = RunFolder(one.cell.folder).is_done or one.card is not None
    epochs = 0 if trained else run.training.epochs * sizes["train"]
    left = [attack for attack in one.attacks if attack not in attacks_on(one.card)]
    missing = [attack.removeprefix("adaptive-").partition(":")[0] for attack in left]
    attacks = sum(known["attacks"].get(attack, 0.0) for attack in missing)
    reference = known["networks"]["resnet8"]
    wider = image / (reference["seconds"] / reference["images"])
    return epochs * image * known["methods"].get(run.method, 1.0) * steps + sizes["test"] * attacks * wider
