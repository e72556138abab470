"""One training step, the same for every method."""

from __future__ import annotations

import torch
from torch import nn

from taet.attacks.ball import frozen
from taet.config import Threat
from taet.data.loader import Batch
from taet.methods.base import Attack, Loss, Method, Step


def training_step(
    model: nn.Module,
    method: Method,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    threat: Threat,
    noise: torch.Generator,
    *,
    autocast: bool,
) -> Loss:
    """Perturb on the frozen model; loss; backward; update; `after_step`. Nothing in here waits for the device."""
    precision = torch.autocast(batch.x.device.type, dtype=torch.bfloat16, enabled=autocast)
    attack = Attack(threat, noise)
    with frozen(model, threat.bn_mode), precision:
        adversarial = method.perturb(model, batch.x, batch.y, attack)
    model.train()
    with precision:
        loss = method.loss(model, batch.x, batch.y, adversarial)
    optimizer.zero_grad(set_to_none=True)
    loss.total.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    group = optimizer.param_groups[0]
    logits = loss.logits.detach()
    parts = {name: value.detach() for name, value in loss.parts.items()}
    loss = Loss(loss.total.detach(), parts, logits)
    method.after_step(model, Step(batch.index, batch.x, batch.y, loss, attack, group["lr"], group["weight_decay"]))
    return loss
