"""The folder of a run: the names of its files, one reader and one writer for each, and their
checksums.

run.json and `done` are sealed, `done` stores the checksums of all other files of a finished
training, and weights carry those of their tensors and of the run's settings. Readers verify them.
No file in the folder ever runs code.
"""

import contextlib
import hashlib
import io
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from taet import files
from taet.errors import UserError, prefix_errors, wrapping_user_code
from taet.files import CHECKPOINT, DIVERGED, DONE, METRICS, RUN, Json
from taet.models.weight_files.checkpoint_file import check_archive
from taet.models.weight_files.location import read_sums
from taet.run.record import Epoch, RunRecord
from taet.settings.schema import from_json
from taet.settings.types import Count, Record, Sha256

SCHEMA = 1
ARTIFACTS, SUFFIX = "artifacts", ".safetensors"
DELIVERED, LAST, BEST = "model", "model-last", "model-best"
"""Names of weights; those of the last or best epoch have a file of their own if the run delivers
others."""
METADATA = "taet"  # the key of a safetensors file's metadata that holds ours, as JSON

_load = partial(torch.load, weights_only=True, map_location="cpu")


class WeightsAbout(Record):
    """The metadata of a file of weights."""

    method: str
    epoch: Count
    run_hash: str
    weights_sha256: Sha256


def folder_of(run_dir: str | os.PathLike[str]) -> "RunFolder":
    """Return the folder of a run; a network, for example, is a UserError."""
    if not isinstance(run_dir, str | os.PathLike):
        raise UserError(f"got a {type(run_dir).__name__}; allowed: the folder of a run")
    return RunFolder(Path(run_dir))


@dataclass(frozen=True)
class RunFolder:
    """A folder that `taet train` or `taet evaluate` wrote, or is about to write."""

    path: Path

    @property
    def is_run(self) -> bool:
        return (self.path / RUN).is_file()

    @property
    def is_done(self) -> bool:
        return (self.path / DONE).exists()

    @property
    def has_diverged(self) -> bool:
        """Whether its training stopped because the loss or a weight was not finite."""
        return (self.path / DIVERGED).exists()

    def mark_diverged(self, what: str, epoch: int, step: int) -> None:
        """Store what is not finite, after how many epochs and steps of the next one."""
        values = {"what": what, "epoch": epoch, "step": step}
        files.write_json(self.path / DIVERGED, files.seal(values))

    @property
    def how_to_finish(self) -> str:
        """What to do where a finished run is needed: a run that diverged would do so again."""
        if self.has_diverged:
            return "its training diverged: train a new one, with a lower --lr"
        return "resume it first"

    def unmark_diverged(self) -> None:
        """Forget that the training diverged, since it goes on."""
        (self.path / DIVERGED).unlink(missing_ok=True)

    @property
    def is_taken(self) -> bool:
        """Whether the folder may hold a run.

        The leftovers of a process that was killed before it created a run do not count.
        """
        try:
            return not all(files.is_leftover(file.name) for file in self.path.iterdir())
        except OSError:  # also if it cannot be listed
            return self.path.exists()

    @contextlib.contextmanager
    def own(self) -> Iterator[None]:
        """Lock the folder for writing within this context.

        A missing folder is created, and what killed jobs left is removed.
        """
        files.make_folder(self.path)
        with files.lock(self.path):
            for folder in self.path.glob("evaluation*-state/**"):  # other folders may be in use
                files.remove_leftovers(folder)
            yield

    @cached_property  # it never changes
    def record(self) -> RunRecord:
        """The content of run.json.

        A file that is damaged, foreign or from a newer version raises a `UserError`.
        """
        path = self.path / RUN
        if not path.exists():
            why = f"it holds no {RUN}" if self.path.is_dir() else "there is no such folder"
            if self.path.is_file():
                why = "it is a file; a file of weights goes with --model NAME --weights"
            runs = sorted(path.parent for path in self.path.glob(f"runs/*/{RUN}"))
            if runs:
                why = f"it holds a comparison; allowed: one of its runs, e.g. {runs[0]}"
            raise UserError(f"{self.path} is not a run folder: {why}")
        values = files.parse_json(self._read(path), str(path))
        with prefix_errors(f"{path} was not written by taet train, or was changed"):
            schema = values.get("schema") if isinstance(values, dict) else None
            if isinstance(schema, int) and schema > SCHEMA:
                raise UserError(
                    f"got schema {schema}; allowed: up to {SCHEMA}; a newer taet wrote it"
                )
            record = from_json(RunRecord, values)
        files.check_seal(path, values)
        return record

    def create(self, record: RunRecord) -> None:
        files.write_json(self.path / RUN, files.seal(record.model_dump()))

    @property
    def sums(self) -> Mapping[str, str]:
        """SHA-256 of each file that the finished training wrote; empty before the end."""
        path = self.path / DONE
        return read_sums(path) if path.exists() else {}

    def finish(self) -> None:
        """Mark the training as finished, with the SHA-256 of every file that it wrote."""
        paths = [self.path / RUN, self.path / METRICS, *sorted(self.path.glob(f"*{SUFFIX}"))]
        sums = {path.name: files.file_sha256(path) for path in paths if path.exists()}
        files.write_json(self.path / DONE, files.seal({"files": sums}))

    def _read(self, path: Path) -> bytes:
        """Return the content of a file, verified by its checksum in `done`; b"" if it is missing
        there too."""
        if not path.exists() and path.name not in self.sums:
            return b""
        content = files.read_bytes(path, most=files.MOST_JSON_BYTES)
        self._verify(path, hashlib.sha256(content).hexdigest())
        return content

    def _verify(self, path: Path, sha256: str) -> None:
        if self.sums.get(path.name, sha256) != sha256:
            raise UserError(
                f"{path} was changed or damaged: its SHA-256 differs from the one in {DONE}"
            )

    @property
    def metrics(self) -> tuple[Epoch, ...]:
        """The rows of metrics.jsonl, one per epoch in order."""
        path, epochs = self.path / METRICS, list[Epoch]()
        for number, line in enumerate(self._read(path).splitlines(), 1):
            row = files.parse_json(line, f"{path}: line {number} is damaged")
            with prefix_errors(f"{path}: line {number}"):
                epochs.append(from_json(Epoch, row))
                if epochs[-1].epoch != number:
                    raise UserError(
                        f"got epoch {epochs[-1].epoch}; allowed: {number}; were its rows changed?"
                    )
        return tuple(epochs)

    def check_metrics(self) -> None:
        """Refuse a metrics.jsonl that is damaged, missing or of another training."""
        _ = self.metrics

    def write_metrics(self, rows: Sequence[Json]) -> None:
        lines = [json.dumps(row, allow_nan=False) + "\n" for row in rows]
        files.write_atomically(self.path / METRICS, "".join(lines).encode())

    @property
    def checkpoint(self) -> Path:
        return self.path / CHECKPOINT

    def save_checkpoint(self, state: Mapping[str, Any]) -> None:
        """Replace the checkpoint by plain Python values and tensors.

        It is loaded back once before it replaces the last one.
        """
        buffer = io.BytesIO()
        torch.save({"run_hash": self.record.run_hash, **state}, buffer)
        files.write_atomically(self.checkpoint, buffer.getvalue(), check=_load)

    def load_checkpoint(self) -> Json:
        """Return the state of the run; a damaged file or another run's raises a UserError."""
        path = self.checkpoint
        # torch reports a truncated or foreign file in many types
        with (
            files.opened(path) as file,
            wrapping_user_code(f"{path} is not a checkpoint of taet, or is truncated"),
        ):
            check_archive(file)
            state = dict(_load(file))
        if state.get("run_hash") != self.record.run_hash:
            raise UserError(
                f"{path} belongs to another run than {self.path / RUN}; nothing was changed"
            )
        return state

    def weights(self, name: str = DELIVERED) -> Path:
        """Return the path of `model`, `model-last` or `model-best`.

        Weights that the run delivers are in `model` only.
        """
        if (
            name in (LAST, BEST)
            and self.is_run
            and (name == LAST) == (self.record.selection.rule == "last")
        ):
            name = DELIVERED
        return self.path / f"{name}{SUFFIX}"

    def save_weights(self, name: str, state: Mapping[str, Tensor], epoch: int) -> None:
        """Save a model's `state` as safetensors, with `WeightsAbout` as metadata."""
        # copies: safetensors refuses tensors that share memory, as tied weights do
        layout = torch.contiguous_format
        tensors = {
            key: value.detach().to("cpu", copy=True, memory_format=layout)
            for key, value in state.items()
        }
        method, run_hash, sha256 = (
            self.record.run.method,
            self.record.run_hash,
            tensors_digest(state),
        )
        about = WeightsAbout(method=method, epoch=epoch, run_hash=run_hash, weights_sha256=sha256)
        content = save(tensors, metadata={METADATA: json.dumps(about.model_dump())})
        files.write_atomically(self.path / f"{name}{SUFFIX}", content)

    def has_head(self, name: str) -> bool:
        """Whether the weights are of a network with a head of its own, beside the body."""
        path = self.weights(name)
        if not path.is_file():
            return False  # `load_weights` says why
        why = f"{path} was not written by taet train, or is truncated"
        with files.opened(path), wrapping_user_code(why), safe_open(path, framework="pt") as file:
            names: list[str] = file.keys()
        return any(name.startswith("head.") for name in names)

    def load_weights(self, name: str, model: nn.Module) -> None:
        """Load weights into `model`.

        Missing or changed weights, and those of another run or model, raise a `UserError`.
        """
        path = self.weights(name)
        if not path.is_file():
            names = sorted(path.name for path in self.path.glob(f"*{SUFFIX}"))
            why = f"it has {', '.join(names)}" if names else "they were removed after the training"
            why = why if self.is_done else f"the run is not finished; {self.how_to_finish}"
            raise UserError(f"{self.path} holds no {path.name}: {why}")
        about = self.check_weights(name)
        with wrapping_user_code(f"{path} does not hold weights of this model, or is truncated"):
            model.load_state_dict(load_file(path))
        if about.weights_sha256 != weights_digest(model):
            raise UserError(
                f"{path} was changed or damaged: its SHA-256 differs from the one in its metadata"
            )

    def weights_about(self, name: str = DELIVERED) -> WeightsAbout:
        """Return the metadata of a file of weights.

        A file that `taet train` did not write raises a `UserError`.
        """
        path = self.weights(name)
        why = f"{path} was not written by taet train, or is truncated"
        with files.opened(path), wrapping_user_code(why), safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(METADATA, "{}")
        with prefix_errors(why):
            return from_json(WeightsAbout, files.parse_json(text.encode(), METADATA))

    def check_weights(self, name: str = DELIVERED) -> WeightsAbout:
        """Return the metadata of a file of weights that belongs to the run.

        A changed file, or one of another run, is refused.
        """
        path, about = self.weights(name), self.weights_about(name)
        if about.run_hash != self.record.run_hash:
            raise UserError(
                f"{path} holds the weights of another run than {self.path / RUN} describes"
            )
        self._verify(path, files.file_sha256(path))
        return about

    def card(self, weights: str = DELIVERED) -> Path:
        return self.path / f"evaluation{weights.removeprefix(DELIVERED)}.json"

    def cards(self) -> Iterator[tuple[Path, str]]:
        """Yield the path of every result card, old ones included, and the name of its weights."""
        for path in sorted(self.path.glob("evaluation*.json")):
            if match := re.fullmatch(r"evaluation(-last|-best)?(-\d+)?", path.stem):
                yield path, f"{DELIVERED}{match[1] or ''}"


def weights_digest(model: nn.Module) -> str:
    """The `tensors_digest` of a model's state."""
    return tensors_digest(model.state_dict())


def tensors_digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over the names, shapes and values of tensors, in order."""
    digest = hashlib.sha256()
    for name, value in state.items():
        array: Tensor = value.detach().cpu().contiguous()
        digest.update(f"{name}{tuple(array.shape)}{array.dtype}".encode())
        digest.update(array.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
