"""The networks of amortised ADT: their published size, any image size, and that a forward pass changes nothing."""

from __future__ import annotations

import pytest
import torch
from taet.models.generator import Encoder, Generator
from torch import Tensor, nn


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def images(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def test_the_published_sizes() -> None:
    explicit, implicit = Generator(9, 6, 256, (32, 32)), Generator(9, 3, 256, (32, 32), latent=64)
    blocks = 9 * (256 * 512 + 3 * 512 * 512 + 512 * 256 + 256 * 256) + 2 * 256 * 512  # 3x3, and two 1x1 shortcuts
    norms = 2 * (256 + (3 + 2) * 512 + 3 * 256)
    assert parameters(explicit) == 9 * 9 * 256 + blocks + norms + 9 * 256 * 6 == 10_330_880  # "about 10.3 million"
    code = 64 * 256 + 256 + 256 * 1024 + 1024
    assert parameters(implicit) == 9 * 10 * 256 + blocks + norms + 9 * 256 * 3 + code
    convolutions = 25 * 3 * 32 + 16 * (32 * 64 + 64 * 128 + 128 * 256)
    assert parameters(Encoder(3, 64)) == convolutions + 2 * (32 + 64 + 128 + 256) + 256 * 128 + 128


def test_the_encoder_has_one_value_per_map_at_32_pixels() -> None:
    sides = []
    encoder = Encoder(3, 64)
    for module in encoder.body:
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda *hook: sides.append(hook[2].shape[2:]))
    encoder(images(2, 3, 32, 32))
    assert sides == [(28, 28), (13, 13), (10, 10), (4, 4)]  # the published average is over 4 x 4


@pytest.mark.parametrize("shape", [(1, 1, 4, 4), (2, 1, 8, 8), (2, 3, 7, 12), (2, 3, 32, 32), (2, 3, 40, 33)])
def test_any_image_size(shape: tuple[int, ...]) -> None:
    channels, side = shape[1], (shape[2], shape[3])
    maps, codes = images(shape[0], 3 * channels, *side), images(shape[0], 5)
    assert Generator(3 * channels, 2 * channels, 2, side)(maps).shape == (shape[0], 2 * channels, *side)
    assert Generator(3 * channels, channels, 2, side, latent=5)(maps, codes).shape == shape
    assert Encoder(channels, 5)(images(*shape)).shape == (shape[0], 10)


def test_the_code_reaches_the_output() -> None:
    generator, maps = Generator(3, 1, 4, (8, 8), latent=5), images(4, 3, 8, 8)
    assert not torch.equal(generator(maps, images(4, 5)), generator(maps, -images(4, 5)))


@pytest.mark.parametrize("module", [Generator(1, 1, 2, (8, 8)), Encoder(1, 2)], ids=["generator", "encoder"])
def test_batch_statistics_always_and_no_state(module: nn.Module) -> None:
    assert list(module.buffers()) == []
    x = 3 + images(4, 1, 8, 8)
    assert torch.equal(module.train()(x), module.eval()(x))
    assert not torch.equal(module(x)[:2], module(x[:2]))


def test_first_weights() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        generator = Generator(9, 6, 16, (8, 8), latent=64)
    for module in generator.modules():
        if isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d):
            centre = 1.0 if isinstance(module, nn.BatchNorm2d) else 0.0
            assert module.weight.mean().item() == pytest.approx(centre, abs=0.02)
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.5)
            assert module.bias is None or not module.bias.any()
