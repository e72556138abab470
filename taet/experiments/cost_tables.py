"""The tables of a measurement of cost, beside what the two papers print: for the command line and the documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from taet.experiments import cost_model
from taet.experiments.cost_model import CostModel, by_line, by_multiplications


class Table(NamedTuple):
    """Rows of text under heads of text; the first column says what a row is."""

    title: str
    heads: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


def tables(found: Mapping[str, Any]) -> list[Table]:
    """The tables of what `taet.experiments.cost.measure` returned; measured numbers as median (least–largest)."""
    made = (_shares(found), _parts(found), _clean_epochs(found), _memory(found), _curve(found), _methods(found))
    return [table for table in made if table.rows]


def setting(found: Mapping[str, Any]) -> str:
    """How it was measured, in one line."""
    size, device = " x ".join(map(str, found["image_shape"])), found["environment"]["device"]
    threads = f", {found['threads']} thread{'s' * (found['threads'] > 1)}" if device.startswith("cpu") else ""
    return (
        f"{found['network']}, {size}, {found['classes']} classes, {found['images']:,} images an epoch, batches of "
        f"{found['batch_size']}, {found['precision']}, {device}{threads}, torch "
        f"{found['environment']['versions']['torch']}, load {found['load'][0]:.1f}; medians of {found['rounds']} "
        "rounds (least–largest)"
    )


def _shown(measured: Mapping[str, Any], digits: int = 3, factor: float = 1.0) -> str:
    low, high = measured["spread"]
    return f"{factor * measured['median']:.{digits}f} ({factor * low:.{digits}f}–{factor * high:.{digits}f})"


def _saved(eta: Mapping[str, Any]) -> str:
    low, high = eta["spread"]
    return f"{_percent(eta['median'])} ({_percent(high)}–{_percent(low)})"


def _percent(eta: float) -> str:
    """What a cost of `eta` saves; the sign of per cent stands in the head."""
    return f"{100 * (1 - eta):.1f}"


def _shares(found: Mapping[str, Any]) -> Table:
    """gamma, rho and eta, of the paper and measured, at the steps and clean epochs of this measurement."""
    steps, share = found["steps"], found["clean_epochs"] / found["epochs"]
    seconds = cost_model.EPOCH_SECONDS
    published = {
        "TAET's gamma": CostModel(cost_model.GAMMA, steps),
        "TAET's seconds per epoch, if of an adversarial one": by_line(seconds, steps),
        "the same, if means over its run": by_line(seconds, steps, cost_model.CLEAN_SHARE),
        "multiplications alone": by_multiplications(steps),
    }
    rows = [
        (
            name,
            *(f"{value:.3f}" for value in (of.gamma, of.rho, of.eta(share))),
            _percent(of.eta(share)),
            _percent(of.printed_eta(share)),
        )
        for name, of in published.items()
    ]
    model, measured = found["model"], found["measured_eta"]
    parts = [_shown(model[name]) for name in ("gamma", "rho", "eta")]
    return Table(
        f"TAET beside adversarial training: kappa = {steps}, {found['clean_epochs']} of {found['epochs']} epochs clean",
        ("", "gamma", "rho", "eta, eq. 12", "saved, %", "saved by eq. 13, %"),
        [
            *rows,
            ("predicted here, from F, B, F' and B_adv", *parts, _saved(model["eta"]), _saved(model["printed_eta"])),
            ("measured here, whole training steps", "", "", _shown(measured), _saved(measured), ""),
            ("predicted eta over measured eta", "", "", _shown(found["predicted_over_measured"]), "", ""),
        ],
    )


def _parts(found: Mapping[str, Any]) -> Table:
    names = {
        "forward": "F: forward pass in train mode, with the loss",
        "backward": "B: backward pass to the weights, and all else of a clean step, its update too",
        "attack_forward": "F': forward pass of the attack, on the folded view",
        "attack_backward": "B_adv: backward pass to the images, and all else of a step of the attack",
    }
    rows = [(text, _shown(found["model"][name], 2, 1000)) for name, text in names.items()]
    return Table("Parts of a step", ("", "milliseconds of a batch"), rows)


def _clean_epochs(found: Mapping[str, Any]) -> Table:
    paper = CostModel(cost_model.GAMMA, found["steps"])
    rows = []
    for entry in found["by_clean_epochs"]:
        share = entry["clean_epochs"] / found["epochs"]
        printed = (_percent(paper.eta(share)), _percent(paper.printed_eta(share)))
        rows.append((str(entry["clean_epochs"]), _saved(entry["eta"]), *printed))
    heads = (f"T_ce, of {found['epochs']} epochs", "saved, %, from the parts here", "TAET's gamma, eq. 12", "eq. 13")
    return Table("Share saved by T_ce clean epochs", heads, rows)


def _memory(found: Mapping[str, Any]) -> Table:
    memory = found["memory"]
    names = {
        "held_mb": "held between steps: weights, optimiser, view, batch",
        "clean_mb": "peak of a clean step",
        "adversarial_mb": "peak of an adversarial step",
        "extra_mb": "M_delta: their difference",
        "xi_mb": f"xi: its mean over the epochs that {found['clean_epochs']} of {found['epochs']} clean ones save",
        "images_mb": "b c h w d: one batch of images in float32",
    }
    paper = {
        "extra_mb": cost_model.MEMORY_MB,
        "xi_mb": cost_model.XI_MB,
        "images_mb": cost_model.image_megabytes(),
    }
    rows = [
        (text, f"{memory[name]:,.2f}", f"{paper[name]:,.2f}" if name in paper else "") for name, text in names.items()
    ]
    return Table("Memory, 10^6 bytes", ("", "here", f"TAET, batches of {cost_model.BATCH_SHAPE[0]}"), rows)


def _curve(found: Mapping[str, Any]) -> Table:
    seconds = cost_model.EPOCH_SECONDS
    rows = [
        (
            str(point["steps"]),
            _shown(point["epoch_seconds"], 1),
            _shown(point["ratio"], 2),
            _shown(point["predicted_over_measured"], 2),
            f"{seconds[point['steps']]:.0f}" if point["steps"] in seconds else "",
            f"{seconds[point['steps']] / seconds[cost_model.STEPS]:.2f}" if point["steps"] in seconds else "",
        )
        for point in found["curve"]
    ]
    here = f"beside {found['steps']} steps"
    heads = ("PGD steps", "seconds per epoch", here, "predicted over measured", "TAET's seconds", "beside its 10 steps")
    return Table("An epoch of adversarial training against PGD steps", heads, rows)


def _methods(found: Mapping[str, Any]) -> Table:
    rows = []
    for cost in found["costs"]:
        low, high = cost["spread"]
        rows.append(
            (
                " ".join([cost["name"], *map(str, cost["settings"].values())]),
                f"{cost['forwards']:.2f}",
                f"{cost['backwards']:.2f}",
                f"{cost['passes_ratio']:.2f}",
                f"{cost['seconds_ratio']:.2f} ({low:.2f}–{high:.2f})",
                f"{cost['epoch_seconds']:.1f}",
                _published(cost["name"]) if not cost["settings"] else "",
            )
        )
    heads = ("method", "forward", "backward", "passes", "seconds", "seconds per epoch", "REAT, table 14")
    return Table(f"Methods, mean over a run; passes and seconds beside PGD-{found['steps']} AT", heads, rows)


def _published(name: str) -> str:
    """Seconds beside AT's in the four settings of REAT's table 14, least and largest, where the method is there."""
    settings = cost_model.REAT_EPOCH_SECONDS.values()
    ratios = [f"{seconds[name] / seconds['at']:.2f}" for seconds in settings if name in seconds]
    return "–".join(dict.fromkeys([min(ratios), max(ratios)])) if ratios else ""
