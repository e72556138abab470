"""The tables of a cost measurement, beside what the two papers print: for the command line and the documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from taet.experiments import cost_model
from taet.experiments.cost_model import CostModel, by_line, by_multiplications

Measurement: TypeAlias = Mapping[str, Any]
"""What `taet.experiments.cost.measure` returns, or a part of it."""
PARTS = {
    "forward": "F: forward pass in train mode, with the loss",
    "backward": "B: backward pass to the weights, and all else of a clean step, its update too",
    "attack_forward": "F': forward pass of the attack, on the folded view",
    "attack_backward": "B_adv: backward pass to the images, and all else of a step of the attack",
}


class CostTable(NamedTuple):
    """Rows of text under heads of text; the first column says what a row is."""

    title: str
    heads: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


def tables(found: Measurement) -> list[CostTable]:
    """Return the tables of what `taet.experiments.cost.measure` found; numbers as median (least–largest)."""
    milliseconds = [(text, _shown(found["model"][name], 2, 1000)) for name, text in PARTS.items()]
    parts = CostTable("Parts of a step", ("", "milliseconds of a batch"), milliseconds)
    made = (_eta(found), parts, _clean_epochs(found), _memory(found), _curve(found), _methods(found))
    return [table for table in made if table.rows]


def setting(found: Measurement) -> str:
    """Return how it was measured, in one line."""
    shape, device = " x ".join(map(str, found["image_shape"])), found["environment"]["device"]
    threads = f", {found['threads']} thread{'s' * (found['threads'] > 1)}" if device.startswith("cpu") else ""
    return (
        f"{found['network']}, {shape}, {found['classes']} classes, {found['images']:,} images an epoch, batches of "
        f"{found['batch_size']}, {found['precision']}, {device}{threads}, torch "
        f"{found['environment']['versions']['torch']}, load {found['load'][0]:.1f}; medians of {found['rounds']} "
        "rounds (least–largest)"
    )


def _shown(measured: Measurement, digits: int = 3, factor: float = 1.0) -> str:
    median, low, high = (f"{factor * value:.{digits}f}" for value in (measured["median"], *measured["spread"]))
    return f"{median} ({low}–{high})"


def _saved(eta: float | Measurement) -> str:
    """Return what a cost of `eta` saves in per cent, whose sign stands in the head."""
    if isinstance(eta, float):
        return f"{100 * (1 - eta):.1f}"
    low, high = eta["spread"]
    return f"{_saved(eta['median'])} ({_saved(high)}–{_saved(low)})"


def _both_saved(model: CostModel[float], clean_share: float) -> tuple[str, str]:
    """Return what is saved by equation 12 and by equation 13."""
    return _saved(model.eta(clean_share)), _saved(model.printed_eta(clean_share))


def _eta(found: Measurement) -> CostTable:
    """gamma, rho and eta, of the paper and measured, at the steps and clean epochs of this measurement."""
    steps, share = found["steps"], found["clean_epochs"] / found["epochs"]
    seconds, model, measured = cost_model.EPOCH_SECONDS, found["model"], found["measured_eta"]
    published = {
        "TAET's gamma": CostModel(cost_model.GAMMA, steps),
        "TAET's seconds per epoch, if of an adversarial one": by_line(seconds, steps),
        "the same, if means over its run": by_line(seconds, steps, cost_model.CLEAN_SHARE),
        "multiplications alone": by_multiplications(steps),
    }
    rows = [
        (name, *(f"{value:.3f}" for value in (m.gamma, m.rho, m.eta(share))), *_both_saved(m, share))
        for name, m in published.items()
    ]
    parts = [_shown(model[name]) for name in ("gamma", "rho", "eta")]
    return CostTable(
        f"TAET beside adversarial training: kappa = {steps}, {found['clean_epochs']} of {found['epochs']} epochs clean",
        ("", "gamma", "rho", "eta, eq. 12", "saved, %", "saved by eq. 13, %"),
        [
            *rows,
            ("predicted here, from F, B, F' and B_adv", *parts, _saved(model["eta"]), _saved(model["printed_eta"])),
            ("measured here, whole training steps", "", "", _shown(measured), _saved(measured), ""),
            ("predicted eta over measured eta", "", "", _shown(found["predicted_over_measured"]), "", ""),
        ],
    )


def _clean_epochs(found: Measurement) -> CostTable:
    paper, epochs = CostModel(cost_model.GAMMA, found["steps"]), found["epochs"]
    rows = [
        (str(entry["clean_epochs"]), _saved(entry["eta"]), *_both_saved(paper, entry["clean_epochs"] / epochs))
        for entry in found["by_clean_epochs"]
    ]
    heads = (f"T_ce, of {epochs} epochs", "saved, %, from the parts here", "TAET's gamma, eq. 12", "eq. 13")
    return CostTable("Share saved by T_ce clean epochs", heads, rows)


def _memory(found: Measurement) -> CostTable:
    epochs = f"that {found['clean_epochs']} of {found['epochs']} clean ones save"
    published = [
        ("held_mb", "held between steps: weights, optimiser, view, batch", None),
        ("clean_mb", "peak of a clean step", None),
        ("adversarial_mb", "peak of an adversarial step", None),
        ("extra_mb", "M_delta: their difference", cost_model.MEMORY_MB),
        ("xi_mb", f"xi: its mean over the epochs {epochs}", cost_model.XI_MB),
        ("images_mb", "b c h w d: one batch of images in float32", cost_model.image_megabytes()),
    ]
    rows = [
        (text, f"{found['memory'][name]:,.2f}", "" if paper is None else f"{paper:,.2f}")
        for name, text, paper in published
    ]
    return CostTable("Memory, 10^6 bytes", ("", "here", f"TAET, batches of {cost_model.BATCH_SHAPE[0]}"), rows)


def _curve(found: Measurement) -> CostTable:
    rows = []
    for point in found["curve"]:
        seconds = cost_model.EPOCH_SECONDS.get(point["steps"])
        published = ("", "") if seconds is None else (f"{seconds:.0f}", f"{seconds / cost_model.EPOCH_SECONDS[10]:.2f}")
        here = _shown(point["epoch_seconds"], 1), _shown(point["ratio"], 2), _shown(point["predicted_over_measured"], 2)
        rows.append((str(point["steps"]), *here, *published))
    ours, theirs = f"beside {found['steps']} steps", ("TAET's seconds", "beside its 10 steps")
    heads = ("PGD steps", "seconds per epoch", ours, "predicted over measured", *theirs)
    return CostTable("An epoch of adversarial training against PGD steps", heads, rows)


def _methods(found: Measurement) -> CostTable:
    rows = []
    for cost in found["costs"]:
        low, high = cost["spread"]
        passes = [f"{cost[name]:.2f}" for name in ("forwards", "backwards", "passes_ratio")]
        seconds = f"{cost['seconds_ratio']:.2f} ({low:.2f}–{high:.2f})", f"{cost['epoch_seconds']:.1f}"
        published = "" if cost["settings"] else _published(cost["name"])
        rows.append((" ".join([cost["name"], *map(str, cost["settings"].values())]), *passes, *seconds, published))
    heads = ("method", "forward", "backward", "passes", "seconds", "seconds per epoch", "REAT, table 14")
    return CostTable(f"Methods, mean over a run; passes and seconds beside PGD-{found['steps']} AT", heads, rows)


def _published(name: str) -> str:
    """Return seconds relative to AT's in the settings of REAT's table 14, least and largest, of a method in it."""
    settings = cost_model.REAT_EPOCH_SECONDS.values()
    ratios = [f"{seconds[name] / seconds['at']:.2f}" for seconds in settings if name in seconds]
    return "–".join(dict.fromkeys([min(ratios), max(ratios)])) if ratios else ""
