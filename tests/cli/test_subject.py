"""Data of other origin, for a run."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from taet.cli import subject


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, (12, "pad")),
        ({"size": 12}, (12, "pad")),
        ({"size": 16}, (16, "pad")),
        ({"size": 12, "fit": "crop"}, (12, "crop")),
    ],
)
def test_other_images_fit_as_those_of_the_run_did(
    given: dict[str, Any], expected: tuple[int, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    record = SimpleNamespace(data=SimpleNamespace(image_shape=(3, 12, 12)), fit="pad")
    monkeypatch.setattr(subject, "RunFolder", lambda _: SimpleNamespace(record=record))
    monkeypatch.setattr(subject, "load", lambda data: data)
    data: Any = subject.data_for_run("run", subject.OfModel(data={"name": "folder:images", **given}))
    assert (data.size, data.fit) == expected
    assert Path(data.name).name == "folder:images"


def test_a_model_keeps_its_name_where_a_folder_has_it_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("resnet8", "mine"):
        Path(name).mkdir()
    assert [subject.is_folder(name) for name in ("resnet8", "mine", ".", "runs/x", "nets:build")] == [
        False, True, True, True, False,
    ]  # fmt: skip
    Path("resnet8", "run.json").touch()
    assert subject.is_folder("resnet8")
