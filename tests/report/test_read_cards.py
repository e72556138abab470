"""Where cards are read from."""

from pathlib import Path

import pytest

import taet
from taet.errors import UserError
from tests.report.made import MakeCard


def test_a_folder_of_runs_is_read_as_its_runs(run: Path) -> None:
    assert taet.results(run.parent).rows == taet.results(str(run)).rows == ("at",)


def test_patterns_files_and_cards_in_memory_are_read_together(
    run: Path, make_card: MakeCard
) -> None:
    found = taet.results(f"{run.parent}/*", run / "evaluation.json", make_card("at"))
    assert len(found.cards) == 3


def test_cards_in_nested_folders_are_named_by_their_paths(
    make_card: MakeCard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    make_card("at").save(tmp_path / "deep" / "er" / "at.json")
    monkeypatch.chdir(tmp_path)
    found = taet.results("deep")
    assert found.table()["card"].unique().tolist() == ["deep/er/at.json"]
    assert taet.results("**/*.json").table().equals(found.table())


@pytest.mark.parametrize("source", ["nowhere", "*.txt", "", []])
def test_a_source_without_a_card_is_refused_in_one_line(
    source: str | list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"no result card|got an empty path") as caught:
        taet.results(source)
    assert "\n" not in str(caught.value)


def test_two_links_to_a_run_are_one_run(run: Path, tmp_path: Path) -> None:
    for link in ("first", "second"):
        (tmp_path / link).symlink_to(run)
    assert len(taet.results(tmp_path).cards) == 1


@pytest.fixture
def mixed(make_card: MakeCard, tmp_path: Path) -> Path:
    """A folder with a card, and JSON of others that has the names of cards."""
    folder = tmp_path / "runs"
    (folder / "other").mkdir(parents=True)
    make_card("at").save(folder / "at.json")
    for name in ("cost.json", "evaluation.json", "other/evaluation.json"):
        (folder / name).write_text('{"accuracy": 0.5}')
    return folder


def test_a_search_passes_over_json_that_is_no_card(mixed: Path) -> None:
    assert taet.results(mixed).rows == taet.results(f"{mixed}/**").rows == ("at",)


def test_json_that_is_no_card_is_refused_where_it_is_named(mixed: Path) -> None:
    with pytest.raises(UserError, match="not a result card"):
        taet.results(mixed / "other" / "evaluation.json")


def test_a_damaged_card_is_not_passed_over(mixed: Path) -> None:
    text = (mixed / "at.json").read_text()
    (mixed / "at.json").write_text(text.replace('"seed": 0', '"seed": 1', 1))
    with pytest.raises(UserError, match=r"at\.json"):
        taet.results(mixed)
