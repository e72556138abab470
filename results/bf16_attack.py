"""How much divergence a training attack reaches in bfloat16 and in float32: `python
results/bf16_attack.py RUN...`.

PGD on TRADES's KL(f(x) || f(x')) of each run's model, with the run's ball and steps, on 256
training images. The divergence that it reached is measured in float32; one number for each draw of
the start noise.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from taet.attacks import pgd
from taet.attacks.objectives import natural_divergence
from taet.evaluation.runner import as_unit
from taet.files import write_json
from taet.losses.consistency import kl_divergence
from taet.models.view import make_view
from taet.run.loading import load_run

IMAGES, DRAWS = 256, 3
OUT = Path(__file__).with_name("bf16-attack.json")


def view(model: nn.Module, x: Tensor, dtype: torch.dtype | None) -> nn.Module:
    made = make_view(model, (x.shape[1], x.shape[2], x.shape[3]), dtype)
    assert made is not None
    return made.module


def reached(path: str) -> dict[str, object]:
    run, model, dataset, record = load_run(Path(path))
    model.eval().requires_grad_(False)
    rows = np.random.default_rng(0).permutation(len(dataset.train))[:IMAGES]
    x, y = (
        as_unit(np.asarray(dataset.train.images)[rows]),
        torch.from_numpy(dataset.train.labels[rows]),
    )
    exact, threat, found = view(model, x, None), run.threat, dict[str, list[float]]()
    for start in ("gaussian", "uniform"):
        for name, dtype in (("float32", None), ("bf16", torch.bfloat16)):
            attacked, key = view(model, x, dtype), f"{start}, {name}"
            for seed in range(DRAWS):
                noise = torch.Generator().manual_seed(seed)
                how = {
                    "eps": threat.eps,
                    "steps": threat.steps,
                    "step_size": threat.step_size,
                    "start": start,
                }
                with torch.autocast("cpu", torch.bfloat16, enabled=dtype is not None):
                    objective = natural_divergence(attacked, x)
                    x_adv = pgd(
                        attacked, x, y, objective=objective, start_noise=noise, checked=True, **how
                    )
                with torch.no_grad():
                    found.setdefault(key, []).append(
                        round(float(kl_divergence(exact(x), exact(x_adv)).mean()), 5)
                    )
    return {"model": record.command, **found}


if __name__ == "__main__":
    write_json(OUT, [reached(path) for path in sys.argv[1:]])
    print(OUT.read_text())
