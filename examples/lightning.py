"""Adversarial training and validation on long-tailed data inside PyTorch Lightning, with our losses
and attacks.

Network, data and module below are plain Lightning. They use one attack, one loss, the sampler and
the metrics of taet.

    pip install pytorch-lightning
    python examples/lightning.py

trains a small network on long-tailed digits with PGD examples and balanced softmax, validates it
under PGD-20 after every epoch, and prints the accuracy of every class under attack. Three things
matter in a module of your own:

- Lightning validates inside `torch.inference_mode()`. The attacks enable gradients there by
themselves.
- The training step says `checked=True`: its images come from the loader above, so no call needs to
  look at them again, which would wait for the device. Leave it out until your module works.
- Images stay in [0, 1], and a normalisation belongs into the network:
`taet.models.Normalized(network, (mean, std))`.
"""

import argparse

import pytorch_lightning as lightning  # not `lightning`, which is the name of this file
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

from taet.attacks import pgd
from taet.losses import balanced_softmax, cross_entropy
from taet.metrics import accuracies, balanced_interval

EPS = 0.1  # digits have strong contrast, so eps is larger than the 8/255 used for photographs
CLASSES = 10


def digits() -> tuple[TensorDataset, TensorDataset, Tensor]:
    """Long-tailed training set, balanced validation set, and the training images of each class."""
    source = load_digits()
    images, labels = (
        torch.from_numpy(source.images).float().unsqueeze(1) / 16,
        torch.from_numpy(source.target),
    )
    # 90 of the first class, 9 of the last
    counts = [int(90 * 10 ** (-label / 9)) for label in range(CLASSES)]
    chosen = torch.cat(
        [torch.nonzero(labels[:1000] == label)[:count, 0] for label, count in enumerate(counts)]
    )
    train = TensorDataset(images[chosen], labels[chosen])
    return (
        train,
        TensorDataset(images[1000:], labels[1000:]),
        labels[chosen].bincount(minlength=CLASSES),
    )


class AdversarialModule(lightning.LightningModule):
    """A network that is trained and validated on adversarial examples.

    The loss corrects the class prior by the counts (balanced softmax); without counts it is plain
    cross-entropy, for a loader that draws every class equally often.
    """

    def __init__(self, class_counts: Tensor | None = None, rate: float = 0.05) -> None:
        super().__init__()
        self.network = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * 4 * 4, CLASSES),
        )
        self.register_buffer("class_counts", class_counts)
        self.register_buffer("correct", torch.zeros(2, CLASSES, dtype=torch.int64))
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, 10) for images (N, 1, 8, 8) in [0, 1]."""
        return self.network(x)

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        """Return the loss on PGD-10 examples; the attack runs in eval mode and restores the
        mode."""
        x, y = batch
        noise = torch.empty_like(x).uniform_(-EPS, EPS)
        logits = self(
            pgd(self, x, y, eps=EPS, steps=10, step_size=EPS / 4, start_noise=noise, checked=True)
        )
        if self.class_counts is None:
            return cross_entropy(logits, y).mean()
        return balanced_softmax(logits, y, self.class_counts).mean()

    def validation_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        """Count the images of each class that withstand PGD-20, and all of them."""
        x, y = batch
        x_adv = pgd(self, x, y, eps=EPS, steps=20, step_size=EPS / 8)
        right = self(x_adv).argmax(1) == y
        self.correct += torch.stack(
            [y[right].bincount(minlength=CLASSES), y.bincount(minlength=CLASSES)]
        )

    def on_validation_epoch_end(self) -> None:
        """Log the balanced accuracy under attack and its 95 % interval."""
        correct, total = self.correct.clone().cpu().numpy()
        self.correct.zero_()
        self.robust = (correct, total)
        low, high = balanced_interval(correct, total)
        values = {
            "balanced": accuracies.balanced_accuracy(correct, total),
            "low": low,
            "high": high,
        }
        self.log_dict(values, prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return SGD with momentum."""
        return torch.optim.SGD(self.parameters(), lr=self.rate, momentum=0.9, weight_decay=5e-4)


def main(arguments: list[str] | None = None) -> dict[str, tuple[accuracies.Ints, accuracies.Ints]]:
    """Train with balanced softmax, and with a class-balanced sampler; print both."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=30)
    epochs = parser.parse_args(arguments).epochs
    train, test, counts = digits()
    labels = train.tensors[1]
    balanced = WeightedRandomSampler((1 / labels.bincount().double())[labels].tolist(), len(labels))
    ways = {
        "balanced softmax": (AdversarialModule, counts, {"shuffle": True}),
        "class-balanced sampler": (AdversarialModule, None, {"sampler": balanced}),
    }
    found = {}
    for name, (module, prior, order) in ways.items():
        lightning.seed_everything(0, verbose=False)
        model = module(prior)
        trainer = lightning.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        trainer.fit(
            model, DataLoader(train, batch_size=64, **order), DataLoader(test, batch_size=256)
        )
        found[name] = model.robust
        correct, total = model.robust
        low, high = (100 * end for end in balanced_interval(correct, total))
        print(
            f"{name}: balanced {100 * accuracies.balanced_accuracy(correct, total):.1f} % "
            f"[{low:.1f}, {high:.1f}]"
        )
        print(*(f"{100 * value:.0f}" for value in accuracies.per_class_accuracy(correct, total)))
    return found


if __name__ == "__main__":
    main()
