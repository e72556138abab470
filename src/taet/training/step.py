"""One step of training, the same for every method, with adversarial weight perturbation (AWP).

Source of AWP: Wu, Xia, Wang, Adversarial weight perturbation, NeurIPS 2020, arXiv:2004.05884.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from taet.attacks.ball import frozen
from taet.data.loader import Batch
from taet.distributed import average_gradients
from taet.errors import UserError
from taet.methods.base import Adversarial, Attack, Loss, Method, Step
from taet.settings.schema import epoch_at
from taet.training.state import State

# added to gradient norms (public code of AWP): a weight with gradient 0 is not perturbed
TINY = 1e-20


def training_step(state: State, batch: Batch, attack: Attack) -> Loss:
    """Attack the frozen model, update the weights, call `after_step`, and return the detached loss.

    With AWP the gradients are taken at perturbed weights. They are averaged over processes. Nothing
    waits for a device.
    """
    model, method, optimizer = state.model, state.method, state.optimizer
    x, y = batch.x, batch.y
    attacked: nn.Module = model
    if state.view is not None and method.stage != "clean":
        attacked = state.view.refresh()
    with frozen(attacked, attack.threat.bn_mode), state.autocast():
        adversarial = method.perturb(attacked, x, y, attack)
    if not isinstance(adversarial, Adversarial):
        got = type(adversarial).__name__
        raise UserError(f"{type(method).__name__}.perturb: got a {got}; allowed: Adversarial(x)")

    def outer_loss() -> Loss:
        with state.autocast():
            return checked(method.loss(model, x, y, adversarial), y, method)

    model.train()
    training = state.run.training
    awp = training.awp if state.epoch >= epoch_at(training.awp_start, training.epochs) else 0.0
    with perturbed_weights(model, lambda: outer_loss().total, awp):
        loss = outer_loss()
        optimizer.zero_grad(set_to_none=True)
        method.zero_grad(set_to_none=True)
        loss.total.backward()  # type: ignore[no-untyped-call]
        trained = (*model.parameters(), *method.parameters())
        average_gradients([weight.grad for weight in trained if weight.grad is not None])
        optimizer.step()
    parts = {name: value.detach() for name, value in loss.parts.items()}
    detached = Loss(loss.total.detach(), parts, loss.logits.detach())
    step = Step(*batch, detached, attack, optimizer, state.number, state.view)
    with state.autocast():
        method.after_step(model, step)
    return detached


def checked(loss: Loss, y: Tensor, method: Method) -> Loss:
    """Return a method's loss on labels (N,) if types and shapes are right, without reading values;
    else refuse it."""
    given: dict[str, object] = {"loss": loss}
    if isinstance(loss, Loss) and isinstance(loss.parts, dict):
        given = {"total": loss.total, **loss.parts, "logits": loss.logits}
        if all(isinstance(value, Tensor) for value in given.values()) and _fits(loss, y):
            return loss
    shapes = [
        f"{name} {list(getattr(value, 'shape', [type(value).__name__]))}"
        for name, value in given.items()
    ]
    allowed = (
        "Loss(total, parts, logits): a scalar with a gradient, scalars by name, and logits (N, C)"
    )
    raise UserError(f"{type(method).__name__}.loss: got {', '.join(shapes)}; allowed: {allowed}")


def _fits(loss: Loss, y: Tensor) -> bool:
    """Whether a loss of tensors has a scalar with a gradient, scalar parts, and logits (N, C)."""
    if any(part.numel() != 1 for part in loss.parts.values()):
        return False
    is_total = loss.total.shape == () and loss.total.requires_grad
    return is_total and loss.logits.shape[:-1] == y.shape


def examples(state: State, model: nn.Module, x: Tensor, y: Tensor, attack: Attack) -> Tensor:
    """Return the training inputs of the method for x (N, C, H, W): adversarial examples, or x in a
    clean stage."""
    # An attack in train mode updates the statistics.
    with (
        torch.enable_grad(),
        buffers_kept(model),
        frozen(model, attack.threat.bn_mode),
        state.autocast(),
    ):
        return state.method.perturb(model, x, y, attack).x


@contextmanager
def buffers_kept(model: nn.Module) -> Iterator[None]:
    """Restore the buffers of `model`, such as statistics of batch normalisation, afterwards, in
    place."""
    before = [buffer.clone() for buffer in model.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in zip(model.buffers(), before, strict=True):
                buffer.copy_(value)


@contextmanager
def perturbed_weights(model: nn.Module, loss: Callable[[], Tensor], gamma: float) -> Iterator[None]:
    """Add v = gamma ||w|| g / ||g|| to each tensor w called weight with more than one dimension;
    undo it afterwards.

    g is w's gradient of `loss`(), norms are over whole tensors (equations 7 to 9). The public code
    takes the direction from a step of a proxy model whose learning rate cancels; this is exact.

    Gradients and statistics of batch normalisation stay as they were. The optimiser's step within
    the context, with its weight decay, happens at the perturbed weights. gamma 0 changes nothing.
    """
    if gamma == 0:
        yield
        return
    matrices = {name: p for name, p in model.named_parameters() if p.ndim > 1 and p.requires_grad}
    weights: list[Tensor] = [p for name, p in matrices.items() if "weight" in name]
    if not weights:
        weights = [*matrices.values()]
    with buffers_kept(model):
        all_gradients = torch.autograd.grad(loss(), weights, allow_unused=True)
    weights = [
        weight
        for weight, gradient in zip(weights, all_gradients, strict=True)
        if gradient is not None
    ]
    gradients = [gradient for gradient in all_gradients if gradient is not None]
    average_gradients(gradients)
    with torch.no_grad():
        norms = torch._foreach_add(torch._foreach_norm(gradients), TINY)
        lengths = torch._foreach_div(torch._foreach_norm(weights), norms)
        moves = torch._foreach_mul(gradients, torch._foreach_mul(lengths, gamma))
        torch._foreach_add_(weights, moves)
    try:
        yield
    finally:
        with torch.no_grad():
            torch._foreach_sub_(weights, moves)
