"""Stateless randomness: every draw comes from a generator seeded by what it is for, so no state is ever saved."""

from __future__ import annotations

import hashlib
from typing import Any


def derive_seed(seed: int, *purpose: str | int) -> int:
    """Return a seed in [0, 2^63) for (seed, purpose...), the same on every machine; parts are joined by a slash."""
    text = "/".join([str(seed), *map(str, purpose)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(device: Any, seed: int, *purpose: str | int) -> Any:
    """Return a `torch.Generator` on `device` seeded for (seed, purpose...)."""
    import torch

    return torch.Generator(device=device).manual_seed(derive_seed(seed, *purpose))
