"""A file of weights as plain Python and tensors: no code that it holds is run.

A `torch.save` file is a pickle. `torch.load(weights_only=True)` reads tensors, numbers and texts. A
file that also holds other objects, such as the arguments of a training script, is read by an
unpickler that builds tensors, arrays of numbers and dictionaries and puts a `StandIn` in place of
everything else.
"""

import pickle
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import IO, Any, ClassVar, NamedTuple

import torch
from safetensors.torch import load as load_safetensors
from torch import Tensor

from taet.errors import UserError
from taet.files import read_bytes
from taet.models.weight_files.stored_array import (
    StoredType,
    array_of_bytes,
    bytes_of_text,
    empty_array,
)

MOST_BYTES = 2**36  # size limit of a file of weights
SAFETENSORS = ".safetensors"


class StandIn:
    """In place of an object of the file, whose class is not imported and whose code is not run."""

    origin: ClassVar[str] = ""
    """The name of its class or function, package.module.name."""
    state: object = None
    """Its attributes in the file."""

    def __new__(cls, *_arguments: object, **_options: object) -> "StandIn":
        return object.__new__(cls)

    def __init__(self, *_arguments: object, **_options: object) -> None:
        """Take what its class is given, and forget it."""

    def __call__(self, *_arguments: object, **_options: object) -> "StandIn":
        return self

    def __setstate__(self, state: object) -> None:
        self.state = state

    def __setitem__(self, key: object, value: object) -> None:
        """Take an item of a dictionary of another class, and forget it."""

    def append(self, item: object) -> None:
        """Take an item of a list of another class, and forget it."""

    def extend(self, items: object) -> None:
        """Take items of a list of another class, and forget them."""

    @property
    def is_module(self) -> bool:
        """Whether it is a whole `nn.Module`."""
        return isinstance(self.state, Mapping) and "_modules" in self.state


class Checkpoint(NamedTuple):
    """What a file holds."""

    content: object
    unread: tuple[str, ...]
    """Classes and functions of which it holds objects that were not read."""


class _Builder:
    """A function that an unpickler may call, and whose attributes it cannot change."""

    __slots__ = ("build",)

    def __init__(self, build: Callable[..., object]) -> None:
        self.build = build

    def __call__(self, *arguments: object) -> object:
        return self.build(*arguments)

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("a function has no state")


class _Dictionary(dict[object, object]):
    def __setstate__(self, state: object) -> None:
        """Ignore attributes, such as `_metadata` of a state dict."""


def _dictionary(*_arguments: object) -> _Dictionary:
    return _Dictionary()


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: object) -> Tensor:
    return torch._utils._rebuild_tensor(storage, offset, size, stride)  # type: ignore[no-untyped-call]


def _parameter(data: object, *_: object) -> object:
    return data


def _typed(build: Callable[..., object], _kind: object, arguments: Any, _state: object) -> object:
    """Build a tensor of a subclass, such as a Parameter with attributes, as a plain one."""
    return build(*arguments)


BUILDERS: dict[tuple[str, str], object] = {
    ("torch._utils", "_rebuild_tensor"): _Builder(_tensor),
    ("torch._utils", "_rebuild_tensor_v2"): _Builder(_tensor),
    ("torch._utils", "_rebuild_parameter"): _Builder(_parameter),
    ("torch._utils", "_rebuild_parameter_with_state"): _Builder(_parameter),
    ("torch._tensor", "_rebuild_from_type_v2"): _Builder(_typed),
    ("torch", "Size"): _Builder(torch.Size),
    ("torch", "device"): _Builder(torch.device),
    ("collections", "OrderedDict"): _Builder(_dictionary),
    ("collections", "defaultdict"): _Builder(_dictionary),
    ("collections", "Counter"): _Builder(_dictionary),
    ("_codecs", "encode"): _Builder(bytes_of_text),
    ("numpy", "dtype"): _Builder(StoredType),
    ("numpy", "ndarray"): _Builder(empty_array),
    # numpy.core before NumPy 2
    ("numpy.core.multiarray", "_reconstruct"): _Builder(empty_array),
    ("numpy._core.multiarray", "_reconstruct"): _Builder(empty_array),
    ("numpy.core.numeric", "_frombuffer"): _Builder(array_of_bytes),
    ("numpy._core.numeric", "_frombuffer"): _Builder(array_of_bytes),
}
"""What the unpickler may build; all other classes and functions become stand-ins."""


def read_checkpoint(path: Path) -> Checkpoint:
    """Return the content of a .safetensors file or of one that `torch.save` wrote.

    Raises:
        UserError: no file, a damaged one, TorchScript, or another format.
    """
    if not path.is_file():
        allowed = "a file that exists (.safetensors, .pt or .pth)"
        raise UserError(f"weights: got {path}; allowed: {allowed}")
    try:
        if path.suffix == SAFETENSORS or _is_safetensors(path):
            # the library's own reader opens no file whose name is not UTF-8
            return Checkpoint(load_safetensors(read_bytes(path, most=MOST_BYTES)), ())
        with warnings.catch_warnings(), path.open("rb") as file:
            # about old file formats, which are read or refused anyway
            warnings.simplefilter("ignore")
            return _read_torch_file(file, path)
    except (UserError, MemoryError):
        raise
    except Exception as error:  # torch reports a truncated or foreign file in many types
        other = _other_format(path)
        if other:
            raise UserError(f"{path} holds no weights: {other}") from None
        why = f"or is truncated ({type(error).__name__})"
        raise UserError(
            f"{path} holds no weights that can be read without running code, {why}"
        ) from None


OTHER_FORMATS = {
    b"version https://git-lfs": "it is a pointer of Git LFS; allowed: the file, by git lfs pull",
    b"<": "it is a web page, as a failed download leaves it; allowed: the file, downloaded again",
    b"\x1f\x8b": "it is compressed; allowed: the file inside it",
    b"\x89HDF": "it is HDF5, as Keras writes it; allowed: .safetensors, .pt or .pth",
    b"{": "it is JSON; allowed: a file of weights that it names",
}
"""What files of other kinds begin with, and what to give in their place."""
PICKLE = b"\x80"
MAGIC_OF_TORCH = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""The number near the beginning of a file in the form of torch before version 1.6."""


def _other_format(path: Path) -> str:
    """Return what a file is that holds no weights, and what to give in its place; "" if unknown."""
    with path.open("rb") as file:
        beginning = file.read(64).lstrip()
    if not beginning:
        return "it is empty; allowed: .safetensors, .pt or .pth"
    for first, text in OTHER_FORMATS.items():
        if beginning.startswith(first):
            return text
    if beginning.startswith(PICKLE) and MAGIC_OF_TORCH not in beginning:
        return (
            "it is a pickle that torch.save did not write, and reading it runs its code; allowed: "
            "tensors by name, made where the file is trusted, by: import pickle, torch; "
            f"torch.save(pickle.load(open('{path.name}', 'rb')), '{path.stem}-weights.pt')"
        )
    names = _names_in_archive(path)
    if names and all(name.endswith(".npy") for name in names):
        return (
            "it is an archive of NumPy; allowed: tensors by name, as torch.save({name: "
            "torch.from_numpy(array)}) writes them"
        )
    return ""


def _names_in_archive(path: Path) -> list[str]:
    """Return the names of the files in a zip archive; none where it is damaged, or no archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    # zipfile trusts sizes and text encodings that a damaged directory holds
    except (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError, OverflowError):
        return []


def _is_safetensors(path: Path) -> bool:
    """Whether a file begins as a .safetensors file: the length of its header, and JSON."""
    with path.open("rb") as file:
        beginning = file.read(10)
    size = path.stat().st_size
    return beginning[8:] == b'{"' and int.from_bytes(beginning[:8], "little") < size


def _read_torch_file(file: IO[bytes], path: Path) -> Checkpoint:
    if zipfile.is_zipfile(file):
        if _is_torchscript(file):
            remedy = to_state_dict(path, "torch.jit.load")
            raise UserError(f"{path} is TorchScript, which is a program; {remedy}")
        check_archive(file)
    file.seek(0)
    try:
        return Checkpoint(torch.load(file, map_location="cpu", weights_only=True), ())
    except pickle.UnpicklingError:
        file.seek(0)
        return _read_with_stand_ins(file)


def _read_with_stand_ins(file: IO[bytes]) -> Checkpoint:
    stand_ins: dict[str, type[StandIn]] = {}

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if (module, name) in BUILDERS:
                return BUILDERS[module, name]
            if module == "torch" and isinstance(dtype := getattr(torch, name, None), torch.dtype):
                return dtype
            origin = f"{module}.{name}"
            if origin not in stand_ins:
                stand_ins[origin] = type("StandIn", (StandIn,), {"origin": origin})
            return stand_ins[origin]

    def load(stream: IO[bytes], **options: Any) -> object:
        return Unpickler(stream, **options).load()

    inert = ModuleType("inert_pickle")
    vars(inert).update(Unpickler=Unpickler, load=load)
    content = torch.load(file, map_location="cpu", weights_only=False, pickle_module=inert)
    return Checkpoint(content, tuple(stand_ins))


def check_archive(file: IO[bytes]) -> None:
    """Verify the checksum of every member of a zip file, which torch does not do, and refuse
    compressed ones."""
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        is_compressed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
        if is_compressed or archive.testzip() is not None:
            raise zipfile.BadZipFile
    file.seek(0)


def _is_torchscript(file: IO[bytes]) -> bool:
    with zipfile.ZipFile(file) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def to_state_dict(path: Path, loader: str = "torch.load") -> str:
    """Return how a person who trusts a file of a whole model makes a file of its weights."""
    options = ", weights_only=False" if loader == "torch.load" else ""
    weights = f"{path.stem}-weights.pt"
    return (
        "allowed: weights alone, made where the file is trusted and its code at hand, by: "
        f"import torch; model = {loader}('{path.name}'{options}); "
        f"torch.save(model.state_dict(), '{weights}'); or --model package.module:callable"
    )
