"""What a model's features hold of the classes, clean and under attack: a t-SNE picture, and two
measures beside it.

    python examples/embed.py runs/taet features.png --images 100

Clean and attacked images share one t-SNE of their features, the input of the last layer; drawing
needs matplotlib. A picture alone proves nothing, so two measures describe the features themselves:
the silhouette, -1 to 1, by the true classes, and the linear separability, the balanced accuracy of
a logistic regression on the features, cross-validated.

Source: van der Maaten, Hinton, "Visualizing data using t-SNE", JMLR 2008; Rousseeuw, "Silhouettes",
1987.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.manifold import TSNE
from sklearn.metrics import balanced_accuracy_score, silhouette_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

import taet
from taet.attacks import pgd
from taet.evaluation.attack_sets import of_run

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
PERPLEXITY, FOLDS = 30.0, 5


def features(model: taet.models.Classifier, x: Tensor) -> tuple[Floats, Ints]:
    """Return the features (N, D) and the predictions (N,) of images (N, C, H, W) in [0, 1]."""
    with torch.no_grad():
        found = model.features(x)
        return found.double().numpy(), model.head(found).argmax(1).numpy()


def measures(space: Floats, labels: Ints, predictions: Ints, seed: int = 0) -> dict[str, float]:
    """Return the model's balanced accuracy, and silhouette and linear separability of the features
    (N, D)."""
    folds = min(FOLDS, int(np.unique(labels, return_counts=True)[1].min()))
    line = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000, random_state=seed))
    cut = StratifiedKFold(folds, shuffle=True, random_state=seed)
    return {
        "accuracy": float(balanced_accuracy_score(labels, predictions)),
        "silhouette": float(silhouette_score(space, labels)),
        "separability": float(
            balanced_accuracy_score(labels, cross_val_predict(line, space, labels, cv=cut))
        ),
    }


def draw(
    sides: dict[str, Floats], labels: Ints, names: Sequence[str], path: Path, seed: int = 0
) -> None:
    """Draw the features of both sides in one t-SNE, a panel a side."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    both = np.concatenate([*sides.values()])
    learner = TSNE(perplexity=min(PERPLEXITY, (len(both) - 1) / 3), init="pca", random_state=seed)
    points = np.split(learner.fit_transform(both), len(sides))
    figure, axes = plt.subplots(
        1, len(sides), figsize=(5 * len(sides), 5), sharex=True, sharey=True
    )
    for axis, side, place in zip(axes, sides, points, strict=True):
        for label, name in enumerate(names):
            axis.scatter(
                *place[labels == label].T, s=8, label=name, color=plt.colormaps["tab20"](label % 20)
            )
        axis.set(title=side, xticks=[], yticks=[])
    axes[-1].legend(fontsize="small", markerscale=2)
    figure.savefig(path, bbox_inches="tight")
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> dict[str, dict[str, float]]:
    """Draw the picture of a finished run and print the measures."""
    parser = argparse.ArgumentParser(description="t-SNE and separability of a model's features.")
    parser.add_argument("run", help="run folder")
    parser.add_argument("out", type=Path, help="picture to write, .png, .svg or .pdf")
    parser.add_argument("--images", type=int, default=100, help="test images of each class")
    given = parser.parse_args(arguments)
    result = taet.resume(given.run)
    data = taet.data.load(result.run.data)
    classes = range(len(data.class_names))
    rows = np.sort(
        np.concatenate([np.flatnonzero(data.test.labels == c)[: given.images] for c in classes])
    )
    x = torch.from_numpy(np.asarray(data.test.images[rows])).permute(0, 3, 1, 2) / 255
    labels, model = data.test.labels[rows], result.model.eval()
    ball = {"eps": result.run.threat.eps, "step_size": of_run(result.run).step_size, "steps": 20}
    images = {"clean": x, "under PGD-20": pgd(model, x, torch.from_numpy(labels), **ball)}
    sides, found = {}, {}
    for side, shown in images.items():
        sides[side], predictions = features(model, shown)
        found[side] = measures(sides[side], labels, predictions)
        print(f"{side}:", ", ".join(f"{name} {value:.3f}" for name, value in found[side].items()))
    draw(sides, labels, data.class_names, given.out)
    return found


if __name__ == "__main__":
    main()
