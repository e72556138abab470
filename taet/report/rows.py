"""What a card may be compared with, and what its row is called: the one place where both are decided.

Cards that differ only in their seed are one row. A row is called by its method and the settings in which it leaves the
protocol's run, without those that most rows of the table share: "at" and "at (epochs 240)" among runs of 60 epochs.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from taet import methods, protocols, registry
from taet.attacks.identity import Identity
from taet.data.sources import is_own
from taet.errors import UserError
from taet.evaluation.card import ResultCard
from taet.formatting import size, words
from taet.settings import Run, override, to_json
from taet.training.record import CURVE, left_behind, run_from_json, training_settings
from taet.training.resolve import curve_decides, learns_from_validation

EVERY, RULE = "training.monitor_every", "training.selection"
IMAGES = ("root", "storage", "imbalance_ratio", "default_imbalance_ratio", "profile", "max_count", "validation")
IDLE = {"seed", "method", "training.distance_images"} | {f"data.{of}" for of in (*IMAGES, "test", "test_max_count")}
"""Values that change no weights, or only by the images of a training set, which cards of one table share."""
PLAIN = ("outer.name", "model.name", "data.name", "threat of the evaluation", "extra images")
"""Values whose value says what they are."""
UNNAMED = {"weights", PLAIN[4], "data.extra_source", "data.extra_trained_on"}
"""Descriptions of what other settings or the data name."""
Values = Mapping[str, Any]


class Setting(NamedTuple):
    """What the cards of one board share, besides the images of training and test."""

    data: str
    model: str
    protocol: str
    threat: str
    extra: str
    """Source of extra training images."""
    pretrained: str
    """Weights before the training."""
    selection: str
    """Rule that chose the epoch."""


def images(card: ResultCard) -> tuple[object, ...]:
    """Return what the cards of one table share: test images, classes, labels, and the training images of each class."""
    counts = card.data.get("train_class_counts")
    labels = hashlib.sha256(card.labels.astype("<i8").tobytes()).digest()
    return card.data["test_sha256"], card.class_names, labels, None if counts is None else tuple(counts)


def named(cards: Sequence[ResultCard]) -> list[tuple[str, Setting]]:
    """Return the row of each card of one table: a name that is unique for each row, and its setting.

    Rows with equal weights for every seed that they share are one row, with the shorter name. Other weights of the same
    settings and seed, trained on another machine, are a row of their own.
    """
    certain = [rules[0] for card in cards if len(rules := _rules(card)) == 1]
    usual = Counter(certain or ["protocol"]).most_common(2)
    tied = len(usual) == 2 and usual[0][1] == usual[1][1]
    settings = [_settings(card, "protocol" if tied else usual[0][0]) for card in cards]
    keys = _keys(cards, settings)
    firsts = {key: place for place, key in reversed([*enumerate(keys)])}
    rows = {key: (cards[firsts[key]], settings[firsts[key]]) for key in dict.fromkeys(keys)}
    labels, seen = _labels(rows), Counter[str]()
    for key, label in labels.items():
        seen[label] += 1
        labels[key] = label if seen[label] == 1 else f"{label} #{seen[label]}"
    same = _merged(cards, keys, labels)
    return [(labels[same[key]], _setting(own)) for key, own in zip(keys, settings, strict=True)]


def _setting(settings: Values) -> Setting:
    names = ("data.name", "model.name", "protocol", *PLAIN[3:], "model.weights", RULE)
    return Setting(*(words(settings[name]) if settings.get(name) is not None else "" for name in names))


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


def _rules(card: ResultCard) -> list[str]:
    training = card.run.get("config", {}).get("training")
    return [] if training is None else rules_of(card.model, training) or [str(card.model["selection"])]


@functools.cache
def _of_protocol(protocol: str, method: str) -> Values:
    """Return the settings of the protocol's run of a method; those that all methods share if it is not known here."""
    with contextlib.suppress(UserError):
        run = protocols.start(protocol, method)
        if run.settings is None:
            run = override(run, {"settings": methods.find(method).Config()})
        return {**training_settings(run), EVERY: run.training.monitor_every or 1}
    usual = str(Run.default("method"))
    return _of_protocol(protocol, usual) if protocol in protocols.PROTOCOLS and method != usual else {}


def _settings(card: ResultCard, usual_rule: str) -> Values:
    """Return the settings that decided the weights of a card, except its seed, and what its numbers are about.

    A setting that is newer than the card has its default, if its method is known here; not on own images without
    `data.mirror`, which were all mirrored.
    """
    of_data, of_model, threat = card.data, card.model, card.threat
    own: dict[str, Any] = {"protocol": card.protocol, "data.name": of_data["name"], "model.name": of_model["name"]}
    own[PLAIN[3]] = f"{threat['norm']} {size(threat['eps'])}"
    own |= {PLAIN[4]: of_data["extra"]["source"]} if "extra" in of_data else {}
    stored = card.run.get("config")
    if not stored:
        return own if card.seed is not None else {**own, "weights": of_model["weights_sha256"]}
    run: Run | Values = stored
    if "mirror" in stored["data"] or not is_own(str(stored["data"].get("name"))):
        with contextlib.suppress(UserError):
            run = run_from_json(stored)
        if not isinstance(run, Run):  # of a method, or with an option of it, that is not known here
            with contextlib.suppress(UserError):
                shared = run_from_json({**stored, "method": Run.default("method"), "settings": None})
                run = {**to_json(shared), "settings": stored.get("settings")}
    rules, wanted = _rules(card), usual_rule
    if wanted == "protocol":
        wanted = str(_of_protocol(card.protocol, card.method).get(RULE))
    rule, idle = wanted if wanted in rules else rules[0], IDLE
    if isinstance(run, Run):
        run = override(run, {RULE: rule})
        idle = IDLE if curve_decides(run, learns_from_validation(run)) else IDLE | CURVE
    values = {**training_settings(run), **left_behind(stored), **own, RULE: rule}
    values[EVERY] = values.get(EVERY) or 1  # a curve that decides has a point for each epoch
    return {name: value for name, value in values.items() if name not in idle and not name.startswith("evaluation.")}


def _keys(cards: Sequence[ResultCard], settings: Sequence[Values]) -> list[str]:
    """Return a key for each card, equal for the cards of a row; other weights of a seed have another."""
    seen: dict[tuple[str, int | None], list[str]] = defaultdict(list)
    found = []
    for card, own in zip(cards, settings, strict=True):
        text = json.dumps([card.method, own], sort_keys=True, default=str)
        key = json.dumps(json.loads(text, parse_int=float))  # 3 and 3.0 are one value
        known, weights = seen[key, card.seed], card.model["weights_sha256"]
        known += [] if weights in known else [weights]
        found.append(f"{key} {known.index(weights)}")
    return found


def _merged(cards: Sequence[ResultCard], keys: Sequence[str], labels: Mapping[str, str]) -> Mapping[str, str]:
    """Return for each key that of the row which has its cards."""
    models: dict[str, dict[int | None, object]] = defaultdict(dict)
    for card, key in zip(cards, keys, strict=True):
        answers = None if card.clean is None else card.clean.predictions.tobytes()
        models[key][card.seed] = card.model["weights_sha256"], answers
    same: dict[str, str] = {}
    for key in sorted(models, key=lambda key: (len(labels[key]), labels[key])):
        mine, kept = models[key], (other for other in same if same[other] == other)
        shared = ((other, mine.keys() & models[other].keys()) for other in kept)
        same[key] = next((o for o, seeds in shared if seeds and all(mine[s] == models[o][s] for s in seeds)), key)
        models[same[key]] = {**mine, **models[same[key]]}
    return same


def _labels(rows: Mapping[str, tuple[ResultCard, Values]]) -> dict[str, str]:
    """Return the method of each row, with its settings that are neither the protocol's nor those of most rows."""
    found: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    off: dict[str, dict[str, tuple[tuple[str, str], str]]] = {}
    for key, (card, settings) in rows.items():
        usual, known = _of_protocol(card.protocol, card.method), card.method in registry.entries("methods")
        off[key] = {}
        for name, value in settings.items():
            own = name.startswith("settings.")
            group = (name, card.method if own else "")
            deviation = words(None) if usual.get(name, ...) == value else words(value)
            off[key][name] = (group, deviation)
            found[group][deviation] += 1
            if own and known:  # an option is named against its default, whatever the others have
                found[group][words(None)] += len(rows)
    labels = {}
    for key, (card, settings) in rows.items():
        parts = [
            words(settings[name]) if name in PLAIN else setting_words(name, settings[name])
            for name, (group, deviation) in sorted(off[key].items())
            if name not in UNNAMED and deviation != _most(found[group])
        ]
        labels[key] = f"{card.method} ({', '.join(parts)})" if parts else card.method
    return labels


def _most(found: Counter[str]) -> str:
    """Return the value that most rows have, the protocol's among equals."""
    return max(found, key=lambda value: (found[value], value == words(None)))


def setting_words(name: str, value: object) -> str:
    """Return a setting in words; a radius or step as k/255."""
    last = name.rpartition(".")[2]
    return f"{last} {size(value) if last in ('eps', 'step_size') and isinstance(value, float) else words(value)}"


def attack_names(identities: Iterable[Identity]) -> dict[Identity, str]:
    """Return the name of each attack of one table; equal names show the settings in which they differ."""
    by_name: dict[str, list[Identity]] = defaultdict(list)
    for identity in dict.fromkeys(identities):
        by_name[identity.name].append(identity)
    found = {}
    for name, alike in by_name.items():
        for one in alike:
            values = {**dict(one.settings), "eps": one.eps, "norm": one.norm, "bounded": one.bounded}
            values["attacks"] = " ".join(member.name for member in one.members)
            apart = sorted({key for other in alike for key in one.differences(other)})
            said = ", ".join(setting_words(key, values.get(key)) for key in apart)
            found[one] = f"{name} ({said})" if said else name
    return found
