"""Two other loops of PGD adversarial training, for comparison with our trainer.

The plain one is that of public research code: float32 and NCHW; a DataLoader that augments one PIL
image at a time; an attack on a model whose parameters need gradients; a loss that is read after
every step. Nothing is slow on purpose.

The competent one is what an experienced user of PyTorch writes: images on the device, cropped and
mirrored as a batch; channels_last; bfloat16 by autocast; an attack on frozen parameters; the fused
SGD; cuDNN's search for algorithms; nothing that waits.
"""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from taet.data import Split
from taet.data.augmentation import crop_flip, to_unit
from taet.settings import Threat


class Pictures(Dataset[tuple[Tensor, int]]):
    """Images (N, H, W, C) and labels as in torchvision's data sets: one transformed PIL image at a
    time."""

    def __init__(self, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
        self.images, self.labels = images, labels
        side = images.shape[1]
        crop: Any = transforms.RandomCrop(side, side // 8)  # type: ignore[no-untyped-call]
        flip: Any = transforms.RandomHorizontalFlip()  # type: ignore[no-untyped-call]
        self.transform: Any = transforms.Compose([crop, flip, transforms.ToTensor()])  # type: ignore[no-untyped-call]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[row])), int(self.labels[row])


def loader(split: Split, batch_size: int, workers: int) -> DataLoader[tuple[Tensor, int]]:
    """Shuffled, cropped and mirrored batches (x, y) of a split."""
    pictures = Pictures(np.asarray(split.images), split.labels)
    return DataLoader(
        pictures,
        batch_size,
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
    )


def perturb(
    model: nn.Module, x: Tensor, y: Tensor, threat: Threat, noise: Tensor | None = None
) -> Tensor:
    """PGD from x + noise, by default 0.001 N(0, 1): signed gradient steps, each clipped to the ball
    and to [0, 1]."""
    model.eval()
    x_adv = x.detach() + (0.001 * torch.randn(x.shape).to(x.device) if noise is None else noise)
    for _ in range(threat.steps):
        x_adv.requires_grad_()
        loss = functional.cross_entropy(model(x_adv), y)
        (gradient,) = torch.autograd.grad(loss, [x_adv])
        x_adv = x_adv.detach() + threat.step_size * torch.sign(gradient.detach())
        x_adv = torch.min(torch.max(x_adv, x - threat.eps), x + threat.eps)
        x_adv = torch.clamp(x_adv, 0.0, 1.0)
    return x_adv.detach()


def update(model: nn.Module, optimizer: torch.optim.Optimizer, x_adv: Tensor, y: Tensor) -> float:
    """Make one step of the weights on adversarial images; return the loss."""
    model.train()
    optimizer.zero_grad()
    loss = functional.cross_entropy(model(x_adv), y)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return loss.item()


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[tuple[Tensor, Tensor]],
    attack: Callable[[Tensor, Tensor], Tensor],
    device: torch.device,
) -> float:
    """Train for one epoch on the examples of `attack`(x, y); return the mean loss per image."""
    total, images = 0.0, 0
    for batch in batches:
        x, y = (part.to(device) for part in batch)
        total += update(model, optimizer, attack(x, y), y) * len(y)
        images += len(y)
    return total / images


def competent(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    batch_size: int,
    threat: Threat,
) -> float:
    """Train for one epoch on uint8 images (N, H, W, C), on the device; return the mean loss per
    batch."""
    device, losses, parameters = images.device, list[Tensor](), [*model.parameters()]
    torch.backends.cudnn.benchmark = True
    draws = torch.Generator(device).manual_seed(torch.initial_seed())
    for rows in torch.randperm(len(labels), device=device).split(batch_size):
        x, y = (
            to_unit(crop_flip(images[rows], draws, mirror=True), channels_last=True),
            labels[rows],
        )
        noise = 0.001 * torch.randn(x.shape, device=device)
        with torch.autocast(device.type, torch.bfloat16):
            for parameter in parameters:
                parameter.requires_grad_(False)
            x_adv = perturb(model, x, y, threat, noise)
            for parameter in parameters:
                parameter.requires_grad_(True)
            model.train()
            loss = functional.cross_entropy(model(x_adv), y)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses).mean().item()
