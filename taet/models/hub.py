"""Published models: a run folder with a config.json, on disk or at a pinned commit of the Hugging Face Hub.

config.json stores the SHA-256 of every file and its own. Only these files are downloaded, and none of them runs code.
"""

import os
import re
from pathlib import Path

from taet.errors import UserError, custom_code, needed
from taet.files import check_seal, file_sha256, read_json

WEIGHTS, CARD, CONFIG = "model.safetensors", "evaluation.json", "config.json"
RUN = "run:"  # before the folder of a run whose weights are named
FILES = ("run.json", "metrics.jsonl", "done", WEIGHTS, CARD)
PINNED = re.compile(r"hf:([\w.-]+/[\w.-]+)@([0-9a-f]{40})")


def is_published(name: str | os.PathLike[str]) -> bool:
    """Whether a name refers to a published model: hf:USER/NAME@COMMIT, or folder:PATH."""
    return os.fspath(name).startswith(("hf:", "folder:"))


def local(name: str | os.PathLike[str]) -> Path:
    """Return the verified folder of a published model, downloaded if it is not in the hub's cache yet; or a path.

    Raises:
        UserError: a name without a full commit, a missing package, a download that fails, a file whose SHA-256 is not
            the one in the model's config.json.
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
    if is_published(name) or (place / CONFIG).is_file():
        verify(place)
    return place


def weights_file(path: str | Path) -> Path:
    """Return the file of weights of a path, of run:FOLDER, of a published model's folder, or of hf:USER/NAME@COMMIT."""
    if str(path).startswith(RUN):
        return Path(str(path).removeprefix(RUN)) / WEIGHTS
    place = local(path)
    return place / WEIGHTS if (place / CONFIG).is_file() else place


def verify(folder: Path) -> None:
    """Refuse a published folder with a missing or changed file."""
    path = folder / CONFIG
    if not path.exists():
        raise UserError(f"{folder} holds no {CONFIG}; allowed: a folder that taet push wrote")
    stored = read_json(path)
    check_seal(path, stored)
    sums = stored.get("files")
    if not isinstance(sums, dict) or not {WEIGHTS, CARD, "run.json"} <= sums.keys():
        raise UserError(f"{path} was not written by taet push: it has no SHA-256 of every file")
    for name in FILES:
        if name in sums and file_sha256(folder / name) != sums[name]:
            raise UserError(f"{folder / name} was changed or damaged: its SHA-256 differs from the one in {CONFIG}")
