"""A comparison of a second, and a stand-in for its processes."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import taet
from taet.experiments.grid import cells_of, parse

SMALL: dict[str, Any] = {
    "methods": ["at"],
    "data": ["digits-lt"],
    "seeds": [0, 1, 2],
    "settings": {
        "data": {"max_count": 20, "test_max_count": 2},
        "model.name": "resnet8",
        "threat": {"eps": "13/255", "steps": 1},
        "training": {"epochs": 1, "batch_size": 32, "precision": "float32", "monitor_steps": 1},
        "evaluation.attacks": ["clean", "fgsm"],
        "evaluation.step_size": "9/255",
    },
}

# Does what `taet train` and `taet evaluate` leave behind, in milliseconds, or what a file says of
# the seed: fail, or hang until it is interrupted.
PROCESS = """#!{executable}
import hashlib, json, os, shutil, signal, sys, time
from pathlib import Path

place, words = Path(__file__).parent, sys.argv[sys.argv.index("taet") + 1 :]
resumed = "--resume" in words
folder = Path(words[2] if resumed else words[-1] if words[0] == "train" else words[1])
seed = int(folder.name.rpartition("seed")[2])
calls = place / "calls"
calls.mkdir(exist_ok=True)
call = {{
    "words": words,
    "threads": os.environ["OMP_NUM_THREADS"],
    "gpu": os.environ.get("CUDA_VISIBLE_DEVICES"),
}}
(calls / str(time.time_ns())).write_text(json.dumps(call))

def sealed(values):
    values = {{name: value for name, value in values.items() if name != "sha256"}}
    return values | {{"sha256": hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()}}

asked = json.loads((place / "asked.json").read_text()).get(str(seed)) if (place / "asked.json").exists() else None
if asked == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if words[0] == "train":
    folder.mkdir(parents=True, exist_ok=True)
    record = json.loads((place / "template" / "run.json").read_text())
    record["run"]["seed"] = seed
    (folder / "run.json").write_text(json.dumps(sealed(record)))
    if asked == "fail":
        print("some lines")
        print("taet: error: the loss is not finite", flush=True)
        sys.exit("at: 14 %")  # of a process that a kill left behind
    if asked == "hang":
        def save(*_):
            (folder / "saved").touch()
            sys.exit(130)
        signal.signal(signal.SIGTERM, save)
        (folder / "hangs").touch()
        time.sleep(60)
    shutil.copy(place / "template" / "metrics.jsonl", folder / "metrics.jsonl")
    (folder / "done").write_text(json.dumps(sealed({{"files": {{}}}})))
elif asked != "idle":
    card = json.loads((place / "template" / "evaluation.json").read_text())
    card["run"]["config"]["seed"] = seed
    (folder / "evaluation.json").write_text(json.dumps(sealed(card)))
"""  # noqa: E501


@pytest.fixture(scope="session")
def small() -> dict[str, Any]:
    """A specification of three cells on 78 digits."""
    return SMALL


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of that specification, trained and attacked."""
    place = tmp_path_factory.mktemp("template")
    run = cells_of(parse(SMALL), place)[0].run
    taet.train(run, out=place / "template")
    taet.evaluate(place / "template")
    return place / "template"


@pytest.fixture
def processes(
    template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., list[dict[str, Any]]]:
    """Let processes be stand-ins; called with what seeds shall do, and returns the calls so far."""
    place = tmp_path / "stand-in"
    place.mkdir()
    (place / "template").symlink_to(template)
    script = place / "process.py"
    script.write_text(PROCESS.format(executable=sys.executable))
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    monkeypatch.setattr(
        sys.modules["taet.experiments.compare"], "write", lambda _, out, **__: out
    )  # the report is tested elsewhere

    def calls(**asked: str) -> list[dict[str, Any]]:
        (place / "asked.json").write_text(
            json.dumps({name.removeprefix("seed"): what for name, what in asked.items()})
        )
        return [json.loads(path.read_text()) for path in sorted(place.glob("calls/*"))]

    return calls
