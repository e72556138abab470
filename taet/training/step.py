"""One training step, the same for every method."""

from __future__ import annotations

import torch
from torch import nn

from taet.attacks.ball import frozen
from taet.data.loader import Batch
from taet.distributed import average_gradients
from taet.methods.base import Attack, Loss, Method, Step
from taet.training.weight_perturbation import perturbed_weights


def training_step(
    model: nn.Module,
    method: Method,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    attack: Attack,
    *,
    autocast: bool,
    awp: float = 0.0,
    number: int = 0,
) -> Loss:
    """Perturb on the frozen model; loss, where asked at perturbed weights; backward; update; `after_step`.

    `awp` is the relative length of the weight perturbation, `number` that of the step in the run. Gradients of model
    and method are averaged over processes. Nothing in here waits for the device.
    """
    precision = torch.autocast(batch.x.device.type, dtype=torch.bfloat16, enabled=autocast)
    with frozen(model, attack.threat.bn_mode), precision:
        adversarial = method.perturb(model, batch.x, batch.y, attack)

    def outer_loss() -> Loss:
        with precision:
            return method.loss(model, batch.x, batch.y, adversarial)

    model.train()
    with perturbed_weights(model, lambda: outer_loss().total, awp):
        loss = outer_loss()
        optimizer.zero_grad(set_to_none=True)
        method.zero_grad(set_to_none=True)
        loss.total.backward()  # type: ignore[no-untyped-call]
        average_gradients([p.grad for p in (*model.parameters(), *method.parameters()) if p.grad is not None])
        optimizer.step()
    parts = {name: value.detach() for name, value in loss.parts.items()}
    loss = Loss(loss.total.detach(), parts, loss.logits.detach())
    with precision:
        method.after_step(model, Step(batch.index, batch.x, batch.y, loss, attack, optimizer, number))
    return loss
