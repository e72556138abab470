"""The scripts beside the package can be imported, and those with options explain them."""

import math
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("papers", "performance", "benchmark", "results", "docs", "examples")
SCRIPTS = [path for folder in FOLDERS for path in sorted((ROOT / folder).glob("*.py"))]
# the library that each of these is an example or an extension of
NEEDS = {"lightning.py": "pytorch_lightning", "formulas.py": "griffe"}


def identify(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


@pytest.fixture(autouse=True)
def started_from_its_folder(path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Scripts import their neighbours by their bare names, as where Python starts them."""
    if path.name in NEEDS:
        pytest.importorskip(NEEDS[path.name])
    monkeypatch.setattr(sys, "path", [str(path.parent), str(ROOT), *sys.path])
    forget_neighbours()
    yield
    forget_neighbours()


def forget_neighbours() -> None:
    """Two folders may have scripts of one name."""
    for script in SCRIPTS:
        module = sys.modules.get(script.stem)
        if module is not None and getattr(module, "__file__", None) == str(script):
            del sys.modules[script.stem]


@pytest.mark.parametrize("path", SCRIPTS, ids=identify)
def test_a_script_can_be_imported(path: Path) -> None:
    runpy.run_path(str(path), run_name="imported")


WITH_OPTIONS = [
    path
    for path in SCRIPTS
    if "ArgumentParser" in (text := path.read_text()) and "__main__" in text
]


@pytest.mark.parametrize("path", WITH_OPTIONS, ids=identify)
def test_a_script_with_options_explains_them(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [str(path), "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(path), run_name="__main__")
    assert ended.value.code == 0
    assert "usage:" in capsys.readouterr().out


@pytest.mark.full
@pytest.mark.parametrize("path", [ROOT / "results" / "gradients.py"], ids=identify)
def test_the_gradients_of_the_second_stage_are_measured(path: Path) -> None:
    script = runpy.run_path(str(path), run_name="imported")
    changed = {
        "data.name": "digits-lt",
        "data.max_count": 30,
        "training.epochs": 4,
        "training.batch_size": 32,
        "threat.steps": 1,
    }
    script["of_ratio"].__globals__.update(LATER=(0, 1), BATCHES=2)
    script["SCALE"].update(changed)
    first, second = script["of_ratio"](10.0, "data")
    assert (first["epochs_after_switch"], second["epochs_after_switch"]) == (0, 1)
    assert all(math.isfinite(value) for value in (*first.values(), *second.values()))
    assert first["clean"] > 0
