"""Training steps, the same for every method: one step, and the shared state of the steps of a run."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from taet.attacks.ball import frozen
from taet.attacks.noise import Source
from taet.attacks.weighting import Weighting
from taet.data.loader import Batch
from taet.distributed import average_gradients, rank
from taet.errors import UserError
from taet.methods.base import Attack, Loss, Method, Step
from taet.models.sync_norm import average_statistics, normalisations
from taet.models.view import View
from taet.randomness import derive_seed, generator
from taet.settings import Run, epoch_at
from taet.training.graphs import Graphs
from taet.training.weight_perturbation import buffers_kept, perturbed_weights


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
    own_statistics: bool = False,
) -> Loss:
    """Perturb on the frozen model; loss (with `awp` at perturbed weights); backward; update; `after_step`.

    `awp` is the relative length of the weight perturbation, `number` counts the steps of the run. The attack runs on
    `view` if there is one: a cheaper copy of the model in eval mode. With `graphs` everything except `after_step` is
    replayed. Gradients of model and method are averaged over processes, and with `own_statistics`, where batch
    normalisation is not synchronised, its running statistics: before `after_step`, which may run the model with them.
    Nothing here waits for the device.
    """

    def part(batch: Batch, attack: Attack) -> Loss:
        """Update the weights; return the loss, detached."""
        attacked = model
        if view is not None and method.stage != "clean":
            view.refresh()
            attacked = view.module
        with frozen(attacked, attack.threat.bn_mode), _precision(batch.x.device, autocast):
            adversarial = method.perturb(attacked, batch.x, batch.y, attack)

        def outer_loss() -> Loss:
            with _precision(batch.x.device, autocast):
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
    if own_statistics:
        average_statistics(model, method)
    with _precision(batch.x.device, autocast):
        method.after_step(model, Step(batch.index, batch.x, batch.y, loss, attack, optimizer, number, view))
    if own_statistics:
        average_statistics(model, method)  # it may run them in train mode
    return loss


def _precision(device: torch.device, autocast: bool) -> torch.autocast:
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=autocast)


def _tensors(model: nn.Module, method: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Everything that a step changes."""
    own = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    return [*model.parameters(), *model.buffers(), *method.parameters(), *method.buffers(), *own]


class Steps:
    """The steps of a run: its settings, and the attack of its protocol with the noise of each batch."""

    def __init__(self, run: Run, device: torch.device, weighting: Weighting) -> None:
        self.run, self.device, self.weighting = run, device, weighting
        self.autocast = run.training.precision == "bf16"

    def seed_model(self, *purpose: str | int) -> None:
        """Seed the random numbers of a custom model, such as dropout, differently in each process."""
        torch.manual_seed(derive_seed(self.run.seed, "model", *purpose, *([rank()] if rank() else [])))

    def attack(self, place: tuple[int, int], *purpose: str | int) -> Attack:
        """Return the attack on images at `place` in their batch, with the noise for `purpose`."""
        source = Source(generator(self.device, self.run.seed, *purpose), *place)
        return Attack(self.run.threat, source, None, *self.weighting)

    def take(
        self,
        model: nn.Module,
        method: Method,
        optimizer: torch.optim.Optimizer,
        batch: Batch,
        attack: Attack,
        epoch: int,
        number: int,
        view: View | None,
        graphs: Graphs | None = None,
    ) -> Loss:
        """Run a `training_step` of `epoch`; a batch that is too small for batch normalisation raises a UserError."""
        training = self.run.training
        awp = training.awp if epoch >= epoch_at(training.awp_start, training.epochs) else 0.0
        own = (model, method, optimizer, batch, attack)
        try:
            return training_step(
                *own,
                autocast=self.autocast,
                awp=awp,
                number=number,
                view=view,
                graphs=graphs,
                own_statistics=not training.sync_bn,
            )
        except ValueError as error:
            if len(batch.y) > 1 or not normalisations(model, method):
                raise
            raise UserError(
                f"batch size: a batch of {len(batch.y)} leaves batch normalisation one value per channel; "
                "take a larger --batch-size"
            ) from error

    def examples(
        self, model: nn.Module, method: Method, x: Tensor, y: Tensor, place: tuple[int, int], *purpose: str | int
    ) -> Tensor:
        """Return the training inputs of `method` for x (N, C, H, W): adversarial examples, or x in a clean stage."""
        with (
            torch.enable_grad(),
            buffers_kept(model),  # an attack in train mode updates the statistics
            frozen(model, self.run.threat.bn_mode),
            _precision(self.device, self.autocast),
        ):
            return method.perturb(model, x, y, self.attack(place, *purpose)).x
