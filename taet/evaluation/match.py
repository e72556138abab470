"""Attack two sides on the same images, block by block, until a stop rule applies."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from taet.attacks.counted import WORK
from taet.attacks.spec import AttackSpec
from taet.attacks.units import Unit, run_units
from taet.distributed import alone, in_any, world_size
from taet.evaluation import card_store
from taet.evaluation.card import ResultCard
from taet.evaluation.decision_card import DecisionCard, ModelOf, ended, gains
from taet.evaluation.packing import plain
from taet.evaluation.runner import Runner, among
from taet.evaluation.sequential import Reason, StopRule, rounds
from taet.formatting import count
from taet.progress import Progress
from taet.statistics import Ints, Mask

UNKNOWN = -1
"""Value of a flag that is not known yet."""


@dataclass(frozen=True)
class Player:
    """A model on the test images, with its known flags."""

    runner: Runner
    card: ResultCard
    """The card of the model, without columns."""
    name: str
    chain: tuple[AttackSpec, ...]

    @cached_property
    def flags(self) -> NDArray[np.int8]:
        """(N,): still correct under the attack, 0 or 1, or UNKNOWN."""
        return np.full(len(self.runner.labels), UNKNOWN, dtype=np.int8)

    @property
    def weights(self) -> str:
        """SHA-256 of the model's weights."""
        return self.card.model["weights_sha256"]

    @property
    def about(self) -> ModelOf:
        """The description of the model in a decision."""
        answers = self.card.model["answers"]
        return {
            "name": self.card.model["name"],
            "weights_sha256": self.weights,
            "seed": self.card.seed,
            "answers": plain(answers),
        }

    @property
    def attacks(self) -> list[dict[str, Any]]:
        """The attacks with their settings, as cards store them."""
        return [plain(attack.to_json()) for attack in self.chain]

    def learn_whole(self, whole: ResultCard | None) -> None:
        """Take the flags from a full card of this model, if it has every attack."""
        found = [] if whole is None else [among(whole.columns, attack) for attack in self.chain]
        there = [column.correct for column in found if column is not None]
        if there and len(there) == len(self.chain):
            self.flags[:] = np.logical_and.reduce(there)

    def learn(self, decision: DecisionCard) -> None:
        """Take the flags from an earlier decision, if it has any of this model."""
        if not card_store.agrees(decision, {"attacks": self.attacks, **card_store.conditions(self.card)}):
            return
        for about, flags in ((decision.first, decision.correct[0]), (decision.second, decision.correct[1])):
            for model, mask in zip(about["models"], flags, strict=True):
                if model["weights_sha256"] == self.weights and card_store.alike(
                    model["answers"], self.runner.fingerprint
                ):
                    self.flags[decision.rows.ravel()] = mask.ravel()

    def passes(self, images: int) -> float:
        """Return the estimated passes for this number of images."""
        return float(images * sum(attack.passes(self.runner.num_classes) for attack in self.chain))

    def meet(self, rows: Ints, number: int, progress: Progress) -> Unit:
        """Attack the images `rows` (n,) whose flags are unknown; return their flags and the cost."""
        new = rows[self.flags[rows] == UNKNOWN]
        if not len(new):
            return {"rows": new, "correct": np.ones(0, dtype=bool), **{name: np.asarray(0) for name in WORK}}
        settings = [self.attacks, self.runner.batch_size, self.runner.seed]
        store = self.runner.store(f"{self.name}-blocks", settings)
        found = None if store is None else store.get(str(number))
        if found is None or not np.array_equal(found.get("rows", ()), new):
            found = self._attacked(new, progress)
            if store is not None:
                store.put(str(number), found)
        return found

    def _attacked(self, rows: Ints, progress: Progress) -> Unit:
        correct, work = np.ones(len(rows), dtype=bool), dict.fromkeys(WORK, 0.0)
        for attack in self.chain:
            left = rows[correct]
            inner = self.runner.store(attack.name, [attack.to_json(), self.runner.batch_size, left.tolist()])
            result = self.runner.attack(attack, left, None, inner, progress)
            correct[correct] = result.predictions == self.runner.labels[left]
            work = {name: work[name] + result.work[name] for name in WORK}
            if inner is not None:
                inner.remove()  # the block contains it from now on
        return {"rows": rows, "correct": correct, **{name: np.asarray(value) for name, value in work.items()}}


class Match:
    """Two sides, the order of the images, and the rounds completed so far."""

    def __init__(self, players: Sequence[Player], rule: StopRule, progress: Progress | None) -> None:
        self.players, self.rule, self.progress = players, rule, progress
        runner = players[0].runner
        self.order = rounds(runner.labels, rule.order_seed)
        self.classes = runner.labels[self.order[0]]
        self.before = [player.flags != UNKNOWN for player in players]
        # A block consists of whole rounds and does not depend on the number of processes.
        self.block = max(1, runner.batch_size // self.order.shape[1])
        self.work = dict.fromkeys(WORK, 0.0)

    def play(self, deadline: float, names: tuple[str, str], comparisons: int, command: str) -> DecisionCard:
        """Attack images until the rule applies or images or time run out, and return the decision."""
        blocks = math.ceil(len(self.order) / self.block)
        at_once = max(1, world_size() // len(self.players))
        done, reason, train_counts = 0, "", self.players[0].card.data.get("train_class_counts")
        with ExitStack() as stack:
            for player in self.players:
                stack.enter_context(player.runner.still())
            for begin_block in range(0, blocks, at_once):
                self._meet(range(begin_block, min(begin_block + at_once, blocks)))
                done = min(len(self.order), (begin_block + at_once) * self.block)
                if end := ended(gains(self.correct(done), self.classes, train_counts), len(self.order), self.rule):
                    done, reason = end
                    break
                if in_any(time.monotonic() >= deadline)[0]:
                    reason = "time"
                    break
        decision = self._decision(done, reason, names, comparisons, command)
        if self.progress is not None:
            self.progress(1, 1, decision.sentence)
        return decision

    def _meet(self, blocks: range) -> None:
        """Fill in the flags of blocks of rounds; the processes share the units of work, one model on one block each."""
        units = [(player, number) for number in blocks for player in range(len(self.players))]

        def compute(unit: int) -> Unit:
            player, number = units[unit]
            rows = np.sort(self.order[number * self.block : (number + 1) * self.block].ravel())
            with alone():
                return self.players[player].meet(rows, number, self._report(player, number))

        found = run_units(len(units), compute, state=None, key=str, valid=lambda *_: True)
        for (player, _), arrays in zip(units, found, strict=True):
            self.players[player].flags[arrays["rows"]] = arrays["correct"]
            self.work = {name: self.work[name] + arrays[name].item() for name in WORK}

    def _report(self, player: int, number: int) -> Progress:
        whole, block = self.order.size, self.block * self.order.shape[1]
        met, total = min(whole, number * block), sum(one.passes(whole) for one in self.players)
        so_far = sum(one.passes(met) for one in self.players) + sum(one.passes(block) for one in self.players[:player])

        def report(done: float, _: float, label: str) -> None:
            if self.progress is not None:
                text = f"{label}: {count(met)} of {count(whole)} images, undecided"
                self.progress(min(so_far + done, 0.999 * total), total, text)

        return report

    def correct(self, done: int) -> tuple[Mask, Mask]:
        """Return the flags of both sides in the first `done` rounds, (R, T, M) each."""
        flags = np.stack([player.flags[self.order[:done]] for player in self.players])
        half = len(self.players) // 2
        return flags[:half] == 1, flags[half:] == 1

    def _decision(self, done: int, reason: str, names: tuple[str, str], comparisons: int, command: str) -> DecisionCard:
        players, half = self.players, len(self.players) // 2
        card, used = players[0].card, self.order[:done]
        return DecisionCard(
            first={"label": names[0], "models": [one.about for one in players[:half]]},
            second={"label": names[1], "models": [one.about for one in players[half:]]},
            attack=players[0].name,
            attacks=players[0].attacks,
            threat=card.threat,
            batch_size=card.batch_size,
            data={
                "name": card.data["name"],
                "class_names": [*card.data["class_names"]],
                "test_sha256": card.data["test_sha256"],
                "test_class_counts": card.test_class_counts.tolist(),
                "train_class_counts": plain(card.data.get("train_class_counts")),
            },
            rule=self.rule,
            comparisons=comparisons,
            reason=cast(Reason, reason),
            cost={
                "seconds": float(self.work["seconds"]),
                "forwards": int(self.work["forwards"]),
                "backwards": int(self.work["backwards"]),
                "known": int(sum(there[used].sum() for there in self.before)),
            },
            rows=used,
            classes=self.classes,
            correct=self.correct(done),
            environment=card.environment,
            created=card.created,
            command=command,
        )
