"""`taet track`: a tracker gets every number once, from a growing folder, after a crash, and again."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

from taet.deployment.track import told
from taet.evaluation import ResultCard, card_store
from taet.training.folder import RunFolder
from taet.training.tensorboard import scalars


class Metric(NamedTuple):
    key: str
    value: float
    timestamp: int
    step: int


class Pair(NamedTuple):
    key: str
    value: str


class Broken(Exception):
    """The server is gone."""


class Mlflow:
    """The functions of mlflow.MlflowClient that are used, as its documentation describes them."""

    entities = SimpleNamespace(Metric=Metric, Param=Pair, RunTag=Pair)

    def __init__(self) -> None:
        self.experiments: dict[str, str] = {}
        self.runs: dict[str, Any] = {}
        self.history: dict[tuple[str, str], list[Metric]] = defaultdict(list)
        self.fail_at: int | None = None
        self.MlflowClient = lambda: self

    def get_experiment_by_name(self, name: str) -> Any:
        found = self.experiments.get(name)
        return None if found is None else SimpleNamespace(experiment_id=found)

    def create_experiment(self, name: str) -> str:
        return self.experiments.setdefault(name, str(len(self.experiments)))

    def search_runs(self, experiment_ids: list[str], *, filter_string: str, max_results: int) -> list[Any]:
        wanted = filter_string.split("'")[1]
        assert filter_string.startswith("tags.`taet.id` = ")
        every = [run for run in self.runs.values() if run.info.experiment_id in experiment_ids]
        return [run for run in every if run.data.tags["taet.id"] == wanted][:max_results]

    def create_run(self, experiment_id: str, *, tags: dict[str, str], run_name: str) -> Any:
        number = f"run{len(self.runs)}"
        info = SimpleNamespace(run_id=number, experiment_id=experiment_id, status="RUNNING", run_name=run_name)
        self.runs[number] = SimpleNamespace(info=info, data=SimpleNamespace(params={}, tags=dict(tags), metrics={}))
        return self.runs[number]

    def get_metric_history(self, run_id: str, key: str) -> list[Metric]:
        return self.history[run_id, key]

    def log_batch(self, run_id: str, metrics: Any = (), params: Any = (), tags: Any = ()) -> None:
        assert len(metrics) <= 1000
        assert len(params) <= 100
        data = self.runs[run_id].data
        for name, value in params:
            assert data.params.setdefault(name, value) == value  # a parameter cannot be changed
        data.tags.update(tags)
        for number, metric in enumerate(metrics):  # "in case of error, partial data may be written"
            if self.fail_at == number:
                raise Broken
            assert re.fullmatch(r"[/\w.\- ]+", metric.key)  # as MLflow checks it
            self.history[run_id, metric.key].append(metric)
            data.metrics[metric.key] = metric.value

    def set_terminated(self, run_id: str, status: str) -> None:
        self.runs[run_id].info.status = status


class Wandb:
    """`wandb.init` with a stable id and resume="allow", and what is used of its run."""

    def __init__(self) -> None:
        self.rows: dict[str, list[tuple[int, dict[str, float]]]] = defaultdict(list)
        self.summary: dict[str, float] = {}
        self.finished = 0

    def init(self, *, project: str, id: str, name: str, config: dict[str, str], resume: str) -> Any:
        assert (resume, name) == ("allow", "run")
        assert config["taet.method"] == "AT"
        assert not set("/\\#?%:") & set(id)
        rows = self.rows[f"{project}/{id}"]

        def log(values: dict[str, float], step: int) -> None:
            assert not rows or step > rows[-1][0]  # W&B ignores an earlier step
            rows.append((step, values))

        return SimpleNamespace(log=log, summary=self.summary, finish=lambda: setattr(self, "finished", 1))


@pytest.fixture
def copy(finished: Any, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished.folder, tmp_path / "run"))


@pytest.fixture
def growing(copy: Path) -> Path:
    """The folder as it was after three epochs."""
    for path in copy.iterdir():
        if path.name not in ("run.json", "metrics.jsonl"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    lines = (copy / "metrics.jsonl").read_text().splitlines(keepends=True)
    (copy / "metrics.jsonl").write_text("".join(lines[:3]) + lines[3][:20])  # a row is being written
    return copy


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> Mlflow:
    fake = Mlflow()
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    return fake


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Wandb:
    fake = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def written(fake: Mlflow, folder: Path) -> dict[tuple[str, int], list[float]]:
    """Every number that MLflow holds by name and step, and what it should hold."""
    found: dict[tuple[str, int], list[float]] = defaultdict(list)
    for (_, key), metrics in fake.history.items():
        for metric in metrics:
            found[key, metric.step].append(metric.value)
    points = {key for key, _ in found if key.startswith("balanced accuracy/")}
    assert len(points) == 2  # clean, and under the attack of the curve
    for row in RunFolder(folder).rows:
        for name, value in scalars(row).items():
            assert found[name, row["epoch"]] == [value]
    return found


def test_mlflow_gets_every_number_once(taet: Any, finished: Any, growing: Path, mlflow: Mlflow) -> None:
    outcome = taet("track", growing, "--to", "mlflow", "--project", "digits")
    assert outcome.code == 0
    assert outcome.out == f"{growing}: mlflow run run0: 3 epochs and 0 numbers of the result card are new\n"
    assert mlflow.runs["run0"].info.status == "RUNNING"
    assert mlflow.runs["run0"].data.params["threat.eps"] == "0.05"
    assert mlflow.runs["run0"].data.tags["taet.method"] == "AT"
    shutil.rmtree(growing)
    shutil.copytree(finished.folder, growing)  # it has grown
    assert "7 epochs and " in taet("track", growing, "--to", "mlflow", "--project", "digits").out
    assert taet("track", growing, "--to", "mlflow", "--project", "digits").out.endswith("run0: nothing new\n")
    assert len(mlflow.runs) == 1
    assert mlflow.runs["run0"].info.status == "FINISHED"
    found = written(mlflow, growing)
    assert all(len(values) == 1 for values in found.values())
    card = ResultCard.load(growing)
    for column in card.columns:
        name = f"test/{column.name}/balanced accuracy"
        assert found[name, 0] == [card.summary(column.name).balanced]


def test_a_metric_has_a_name_that_mlflow_takes(finished: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    summary = SimpleNamespace(accuracy=0.5, balanced=0.4, groups={"tail": 0.3}, worst_class=("a", 0.2))
    column = SimpleNamespace(name="pgd-100:restarts=5,eps=4/255")
    card = SimpleNamespace(columns=[column], summary_of=lambda _: summary)
    monkeypatch.setattr(card_store, "of_folder", lambda _: card)
    names = told(Path(finished.folder)).results
    assert [*names] == [
        f"test/pgd-100 restarts 5 eps 4/255/{name}" for name in ("accuracy", "balanced accuracy", "tail", "worst class")
    ]


def test_a_crash_in_the_middle_of_a_batch_is_made_good(taet: Any, copy: Path, mlflow: Mlflow) -> None:
    mlflow.fail_at = 7
    outcome = taet("track", copy, "--to", "mlflow")
    assert (outcome.code, outcome.err) == (2, "taet: error: mlflow: Broken\n")
    mlflow.fail_at = None
    assert taet("track", copy, "--to", "mlflow").code == 0
    assert all(len(values) == 1 for values in written(mlflow, copy).values())


def test_a_run_of_its_own_for_every_folder_and_project(taet: Any, copy: Path, mlflow: Mlflow, tmp_path: Path) -> None:
    other = Path(shutil.copytree(copy, tmp_path / "moved"))  # a copy is the same run
    assert taet("track", copy, other, "--to", "mlflow").out.count("nothing new") == 1
    assert taet("track", copy, "--to", "mlflow", "--project", "more").code == 0
    assert len(mlflow.runs) == 2


def test_wandb_gets_every_epoch_once(taet: Any, finished: Any, growing: Path, wandb: Wandb) -> None:
    assert "3 epochs and 0 numbers" in taet("track", growing, "--to", "wandb").out
    kept = (growing / "tracked.json").read_text()
    shutil.rmtree(growing)
    shutil.copytree(finished.folder, growing)
    (growing / "tracked.json").write_text(kept)
    assert "7 epochs and " in taet("track", growing, "--to", "wandb").out
    assert taet("track", growing, "--to", "wandb").out.endswith("nothing new\n")
    (rows,) = wandb.rows.values()
    assert rows == [(row["epoch"], scalars(row)) for row in RunFolder(growing).rows]
    card = ResultCard.load(growing)
    assert wandb.summary["test/clean/accuracy"] == card.summary("clean").accuracy
    assert wandb.finished
    assert taet("doctor", growing).code == 0
    (growing / "tracked.json").write_text(json.dumps([3]))  # what is no mark counts as none
    assert taet("track", growing, "--to", "wandb", "--project", "other").code == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("track", "RUN", "--to", "tensorboard"), "tensorboard"),
        (("track", "RUN"), "--to {mlflow,wandb} is missing"),
        (("track", "--to", "mlflow"), "which runs?"),
        (("track", "nowhere", "--to", "mlflow"), "is not a run folder"),
        (("track", "RUN", "--to", "mlflow"), "pip install 'taet[mlflow]'"),
        (("track", "RUN", "--to", "wandb"), "pip install 'taet[wandb]'"),
    ],
)
def test_a_mistake_is_one_line(
    taet: Any, finished: Any, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], message: str
) -> None:
    for name in ("mlflow", "wandb"):
        monkeypatch.setitem(sys.modules, name, None)
    outcome = taet(*(finished.folder if word == "RUN" else word for word in words))
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert message in outcome.err
