"""Files of weights: found, read without running code, and matched to the parameter names of a model.

A published model is a run folder with a config.json, on disk or at a pinned commit of the Hugging Face Hub. Only its
files are downloaded, none of them runs code, and they are verified as those of any run.
"""

import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import IO, NamedTuple

import torch
from safetensors.torch import load
from torch import Tensor, nn

from taet.errors import UserError, custom_code, cut, located, needed, said
from taet.fields import Record, Sha256
from taet.files import DONE, METRICS, RUN, check_seal, file_sha256, parse_json, read_bytes, read_json
from taet.formatting import listed
from taet.models.classifier import Adapter, Classifier
from taet.settings import from_json

NAMED_STATES = ("state_dict", "model_state_dict", "model", "net")  # usual keys of the weights in a file
SETTINGS = ("mean", "std", "offset")  # of a Classifier or Adapter: set by the data and the method of a run
PARTS = ("body.", "head.", "network.")  # prefixes of all their other tensors
BLOCK = re.compile(r"(?:layer|block)(\d+)\.(?:layer\.)?(\d+)\.(.+)")  # RobustBench's names of group, block and tensor
TORCHVISION = {"conv1.weight", "layer1.0.conv1.weight"}  # names that each of its ResNets has
MOST_BYTES = 2**36  # size limit of a file of weights
WEIGHTS, CONFIG = "model.safetensors", "config.json"
OF_RUN = "run:"  # before the folder of a run whose weights are named
FILES = (RUN, METRICS, DONE, WEIGHTS, "evaluation.json")
PINNED = re.compile(r"hf:([\w.-]+/[\w.-]+)@([0-9a-f]{40})")


class DoneRecord(Record):
    """What `done` holds: the SHA-256 of `run.json`, `metrics.jsonl` and the weights."""

    files: dict[str, Sha256]


def read_sums(done: Path) -> dict[str, str]:
    """Return the SHA-256 of each file that a finished training wrote; a file `done` that was changed is refused."""
    check_seal(done, values := read_json(done))
    with located(str(done)):
        return from_json(DoneRecord, values).files


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

    In a folder, it must have the SHA-256 that `done` records for it.
    """
    place = local(str(path).removeprefix(OF_RUN))
    if not place.is_dir():
        return place
    done, file = place / DONE, place / WEIGHTS
    if not (done.is_file() and file.is_file()):
        raise UserError(f"weights: got {place}; allowed: the folder of a finished run, with {DONE} and {WEIGHTS}")
    if read_sums(done).get(WEIGHTS) != file_sha256(file):
        raise UserError(f"{file} was changed or damaged: its SHA-256 differs from the one in {DONE}")
    return file


class StoredWeights(NamedTuple):
    """The tensors of a file by name, the keys above them joined by dots, its path as given, and its local path."""

    tensors: dict[str, Tensor]
    place: str
    path: Path
    file: Path

    def check_origin(self, class_names: Sequence[str], image_shape: Sequence[int]) -> None:
        """Refuse weights of an exported file or a run for images of other classes, another order or another size."""
        if self.file.suffix != ".safetensors":
            return
        with self.file.open("rb") as stream:  # by the format's layout: its library opens no name that is not UTF-8
            header = parse_json(stream.read(int.from_bytes(stream.read(8), "little")), str(self.path))
        about = parse_json(header.get("__metadata__", {}).get("taet", "{}").encode(), str(self.path))
        if "class_names" not in about and "run_hash" in about and (run := self.file.with_name(RUN)).is_file():
            about = read_json(run)["data"]
        names, shape = about.get("class_names", class_names), about.get("image_shape", image_shape)
        numbers = [f"{label}" for label in range(len(names))]  # classes without names: those of the weights, in order
        if [*class_names] not in ([*names], numbers):
            allowed, got = (cut(", ".join(values)) for values in (names, class_names))
            raise UserError(f"{self.path}: got data of the classes {got}; allowed: {allowed}, in this order")
        if [*shape[1:]] != [*image_shape[1:]]:
            of, got = (" x ".join(map(str, each[1:])) for each in (shape, image_shape))
            raise UserError(f"{self.path}: got images of {got} pixels; allowed: {of}, as in its training (--data.size)")

    @property
    def from_run(self) -> bool:
        """Whether these are the names of a Classifier or Adapter, as in a run folder."""
        return "offset" in self.tensors and all(key in SETTINGS or key.startswith(PARTS) for key in self.tensors)

    def unprefixed(self, expected: Iterable[str]) -> tuple[dict[str, Tensor], str]:
        """Return the tensors without a prefix that expected names lack, e.g. DataParallel's "module.", and a note."""
        dropped = "" if {*expected} & {*self.tensors} else _prefix(self.tensors).removesuffix(_prefix(expected))
        under = f" under '{self.place}'" if self.place else ""
        without = f", without the prefix '{dropped}'" if dropped else ""
        if re.search(r"(^|\.)[1-9]\d*\.$", dropped):
            without += "; a layer before it, such as a normalisation, is not read"
        kept = {key.removeprefix(dropped): value for key, value in self.tensors.items()}
        return kept, f"weights: {len(kept)} tensors of {self.path}{under}{without}"


def _prefix(names: Iterable[str]) -> str:
    """Return the dotted prefix that all names share."""
    levels = zip(*(name.split(".")[:-1] for name in names), strict=False)
    return "".join(f"{level[0]}." for level in takewhile(lambda level: len({*level}) == 1, levels))


def read(path: str | Path) -> StoredWeights:
    """Return the weights in a file, .safetensors or of `torch.save` with tensors only; code is refused and never run.

    They may be under a key such as "state_dict". `path`: also a published model, hf:USER/NAME@COMMIT or its folder.
    """
    file = weights_file(path)
    content, place = _content(file), list[str]()
    held: Mapping[object, object] = {}
    while isinstance(content, Mapping):
        if content and all(isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()):
            tensors = {key: value for key, value in content.items() if key != "n_averaged"}  # of AveragedModel
            return StoredWeights(tensors, ".".join(place), Path(path), file)
        place += [next((key for key in NAMED_STATES if key in content), "")]
        held, content = content, content.get(place[-1])
    under = f"as model.state_dict() gives them, alone or under one of {', '.join(NAMED_STATES)}"
    got = f", its keys are {listed(map(str, held), most=4)}" if held else ""
    raise UserError(f"{path} holds no weights{got}; allowed: names and tensors, {under}")


def _content(path: Path) -> object:
    if not path.is_file():
        raise UserError(f"weights: got {path}; allowed: a file that exists (.safetensors, .pt or .pth)")
    try:
        if path.suffix == ".safetensors":
            return load(read_bytes(path, most=MOST_BYTES))  # safetensors cannot open a file whose name is not UTF-8
        with warnings.catch_warnings(), path.open("rb") as file:
            warnings.simplefilter("ignore")  # about old file formats, which are read or refused anyway
            if zipfile.is_zipfile(file):
                check_archive(file)
            file.seek(0)
            return torch.load(file, map_location="cpu", weights_only=True)
    except (UserError, MemoryError):
        raise
    except Exception as error:  # torch reports a truncated or foreign file in many types
        code = re.search(r"GLOBAL ([\w.]+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if code is not None:
            holds = f"{path} holds pickled code ({code[1]}), which is never run"
            raise UserError(f"{holds}; save model.state_dict() alone") from None
        reason = f"or is truncated, or TorchScript ({type(error).__name__})"
        raise UserError(f"{path} holds no weights that can be read without running code, {reason}") from None


def check_archive(file: IO[bytes]) -> None:
    """Verify the checksum of every member of a zip file, which torch does not do, and refuse compressed ones."""
    with zipfile.ZipFile(file) as archive:
        compressed = [info for info in archive.infolist() if info.compress_type != zipfile.ZIP_STORED]
        if compressed or archive.testzip() is not None:
            raise zipfile.BadZipFile
    file.seek(0)


def fill(network: nn.Module, state: StoredWeights) -> str:
    """Load all tensors of `state` into `network`, with none missing or left over, and return a note about it."""
    tensors, note = state.unprefixed(network.state_dict())
    _copy(network, tensors, state.path)
    return note


def pretrained(model: Classifier | Adapter, weights: str | Path) -> str:
    """Load initial weights from a file into `model` and return a note about it.

    They may have the names of the original network, or be weights of a run. The body must fit exactly, but for a first
    layer for colour, which is summed over the colours where images are grey. A head of another shape, e.g. for other
    classes, stays fresh. Normalisation and offset are not changed, because data and method set them.

    Raises:
        UserError: a file that holds code, no weights, or the weights of another body.
    """
    state = read(weights)
    if any(".parametrizations." in key or ".mlp.mlp." in key for key in state.tensors):
        raise UserError(f"{state.path} has added parts; allowed: of low-rank ones, taet export --format safetensors")
    body = model.body if isinstance(model, Classifier) else model.network
    names = (own := body.state_dict()).keys()
    tensors, note = state.unprefixed(state.tensors if state.from_run else names)
    if state.from_run:
        inside = "std" not in state.tensors or not state.tensors["std"].eq(1).all()
        remarks = "" if inside else "; its run did not normalise images (--model.normalize none)"
        tensors = {k.removeprefix("network.").removeprefix("body."): v for k, v in tensors.items() if k not in SETTINGS}
    else:
        tensors = of_robustbench(read_as := tensors, own)
        remarks = "" if read_as.keys() == tensors.keys() else "; normalisation not read: --model.normalize none"
    grey = {key: value.shape for key, value in own.items() if value.ndim == 4 and value.shape[1] == 1}
    for key in (key for key in grey.keys() & tensors.keys() if tensors[key].shape == (grey[key][0], 3, *grey[key][2:])):
        tensors[key] = tensors[key].sum(1, keepdim=True)  # a grey image is the same in all colours
        remarks += "; made for colour, it reads a grey image as all three"
    others = tensors.keys() - names
    head = {key.rpartition(".")[2]: tensors[key] for key in others}
    one_layer = len({key.rpartition(".")[0] for key in others}) == 1 and {"weight"} <= head.keys() <= {"weight", "bias"}
    if isinstance(model, Adapter) or not one_layer:
        _copy(body, tensors, state.path)
        return note + ("" if others or isinstance(model, Adapter) else "; the head is fresh") + remarks
    _copy(body, {key: value for key, value in tensors.items() if key in names}, state.path)
    if {key: value.shape for key, value in model.head.state_dict().items()} == {key: head[key].shape for key in head}:
        _copy(model.head, head, state.path)
        return f"{note}, its head included{remarks}"
    classes = len(head["weight"])
    other = "of another kind" if classes == len(model.offset) else f"for {classes} classes"
    return f"{note}; the head is fresh, since that of the file is {other}{remarks}"


def of_robustbench(tensors: Mapping[str, Tensor], held: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Name the tensors of a WideResNet or PreActResNet of RobustBench as our body `held` does; others stay as they are.

    These are networks that normalise before the last layer. `sub_block1`, which no image passes, and their input
    normalisation, `mu` and `sigma`, are left out.
    """
    blocks = sorted({(int(match[1]), int(match[2])) for key in tensors if (match := BLOCK.fullmatch(key))})
    if "1.bn1.weight" not in held or not blocks:
        return {**tensors}
    named = dict[str, Tensor]()
    for key, value in tensors.items():
        first, _, last = key.partition(".")
        if match := BLOCK.fullmatch(key):
            place = 1 + blocks.index((int(match[1]), int(match[2])))
            named[f"{place}.{re.sub('^(convShortcut|shortcut.0)', 'shortcut', match[3])}"] = value
        elif first in ("conv1", "bn1", "bn"):
            named[f"{0 if first == 'conv1' else 1 + len(blocks)}.{last}"] = value
        elif first not in ("sub_block1", "mu", "sigma"):
            named[key] = value
    return named


def _copy(network: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Copy all tensors into the network, or report the first that does not fit; old files may lack batch counters."""
    held = network.state_dict()
    state = {key: value for key, value in held.items() if key.endswith("num_batches_tracked")} | dict(state)
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        own, theirs = ({key: tuple(getattr(value, "shape", ())) for key, value in of.items()} for of in (held, state))
        faults = [
            f"{cut(key, 80)}: got {theirs.get(key, 'no such tensor')}; allowed: {own.get(key, 'no such tensor')}"
            for key in own | theirs
            if own.get(key) != theirs.get(key)
        ]
        hint = "; the names are torchvision's: --model torchvision:NAME" if theirs.keys() - own >= TORCHVISION else ""
        grey = [key for key, one in own.items() if one[1:2] == (1,) and theirs.get(key) == (one[0], 3, *one[2:])]
        hint += "; grey images fit it with --normalize of three channels" if grey and "mean" not in theirs else ""
        hint += "; made for images of another size: --data.size" if "pos_embed" in "".join(faults[:1]) else ""
        counted = f"{len(faults)} of {len(own | theirs)} tensors, the first "
        some = counted + faults[0] if faults else cut(said(error), 400)
        raise UserError(f"{path} does not fit the model: {some}{hint}") from None
    for key, value in network.state_dict().items():
        given = state.get(key, value)  # a network may rename or drop what it loads
        if given.is_floating_point() != value.is_floating_point() or not value.isfinite().all():
            raise UserError(f"{path}: {key}: got {given.dtype}; allowed: {value.dtype} values, all finite")
