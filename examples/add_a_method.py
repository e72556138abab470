"""Your own method in one file: adversarial training with larger weights on classes that are rarely
predicted.

    python examples/add_a_method.py

trains it and plain AT on small long-tailed digits and attacks both, in about ten seconds. taet
itself is not changed: this file is the method, and `registry.add` registers it. For the command
line, put the file into a folder `methods` and set TAET_PLUGINS to its parent folder:

    TAET_PLUGINS=~/plugins taet train prediction-balanced --method.power 0.5
    TAET_PLUGINS=~/plugins taet list methods

With that variable it also works in `taet compare`, which starts processes, and as `--method.base`
of robust-lt. If you run the project's tests with it, the contract tests cover the method: ball,
unchanged model, bf16, missing classes, resuming, several processes.
"""

import tempfile
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from taet.distributed import global_mean
from taet.methods.base import Adversarial, Loss, Method, Task

NAMES = {
    "prediction-balanced": "Cross-entropy with larger weights on classes that the model rarely "
    "predicts"
}


class PredictionBalanced(Method):
    """Loss: mean w_y CE(f(x'), y), w_c ~ (n_c / m_c)^power with mean 1, m the predictions of the
    previous epoch."""

    title = "Prediction-balanced AT"
    reference = "an example of this project, 2026"

    class Config(Method.Config):
        """The strength of the weights."""

        power: Annotated[float, Field(ge=0, le=4)] = 0.25
        """Exponent of the weights; 0 is plain AT (ours)."""

    weights: Tensor

    def __init__(self, config: Any, task: Task) -> None:
        super().__init__(config, task)
        # State is a buffer: it moves with the device, is part of every checkpoint, and is written
        # in place.
        self.register_buffer("weights", torch.ones_like(self.class_counts))

    def start_epoch(self, epoch: int, predicted_counts: Tensor) -> None:
        ratio = (self.class_counts / predicted_counts.clamp(min=1)) ** self.config.power
        self.weights.copy_(ratio / ratio.mean())

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, adversarial: Adversarial) -> Loss:
        logits = model(adversarial.x)
        # self.outer makes --outer apply; global_mean makes several processes agree.
        return Loss(
            global_mean(self.weights[y].to(logits.dtype) * self.outer(logits, y)), {}, logits
        )


def main() -> dict[str, Any]:
    """Train and attack AT and this method; return their cards."""
    import taet
    from taet import protocols, registry
    from taet.settings import override

    registry.add("methods", __file__)
    changes = {
        "data.max_count": 60,
        "data.test": "balanced",
        "data.test_max_count": 20,
        "model.name": "resnet8",
    }
    changes |= {
        "threat.eps": 0.1,
        "threat.step_size": 0.025,
        "threat.steps": 5,
        "training.precision": "float32",
    }
    changes |= {"training.epochs": 20, "training.batch_size": 32, "training.monitor_every": 0}
    cards = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("at", "prediction-balanced"):
            result = taet.train(override(protocols.taet(name), changes), out=Path(folder) / name)
            cards[name] = taet.evaluate(result.folder, attacks=("clean", "pgd-20"))
            print(cards[name])
    return cards


if __name__ == "__main__":
    main()
