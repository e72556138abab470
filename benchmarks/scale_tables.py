"""Print the tables of docs/scale.md from benchmarks/results/scale.json and class_terms.json.

python benchmarks/scale_tables.py            prints the tables
python benchmarks/scale_tables.py --write    puts them between the markers of the page
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "scale.md"
SETS = {"imagenet-lt": "ImageNet-LT", "inaturalist-2018": "iNaturalist 2018"}
BEGIN, END = "<!-- {}: python benchmarks/scale_tables.py --write -->", "<!-- end of {} -->"
METHODS = {
    "harl": "HARL, TAET",
    "harl, absent ema": "HARL, `absent ema`",
    "reat": "REAT",
    "reat, form per-pair": "REAT, `form per-pair`",
}


def results(name: str) -> dict[str, Any]:
    """Return a committed result."""
    return dict(json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8")))


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (heads, ["---"] * len(heads), *rows))


def short(value: float, digits: int = 2) -> str:
    """Write a number with this many significant digits, without an exponent."""
    rounded = float(f"{value:.{digits}g}")
    return f"{rounded:,.0f}" if abs(rounded) >= 10 ** (digits - 1) else f"{rounded:.10f}".rstrip("0").rstrip(".")


def between(ends: Sequence[float]) -> str:
    """The least and the most."""
    return f"{short(ends[0])} to {short(ends[1])}"


def share(value: float) -> str:
    """A percentage."""
    return f"{short(100 * value)} %"


def size(value: float) -> str:
    """Write a number of bytes in a suitable unit."""
    unit, name = next((unit, name) for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "B")) if value >= unit)
    return f"{short(value / unit, 3)} {name}"


def memory() -> str:
    """Bytes of the sets and of a training."""
    scale = results("scale")
    rows = []
    for key, name in SETS.items():
        found, counted = scale["derived"]["sets"][key]["memory"], scale["counted"][key]
        kept = counted["kept_bytes"]
        rows.append(
            (
                name,
                size(found["stored_bytes"]["train"]),
                size(sum(found["stored_bytes"].values())),
                f"{counted['parameters'] / 1e6:.1f} M",
                size(found["state_bytes"]),
                f"{size(kept['training_bfloat16'])}, {size(kept['training_float32'])}",
                f"{size(kept['attack_bfloat16'])}, {size(kept['attack_float32'])}",
                ", ".join(f"{number:,} ({device})" for device, number in found["images_at_once"].items()),
            )
        )
    heads = (
        "set",
        "training images",
        "with the held-out ones",
        "parameters",
        "weights, gradients, momentum",
        "kept for an image, training (bf16, float32)",
        "in the attack",
        "images at once, at most",
    )
    return table(heads, rows)


def operations() -> str:
    """Arithmetic of a step."""
    scale = results("scale")
    names = {
        "forward": "forward pass",
        "clean_step": "clean step",
        "attack_step": "step of the attack",
        "pgd_10_step": "step of PGD-10 training",
    }
    rows = []
    for key, name in SETS.items():
        each, work = scale["counted"][key]["operations"], scale["derived"]["sets"][key]["time"]["operations"]
        rows.append((name, *(short(each[what] / 1e9, 3) for what in names), short(work["training"] / 1e18, 3)))
    return table(("set", *(f"{name}, 10^9" for name in names.values()), "100 epochs, 10^18"), rows)


def hours() -> str:
    """Hours of training and evaluation by number of GPUs."""
    derived = results("scale")["derived"]
    named = {
        "training": "PGD-10 training",
        "clean_training": "clean training",
        "curve": "curve: PGD-20 after every epoch",
        "autoattack": "AutoAttack on the test images",
    }
    price = derived["assumed"]["price"]
    rows = []
    for key, name in SETS.items():
        for what, text in named.items():
            for device, found in derived["sets"][key]["time"][what].items():
                cost = between([number * price for number in found["1"]])
                rows.append((name, text, device, *(between(ends) for ends in found.values()), cost))
    heads = (
        "set",
        "work",
        "GPU",
        *(f"{gpus} GPU{'s' * (gpus > 1)}" for gpus in (1, 8, 64)),
        f"cost on 1 at {price:g} an hour",
    )
    return table(heads, rows)


def exchanged() -> str:
    """Bytes that a process exchanges in a step."""
    counted = results("scale")["counted"]
    rows = [("gradients of the weights", *(size(4 * counted[key]["parameters"]) for key in SETS), "1")]
    for gpus in ("8", "64"):
        norms = [counted[key]["exchanged"]["batch_norm"][gpus] for key in SETS]
        rows.append(
            (f"batch normalisation, {gpus} processes", *(size(norm["bytes"]) for norm in norms), str(norms[0]["sums"]))
        )
    for method, text in METHODS.items():
        sums = [counted[key]["exchanged"]["methods"][method] for key in SETS]
        rows.append((text, *(size(each["bytes"]) for each in sums), str(sums[0]["sums"])))
    others = [
        found["bytes"]
        for key in SETS
        for name, found in counted[key]["exchanged"]["methods"].items()
        if name not in (*METHODS, "taet")
    ]
    rows.append(("any other method", *[f"up to {size(max(others))}"] * len(SETS), "2 to 6"))
    return table(("what", *SETS.values(), "sums"), rows)


def communication() -> str:
    """Milliseconds of a step."""
    found = results("scale")["derived"]["sets"]["inaturalist-2018"]["communication"]
    names = ("arithmetic", "gradients", "batch_norm", "harl", "reat", "reat, form per-pair")
    heads = (
        "GPUs and global batch",
        "arithmetic",
        "gradients",
        "batch normalisation",
        "HARL, TAET",
        "REAT",
        "REAT, `form per-pair`",
    )
    return table(heads, [(way, *(short(row[name]) for name in names)) for way, row in found.items()])


def each_batch() -> Iterable[tuple[str, dict[str, Any]]]:
    """Name of the set, and what was measured, for every batch size."""
    for key, found in results("class_terms")["sets"].items():
        for batch in found["batches"]:
            yield SETS[key], batch


def batches() -> str:
    """The classes in a batch."""
    rows = [
        (
            name,
            f"{batch['batch_size']:,}",
            *(short(value, 4) for value in (batch["shuffled"]["classes"], batch["class_balanced"]["classes"])),
            short(batch["were_all_classes_alike"], 4),
            *(short(batch["shuffled"][what], 3) for what in ("tail_examples", "partners_of_a_tail_example")),
            *(short(batch["class_balanced"][what], 3) for what in ("tail_examples", "partners_of_a_tail_example")),
            share(batch["class_balanced_effective_images"]),
        )
        for name, batch in each_batch()
    ]
    heads = (
        "set",
        "batch",
        "classes in it",
        "class-balanced sampling",
        "were all classes alike",
        "tail examples",
        "others of its class for one",
        "tail examples, class-balanced",
        "others of its class for one",
        "worth of a class-balanced loss",
    )
    return table(heads, rows)


def equalization() -> str:
    """The weight of an image in HEL relative to the mean cross-entropy."""
    rows = []
    for name, batch in each_batch():
        for state, text in {"fresh": "fresh", "prior": "knows the class sizes"}.items():
            ways = [batch["equalization"][state][absent] for absent in ("zero", "skip", "ema")]
            cells = [f"{short(way['weight']['mean'], 3)} ({share(way['against'])})" for way in ways]
            rows.append((name, f"{batch['batch_size']:,}", text, *cells))
    return table(("set", "batch", "network", "`absent zero`", "`absent skip`", "`absent ema`"), rows)


def tail() -> str:
    """TAIL's gradient relative to that of the label loss, and the bytes that are kept for it."""
    rows = []
    for name, batch in each_batch():
        forms = [batch["tail"][form] for form in ("official", "per-pair", "paper")]
        cells = [f"{short(form['gradient'])}, {size(form['kept_bytes'])}" for form in forms]
        rows.append((name, f"{batch['batch_size']:,}", *cells))
    return table(("set", "batch", "`official`", "`per-pair`", "`paper`"), rows)


def rebalancing() -> str:
    """REAT's weights of the attack."""
    rows = []
    for key, found in results("class_terms")["sets"].items():
        for way in found["rebalancing"]:
            ends, other = way["weight_of_a_predicted_class"], way["weight_of_another"]
            cells = f"{ends['least']:.2g} to {ends['most']:.2g}", "" if other is None else short(other, 3)
            rows.append((SETS[key], f"{way['predicted_classes']:,}", *cells, short(way["mean_over_images"])))
    heads = ("set", "classes predicted", "weight of one of them", "weight of another", "mean over the images")
    return table(heads, rows)


def priors() -> str:
    """Constants of the class sizes."""
    named = {
        "log_prior": "log prior (balanced softmax, logit adjustment, RoBal)",
        "ldam_margin": "LDAM's margin",
        "class_balanced_weight": "class-balanced weight",
        "robust_lt_budget": "RobustLT's budget over eps",
    }
    found = results("class_terms")["sets"]
    rows = [
        (text, *(between([found[key]["priors"][name][end] for end in ("least", "most")]) for key in SETS))
        for name, text in named.items()
    ]
    return table(("constant, least to most over the classes", *SETS.values()), rows)


def training() -> str:
    """The short training."""
    rows = []
    for way in results("class_terms")["training"]:
        knobs = [
            f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in way["knobs"].items()
        ]
        changes = [f"{name.removeprefix('training.')} {value:g}" for name, value in way["settings"].items()]
        rows.append(
            (
                f"`{way['method']}`" + "".join(f", {text}" for text in (*knobs, *changes)),
                ", ".join(short(value, 3) for value in way["loss"]),
                ", ".join(share(value) for value in way["training_accuracy"]),
                *(share(value) for value in way["test_accuracy"].values()),
            )
        )
    heads = ("method", "loss, by epoch", "attacked training images, by epoch", "test", "test, PGD-1")
    return table(heads, rows)


def matrices() -> str:
    """Bytes of matrices of classes."""
    found = results("scale")["derived"]["sets"]
    names = {
        "logits_bytes": "logits of a batch of 128",
        "scores_bytes": "probabilities of all test images",
        "confusion_bytes": "confusion matrix of a column",
        "roc_auc_bytes": "area under the ROC curve of every pair of classes, of a column",
    }
    rows = [(text, *(size(found[key]["memory"][name]) for key in SETS)) for name, text in names.items()]
    reads = [
        (f"seconds to take the {what}", *(short(found[key]["memory"]["seconds_to"][what]) for key in SETS))
        for what in ("checksum", "statistics")
    ]
    return table(("what", *SETS.values()), [*rows, *reads])


TABLES: tuple[Callable[[], str], ...] = (
    memory,
    operations,
    hours,
    exchanged,
    communication,
    matrices,
    batches,
    equalization,
    tail,
    rebalancing,
    priors,
    training,
)


def rendered(text: str) -> str:
    """Return the page with the current tables."""
    for of in TABLES:
        begin, end = (mark.format(of.__name__) for mark in (BEGIN, END))
        if not (begin in text and end in text):
            raise ValueError(f"{PAGE.name}: no place for the table '{of.__name__}'")
        body = f"{begin}\n{of()}\n{end}"
        before, _, rest = text.partition(begin)
        text = before + body + rest.partition(end)[2]
    return text


if __name__ == "__main__":
    if "--write" in sys.argv:
        PAGE.write_text(rendered(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        for of in TABLES:
            print(f"{of.__name__}\n\n{of()}\n")
