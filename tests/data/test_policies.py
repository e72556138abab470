"""Policies against torchvision's own transforms, seeded image by image."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from taet.data.augmentation import POLICIES, PolicyBatch, apply, apply_all
from taet.randomness import derive_seed


def work(count: int = 60, shape: tuple[int, ...] = (32, 32, 3), step: int = 7) -> PolicyBatch:
    images = np.random.default_rng(step).integers(0, 256, (count, *shape), dtype=np.uint8)
    return PolicyBatch(images, 5, ("policy", 2, step))


def works(steps: int = 6) -> Iterator[PolicyBatch]:
    return (work(4, step=step) for step in range(steps))


@pytest.mark.parametrize("policy", sorted(POLICIES))
@pytest.mark.parametrize("shape", [(32, 32, 3), (8, 8, 1), (12, 20, 3)], ids=str)
def test_every_image_is_what_torchvision_makes_of_it_under_its_seed(policy: str, shape: tuple[int, ...]) -> None:
    from torchvision.transforms import AutoAugment, AutoAugmentPolicy, RandAugment

    published = {"randaugment": RandAugment(2, 8), "autoaugment": AutoAugment(AutoAugmentPolicy.CIFAR10)}[policy]
    given = work(shape=shape)
    before = given.images.copy()
    changed = apply(policy, given)
    assert np.array_equal(given.images, before)
    with torch.random.fork_rng():
        for place, (image, result) in enumerate(zip(given.images, changed.numpy(), strict=True)):
            picture = Image.fromarray(image[:, :, 0], "L") if shape[2] == 1 else Image.fromarray(image, "RGB")
            torch.manual_seed(derive_seed(5, "policy", 2, 7, place))
            expected = np.asarray(published(picture))
            assert np.array_equal(result.reshape(expected.shape), expected)
    assert (changed.numpy() != given.images).any(axis=(1, 2, 3)).sum() > 20


def test_workers_outlive_an_interrupt_and_end_when_their_iterator_is_dropped() -> None:
    made: Any = apply_all("randaugment", works(8), 1)
    next(made)
    for child in multiprocessing.active_children():
        assert child.pid is not None
        os.kill(child.pid, signal.SIGINT)
    for _ in range(5):  # more than were made ahead
        next(made)
    assert len(multiprocessing.active_children()) == 1
    del made
    assert not multiprocessing.active_children()


@pytest.mark.full
def test_workers_end_when_their_parent_is_killed() -> None:
    code = """
        import multiprocessing, os, signal
        import numpy as np
        from taet.data.augmentation import PolicyBatch, apply_all
        made = apply_all("randaugment", (PolicyBatch(np.zeros((1, 8, 8, 3), np.uint8), 0, (i,)) for i in range(99)), 2)
        next(made), next(made)
        print(*(child.pid for child in multiprocessing.active_children()), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    # They inherit its output, which is at an end only when all of them have ended.
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False, timeout=30)
    assert done.returncode == -signal.SIGKILL
    assert len(done.stdout.split()) == 2
