"""`taet.decide`: attack two models on the same images, in the same random order, until one is shown to be better."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path
from typing import Any

from torch import nn

from taet.attacks.spec import AttackSpec
from taet.attacks.suite import Suite
from taet.distributed import first, gather, rank
from taet.errors import UserError
from taet.evaluation import bundles
from taet.evaluation.column import WORST_CASE
from taet.evaluation.decision_card import DecisionCard
from taet.evaluation.match import Match, Player
from taet.evaluation.measurement import begin, known_card, on_device
from taet.evaluation.runner import one_threat_model
from taet.evaluation.sequential import StopRule
from taet.evaluation.subject import AnyModel, ImagesArgument, Subject, TestLabels, subject_of
from taet.formatting import short, size
from taet.progress import Progress
from taet.training.environment import keep_freed_memory
from taet.training.folder import DELIVERED, RunFolder
from taet.training.runs import owned

Side = AnyModel | Sequence[AnyModel]
"""A model, or several models of one method, one per seed; each is a Module or the folder of a run."""


def decide(
    first_side: Side,
    second_side: Side,
    images: ImagesArgument = None,
    labels: TestLabels | None = None,
    *,
    attacks: Sequence[str] | str | None = None,
    worst_case: bool = False,
    settings: Mapping[str, Any] | None = None,
    rule: StopRule | None = None,
    comparisons: int = 1,
    names: tuple[str, str] | None = None,
    time_budget: float | None = None,
    device: str = "auto",
    weights: str = DELIVERED,
    out: str | os.PathLike[str] | None = None,
    known: Sequence[DecisionCard] = (),
    progress: Progress | None = None,
    command: str = "",
) -> DecisionCard:
    """Attack both sides on the same images, in random order by class, and stop when one is shown to be better.

    A round contains images of every class. After each round, the paired test of `taet.evaluation.sequential` is updated
    for balanced accuracy and for the tail; the one named by `rule.of` decides, the other is reported. The error
    probability and the intervals of each test hold however often one looks, hence also at the stop. The correctness
    flags equal those of `taet.evaluate`, except that AutoAttack's result depends on the batch for a few images. Flags
    in the full card of a run or in an earlier decision in `out` are reused. Finished batches are saved in `out`, from
    which an interrupted decision continues.

    Args:
        first_side: a Module or the folder of a finished run; or several of one method, one per seed.
        second_side: as many models; the i-th model of one side is compared with the i-th of the other.
        images: test images as in `taet.evaluate`; Modules need them. Default: those of the runs.
        labels: (N,), with images.
        attacks: the one attack that decides. Default: AutoAttack if the settings of the first run list it, else their
            most expensive attack in the ball.
        worst_case: let several attacks decide, one after another, each on the images that are still correct.
        settings: fields of `taet.settings.Evaluation` that replace those of the runs, which must agree.
        rule: error probability, accuracy that decides, seed of the order. Default: `StopRule()`.
        comparisons: number of comparisons; each gets an equal part of the error probability of the rule.
        names: names of the two sides. Default: those of their folders or classes.
        time_budget: seconds after which the evaluation stops undecided; a later call continues.
        device: as in `taet.evaluate`.
        weights: which weights of a run to use: model, model-last or model-best.
        out: folder of decision.json, not that of a run. A decision in it is continued, by the same rule or with a
            smaller alpha, and not replaced. Default: nothing is saved.
        known: earlier decisions about some of the same models.
        progress: called as progress(done, total, label), in estimated passes of an image through a model.
        command: the command that started it; stored in the card.

    Raises:
        UserError: test images, threat model or settings that differ between the models; not exactly one attack; an
            `out` that contains something else or a decision by another rule.
    """
    sides = (_listed(first_side), _listed(second_side))
    if len(sides[0]) != len(sides[1]) or not sides[0]:
        raise UserError(f"decide: got {len(sides[0])} and {len(sides[1])} models; allowed: as many on both sides")
    rule = rule or StopRule()
    shared = rule.replace(alpha=rule.alpha / comparisons)
    models = [model for side in sides for model in side]
    given = [subject_of("decide", model, images, labels, weights=weights) for model in models]
    subjects, name, chain = _agreed(given, attacks, worst_case, bundles.changes(settings))
    deadline = math.inf if time_budget is None else time.monotonic() + time_budget
    folder = None if out is None else RunFolder(Path(out))
    if folder is not None and (folder.is_run or folder.card().exists()):
        raise UserError(f"decide: {out} holds a run or a result card; allowed: a folder of its own")
    path = None if folder is None else folder.decision
    state = None if folder is None else folder.state(folder.decision.stem)
    where = subjects[0].on(device)
    keep_freed_memory(where)
    with ExitStack() as stack:
        players = []
        for subject in subjects:
            stack.enter_context(on_device(subject.model, where))
            runner, card = begin(subject, where, state)
            players.append(Player(runner, card, name, chain))
            players[-1].learn_whole(known_card(subject.card, card, runner))
        half = len(players) // 2
        if [one.weights for one in players[:half]] == [one.weights for one in players[half:]]:
            raise UserError("decide: got the same weights on both sides; allowed: two models")
        stack.enter_context(owned(folder))
        before = None if path is None or not path.exists() else first(lambda: DecisionCard.load(path))
        if path is not None and before is not None:
            _check_same(path, before, players)
            _check_rule(path, before.rule, shared)
            if (before.rule, before.comparisons) == (shared, comparisons) and before.reason != "time":
                return before
        for one in players:
            for earlier in (*known, *([before] if before else [])):
                one.learn(earlier)
        match = Match(players, shared, progress)
        decision = match.play(deadline, names or _names(sides), comparisons, command)
        if path is not None and rank() == 0:
            decision.save(path)
            for player in players:
                player.runner.clear()
        gather(None)  # no process starts again before the card and its state are final
    return decision


def _listed(side: Side) -> list[AnyModel]:
    return [side] if isinstance(side, nn.Module | str | os.PathLike) else [*side]


def _names(sides: tuple[list[AnyModel], list[AnyModel]]) -> tuple[str, str]:
    """Name both sides after their first model."""
    names, in_full = [], []
    for side, place in zip(sides, ("first", "second"), strict=True):
        name = type(side[0]).__name__ if isinstance(side[0], nn.Module) else Path(side[0]).name
        names.append(name)
        in_full.append(f"{name} ({place})" if isinstance(side[0], nn.Module) else str(side[0]))
    return (names[0], names[1]) if names[0] != names[1] else (in_full[0], in_full[1])


def _check_same(path: Path, before: DecisionCard, players: Sequence[Player]) -> None:
    """Raise a `UserError` if the earlier decision is about other models, images or attacks."""
    there = [model["weights_sha256"] for side in (before.first, before.second) for model in side["models"]]
    here = [player.weights for player in players]
    facts = {
        "models": (there, here),
        "test images": (before.data["test_sha256"], players[0].card.data["test_sha256"]),
        "attacks": (before.attacks, players[0].attacks),
    }
    for what, (stored, asked) in facts.items():
        if stored != asked:
            raise UserError(f"decide: {path} is about other {what}; allowed: another folder")


def _check_rule(path: Path, before: StopRule, asked: StopRule) -> None:
    """Raise a `UserError` for another rule, as the result may have been seen; only a smaller alpha remains valid."""
    for name in (field.name for field in fields(StopRule)):
        stored, now = getattr(before, name), getattr(asked, name)
        if stored != now and not (name == "alpha" and now < stored):
            raise UserError(
                f"decide: {path} is by another rule, {name} {short(stored)}: got {short(now)}; allowed: the same rule, "
                f"a smaller alpha, or another folder for a second test"
            )


def _agreed(
    subjects: Sequence[Subject], attacks: Sequence[str] | str | None, worst_case: bool, changes: Mapping[str, Any]
) -> tuple[list[Subject], str, tuple[AttackSpec, ...]]:
    """Return the models with the settings of the attacks that decide, the name of the result, and these attacks.

    Several attacks run in this order, each on the images that are still correct. A `UserError` is raised if they would
    not be the same for every model, on the same images.
    """
    asked = bundles.changes(changes, attacks=attacks)
    chosen = _chosen(subjects[0].changed(asked), attacks is not None, worst_case)
    wanted = tuple(attack.name for attack in chosen)
    agreed = [subject.changed({**changes, "attacks": wanted}) for subject in subjects]
    chains = [tuple(one for one in subject.attacks if one.name in wanted) for subject in agreed]
    own, batch_size = agreed[0], agreed[0].settings.batch_size
    for subject, chain in zip(agreed, chains, strict=True):
        if subject.test_sha256 != own.test_sha256:
            got = f"{short(own.test_sha256[:12])} and {short(subject.test_sha256[:12])}"
            raise UserError(f"decide: got test images of SHA-256 {got}; allowed: the same images on both sides")
        if subject.eps != own.eps:
            got = f"{size(own.eps)} and {size(subject.eps)}"
            raise UserError(f"decide: got threat models of eps {got}; allowed: one, e.g. --eps {size(own.eps)}")
        if subject.settings.batch_size != batch_size:
            got = f"{batch_size} and {subject.settings.batch_size}"
            raise UserError(f"decide: got batch sizes {got}; allowed: one, e.g. --batch-size 250")
        for one, other in zip(chains[0], chain, strict=True):
            for name, (here, there) in one.identity.differences(other.identity, seeds=True).items():
                got = f"{name} {short(here)} and {short(there)}"
                raise UserError(f"decide: '{one.name}' would run with {got}; allowed: the same settings")
    if not worst_case:
        return agreed, chosen[0].name, chains[0]
    return agreed, WORST_CASE[chosen[0].norm or "linf"], (own.attacks[0], *chains[0])


def _chosen(subject: Subject, asked: bool, worst_case: bool) -> list[AttackSpec]:
    """Return the attacks that decide: the requested ones, or the strongest in the ball."""
    classes = 10  # only the order of costs matters
    if worst_case:
        return one_threat_model(subject.attacks if asked else subject.inside, classes)
    if not asked:
        strongest = max(
            subject.inside or subject.attacks,
            key=lambda one: (isinstance(one, Suite) and one.is_reference, one.passes(classes)),
        )
        return [strongest]
    named = [one for one in subject.attacks if one.norm is not None] or [*subject.attacks]
    if len(named) > 1:
        got = ", ".join(one.name for one in named)
        raise UserError(f"decide: got the attacks {got}; allowed: one that decides, or all of one ball as a worst case")
    if named[0].norm is not None and not named[0].bounded:
        raise UserError(f"decide: got '{named[0].name}', which is unbounded; allowed: an attack in a ball, or clean")
    return named
