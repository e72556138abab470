"""`torchrun -m taet train`: two processes train, attack and print as one; after one dies the run
can be continued."""

import atexit
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from taet.cli import main
from taet.evaluation import ResultCard
from taet.training import loop, resume
from tests.calls import PATIENCE

WORDS = (
    "train at --data.max-count 20 --data.test-max-count 10 --model resnet8 --batch-size 32 "
    "--threads 1 --lr 0.002"
)
WORDS += (
    " --precision float32 --threat.eps 0.05 --threat.step-size 0.025 --threat.steps 2 "
    "--monitor-steps 2 --epochs 2"
)
WORDS += " --evaluation.attacks fgsm --device cpu --seed 1"
ROOT = Path(__file__).parents[2]
DIES_BEFORE = 5  # of six steps


def torchrun(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a module or a script as two processes."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]),
    }
    if sys.platform == "linux":
        environment["GLOO_SOCKET_IFNAME"] = "lo"
    words = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        *map(str, arguments),
    ]
    return subprocess.run(
        words, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False
    )


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, by one process."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    assert main([*WORDS.split(), "--out", str(folder), "--evaluate"]) == 0
    return folder


def assert_weights_close(folder: Path, expected: Path) -> None:
    """The same but for rounding, which may turn a sign of an attack."""
    weights, wanted = (load_file(place / "model.safetensors") for place in (folder, expected))
    for name, value in wanted.items():
        torch.testing.assert_close(weights[name], value, rtol=0, atol=5e-3, msg=name)


@pytest.mark.full
def test_two_processes_train_attack_and_speak_as_one(alone: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    done = torchrun(__file__, *WORDS.split(), "--out", folder, "--evaluate")
    # although each process would abort while Python shuts down
    assert done.returncode == 0, done.stderr
    assert {path.name for path in folder.iterdir()} == {path.name for path in alone.iterdir()}
    assert_weights_close(folder, alone)
    card, whole = (ResultCard.load(place / "evaluation.json") for place in (folder, alone))
    for column in whole.columns:
        assert (card.column(column.name).predictions == column.predictions).mean() > 0.95
    for said in (f"at on digits-lt: 2 epochs, {folder}", f"report: {folder}"):
        assert done.stdout.count(said) == 1
    assert len(re.findall("^at: 2 epochs of resnet8", done.stderr, re.MULTILINE)) == 1
    assert len(re.findall("^at: 100 %", done.stderr, re.MULTILINE)) == 1


@pytest.mark.full
def test_a_process_that_dies_ends_the_job_with_one_line_and_a_run_to_go_on_with(
    alone: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    done = torchrun(__file__, *WORDS.split(), "--out", folder, "--save-minutes", "0")
    assert done.returncode == 1
    (line,) = re.findall(r"^taet: .*", done.stderr, re.MULTILINE) or [done.stderr]
    assert line.startswith("taet: error: another process of this job has ended (")
    assert line.endswith(
        f"; {folder / 'checkpoint.pt'} is kept; continue: taet train --resume {folder}"
    )
    assert not (folder / "done").exists()
    assert torch.load(folder / "checkpoint.pt", weights_only=True)["step"] == (DIES_BEFORE - 1) % 3
    assert len(resume(folder).history) == 2
    assert_weights_close(folder, alone)


def dying() -> None:
    """Make the first process, which writes, kill itself in the middle of the run."""
    step = loop.training_step

    def deadly(state: Any, *given: Any) -> Any:
        if state.number + 1 == DIES_BEFORE and os.environ["RANK"] == "0":
            os.kill(os.getpid(), signal.SIGKILL)
        return step(state, *given)

    loop.training_step = deadly


if __name__ == "__main__":
    atexit.register(os.abort)  # as a thread of gloo may do (pytorch/pytorch#179291)
    if "--save-minutes" in sys.argv:
        dying()
    sys.exit(main())
