"""The worst case of several attacks: the same as from their columns where those are batched alike, and cheaper."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from taet.errors import UserError
from taet.evaluation import ResultCard
from taet.evaluation.batch_store import BatchStore

Evaluated = Callable[..., ResultCard]
CHAIN = ("pgd-5", "fgsm", "cw-linf-3")


def test_it_is_the_conjunction_of_the_columns_since_our_attacks_feel_no_batch(evaluated: Evaluated) -> None:
    full, chained = evaluated(*CHAIN), evaluated(*CHAIN, worst_case=True)
    assert [column.name for column in chained.columns] == ["clean", "worst-case"]
    worst = chained.column("worst-case")
    expected = np.logical_and.reduce([full.column(name).correct for name in ("clean", *CHAIN)])
    np.testing.assert_array_equal(worst.correct, expected)
    np.testing.assert_array_equal(full.worst_case("linf").correct, expected)
    assert list(worst.parts) == ["fgsm", "cw-linf-3", "pgd-5"]  # by cost
    assert expected.sum() < full.column("clean").correct.sum()


def test_the_fallen_are_not_attacked_again(evaluated: Evaluated) -> None:
    chained = evaluated(*CHAIN, worst_case=True).column("worst-case")
    clean = evaluated("clean").column("clean").correct.sum()
    left = [mask.sum() for mask in chained.parts.values()]
    assert chained.forwards == 2 * clean + 4 * left[0] + 6 * left[1]
    assert left[0] < clean


def test_autoattack_is_a_part_of_it_and_tells_what_each_of_its_parts_broke(evaluated: Evaluated) -> None:
    worst = evaluated("pgd-5", "autoattack-10", worst_case=True, eps=0.04).column("worst-case")
    alone = evaluated("autoattack-10", eps=0.04).column("autoattack-10")
    assert list(worst.parts) == ["pgd-5", *alone.parts]
    assert worst.correct.sum() <= alone.correct.sum()
    assert worst.parts["pgd-5"].any()
    (suite,) = (one for one in worst.parameters["attacks"] if one["name"] == "autoattack-10")
    assert suite["version"] == "10"


def test_where_nothing_is_left_nothing_is_attacked(evaluated: Evaluated) -> None:
    worst = evaluated("pgd-5", "autoattack-10", worst_case=True).column("worst-case")
    assert not worst.correct.any()
    assert list(worst.parts) == ["pgd-5", "apgd-ce", "apgd-t", "fab-t", "square"]
    assert worst.backwards == evaluated("pgd-5", worst_case=True).column("worst-case").backwards


@pytest.mark.full
def test_the_fast_suite_comes_out_of_the_standard_one(evaluated: Evaluated) -> None:
    both = evaluated("autoattack-fast", "autoattack", eps=0.04, batch_size=22)
    alone = evaluated("autoattack-fast", eps=0.04, batch_size=22).column("autoattack-fast")
    fast = both.column("autoattack-fast")
    assert [column.name for column in both.columns] == ["clean", "autoattack-fast", "autoattack"]
    assert (fast.forwards, fast.parameters["from"]) == (0, "autoattack")
    assert alone.forwards > 0
    np.testing.assert_array_equal(fast.predictions, alone.predictions)
    assert {name: mask.tolist() for name, mask in fast.parts.items()} == {
        name: mask.tolist() for name, mask in alone.parts.items()
    }
    assert fast.identity == alone.identity
    assert fast.correct.sum() >= both.column("autoattack").correct.sum() > 0


def test_killed_anywhere_it_goes_on_and_changes_no_flag(
    evaluated: Evaluated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attacks = (*CHAIN, "autoattack-10")
    expected = evaluated(*attacks, worst_case=True).column("worst-case")
    put, left, total = BatchStore.put, [0], [0]

    def dying(self: BatchStore, key: str, arrays: Any) -> None:
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        total[0] += 1
        put(self, key, arrays)

    monkeypatch.setattr(BatchStore, "put", dying)
    for _ in range(100):
        left[0] = 2
        try:
            worst = evaluated(*attacks, worst_case=True, state_dir=tmp_path).column("worst-case")
            break
        except KeyboardInterrupt:
            continue
    np.testing.assert_array_equal(worst.correct, expected.correct)
    assert {name: mask.tolist() for name, mask in worst.parts.items()} == {
        name: mask.tolist() for name, mask in expected.parts.items()
    }
    assert total[0] == len(list(tmp_path.rglob("*.npz")))  # nothing was done twice


@pytest.mark.parametrize(
    ("attacks", "message"),
    [
        (("pgd-5", "pgd-l2-5"), r"worst case: got .*pgd-5 \(linf, 0.1\).*; allowed: attacks of one norm and radius"),
        (("pgd-5", "pgd-5:eps=0.2"), "one norm and radius"),
        (("cw-l2",), "one norm and radius"),
        (("clean",), "worst case: got no attack"),
        (("autoattack-10", "autoattack-fast"), "one version of AutoAttack"),
    ],
)
def test_attacks_of_several_threat_models_have_no_worst_case(
    evaluated: Evaluated, attacks: tuple[str, ...], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        evaluated(*attacks, worst_case=True)
