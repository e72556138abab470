"""Arrays as compact JSON and back: bits, small integers and floats in base64, little-endian."""

from __future__ import annotations

import base64
import dataclasses
import math
from collections.abc import Mapping
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from taet.fields import StoredCount

Json = dict[str, Any]
"""A JSON object, as `json.loads` returns it."""


class PackedMask(TypedDict):
    """Bits in base64."""

    count: StoredCount
    bits: str


class PackedIntegers(TypedDict):
    """Integers of two bytes in base64."""

    count: StoredCount
    uint16: str


class PackedFloats(TypedDict):
    """Floats of four bytes in base64."""

    shape: list[StoredCount]
    float32: str


def pack_mask(mask: NDArray[np.bool_]) -> PackedMask:
    """Pack a mask (N,), eight values to a byte, the first in the highest bit."""
    return {"count": len(mask), "bits": _encode(np.packbits(mask))}


def unpack_mask(packed: PackedMask) -> NDArray[np.bool_]:
    """Return the mask; raise `ValueError` if the number of bytes does not fit the count."""
    count, content = packed["count"], _decode(packed["bits"])
    if len(content) != (count + 7) // 8:
        raise ValueError(f"{len(content)} bytes for {count} bits")
    return np.unpackbits(np.frombuffer(content, dtype=np.uint8), count=count).astype(bool)


def pack_integers(values: NDArray[np.int64]) -> PackedIntegers:
    """Pack integers (N,) from 0 to 65535, two bytes each."""
    return {"count": len(values), "uint16": _encode(values.astype("<u2"))}


def unpack_integers(packed: PackedIntegers) -> NDArray[np.int64]:
    """Return the integers; raise `ValueError` if their number is not the count."""
    return np.frombuffer(_decode(packed["uint16"]), dtype="<u2").astype(np.int64).reshape(packed["count"])


def pack_floats(values: NDArray[np.float32] | None) -> PackedFloats | None:
    """Pack floats of any shape, four bytes each, nan included; None stays None."""
    return None if values is None else {"shape": list(values.shape), "float32": _encode(values.astype("<f4"))}


def unpack_floats(packed: PackedFloats | None) -> NDArray[np.float32] | None:
    """Return the floats; raise `ValueError` if their number does not fit the shape."""
    if packed is None:
        return None
    return np.frombuffer(_decode(packed["float32"]), dtype="<f4").astype(np.float32).reshape(packed["shape"])


def plain(value: Any) -> Any:
    """Return dataclasses as mappings, arrays as lists, numpy scalars as numbers and nan as None, at any depth."""
    if dataclasses.is_dataclass(value):
        return plain(vars(value))
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _encode(values: NDArray[np.generic]) -> str:
    return base64.b64encode(values.tobytes()).decode()


def _decode(text: str) -> bytes:
    return base64.b64decode(text, validate=True)
