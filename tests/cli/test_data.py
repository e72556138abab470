"""`taet data show` and `taet data prepare`."""

from typing import Any

SMALL = ["digits-lt", "--max-count", "20", "--test-max-count", "6", "--imbalance-ratio", "10"]


def test_show_prints_a_table(taet: Any) -> None:
    found = taet("data", "show", "digits-lt", "--max-count", "20").out
    assert [int(line.split()[2]) for line in found.splitlines()[2:12]] == [
        20,
        15,
        11,
        9,
        7,
        5,
        4,
        3,
        2,
        2,
    ]
    assert taet("data", "show", "digits-lt", "--data.max-count", "20").out == found
    outcome = taet("data", "show", *SMALL)
    assert outcome.code == 0
    assert "imbalance ratio 10" in outcome.out


def test_prepare_of_what_needs_nothing(taet: Any) -> None:
    outcome = taet("data", "prepare", *SMALL)
    assert outcome.code == 0
    assert outcome.out.splitlines() == [
        "nothing to download",
        "digits-lt: 78 train, 20 test images, imbalance 10",
    ]
