"""Bits of the card of a decision as compact JSON and back."""

from __future__ import annotations

import dataclasses
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from taet.evaluation import column
from taet.evaluation.column import Json as Json
from taet.evaluation.column import Packed
from taet.fields import StoredCount


class PackedBits(TypedDict):
    """Bits in base64."""

    count: StoredCount
    bits: str


def plain(value: Any) -> Any:
    """Return a value, also a dataclass, as JSON."""
    return column.plain(vars(value) if dataclasses.is_dataclass(value) else value)


def pack_mask(mask: NDArray[np.bool_]) -> Json:
    """Pack a mask (N,), eight values to a byte, the first in the highest bit."""
    return Packed("bits", "u1").pack(mask)


def unpack_mask(packed: PackedBits) -> NDArray[np.bool_]:
    """Return the mask; raise `ValueError` if the number of bytes does not fit the count."""
    return Packed("bits", "u1").unpack(packed)
