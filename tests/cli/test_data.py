"""`taet data show` and `taet data prepare`."""

from __future__ import annotations

import json
from typing import Any

SMALL = ["digits-lt", "--max-count", "20", "--test-max-count", "6", "--imbalance-ratio", "10"]


def test_show_prints_a_table_or_json(taet: Any) -> None:
    found = json.loads(taet("data", "show", "digits-lt", "--max-count", "20", "--json").out)
    assert found["class_counts"]["train"] == [20, 15, 11, 9, 7, 5, 4, 3, 2, 2]
    assert json.loads(taet("data", "show", "digits-lt", "--data.max-count", "20", "--json").out) == found
    outcome = taet("data", "show", *SMALL)
    assert outcome.code == 0
    assert "imbalance ratio 10" in outcome.out


def test_prepare_of_what_needs_nothing(taet: Any) -> None:
    outcome = taet("data", "prepare", *SMALL)
    assert outcome.code == 0
    assert outcome.out.splitlines() == ["nothing to download", "digits-lt: 78 train, 20 test images, imbalance 10"]
