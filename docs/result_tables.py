"""The tables of README.md, docs/*.md and results/README.md, from the result cards and costs in results/.

A folder is a table. METHOD.json is a row; METHOD-seed0.json, METHOD-seed1.json and so on are one row, the mean over the
seeds with its standard error. The cards of a subfolder are rows of the variant that it is named after.
docs/render.py writes them.
"""

from __future__ import annotations

import functools
import json
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import taet
from taet import methods, registry
from taet.evaluation import ResultCard, Summary
from taet.evaluation.card import compare_runs
from taet.formatting import markdown_table, percent, percent_interval
from taet.settings import to_json
from taet.statistics import Difference, mean_and_standard_error

ROOT = Path(__file__).parents[1]
HERE = ROOT / "results"
Value = tuple[float, tuple[float, float]]
"""A share and its 95 % interval."""

README = ROOT / "README.md"
EVALUATION = ROOT / "docs" / "evaluation.md"
MODELS = ROOT / "docs" / "models.md"
SPEED = ROOT / "docs" / "speed.md"
PAGES = (README, EVALUATION, MODELS, SPEED, HERE / "README.md")
# Attacks of one name in the sense of different papers, for the page about attacks.
ATTACKS = ("cifar10-lt-attacks", "digits-lt-attacks")
TRANSFORMERS = ("digits-lt-vit",)
PRECISIONS = ("cifar10-lt-precision", "digits-lt-precision")  # of training: rows NAME-float32 beside NAME-bf16
BY_CLASS = ("ham10000",)  # a table of every class as well
FAIRNESS = ("digits-lt-class-wise", "cifar10-lt-class-wise")  # how evenly classes fare, and rules of budgets, as well
# Rows by the method whose seconds of an epoch are measured: as many epochs as AT, then as many seconds.
SINGLE_STEP = {
    "at": "at",
    "n-fgsm": "n-fgsm",
    "liet": "liet",
    "n-fgsm-long": "n-fgsm",
    "liet-long": "liet",
    "at-long": "at",
}
RULES = {"none": "", "counts": "counts+", "dafa": "dafa+", "cfa": "cfa+"}  # and the names of their rows
LOSSES = {"cross-entropy": "at", "balanced softmax": "at-bsl"}
# Rows whose paired differences from another row are shown, by folder and by that row; () is all of them.
PAIRS: dict[str, dict[str, tuple[str, ...]]] = {
    "digits-lt-class-wise": {
        "at-bsl": (),
        "at": ("n-fgsm", "n-fgsm-long", "liet", "liet-long", "at-long"),
        "n-fgsm-long": ("dafa+at", "at-long"),
        "cgr": ("cgr-no-margin", "cgr-no-prior", "cgr-prior-alone"),
    },
    "cifar10-lt-class-wise": {
        "at-bsl": (),
        "at": ("cfa", "dafa", "faal", "frl", "n-fgsm", "liet"),
        "cgr": ("cgr-prior-alone",),
    },
    "digits-lt-extra": {
        "none": (),
        "copies": ("held-back", "mixed", "gaussian-inverse"),
        "copies-inverse": ("held-back", "mixed-inverse", "gaussian-inverse"),
    },
}
# Rows of a folder whose runs are those of another.
ELSEWHERE = {
    "cifar10-lt-class-wise": {
        "at-seed0": "reproduce/mini/at_cifar10-lt_ir50_seed0-44a790f3.json",
        "at-bsl-seed0": "reproduce/mini/at-bsl_cifar10-lt_ir50_seed0-0e677bf7.json",
        "at-bsl-seed1": "reproduce/mini/at-bsl_cifar10-lt_ir50_seed1-39f20092.json",
        "at-bsl-seed2": "reproduce/mini/at-bsl_cifar10-lt_ir50_seed2-2ec37721.json",
    },
}
BEFORE_SINE = (
    "measured before the search got its box `sine`: too high, since in the box `tanh` pixels of 0 and 1 hardly move"
)
# The README shows the comparison of all methods without variants with these columns, and the leaderboards of a scale.
FRONT, FRONT_COLUMNS = ("digits-lt-methods",), ("clean", "pgd-20", "autoattack")
FRONT_HEADS = ("method", "rank", "autoattack", "95 %", "clean", "pgd-20", "tail", "seeds")
BOARD = ["data", "imbalance_ratio", "model", "protocol"]
FRONT_SCALES = {
    "cpu": "published counts and epochs, ResNet-8, 200 test images of each class",
    "mini": "at most 1,000 training images in a class, published epochs, ResNet-8, 1,000 test images",
}


def files_of(folder: Path) -> dict[str, Path]:
    """Return the files of the cards of a folder by name, without its variants; ROW-seedN for seed N of a row."""
    elsewhere = {name: HERE / path for name, path in ELSEWHERE.get(folder.name, {}).items()}
    return dict(sorted([*((path.stem, path) for path in folder.glob("*.json")), *elsewhere.items()]))


def cards_by_row(folder: Path, variants: bool = True) -> dict[str, list[ResultCard]]:
    """Return the cards of every row by name: the title of the method, its file if named differently, the variant."""
    files = {(name,): path for name, path in files_of(folder).items()}
    if variants:
        files |= {(*path.relative_to(folder).parent.parts, path.stem): path for path in folder.glob("*/**/*.json")}
    groups: dict[tuple[str, str], list[ResultCard]] = {}
    for (*variant, name), path in sorted(files.items()):
        groups.setdefault((" + ".join(variant), re.sub(r"-seed\d+$", "", name)), []).append(ResultCard.load(path))
    rows = {}
    for (variant, stem), cards in groups.items():
        title = cards[0].title if stem == cards[0].method else f"{cards[0].title} ({stem})"
        rows[f"{title} + {variant}" if variant else title] = cards
    return rows


def mean(values: Sequence[Value]) -> float:
    """Return the mean over seeds."""
    return float(mean_and_standard_error([share for share, _ in values])[0])


def cell(values: Sequence[Value], best: bool) -> str:
    """Return a percentage with its interval, or a mean with its standard error; bold if best of its column."""
    share, error = mean_and_standard_error([share for share, _ in values])
    text = f"**{percent(float(share))}**" if best else percent(float(share))
    return f"{text} ({percent_interval(*values[0][1]) if len(values) == 1 else percent(float(error))})"


def deviations(cards: Sequence[ResultCard]) -> list[str]:
    """Return where the runs of a row leave the protocol, as stored in the cards, else as declared by the method."""
    found: list[str] = []
    for card in cards:
        known = "deviations" in card.run or card.method not in registry.entries("methods")
        found += card.deviations if known else methods.find(card.method).deviations
    return list(dict.fromkeys(found))


def epochs(card: ResultCard) -> int:
    """Return the number of epochs of a card's training; 1 if the card does not say."""
    return int(card.run.get("config", {}).get("training", {}).get("epochs", 1))


@functools.cache
def ratios() -> dict[str, float]:
    """Seconds of a step relative to AT, by method and variant, as results/cost.json has them."""
    found = json.loads((HERE / "cost.json").read_text(encoding="utf-8"))["costs"]
    return {" ".join([one["name"], *one["settings"].values()]): one["seconds_ratio"] for one in found}


def time_ratio(config: Mapping[str, Any]) -> float | None:
    """Return the time of an epoch relative to AT with 10 steps, from the settings of a run; None if not measured.

    s x (clean epoch) + (1 - s) x (adversarial epoch) x (steps + 1)/11, with s the share of clean epochs
    """
    name = config["method"]
    if name not in ratios() or config.get("training", {}).get("awp"):
        return None
    usual = to_json(methods.find(name).Config())
    own = {**usual, **(config.get("settings") or {})}
    label = name if own.get("variant") == usual.get("variant") else f"{name} {own['variant']}"
    if own.get("base") != usual.get("base") or label not in ratios():
        return None
    clean, measured, share = ratios()["standard"], usual.get("clean_share", 0.0), own.get("clean_share", 0.0)
    attacked = (ratios()[label] - measured * clean) / (1 - measured)
    if name not in ("standard", "n-fgsm", "liet"):  # these take no number of steps
        attacked *= (config.get("threat", {}).get("steps", 10) + 1) / 11
    return float(share * clean + (1 - share) * attacked)


def cost(card: ResultCard, usual_epochs: int) -> str:
    """Return the time of a training relative to that of AT with `usual_epochs`; empty if it was not measured."""
    known = registry.entries("methods")
    if card.method in known and known[card.method].baseline:
        return f"{epochs(card) / usual_epochs:.3g}"
    ratio = time_ratio({"method": card.method, **card.run.get("config", {})})
    return "" if ratio is None else f"{ratio * epochs(card) / usual_epochs:.2f}"


def table(folder: Path, wanted: Sequence[str] = (), variants: bool = True) -> str:
    """Return balanced accuracy, that of the tail under AutoAttack, and cost of every row; with seeds also their number.

    Columns are `wanted`, or every attack, and with several seeds plain accuracy unless it equals the balanced one. Rows
    are sorted by balanced accuracy under AutoAttack. Rows that leave the protocol have a footnote.
    """
    rows = cards_by_row(folder, variants)
    first = next(iter(rows.values()))[0]
    attacks = [column.name for column in first.columns if not wanted or column.name in wanted]
    hardest = "autoattack" if "autoattack" in attacks else attacks[-1]
    seeds = any(len(cards) > 1 for cards in rows.values())

    def balanced(summary: Summary) -> Value:
        return summary.balanced, summary.balanced_interval

    def tail(summary: Summary) -> Value:
        return summary.groups["tail"], summary.group_intervals["tail"]

    def accuracy(summary: Summary) -> Value:
        return summary.accuracy, summary.accuracy_interval

    settings = {name: first.column(name).parameters for name in attacks}
    old = {name for name in attacks if settings[name].get("c") == "search" and "box" not in settings[name]}
    columns = [(f"{name}<sup>*</sup>" if name in old else name, name, balanced) for name in attacks]
    columns += [(f"tail, {hardest}", hardest, tail)]
    clean = [card.summary("clean") for cards in rows.values() for card in cards]
    even = all(math.isclose(summary.accuracy, summary.balanced) for summary in clean)  # as on a balanced test set
    columns += [("accuracy", "clean", accuracy)] if seeds and not even else []
    values = {
        name: [[of(card.summary(attack)) for card in cards] for _, attack, of in columns]
        for name, cards in rows.items()
    }
    best = [max(mean(row[column]) for row in values.values()) for column in range(len(columns))]
    place = attacks.index(hardest)
    values = dict(sorted(values.items(), key=lambda row: -mean(row[1][place])))
    saw = {name: cards[0].data.get("extra", {}).get("saw_removed_tail", "–") for name, cards in rows.items()}
    mixed = ["saw the removed tail"] if {*saw.values()} != {"–"} else []
    heads = [*(head for head, _, _ in columns), *(["n"] if seeds else []), *mixed, "cost, AT = 1"]
    left = {name: deviations(rows[name]) for name in values}
    notes = list(dict.fromkeys(text for texts in left.values() for text in texts))
    lines = [["method", *heads]]
    usual_epochs = statistics.mode(epochs(cards[0]) for cards in rows.values())
    for name, row in values.items():
        cells = [cell(seen, math.isclose(mean(seen), top)) for seen, top in zip(row, best, strict=True)]
        cells += [str(len(rows[name]))] if seeds else []
        cells += [saw[name] for _ in mixed] + [cost(rows[name][0], usual_epochs)]
        marks = ", ".join(str(1 + notes.index(text)) for text in left[name])
        label = f"{name}<sup>{marks}</sup>" if marks else name
        lines.append([label, *cells])
    footnotes = [f"<sup>{number}</sup> leaves the protocol: {text}" for number, text in enumerate(notes, 1)]
    footnotes += [f"<sup>*</sup> {BEFORE_SINE}"] if old else []
    return "\n\n".join([markdown_table(lines), *footnotes])


def class_table(folder: Path) -> str:
    """Return the recall of every class, rarest last: clean / under the last attack, with its 95 % interval."""
    rows = {name: cards[0] for name, cards in cards_by_row(folder).items()}
    first = next(iter(rows.values()))
    hardest = first.columns[-1].name
    counts, tests = first.data["train_class_counts"], first.summary("clean").total
    lines = [["class", "training images", "test images", *rows]]
    for label in sorted(range(first.num_classes), key=lambda label: -counts[label]):
        cells = []
        for card in rows.values():
            clean, attacked = card.summary("clean").per_class[label], card.summary(hardest)
            ends = percent_interval(*(ends[label] for ends in attacked.per_class_interval), 0)
            cells.append(f"{percent(clean, 0)} / {percent(attacked.per_class[label], 0)} ({ends})")
        lines.append([first.class_names[label], str(counts[label]), str(tests[label]), *cells])
    return f"Clean / {hardest} with its 95 % interval, by class:\n\n{markdown_table(lines)}"


def fairness_table(folder: Path) -> str:
    """Return the worst class, the worst tenth and the deviation over the mean of every row, clean and attacked."""
    rows = cards_by_row(folder)
    attacks = ("clean", next(iter(rows.values()))[0].columns[-1].name)
    heads = [f"{what}, {attack}" for attack in attacks for what in ("worst class", "worst 10 %", "deviation / mean")]

    def cells(cards: Sequence[ResultCard], attack: str) -> list[str]:
        found = [card.summary(attack) for card in cards]
        percents = ([100 * one.worst_class[1] for one in found], [100 * one.worst_classes for one in found])
        return [*(brackets(each, 1) for each in percents), brackets([one.relative_deviation for one in found], 2)]

    worst = {name: statistics.mean(card.summary(attacks[1]).worst_class[1] for card in rows[name]) for name in rows}
    order = sorted(rows, key=lambda name: -worst[name])
    lines = [[name, *(cell for attack in attacks for cell in cells(rows[name], attack))] for name in order]
    return markdown_table([["method", *heads], *lines])


def brackets(values: Sequence[float], digits: int) -> str:
    """Return the mean with its standard error in brackets."""
    mean, error = mean_and_standard_error(values)
    return f"{mean:.{digits}f}" + ("" if math.isnan(error) else f" ({error:.{digits}f})")


def rule_table(folder: Path) -> str:
    """Return rules of class budgets by loss: balanced accuracy under the last attack, and the difference to none.

    Of the seeds that all rules have.
    """
    rows = by_seed(folder)
    bases = {loss: base for loss, base in LOSSES.items() if all(prefix + base in rows for prefix in RULES.values())}
    seeds = {base: set.intersection(*({*rows[prefix + base]} for prefix in RULES.values())) for base in bases.values()}
    lines = [["rule", *bases]]
    for rule, prefix in RULES.items():
        cells = []
        for base, shared in seeds.items():
            cards, plain = {seed: rows[prefix + base][seed] for seed in sorted(shared)}, rows[base]
            attack = next(iter(cards.values())).columns[-1].name
            text = brackets([100 * card.summary(attack).balanced for card in cards.values()], 1)
            cells.append(f"{text}; {gain(compared(cards, plain, attack))}" if prefix else text)
        lines.append([rule, *cells])
    return markdown_table(lines)


def paired_tables(folder: Path) -> list[str]:
    """Return for each row of `PAIRS` how others differ from it, by shared seeds, clean and under the last attack."""
    every, parts = by_seed(folder), []
    alone = " (with n = 1 over the test images only, which says nothing about another seed)"
    for base, wanted in PAIRS[folder.name].items():
        plain = every[base]
        shown = {row: every[row] for row in every if row in (wanted or every.keys() - {base})}
        shown = {row: {seed: cards[seed] for seed in cards if seed in plain} for row, cards in shown.items()}
        attacks = ("clean", plain[0].columns[-1].name)
        lines = [["row", "n", *(head for attack in attacks for head in (f"{attack}, points", "95 %", ""))]]
        for row, cards in shown.items():
            cells = [row, str(len(cards))]
            for attack in attacks:
                found = compared(cards, plain, attack)
                decided = "better" if found.low > 0 else "worse" if found.high < 0 else "undecided"
                decided = decided if len(cards) > 2 else ("one seed", "two seeds")[len(cards) - 1]
                cells += [f"{100 * found.value:+.1f}", ends(found), decided]
            lines.append(cells)
        parts += [
            f"Paired differences from `{base}` in balanced accuracy, the same seeds and test images, each with its own "
            f"95 % interval{alone if 1 in map(len, shown.values()) else ''}:",
            markdown_table(lines),
        ]
    return parts


def by_seed(folder: Path) -> dict[str, dict[int, ResultCard]]:
    """Return the cards of the rows of a folder with seeds in their names, by row and seed."""
    found: dict[str, dict[int, ResultCard]] = {}
    for name, path in files_of(folder).items():
        row, seeded, number = name.rpartition("-seed")
        if seeded:
            found.setdefault(row, {})[int(number)] = ResultCard.load(path)
    return {row: dict(sorted(cards.items())) for row, cards in sorted(found.items())}


def compared(first: Mapping[int, ResultCard], second: Mapping[int, ResultCard], attack: str) -> Difference:
    """Return how a row differs from one that has all of its seeds."""
    return compare_runs([*first.values()], [second[seed] for seed in first], attack)


def gain(found: Difference) -> str:
    """Return a difference in points with its interval."""
    return f"{100 * found.value:+.1f} ({ends(found)})"


def ends(found: Difference) -> str:
    """Return the interval of a difference in points."""
    return f"{100 * found.low:+.1f} to {100 * found.high:+.1f}"


def precision_table(folder: Path) -> str:
    """Return balanced accuracy of models trained in bf16 and in float32: means, deviations over seeds, difference."""
    heads = ("method", "attack", "n", "float32 (deviation of seeds)", "bf16 (deviation of seeds)", "difference, 95 %")
    lines = [heads]
    rows = by_seed(folder)
    for name in (row.removesuffix("-bf16") for row in rows if row.endswith("-bf16")):
        wide, narrow = rows[f"{name}-float32"], rows[f"{name}-bf16"]
        for attack in (column.name for column in wide[0].columns):
            found, scattered = compared(narrow, wide, attack), [scatter(cards, attack) for cards in (wide, narrow)]
            lines.append((wide[0].title, attack, str(found.runs), *scattered, gain(found)))
    return markdown_table(lines)


def scatter(cards: Mapping[int, ResultCard], attack: str) -> str:
    """Return the mean balanced accuracy over several seeds and its sample standard deviation, in per cent."""
    values = [100 * card.summary(attack).balanced for card in cards.values()]
    return f"{statistics.mean(values):.1f} ({statistics.stdev(values):.1f})"


def leaderboards() -> list[str]:
    """Return the leaderboards of the scales that the README shows, with the most important columns."""
    parts = ["### CIFAR-10-LT at the published number of epochs, small network"]
    for scale, says in FRONT_SCALES.items():
        folders = [HERE / "reproduce" / scale, *([HERE / "cifar10-lt-class-wise"] if scale == "mini" else [])]
        board = taet.results(*folders).board()
        parts.append(f"Scale {scale}: {says}.")
        for (data, ratio, model, protocol), of in board.groupby(BOARD, sort=False):
            lines = [FRONT_HEADS]
            for one in of.to_dict("records"):
                values = [percent(one[name]) if one[name] == one[name] else "–" for name in ("clean", "pgd-20", "tail")]
                ends = percent_interval(one["low"], one["high"])
                lines.append((one["row"], one["rank"], percent(one["autoattack"]), ends, *values, str(one["seeds"])))
            parts += [f"{data}, imbalance ratio {ratio:.3g}, {model} · protocol {protocol}:", markdown_table(lines)]
    return [*parts, "Balanced accuracy in per cent. Rows that a paired test cannot tell apart share ranks."]


def section(folder: str, texts: Mapping[str, str]) -> str:
    """Return the text of a folder with its tables."""
    if folder in PRECISIONS:
        return f"{texts[folder]}\n\n{precision_table(HERE / folder)}"
    parts = [texts[folder], table(HERE / folder)]
    parts += [class_table(HERE / folder)] if folder in BY_CLASS else []
    if folder in FAIRNESS:
        parts += [
            "How evenly the classes fare (mean over the seeds of each run's number):",
            fairness_table(HERE / folder),
            "Rules of class budgets by loss, under the strongest attack: balanced accuracy, and the paired difference "
            "to no rule with its 95 % interval:",
            rule_table(HERE / folder),
        ]
    parts += paired_tables(HERE / folder) if folder in PAIRS else []
    return "\n\n".join(parts)


def single_step() -> list[str]:
    """Return robust accuracy per second of training, with one attack step and with ten."""
    found = json.loads((HERE / "single-step.json").read_text(encoding="utf-8"))
    rows, lines = by_seed(HERE / found["comparison"]), []
    for name, method in SINGLE_STEP.items():
        cards = [*rows[name].values()]
        count = epochs(cards[0])
        seconds = [count * one for one in found["epoch_seconds"][method]]
        robust = [100 * card.summary("autoattack-fast").balanced for card in cards]
        cells = (
            name,
            str(count),
            f"{min(seconds):.1f} ({min(seconds):.1f}–{max(seconds):.1f})",
            f"{min(seconds) / found['epochs'] / min(found['epoch_seconds']['at']):.2f}",
            brackets(robust, 1),
            str(len(cards)),
            f"{statistics.mean(robust) / min(seconds):.2f}",
        )
        lines.append(cells)
    text = (
        f"The settings of `{found['comparison']}`: CPU seconds of one thread without the "
        f"curve, the least of the rounds (least–largest), and robust accuracy as above. `{found['command']}`, "
        f"{found['environment']['device']}, load {found['load']:.0f}: CPU seconds do not count waiting, but what runs "
        "beside makes them longer."
    )
    heads = ("row", "epochs", "CPU seconds", "AT = 1", "autoattack-fast", "n", "points per second")
    return [f"### One attack step and ten, per second of training\n\n{text}", markdown_table([heads, *lines])]


def verdicts() -> list[str]:
    """Return the cheap tier beside the official suite, and the search in bfloat16 beside that in float32."""
    measured = json.loads((HERE / "verdicts.json").read_text(encoding="utf-8"))
    tiers = [
        f"{row['model']}|`{row['attack']}`|{row['images']}|{row['clean']:.1f}|{row['autoattack']:.1f}|{row['quick']:.1f}|"
        f"{row['quick'] - row['autoattack']:+.2f}|{row['worst_class_gap']:+.1f}|{row['only_autoattack_breaks']}|"
        f"{row['only_quick_breaks']}|{row['fewer_passes']:.1f}|{', '.join(row['masking'])}"
        for row in measured["quick"]
    ]
    searched = [
        f"{row['model']}|`{row['attack']}`|{row['images']}|{row['correct'][0]}|{row['correct'][1]}|{row['differing']}|"
        + "|".join("" if one is None else f"{one:.1f}" for one in row["cpu_seconds"])
        for row in measured["search"]
    ]
    about = f"`{measured['command']}`, {measured['environment']['device']}."
    sizes = [gap_of([row for row in measured["quick"] if row["images"] == size]) for size in (1000, 300)]
    heads = "model|attack|images|clean|autoattack|quick|gap|worst class|only autoattack|only quick|fewer passes"
    return [
        "### The cheap tier beside AutoAttack\n\nBalanced accuracy in per cent, gaps in points, images that only one "
        f"of the two breaks, and how many times fewer passes `quick` made. {about}\n\n" + "\n".join(sizes),
        _grid(f"{heads}|masking flags", *tiers),
        "### Search in bfloat16 beside float32\n\nImages that stay correct, images whose flag differs, CPU seconds of "
        "one thread (n = 1; empty: not measured).\n\n" + "\n".join(differing(measured["search"])),
        _grid("model|attack|images|float32|bf16|differing|CPU seconds float32|CPU seconds bf16", *searched),
    ]


def gap_of(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return what rows with the same number of images say together."""
    gaps = [row["quick"] - row["autoattack"] for row in rows]
    images, fewer = rows[0]["images"], [row["fewer_passes"] for row in rows]
    theirs, ours = (sum(row[f"only_{which}_breaks"] for row in rows) for which in ("autoattack", "quick"))
    return (
        f"- {images:,} images, {len(rows)} pairs of model and ball: `quick` is at most {max(gaps):.2f} points above "
        f"AutoAttack, {statistics.mean(gaps):+.2f} on average; AutoAttack alone breaks {theirs} of "
        f"{images * len(rows):,} images, `quick` alone {ours}; {min(fewer):.0f} to {max(fewer):.0f} times fewer passes."
    )


def differing(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what the rows of each attack say together, about its search in another precision."""
    lines = []
    for attack in sorted({row["attack"] for row in rows}):
        of = [row for row in rows if row["attack"] == attack]
        points = [100 * (row["correct"][1] - row["correct"][0]) / row["images"] for row in of]
        lines.append(
            f"- `{attack}`, {len(of)} models: {sum(row['differing'] for row in of)} of "
            f"{sum(row['images'] for row in of):,} images differ; accuracy differs by {min(points):+.2f} to "
            f"{max(points):+.2f} points."
        )
    return lines


def _grid(*lines: str) -> str:
    """Return a table of lines whose cells are separated by bars, the first as its head."""
    return markdown_table([line.split("|") for line in lines])


def tables(page: Path) -> str:
    """Return the tables of a page: all folders with their about.md, or some with its heading and first paragraph."""
    abouts = sorted(HERE.glob("*/about.md"))
    texts = {about.parent.name: about.read_text(encoding="utf-8").strip() for about in abouts}
    short = {name: "\n\n".join(text.split("\n\n")[:2]) for name, text in texts.items()}
    if page == README:
        parts = [f"{short[name]}\n\n{table(HERE / name, FRONT_COLUMNS, variants=False)}" for name in FRONT]
        parts += leaderboards()
    elif page == EVALUATION:
        parts = [*(section(name, short) for name in ATTACKS), *verdicts()]
    elif page == MODELS:
        parts = [section(name, texts) for name in TRANSFORMERS]
    elif page == SPEED:
        parts = [section(name, short) for name in PRECISIONS]
    else:
        parts = [*(section(name, texts) for name in texts), *single_step()]
    return "\n\n".join(parts)
