"""A static site of both papers: leaderboard, claims, and a page per table and figure; a pure function of the store."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from taet.evaluation.card import ResultCard
from taet.formatting import MISSING, percent, percent_interval, points, words
from taet.reproduce.claims import WORDS, Claim, Verdict, best_verdict, claims, elsewhere, row_words, sentence
from taet.reproduce.manifest import PAPERS, Item, PaperRow, Scale, errata, items
from taet.reproduce.render import paired_cards, tables
from taet.reproduce.session import overview
from taet.reproduce.store import Store
from taet.reproduce.tables import TextTable, html_page, in_html

LEAD = "autoattack"
PAGES = {"index.html": "Overview", "leaderboard.html": "Leaderboard", "claims.html": "Claims"}
NAVIGATION = (
    "<nav><ul>" + "".join(f'<li><a href="{page}">{name}</a></li>' for page, name in PAGES.items()) + "</ul></nav>"
)


@dataclass(frozen=True)
class Contender:
    """A row of the leaderboard."""

    row: PaperRow
    cards: Mapping[int, ResultCard]


def site(store: Store, scales: Sequence[Scale]) -> dict[str, str]:
    """Return the pages by file name. They need no network and no JavaScript."""
    found = {name: best_verdict(claim, store, scales) for name, claim in claims().items()}
    pages = {
        "index.html": _index(store, found),
        "leaderboard.html": _page(
            "Leaderboard", [in_html(table) for table in leaderboard(store, scales)] or ["<p>No run.</p>"]
        ),
        "claims.html": _claims(store, found),
    }
    return pages | {item_page(name): _item(store, scales, item) for name, item in items().items()}


def item_page(name: str) -> str:
    """The file of an item."""
    return f"{name.replace('/', '-')}.html"


def _page(title: str, sections: Sequence[str]) -> str:
    return html_page(title, [NAVIGATION, "<main>", *sections, "</main>"])


def _index(store: Store, found: Mapping[str, Verdict]) -> str:
    """What is filled, and the state of the claims."""
    counts = ", ".join(f"{word} {[one.word for one in found.values()].count(word)}" for word in WORDS)
    (table,) = overview(store)
    text = in_html(table)
    for name, item in items().items():  # each name stands once, in the first column
        label = html.escape(f"{name} · {item.title}")
        text = text.replace(f">{label}<", f'><a href="{item_page(name)}">{label}</a><', 1)
    lead = f'<p>Of {len(found)} <a href="claims.html">claims</a> of both papers: {counts}.</p>'
    return _page("Adversarial robustness under long-tailed data, reproduced", [lead, text])


def _claims(store: Store, found: Mapping[str, Verdict]) -> str:
    """Every claim, those first that do not hold."""
    sections = []
    for word in WORDS:
        chosen = [claims()[name] for name, one in found.items() if one.word == word]
        sections.append(f"<h2>{word.capitalize()} ({len(chosen)})</h2>")
        sections += [_claim(store, claim, found[claim.name]) for claim in chosen]
    notes = [f"<li>{html.escape(f'{paper}: {note}')}</li>" for paper, said in errata().items() for note in said]
    return _page("Claims", [*sections, "<h2>Errata outside the tables</h2><ul>", *notes, "</ul>"])


def _claim(store: Store, claim: Claim, found: Verdict) -> str:
    where = f"{claim.paper}, {claim.entry['where']}" + (f"; scale {found.scale}" if found.scale else "")
    lines = [f"<p>{html.escape(sentence(found.because))}</p>"] if found.because else []
    beside = [f"<li>{html.escape(line)}</li>" for line in elsewhere(claim, store.results)]
    lines += ["<p>Outside the scales:</p><ul>", *beside, "</ul>"] if beside else []
    head = f"<h3>{claim.name}. {html.escape(claim.entry['says'])}</h3>"
    said = f"<p>{html.escape(where)}. <strong>{found.word}</strong></p>"
    return f'<article id="{claim.name}">{head}{said}{"".join(lines)}</article>'


def _item(store: Store, scales: Sequence[Scale], item: Item) -> str:
    """The tables of an item at every scale with a run; the smallest scale shows what is missing."""
    sections = []
    for scale in scales:
        cells = [one for found in store.of_item(scale, item).values() for one in found]
        if scale is scales[-1] or any(one.card is not None for one in cells):
            sections += [in_html(table) for table in tables(store, scale, item)]
    command = f"taet reproduce {item.name} --scale {scales[-1].name}"
    return _page(f"{item.name} · {item.title}", [*sections, f"<p><code>{command}</code></p>"])


def leaderboard(store: Store, scales: Sequence[Scale]) -> list[TextTable]:
    """A table for each scale, protocol, data set, imbalance ratio and network with runs under AutoAttack."""
    groups: dict[tuple[object, ...], dict[str, Contender]] = {}
    for scale in scales:
        for item in items().values():
            for row in item.rows:
                cells = store.cells(scale, row, ["clean"])
                cards = {one.cell.seed: one.card for one in cells if one.card is not None}
                if cards and all(LEAD in {column.name for column in card.columns} for card in cards.values()):
                    card = next(iter(cards.values()))
                    kind = (scale.name, PAPERS[row.paper], card.data["name"], row.imbalance, card.model["name"])
                    groups.setdefault(kind, {}).setdefault(cells[0].key, Contender(row, cards))
    return [_board(kind, [*found.values()]) for kind, found in groups.items()]


def _board(kind: Sequence[object], found: Sequence[Contender]) -> TextTable:
    """Rows by balanced accuracy under AutoAttack; rows that cannot be told apart share ranks."""
    ranked = sorted(found, key=lambda one: -_mean(one, LEAD))
    heads = (
        "",
        "rank",
        LEAD,
        "95 %",
        "clean",
        "pgd-20",
        "PGD-20 − AutoAttack",
        "tail",
        "worst class",
        "flags",
        "seeds",
    )
    rows = []
    for one in ranked:
        card = next(iter(one.cards.values()))
        summary = card.summary(LEAD)
        under = _mean(one, "pgd-20")
        gap = MISSING if under != under else points(under - _mean(one, LEAD))
        tail = percent(summary.groups["tail"]) if summary.groups else MISSING
        numbers = (
            percent(_mean(one, LEAD)),
            percent_interval(*summary.balanced_interval),
            percent(_mean(one, "clean")),
        )
        last = (tail, percent(summary.worst_class[1]), str(len(card.flags)), str(len(one.cards)))
        rows.append((row_words(one.row), _rank(one, ranked), *numbers, percent(under), gap, *last))
    scale, protocol, data, ratio, model = kind
    title = f"{data}, imbalance ratio {words(ratio or 'of the set')}, {model} · protocol {protocol} · scale {scale}"
    notes = (
        "Balanced accuracy, %. A range of ranks: a paired test cannot tell these rows apart.",
        "Interval, tail, worst class and flags are of the first seed.",
    )
    return TextTable(title, heads, (*rows,), notes)


def _rank(one: Contender, ranked: Sequence[Contender]) -> str:
    """The ranks that a row may have, by paired differences that are decided."""
    differences = [paired_cards(one.cards, other.cards, [LEAD, LEAD]) for other in ranked if other is not one]
    decided = [found.value for found in differences if found is not None and found.decided]
    best, worst = 1 + sum(value < 0 for value in decided), len(ranked) - sum(value > 0 for value in decided)
    return str(best) if best == worst else f"{best}–{worst}"


def _mean(one: Contender, attack: str) -> float:
    values = [card.summary(attack).balanced for card in one.cards.values() if attack in {c.name for c in card.columns}]
    return sum(values) / len(values) if values else float("nan")
