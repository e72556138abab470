"""Shares of a comparison, and the finished runs of several folders in one."""

from __future__ import annotations

import itertools
import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from taet.errors import UserError
from taet.experiments import merge
from taet.experiments.cells import Cell
from taet.experiments.parts import deal
from taet.experiments.specification import Entry, Variant
from taet.files import file_sha256, seal
from taet.settings import Run
from taet.training.folder import RunFolder

NAMES = [f"at_digits-lt_seed{seed}" for seed in range(3)]


def grid(methods: int, data: int, ratios: int, seeds: int, absent: int | None = None) -> list[Cell]:
    """Cells in the order that a comparison has them; a method may be not applicable."""
    return [
        Cell(
            f"{method}_{name}_{ratio}_{seed}",
            Entry(str(method), "at"),
            Variant(),
            str(name),
            float(ratio),
            seed,
            Path(),
            None if method == absent else Run(),
            {},
        )
        for seed, name, ratio, method in itertools.product(*map(range, (seeds, data, ratios, methods)))
    ]


def spread(shares: list[list[Cell]], trait: str, value: Any) -> int:
    counts = [sum(getattr(cell, trait) == value for cell in cells) for cells in shares]
    return max(counts) - min(counts)


sizes = st.integers(1, 4)


@pytest.mark.full
@settings(max_examples=30, deadline=None)
@given(sizes, sizes, sizes, sizes, st.integers(1, 12))
def test_every_cell_is_in_one_part_and_parts_are_as_long_and_as_expensive(
    methods: int, data: int, ratios: int, seeds: int, parts: int
) -> None:
    planned = grid(methods, data, ratios, seeds, absent=3)
    shares = [deal(planned, part, parts) for part in range(1, parts + 1)]
    given_out = [cell.name for cells in shares for cell in cells]
    assert sorted(given_out) == sorted(cell.name for cell in planned if cell.run is not None)
    assert max(map(len, shares)) - min(map(len, shares)) <= 2
    for row in {cell.row for cell in planned}:
        assert spread(shares, "row", row) <= 1, row
    more = grid(methods, data, ratios, seeds + 1, absent=3)
    for part, before in enumerate(shares, 1):
        assert deal(more, part, parts)[: len(before)] == before, "more seeds move no cell"


@pytest.mark.sample(5)
@pytest.mark.parametrize("parts", [2, 3, 4, 5, 6, 8, 12])
@pytest.mark.parametrize("size", [(4, 4, 1, 1), (4, 1, 1, 4), (4, 3, 2, 3), (15, 1, 2, 3), (3, 2, 2, 5)])
def test_data_and_ratios_are_spread_as_well(size: tuple[int, int, int, int], parts: int) -> None:
    planned = grid(*size)
    shares = [deal(planned, part, parts) for part in range(1, parts + 1)]
    for trait in ("data", "imbalance"):
        for value in {getattr(cell, trait) for cell in planned}:
            assert spread(shares, trait, value) <= 3, (trait, value)


@pytest.fixture
def place(template: Path, tmp_path: Path, mended: Callable[[Path], Path]) -> Callable[..., Path]:
    """Make a folder of the comparison with the finished runs of some seeds."""

    def made(name: str, *seeds: int) -> Path:
        for seed in seeds:
            folder = tmp_path / name / "runs" / NAMES[seed]
            shutil.copytree(template, folder)
            record = json.loads((folder / "run.json").read_text())
            record["run"]["seed"] = seed
            (folder / "run.json").write_text(json.dumps(record))
            mended(folder)
        return tmp_path / name

    return made


def rewritten(folder: Path, add: float = 0, **changes: str) -> None:
    """Write the weights of a folder again, as a training would have that ended with others, or of another run."""
    held = RunFolder(folder)
    values = {name: value.clone() for name, value in load_file(held.weights()).items()}
    for value in list(values.values())[:1]:
        value += add
    held.save_weights("model", values, held.weights_about()._replace(**changes))
    held.finish()
    card = json.loads(held.card().read_text())
    of_weights = {"file_sha256": file_sha256(held.weights()), "weights_sha256": held.weights_about().weights_sha256}
    held.card().write_text(json.dumps(seal(card | {"model": card["model"] | of_weights})))


@pytest.mark.full
@pytest.mark.usefixtures("outlined")
def test_finished_runs_come_together(small: dict[str, Any], place: Callable[..., Path]) -> None:
    a, b, out = place("a", 0, 1), place("b", 1), place("out", 0)
    place("c", 2)
    (b.parent / "c" / "runs" / NAMES[2] / "done").unlink()
    said: list[str] = []
    result = merge(small, out, [a, b, b.parent / "c"], say=said.append)
    assert Counter(outcome.state for outcome in result.outcomes) == {"done": 2, "missing": 1}
    left = f"{NAMES[2]}: not finished in {b.parent / 'c'}, not copied"
    assert said == [left, f"{NAMES[1]}: from {a}/runs/{NAMES[1]}"]
    copied = {path.name for path in (out / "runs" / NAMES[1]).rglob("*")}
    assert copied == {path.name for path in (a / "runs" / NAMES[1]).rglob("*")}
    assert sorted(path.name for path in (out / "runs").iterdir()) == NAMES[:2]
    assert result.report == out / "report.html"
    said.clear()
    merge(small, out, [a, b], say=said.append)
    assert said == [], "what is here already is taken as it is"


def other_weights(a: Path) -> None:
    rewritten(a / "runs" / NAMES[0], add=1)


def of_another_run(a: Path) -> None:
    rewritten(a / "runs" / NAMES[1], run_hash="0")


def cut_short(a: Path) -> None:
    path = a / "runs" / NAMES[1] / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-5])


def missing(a: Path) -> None:
    (a / "runs" / NAMES[1] / "model.safetensors").unlink()


def other_settings(a: Path) -> None:
    path = a / "runs" / NAMES[1] / "run.json"
    record = json.loads(path.read_text())
    record["run"]["training"]["lr"] = 0.2
    path.write_text(json.dumps(seal(record)))
    RunFolder(path.parent).finish()


def not_finished_here(a: Path) -> None:
    (a.parent / "out" / "runs" / NAMES[0] / "done").unlink()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (other_weights, f"out/runs/{NAMES[0]} and .*a/runs/{NAMES[0]} are two runs of one cell, with other weights"),
        (of_another_run, f"a/runs/{NAMES[1]}/model.safetensors holds the weights of another run than .*run.json"),
        (cut_short, f"a/runs/{NAMES[1]}/model.safetensors was changed or damaged"),
        (missing, f"a/runs/{NAMES[1]}/model.safetensors: No such file"),
        (other_settings, f"a/runs/{NAMES[1]} holds a run with other settings: training.lr is 0.2 there and 0.1"),
        (not_finished_here, f"out/runs/{NAMES[0]} is not finished, and .*a/runs/{NAMES[0]} is; remove one of them"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_copied(
    small: dict[str, Any], place: Callable[..., Path], spoil: Callable[[Path], None], words: str
) -> None:
    a, out = place("a", 0, 1, 2), place("out", 0)
    spoil(a)
    with pytest.raises(UserError, match=words) as caught:
        merge(small, out, [a])
    assert "\n" not in str(caught.value)
    assert [path.name for path in (out / "runs").iterdir()] == NAMES[:1]


def test_a_folder_that_is_no_comparison(small: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"merge: .*nowhere is not the folder of a comparison: it holds no runs"):
        merge(small, tmp_path / "out", [tmp_path / "nowhere"])


def test_a_copy_that_fails_leaves_nothing_half_done(
    small: dict[str, Any], place: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, out = place("a", 0), place("out", 1)

    def full(_: Path, target: Path) -> None:
        target.mkdir()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copytree", full)
    with pytest.raises(UserError, match=rf"cannot copy .*a/runs/{NAMES[0]} to .*: No space left on device"):
        merge(small, out, [a])
    assert [path.name for path in (out / "runs").iterdir()] == [NAMES[1]]
