"""Your own label loss in one file: vector scaling, which divides and shifts logits by class.

    python examples/add_a_loss.py

trains AT with it and with cross-entropy on small long-tailed digits and attacks both, in about ten
seconds. taet itself is not changed: this file is the loss, and `registry.add` registers it. For the
command line, put the file into a folder `losses` and set TAET_PLUGINS to its parent folder:

    TAET_PLUGINS=~/plugins taet train trades --outer vector-scaling
    TAET_PLUGINS=~/plugins taet list losses

It is then the label loss of any method that has one, also in `taet compare`; deferred re-weighting
(--outer.drw) applies to it. If you run the project's tests with that variable, the contract tests
cover it: one finite value per image in float32 or float64, gradients, classes without images.
"""

import tempfile
from pathlib import Path
from typing import Any

from torch import Tensor

from taet.losses import LabelLoss

NAMES = {"vector-scaling": "logits are divided and shifted by class (vector scaling)"}

GAMMA, TAU = 0.3, 1.0  # public code


class VectorScaling(LabelLoss):
    """CE(z_c / (n_max / n_c)^gamma + tau log pi_c, y), with pi_c = n_c / N."""

    reference = "Kini et al., NeurIPS 2021, arXiv:2103.01550"
    adds_prior = True

    def __init__(self, class_counts: Tensor) -> None:
        super().__init__(class_counts)
        counts = self.class_counts  # float64, (C,), at least 1
        self.shift = TAU * (counts / counts.sum()).log()
        # A buffer moves with the device; it follows from the counts, so no checkpoint holds it.
        self.register_buffer("factors", (counts / counts.max()) ** GAMMA, persistent=False)

    def prepared(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the logits whose cross-entropy is the loss."""
        return self.shifted(logits * self.factors.to(logits))


def main() -> dict[str, Any]:
    """Train AT with cross-entropy and with this loss and attack both; return their cards."""
    import taet
    from taet import protocols, registry
    from taet.settings import override

    registry.add("losses", __file__)
    changes = {
        "data.max_count": 60,
        "data.test": "balanced",
        "data.test_max_count": 20,
        "model.name": "resnet8",
        "threat.eps": 0.1,
        "threat.step_size": 0.025,
        "threat.steps": 5,
        "training.precision": "float32",
        "training.epochs": 20,
        "training.batch_size": 32,
        "training.monitor_every": 0,
    }
    cards = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("cross-entropy", "vector-scaling"):
            run = override(protocols.taet("at"), changes | {"outer.name": name})
            result = taet.train(run, out=Path(folder) / name)
            cards[name] = taet.evaluate(result.folder, attacks=("clean", "pgd-20"))
            print(cards[name])
    return cards


if __name__ == "__main__":
    main()
