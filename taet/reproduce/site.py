"""A static site of both papers: leaderboard, claims, and a page per table and figure; a pure function of the store."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import isnan, nan

from taet.evaluation.card import ResultCard
from taet.formatting import MISSING, sentence, words
from taet.report.series import Series
from taet.reproduce.cell_store import Store, StoredCell
from taet.reproduce.claims import WORDS, Claim, claims
from taet.reproduce.figures import Drawings, drawings
from taet.reproduce.leaderboard import NOTES, BoardKind, Standings, boards
from taet.reproduce.manifest import Item, Scale, errata, items, scales, settings_words
from taet.reproduce.render import filled, tables, training_seconds, what_differs
from taet.reproduce.session import overview
from taet.reproduce.text_table import html_page, in_html
from taet.reproduce.verdicts import Verdict, accuracies, best_verdicts, elsewhere, shown_beside, verdict

PAGES = {"index.html": "Overview", "leaderboard.html": "Leaderboard", "claims.html": "Claims", "runs.html": "Runs"}
ABOUT_VERDICTS = (
    "Differences are in points of balanced accuracy, paired on the same test images, with 95 % intervals. A claim "
    "holds if the interval is above 0 and reaches half of the claimed size. It does not hold if the whole "
    "interval is below that half, or below 0 if the claim has no size. Otherwise it is undecided; "
    "without runs it is not tested. Other tests state their rule. With one seed an interval is about two trained "
    "models, not two methods. The verdict is that of the largest scale with runs. All runs so far are of small "
    "networks (ResNet-8 in place of ResNet-18): a claim that does not hold here may hold at the published size."
)
NAVIGATION = (
    "<nav><ul>" + "".join(f'<li><a href="{page}">{name}</a></li>' for page, name in PAGES.items()) + "</ul></nav>"
)


def site(store: Store, scales: Sequence[Scale]) -> dict[str, str]:
    """Return the pages by file name. They need no network and no JavaScript."""
    found = best_verdicts(store, scales)
    pages = {
        "index.html": _index(store, found),
        "leaderboard.html": leaderboard_page(boards(store, scales)),
        "claims.html": _claims(store, scales, found),
        "runs.html": _runs_page(store, scales),
    }
    return pages | {item_page(name): _item(store, scales, item) for name, item in items().items()}


def item_page(name: str) -> str:
    """The file of an item."""
    return f"{name.replace('/', '-')}.html"


def _page(title: str, sections: Sequence[str]) -> str:
    return html_page(title, [NAVIGATION, *sections])


def _index(store: Store, found: Mapping[str, Verdict]) -> str:
    """Return the page with the progress of the items and the state of the claims."""
    counts = ", ".join(f"{word} {[one.word for one in found.values()].count(word)}" for word in WORDS)
    text = in_html(overview(store))
    for name, item in items().items():  # each name appears once, in the first column
        label = html.escape(f"{name} · {item.title}")
        text = text.replace(f">{label}<", f'><a href="{item_page(name)}">{label}</a><', 1)
    papers = "TAET (CVPR 2025) and REAT (arXiv 2307.10205)"
    said = "; ".join(f"<strong>{one.name}</strong>: {html.escape(one.says)}" for one in scales().values())
    lead = f'<p>Of {len(found)} <a href="claims.html">claims</a> of {papers}: {counts}. Scales: {said}.</p>'
    return _page("Adversarial robustness under long-tailed data, reproduced", [lead, text])


def leaderboard_page(found: Sequence[Standings]) -> str:
    """Return the boards with filters that need no script: a style hides the others; without styles all are shown."""
    if not found:
        return _page("Leaderboard", ["<p>No run.</p>"])
    choices, rules = [], []
    marks: list[list[str]] = [["board"] for _ in found]
    for place, title in enumerate(BoardKind._fields):
        texts = [words(board.kind[place] or "of the set") for board in found]
        values, name = [*dict.fromkeys(texts)], f"by-{title}"
        for mark, text in zip(marks, texts, strict=True):
            mark.append(f"{name}-{values.index(text)}")
        if len(values) > 1:
            picks = [f'<label><input type="radio" name="{name}" checked> all</label>']
            for number, value in enumerate(values):
                one = f"{name}-{number}"
                picks.append(f'<label><input type="radio" name="{name}" id="{one}"> {html.escape(value)}</label>')
                rules.append(f"main:has(#{one}:checked) .board:not(.{one}){{display:none}}")
            choices.append(f"<fieldset><legend>{title}</legend>{''.join(picks)}</fieldset>")
    tables = [in_html(one.table(with_notes=False)) for one in found]
    shown = [f'<div class="{" ".join(mark)}">{table}</div>' for mark, table in zip(marks, tables, strict=True)]
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in NOTES)
    submit = "<p>Cards of your own: <code>taet leaderboard submit CARD...</code></p>"
    return _page("Leaderboard", [f"<style>{''.join(rules)}</style><ul>{notes}</ul>", *choices, *shown, submit])


def _claims(store: Store, scales: Sequence[Scale], found: Mapping[str, Verdict]) -> str:
    """Return every claim; those that do not hold come first."""
    sections = [f"<p>{ABOUT_VERDICTS}</p>"]
    for word in WORDS:
        chosen = [claims()[name] for name, one in found.items() if one.word == word]
        sections.append(f"<h2>{word.capitalize()} ({len(chosen)})</h2>")
        sections += [_claim(store, scales, claim, found[claim.name]) for claim in chosen]
    notes = [f"<li>{html.escape(f'{paper}: {note}')}</li>" for paper, said in errata().items() for note in said]
    return _page("Claims", [*sections, "<h2>Errata outside the tables</h2><ul>", *notes, "</ul>"])


def _claim(store: Store, scales: Sequence[Scale], claim: Claim, found: Verdict) -> str:
    """Return a claim with its location, rule, verdict at each scale, results outside the scales, and command."""
    head = f"<h3>{claim.name}. {html.escape(claim.entry['says'])}</h3>"
    where = _linked(claim)
    said = f"<p>{where}. <strong>{found.word.capitalize()}</strong></p>"
    lines = [f"<p>Rule: {html.escape(sentence(claim.rule))}</p>"]
    if claim.is_tested:
        each = [verdict(claim, store, scale) for scale in scales]
        shown = [f"<li>{one.scale}: {one.word}. {html.escape(sentence(one.because))}</li>" for one in each]
        shown += [f"<li>Beside the test: {html.escape(line)}</li>" for line in shown_beside(claim, store, scales)]
        lines += ["<ul>", *shown, "</ul>"]
    elif found.because:
        lines.append(f"<p>{html.escape(sentence(found.because))}</p>")
    others = [f"<li>{html.escape(line)}</li>" for line in elsewhere(claim, store.results)]
    lines += ["<p>Outside the scales:</p><ul>", *others, "</ul>"] if others else []
    lines += [f"<p><code>taet reproduce {claim.name}</code></p>"] if claim.is_tested else []
    return f'<article id="{claim.name}">{head}{said}{"".join(lines)}</article>'


def _linked(claim: Claim) -> str:
    """Return the place of a claim, with a link to each table and figure that is an item."""

    def link(found: re.Match[str]) -> str:
        name = f"{claim.paper.lower()}/{found[1]}{found[2]}"
        return f'<a href="{item_page(name)}">{found[0]}</a>' if name in items() else found[0]

    return re.sub(r"\b(table|figure)s? (\d+)", link, html.escape(f"{claim.paper}, {claim.entry['where']}"))


def _runs(store: Store, scale: Scale, item: Item) -> list[str]:
    """Return the list of the cards behind an item at a scale, closed at first."""
    found = {one.key: (row, one) for row in filled(store, scale, item) for one in row.cells if one.card is not None}
    texts = [(one, f"{row.label}, seed {one.cell.seed}: {store.source(one)}") for row, one in found.values()]
    lines = [f'<li><a href="runs.html#{one.cell.name}">{html.escape(text)}</a></li>' for one, text in texts]
    return [f"<details><summary>Runs · scale {scale.name} ({len(lines)})</summary><ul>{''.join(lines)}</ul></details>"]


def _runs_page(store: Store, scales: Sequence[Scale]) -> str:
    """Return every run behind the items: what was trained and attacked, by which commands, where, and its numbers."""
    sections = []
    for scale in scales:
        cells = store.every_cell(scale, [*items().values(), *(one.item for one in claims().values() if one.is_tested)])
        found = {one.key: (one, one.card) for one in cells if one.card is not None}
        if found:
            hours = [_hours(*pair) for pair in found.values()]
            total = _of_hours(*(sum(part for part in parts if not isnan(part)) for parts in zip(*hours, strict=True)))
            lost = sum(isnan(trained) for trained, _ in hours)
            unknown = f"; the time of {lost} of {len(found)} trainings was not kept" if lost else ""
            sections.append(f"<h2>Scale {scale.name} ({len(found)})</h2><p>In all: {total}{unknown}.</p>")
            sections += [_run(store, one, card) for one, card in found.values()]
    return _page("Runs", sections)


def _hours(one: StoredCell, card: ResultCard) -> tuple[float, float]:
    """Return the hours of the training, estimated from the epochs kept (nan without), and of the attacks of a run."""
    trained = training_seconds(one.epochs) if one.epochs else nan
    return trained / 3600, sum(column.seconds for column in card.columns) / 3600


def _of_hours(training: float, attacks: float) -> str:
    trained = "training not kept" if isnan(training) else f"training about {training:.1f} hours without the curve"
    return f"{trained}, attacks {attacks:.1f} hours"


def _run(store: Store, one: StoredCell, card: ResultCard) -> str:
    """Return the card of a run in words."""
    versions = card.environment.get("versions", {})
    facts = {
        "Balanced accuracy": accuracies(card, [column.name for column in card.columns]),
        "Test images": f"{len(card.labels):,}",
        "Training images": f"{sum(card.data['train_class_counts'] or []):,}",
        "Flags": ", ".join(flag["flag"] for flag in card.flags) or "none",
        "Leaves the protocol": " ".join(map(sentence, card.deviations)) or "no",
        "Time": _of_hours(*_hours(one, card)),
        "Card": store.source(one),
        "Weights, SHA-256": card.model["weights_sha256"],
        "Machine": card.environment.get("device") or MISSING,
        "Versions": ", ".join(f"{name} {versions[name]}" for name in ("taet", "torch") if name in versions) or MISSING,
    }
    shown = "".join(f"<dt>{name}</dt><dd>{html.escape(text)}</dd>" for name, text in facts.items())
    commands = "\n".join(filter(None, [card.run.get("command"), card.command]))
    about = settings_words(one.cell.entry.method, tuple(one.cell.entry.settings.items()))
    ratio = "" if one.cell.imbalance is None else f", imbalance ratio {one.cell.imbalance:g}"
    head = f"<h3>{html.escape(f'{about}, {one.cell.data}{ratio}, seed {one.cell.seed}')}</h3>"
    return f'<article id="{one.cell.name}">{head}<dl>{shown}</dl><pre>{html.escape(commands)}</pre></article>'


def _item(store: Store, scales: Sequence[Scale], item: Item) -> str:
    """The tables of an item at every scale with a run; the smallest scale shows what is missing."""
    sections, differs = [], list[list[str]]()
    for scale in scales:
        if scale is scales[-1] or any(one.card is not None for one in store.every_cell(scale, [item])):
            about = what_differs(scale, item, filled(store, scale, item))
            differs.append([line for line in about if line not in item.notes])
            own = [(table, [note for note in table.notes if note not in about]) for table in tables(store, scale, item)]
            sections += [in_html(replace(table, notes=(*notes,))) for table, notes in own]
            sections += drawn(drawings(store, scale, item), scale)
            sections += _runs(store, scale, item)
    always = [line for line in differs[0] if all(line in others for others in differs)]
    lines = [*always, *(line for others in differs for line in others if line not in always)]
    lead = ["<h2>What differs from the paper</h2><ul>", *(f"<li>{html.escape(line)}</li>" for line in lines), "</ul>"]
    lead += [f"<p>In the paper: {html.escape(note)}</p>" for note in item.notes]
    command = f"taet reproduce {item.name} --scale {scales[-1].name}"
    return _page(f"{item.name} · {item.title}", [*lead, *sections, f"<p><code>{command}</code></p>"])


def drawn(found: Drawings, scale: Scale) -> list[str]:
    """The figures of an item at one scale."""
    if not found.panels:
        return []
    panels = [f"<figcaption>{html.escape(one.title)}</figcaption>{one.svg}" for one in found.panels]
    shown = [f'<figure class="panel">{panel}</figure>' for panel in panels]
    legend = "".join(f"<li>{_swatch(one)}{html.escape(one.label)}</li>" for one in found.legend)
    lead = [f'<ul class="legend">{legend}</ul>'] if legend else []
    head = f"<section><h2>Figures · scale {scale.name}</h2>"
    return [head, *lead, '<div class="panels">', *shown, "</div></section>"]


def _swatch(one: Series) -> str:
    line = f'<path d="M0 7H36" stroke="{one.colour}" stroke-width="2" stroke-dasharray="{one.svg_dashes or "none"}"/>'
    mark = f'<path d="{one.marker_path}" fill="{one.colour}"/>'
    return f'<svg class="swatch" viewBox="0 0 36 14" aria-hidden="true">{line}{mark}</svg>'
