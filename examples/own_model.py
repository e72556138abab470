"""Train and attack a network and images of your own.

Nothing has to be registered: any `nn.Module` from images (N, C, H, W) in [0, 1] to logits (N, classes) will do, and
any uint8 images (N, H, W) or (N, H, W, C) with integer labels (N,). Normalisation, if you want any, belongs into the
module, so that a perturbation is measured in the units of the image.

    python examples/own_model.py

takes a few seconds on a CPU and writes its run folder into a temporary folder. The same network from the command line,
in the folder of this file, on images that it has the size for:

    taet train at --data digits-lt --model own_model:small_network

There its last linear layer becomes the head, so that methods that read features or bring a head of their own work too.
"""

from __future__ import annotations

import tempfile

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

import taet
from taet import config, protocols
from taet.data import Dataset, long_tail_counts, long_tail_indices


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
    # Your arrays: here digits, 1,000 to train on and the rest to test on, grey levels 0..16 brought to 0..255.
    digits = load_digits()
    images, labels = np.rint(digits.images * 255 / 16).astype(np.uint8), digits.target

    # Yours may be long-tailed already. These are not: keep 60 images of the first class, falling to 6 of the last.
    chosen = long_tail_indices(labels[:1000], long_tail_counts(10, max_count=60, imbalance_ratio=10))
    data = Dataset.from_arrays(images[:1000][chosen], labels[:1000][chosen], images[1000:], labels[1000:], mirror=False)

    # A protocol and what differs from it. Strokes are black on white, so the ball is wider than 8/255.
    changes = {"training.epochs": 20, "training.batch_size": 32, "training.lr": 0.05, "training.monitor_steps": 5}
    changes |= {"threat.eps": 0.1, "threat.step_size": 0.025, "threat.steps": 5}
    run = config.override(protocols.taet("at-bsl"), changes)

    torch.manual_seed(0)  # your module draws its own first weights; everything else is drawn from run.seed
    with tempfile.TemporaryDirectory() as folder:  # name one of your own to keep the run
        result = taet.train(run, model=small_network(), dataset=data, out=folder)

    # Any module can be evaluated, whoever trained it; the class counts decide what is head, body and tail.
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
