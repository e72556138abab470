"""Stateless randomness: every draw has a generator seeded by its purpose, so no generator state is
saved."""

import contextlib
import hashlib
from collections.abc import Iterator

import torch


def derive_seed(seed: int, *purpose: str | int) -> int:
    """Return a seed in [0, 2^63) for (seed, purpose...), the same on every machine; parts are
    joined by a slash."""
    text = "/".join([str(seed), *map(str, purpose)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(device: torch.device | str, seed: int, *purpose: str | int) -> torch.Generator:
    """Return a `torch.Generator` on `device` seeded for (seed, purpose...)."""
    return torch.Generator(device=device).manual_seed(derive_seed(seed, *purpose))


@contextlib.contextmanager
def seeded(seed: int, *purpose: str | int) -> Iterator[None]:
    """Seed torch's global generators, for initial weights, by (seed, purpose...), and restore their
    state after."""
    # manual_seed affects every device; CUDA is not initialised just to save its state.
    used = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(devices=used):
        torch.manual_seed(derive_seed(seed, *purpose))
        yield
