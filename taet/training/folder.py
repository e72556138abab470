"""The folder of a run: the names of its files, and one reader and one writer for each."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from taet.errors import UserError
from taet.files import make_folder, write_atomically, write_json
from taet.training import checkpoint
from taet.training.checkpoint import SCHEMA, WeightsAbout
from taet.training.record import Epoch, Row, RunRecord

RUN, METRICS, CHECKPOINT, DONE = "run.json", "metrics.jsonl", "checkpoint.pt", "done"
DELIVERED = "model"
"""Name of the weights that a run delivers; `model-last` and `model-best` are there where they differ."""
PART = ".part"
"""Suffix of a file or folder that is not whole yet, as in `taet.files`."""


@dataclass(frozen=True)
class RunFolder:
    """A folder that `taet train` or `taet evaluate` wrote, or is about to write. No file in it ever runs code."""

    path: Path

    @property
    def is_run(self) -> bool:
        """Whether it holds a run, and not a result card alone."""
        return (self.path / RUN).is_file()

    @property
    def is_taken(self) -> bool:
        """Whether it holds more than the unfinished record that a kill leaves before there is a run."""
        if not self.path.exists():
            return False
        return not self.path.is_dir() or any(file.name != RUN + PART for file in self.path.iterdir())

    @property
    def record(self) -> RunRecord:
        """What run.json holds; a record that `taet train` did not write, or a newer version did, is a UserError."""
        path = self.path / RUN
        values = read_json(path)
        try:
            if values["schema"] > SCHEMA:
                raise UserError(
                    f"{path}: got schema {values['schema']}; allowed: up to {SCHEMA}; a newer taet wrote it"
                )
            return RunRecord.from_json(values)
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} was not written by taet train ({type(error).__name__}: {error})") from None

    def create(self, record: RunRecord) -> None:
        """Make the folder with its record."""
        make_folder(self.path)
        write_json(self.path / RUN, record.to_json())

    @property
    def rows(self) -> tuple[Row, ...]:
        """The rows of metrics.jsonl as JSON, one per epoch; a last row that was cut short is left out."""
        path = self.path / METRICS
        if not path.is_file():
            return ()
        lines = path.read_text(encoding="utf-8").split("\n")
        rows = []
        for number, line in enumerate(lines, 1):
            try:
                rows += [json.loads(line)] if line.strip() else []
            except json.JSONDecodeError as error:
                if number < len(lines):  # a row ends with a newline: only the last one may be incomplete
                    raise UserError(f"{path}: line {number} is damaged: {error}") from error
        return tuple(rows)

    @property
    def metrics(self) -> tuple[Epoch, ...]:
        """The rows of metrics.jsonl, typed."""
        return tuple(map(Epoch.from_json, self.rows))

    def append(self, row: Row) -> int:
        """Add a row to metrics.jsonl and return the length of the file in bytes."""
        path = self.path / METRICS
        try:
            with path.open("ab") as file:
                file.write((json.dumps(row, allow_nan=False) + "\n").encode())
                file.flush()
                os.fsync(file.fileno())
                return file.tell()
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}; {CHECKPOINT} keeps the last good state") from None

    def cut_metrics(self, length: int) -> None:
        """Cut metrics.jsonl to the `length` in bytes that it had when the checkpoint was written."""
        path = self.path / METRICS
        if length > (path.stat().st_size if path.exists() else 0):
            raise UserError(f"{path} is shorter than when {CHECKPOINT} was written: it was changed; cannot resume")
        if path.exists():
            os.truncate(path, length)

    @property
    def checkpoint(self) -> Path:
        """The file that `resume` goes on from."""
        return self.path / CHECKPOINT

    def save_checkpoint(self, state: Mapping[str, Any]) -> None:
        """Replace the checkpoint."""
        checkpoint.save_checkpoint(self.checkpoint, state)

    def load_checkpoint(self, run_hash: str) -> dict[str, Any]:
        """Return the state of the run with `run_hash`; another run's checkpoint is a UserError."""
        state = checkpoint.load_checkpoint(self.checkpoint)
        if state.get("run_hash") != run_hash:
            raise UserError(f"{self.checkpoint} belongs to another run than {self.path / RUN}; nothing was changed")
        return state

    def weights(self, name: str = DELIVERED) -> Path:
        """The file of weights: `model`, `model-last` or `model-best`."""
        return self.path / f"{name}.safetensors"

    def save_weights(self, name: str, state: Mapping[str, Tensor], about: WeightsAbout) -> None:
        """Write a file of weights."""
        checkpoint.save_weights(self.weights(name), state, about._asdict())

    def load_weights(self, name: str, model: nn.Module) -> None:
        """Load weights into `model`; missing ones and those of another architecture are a UserError."""
        path = self.weights(name)
        if not path.is_file():
            held = sorted(found.name for found in self.path.glob("*.safetensors"))
            why = f"it has {', '.join(held)}" if held and self.is_done else "the run is not finished; resume it first"
            raise UserError(f"{self.path} holds no {path.name}: {why}")
        checkpoint.load_weights(path, model)

    def weights_about(self, name: str = DELIVERED) -> WeightsAbout:
        """Return what a file of weights says about itself."""
        return checkpoint.weights_about(self.weights(name))

    def check_weights(self, run_hash: str, name: str = DELIVERED) -> None:
        """Refuse a file of weights that is missing, damaged, or of another run than the one with `run_hash`."""
        if self.weights_about(name).run_hash != run_hash:
            described = self.path / RUN
            raise UserError(f"{self.weights(name)} holds the weights of another run than {described} describes")

    @property
    def is_done(self) -> bool:
        """Whether the training is finished."""
        return (self.path / DONE).exists()

    def finish(self) -> None:
        """Mark the training as finished."""
        write_atomically(self.path / DONE, b"")

    def card(self, weights: str = DELIVERED) -> Path:
        """The result card of a file of weights."""
        return self.path / f"evaluation{weights.removeprefix(DELIVERED)}.json"

    @property
    def examples(self) -> Path:
        """Example images for figures."""
        return self.artifact("examples.npz")

    def artifact(self, name: str) -> Path:
        """A file beside the results: examples, exported models."""
        return self.path / "artifacts" / name

    @property
    def tensorboard(self) -> Path:
        """The folder of TensorBoard's events."""
        return self.path / "tensorboard"

    def state(self, of: str) -> Path:
        """The folder with the finished batches of current work, such as an evaluation."""
        return self.path / f"{of}-state"


def read_json(path: Path) -> Any:
    """Read a JSON file of a run folder; a missing or damaged one is a UserError."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path.parent} is no run folder: it holds no {path.name}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
