"""The hierarchical equalization loss (HEL) of TAET in your own training loop.

Network, data and loop below are plain PyTorch. They use one attack, one loss and the metrics of
taet, and nothing else.

    python examples/hel_in_your_loop.py

trains the same network twice on digits whose last class has a tenth of the images of the first:
with adversarial training on cross-entropy, and in TAET's two stages, first clean images with
cross-entropy, then attacked images with HEL. It prints the accuracy of every class under attack
side by side and takes about ten seconds on a CPU.

Before you use HEL: with the factors of TAET's code, 0.1 each, it is about a tenth of the
cross-entropy, so with the same learning rate steps are a tenth as long. The second stage therefore
has its own learning rate here. Larger factors do the same, but for weight decay.
"""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from taet.attacks import pgd
from taet.losses import hierarchical_equalization
from taet.metrics import accuracies, balanced_interval

EPS = 0.1  # digits have strong contrast, so eps is larger than the 8/255 used for photographs
EPOCHS, CLEAN_EPOCHS = 40, 16  # TAET: 40 clean epochs of 100
RATE, HEL_RATE = 0.05, 0.2  # chosen from a few values each


def digits() -> tuple[TensorDataset, Tensor, Tensor]:
    """Long-tailed training set, and balanced test images with their labels."""
    source = load_digits()
    images, labels = (
        torch.from_numpy(source.images).float().unsqueeze(1) / 16,
        torch.from_numpy(source.target),
    )
    # 90 of the first class, falling to 9 of the last
    counts = [int(90 * 10 ** (-label / 9)) for label in range(10)]
    chosen = torch.cat(
        [torch.nonzero(labels[:1000] == label)[:count, 0] for label, count in enumerate(counts)]
    )
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
    batches, draws = (
        DataLoader(data, batch_size=64, shuffle=True),
        torch.Generator().manual_seed(seed),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9, weight_decay=5e-4)
    for epoch in range(EPOCHS):
        clean = two_stages and epoch < CLEAN_EPOCHS
        if two_stages and epoch == CLEAN_EPOCHS:
            optimizer.param_groups[0]["lr"] = HEL_RATE
        for x, y in batches:
            if clean:
                loss = cross_entropy(model(x), y)
            # pgd attacks in eval mode and restores the model; without `draws` all batches have one
            # start noise
            else:
                logits = model(
                    pgd(model, x, y, eps=EPS, steps=10, step_size=EPS / 4, start_noise=draws)
                )
                loss = (
                    hierarchical_equalization(logits, y).total
                    if two_stages
                    else cross_entropy(logits, y)
                )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


def robust_counts(
    model: nn.Module, x: Tensor, y: Tensor
) -> tuple[accuracies.Ints, accuracies.Ints]:
    """Number of test images per class that withstand PGD-20, and number of all test images, (10,)
    each."""
    x_adv = pgd(model, x, y, eps=EPS, steps=20, step_size=EPS / 8)
    with torch.no_grad():
        return accuracies.class_counts(model(x_adv).argmax(1) == y, y, 10)


def main() -> dict[str, tuple[accuracies.Ints, accuracies.Ints]]:
    """Train and attack both models and print the results."""
    data, x, y = digits()
    counts = {
        "cross-entropy": robust_counts(train(data, two_stages=False), x, y),
        "clean, then HEL": robust_counts(train(data, two_stages=True), x, y),
    }
    print(f"accuracy in % under PGD-20, eps {EPS:g}")
    print(f"{'class':>8}{'trained on':>12}{'tested on':>11}", *(f"{name:>22}" for name in counts))
    recalls = [accuracies.per_class_accuracy(*of) for of in counts.values()]
    rows = zip(
        torch.bincount(data.tensors[1]).tolist(), torch.bincount(y).tolist(), *recalls, strict=True
    )
    for label, (trained, tested, *values) in enumerate(rows):
        print(
            f"{label:>8}{trained:>12}{tested:>11}", *(f"{100 * value:>22.1f}" for value in values)
        )
    for name, (correct, total) in counts.items():
        low, high = (100 * end for end in balanced_interval(correct, total))
        label, worst = accuracies.worst_class(correct, total)
        print(
            f"{name}: balanced accuracy {100 * accuracies.balanced_accuracy(correct, total):.1f} "
            f"[{low:.1f}, {high:.1f}], weakest class {label} with {100 * worst:.1f}"
        )
    print(
        "The intervals cover the choice of test images. Another training seed gives other numbers."
    )
    return counts


if __name__ == "__main__":
    main()
