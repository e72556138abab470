"""One training step, the same for every method."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from taet.attacks.ball import frozen
from taet.data.loader import Batch
from taet.distributed import average_gradients
from taet.methods.base import Attack, Loss, Method, Step
from taet.models.view import View
from taet.training.graphs import Graphs
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
    view: View | None = None,
    graphs: Graphs | None = None,
) -> Loss:
    """Perturb on the frozen model; loss (with `awp` at perturbed weights); backward; update; `after_step`.

    `awp` is the relative length of the weight perturbation, `number` counts the steps of the run. The attack runs on
    `view` if there is one: a cheaper copy of the model in eval mode. With `graphs` everything except `after_step` is
    replayed. Gradients of model and method are averaged over processes. Nothing here waits for the device.
    """

    def part(batch: Batch, attack: Attack) -> Loss:
        """Update the weights; return the loss, detached."""
        attacked = model
        if view is not None and method.stage != "clean":
            view.refresh()
            attacked = view.module
        with frozen(attacked, attack.threat.bn_mode), _precision(batch, autocast):
            adversarial = method.perturb(attacked, batch.x, batch.y, attack)

        def outer_loss() -> Loss:
            with _precision(batch, autocast):
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
        return Loss(loss.total.detach(), parts, loss.logits.detach())

    if graphs is None:
        loss = part(batch, attack)
    else:
        stages = tuple(module.stage for module in method.modules() if isinstance(module, Method))
        loss = graphs.run(part, (stages, awp), batch, attack, lambda: _tensors(model, method, optimizer), optimizer)
    with _precision(batch, autocast):
        method.after_step(model, Step(batch.index, batch.x, batch.y, loss, attack, optimizer, number, view))
    return loss


def _precision(batch: Batch, autocast: bool) -> torch.autocast:
    return torch.autocast(batch.x.device.type, dtype=torch.bfloat16, enabled=autocast)


def _tensors(model: nn.Module, method: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Everything that a step changes."""
    own = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    return [*model.parameters(), *model.buffers(), *method.parameters(), *method.buffers(), *own]
