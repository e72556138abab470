"""Arrays of NumPy in a pickle, as tensors: built from their bytes, without NumPy's own unpickling.

NumPy pickles an array as its shape, the code of its type, such as f4, with an order of bytes, and
its bytes. Arrays of objects hold further pickles in place of bytes, and stay without a tensor.
"""

import re
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

NUMBERS = re.compile(r"b1|[iu][1248]|f[248]")
"""Codes of types that a tensor has."""
BYTE_ORDERS = ("<", ">", "|", "=")


class StoredType:
    """The type of the numbers of an array."""

    def __init__(self, code: object, *_options: object) -> None:
        self.code = code
        self.byte_order: object = "="

    def __setstate__(self, state: tuple[object, ...]) -> None:
        self.byte_order = state[1]

    def numpy_type(self) -> np.dtype | None:
        """Return the type of NumPy, or None if it is not one of plain numbers."""
        if not isinstance(self.code, str) or not NUMBERS.fullmatch(self.code):
            return None
        return np.dtype(self.code).newbyteorder(
            self.byte_order if self.byte_order in BYTE_ORDERS else "="  # type: ignore[arg-type]
        )


class StoredArray:
    """An array of the file."""

    tensor: Tensor | None = None
    """Its numbers; None if it holds something else."""

    def __setstate__(self, state: tuple[object, ...]) -> None:
        _version, shape, kind, is_by_columns, content = state
        self.fill(content, kind, shape, "F" if is_by_columns else "C")

    def fill(self, content: object, kind: object, shape: object, order: object) -> None:
        """Set the tensor from bytes; `order` is C for an array by rows, F for one by columns."""
        numbers = kind.numpy_type() if isinstance(kind, StoredType) else None
        if numbers is None or not isinstance(content, bytes | bytearray):
            return
        if not isinstance(shape, Sequence) or order not in ("C", "F"):
            raise ValueError("an array without a shape")
        array = np.frombuffer(content, numbers).reshape(shape, order=order)
        self.tensor = torch.from_numpy(np.array(array, numbers.newbyteorder("="), order="C"))


def empty_array(*_arguments: object) -> StoredArray:
    """Return an array whose content follows in the pickle."""
    return StoredArray()


def array_of_bytes(
    content: object, kind: object, shape: object, order: object, *_: object
) -> StoredArray:
    """Return an array as protocol 5 of pickle writes it."""
    array = StoredArray()
    array.fill(content, kind, shape, order)
    return array


def bytes_of_text(text: object, encoding: object) -> bytes:
    """Return bytes as protocol 2 of pickle writes them: as text, a character a byte."""
    if not isinstance(text, str) or encoding != "latin1":
        raise ValueError("bytes in another form")
    return text.encode("latin1")
