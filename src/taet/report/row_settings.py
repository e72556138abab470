"""The settings by which the cards of one table are told apart and named."""

import contextlib
import functools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import multimode
from typing import Any

from taet import methods, protocols
from taet.card.card import Card
from taet.errors import UserError
from taet.formatting import format_radius
from taet.run.identity import (
    CURVE,
    naming_settings,
    retired_settings,
    run_from_json,
    training_settings,
)
from taet.settings import Run, flat, override
from taet.training.checks import idle_settings

Values = Mapping[str, object]
CURVE_EVERY, SELECTION = "training.monitor_every", "training.selection"
THREAT, EXTRA_IMAGES = "threat of the evaluation", "extra images"
FILE, FILE_SHA256 = "model.weights", "model.weights SHA-256"
SHORT_SHA256 = 8


def settings_of_rows(cards: Sequence[Card]) -> list[dict[str, object]]:
    """Return, for each card of a table, the settings that decided its weights and what its numbers
    are about: the settings of its row."""
    rules = _selection_rules(cards)
    settings = [_settings(card, rule) for card, rule in zip(cards, rules, strict=True)]
    _drop_hashes_of_unique_files(settings)
    return settings


@functools.cache
def protocol_settings(protocol: str, method: str) -> Values:
    """Return the settings of the protocol's run of a method; for an unknown method, those that all
    methods share."""
    with contextlib.suppress(UserError):
        run = protocols.start(protocol, method)
        if run.settings is None:
            run = override(run, {"settings": methods.find(method).Config()})
        return {**training_settings(run), CURVE_EVERY: run.training.monitor_every or 1}
    shared = str(Run.default("method"))
    if protocol not in protocols.PROTOCOLS or method == shared:
        return {}
    return protocol_settings(protocol, shared)


def rules_of(model: Values, training: Values) -> list[str]:
    """Return the selection rules that deliver the weights of a card, given its model and training
    settings.

    These are "best-validation" and "last" if the best epoch is the last one, unless SWA averaged
    the last weights.
    """
    of_training = training.get("selection")
    rule = str(model.get("selection") or of_training)
    if rule != "best-validation":
        return [rule]
    if of_training == "last":
        return []  # another rule measures another curve, with another best epoch
    best_is_last = model.get("epoch") == training.get("epochs")
    averaged = training.get("swa", 1.0) != 1.0
    return [rule, "last"] if best_is_last and not averaged else [rule]


def _selection_rules(cards: Sequence[Card]) -> list[str]:
    """Return the selection rule of each card; "" without a run.

    Weights of a best epoch that is the last one are delivered by two rules. They have the rule that
    most weights of the table have, or that of the protocol; but their own, if a card with a single
    rule has the same weights.
    """
    rules_of_cards = [_rules(card) for card in cards]
    single = {
        card.model["weights_sha256"]: rules[0]
        for card, rules in zip(cards, rules_of_cards, strict=True)
        if len(rules) == 1
    }
    most_frequent = multimode(single.values())
    of_table = most_frequent[0] if len(most_frequent) == 1 else None
    chosen = []
    for card, rules in zip(cards, rules_of_cards, strict=True):
        if not rules:
            chosen.append("")
            continue
        wanted = of_table or protocol_settings(card.protocol, card.method).get(SELECTION)
        free = wanted in rules and card.model["weights_sha256"] not in single
        chosen.append(str(wanted) if free else rules[0])
    return chosen


def _rules(card: Card) -> list[str]:
    training = card.run.get("config", {}).get("training")
    if training is None:
        return []
    return rules_of(card.model, training) or [str(card.model["selection"])]


def _settings(card: Card, rule: str) -> dict[str, object]:
    """Return the settings of a card's row, given its selection rule."""
    facts = _facts(card)
    stored = card.run.get("config")
    if stored:
        decided, idle = _settings_of_run(stored, rule)
        settings = {**decided, **retired_settings(stored), **facts, SELECTION: rule}
        # a curve that decides has a point for each epoch
        settings[CURVE_EVERY] = settings.get(CURVE_EVERY) or 1
        settings.pop("method", None)  # a row begins with it
        return naming_settings(settings, idle)
    if card.seed is None:
        facts["weights"] = card.model["weights_sha256"]
    return facts


def _facts(card: Card) -> dict[str, object]:
    """Return what the numbers of a card are about, and what its run read beside its settings."""
    facts: dict[str, object] = {
        "protocol": card.protocol,
        "data.name": card.data["name"],
        "model.name": card.model["name"],
        THREAT: f"{card.threat['norm']} {format_radius(card.threat['eps'])}",
    }
    if "extra" in card.data:
        facts[EXTRA_IMAGES] = card.data["extra"]["source"]
    code = card.run.get("code")
    if isinstance(code, Mapping):
        facts["code"] = " ".join(str(sha256)[:SHORT_SHA256] for sha256 in code.values())
    file_sha256 = card.run.get("pretrained_sha256")
    if file_sha256:
        facts[FILE_SHA256] = str(file_sha256)[:SHORT_SHA256]
    return facts


def _settings_of_run(stored: Mapping[str, Any], rule: str) -> tuple[Values, frozenset[str]]:
    """Return the settings of a stored run, and those of them that do not affect its weights.

    A setting that is newer than the run has its default.
    """
    try:
        run = override(run_from_json(stored), {SELECTION: rule})
        settings = training_settings(run)
        return _without_defaults_of_base(run, settings), idle_settings(run)
    except UserError:  # the method is not known here, or lacks an option
        settings = training_settings(stored)
    with contextlib.suppress(UserError):
        shared = run_from_json({**stored, "method": Run.default("method"), "settings": None})
        own = {"settings": stored.get("settings")}
        settings = training_settings({**shared.model_dump(), **own})
    return settings, CURVE


def _without_defaults_of_base(run: Run, settings: Values) -> Values:
    """Return the settings without those of a wrapped method that are its defaults."""
    base = methods.find(str(settings.get("settings.base") or run.method)).Config()
    defaults = {f"settings.base_settings.{name}": value for name, value in flat(base.model_dump())}
    return {name: value for name, value in settings.items() if defaults.get(name, ...) != value}


def _drop_hashes_of_unique_files(settings: Sequence[dict[str, object]]) -> None:
    """Drop the hash of a file of weights from the settings of its cards, unless the table has
    several files of its name."""
    hashes: dict[object, set[object]] = defaultdict(set)
    for own in settings:
        if FILE_SHA256 in own:
            hashes[own.get(FILE)].add(own[FILE_SHA256])
    for own in settings:
        if len(hashes[own.get(FILE)]) < 2:
            own.pop(FILE_SHA256, None)
