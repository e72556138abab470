"""The tasks that CONTRIBUTING.md shows a newcomer, each made in a copy of the package and tried.

Methods, attacks, data sets and models of the page are trained and attacked in test_docs.py.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from taet import registry

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
INSERTION = re.compile(
    r"In\s`(?P<file>src/[^`]+)`, before\s`(?P<anchor>[^`]+)`:\n\n```python\n(?P<code>.*?)```", re.S
)
FILE = re.compile(
    r"^`(?P<file>[\w/]+\.(?:py|toml))`[^\n]*:\n\n```\w+\n(?P<code>.*?)```", re.M | re.S
)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A folder with a copy of the package."""
    shutil.copytree(ROOT / "src", tmp_path / "src")
    return tmp_path


def insert(copy: Path, file: str) -> None:
    """Make the insertions that the page shows for one file."""
    found = [match for match in INSERTION.finditer(PAGE) if match["file"] == file]
    assert found
    path = copy / file
    for match in found:
        text = path.read_text(encoding="utf-8")
        assert text.count(f"\n{match['anchor']}") == 1, f"{match['anchor']} is no place in {file}"
        changed = text.replace(f"\n{match['anchor']}", f"\n{match['code']}{match['anchor']}")
        path.write_text(changed, encoding="utf-8")


def write(folder: Path, file: str) -> None:
    """Write a file that the page shows."""
    code = next(match["code"] for match in FILE.finditer(PAGE) if match["file"] == file)
    path = folder / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(code, encoding="utf-8")


def python(folder: Path, *words: str, package: Path, plugins: str = "") -> str:
    """Run Python with a package, and return what it prints."""
    environment = {**os.environ, "PYTHONPATH": str(package), "TAET_PLUGINS": plugins}
    done = subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.full
def test_a_setting_is_an_option_and_tells_runs_apart(copy: Path) -> None:
    insert(copy, "src/taet/settings/schema.py")
    train = "-m", "taet", "train", "at", "--data", "digits-lt", "--print-config"
    stored = python(copy, *train, "--label-noise", "0.1", package=copy / "src")
    assert json.loads(stored)["training"]["label_noise"] == 0.1
    script = """
from taet.run.identity import differences, training_settings
from taet.settings import Run, override
other = override(Run(), {"training.label_noise": 0.1})
print(*differences(training_settings(Run()), training_settings(other)))
"""
    assert python(copy, "-c", script, package=copy / "src") == "training.label_noise\n"


def test_an_option_of_a_command_is_one_field(copy: Path) -> None:
    insert(copy, "src/taet/cli/list.py")
    words = "-m", "taet", "list", "methods", "--names-only"
    names = python(copy, *words, package=copy / "src").splitlines()
    assert names == [*registry.entries("methods")]


@pytest.mark.full
def test_a_label_loss_is_a_file(tmp_path: Path) -> None:
    write(tmp_path / "plugins", "losses/inverse.py")
    words = "-m", "taet", "train", "at", "--outer", "inverse-frequency", "--print-config"
    stored = python(tmp_path, *words, package=ROOT / "src", plugins=str(tmp_path / "plugins"))
    assert json.loads(stored)["outer"]["name"] == "inverse-frequency"


# A card of a small network on images of two classes, read back, and its report.
EVALUATE = """
import sys
import torch
import taet
from taet.card.card import Card
from torch import nn

network = nn.Sequential(nn.Flatten(), nn.Linear(64, 2)).eval()
images, labels = torch.rand(40, 1, 8, 8), torch.arange(40) % 2
settings = {"attacks": sys.argv[1:], "eps": 0.1, "probe": False, "train_class_counts": [9, 3]}
taet.evaluate(network, images, labels, **settings).save("card.json")
taet.results(Card.load("card.json")).report("report.html")
"""


def evaluated(copy: Path, *attacks: str) -> tuple[dict[str, Any], str]:
    """Return the stored card of some attacks and the page of its report, made with the copy."""
    python(copy, "-c", EVALUATE, *attacks, package=copy / "src")
    card = json.loads((copy / "card.json").read_text(encoding="utf-8"))
    return card, (copy / "report.html").read_text(encoding="utf-8")


@pytest.mark.full
def test_a_number_on_the_card_is_stored_and_shown_with_three_files_changed(copy: Path) -> None:
    for file in ("card/summary.py", "report/scores.py", "report/tables.py"):
        insert(copy, f"src/taet/{file}")
    card, page = evaluated(copy, "clean", "pgd-2")
    for column in card["columns"]:
        first, second = column["summary"]["per_class"]
        assert column["summary"]["spread"] == abs(first - second)
    assert "best less worst class" in page


@pytest.mark.full
def test_cards_stored_before_a_number_was_added_are_read_with_it(copy: Path) -> None:
    older = next(ROOT.glob("results/digits-lt-precision/*.json"))
    insert(copy, "src/taet/card/summary.py")
    script = "import sys; from taet.card.card import Card; print(Card.load(sys.argv[1]).sealed)"
    python(copy, "-c", script, str(older), package=copy / "src")


@pytest.mark.full
@pytest.mark.parametrize(("attacks", "times"), [(["clean"], 1), (["clean", "pgd-2"], 0)])
def test_a_flag_is_one_object(copy: Path, attacks: list[str], times: int) -> None:
    insert(copy, "src/taet/evaluation/flags.py")
    card, _ = evaluated(copy, *attacks)
    texts = [flag["text"] for flag in card["flags"] if flag["flag"] == "one-attack"]
    assert texts == ["only clean was tried; add autoattack."] * times


@pytest.mark.full
def test_a_figure_is_a_function_with_a_place_on_the_page(copy: Path) -> None:
    insert(copy, "src/taet/report/figures.py")
    insert(copy, "src/taet/report/page.py")
    _, page = evaluated(copy, "clean", "pgd-2")
    assert "Mistakes under pgd-2" in page


@pytest.mark.full
def test_a_figure_that_needs_an_attack_is_left_out_without_one(copy: Path) -> None:
    insert(copy, "src/taet/report/figures.py")
    insert(copy, "src/taet/report/page.py")
    _, page = evaluated(copy, "clean")
    assert "Mistakes under" not in page


def test_a_table_of_a_known_paper_is_a_file(copy: Path) -> None:
    shutil.copytree(ROOT / "papers", copy / "papers")
    write(copy, "papers/grids/taet/table20.toml")
    script = """
import sys
sys.path.insert(0, "papers")
from items import items
item = items()["taet/table20"]
print(item.title, *(row.method for row in item.rows), sep=", ")
"""
    told = python(copy, "-c", script, package=copy / "src")
    assert told == "DermaMNIST with a small network, at, taet\n"
