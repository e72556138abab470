"""The folder of a run: the names of its files, one reader and one writer for each, and their checksums.

Every file that affects or holds a number has a checksum: run.json and `done` are sealed, `done` stores the checksums of
all other files of a finished training, the checkpoint stores that of metrics.jsonl at the time, and weights carry those
of their tensors and of the run's settings. Readers verify the checksums; files of older versions have none.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

from torch import Tensor, nn

from taet.data.splits import VALIDATION
from taet.errors import UserError, located
from taet.fields import Record, Sha256
from taet.files import (
    MOST_JSON_BYTES,
    changed,
    check_kind,
    check_seal,
    file_sha256,
    is_leftover,
    lock,
    make_folder,
    parse_json,
    read_bytes,
    read_json,
    remove_leftovers,
    seal,
    write_json,
)
from taet.settings import from_json
from taet.training import checkpoint
from taet.training.checkpoint import SCHEMA, WeightsAbout, tensors_digest
from taet.training.decisive_settings import training_settings
from taet.training.record import Epoch, MetricsRow, RunRecord, best_epoch

RUN, METRICS, CHECKPOINT, DONE = "run.json", "metrics.jsonl", "checkpoint.pt", "done"
ARTIFACTS, STATE = "artifacts", "-state"
SUFFIX = ".safetensors"
WeightsName: TypeAlias = Literal["model", "model-last", "model-best"]
DELIVERED: WeightsName = "model"
"""Name of the weights that a run delivers; those of the last or best epoch have a file of their own if they differ."""
LAST, BEST = "model-last", "model-best"
PART = ".part"
"""Suffix of a folder that is not complete yet."""


class MetricsMark(NamedTuple):
    """Length of metrics.jsonl, and the SHA-256 up to that length; '' in checkpoints of older versions."""

    length: int = 0
    sha256: str = hashlib.sha256().hexdigest()


NO_METRICS = MetricsMark()


class DoneRecord(Record):
    """What `done` holds: the SHA-256 of every file that the finished training wrote."""

    files: dict[str, Sha256]


@dataclass(frozen=True)
class RunFolder:
    """A folder that `taet train` or `taet evaluate` wrote, or is about to write. No file in it ever runs code."""

    path: Path

    # The folder

    @property
    def is_run(self) -> bool:
        """Whether it holds a run, rather than only a result card."""
        return (self.path / RUN).is_file()

    @property
    def is_done(self) -> bool:
        """Whether the training is finished."""
        return (self.path / DONE).exists()

    @property
    def is_taken(self) -> bool:
        """Whether it holds more than the leftovers of a process killed before the run was created."""
        if not self.path.exists():
            return False
        return not self.path.is_dir() or not all(is_leftover(file.name) for file in self.path.iterdir())

    @contextlib.contextmanager
    def own(self) -> Iterator[None]:
        """Lock the folder for writing within this context; create it if it is missing.

        Links, devices and everything else except ordinary files and folders are refused, also in subfolders, so that
        nothing is read or written elsewhere. Partial files of killed processes are removed.
        """
        made = not self.path.exists()
        make_folder(self.path)
        try:
            self.check_plain()
            with lock(self.path):
                for folder in self._folders():
                    remove_leftovers(folder)
                yield
        finally:
            if made:
                with contextlib.suppress(OSError):
                    self.path.rmdir()  # only if it is empty

    def check_plain(self) -> None:
        """Refuse a folder that holds anything except ordinary files and folders."""
        try:
            for path in [path for folder in self._folders() for path in folder.iterdir()]:
                with contextlib.suppress(FileNotFoundError):  # replaced by its owner in the meantime
                    found = path.lstat()
                    if not stat.S_ISDIR(found.st_mode):
                        check_kind(path, found)
        except OSError as error:
            raise UserError(f"cannot read the folder {self.path}: {error.strerror}") from None

    def _folders(self) -> Iterator[Path]:
        """Yield the folder and the subfolders that this package writes to."""
        yield self.path
        states = (*self.path.glob(f"*{STATE}"), *self.path.glob(f"*{STATE}/*"))
        for path in (self.path / ARTIFACTS, self.tensorboard, *states):
            if path.is_dir() and not path.is_symlink():
                yield path

    # run.json and done

    @cached_property  # it never changes
    def record(self) -> RunRecord:
        """The content of run.json; a file that is damaged, foreign or from a newer version raises a UserError."""
        path = self.path / RUN
        if not path.exists():
            raise UserError(f"{self.path} is not a run folder: it holds no {RUN}")
        values = parse_json(self._read(path), str(path))
        schema = values.get("schema") if isinstance(values, dict) else None
        if isinstance(schema, int) and schema > SCHEMA:
            raise UserError(f"{path}: got schema {schema}; allowed: up to {SCHEMA}; a newer taet wrote it")
        with located(f"{path} was not written by taet train, or was changed"):
            record = RunRecord.from_json(values)
        check_seal(path, values)
        return record

    def create(self, record: RunRecord) -> None:
        """Write the record of a new run."""
        write_json(self.path / RUN, seal(record.to_json()))

    @property
    def sealed(self) -> bool:
        """Whether run.json carries its own SHA-256, as it does since version 0.1."""
        path = self.path / RUN
        return self.is_run and check_seal(path, read_json(path))

    @property
    def sums(self) -> Mapping[str, str]:
        """SHA-256 of each file that the finished training wrote; empty before the end, and for older versions."""
        path = self.path / DONE
        content = read_bytes(path, most=MOST_JSON_BYTES) if path.exists() else b""
        if not content:
            if path.exists() and self.sealed:
                raise UserError(f"{path} is empty: it was cut short")
            return {}
        values = parse_json(content, str(path))
        with located(str(path)):
            files = from_json(DoneRecord, values).files
        if not check_seal(path, values):
            raise UserError(f"{path}: the field 'sha256' is missing")
        return files

    def finish(self) -> None:
        """Mark the training as finished, with the SHA-256 of every file that it wrote."""
        paths = [self.path / RUN, self.path / METRICS, *sorted(self.path.glob(f"*{SUFFIX}"))]
        sums = {path.name: file_sha256(path) for path in paths if path.exists()}
        write_json(self.path / DONE, seal({"files": sums}))

    def _read(self, path: Path) -> bytes:
        """Return the content of a file, verified by its checksum in `done`, if any."""
        content = read_bytes(path, most=MOST_JSON_BYTES)
        if self.sums.get(path.name, found := hashlib.sha256(content).hexdigest()) != found:
            raise _changed(path)
        return content

    # metrics.jsonl

    @property
    def metrics(self) -> tuple[Epoch, ...]:
        """The rows of metrics.jsonl, one per epoch in order; an incomplete last row is left out.

        Rows with another number of classes than the run are refused.
        """
        path = self.path / METRICS
        if not path.exists() and METRICS in self.sums:
            raise UserError(f"{path} is missing: {DONE} names it")
        epochs = self._epochs(self._read(path) if path.exists() else b"")
        classes = self.record.data.num_classes if self.is_run else 0
        for epoch in epochs:
            if self.is_run and epoch.num_classes - {classes}:
                where = f"{path}: line {epoch.epoch}"
                raise UserError(f"{where}: got counts for another number of classes; allowed: {classes}")
        return epochs

    def _epochs(self, content: bytes) -> tuple[Epoch, ...]:
        path, epochs = self.path / METRICS, []
        for number, line in enumerate(content.split(b"\n")[:-1], 1):  # a row ends with a newline
            row = parse_json(line, f"{path}: line {number} is damaged")
            with located(f"{path}: line {number}"):
                epochs.append(Epoch.from_json(row))
                if epochs[-1].epoch != number:
                    raise UserError(f"got epoch {epochs[-1].epoch}; allowed: {number}; were its rows changed?")
        return tuple(epochs)

    def append(self, row: MetricsRow) -> MetricsMark:
        """Add a row to metrics.jsonl and return its new length and checksum."""
        with changed(self.path / METRICS) as file:
            file.seek(0, os.SEEK_END)
            file.write((json.dumps(row, allow_nan=False) + "\n").encode())
            length = file.tell()
            file.seek(0)
            return MetricsMark(length, hashlib.file_digest(file, "sha256").hexdigest())

    def cut_metrics(self, mark: MetricsMark) -> None:
        """Truncate metrics.jsonl to its length at the checkpoint; a file that was changed is refused."""
        self.check_metrics(mark)
        path = self.path / METRICS
        if path.exists():
            with changed(path) as file:
                file.truncate(mark.length)

    def check_metrics(self, mark: MetricsMark) -> None:
        """Refuse metrics.jsonl if its content up to the checkpoint was changed."""
        path = self.path / METRICS
        content = read_bytes(path, most=MOST_JSON_BYTES)[: mark.length] if path.exists() else b""
        if len(content) < mark.length:
            raise UserError(f"{path} is shorter than when {CHECKPOINT} was written: it was changed; cannot resume")
        if mark.sha256 and hashlib.sha256(content).hexdigest() != mark.sha256:
            raise UserError(f"{path} was changed since {CHECKPOINT} was written; cannot resume")
        self._epochs(content)

    # The checkpoint

    @property
    def checkpoint(self) -> Path:
        """The file from which `resume` continues."""
        return self.path / CHECKPOINT

    def save_checkpoint(self, state: Mapping[str, Any]) -> None:
        """Replace the checkpoint."""
        checkpoint.save_checkpoint(self.checkpoint, state)

    def load_checkpoint(self, run_hash: str) -> dict[str, Any]:
        """Return the state of the run with `run_hash`; another run's checkpoint raises a UserError."""
        state = checkpoint.load_checkpoint(self.checkpoint)
        if state.get("run_hash") != run_hash:
            raise UserError(f"{self.checkpoint} belongs to another run than {self.path / RUN}; nothing was changed")
        return state

    # Weights

    def weights(self, name: str = DELIVERED) -> Path:
        """The file of weights `model`, `model-last` or `model-best`, or the equal file of `model`."""
        path = self._weights(name)
        return self._weights(DELIVERED) if not path.exists() and self._delivers(name) else path

    def _weights(self, name: str) -> Path:
        return self.path / f"{name}{SUFFIX}"

    @property
    def weights_names(self) -> list[str]:
        """The names of existing weights and, after the training, of those that should exist."""
        files = {self._weights(DELIVERED).name, *self.sums, *(path.name for path in self.path.glob(f"*{SUFFIX}"))}
        return sorted(Path(name).stem for name in files if name.endswith(SUFFIX))

    def _delivers(self, name: str) -> bool:
        """Whether the weights that the run delivers are also those of this name."""
        if name not in (LAST, BEST) or not self.is_done or not self._weights(DELIVERED).is_file():
            return False
        if self._weights(name).name in self.sums:  # another epoch, whose file is missing
            return False
        record = self.record
        rule, last = record.selection.rule, record.run.training.epochs
        if name == LAST:
            return self.weights_about().epoch == last
        chooses = record.selection.split == VALIDATION  # a curve on test images selects only under best-test
        return rule != "last" or (chooses and best_epoch(self.metrics) == last)

    def save_weights(self, name: str, state: Mapping[str, Tensor], about: WeightsAbout) -> None:
        """Write a file of weights."""
        about = about.model_copy(update={"weights_sha256": tensors_digest(state)})
        checkpoint.save_weights(self._weights(name), state, about.model_dump())

    def load_weights(self, name: str, model: nn.Module) -> None:
        """Load weights into `model`; missing or changed ones, and those of another run, raise a UserError."""
        path = self.weights(name)
        if not path.is_file():
            held = sorted(found.name for found in self.path.glob(f"*{SUFFIX}"))
            why = f"it has {', '.join(held)}" if held and self.is_done else "the run is not finished; resume it first"
            raise UserError(f"{self.path} holds no {path.name}: {why}")
        about = self.check_weights(name)
        checkpoint.load_weights(path, model)
        if about.weights_sha256 not in ("", tensors_digest(model.state_dict())):
            raise _changed(path, "its metadata")

    def weights_about(self, name: str = DELIVERED) -> WeightsAbout:
        """Return the metadata of a file of weights."""
        return checkpoint.weights_about(self.weights(name))

    def check_weights(self, name: str = DELIVERED) -> WeightsAbout:
        """Return the metadata of a file of weights; a changed file, or one of another run, is refused."""
        path, about = self.weights(name), self.weights_about(name)
        if about.run_hash != self.record.run_hash:
            raise UserError(f"{path} holds the weights of another run than {self.path / RUN} describes")
        if self.sums.get(path.name, found := file_sha256(path)) != found:
            raise _changed(path)
        return about

    # Cards and other files

    def check_card(self, path: Path, config: Mapping[str, Any], weights_sha256: str, name: str = DELIVERED) -> None:
        """Refuse a card of another run, judged by its settings, or of weights other than the run's."""
        held, named = training_settings(self.record.settings), training_settings(config)
        if not named or any(held[key] != named[key] for key in held.keys() & named.keys()):
            raise UserError(f"{path} belongs to another run than {self.path / RUN}; evaluate the run again")
        if self.weights(name).exists() and self.check_weights(name).weights_sha256 not in ("", weights_sha256):
            raise UserError(f"{path} has other weights than {self.weights(name).name}; evaluate the run again")

    def card(self, weights: str = DELIVERED) -> Path:
        """The result card of a file of weights."""
        return self.path / f"evaluation{weights.removeprefix(DELIVERED)}.json"

    def cards(self) -> Iterator[tuple[Path, str]]:
        """Yield the path of every result card, old ones included, and the name of its weights."""
        for path in sorted(self.path.glob("evaluation*.json")):
            if found := re.fullmatch(r"evaluation(-last|-best)?(-\d+)?", path.stem):
                yield path, f"{DELIVERED}{found[1] or ''}"

    @property
    def report(self) -> Path:
        """The report of this run alone."""
        return self.path / "report.html"

    def examples(self, card: Path) -> Path:
        """Example images for figures, which belong to one of the result cards."""
        return self.artifact(f"examples{card.stem.removeprefix('evaluation')}.npz")

    def artifact(self, name: str) -> Path:
        """A further file: examples, exported models."""
        return self.path / ARTIFACTS / name

    @property
    def tensorboard(self) -> Path:
        """The folder of TensorBoard's events."""
        return self.path / "tensorboard"

    def state(self, of: str) -> Path:
        """The folder with the finished batches of unfinished work, such as an evaluation."""
        return self.path / f"{of}{STATE}"


def _changed(path: Path, named: str = DONE) -> UserError:
    return UserError(f"{path} was changed or damaged: its SHA-256 differs from the one in {named}")
