"""Write every page, and every part of a page, that follows from the code or from the committed
result cards.

docs/methods/ has one page per method, from its source, the measured cost and the result cards;
docs/losses.md comes from docstrings. The tables of other pages stand between two markers.

python docs/render.py            prints the names of pages that are out of date
python docs/render.py --write    writes them
"""

import ast
import dataclasses
import functools
import inspect
import itertools
import json
import math
import re
import statistics
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import passes
import result_tables

from taet import losses, methods, protocols, registry
from taet.attacks import catalogue
from taet.attacks.spec import AttackSpec, option_fields
from taet.errors import UserError
from taet.evaluation import ResultCard
from taet.formatting import markdown_table
from taet.methods import Method, Task
from taet.metrics.paired import Difference
from taet.settings import Outer
from taet.settings.types import Positive, Settings, allowed_text, hints

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs" / "methods"
LOSSES = ROOT / "docs" / "losses.md"
EVALUATION = ROOT / "docs" / "evaluation.md"
CHOICE = ROOT / "docs" / "which-method.md"
FIGURE = ROOT / "docs" / "passes.svg"
COMPARED = "digits-lt-methods"
"""The comparison of the most methods with several seeds."""
README = ROOT / "README.md"
END, END_OF_CHOICE = "<!-- end of attacks -->", "<!-- end of differences -->"
END_OF_METHODS = "<!-- end of methods -->"
TABLES, END_OF_TABLES = "<!-- results: make results -->", "<!-- end of results -->"
PUBLISHED = ROOT / "docs" / "published-numbers.md"
DIFFERENCES = "<!-- differences: python results/setting_differences.py -->"
END_OF_SETTINGS = "<!-- end of differences -->"
SETTINGS = ROOT / "results" / "setting-differences.json"
COST = ROOT / "results" / "cost.json"
LISTED = {"adaptive-pgd-N": "adaptive", "adaptive-pgd-l2-N": "adaptive"}
"""Attacks that `taet list attacks` has under another name."""
OUTERS = tuple(registry.entries("losses"))
HEAD = "<!-- python docs/render.py --write -->"
LOSS_GROUPS = {
    "Label losses": (
        "cross_entropy",
        "balanced_softmax",
        "logit_adjustment",
        "focal",
        "class_balanced",
        "ldam",
        "boosted_cross_entropy",
    ),
    "Divergence": ("kl_divergence",),
    "Losses over classes": ("hierarchical_equalization", "tail_margin"),
    "Class weights": ("effective_number_weights", "rebalancing_weights"),
}


def task(**changes: Any) -> Task:
    """A long-tailed task of ten classes, over the 100 epochs of protocol taet."""
    counts = (5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50)
    return Task(counts, (3, 32, 32), epochs=100, steps_per_epoch=97, milestones=(75, 90), **changes)


def prose(text: str) -> str:
    """A docstring as Markdown: paragraphs with aligned columns become code blocks."""
    blocks = re.split(r"\n\s*\n", inspect.cleandoc(text))
    aligned = [bool(re.search(r"\S {2,}\S", block)) or block.startswith(" ") for block in blocks]
    # A bracket before a parenthesis is part of a formula, not a link.
    shown = [
        f"```text\n{textwrap.dedent(b)}\n```" if fixed else b.replace("](", "]\\(")
        for b, fixed in zip(blocks, aligned, strict=True)
    ]
    return "\n\n".join(shown)


def field_docs(cls: type) -> dict[str, str]:
    """The description of every field of a dataclass, those of its parents first."""
    if issubclass(cls, Settings):
        return {
            name: " ".join((field.description or "").split())
            for name, field in cls.model_fields.items()
        }
    found: dict[str, str] = {}
    for kind in (kind for kind in reversed(cls.__mro__) if dataclasses.is_dataclass(kind)):
        tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
        body = tree.body[0].body  # type: ignore[attr-defined]
        for field, after in itertools.pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(after, ast.Expr):
                found[field.target.id] = " ".join(ast.literal_eval(after.value).split())  # type: ignore[union-attr]
    return found


def argument_docs(function: Callable[..., object] | None) -> dict[str, str]:
    """The description of every argument in the section Args of a function's docstring."""
    found: dict[str, str] = {}
    name = ""
    _, _, arguments = (inspect.getdoc(function) or "").partition("Args:\n")
    for line in arguments.partition("\n\n")[0].splitlines():
        if line.startswith("        "):
            found[name] += f" {line.strip()}"
        else:
            name, _, text = line.strip().partition(": ")
            found[name] = text[:1].upper() + text[1:]
    return found


def options(cls: type[Method]) -> list[tuple[str, str, str]]:
    """Flag, default and description of every option; one that is on has a flag to turn it off."""
    found = []
    for name, described in field_docs(cls.Config).items():
        default, option = shown(getattr(cls.Config(), name)), name.replace("_", "-")
        option = "base-settings.OPTION" if name == "base_settings" else option
        found.append((f"`--method.{'no-' if default == 'on' else ''}{option}`", default, described))
    return found


def shown(value: Any) -> str:
    """A setting as it is written on the command line."""
    if value is None:
        return "see description"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return " ".join(map(shown, value)) or "none"
    if isinstance(value, float) and 0 < value < 1 and float(f"{value:.4g}") != value:
        levels = 255 * value
        return f"{levels:.0f}/255" if abs(levels - round(levels)) < 1e-9 else f"{value:.4g}"
    return str(value)


def accepted(name: str) -> tuple[list[str], str]:
    """Outer losses that the method takes, and its refusal of another."""
    taken, refusal = [], ""
    for outer in OUTERS:
        try:
            if methods.build(name, None, task(outer=Outer(name=outer))).task.outer.name == outer:
                taken.append(outer)
        except UserError as error:
            refusal = str(error)
    return taken, refusal


def table(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """A Markdown table."""
    return markdown_table([heads, *([cell.replace("|", "\\|") for cell in row] for row in rows)])


def stages(method: Method) -> str:
    """Stages over the epochs of protocol taet."""
    names = [method.task.stages[epoch] for epoch in range(method.task.epochs)]
    return ", then ".join(
        (f"{name} ({names.count(name)} of 100 epochs)") for name in dict.fromkeys(names)
    )


def in_a_run(name: str) -> str:
    """How the options of a run apply to the method."""
    method = methods.build(name, None, task())
    taken, refusal = accepted(name)
    head = method.task.head
    lines = [
        f"- stages: {stages(method)}",
        f"- `--outer`: {', '.join(taken)}" + (f' (otherwise: "{refusal}")' if refusal else ""),
        "- `--threat.weighting`: " + ("any" if type(method).label_attack else "refused"),
        "- head: "
        + (
            "linear"
            if head.kind == "linear"
            else (f"cosine, scale {head.scale:g}, gamma {head.gamma:g}")
        ),
    ]
    if method.uses_features:
        lines.append(
            "- uses the features of the model, so your own module must be a "
            "`taet.models.Classifier`"
        )
    if method.needs_feedback:
        lines.append(
            "- learns from the validation split, whenever accuracy is measured; refused without "
            "`--data.validation`"
        )
    lines += [f"- leaves the protocol: {text}" for text in method.deviations]
    return "\n".join(lines)


def official(name: str) -> str:
    """The differences between the profile `official` and the protocol taet."""
    if not methods.find(name).official:
        return "taet has no profile `official` for this method: `--protocol official` is refused."
    rows, plain = [], protocols.taet(name)
    for key, own in methods.find(name).official.items():
        usual = (
            ""
            if key.startswith("method.")
            else shown(functools.reduce(getattr, key.split("."), plain))
        )
        rows += [(f"`{key}`", shown(own), usual)] if shown(own) != usual else []
    return ("`--protocol official` differs from `taet` in:\n\n") + table(
        ("setting", "official", "protocol taet"), rows
    )


@functools.cache
def costs() -> dict[str, Any]:
    """The committed measurement of costs."""
    return dict(json.loads(COST.read_text(encoding="utf-8")))


def cost_rows(name: str) -> list[tuple[str, ...]]:
    """Rows of this method in the table of costs."""
    return [
        (
            " ".join([name, *map(str, cost["settings"].values())]),
            f"{cost['forwards']:g}",
            f"{cost['backwards']:g}",
            f"{cost['passes_ratio']:.2f}",
            f"{cost['seconds_ratio']:.2f} ({cost['spread'][0]:.2f}–{cost['spread'][1]:.2f})",
        )
        for cost in costs()["costs"]
        if cost["name"] == name
        and cost["settings"].keys() <= methods.find(name).Config.model_fields.keys()
    ]


COST_HEADS = ("", "forward", "backward", "passes, AT = 1", "seconds, AT = 1 (least–largest)")


def cost_setting() -> str:
    """How the costs were measured."""
    found = costs()
    return (
        "Passes: of the classifier per image and step, mean over a run. Seconds: per step, "
        f"relative to PGD-10 AT in the same round, median of {found['rounds']} rounds, with "
        f"{found['network']}, 32 x 32, batches of {found['batch_size']}, {found['precision']}, "
        f"{found['threads']} thread, {found['environment']['device']}. "
        f"{measured_later(found)}`python performance/cost.py --methods all` measures again."
    )


def measured_later(found: dict[str, Any]) -> str:
    """Which methods were measured later, in how many rounds and with what load; empty if none
    was."""
    words = []
    for later in found.get("later", {"measurements": []})["measurements"]:
        known = [name for name in later["names"] if name in registry.entries("methods")]
        names, rounds = (
            ", ".join(f"`{name}`" for name in known),
            sorted(set(later["rounds"].values())),
        )
        load = f"{max(later['load']):.0f}"
        words.append(
            f"{names}: later, {' or '.join(map(str, rounds))} rounds beside AT with a load of up "
            f"to {load}. "
        )
    return "".join(words)


@functools.cache
def rows() -> list[tuple[str, str, set[str], list[ResultCard]]]:
    """Heading of the comparison, name, methods and cards of every row of every table; equal weights
    are one run."""
    found = []
    for about in sorted((ROOT / "results").glob("*/about.md")):
        # attacked once more; on validation images
        if about.parent.name.endswith(("-attacks", "-search")):
            continue
        heading = about.read_text(encoding="utf-8").split("\n")[0].lstrip("# ")
        for one in result_tables.of_folder(about.parent.name):
            for row in one.rows:
                cards = [of.card for of in one.entries if of.row == row]
                runs = {card.model["weights_sha256"]: card for card in cards}
                found.append((heading, row, {card.method for card in cards}, [*runs.values()]))
    return found


def measured(name: str) -> str:
    """Balanced accuracy of the method in every row of every comparison; the mean if there are
    several seeds."""
    lines = []
    for heading, row, names, of in rows():
        if name not in names:
            continue
        values = []
        for column in ("clean", "pgd-20", "autoattack"):
            found = [
                card.summary(column).balanced
                for card in of
                if column in {c.name for c in card.columns}
            ]
            fewer = f" ({len(found)})" if len(found) < len(of) else ""
            values.append(f"{100 * sum(found) / len(found):.1f}{fewer}" if found else "")
        lines.append((row, heading, str(len(of)), *values))
    if not lines:
        return "No result card yet."
    heads = ("row", "comparison", "runs", "clean", "PGD-20", "AutoAttack")
    return table(heads, lines) + (
        "\n\nBalanced accuracy in per cent; in brackets the number of runs, where some lack the "
        "attack. The network is ResNet-8, for the vision transformer `vit-mini-p4`; each data set "
        "has one training subset. So these numbers do not stand beside [published "
        "ones](../published-numbers.md). [Results](../../results/README.md) has the intervals and "
        "tails of most rows; runs of the papers' tables are in [the claims](../findings.md)."
    )


def page(name: str) -> str:
    """The page of one method."""
    entry, cls = registry.find("methods", name), methods.find(name)
    about = inspect.getdoc(entry.load()) or ""
    rows = options(cls)
    parts = [
        HEAD,
        f"# `{name}`: {cls.title}",
        prose(about),
        "## Loss",
        prose(cls.__doc__ or ""),
        "## Options",
        table(("flag", "default", "description"), rows) if rows else "None.",
        "## In a run",
        in_a_run(name),
        "## As published",
        official(name),
        "## Cost",
        table(COST_HEADS, cost_rows(name)) if cost_rows(name) else "Not measured yet.",
        "## Measured",
        measured(name),
    ]
    return "\n\n".join(parts) + "\n"


def index() -> str:
    """The list of all methods, with their cost."""
    rows = []
    for name in registry.entries("methods"):
        cls = methods.find(name)
        cost = cost_rows(name)[0][3:] if cost_rows(name) else ("", "")
        rows.append((f"[`{name}`]({name}.md)", cls.title, cls.reference, *cost))
    parts = [
        HEAD,
        "# Methods",
        "Methods train with the same data order, optimiser, schedule and attack, except where "
        "their page says that they leave the protocol. Options that apply to every method are in "
        "[protocols and options](../protocols.md).",
        table(("name", "method", "source", "passes, AT = 1", "seconds, AT = 1"), rows),
        cost_setting(),
    ]
    return "\n\n".join(parts) + "\n"


class Publication(NamedTuple):
    """Where a method is published; a part that its reference does not state is empty."""

    year: str
    venue: str
    authors: str
    arxiv: str


def publications(reference: str) -> list[Publication]:
    """The papers that a reference names, such as `Yue et al., CVPR 2024, arXiv:2403.10073`."""
    found = []
    for paper in reference.split("; "):
        arxiv = re.search(r"arXiv:(\d{4}\.\d{5})", paper)
        printed = re.sub(r",? ?arXiv:[\d.]+", "", paper)
        year = re.search(r"\b(?:19|20)\d\d\b", printed)
        venue = re.search(r"(\w+) (?=(?:19|20)\d\d\b)", printed)
        authors = printed[: (venue or year or re.match("", printed)).start()].strip(", ")  # type: ignore[union-attr]
        found.append(
            Publication(
                year[0] if year else "",
                venue[1] if venue else "arXiv",
                authors,
                arxiv[1] if arxiv else "",
            )
        )
    return found


def paper_link(paper: Publication, title: str) -> str:
    """The authors, with a link to the paper if it is on arXiv; without authors, the method."""
    authors = paper.authors or title
    return f"[{authors}](https://arxiv.org/abs/{paper.arxiv})" if paper.arxiv else authors


def methods_table() -> str:
    """The table of the README: every method, where it is published and what it changes."""
    rows = []
    for name, entry in registry.entries("methods").items():
        cls = methods.find(name)
        papers = publications(cls.reference)
        changes = entry.title.partition(": ")[2]
        rows.append(
            (
                f"[`{name}`](docs/methods/{name}.md)",
                ", ".join(paper.year for paper in papers),
                ", ".join(dict.fromkeys(paper.venue for paper in papers)),
                "; ".join(paper_link(paper, cls.title) for paper in papers),
                changes,
            )
        )
    return table(("method", "year", "venue", "paper", "what it changes"), rows)


def loss_section(name: str) -> str:
    """One loss: signature, first sentence, formula and source, from its docstring."""
    function = getattr(losses, name)
    about = inspect.cleandoc(function.__doc__).partition("\n\nExample:\n")[0]
    parameters = inspect.signature(function).parameters.values()
    arguments = ", ".join(str(one.replace(annotation=one.empty)) for one in parameters)
    first, *blocks = about.split("\n\n")
    # A paragraph that ends without a full stop is a formula; one with a colon belongs to the next
    # formula.
    shown = [block for block in blocks if not block.endswith(".")]
    formulas = [block if block.endswith(":") else f"```text\n{block}\n```" for block in shown]
    source = re.search(r"Source: .*", " ".join(" ".join(blocks).split()))
    return "\n\n".join(
        [
            f"### `{name}`",
            f"`{name}({arguments})`",
            first,
            *formulas,
            *([source[0]] if source else []),
        ]
    )


LOSS_INTRODUCTION = """\
The losses of the methods are pure functions, which work in any training loop of your own
([an example](../examples/hel_in_your_loop.py)). Training uses the same code: `--outer` names the
label loss of a run, and `taet list losses` lists them. A loss of your own is [one
file](../examples/add_a_loss.py).

| value | shape |
|---|---|
| logits | (N, C) |
| labels | (N,), int64 |
| class counts | (C,), the training images of each class |
| result | (N,), one value per sample, unless stated otherwise: take the mean for training |
| result of several terms | `Loss(total, parts, logits)` |

Losses are computed in float32, or in float64 for float64 inputs. Below are formula and source;
ranges, errors and an example are in `help(taet.losses.focal)`, and so on."""


def loss_page() -> str:
    """The page of all losses."""
    parts = [
        HEAD,
        "# Losses",
        LOSS_INTRODUCTION,
    ]
    for title, names in LOSS_GROUPS.items():
        parts += [f"## {title}", *map(loss_section, names)]
    return "\n\n".join(parts) + "\n"


def passes_of(names: Sequence[str]) -> str:
    """The passes of a robust image, as `taet list attacks` prints them, for names with N for the
    steps."""
    costs: dict[str, list[str]] = {}
    for name in names:
        title = registry.entries("attacks")[LISTED.get(name, name.removesuffix("-N"))].title
        cost = (
            re.sub(r" for an image that [a-z ]+", "", title.rpartition("; ")[2])
            if "; " in title
            else ""
        )
        costs.setdefault(cost or next(iter(costs)), []).append(f"`{name}`")  # "the same in L2"
    if len(costs) == 1:
        return next(iter(costs))
    return "; ".join(f"{cost} ({', '.join(of)})" for cost, of in costs.items())


def attack_tables() -> str:
    """The attacks with their options, and what each option takes."""
    names: dict[type[AttackSpec], list[str]] = {}
    for name, kind in catalogue.kinds().items():
        names.setdefault(kind, []).append(f"`{name}`")
    attacks, takes = [], dict[str, tuple[str, str, str]]()
    for kind, called in names.items():
        fields = option_fields(kind)
        described = argument_docs(kind.function) | field_docs(kind)
        about = sentence(inspect.getdoc(kind) or "")
        attacks.append(
            (
                ", ".join(called),
                about,
                passes_of([one.strip("`") for one in called]),
                ", ".join(fields),
            )
        )
        for option, field in fields.items():
            hint = Positive if field == "eps" else hints(kind)[field]
            takes.setdefault(
                option, (f"`{option}`", allowed_text(hint), sentence(described[field]))
            )
    return "\n\n".join(
        [
            table(("name", "description", "passes of a robust image", "options"), attacks),
            table(("option", "values", "meaning"), [*takes.values()]),
        ]
    )


def sentence(text: str) -> str:
    """The first sentence of a docstring."""
    return re.split(r"(?<=[.]) (?=[A-Z])", " ".join(text.split()))[0]


def versus_at() -> str:
    """Every row of a comparison less AT, clean, under AutoAttack and on the tail, with a word
    where the difference is significant."""
    (found,) = result_tables.of_folder(COMPARED)
    parts = {"clean": ("clean", "balanced"), "AutoAttack": ("autoattack", "balanced")}
    parts["tail, AutoAttack"] = "autoattack", "tail"
    others = [row for row in found.rows if row != "AT"]
    complete = {
        row: [one for part in parts.values() if (one := found.difference(row, "AT", *part))]
        for row in others
    }
    lines = [
        (row, *map(_verdict, of))
        for row, of in sorted(complete.items(), key=lambda pair: -pair[1][1].value)
        if of[0].runs > 1
    ]
    return table(("row", *parts), lines)


def _verdict(found: Difference) -> str:
    """The difference in points, with a word before it if it is significant."""
    text = result_tables.in_points(found)
    if not found.significant:
        return text
    return f"**better** {text}" if found.value > 0 else f"worse {text}"


def setting_differences() -> str:
    """What single changes of the settings are worth on the digits, with the accuracy of the
    base."""
    measured = json.loads(SETTINGS.read_text(encoding="utf-8"))
    lines = []
    for name, variant in measured["variants"].items():
        differences = [
            Difference(*(number / 100 for number in variant["minus_base"][attack]), p=math.nan)
            for attack in ("clean", "pgd-20")
        ]
        lines.append((name, *map(result_tables.in_points, differences)))
    clean, attacked = (statistics.mean(values) for values in measured["base"].values())
    seeds, epochs = len(measured["seeds"]), measured["settings"]["training.epochs"]
    about = (
        f"Changed alone in AT-BSL with ResNet-8 on long-tailed digits ({epochs} epochs, {seeds} "
        f"seeds; {clean:.1f} % clean, {attacked:.1f} % under PGD-20), in points with 95 % "
        "intervals over seeds and test images. Digits are an easy task, so these are hints at a "
        "direction, not at a size on CIFAR:"
    )
    return f"{about}\n\n{table(('change', 'clean', 'PGD-20'), lines)}"


def pages() -> dict[Path, str]:
    """Every page and its text."""
    found = {PAGES / f"{name}.md": page(name) for name in registry.entries("methods")}
    parts = [
        (EVALUATION, HEAD, END, f"\n{attack_tables()}\n"),
        (CHOICE, HEAD, END_OF_CHOICE, f"\n{versus_at()}\n"),
        (PUBLISHED, DIFFERENCES, END_OF_SETTINGS, f"\n{setting_differences()}\n"),
        (README, HEAD, END_OF_METHODS, f"\n{methods_table()}\n"),
    ]
    parts += [
        (path, TABLES, END_OF_TABLES, result_tables.rendered(path)) for path in result_tables.PAGES
    ]
    for path, begin, end, text in parts:
        found[path] = renewed(
            found.get(path) or path.read_text(encoding="utf-8"), begin, end, f"\n{text}\n"
        )
    return {PAGES / "README.md": index(), LOSSES: loss_page(), FIGURE: passes.figure(), **found}


def renewed(page: str, begin: str, end: str, text: str) -> str:
    """Return a page with another part between two markers."""
    before, rest = page.split(begin)
    _, after = rest.split(end)
    return f"{before}{begin}{text}{end}{after}"


if __name__ == "__main__":
    for path, text in pages().items():
        if "--write" in sys.argv:
            path.write_text(text, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            print(path.relative_to(ROOT))
