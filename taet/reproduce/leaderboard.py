"""The leaderboard: a board per scale, protocol, data set, imbalance ratio and network; and submitted cards."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import nan
from typing import NamedTuple

import numpy as np

from taet import registry, statistics
from taet.errors import UserError
from taet.evaluation.card import ResultCard
from taet.evaluation.contrasts import exceeds, same_ball
from taet.evaluation.diagnostics import MASKING, raised
from taet.files import digest
from taet.formatting import MISSING, listed, percent, percent_interval, plural, points, words
from taet.reproduce.cell_store import Store, any_seed_hash, attacks_on, by_seed, load_card, rules_of, weights_of
from taet.reproduce.costs import time_ratio
from taet.reproduce.differences import paired_cards
from taet.reproduce.manifest import PAPERS, Item, PaperRow, Scale, items, settings_words
from taet.reproduce.text_table import TextTable
from taet.settings import Run
from taet.training.decisive_settings import CURVE, run_hash, training_settings
from taet.training.record import run_from_json
from taet.training.resolve import learns_from_validation
from taet.training.schedule import curve_decides

LEAD = "autoattack"
DATA = (
    "name",
    "root",
    "storage",
    "imbalance_ratio",
    "default_imbalance_ratio",
    "profile",
    "max_count",
    "test",
    "test_max_count",
)
"""Settings of the data that only decide what a card is compared by: training counts and test images."""
UNNAMED = (
    *("seed", "protocol", "model.name", "model.weights", "training.selection", "training.distance_images"),
    *(f"data.{name}" for name in (*DATA, "validation")),
)
"""Settings that differ between seeds, whose effect on a card is compared with the board, or that change no weights."""
ACCURACIES = ("95 % or ± error", "paper", "clean", "pgd-20", "PGD-20 − AutoAttack", "tail", "worst class")
HEADS = ("", "rank", LEAD, *ACCURACIES, "cost", "flags", "seeds")
NOTES = (
    "Balanced accuracy, %. A range of ranks: paired tests (95 %) over common seeds do not tell these rows apart.",
    "One seed has its 95 % interval over the test images; several have their mean with one standard error.",
    "Tail and worst class are under AutoAttack. Paper: its AutoAttack at full size.",
    "Cost: training time relative to AT with the epochs of the protocol, measured with ResNet-8 on one core. That of "
    "wat is uncertain: its rounds differ by 20 % or more from their median (results/cost.json).",
)
"""Notes of every board."""
SUBMITTED = "(submitted)"
"""The end of the label of a submitted row."""
PGD_ALONE = {"autoattack-far-below-pgd", "logit-scale", "adaptive-beats-plain", "margin-beats-cross-entropy"}
"""Flags of a loss or scale that misleads PGD but not AutoAttack, whose losses are a margin and free of the scale."""


class BoardKind(NamedTuple):
    """The properties that all rows of a board share."""

    scale: str
    protocol: str
    data: str
    imbalance: float | None
    model: str

    @property
    def title(self) -> str:
        """The heading of its table."""
        ratio = words(self.imbalance or "of the set")
        counts = f"as many images as imbalance ratio {ratio}" if "balanced" in self.data else f"imbalance ratio {ratio}"
        return f"{self.data}, {counts}, {self.model} · protocol {self.protocol} · scale {self.scale}"


@dataclass(frozen=True)
class Contender:
    """A row of a board: the cards of a method by seed."""

    label: str
    cards: Mapping[int, ResultCard]
    published: float | None = None
    """Its AutoAttack accuracy in the paper, in per cent."""
    also: tuple[str, ...] = ()
    """A sentence for each other setting whose runs have the same weights."""

    @property
    def card(self) -> ResultCard:
        """The card of the first seed."""
        return next(iter(self.cards.values()))

    def mean(self, attack: str) -> float:
        """Mean balanced accuracy over the seeds; nan if a seed lacks the attack."""
        found = [card.summary(attack).balanced if attack in attacks_on(card) else nan for card in self.cards.values()]
        return sum(found) / len(found)


@dataclass(frozen=True)
class Standings:
    """A board: comparable runs, best first."""

    kind: BoardKind
    rows: tuple[Contender, ...]
    reference: ResultCard
    """The card that others are compared with: of the first row that an item needs."""
    plain: Callable[[str], Run | None] = lambda _: None
    """The run of a method with the board's settings and none of its own."""

    def label(self, card: ResultCard) -> str:
        """Return a method with its settings that the board does not bring."""
        plain = self.plain(str(card.method))
        if plain is None:
            return str(card.method)
        run = run_from_json(card.run["config"])
        usual, own = training_settings(plain), training_settings(run)
        left = {*UNNAMED, *(() if curve_decides(run, learns_from_validation(run)) else CURVE)}
        named = own.keys() - left - {name for name in own if name.startswith("evaluation.")}
        settings = {name: own[name] for name in named if usual.get(name) != own[name]}
        return settings_words(str(card.method), tuple(sorted(settings.items())))

    def rank(self, one: Contender) -> str:
        """Return the possible ranks of a row, by the paired differences over common seeds that are decided."""
        others = [other for other in self.rows if other is not one]
        differences = [paired_cards(one.cards, other.cards, [LEAD, LEAD]) for other in others]
        decided = [found.value for found in differences if found is not None and found.decided]
        best, worst = 1 + sum(value < 0 for value in decided), len(self.rows) - sum(value > 0 for value in decided)
        return str(best) if best == worst else f"{best}–{worst}"

    def table(self, with_notes: bool = True) -> TextTable:
        """Return the rows as texts, with the notes that all boards share if wanted."""
        notes = (
            *(NOTES if with_notes else ()),
            *self._flagged(),
            *(note for one in self.rows for note in one.also),
            *(f"{one.label} leaves the protocol: {text}." for one in self.rows for text in one.card.deviations),
        )
        return TextTable(self.kind.title, HEADS, tuple(self._line(one) for one in self.rows), notes)

    def _line(self, one: Contender) -> tuple[str, ...]:
        found, under = [card.summary(LEAD) for card in one.cards.values()], one.mean("pgd-20")
        _, error = statistics.mean_and_standard_error([summary.balanced for summary in found])
        counts = one.card.data.get("train_class_counts") or []
        has_tail = max(counts, default=0) - min(counts, default=0) > 1  # equal counts may differ by rounding
        tails = [summary.groups["tail"] for summary in found if summary.groups and has_tail]
        return (
            one.label,
            self.rank(one),
            percent(one.mean(LEAD)),
            percent_interval(*found[0].balanced_interval) if len(found) == 1 else f"±{percent(float(error))}",
            MISSING if one.published is None else f"{one.published:.2f}",
            percent(one.mean("clean")),
            percent(under),
            MISSING if under != under else points(under - one.mean(LEAD)),
            percent(sum(tails) / len(tails)) if tails else MISSING,
            percent(sum(summary.worst_class[1] for summary in found) / len(found)),
            self._cost(one.card),
            str(len(_flags(one))),
            str(len(one.cards)),
        )

    def _cost(self, card: ResultCard) -> str:
        """The training time of a run relative to AT with the board's settings."""
        config, plain = card.run["config"], self.plain("at")
        ratio = time_ratio(config)
        if ratio is None or plain is None or config["training"]["precision"] != plain.training.precision:
            return MISSING
        return f"{ratio * config['training']['epochs'] / plain.training.epochs:.2f}"

    def _flagged(self) -> Iterator[str]:
        """Yield a note for each flag, with its rows."""
        found = [(one.label, _flags(one)) for one in self.rows]
        for flag in dict.fromkeys(flag for _, flags in found for flag in flags):
            yield f"Flag {flag} (docs/evaluation.md): {listed(label for label, flags in found if flag in flags)}."

    def joined(self, one: Contender) -> Standings:
        """Return the board with another row."""
        return replace(self, rows=_best_first([*self.rows, one]))


def _flags(one: Contender) -> list[str]:
    """The flags of any seed, except that of the size of the test set, which the intervals show."""
    found = dict.fromkeys(flag for card in one.cards.values() for flag in raised(card))
    return [name for name in found if name != "small-test-set"]


def boards(store: Store, scales: Sequence[Scale]) -> list[Standings]:
    """Return every board of runs that an item needs, with all other committed runs that fit it."""
    found: dict[BoardKind, dict[str, Contender]] = {}
    firsts: dict[BoardKind, tuple[Scale, PaperRow]] = {}
    for scale in scales:
        for item in items().values():
            said = _published(item)
            for row in item.rows:
                cells = store.cells(scale, row, ["clean"])
                cards = {seed: card for seed, card in by_seed(cells).items() if LEAD in attacks_on(card)}
                if not cards:
                    continue
                card = next(iter(cards.values()))
                kind = BoardKind(scale.name, PAPERS[row.paper], card.data["name"], row.imbalance, card.model["name"])
                made = Contender(settings_words(row.method, row.settings), cards, said.get(row))
                held = found.setdefault(kind, {}).setdefault(cells[0].key, made)
                firsts.setdefault(kind, (scale, row))
                if held.published is None and made.published is not None:
                    found[kind][cells[0].key] = made
    return [_board(kind, [*rows.values()], store, *firsts[kind]) for kind, rows in found.items()]


def _published(item: Item) -> dict[PaperRow, float]:
    """Return the published balanced accuracies of an item under AutoAttack, in per cent."""
    every = item.published.items()
    return {row: said for (row, of), said in every if of.metric == LEAD and of.average.startswith("balanced")}


def _board(kind: BoardKind, rows: list[Contender], store: Store, scale: Scale, first: PaperRow) -> Standings:
    """Return a board in order, with the committed runs that no item needs, if nothing excludes their cards."""

    def plain(method: str) -> Run | None:
        if method not in registry.entries("methods"):
            return None
        (point, *_) = scale.points(replace(first, method=method, settings=()), [LEAD])
        return store.planner.cell(point).run

    board = Standings(kind, tuple(rows), rows[0].card, plain)
    others: dict[str, dict[int, ResultCard]] = {}
    for path, config in store.configs:
        if config["protocol"] == kind.protocol and config["data"]["name"] == kind.data:
            card = load_card(path)
            if not [*_differs(board, card), *_faults(card)]:
                cards = others.setdefault(_any_seed(card), {})
                if weights_of(cards.setdefault(card.seed or 0, card)) != weights_of(card):
                    raise UserError(f"{path}: another card of this run has other weights; remove one of them")
    places = {_any_seed(card): at for at, row in enumerate(rows) for card in row.cards.values()}
    for key, cards in others.items():
        label = board.label(next(iter(cards.values())))
        same = places.get(key, next((at for at, row in enumerate(rows) if _is_same(row.cards, cards)), None))
        if same is None:
            rows.append(Contender(label, cards))
        else:
            held = rows[same]
            also = held.also if label == held.label else (*held.also, _alike(label, cards, held))
            rows[same] = replace(held, cards=dict(sorted({**cards, **held.cards}.items())), also=also)
    return replace(board, rows=_best_first(rows))


def _is_same(first: Mapping[int, ResultCard], second: Mapping[int, ResultCard]) -> bool:
    """Whether two rows have a seed in common, and equal weights with every seed that they have in common."""
    common = first.keys() & second.keys()
    return bool(common) and all(weights_of(first[seed]) == weights_of(second[seed]) for seed in common)


def _alike(label: str, cards: Mapping[int, ResultCard], row: Contender) -> str:
    """Return which seeds of other settings have the weights of a row, and which of them it takes besides."""
    common, others = (listed(map(str, sorted(seeds))) for seeds in (cards.keys() & row.cards, cards.keys() - row.cards))
    taken = f", with seed {others} of the former" if others else ""
    return f"{label}: the same weights as {row.label} with seed {common}, so one row{taken}."


def _best_first(rows: Iterable[Contender]) -> tuple[Contender, ...]:
    return tuple(sorted(rows, key=lambda row: -row.mean(LEAD)))


def _any_seed(card: ResultCard) -> str:
    """Return the hash that a card shares with those of other seeds; machine and later attacks do not count."""
    settings = card.run.get("config", {})
    if settings.get("method") not in registry.entries("methods"):
        return digest({**training_settings(settings), "seed": None})
    return any_seed_hash(run_from_json(settings))


def placed(found: Sequence[Standings], cards: Sequence[ResultCard]) -> tuple[Standings | None, list[str]]:
    """Return the board of a method's cards, one per seed, with their row, or None and the reasons for rejection."""
    refused = [(board, [why for card in cards for why in _differs(board, card)]) for board in found]
    board, reasons = min(refused, key=lambda one: len(one[1]), default=(None, ["there is no board yet"]))
    faults = [why for card in cards for why in _faults(card)]
    reasons = list(dict.fromkeys([*reasons, *faults, *([] if faults else _unlike(cards))]))
    weights = {*map(weights_of, cards)}
    if board is not None and any(weights_of(card) in weights for row in board.rows for card in row.cards.values()):
        reasons.append("weights: these are on the board already")
    if board is None or reasons:
        near = [] if board is None else [f"the nearest board is {board.kind.title}"]
        return None, [*reasons, *near]
    own = {card.seed or 0: card for card in cards}
    return board.joined(Contender(f"{board.label(cards[0])} {SUBMITTED}", own)), []


def _unlike(cards: Sequence[ResultCard]) -> Iterator[str]:
    """Yield why cards are not the seeds of one method."""
    if len({*map(_any_seed, cards)}) > 1:
        yield "cards: got runs with other settings than their seed; allowed: the seeds of one method"
    seeds = [card.seed or 0 for card in cards]
    if len({*seeds}) < len(seeds):
        yield f"cards: got the seeds {listed(map(str, seeds))}; allowed: one card for each seed"
    elif len({*map(weights_of, cards)}) < len(cards):
        yield "cards: got the same weights for several seeds"


def _differs(board: Standings, card: ResultCard) -> Iterator[str]:
    """Yield the reasons why a card is not comparable with a board."""
    other, config = board.reference, card.run.get("config", {})
    facts = {
        "data": (_same(card.data["name"], config.get("data", {}).get("name")), other.data["name"]),
        "classes": (card.class_names, other.class_names),
        "test images (SHA-256)": (card.data["test_sha256"], other.data["test_sha256"]),
        "extra training images": (_extra(card), _extra(other)),
        "training counts": (card.data.get("train_class_counts"), other.data.get("train_class_counts")),
        "network": (_same(card.model["name"], config.get("model", {}).get("name")), other.model["name"]),
        "pretrained weights": (_pretrained(card), _pretrained(other)),
        "protocol": (_same(card.protocol, config.get("protocol")), other.protocol),
        "threat": (card.threat, other.threat),
    }
    for name, (ours, theirs) in facts.items():
        if ours != theirs:
            yield f"{name}: got {_short(ours)}; the board has {_short(theirs)}"
    ratio = config.get("data", {}).get("imbalance_ratio")
    if ratio is not None and board.kind.imbalance is not None and ratio != board.kind.imbalance:
        yield f"imbalance ratio: got {ratio:g}; the board has {board.kind.imbalance:g}"
    if not np.array_equal(card.labels, other.labels):
        yield "test labels: got others than the board's"
    training, rule = config.get("training"), other.model.get("selection")
    if training is None or rule not in rules_of(card.model, training):
        yield f"rule that chose the epoch: got {card.model.get('selection')}; the board has {rule}"
    for attack in ("clean", LEAD):
        if attack not in attacks_on(card):
            yield f"attack {attack}: the card has none; allowed: taet evaluate RUN --attacks clean {LEAD}"
    for attack in ("clean", LEAD, "pgd-20"):
        both = attack in attacks_on(card) and attack in attacks_on(other)
        if both and card.column(attack).identity != other.column(attack).identity:
            yield f"attack {attack}: other settings than the board's"


def _same(said: object, stored: object) -> object:
    """Return what a card says, with what its settings say if that differs."""
    return said if stored in (None, said) else f"{said}, and {stored} in its settings"


def _extra(card: ResultCard) -> str:
    """Return what made the extra images of a training, or "none"."""
    return str(card.data.get("extra", {}).get("source", "none"))


def _pretrained(card: ResultCard) -> str:
    """Return where the weights before the training came from, or "none"."""
    return str(card.run.get("config", {}).get("model", {}).get("weights") or "none")


def _stronger(card: ResultCard) -> Iterator[str]:
    """Yield the attacks in the ball of AutoAttack that break more images than it, by McNemar's test, as none can."""
    lead = card.column(LEAD)
    for other in (column for column in card.columns if column is not lead and same_ball(lead, column)):
        if exceeds(int((lead.correct & ~other.correct).sum()), int((other.correct & ~lead.correct).sum())):
            yield other.name


def _faults(card: ResultCard) -> Iterator[str]:
    """Yield the faults of a card that exclude it from every board."""
    if not card.sealed:
        yield "checksum: the card has none, so it may have been changed; evaluate again"
    yield from _setting_faults(card)
    if card.clean is not None and LEAD in attacks_on(card) and (card.column(LEAD).correct & ~card.clean.correct).any():
        yield f"{LEAD}: right on images that are wrong without an attack"
    if LEAD in attacks_on(card) and (stronger := [*_stronger(card)]):
        yield f"{LEAD}: {listed(stronger)} breaks more images, and none breaks more than the official one"
    if card.model.get("leak") and card.model.get("selection") != "best-test":
        yield "test images: the epoch was chosen on them"
    if not card.probe:
        yield "probe: the card has none, so gradients may mislead; evaluate again without --no-probe"
    if misled := MASKING.intersection(raised(card)) - PGD_ALONE:
        yield f"flags: {listed(sorted(misled))}: gradients may mislead AutoAttack as well; see taet audit"


def _setting_faults(card: ResultCard) -> Iterator[str]:
    """Yield the faults of the settings that a card states for its training."""
    config = card.run.get("config") or {}
    if missing := [part for part in ("method", "protocol", "data", "model", "training") if not config.get(part)]:
        yield f"settings: no {listed(missing)}"
    elif card.run.get("hash", run_hash(config)) != run_hash(config):
        yield "settings: their hash is not that of the card"
    elif config["method"] != card.method:
        yield f"settings: got method {config['method']}; the card has {card.method}"
    elif config.get("seed") != card.seed:
        yield f"settings: got seed {config.get('seed')}; the card has {card.seed}"
    elif card.model.get("selection") == "last" and card.model.get("epoch") not in (None, config["training"]["epochs"]):
        epochs = plural(config["training"]["epochs"], "epoch")
        yield f"epoch: got {card.model['epoch']} with the selection last; the training has {epochs}"
    elif config["method"] in registry.entries("methods"):
        try:
            run_from_json(config)
        except UserError as error:
            yield f"settings: {error}"


def _short(value: object) -> str:
    text = words(value) if isinstance(value, dict) else str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
