"""Published models: a folder in the layout of the Hugging Face Hub, read from disk or from a pinned commit of the hub.

The folder is a run folder with a `config.json`, which stores the SHA-256 of every file and its own. Only these files
are read or downloaded; none of them runs code.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from taet.errors import UserError, custom_code, needed
from taet.fields import Sha256
from taet.files import cache, check_seal, file_sha256, make_folder, read_json, seal, write_json
from taet.models import weights
from taet.models.weights import StoredWeights
from taet.shapes import check_shape
from taet.training.folder import CARD, PUBLISHED, RUN, WEIGHTS

CONFIG, PAGE = "config.json", "README.md"
SCHEME, FOLDER = "hf:", "folder:"
"""Prefixes of the name of a published model: on the hub, and in a folder."""
PINNED = re.compile(r"hf:([\w.-]+/[\w.-]+)@([0-9a-f]{40})")


def is_published(name: str | os.PathLike[str]) -> bool:
    """Whether a name refers to a published model, hf:USER/NAME@COMMIT or folder:PATH."""
    return os.fspath(name).startswith((SCHEME, FOLDER))


def local(name: str | os.PathLike[str]) -> Path:
    """Return the folder of a published model, hf:USER/NAME@COMMIT, downloaded if it is not cached yet; or a path.

    The files of folder:PATH are verified.

    Raises:
        UserError: a name without a full commit, a missing package, a download that fails, a file whose SHA-256 is not
            the one in the model's config.json or result card.
    """
    text = os.fspath(name)
    if not is_published(text):
        return Path(text)
    if text.startswith(FOLDER):
        verify(folder := Path(text.removeprefix(FOLDER)))
        return folder
    repository, commit = pinned(text)
    folder = cache() / "hub" / repository.replace("/", "--") / commit
    if not (folder / CONFIG).exists():  # downloaded last
        make_folder(folder)
        _download(repository, commit, folder)
    verify(folder)
    return folder


def pinned(name: str) -> tuple[str, str]:
    """Return repository and commit of hf:USER/NAME@COMMIT; anything else, such as a branch, raises a UserError."""
    if found := PINNED.fullmatch(name):
        return found[1], found[2]
    repository, _, commit = name.removeprefix(SCHEME).partition("@")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise UserError(f"got {name}; allowed: hf:USER/NAME@COMMIT")
    got = f"the revision '{commit}', which may move" if commit else "no commit"
    find = f"git ls-remote https://huggingface.co/{repository} HEAD prints the latest"
    raise UserError(f"{name}: got {got}; allowed: {SCHEME}{repository}@ and the 40 digits of a commit; {find}")


def _download(repository: str, commit: str, folder: Path) -> None:
    """Download the files of a published model, CONFIG last, so that it marks a complete download."""
    library = needed("huggingface_hub", f"{SCHEME}{repository}", "hub")
    for names in (list(PUBLISHED), [CONFIG]):
        with custom_code(f"{SCHEME}{repository}@{commit}"):
            library.snapshot_download(repository, revision=commit, allow_patterns=names, local_dir=str(folder))
    if not (folder / CONFIG).exists():
        raise UserError(f"{SCHEME}{repository}@{commit} holds no {CONFIG}; allowed: a model that taet push published")


def weights_file(path: Path) -> Path:
    """Return the file of weights of a path, of the folder of a published model, or of hf:USER/NAME@COMMIT."""
    if is_published(path):
        return local(path) / WEIGHTS
    if not (path / CONFIG).exists():
        return path
    verify(path)
    return path / WEIGHTS


def read_weights(path: Path) -> StoredWeights:
    """Return the weights of a file, of the folder of a published model, or of hf:USER/NAME@COMMIT."""
    return weights.read(weights_file(path))._replace(path=path)


def describe(folder: Path, about: Mapping[str, Any]) -> None:
    """Write the CONFIG of a folder: facts about the model, and the SHA-256 of its files."""
    sums = {name: file_sha256(folder / name, links=False) for name in PUBLISHED if (folder / name).exists()}
    write_json(folder / CONFIG, seal({"library_name": "taet", **about, "files": sums}))


def verify(folder: Path) -> None:
    """Refuse a published folder with a missing or changed file, or with a card of other weights."""
    path = folder / CONFIG
    if not path.exists():
        raise UserError(f"{folder} holds no {CONFIG}; allowed: a folder that taet push wrote")
    stored = read_json(path, links=False)
    if not isinstance(stored, dict) or stored.get("library_name") != "taet" or not check_seal(path, stored):
        raise UserError(f"{path} was not written by taet push: it has no SHA-256 of the files")
    sums: Any = stored.get("files")
    check_shape(f"{path}: files", sums, dict[str, Sha256])
    for name in {WEIGHTS, CARD, RUN} - {*sums}:
        raise UserError(f"{path}: files: {name} is missing")
    for name in PUBLISHED:
        if name in sums and file_sha256(folder / name, links=False) != sums[name]:
            raise UserError(f"{folder / name} was changed or damaged: its SHA-256 differs from the one in {CONFIG}")
    card = read_json(folder / CARD, links=False)
    model: Any = card.get("model") if isinstance(card, dict) and check_seal(folder / CARD, card) else None
    if not isinstance(model, dict) or model.get("file_sha256") != sums[WEIGHTS]:
        raise UserError(f"{folder / CARD} was made with other weights than {WEIGHTS}: the checksums differ")
