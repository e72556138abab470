"""A setting that is added in two lines is told apart everywhere, without being filed by hand."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import taet

PAPERS = Path(__file__).parents[2] / "papers"
ANCHOR = "    batch_size: Count = 128\n"
TWO_LINES = '    sharpness: NonNegative = 0.0\n    """A setting that did not exist before."""\n'
CHECKS = """
import json, sys
import numpy as np
import taet
from taet.card.card import ResultCard
from taet.card.column import Column
from taet.run.identity import differences, naming_settings, run_hash, training_settings
from taet.settings import Run, override

from taet import methods

first = Run(settings=methods.find("at").Config())
second = override(first, {"training.sharpness": 0.5})
settings = [training_settings(run) for run in (first, second)]
assert differences(*settings) == ["training.sharpness"]                       # resume and compare
assert run_hash(first.model_dump()) != run_hash(second.model_dump())          # checkpoints, weights

def card(run, seed):
    labels = np.repeat(np.arange(2), 5)
    clean = Column(name="clean", correct=labels == 0, predictions=np.zeros(10, int), norm=None,
                   eps=None, bounded=False, parameters={})
    return ResultCard(method="at", title="AT", protocol="taet", seed=seed, labels=labels,
        threat={"norm": "linf", "eps": 8 / 255}, batch_size=250, columns=(clean,),
        model={"name": "resnet18", "weights_sha256": f"{seed:064x}", "selection": "last",
               "epoch": 100},
        data={"name": "digits-lt", "class_names": ["a", "b"], "test_sha256": "ab" * 32,
              "train_class_counts": [10, 1], "imbalance_ratio": 10.0},
        run={"config": json.loads(run.replace(seed=seed).model_dump_json())},
        created="2026-01-01T00:00:00+00:00", command="taet evaluate x")

found = taet.results([card(first, 0), card(first, 1), card(second, 2)])       # rows of a report
assert found.rows == ("at", "at (sharpness 0.5)"), found.rows

sys.path.insert(0, sys.argv[1])
from runs import key                                                          # papers
assert key(settings[0]) != key(settings[1])
"""


@pytest.mark.full
def test_a_setting_of_two_lines_is_told_apart_everywhere(tmp_path: Path) -> None:
    package = Path(taet.__file__).parent
    copy = tmp_path / "taet"
    shutil.copytree(package, copy, ignore=shutil.ignore_patterns("__pycache__"))
    schema = copy / "settings" / "schema.py"
    source = schema.read_text(encoding="utf-8")
    assert source.count(ANCHOR) == 1
    schema.write_text(source.replace(ANCHOR, TWO_LINES + ANCHOR), encoding="utf-8")
    checks = [sys.executable, "-c", CHECKS, str(PAPERS)]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(checks, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
