"""Tables of a cost measurement next to the numbers of the two papers, for the command line and the documents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from taet.experiments import cost_model as paper
from taet.experiments.cost_model import CostModel, Measurement, line_gamma

GAMMAS = {
    "TAET's gamma": paper.GAMMA,
    "TAET's seconds per epoch, if of an adversarial one": line_gamma(paper.EPOCH_SECONDS),
    "the same, if means over its run": line_gamma(paper.EPOCH_SECONDS, paper.CLEAN_SHARE),
    "multiplications alone": paper.BY_MULTIPLICATIONS,
}
PARTS = {
    "forward": "F: forward pass in train mode, with the loss",
    "backward": "B: backward pass to the weights, and all else of a clean step, its update too",
    "attack_forward": "F': forward pass of the attack, on the folded view",
    "attack_backward": "B_adv: backward pass to the images, and all else of a step of the attack",
}
MEMORY = {
    "held_mb": ("held between steps: weights, optimiser, view, batch", ""),
    "clean_mb": ("peak of a clean step", ""),
    "adversarial_mb": ("peak of an adversarial step", ""),
    "extra_mb": ("M_delta: their difference", f"{paper.MEMORY_MB:,.2f}"),
    "xi_mb": ("xi: its mean over the epochs that {clean_epochs} of {epochs} clean ones save", f"{paper.XI_MB:,.2f}"),
    "images_mb": ("b c h w d: one batch of images in float32", f"{paper.image_megabytes():,.2f}"),
}


class CostTable(NamedTuple):
    """A table of texts with headings; the first column names the row."""

    title: str
    heads: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


def tables(found: Measurement) -> list[CostTable]:
    """Return the tables of a result of `taet.experiments.cost.measure`; numbers as median (least–largest)."""
    made = (_eta(found), _parts(found), _clean_epochs(found), _memory(found), _curve(found), _methods(found))
    return [table for table in made if table.rows]


def setting(found: Measurement) -> str:
    """Return the settings of the measurement in one line."""
    shape, device = " x ".join(map(str, found["image_shape"])), found["environment"]["device"]
    threads = f", {found['threads']} thread{'s' * (found['threads'] > 1)}" if device.startswith("cpu") else ""
    return (
        f"{found['network']}, {shape}, {found['classes']} classes, {found['images']:,} images an epoch, batches of "
        f"{found['batch_size']}, {found['precision']}, {device}{threads}, torch "
        f"{found['environment']['versions']['torch']}, load {found['load'][0]:.1f}; medians of {found['rounds']} "
        "rounds (least–largest)"
    )


def _shown(measured: Measurement, digits: int = 3, unit: Callable[[float], float] = float) -> str:
    """Return median (least–largest) in another unit."""
    low, high = sorted(map(unit, measured["spread"]))
    return f"{unit(measured['median']):.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"


def _percent_saved(eta: float) -> float:
    return 100 * (1 - eta)


def _predicted(gamma: float, steps: int, clean_share: float) -> list[str]:
    """Return gamma, rho and eta, and the savings in per cent by equations 12 and 13."""
    model = CostModel(gamma, steps)
    eta, printed = model.eta(clean_share), model.printed_eta(clean_share)
    return [*(f"{x:.3f}" for x in (gamma, model.rho, eta)), *(f"{_percent_saved(x):.1f}" for x in (eta, printed))]


def _eta(found: Measurement) -> CostTable:
    """Return gamma, rho and eta, published and measured, at the steps and clean epochs of this measurement."""
    steps, clean, epochs = (found[name] for name in ("steps", "clean_epochs", "epochs"))
    model, measured = found["model"], found["measured_eta"]
    here = [_shown(model[name]) for name in ("gamma", "rho", "eta")]
    saved = [_shown(model[name], 1, _percent_saved) for name in ("eta", "printed_eta")]
    return CostTable(
        f"TAET beside adversarial training: kappa = {steps}, {clean} of {epochs} epochs clean",
        ("", "gamma", "rho", "eta, eq. 12", "saved, %", "saved by eq. 13, %"),
        [
            *((text, *_predicted(gamma, steps, clean / epochs)) for text, gamma in GAMMAS.items()),
            ("predicted here, from F, B, F' and B_adv", *here, *saved),
            ("measured here, whole training steps", "", "", _shown(measured), _shown(measured, 1, _percent_saved), ""),
            ("predicted eta over measured eta", "", "", _shown(found["predicted_over_measured"]), "", ""),
        ],
    )


def _parts(found: Measurement) -> CostTable:
    rows = [(text, _shown(found["model"][name], 2, lambda seconds: 1000 * seconds)) for name, text in PARTS.items()]
    return CostTable("Parts of a step", ("", "milliseconds of a batch"), rows)


def _clean_epochs(found: Measurement) -> CostTable:
    steps, epochs, rows = found["steps"], found["epochs"], []
    for entry in found["by_clean_epochs"]:
        paper_saves = _predicted(paper.GAMMA, steps, entry["clean_epochs"] / epochs)[3:]
        rows.append((str(entry["clean_epochs"]), _shown(entry["eta"], 1, _percent_saved), *paper_saves))
    heads = (f"T_ce, of {epochs} epochs", "saved, %, from the parts here", "TAET's gamma, eq. 12", "eq. 13")
    return CostTable("Share saved by T_ce clean epochs", heads, rows)


def _memory(found: Measurement) -> CostTable:
    here = {name: f"{value:,.2f}" for name, value in found["memory"].items()}
    rows = [(text.format_map(found), here[name], theirs) for name, (text, theirs) in MEMORY.items()]
    return CostTable("Memory, 10^6 bytes", ("", "here", f"TAET, batches of {paper.BATCH_SHAPE[0]}"), rows)


def _curve(found: Measurement) -> CostTable:
    rows = []
    for point in found["curve"]:
        seconds, beside = paper.EPOCH_SECONDS.get(point["steps"]), paper.EPOCH_SECONDS[paper.STEPS]
        theirs = ("", "") if seconds is None else (f"{seconds:.0f}", f"{seconds / beside:.2f}")
        ratios = (_shown(point[name], 2) for name in ("ratio", "predicted_over_measured"))
        rows.append((str(point["steps"]), _shown(point["epoch_seconds"], 1), *ratios, *theirs))
    heads = ("PGD steps", "seconds per epoch", f"beside {found['steps']} steps", "predicted over measured")
    theirs = ("TAET's seconds", "beside its 10 steps")
    return CostTable("An epoch of adversarial training against PGD steps", (*heads, *theirs), rows)


def _methods(found: Measurement) -> CostTable:
    rows = []
    for cost in found["costs"]:
        low, high = cost["spread"]
        passes = [f"{cost[name]:.2f}" for name in ("forwards", "backwards", "passes_ratio")]
        seconds = f"{cost['seconds_ratio']:.2f} ({low:.2f}–{high:.2f})", f"{cost['epoch_seconds']:.1f}"
        # Seconds relative to AT's in the settings of REAT's table 14, least and largest.
        known = [] if cost["settings"] else [each for each in paper.REAT_EPOCH_SECONDS.values() if cost["name"] in each]
        ratios = sorted(f"{each[cost['name']] / each['at']:.2f}" for each in known)
        theirs = "–".join(dict.fromkeys([*ratios[:1], *ratios[-1:]]))
        rows.append((" ".join([cost["name"], *map(str, cost["settings"].values())]), *passes, *seconds, theirs))
    heads = ("method", "forward", "backward", "passes", "seconds", "seconds per epoch", "REAT, table 14")
    return CostTable(f"Methods, mean over a run; passes and seconds beside PGD-{found['steps']} AT", heads, rows)
