"""One step of training, the same for every method."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from taet.attacks.ball import frozen
from taet.data.loader import Batch
from taet.distributed import average_gradients
from taet.errors import UserError
from taet.methods.base import Attack, Loss, Step
from taet.models.sync_norm import average_statistics, normalisations
from taet.training.state import State
from taet.training.weight_perturbation import buffers_kept, perturbed_weights


def training_step(state: State, batch: Batch, attack: Attack) -> Loss:
    """Update the weights, by replay if steps are recorded, then call the method's `after_step`.

    Where batch normalisation is not synchronised, its running statistics are averaged over processes: before
    `after_step`, which may run the model with them, and after it. Nothing here waits for the device.
    """
    model, method, optimizer = state.model, state.method, state.optimizer
    if state.graphs is None:
        loss = update(state, batch, attack)
    else:
        loss = state.graphs.run(partial(update, state), state.kind, batch, attack, state.tensors, optimizer)
    if not state.run.training.sync_bn:
        average_statistics(model, method)
    with state.autocast():
        method.after_step(model, Step(batch.index, batch.x, batch.y, loss, attack, optimizer, state.number, state.view))
    if not state.run.training.sync_bn:
        average_statistics(model, method)
    return loss


def update(state: State, batch: Batch, attack: Attack) -> Loss:
    """Perturb on the frozen model; loss, with AWP at perturbed weights; backward; step; return the loss, detached.

    Gradients of model and method are averaged over processes.
    """
    model, method, (_, x, y) = state.model, state.method, batch
    attacked = state.attacked()
    with frozen(attacked, attack.threat.bn_mode), state.autocast():
        adversarial = method.perturb(attacked, x, y, attack)

    def outer_loss() -> Loss:
        with state.autocast():
            return method.loss(model, x, y, adversarial)

    model.train()
    with perturbed_weights(model, lambda: outer_loss().total, state.awp):
        loss = outer_loss()
        state.optimizer.zero_grad(set_to_none=True)
        method.zero_grad(set_to_none=True)
        loss.total.backward()  # type: ignore[no-untyped-call]
        average_gradients([p.grad for p in (*model.parameters(), *method.parameters()) if p.grad is not None])
        state.optimizer.step()
    parts = {name: value.detach() for name, value in loss.parts.items()}
    return Loss(loss.total.detach(), parts, loss.logits.detach())


def examples(state: State, model: nn.Module, x: Tensor, y: Tensor, attack: Attack) -> Tensor:
    """Return the training inputs of the method for x (N, C, H, W): adversarial examples, or x in a clean stage."""
    with (
        torch.enable_grad(),
        buffers_kept(model),  # an attack in train mode updates the statistics
        frozen(model, attack.threat.bn_mode),
        state.autocast(),
    ):
        return state.method.perturb(model, x, y, attack).x


@contextmanager
def enough_images(state: State) -> Iterator[None]:
    """Turn the error for a batch that is too small for batch normalisation into a UserError."""
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error) or not normalisations(state.model, state.method):
            raise
        raise UserError(
            "batch size: a batch of 1 leaves batch normalisation one value per channel; take a larger --batch-size"
        ) from error
