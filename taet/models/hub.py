"""Published models: a run folder with a config.json, on disk or at a pinned commit of the Hugging Face Hub.

Only its own files are downloaded, none of them runs code, and they are verified as those of any run.
"""

import os
import re
from pathlib import Path

from taet.errors import UserError, custom_code, needed
from taet.files import check_seal, file_sha256, read_json

WEIGHTS, CARD, CONFIG, DONE = "model.safetensors", "evaluation.json", "config.json", "done"
RUN = "run:"  # before the folder of a run whose weights are named
FILES = ("run.json", "metrics.jsonl", DONE, WEIGHTS, CARD)
PINNED = re.compile(r"hf:([\w.-]+/[\w.-]+)@([0-9a-f]{40})")


def local(name: str | os.PathLike[str]) -> Path:
    """Return the folder of a published model, downloaded if it is not in the hub's cache yet; or a path.

    A name without a full commit, a missing package and a download that fails raise a `UserError`.
    """
    text = os.fspath(name)
    place, pinned = Path(text.removeprefix("folder:")), PINNED.fullmatch(text)
    if pinned:
        library = needed("huggingface_hub", text, "hub")
        with custom_code(text):
            place = Path(library.snapshot_download(pinned[1], revision=pinned[2], allow_patterns=[*FILES, CONFIG]))
    elif text.startswith("hf:"):
        find = f"git ls-remote https://huggingface.co/{text[3:].partition('@')[0]} HEAD prints the latest"
        allowed = "hf:USER/NAME@COMMIT with the 40 digits of a commit, which cannot move"
        raise UserError(f"got {text}; allowed: {allowed}; {find}")
    return place


def weights_file(path: str | Path) -> Path:
    """Return the file of weights of a path, run:FOLDER, the folder of a run or published model, hf:USER/NAME@COMMIT.

    Of a folder it must have the SHA-256 that `done` has for it.
    """
    place = local(str(path).removeprefix(RUN))
    if not place.is_dir():
        return place
    done, file = place / DONE, place / WEIGHTS
    if not (done.is_file() and file.is_file()):
        raise UserError(f"weights: got {place}; allowed: the folder of a finished run, with {DONE} and {WEIGHTS}")
    check_seal(done, stored := read_json(done))
    if not isinstance(stored.get("files"), dict) or stored["files"].get(WEIGHTS) != file_sha256(file):
        raise UserError(f"{file} was changed or damaged: its SHA-256 differs from the one in {DONE}")
    return file
