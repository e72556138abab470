"""Where weights are: in a file, in the folder of a run, or in a published model.

A published model is a run folder with a config.json, on disk or at a pinned commit of the Hugging
Face Hub. Only its files are downloaded, none of them runs code, and they are verified as those of
any run.
"""

import os
import re
from pathlib import Path

from taet.errors import UserError, needed, prefix_errors, wrapping_user_code
from taet.files import DONE, METRICS, RUN, check_seal, file_sha256, read_json
from taet.settings.schema import from_json
from taet.settings.types import Record, Sha256

WEIGHTS, CONFIG = "model.safetensors", "config.json"
OF_RUN = "run:"  # before the folder of a run whose weights are named
FILES = (RUN, METRICS, DONE, WEIGHTS, "evaluation.json")
PINNED = re.compile(r"hf:([\w.-]+/[\w.-]+)@([0-9a-f]{40})")


class DoneRecord(Record):
    """What `done` holds: the SHA-256 of `run.json`, `metrics.jsonl` and the weights."""

    files: dict[str, Sha256]


def read_sums(done: Path) -> dict[str, str]:
    """Return the SHA-256 of each file that a finished training wrote; a file `done` that was
    changed is refused."""
    check_seal(done, values := read_json(done))
    with prefix_errors(str(done)):
        return from_json(DoneRecord, values).files


def download_or_path(name: str | os.PathLike[str]) -> Path:
    """Return the folder of a published model, downloaded if it is not in the hub's cache yet; or a
    path.

    A name without a full commit, a missing package and a download that fails raise a `UserError`.
    """
    text = os.fspath(name)
    place, pinned = Path(text.removeprefix("folder:")), PINNED.fullmatch(text)
    if pinned:
        library = needed("huggingface_hub", text, "hub")
        with wrapping_user_code(text):
            place = Path(
                library.snapshot_download(
                    pinned[1], revision=pinned[2], allow_patterns=[*FILES, CONFIG]
                )
            )
    elif text.startswith("hf:"):
        find = (
            f"git ls-remote https://huggingface.co/{text[3:].partition('@')[0]} HEAD prints the "
            "latest"
        )
        allowed = "hf:USER/NAME@COMMIT with the 40 digits of a commit, which cannot move"
        raise UserError(f"got {text}; allowed: {allowed}; {find}")
    return place


def split_key(path: str | Path) -> tuple[str, str | None]:
    """Split FILE:KEY, where KEY names one of several sets of weights in a file; KEY may be
    missing."""
    text = str(path)
    file, colon, key = text.rpartition(":")
    if colon and not Path(text).exists() and Path(file).is_file():
        return file, key
    return text, None


def weights_file(path: str | Path) -> Path:
    """Return the file of weights that a path names.

    Args:
        path: a file, FILE:KEY, run:FOLDER, the folder of a run or of a published model, or
            hf:USER/NAME@COMMIT. In a folder, the file must have the SHA-256 that `done` records.
    """
    text, _ = split_key(path)
    place = download_or_path(text.removeprefix(OF_RUN))
    if not place.is_dir():
        return place
    done, file = place / DONE, place / WEIGHTS
    if not (done.is_file() and file.is_file()):
        raise UserError(
            f"weights: got {place}; allowed: the folder of a finished run, with {DONE} and "
            f"{WEIGHTS}"
        )
    if read_sums(done).get(WEIGHTS) != file_sha256(file):
        raise UserError(
            f"{file} was changed or damaged: its SHA-256 differs from the one in {DONE}"
        )
    return file
