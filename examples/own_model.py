"""Train and attack your own network on your own images.

Nothing has to be registered. Any `nn.Module` from images (N, C, H, W) in [0, 1] to logits (N,
classes) works, with any uint8 images (N, H, W) or (N, H, W, C) and integer labels (N,). Put
normalisation, if you use any, inside the module, so that perturbations are measured in units of the
image.

    python examples/own_model.py

takes a few seconds on a CPU and writes its run folder into a temporary folder. The same network
from the command line, run in the folder of this file:

    taet train at --data digits-lt --model own_model:small_network

There its last linear layer becomes the head, so methods that use features or need their own head
work too.
"""

import tempfile

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

import taet
from taet import protocols
from taet.data import Dataset, long_tail_counts, long_tail_indices
from taet.settings import override


def small_network() -> nn.Module:
    """Two convolutions and a linear layer for images of 8 x 8 pixels."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, 10),
    )


def main() -> taet.evaluation.ResultCard:
    # Your arrays: here digits, 1,000 for training and the rest for testing, pixel values 0..16
    # scaled to 0..255.
    digits = load_digits()
    images, labels = np.rint(digits.images * 255 / 16).astype(np.uint8), digits.target

    # If your data are not long-tailed yet: keep 60 images of the first class, down to 6 of the
    # last.
    chosen = long_tail_indices(
        labels[:1000], long_tail_counts(10, max_count=60, imbalance_ratio=10)
    )
    data = Dataset.from_arrays(
        images[:1000][chosen], labels[:1000][chosen], images[1000:], labels[1000:], mirror=False
    )

    # A protocol plus changes. Digits have strong contrast, so eps is larger than 8/255.
    changes = {
        "training.epochs": 20,
        "training.batch_size": 32,
        "training.lr": 0.05,
        "training.monitor_steps": 5,
    }
    changes |= {"threat.eps": 0.1, "threat.step_size": 0.025, "threat.steps": 5}
    run = override(protocols.taet("at-bsl"), changes)

    # your module draws its own initial weights; everything else follows from run.seed
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:  # use your own folder to keep the run
        result = taet.train(run, model=small_network(), dataset=data, out=folder)

    # Any module can be evaluated, also one trained elsewhere; the class counts define head, body
    # and tail.
    card = taet.evaluate(
        result.model,
        data.test.images,
        data.test.labels,
        attacks=("clean", "fgsm", "pgd-20"),
        eps=0.1,
        step_size=0.0125,
        train_class_counts=data.class_counts,
    )
    print(card)
    return card


if __name__ == "__main__":
    main()
