"""`taet demo`: a comparison on data that come with scikit-learn."""

from pathlib import Path

from taet.cli.options import Command, OutPath, parse
from taet.files import Json

# The protocol for black strokes on white: a larger eps, steps in proportion to it, small batches of
# the 477 images.
CHANGES: Json = {
    "data.test": "balanced",
    "model.name": "resnet8",
    "data.test_max_count": 50,
    "threat.eps": 0.16,
    "threat.step_size": 0.04,
    "evaluation.step_size": 0.02,
    "evaluation.batch_size": 500,
    "evaluation.attacks": ("clean", "fgsm", "pgd-20", "autoattack"),
    # some processors only emulate bf16, and float32 is fast enough here
    "training.precision": "float32",
    "training.batch_size": 64,
    "training.monitor_every": 10,
}
PASSES = 660
"""Of the network for a training image: 60 epochs of AT, 95 of TAET, whose first stage is clean."""
TITLE = "AT, AT-BSL and TAET on long-tailed digits"
# Of each method the best of four settings on validation images: results/demo-search.
METHODS: list[Json] = [
    {
        "name": "at",
        "method": "at",
        "title": "AT",
        "settings": {"training.lr": 0.2, "training.weight_decay": 5e-4},
    },
    {
        "name": "at-bsl",
        "method": "at-bsl",
        "title": "AT-BSL",
        "settings": {"training.lr": 0.2, "training.weight_decay": 2e-3},
    },
    {
        "name": "taet",
        "method": "taet",
        "title": "TAET",
        "settings": {
            "training.lr": 0.1,
            "method.alpha": 1.0,
            "method.beta": 0.1,
            "method.gamma": 0.1,
        },
    },
]
WHAT_IT_SHOWS = (
    "Each method has the same passes, and the best of four settings on validation images. One run "
    "each on digits of 8 x 8 pixels shows how a comparison reads, and not which method is better "
    "on other images."
)


class Demo(Command):
    """Train AT, AT-BSL and TAET on long-tailed digits, attack them, and write a report."""

    examples = ("taet demo", "taet demo --out somewhere")

    out: OutPath = Path("demo")
    """Folder for the runs and the report; existing runs are used or continued."""


def run(words: list[str]) -> int:
    """Train, attack and report; existing runs are used. Return 1 if one of them failed."""
    command, _ = parse(Demo, words, "taet demo")

    from taet.experiments import compare

    grid = {
        "title": TITLE,
        "methods": METHODS,
        "data": ["digits-lt"],
        "passes": PASSES,
        "settings": CHANGES,
    }
    result = compare(grid, command.out, jobs=3, progress=True)
    print(f"{WHAT_IT_SHOWS}\n{result}")
    return int("failed" in result.counts)
