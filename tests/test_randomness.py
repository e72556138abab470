"""Seeds from purposes: the same everywhere, and no global state."""

import hashlib

import torch

from taet.randomness import derive_seed, generator


def test_seeds_are_the_same_on_every_machine_and_fit_a_generator() -> None:
    """BLAKE2b of the purpose in words, halved: any other definition changes every result."""
    digest = hashlib.blake2b(b"5/order/2/17", digest_size=8).hexdigest()
    assert derive_seed(5, "order", 2, 17) == int(digest, 16) // 2
    for seed in range(200):
        assert 0 <= derive_seed(seed, "order") < 2**63


def test_a_generator_repeats_its_draws_and_leaves_the_global_one_alone() -> None:
    state = torch.random.get_rng_state()
    first, again = (torch.rand(5, generator=generator("cpu", 7, "attack", 1)) for _ in range(2))
    other = torch.rand(5, generator=generator("cpu", 7, "attack", 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), state)
