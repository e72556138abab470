"""The hierarchical equalization loss (HEL) of TAET in a training loop of your own.

Network, data and loop below are nobody's but yours: they take from taet one attack and one loss, and at the end its
metrics. Nothing else has to be adopted.

    python examples/hel_in_your_loop.py

trains the same network twice on digits of which the last class has a tenth of the images of the first: by adversarial
training with cross-entropy, and in TAET's two stages, clean images with cross-entropy first and attacked ones with HEL
after that. It prints the accuracy of every class under attack side by side and takes some ten seconds on a CPU.

Before you use HEL: with the factors of TAET's code, 0.1 each, it is about a tenth of the cross-entropy, so steps of the
same learning rate are a tenth as long. The second stage therefore has a rate of its own here. Larger factors would not
do the same: the middle term is the variance of the class losses, which grows with their square.
"""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from taet import metrics
from taet.attacks import pgd
from taet.losses import hierarchical_equalization

EPS = 0.1  # strokes are black on white, so the ball is wider than the 8/255 of photographs
EPOCHS, CLEAN_EPOCHS = 40, 16  # TAET: 40 clean ones of 100
RATE, HEL_RATE = 0.05, 0.2  # a few were tried for either


def digits() -> tuple[TensorDataset, Tensor, Tensor]:
    """Long-tailed images to train on, and balanced ones, with their labels, to test on."""
    source = load_digits()
    images, labels = torch.from_numpy(source.images).float().unsqueeze(1) / 16, torch.from_numpy(source.target)
    counts = [int(90 * 10 ** (-label / 9)) for label in range(10)]  # 90 of the first class, falling to 9 of the last
    chosen = torch.cat([torch.nonzero(labels[:1000] == label)[:count, 0] for label, count in enumerate(counts)])
    return TensorDataset(images[chosen], labels[chosen]), images[1000:], labels[1000:]


def network() -> nn.Module:
    """Two convolutions and a linear layer: images (N, 1, 8, 8) in [0, 1] -> logits (N, 10)."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, 10),
    )


def train(data: TensorDataset, *, two_stages: bool, seed: int = 0) -> nn.Module:
    """Adversarial training with cross-entropy, or a clean stage followed by one with HEL."""
    torch.manual_seed(seed)
    model = network()
    batches = DataLoader(data, batch_size=64, shuffle=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9, weight_decay=5e-4)
    for epoch in range(EPOCHS):
        clean = two_stages and epoch < CLEAN_EPOCHS
        if two_stages and epoch == CLEAN_EPOCHS:
            optimizer.param_groups[0]["lr"] = HEL_RATE
        for x, y in batches:
            if clean:
                loss = cross_entropy(model(x), y)
            else:  # pgd attacks the model in eval mode, and gives its mode and gradients back as they were
                logits = model(pgd(model, x, y, eps=EPS, steps=10, step_size=EPS / 4))
                loss = hierarchical_equalization(logits, y).total if two_stages else cross_entropy(logits, y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


def robust_counts(model: nn.Module, x: Tensor, y: Tensor) -> tuple[metrics.Ints, metrics.Ints]:
    """Test images of each class that withstand PGD-20, and all of them, (10,) each."""
    x_adv = pgd(model, x, y, eps=EPS, steps=20, step_size=EPS / 8)
    with torch.no_grad():
        return metrics.class_counts(model(x_adv).argmax(1) == y, y, 10)


def main() -> dict[str, tuple[metrics.Ints, metrics.Ints]]:
    """Train both ways, attack both, and print what came out."""
    data, x, y = digits()
    counts = {
        "cross-entropy": robust_counts(train(data, two_stages=False), x, y),
        "clean, then HEL": robust_counts(train(data, two_stages=True), x, y),
    }
    print(f"accuracy in % under PGD-20, eps {EPS:g}")
    print(f"{'class':>8}{'trained on':>12}{'tested on':>11}", *(f"{name:>22}" for name in counts))
    recalls = [metrics.per_class_accuracy(*of) for of in counts.values()]
    rows = zip(torch.bincount(data.tensors[1]).tolist(), torch.bincount(y).tolist(), *recalls, strict=True)
    for label, (trained, tested, *values) in enumerate(rows):
        print(f"{label:>8}{trained:>12}{tested:>11}", *(f"{100 * value:>22.1f}" for value in values))
    for name, (correct, total) in counts.items():
        low, high = (100 * end for end in metrics.balanced_interval(correct, total))
        label, worst = metrics.worst_class(correct, total)
        print(
            f"{name}: balanced accuracy {100 * metrics.balanced_accuracy(correct, total):.1f} "
            f"[{low:.1f}, {high:.1f}], weakest class {label} with {100 * worst:.1f}"
        )
    print("The intervals cover the choice of test images; another seed of the training gives other numbers.")
    return counts


if __name__ == "__main__":
    main()
