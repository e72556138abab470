"""Transfer: the accuracy of every model on adversarial examples that were made on every other."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from taet import statistics
from taet.attacks.spec import AttackSpec
from taet.attacks.units import Unit
from taet.data.dataset import images_sha256
from taet.distributed import first, joined, rank
from taet.errors import UserError
from taet.evaluation import card_store
from taet.evaluation.bundles import expand, parse_attack
from taet.evaluation.card import ResultCard
from taet.evaluation.column import Column, plain
from taet.evaluation.diagnostics import flagged
from taet.evaluation.evaluate import evaluate
from taet.evaluation.runner import Runner, among
from taet.evaluation.subject import subject_of
from taet.files import file_sha256
from taet.formatting import aligned
from taet.progress import Meter, Progress
from taet.settings import Evaluation, Run
from taet.statistics import Ints
from taet.training.checkpoint import weights_digest
from taet.training.environment import resolve_device
from taet.training.folder import RunFolder

STATE = "transfer"
"""Name of the store of finished batches in the folder of a source."""
ALLOWED = "an attack that changes every image, e.g. fgsm, pgd-20, cw-linf-100"


@dataclass(frozen=True, eq=False)
class Transfer:
    """Accuracy of M models on the examples that an attack made on each of them; shares in [0, 1].

    In a matrix (M, M) row i is the evaluated model and column j the model that the examples were made on. The diagonal
    is the white-box attack, which with sound gradients is the lowest value of its row. nan: a pair was not measured.
    """

    attack: str
    names: tuple[str, ...]
    clean: statistics.Floats
    """(M,): balanced accuracy on clean images."""
    balanced: statistics.Floats
    """(M, M): mean recall over the classes that have test images."""
    accuracy: statistics.Floats
    """(M, M): share of all images."""

    def to_json(self) -> dict[str, Any]:
        """Return the names and matrices as plain lists and numbers, None for nan."""
        return dict(plain(vars(self)))

    def __repr__(self) -> str:
        rows = [("", "clean", *self.names)]
        for name, values in zip(self.names, np.column_stack([self.clean, self.balanced]), strict=True):
            rows.append((name, *("-" if math.isnan(value) else f"{100 * value:.1f}" for value in values)))
        head = f"balanced accuracy % of each row's model on the {self.attack} examples made on each column's"
        return "\n".join([head, *aligned(rows)])


def transfer(
    runs: Sequence[str | os.PathLike[str]],
    attack: str = "pgd-20",
    *,
    eps: float | None = None,
    batch_size: int | None = None,
    device: str = "auto",
    progress: Progress | None = None,
    command: str = "",
) -> Transfer:
    """Evaluate every run on the adversarial examples of every other, add the columns to the cards, return the matrix.

    The card of a run, evaluation.json, first gets the clean column and that of the attack if they are missing, then a
    column `pgd-20@SOURCE` for each other run. Its parameters are those of the attack and
    source: {"name": name of the folder, "weights_sha256": of the model that the examples were made on}. What a card
    already contains for the same weights and settings is not measured again, and a transfer that was killed continues
    where it stopped. Examples are made once per source, batch by batch; all models are in memory.

    Args:
        runs: two or more run folders with different names and the same test images.
        attack: a name of `taet list attacks`, optionally with options; not clean and not AutoAttack.
        eps: radius of the L-infinity ball in units of the image range. Default: that of the runs, which must agree.
        batch_size: images per batch. Default: that of each run.
        device: auto, cpu, cuda or cuda:N.
        progress: called as progress(done, total, label), in estimated passes of an image through a model.
        command: the command that started the transfer; stored in the cards.

    Raises:
        UserError: fewer than two runs, two of one name, test images or attack settings that differ between runs.

    Source: Papernot, McDaniel, Goodfellow, "Transferability in machine learning: from phenomena to black-box attacks
    using adversarial samples", arXiv:1605.07277.
    """
    folders = _by_name([RunFolder(Path(run)) for run in runs])
    chosen = _agreed([*folders.values()], attack, eps)
    where = resolve_device(device)
    with joined(where.type), ExitStack() as owned:
        meter, cards = Meter(progress), dict[str, ResultCard]()
        for number, (name, folder) in enumerate(folders.items()):
            meter.begin(alike=2 * len(folders) - number - 1)  # one evaluation and one transfer of every run
            cards[name] = evaluate(
                folder.path,
                attacks=[attack],
                eps=eps,
                batch_size=batch_size,
                device=device,
                progress=meter,
                command=command,
            )
        missing = {source: targets for source in folders if (targets := _missing(cards, source, chosen))}
        if missing:
            first(lambda: _own(folders, cards, owned))
        runners = _runners(folders, batch_size, where) if missing else {}
        for number, (source, targets) in enumerate(missing.items()):
            meter.begin(alike=len(missing) - number - 1)
            columns = transfer_columns(
                runners[source], [runners[target] for target in targets], chosen, name=source, progress=meter
            )
            for target, column in zip(targets, columns, strict=True):
                cards[target] = _added(cards[target], column)
        if rank() == 0:
            for name, folder in folders.items():
                if any(name in targets for targets in missing.values()):
                    card, path = cards[name], folder.card()
                    if not card.sealed and folder.examples(path).exists():  # an older version did not name the images
                        card = card.changed(examples_sha256=file_sha256(folder.examples(path)))
                    card_store.put(path, card)
            for runner in runners.values():
                runner.clear()
    return matrix(cards, attack)


def _own(folders: Mapping[str, RunFolder], cards: Mapping[str, ResultCard], owned: ExitStack) -> None:
    """Own all folders until their cards are written, which must be those that the evaluations left."""
    for name, folder in folders.items():
        owned.enter_context(folder.own())
        if ResultCard.load(folder.path).to_json() != cards[name].to_json():
            raise UserError(
                f"transfer: {folder.path} was evaluated by another process meanwhile; run the transfer again"
            )


def transfer_columns(
    source: Runner,
    targets: Sequence[Runner],
    attack: AttackSpec,
    *,
    name: str = "source",
    progress: Progress | None = None,
) -> tuple[Column, ...]:
    """Make adversarial examples on one model and return one column for each target model, in order.

    Every example is checked to lie in the ball around its image. All models are in eval mode and exact float32. Random
    draws and batches are those of the source's own column, so that the source as a target gets the same predictions.

    Args:
        source: the model that is attacked, with the images (see `taet.evaluation.runner.make_runner`).
        targets: models with the same images and labels, each on its own device.
        attack: an attack of `taet.evaluation.parse_attack`; not clean and not AutoAttack.
        name: name of the source in the columns.
        progress: as in `transfer`.
    """
    _check(attack)
    images = images_sha256(source.images, source.labels)
    if any(images_sha256(target.images, target.labels) != images for target in targets):
        raise UserError("transfer: got a target with other images or labels; allowed: those of the source")
    if not targets:
        return ()
    made = attack.on(name, weights_digest(source.model.model))
    keys = [target.identity for target in targets]

    def measure(rows: Ints) -> Unit:
        _, x_adv = source.perturb(attack, rows)
        unit = {}
        for key, target in zip(keys, targets, strict=True):
            began = time.perf_counter()
            unit[key] = target.answers(made, x_adv.to(target.device), rows).max(1).indices.cpu().numpy()
            unit[f"{key} seconds"] = np.asarray(time.perf_counter() - began)
        return unit

    with ExitStack() as stack:
        for held in (source, *targets):
            stack.enter_context(held.still())
        every, meter = np.arange(len(source.labels)), Meter(progress)
        # A stored batch has no images: if a target is missing in it, as after adding a run, it is made again.
        units = source.in_batches(made, every, measure, keys, source.units(made), meter, later=len(targets))
    return tuple(
        Column.of(
            made,
            np.concatenate([unit[key] for unit in units]),
            source.labels,
            seconds=sum(unit[f"{key} seconds"].item() for unit in units),
            forwards=len(source.labels),
        )
        for key in keys
    )


def matrix(cards: Mapping[str, ResultCard], attack: str) -> Transfer:
    """Return the matrix of one attack from cards, given by the names to show.

    Columns and models are matched by the hash of the weights, so that a run folder may be renamed or moved.
    """
    clean = [_shares(card, card.clean)[0] for card in cards.values()]
    pairs = [[_shares(target, _pair(target, source, attack)) for source in cards.values()] for target in cards.values()]
    shares = np.asarray(pairs, dtype=np.float64).reshape(len(cards), len(cards), 2)
    return Transfer(attack, tuple(cards), np.asarray(clean), shares[..., 0], shares[..., 1])


def matrices(cards: Mapping[str, ResultCard]) -> tuple[Transfer, ...]:
    """Return the matrix of every attack that was transferred between these models."""
    weights = {card.model["weights_sha256"] for card in cards.values()}
    attacks = {
        column.attack.typed
        for card in cards.values()
        for column in card.columns
        if (made_on := column.attack.made_on) is not None and made_on.weights_sha256 in weights
    }
    return tuple(matrix(cards, attack) for attack in sorted(attacks))


def _pair(target: ResultCard, source: ResultCard, attack: str) -> Column | None:
    """Return the column of the target under the source's examples; its own column if they are the same model."""
    wanted = attack, None if target is source else source.model["weights_sha256"]
    for column in target.columns:
        made_on = column.attack.made_on
        if (column.attack.typed, made_on and made_on.weights_sha256) == wanted:
            return column
    return None


def _shares(card: ResultCard, column: Column | None) -> tuple[float, float]:
    """Return balanced and plain accuracy of a column; nan for a missing column."""
    if column is None:
        return math.nan, math.nan
    counts = statistics.class_counts(column.correct, card.labels, card.num_classes)
    return statistics.balanced_accuracy(*counts), statistics.accuracy(*counts)


def _by_name(folders: Sequence[RunFolder]) -> dict[str, RunFolder]:
    """Return the folders by name; fewer than two, or two of one name, are a `UserError`."""
    if len(folders) < 2:
        raise UserError(f"transfer: got {len(folders)} run; allowed: two or more")
    named: dict[str, RunFolder] = {}
    for folder in folders:
        other = named.setdefault(folder.path.resolve().name, folder)
        if other is not folder:
            got = f"{other.path} and {folder.path}"
            raise UserError(f"transfer: got {got}, of one name; allowed: folders whose names differ")
    return named


def _agreed(folders: Sequence[RunFolder], name: str, eps: float | None) -> AttackSpec:
    """Return the attack, which must mean the same to all runs, on the same test images."""
    if len(expand([name], Evaluation()).attacks) > 1:
        raise UserError(f"transfer: got {name}, all columns of a protocol; allowed: {ALLOWED}")

    def of(run: Run) -> AttackSpec:
        settings = run.evaluation if eps is None else run.evaluation.replace(eps=eps)
        return parse_attack(name, settings, run.threat.eps)

    first_place, record = folders[0].path, folders[0].record
    chosen = of(record.run)
    _check(chosen)
    for folder in folders[1:]:
        if folder.record.data.test.sha256 != record.data.test.sha256:
            raise UserError(f"transfer: {folder.path} has other test images than {first_place}; allowed: the same ones")
        for key, (here, there) in of(folder.record.run).identity.differences(chosen.identity, seeds=True).items():
            raise UserError(
                f"transfer: {name} has {key} {here} in {folder.path} and {there} in {first_place}; "
                "allowed: the same, e.g. by --eps 8/255 or an option of the attack"
            )
    return chosen


def _check(attack: AttackSpec) -> None:
    if attack.not_transferable:
        raise UserError(f"transfer: got {attack.name}, {attack.not_transferable}; allowed: {ALLOWED}")


def _missing(cards: Mapping[str, ResultCard], source: str, attack: AttackSpec) -> list[str]:
    """Return the runs whose cards lack the attack with examples of `source`."""
    made = attack.on(source, cards[source].model["weights_sha256"])
    return [name for name, card in cards.items() if name != source and among(card.columns, made) is None]


def _runners(folders: Mapping[str, RunFolder], batch_size: int | None, device: torch.device) -> dict[str, Runner]:
    """Load the models of runs that have the same test images, which are kept once."""
    runners: dict[str, Runner] = {}
    for name, folder in folders.items():
        subject = subject_of("transfer", folder.path).changed({} if batch_size is None else {"batch_size": batch_size})
        kept = next(iter(runners.values()), subject)
        subject = replace(subject, images=kept.images, labels=kept.labels)
        runners[name] = subject.runner(device, folder.state(STATE))
    return runners


def _added(card: ResultCard, column: Column) -> ResultCard:
    """Return the card with a column added, or put in the place of one of its name, and with new flags."""
    return flagged(card.changed(columns=(*(other for other in card.columns if other.name != column.name), column)))
