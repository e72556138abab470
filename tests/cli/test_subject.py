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
