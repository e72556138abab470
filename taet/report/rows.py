"""Cards: where they come from, what they may be compared with, and what their row is called.

Cards that differ only in their seed are one row. A row is called by its method and the settings in which it leaves the
protocol's run, without those that most rows of the table share: "at" and "at (epochs 240)" among runs of 60 epochs.
"""

import contextlib
import functools
import glob
import json
import os
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import multimode

from taet import methods, protocols, registry
from taet.attacks.pgd import ProjectedAscent
from taet.errors import UserError, located
from taet.evaluation.card import Card, card_of, same_answers
from taet.evaluation.column import Column, Identity
from taet.formatting import size, words
from taet.models.weights import local
from taet.settings import Run, Training, flat, override
from taet.training.folder import RunFolder
from taet.training.record import CURVE, Epoch, retired_settings, run_from_json, training_settings
from taet.training.resolve import EVALUATION, idle_settings

Sources = str | os.PathLike[str] | Card | Iterable[str | os.PathLike[str] | Card]
ALLOWED = "a run folder, a card, a folder or a pattern of these"
KIND = b'"taet result card"'
Values = Mapping[str, object]
EVERY, RULE, THREAT, EXTRA = "training.monitor_every", "training.selection", "threat of the evaluation", "extra images"
SETTING = ("data.name", "model.name", "protocol", THREAT, EXTRA, "model.weights", RULE)
"""Settings that the cards of one board share, besides the images of training and test."""
FILE = "model.weights SHA-256"  # distinguishes files of one name
IMAGES = ("root", "storage", "imbalance_ratio", "default_imbalance_ratio", "profile", "max_count", "validation")
IDLE = {"seed", "method", "training.distance_images"} | {f"data.{of}" for of in (*IMAGES, "test", "test_max_count")}
"""Settings that change no weights, or only by the training images, which the cards of one table share."""
PLAIN = ("outer.name", "model.name", "data.name", THREAT)  # a row shows their values without their names
UNNAMED = {"weights", EXTRA, "data.extra_source", "data.extra_trained_on"}  # a row never shows these


@dataclass(frozen=True, eq=False)
class StoredCard:
    """A card with its file or position in memory, the epochs of its run, and its place in a table."""

    name: str
    card: Card
    epochs: tuple[Epoch, ...] = ()
    row: str = ""
    setting: tuple[str, ...] = ()  # its values of `SETTING`
    columns: Mapping[str, Column] = field(default_factory=dict)  # by the names of their attacks, in the table's order

    @property
    def about(self) -> tuple[object, ...]:
        card, data, model = self.card, self.card.data, self.card.model["name"]
        of_images = data["name"], data["test_sha256"][:8], data.get("imbalance_ratio")
        return self.name, self.row, card.method, *of_images, model, card.protocol, card.seed


def read(*sources: Sources) -> tuple[list[StoredCard], list[str]]:
    """Return the cards of all sources, files sorted by name before those in memory, and the run folders without a card.

    Raises:
        UserError: a source without a card, a damaged card, a card of other weights than its folder's.
    """
    nested = ([one] if isinstance(one, str | os.PathLike | Card) else one for one in sources)
    given = [one for source in nested for one in source]
    found, waiting = list[StoredCard](), list[str]()
    named = (os.fspath(one) for one in given if not isinstance(one, Card))
    places = (place for name in named for place in _places(name))
    unique = {path.resolve(): path for path in sorted(places, key=Path.is_symlink, reverse=True)}  # a run, not its link
    for path in sorted(unique.values(), key=Path.as_posix):
        folder, name = RunFolder(path), path.as_posix()
        if not path.is_dir():
            found.append(StoredCard(name, Card.load(path)))
        elif (card := card_of(folder)) is not None:
            found.append(StoredCard(name, card, folder.metrics if folder.is_run else ()))
        else:
            waiting.append(name)
    found += [StoredCard(f"card {number}", one) for number, one in enumerate(given, 1) if isinstance(one, Card)]
    if not found and waiting:
        raise UserError(f"no result card in {waiting[0]}; evaluate it first: taet evaluate {waiting[0]}")
    if not found:
        raise UserError(f"no result card; allowed: {ALLOWED}")
    return found, waiting


def _places(name: str) -> list[Path]:
    if not name.strip():
        raise UserError(f"results: got an empty path; allowed: {ALLOWED}")
    path = local(name)
    if path.is_file():
        return [path]
    paths = [path] if path.is_dir() else map(Path, sorted(glob.glob(name, recursive=True)))
    if found := [place for each in paths for place in _inside(each)]:
        return found
    raise UserError(f"{name}: no result card; allowed: {ALLOWED}")


def _inside(path: Path) -> list[Path]:
    """Return a run folder or card itself, or those inside a folder; skip other JSON, and links unless to a run."""
    card = RunFolder(path).card() if path.is_dir() else path
    if card.suffix == ".json" and card.is_file():
        with located("results"), card.open("rb") as file:
            if KIND in file.read(200):
                return [path]
    if not path.is_dir() or RunFolder(path).is_run:
        return [path] if path.is_dir() else []
    inner = (one for one in sorted(path.iterdir()) if not one.is_symlink() or RunFolder(one).is_run)
    return [place for one in inner for place in _inside(one)]


def images(card: Card) -> tuple[object, ...]:
    """Return what cards of one table share: test images and labels, classes, and training images of each class."""
    counts = card.data.get("train_class_counts")
    return card.data["test_sha256"], card.class_names, None if counts is None else tuple(counts)


def named(cards: Sequence[Card]) -> list[tuple[str, tuple[str, ...]]]:
    """Return the row of each card of one table, a name that is unique for each row, and its values of `SETTING`.

    Rows with equal weights for every seed that they share are one row, with the shorter name. Other weights of the same
    settings and seed, trained on another machine, are a row of their own.
    """
    single = {card.model["weights_sha256"]: rules[0] for card in cards if len(rules := _rules(card)) == 1}
    usual = multimode(single.values())
    settings = [_settings(card, usual[0] if len(usual) == 1 else "", single) for card in cards]
    files = Counter(name for name, _ in {(own.get("model.weights"), own[FILE]) for own in settings if FILE in own})
    several = {name for name, number in files.items() if number > 1}
    settings = [{k: v for k, v in own.items() if k != FILE or own.get("model.weights") in several} for own in settings]
    keys = _keys(cards, settings)
    found = {key: (cards[keys.index(key)], settings[keys.index(key)]) for key in dict.fromkeys(keys)}
    same = _merged(cards, keys, _labels(found))
    labels = _labels({key: one for key, one in found.items() if same[key] == key})
    shared = [tuple("" if own.get(name) is None else words(own[name]) for name in SETTING) for own in settings]
    return [(labels[same[key]], setting) for key, setting in zip(keys, shared, strict=True)]


def rules_of(model: Values, training: Values) -> list[str]:
    """Return the selection rules that deliver the weights of a card, given its model and training settings.

    These are "best-validation" and "last" if the best epoch is the last one, unless SWA averaged the last weights.
    """
    rule = str(model.get("selection") or training.get("selection"))
    if rule == "best-validation" and training.get("selection") == "last":
        return []  # another rule measures another curve, with another best epoch
    is_last = model.get("epoch") == training.get("epochs") and training.get("swa", 1.0) == 1.0
    return [rule, "last"] if rule == "best-validation" and is_last else [rule]


def _rules(card: Card) -> list[str]:
    training = card.run.get("config", {}).get("training")
    return [] if training is None else rules_of(card.model, training) or [str(card.model["selection"])]


@functools.cache
def _of_protocol(protocol: str, method: str) -> Values:
    """Return the settings of the protocol's run of a method; for an unknown method, those that all methods share."""
    with contextlib.suppress(UserError):
        run = protocols.start(protocol, method)
        run = run if run.settings is not None else override(run, {"settings": methods.find(method).Config()})
        return {**training_settings(run), EVERY: run.training.monitor_every or 1}
    usual = str(Run.default("method"))
    return _of_protocol(protocol, usual) if protocol in protocols.PROTOCOLS and method != usual else {}


def _settings(card: Card, usual_rule: str, single: Collection[str]) -> Values:
    """Return the settings that decided the weights of a card, except the seed, and what its numbers are about.

    If several selection rules deliver these weights, the rule is the card's own if `single` contains the weights, else
    the usual rule of the table, or that of the protocol. A setting that is newer than the card has its default.
    """
    own: dict[str, object] = {"protocol": card.protocol, "data.name": card.data["name"]}
    own |= {"model.name": card.model["name"], THREAT: f"{card.threat['norm']} {size(card.threat['eps'])}"}
    own |= {EXTRA: card.data["extra"]["source"]} if "extra" in card.data else {}
    if isinstance(code := card.run.get("code"), Mapping):
        own["code"] = " ".join(str(sha256)[:8] for sha256 in code.values())
    own |= {FILE: str(sha256)[:8]} if (sha256 := card.run.get("pretrained_sha256")) else {}
    if not (stored := card.run.get("config")):
        return own if card.seed is not None else {**own, "weights": card.model["weights_sha256"]}
    rules, wanted = _rules(card), usual_rule or _of_protocol(card.protocol, card.method).get(RULE)
    rule = rules[0] if wanted not in rules or card.model["weights_sha256"] in single else wanted
    idle, read = IDLE | EVALUATION | CURVE, training_settings(stored)
    try:
        run = override(run_from_json(stored), {RULE: rule})
        idle, read = IDLE | idle_settings(run), training_settings(run)
        base = methods.find(read.get("settings.base") or run.method).Config()
        defaults = {f"settings.base_settings.{name}": value for name, value in flat(base.model_dump())}
        read = {name: value for name, value in read.items() if defaults.get(name, ...) != value}
    except UserError:  # the method is not known here, or lacks an option
        with contextlib.suppress(UserError):
            shared = run_from_json({**stored, "method": Run.default("method"), "settings": None})
            read = training_settings({**shared.model_dump(), "settings": stored.get("settings")})
    values = {**read, **retired_settings(stored), **own, RULE: rule}
    values[EVERY] = values.get(EVERY) or 1  # a curve that decides has a point for each epoch
    return {name: value for name, value in values.items() if name not in idle}


def _keys(cards: Sequence[Card], settings: Sequence[Values]) -> list[str]:
    seen: dict[tuple[str, int | None], list[Card]] = defaultdict(list)
    found = []
    for card, own in zip(cards, settings, strict=True):
        text = json.dumps([card.method, own], sort_keys=True, default=str)
        key = json.dumps(json.loads(text, parse_int=float))  # 3 and 3.0 are one value
        models = seen[key, card.seed]  # other weights of a seed are another row
        number = next((n for n, one in enumerate(models) if _same_model(one, card)), len(models))
        models += [card] if number == len(models) else []
        found.append(f"{key} {number}")
    return found


def _same_model(one: Card, other: Card) -> bool:
    """Return whether two cards are about one model: equal weights and, without a run, equal code and outputs."""
    weights, code = (one.model.get(name) == other.model.get(name) for name in ("weights_sha256", "code"))
    return weights and (one.seed is not None or (code and same_answers(one, other)))


def _merged(cards: Sequence[Card], keys: Sequence[str], labels: Mapping[str, str]) -> Mapping[str, str]:
    """Return, for each key, the key of the row that its cards belong to."""
    models: dict[str, dict[int | None, object]] = defaultdict(dict)
    for card, key in zip(cards, keys, strict=True):
        answers = None if card.clean is None else card.clean.predictions.tobytes()
        models[key][card.seed] = card.model["weights_sha256"], card.run.get("code"), answers
    same: dict[str, str] = {}
    for key in sorted(models, key=lambda key: (len(labels[key]), labels[key])):
        mine, kept = models[key], (other for other in same if same[other] == other)
        shared = ((other, (mine.keys() & models[other].keys()) - {None}) for other in kept)
        same[key] = next((o for o, seeds in shared if seeds and all(mine[s] == models[o][s] for s in seeds)), key)
        models[same[key]] = {**mine, **models[same[key]]}
    return same


def _labels(rows: Mapping[str, tuple[Card, Values]]) -> dict[str, str]:
    """Return the name of each row: its method, with the settings that differ from the protocol and from most rows."""
    off: dict[str, dict[str, tuple[tuple[str, str], str]]] = defaultdict(dict)
    found: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    known, as_usual = registry.entries("methods"), ""  # the text of a default value, which no other value has
    for key, (card, settings) in rows.items():
        usual = _of_protocol(card.protocol, card.method)
        for name, value in settings.items():
            own = name.startswith("settings.")  # of the method
            group = (name, card.method if own or name == "code" else "")
            deviation = as_usual if value is None or usual.get(name, ...) == value else words(value)
            off[key][name] = (group, deviation)
            found[group][deviation] += 1
            # Some settings are always compared with their default; the others too, if no value has a majority.
            retired = name.removeprefix("training.") in Training.retired
            always = retired or name == "outer.name" or (own and card.method in known)
            if always or own or name in usual or name == THREAT:
                found[group][as_usual] += len(rows) if always else 0
    most = {
        group: max(counts, key=lambda value: (2 * counts[value] > counts.total(), value == as_usual, counts[value]))
        for group, counts in found.items()
    }
    labels, seen = dict[str, str](), Counter[str]()
    for key, (card, settings) in rows.items():
        apart = (name for name, (group, deviation) in sorted(off[key].items()) if deviation != most[group])
        parts = [setting_words(name, settings[name]) for name in apart if name not in UNNAMED and settings[name] != ""]
        parts = [part for part in parts if part != card.method]  # without a run, a network's name is its method
        named = card.title if card.seed is None else card.method
        label = f"{named} ({', '.join(parts)})" if parts else named
        seen[label] += 1
        labels[key] = label if seen[label] == 1 else f"{label} #{seen[label]}"
    return labels


def setting_words(name: str, value: object) -> str:
    """Return a setting in words; a radius or step as k/255."""
    if name in ("code", "source_sha256"):  # of a method, of an attack
        return "other code" if name == "code" else f"code {str(value)[:8]}"
    group, _, last = name.rpartition(".")
    text = size(value) if last in ("eps", "step_size") and isinstance(value, float) else words(value)
    label = f"{group} {last}" if group == "evaluation" or name == "data.seed" else last
    return text if name in PLAIN else f"{label} {text}"


def attack_names(identities: Iterable[Identity]) -> dict[Identity, str]:
    """Return the name of each attack of one table; equal names show the settings in which they differ."""
    known, found = list(dict.fromkeys(identities)), {}
    for one in known:
        values = {**ProjectedAscent.unstored, **dict(one.settings)}
        values["attacks"] = " ".join(dict(member)["name"] for member in values.get("attacks", ()))
        apart = sorted({key for other in known if other.name == one.name for key in one.differences(other)})
        text = ", ".join(setting_words(key, values.get(key)) for key in apart)
        found[one] = f"{one.name} ({text})" if text else one.name
    return found
