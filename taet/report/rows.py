"""What a card may be compared with, and what its row is called: the one place where both are decided.

Cards that differ only in their seed are one row. A row is named by its method and by the settings in which it leaves
the protocol's run, without those that most rows share: in a table of runs of 60 epochs, "at" and "at (epochs 240)".
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from taet import methods, protocols
from taet.attacks.identity import Identity
from taet.data.sources import is_own
from taet.errors import UserError
from taet.evaluation.card import ResultCard
from taet.formatting import size, words
from taet.settings import Run, override
from taet.training.decisive_settings import CURVE, left_behind, training_settings
from taet.training.record import run_from_json
from taet.training.resolve import learns_from_validation
from taet.training.schedule import curve_decides

UNNAMED = frozenset({"seed", "method", "protocol", "model.name", "model.weights", "training.distance_images"})
"""Settings that change no weights, or that a `Setting` already holds; so do those of the data that choose images."""
IMAGES = frozenset(
    f"data.{name}"
    for name in ("name", "imbalance_ratio", "default_imbalance_ratio", "profile", "max_count", "test", "test_max_count")
) | {"data.validation"}
EVERY = "training.monitor_every"
Deviations = Mapping[str, object]
"""Settings of a run that are not those of its protocol, by dotted name."""


class Setting(NamedTuple):
    """What every card of a board shares; cards of other settings are compared image by image, but not ranked."""

    data: str
    imbalance_ratio: float | None
    model: str
    protocol: str
    norm: str
    eps: float
    train_counts: tuple[int, ...]
    """Training images of each class; empty if they are not known."""
    extra: str
    """Source of extra training images; empty without any."""
    pretrained: str
    """Weights before the training; empty if it began at random ones."""
    selection: str = ""
    """The rule that chose the epoch; empty if it is not known."""

    @classmethod
    def of(cls, card: ResultCard) -> Setting:
        """Return the setting of a card, without the rule that chose its epoch: one card may follow two rules."""
        data, counts = card.data, card.data.get("train_class_counts")
        return cls(
            data["name"],
            data.get("imbalance_ratio"),
            card.model["name"],
            card.protocol,
            card.threat["norm"],
            card.threat["eps"],
            () if counts is None else tuple(counts),
            data["extra"]["source"] if "extra" in data else "",
            str(card.run.get("config", {}).get("model", {}).get("weights") or ""),
        )

    def words(self) -> tuple[str, ...]:
        """Return each part in words, in the order of the fields; empty if there is nothing to say."""
        ratio = "" if self.imbalance_ratio is None else f"imbalance {self.imbalance_ratio:.4g}"
        protocol, radius = f"protocol {self.protocol}" if self.protocol else "", f"{self.norm} {size(self.eps)}"
        images = f"{sum(self.train_counts):,} training images" if self.train_counts else ""
        return (self.data, ratio, self.model, protocol, "", radius, images, self.extra, self.pretrained, "")


def images(card: ResultCard) -> tuple[object, ...]:
    """Return what the cards of one table share: test images, classes, labels, and the training images of each class."""
    counts = card.data.get("train_class_counts")
    labels = hashlib.sha256(card.labels.astype("<i8").tobytes()).digest()
    return card.data["test_sha256"], card.class_names, labels, None if counts is None else tuple(counts)


def rules_of(model: Mapping[str, object], training: Mapping[str, object]) -> list[str]:
    """Return the rules of selection whose runs deliver the weights of a card, given its model and training settings.

    A best epoch that is the last one is both. An average has statistics of its own, so it is left out.
    """
    rule = str(model.get("selection") or training.get("selection"))
    if rule != "best-validation":
        return [rule]
    if training.get("selection") == "last":  # another rule measures another curve, with another best epoch
        return []
    is_last = model.get("epoch") == training.get("epochs") and training.get("swa", 1.0) == 1.0
    return [rule, "last"] if is_last else [rule]


@functools.cache
def _of_protocol(protocol: str, method: str) -> Mapping[str, object]:
    """Return the settings of the protocol's run of a method; those that all methods share if it is not known here."""
    with contextlib.suppress(UserError):
        run = protocols.start(protocol, method)
        if run.settings is None:
            run = override(run, {"settings": methods.find(method).Config()})
        return {**training_settings(run), EVERY: run.training.monitor_every or 1}
    return (
        _of_protocol(protocol, Run.default("method"))
        if protocol in protocols.PROTOCOLS and method != Run.default("method")
        else {}
    )


def _typed(card: ResultCard) -> Run | Mapping[str, Any]:
    """Return the settings of a card's run; one that is newer than the card has its default, if the method is known.

    Not on own images without `data.mirror`: such runs mirrored them all.
    """
    stored: Mapping[str, Any] = card.run["config"]
    if "mirror" in stored["data"] or not is_own(str(stored["data"].get("name"))):
        with contextlib.suppress(UserError):
            return run_from_json(stored)
    return stored


def _trained(card: ResultCard, usual_rule: str) -> Mapping[str, Any]:
    """Return the settings that decided the weights of a card, except those of its `Setting` and its seed."""
    if not card.run.get("config"):
        return {"weights": card.model["weights_sha256"]} if card.seed is None else {}
    run, rules = _typed(card), _rules(card)
    rule = usual_rule if usual_rule in rules else rules[0]
    idle = frozenset[str]()
    if isinstance(run, Run):
        run = override(run, {"training.selection": rule})
        idle = frozenset() if curve_decides(run, learns_from_validation(run)) else CURVE
    values = {**training_settings(run), **left_behind(card.run["config"]), "training.selection": rule}
    values[EVERY] = values.get(EVERY) or 1  # a curve that decides has a point for each epoch
    left = UNNAMED | IMAGES | idle
    return {name: value for name, value in values.items() if name not in left and not name.startswith("evaluation.")}


def _rules(card: ResultCard) -> list[str]:
    return rules_of(card.model, card.run["config"]["training"]) or [str(card.model["selection"])]


def _usual_rules(cards: Sequence[ResultCard]) -> dict[Setting, str]:
    """Return for each setting the rule of selection that most of its cards have for certain, else the protocol's."""
    found: dict[Setting, Counter[str]] = defaultdict(Counter)
    for card in cards:
        setting = Setting.of(card)
        found[setting][str(_of_protocol(setting.protocol, card.method).get("training.selection"))] += 0
        if card.run.get("config") and len(rules := _rules(card)) == 1:
            found[setting][rules[0]] += 1
    return {setting: rules.most_common(1)[0][0] for setting, rules in found.items()}


class _Row(NamedTuple):
    """The settings that a row's cards share."""

    setting: Setting
    method: str
    trained: Mapping[str, Any]

    @property
    def key(self) -> str:
        """Equal for equal settings; 3 and 3.0 are one value."""
        text = json.dumps([self.setting, self.method, self.trained], sort_keys=True, default=str)
        return json.dumps(json.loads(text, parse_int=float))

    @property
    def deviations(self) -> Deviations:
        """The settings that are not those of the protocol's run; None where the protocol's value stands."""
        usual = _of_protocol(self.setting.protocol, self.method)
        return {name: None if usual.get(name, ...) == value else value for name, value in self.trained.items()}


class Named(NamedTuple):
    """The name of a card's row, and what its board shares."""

    row: str
    setting: Setting


def named(cards: Sequence[ResultCard]) -> list[Named]:
    """Return the row of each card of one table: a name that is unique for each row, and its setting.

    Rows with equal weights for every seed that they share are one row, with the shorter name. Other weights of the same
    settings and seed, trained on another machine, are a row of their own.
    """
    usual = _usual_rules(cards)
    rows = [_Row(Setting.of(card), card.method, _trained(card, usual[Setting.of(card)])) for card in cards]
    keys = _apart([row.key for row in rows], cards)
    firsts = dict(zip(reversed(keys), reversed(rows), strict=True))
    names = _unique(_labels({key: firsts[key] for key in dict.fromkeys(keys)}))
    same = _merged(keys, cards, names)
    rules = [str(row.trained.get("training.selection", "")) for row in rows]
    return [
        Named(names[same[key]], row.setting._replace(selection=rule))
        for key, row, rule in zip(keys, rows, rules, strict=True)
    ]


def _apart(keys: Iterable[str], cards: Iterable[ResultCard]) -> list[str]:
    """Number the keys of cards that share settings and seed, but not the weights."""
    seen: dict[tuple[str, int | None], list[str]] = defaultdict(list)
    found = []
    for key, card in zip(keys, cards, strict=True):
        known, weights = seen[key, card.seed], card.model["weights_sha256"]
        if weights not in known:
            known.append(weights)
        place = known.index(weights)
        found.append(f"{key} {place}" if place else key)
    return found


def _merged(keys: Sequence[str], cards: Sequence[ResultCard], names: Mapping[str, str]) -> Mapping[str, str]:
    """Return for each key the one whose row has its cards."""
    models: dict[str, dict[int | None, object]] = defaultdict(dict)
    for key, card in zip(keys, cards, strict=True):
        answers = None if card.clean is None else card.clean.predictions.tobytes()
        models[key][card.seed] = card.model["weights_sha256"], answers
    same: dict[str, str] = {}
    kept: list[str] = []
    for key in sorted(models, key=lambda key: (len(names[key]), names[key])):
        mine = models[key]
        alike = (
            other
            for other in kept
            if (common := mine.keys() & models[other].keys()) and all(mine[s] == models[other][s] for s in common)
        )
        same[key] = next(alike, key)
        models[same[key]] = {**mine, **models[same[key]]}
        kept += [key] if same[key] == key else []
    return same


def _labels(rows: Mapping[str, _Row]) -> dict[str, str]:
    """Return the method of each row with the settings in which it deviates from the others of its `Setting`.

    Rows that are called the same then have the parts of their settings that tell them apart.
    """
    deviations = {key: row.deviations for key, row in rows.items()}
    counts: dict[object, Counter[str]] = defaultdict(Counter)
    for key, row in rows.items():
        for name, value in deviations[key].items():
            counts[_group(row, name)][words(value)] += 1

    def label(key: str, row: _Row) -> str:
        off = {
            name: row.trained[name]
            for name, value in deviations[key].items()
            if name != "weights" and words(value) != _usual(counts[_group(row, name)], name, row.method)
        }
        parts = [words(value) if name == "outer.name" else _part(name, value) for name, value in sorted(off.items())]
        return f"{row.method} ({', '.join(parts)})" if parts else row.method

    labels = {key: label(key, row) for key, row in rows.items()}
    return {key: " · ".join([labels[key], *_apart_by(row, rows, labels, key)]) for key, row in rows.items()}


def _apart_by(row: _Row, rows: Mapping[str, _Row], labels: Mapping[str, str], key: str) -> list[str]:
    """Return the fewest parts of a row's setting, in order, that tell it apart from others of its label."""
    others = [other.setting.words() for place, other in rows.items() if labels[place] == labels[key]]
    chosen: list[int] = []
    for field in range(len(Setting._fields)):
        if len({tuple(other[i] for i in (*chosen, field)) for other in others}) > len(
            {tuple(other[i] for i in chosen) for other in others}
        ):
            chosen.append(field)
    return [words for field in chosen if (words := row.setting.words()[field])]


def _group(row: _Row, name: str) -> tuple[object, ...]:
    """Return the rows among which a setting may be usual: those of its `Setting`, own settings by method."""
    return row.setting, name, row.method if name.startswith("settings.") else ""


def _usual(found: Counter[str], name: str, method: str) -> str:
    """Return the value that most rows have, the protocol's among equals; own settings have that of their method."""
    protocol = words(None)
    if name.startswith("settings.") and _known(method):
        return protocol
    most = max(found.values())
    return protocol if found[protocol] == most else next(value for value, count in found.items() if count == most)


@functools.cache
def _known(method: str) -> bool:
    with contextlib.suppress(UserError):
        return bool(methods.find(method))
    return False


def _part(name: str, value: object) -> str:
    """Return a setting in words; a radius or step as k/255."""
    last = name.rpartition(".")[2]
    return f"{last} {size(value) if last in ('eps', 'step_size') and isinstance(value, float) else words(value)}"


def _unique(names: Mapping[str, str]) -> dict[str, str]:
    """Number the rows whose names are equal: models that were trained elsewhere, or again on another machine."""
    seen: Counter[str] = Counter()
    found = {}
    for key, name in names.items():
        seen[name] += 1
        found[key] = name if seen[name] == 1 else f"{name} #{seen[name]}"
    return found


def attack_names(identities: Iterable[Identity]) -> dict[Identity, str]:
    """Return the name of each attack of one test set; equal names show the settings in which they differ."""
    by_name: dict[str, list[Identity]] = defaultdict(list)
    for identity in dict.fromkeys(identities):
        by_name[identity.name].append(identity)
    found = {}
    for name, alike in by_name.items():
        for one in alike:
            apart = sorted({key for other in alike for key in one.differences(other)})
            found[one] = f"{name} ({', '.join(_detail(one, key) for key in apart)})" if apart else name
    return found


def _detail(one: Identity, key: str) -> str:
    """Return a setting of an attack in words."""
    if key == "attacks":
        return " ".join(member.name for member in one.members)
    value: object = dict(one.settings).get(key, getattr(one, key, None))
    return _part(key, value)
