"""What the row of a card is called in a table.

Cards that differ only in their seed are one row. A row is called by its method and the settings in
which it leaves the protocol's run, without those that most rows of the table share: "at" and "at
(epochs 240)" among runs of 60 epochs. Or it has the name that its user gave.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from taet import registry
from taet.attacks.pgd import ProjectedAscent
from taet.card.card import Card
from taet.card.column import Identity
from taet.card.comparison import same_answers
from taet.formatting import format_radius, format_value
from taet.report.row_settings import (
    EXTRA_IMAGES,
    FILE,
    SELECTION,
    THREAT,
    Values,
    protocol_settings,
    settings_of_rows,
)
from taet.settings import Training

# a row shows their values without their names
VALUE_ALONE = ("outer.name", "model.name", "data.name", THREAT)
# a row never shows these
UNNAMED = {"weights", EXTRA_IMAGES, "data.extra_source", "data.extra_trained_on"}
AS_DEFAULT = ""  # text of a default value, which no other value has


class Setting(NamedTuple):
    """What the cards of one leaderboard share, besides the images of training and test."""

    data: str
    model: str
    protocol: str
    threat: str
    extra_images: str
    weights: str
    selection: str


class RowLabel(NamedTuple):
    """The row of a card, and the setting of its leaderboard."""

    row: str
    setting: Setting


class RowKey(NamedTuple):
    """What the cards of a row share: method and settings as text, and a number, which tells apart
    several models of the same settings and seed."""

    settings: str
    number: int


class NamedRow(NamedTuple):
    """A row by its first card, and its settings."""

    card: Card
    settings: Values


def label_rows(cards: Sequence[Card]) -> list[RowLabel]:
    """Return the row of each card of one table, a name that is unique for each row, and the setting
    of its leaderboard.

    Rows with equal weights for every seed that they share are one row, with the shorter name. Other
    weights of the same settings and seed, trained on another machine, are a row of their own.
    """
    settings = settings_of_rows(cards)
    keys = _row_keys(cards, settings)
    rows: dict[RowKey, NamedRow] = {}
    for key, card, own in zip(keys, cards, settings, strict=True):
        rows.setdefault(key, NamedRow(card, own))
    home = _homes(cards, keys, _labels(rows))
    labels = _labels({key: row for key, row in rows.items() if home[key] == key})
    return [
        RowLabel(labels[home[key]], _leaderboard_setting(own))
        for key, own in zip(keys, settings, strict=True)
    ]


def _leaderboard_setting(settings: Values) -> Setting:
    names = "data.name", "model.name", "protocol", THREAT, EXTRA_IMAGES, FILE, SELECTION
    values = [settings.get(name) for name in names]
    return Setting(*("" if value is None else format_value(value) for value in values))


def _row_keys(cards: Sequence[Card], settings: Sequence[Values]) -> list[RowKey]:
    """Return a key for each card, equal for the cards of a row."""
    models: dict[tuple[str, int | None], list[Card]] = defaultdict(list)
    keys = []
    for card, own in zip(cards, settings, strict=True):
        text = _as_text([card.method, own, card.name])
        known = models[text, card.seed]
        same = [number for number, other in enumerate(known) if _is_same_model(other, card)]
        number = same[0] if same else len(known)
        if not same:
            known.append(card)
        keys.append(RowKey(text, number))
    return keys


def _as_text(values: object) -> str:
    """Return values as text, in which 3 and 3.0 are one value and true is another than 1."""
    text = json.dumps(values, sort_keys=True, default=str)
    return json.dumps(json.loads(text, parse_int=float))


def _is_same_model(first: Card, second: Card) -> bool:
    """Return whether two cards are about one model: equal weights and, without a run, equal code
    and outputs."""
    if first.model.get("weights_sha256") != second.model.get("weights_sha256"):
        return False
    if first.seed is not None:
        return True
    return first.model.get("code") == second.model.get("code") and same_answers(first, second)


def _homes(
    cards: Sequence[Card], keys: Sequence[RowKey], labels: Mapping[RowKey, str]
) -> dict[RowKey, RowKey]:
    """Return the row that the cards of each key belong to: their own, or one with a shorter name
    and equal models for every seed that both have; a name that a user gave comes first."""
    named = {key for card, key in zip(cards, keys, strict=True) if card.name is not None}
    models_of: dict[RowKey, dict[int | None, object]] = defaultdict(dict)
    for card, key in zip(cards, keys, strict=True):
        predictions = None if card.clean is None else card.clean.predictions.tobytes()
        model = card.model["weights_sha256"], card.run.get("code"), predictions
        models_of[key][card.seed] = model
    home: dict[RowKey, RowKey] = {}
    rows: list[RowKey] = []  # that are their own home
    for key in sorted(models_of, key=lambda key: (key not in named, len(labels[key]), labels[key])):
        equal = [row for row in rows if _agree(models_of[key], models_of[row])]
        home[key] = equal[0] if equal else key
        if equal:
            models_of[equal[0]] = {**models_of[key], **models_of[equal[0]]}
        else:
            rows.append(key)
    return home


def _agree(first: Mapping[int | None, object], second: Mapping[int | None, object]) -> bool:
    """Return whether two rows share a seed, and have equal models for each seed that they share."""
    shared = (first.keys() & second.keys()) - {None}
    return bool(shared) and all(first[seed] == second[seed] for seed in shared)


def _labels(rows: Mapping[RowKey, NamedRow]) -> dict[RowKey, str]:
    """Return the name of each row: its method, and each setting whose value is not the one that
    needs no name in this table."""
    unnamed_values = _values_that_need_no_name(rows.values())
    labels: dict[RowKey, str] = {}
    number_of: Counter[str] = Counter()
    for key, row in rows.items():
        named = [
            name
            for name in sorted(row.settings)
            if name not in UNNAMED
            and row.settings[name] != ""
            and _value_text(row, name) != unnamed_values[_scope(row, name)]
        ]
        label = _label(row, named)
        number_of[label] += 1
        labels[key] = label if number_of[label] == 1 else f"{label} #{number_of[label]}"
    return labels


def _label(row: NamedRow, named: Sequence[str]) -> str:
    card = row.card
    if card.name is not None:
        return card.name
    words = [setting_words(name, row.settings[name]) for name in named]
    words = [text for text in words if text != card.method]  # the network of a model without a run
    model = card.title if card.seed is None else card.method
    return f"{model} ({', '.join(words)})" if words else model


class Scope(NamedTuple):
    """Rows whose values of a setting are compared: those of one method for its own settings and its
    code, all rows otherwise."""

    setting: str
    method: str


def _is_own(name: str) -> bool:
    """Return whether a setting is one of the method."""
    return name.startswith("settings.")


def _scope(row: NamedRow, name: str) -> Scope:
    return Scope(name, row.card.method if _is_own(name) or name == "code" else "")


def _value_text(row: NamedRow, name: str) -> str:
    """Return the value of a setting in words, or `AS_DEFAULT` where it is that of the protocol."""
    value = row.settings[name]
    default = protocol_settings(row.card.protocol, row.card.method).get(name, ...)
    return AS_DEFAULT if value is None or value == default else format_value(value)


def _values_that_need_no_name(rows: Iterable[NamedRow]) -> dict[Scope, str]:
    """Return, for each setting, the value that a row has unless its name says otherwise.

    For the outer loss, what has left the package and the settings of a known method it is the
    default. For others it is the value of more than half of the rows; without such a value, the
    default, if the setting has one, and else the most frequent value.
    """
    rows_with: dict[Scope, Counter[str]] = defaultdict(Counter)
    with_default: set[Scope] = set()
    for row in rows:
        defaults = protocol_settings(row.card.protocol, row.card.method)
        for name in row.settings:
            scope, text = _scope(row, name), _value_text(row, name)
            rows_with[scope][text] += 1
            if text == AS_DEFAULT or name in defaults or name == THREAT or _is_own(name):
                with_default.add(scope)
    known_methods = registry.entries("methods")
    found = {}
    for scope, texts in rows_with.items():
        most_frequent, number = texts.most_common(1)[0]
        of_known_method = _is_own(scope.setting) and scope.method in known_methods
        is_retired = scope.setting.removeprefix("training.") in Training.retired
        if scope.setting == "outer.name" or is_retired or of_known_method:
            found[scope] = AS_DEFAULT
        elif 2 * number > texts.total() or scope not in with_default:
            found[scope] = most_frequent
        else:
            found[scope] = AS_DEFAULT
    return found


def setting_words(name: str, value: object) -> str:
    """Return a setting in words; a radius or step as k/255."""
    if name == "code":  # of a method
        return "other code"
    if name == "source_sha256":  # of an attack
        return f"code {str(value)[:8]}"
    group, _, last = name.rpartition(".")
    if last in ("eps", "step_size") and isinstance(value, float):
        text = format_radius(value)
    else:
        text = format_value(value)
    if name in VALUE_ALONE:
        return text
    label = f"{group} {last}" if group == "evaluation" or name == "data.seed" else last
    return f"{label} {text}"


def attack_names(identities: Iterable[Identity]) -> dict[Identity, str]:
    """Return the name of each attack of one table; equal names show the settings in which they
    differ."""
    known = list(dict.fromkeys(identities))
    names = {}
    for attack in known:
        differing: set[str] = set()
        for other in known:
            if other.name == attack.name:
                differing.update(attack.differences(other))
        values = {**ProjectedAscent.unstored, **dict(attack.settings)}
        values["attacks"] = " ".join(dict(part)["name"] for part in values.get("attacks", ()))
        text = ", ".join(setting_words(name, values.get(name)) for name in sorted(differing))
        names[attack] = f"{attack.name} ({text})" if text else attack.name
    return names
