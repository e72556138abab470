"""Where data are looked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from taet.data import load
from taet.data.places import passed_over, roots
from taet.settings import Data


def test_the_most_wanted_folder_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAET_DATA", "shelf")
    assert roots(Data(root="mine")) == [Path("mine"), Path("shelf"), Path("data")]
    monkeypatch.delenv("TAET_DATA")
    assert roots(Data()) == [Path("data")]


def test_a_root_that_is_not_there_is_a_note(tmp_path: Path) -> None:
    assert passed_over(Data()) == passed_over(Data(root=str(tmp_path))) == []
    expected = "data root 'nowhere' is not a folder here and is ignored"
    assert passed_over(Data(root="nowhere")) == [expected]
    assert expected in load("digits-lt", root="nowhere").notes
    assert expected not in load("digits-lt", root=str(tmp_path)).notes
