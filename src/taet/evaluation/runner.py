"""Run attacks on a whole test set, batch by batch: one column per attack."""

import contextlib
import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from taet.attacks import differentiable
from taet.attacks.arithmetic import frozen_and_exact
from taet.attacks.autoattack import AutoAttack
from taet.attacks.ball import distance, frozen, verify
from taet.attacks.batch_store import BatchStore, Unit, in_batches
from taet.attacks.counting_model import WORK, CountingModel
from taet.attacks.examples import Example, Examples, stored_examples
from taet.attacks.noise import Draws
from taet.attacks.spec import AttackSpec
from taet.card.column import Column
from taet.data.augmentation import as_tensor, to_unit
from taet.data.dataset import images_sha256
from taet.distributed import world_size
from taet.errors import UserError, wrapping_user_code
from taet.evaluation.probe import gradient_and_logits, logits_of
from taet.files import Json, digest
from taet.machine import seconds_of, version
from taet.metrics.accuracies import Ints
from taet.progress import Progress
from taet.randomness import derive_seed
from taet.run.folder import weights_digest

# uint8 (N, H, W, C), in memory or on disk, or float32 (N, C, H, W) in [0, 1]
TestImages = NDArray[Any]
LIBRARIES = {"torch", "torchvision", "timm", "taet"}  # a card stores their versions
FINGERPRINT = 4  # number of images whose outputs distinguish two models


def as_unit(pixels: TestImages) -> Tensor:
    """Return images as float32 (N, C, H, W) in [0, 1], contiguous."""
    tensor = as_tensor(pixels)
    return to_unit(tensor) if tensor.dtype == torch.uint8 else tensor


def source_digest(network: nn.Module) -> str:
    """Return the hash of the source of a network's own classes: an edit of `forward` changes no
    weight."""
    classes = {type(module) for module in network.modules()}
    texts = set[str]()
    for own in (each for each in classes if each.__module__.partition(".")[0] not in LIBRARIES):
        # defined interactively, or in a compiled module
        with contextlib.suppress(OSError, TypeError):
            texts.add(inspect.getsource(own))
    return digest(sorted(texts)) if texts else ""


@contextmanager
def restored(model: nn.Module) -> Iterator[Callable[[], list[str]]]:
    """Restore the model's tensors and the random state afterwards; yield a function that names
    changed tensors."""

    def tensors() -> dict[str, Tensor]:
        return dict(model.named_parameters()) | dict(model.named_buffers())

    before = {name: tensor.detach().clone() for name, tensor in tensors().items()}

    def changes() -> list[str]:
        now = tensors().items()
        return [
            n
            for n, tensor in now
            if n not in before or not tensor.nan_to_num().equal(before[n].nan_to_num())
        ]

    try:
        with torch.random.fork_rng(range(torch.cuda.device_count())):
            yield changes
    finally:
        with torch.no_grad():
            for name in before.keys() & changes():
                tensor, value = tensors()[name], before[name]
                if tensor.shape == value.shape:
                    tensor.copy_(value)
                else:  # as in layers that observe their inputs to be quantised later
                    tensor.data = value


@dataclass(frozen=True)
class Runner:
    """A model and its test images, which are attacked in batches."""

    model: CountingModel
    images: TestImages
    labels: Ints
    num_classes: int
    batch_size: int
    seed: int
    device: torch.device
    # of finished batches, from which an interrupted evaluation continues
    state_dir: Path | None = None
    keys: Ints | None = None  # of the random draws of each image; default: its index
    # models to transfer from, by hash of weights
    sources: Mapping[str, CountingModel] = field(default_factory=dict)
    # stores in use, removed when the card is written
    opened: list[BatchStore] = field(default_factory=list)
    # (N,): the group of each image, of which every attack keeps examples; None: none are kept
    groups: Ints | None = None
    keeps: type[Examples] = Examples  # which of the images these are
    # also return the probabilities of the classes: with 8,142 classes 33 kB an image
    keep_probabilities: bool = False
    # what each attack in a ball made of some images, by its name
    examples: dict[str, list[Example]] = field(default_factory=dict)

    def frozen_and_exact(self) -> AbstractContextManager[None]:
        """Freeze the models, compute in exact float32, and restore all and the random state
        afterwards."""
        return frozen_and_exact(self.device.type, self.model, *self.sources.values())

    def passes(self, attacks: Sequence[AttackSpec]) -> float:
        """Return the expected passes of attacks on all images."""
        return len(self.labels) * sum(
            attack.passes(self.num_classes) * attack.usual_share for attack in attacks
        )

    def pace(self, attack: AttackSpec) -> float:
        """Return the expected seconds of one pass of an image in this attack, from a few passes of
        a batch.

        Processes that share the images shorten it, as far as each has a batch.
        """
        images = min(self.batch_size, len(self.labels))
        sharing = min(world_size(), math.ceil(len(self.labels) / images))
        x, y = self.batch(np.arange(images))
        with self.frozen_and_exact(), self.model.searching(attack.precision, self.device.type):
            return seconds_of(partial(gradient_and_logits, self.model, x, y), self.device) / (
                2 * images * sharing
            )

    @cached_property
    def sites(self) -> dict[str, int]:
        """Operations of the model that stop or distort its gradient, from
        `taet.attacks.differentiable.find`."""
        x, _ = self.batch(np.arange(min(FINGERPRINT, len(self.labels))))
        with self.frozen_and_exact():
            return differentiable.find(self.model.model, x)

    @cached_property
    def identity(self) -> str:
        """Hash of the model's layers, weights and first logits, the images, the labels, and the
        software."""
        network = self.model.model
        software = [self.device.type, *map(version, ("taet", "torch", "pyautoattack"))]
        rounded = np.round(self.fingerprint, 3).tolist()
        images = images_sha256(self.images, self.labels)
        return digest(
            [
                repr(network),
                source_digest(network),
                weights_digest(network),
                rounded,
                images,
                software,
            ]
        )

    @cached_property
    def fingerprint(self) -> NDArray[np.float64]:
        """Logits and gradient norms of the first images, which distinguish models with equal
        weights."""
        x, y = self.batch(np.arange(min(FINGERPRINT, len(self.labels))))
        with self.frozen_and_exact():
            torch.manual_seed(0)  # a model that draws random numbers draws the same ones
            logits, (gradient, _) = logits_of(self.model, x), gradient_and_logits(self.model, x, y)
        slopes = gradient.flatten(1).norm(dim=1, keepdim=True)
        values = torch.cat([logits, slopes], 1).cpu().double().numpy()
        # attacks report on which images they are not finite
        return np.where(np.isfinite(values), values, np.nan)

    def batch(self, rows: Ints) -> tuple[Tensor, Tensor]:
        """Return the images `rows` in [0, 1] and their labels, on the model's device."""
        with torch.inference_mode(False):  # so that gradients with respect to them exist
            return as_unit(self.images[rows]).to(self.device), torch.from_numpy(
                self.labels[rows]
            ).to(self.device)

    def column(self, attack: AttackSpec, known: Sequence[Column], progress: Progress) -> Column:
        """Run one attack on all images; `known` columns of the same model may save work."""
        natural = next((column.predictions for column in known if column.norm is None), None)
        column, _ = self.attack(attack, natural=natural, progress=progress)
        return column

    def attack(
        self,
        attack: AttackSpec,
        *,
        natural: Ints | None = None,
        progress: Progress = lambda *_: None,
    ) -> tuple[Column, NDArray[np.float32] | None]:
        """Attack all images; return the column, and the softmax of the logits if it is kept.

        `natural` are the predictions on clean images, if known. The softmax is (N, C); a suite has
        none.
        """
        units = self._batch_store(attack)
        with wrapping_user_code(f"'{attack.name}' failed in the model"):
            examples = self._examples(attack, natural)
            if isinstance(attack, AutoAttack):
                found, scores = self._suite(attack, natural, units, progress, examples), None
            else:
                found, scores = self._single(attack, natural, units, progress, examples)
        about = {
            name: getattr(attack, name) for name in ("name", "norm", "eps", "curve", "parameters")
        }
        about["bounded"] = attack.eps is not None
        about["correct"] = found["predictions"] == self.labels
        return Column(**{**about, **found}), scores

    def _examples(self, attack: AttackSpec, natural: Ints | None) -> Examples | None:
        """Return which images an attack keeps to be looked at; None if it keeps none."""
        may_be_strongest = attack.eps is not None and attack.made_on is None and not attack.curve
        if self.groups is None or natural is None or not may_be_strongest:
            return None
        return self.keeps(self.groups, self.labels, natural)

    def _batch_store(self, attack: AttackSpec) -> BatchStore | None:
        """Open the store of the batches that are done; None without a folder."""
        if self.state_dir is None:
            return None
        settings = digest([self.identity, attack.to_json(), self.batch_size])
        store = BatchStore(self.state_dir, attack.name, settings)
        self.opened.append(store)
        return store

    def _single(
        self,
        attack: AttackSpec,
        natural: Ints | None,
        units: BatchStore | None,
        progress: Progress,
        examples: Examples | None,
    ) -> tuple[Json, NDArray[np.float32] | None]:
        """Return the fields of a column that come from an attack, and the softmax of the logits if
        it is kept."""
        done = self._in_batches(attack, units, progress, examples)
        found: Json = {name: sum(unit[name].item() for unit in done) for name in WORK}
        found["predictions"] = np.concatenate([unit["predictions"] for unit in done])
        found["distances"] = None
        if attack.minimal:
            distances = np.concatenate([unit["distances"] for unit in done])
            # distance 0, also if an attack moved them
            wrong = False if natural is None else natural != self.labels
            found["distances"] = np.where(wrong, np.float32(0), distances)
        if examples is not None:
            kept = examples.first(stored_examples(done), found["predictions"])
            self.examples[attack.name] = kept
        if not self.keep_probabilities:
            return found, None
        return found, np.concatenate([unit["scores"] for unit in done])

    def _suite(
        self,
        attack: AutoAttack,
        natural: Ints | None,
        units: BatchStore | None,
        progress: Progress,
        examples: Examples | None,
    ) -> Json:
        """Return the fields of a suite's column that come from its parts."""
        pixels = as_tensor(np.asarray(self.images))
        outcome = attack.run_parts(
            self.model,
            pixels.permute(0, 3, 1, 2) if pixels.dtype == torch.uint8 else pixels,
            torch.from_numpy(self.labels),
            natural=None if natural is None else torch.from_numpy(natural),
            batch_size=self.batch_size,
            device=self.device,
            state=units,
            progress=lambda done, total, label: progress(done, total, f"{attack.name}: {label}"),
            examples=examples,
        )
        if examples is not None:
            self.examples[attack.name] = outcome.examples
        parts = {part: mask.numpy() for part, mask in outcome.parts.items()}
        found = {"predictions": outcome.predictions.numpy(), "parts": parts}
        found |= {name: getattr(outcome, name) for name in WORK}
        return {**found, "parameters": attack.parameters | outcome.facts}

    def _in_batches(
        self,
        attack: AttackSpec,
        units: BatchStore | None,
        progress: Progress,
        examples: Examples | None,
    ) -> list[Unit]:
        """Return what `measure` returns of every batch; finished ones are saved in `units`."""
        images, passes = len(self.labels), attack.passes(self.num_classes)
        batches = np.split(np.arange(images), range(self.batch_size, images, self.batch_size))

        def report(done: float, _: int = 0) -> None:
            progress(done, images * passes, attack.name)

        work = partial(self.measure, attack, examples)
        done = in_batches(batches, work, model=self.model, cost=passes, report=report, state=units)
        report(images * passes)
        return done

    def measure(self, attack: AttackSpec, examples: Examples | None, rows: Ints) -> Unit:
        """Attack one batch, check every adversarial image and return the results."""
        work, (x, y) = self.model.measure(), self.batch(rows)
        draws = Draws(self.seed, attack.base, rows if self.keys is None else self.keys[rows])
        attacked = (
            self.model if attack.made_on is None else self.sources[attack.made_on.weights_sha256]
        )
        with contextlib.ExitStack() as stack:
            stack.enter_context(attacked.searching(attack.precision, x.device.type))
            if custom := attack.source_sha256 is not None:  # which may write into its arguments
                changes = stack.enter_context(restored(self.model))
                stack.enter_context(frozen(self.model))
                torch.manual_seed(derive_seed(draws.seed, draws.purpose, int(draws.rows[0])))
            x_adv = attack.run(attacked, x.clone(), y.clone(), draws)
            if custom and (changed := changes()):
                raise UserError(
                    f"attack '{attack.name}': changed {changed[0]} of the model; allowed: none of "
                    "it"
                )
        verify(attack.name, x_adv, x, attack.eps, attack.norm or "linf")
        with torch.no_grad():
            logits = self.model.exact_logits(x_adv)
        if not bool(logits.isfinite().all()):
            raise UserError(
                f"model output: not finite under '{attack.name}' on images {rows[0]} to {rows[-1]}"
            )
        predictions = logits.max(1).indices.cpu().numpy()
        moved = distance(x_adv, x, attack.norm or "linf").cpu().numpy()
        kept = {} if examples is None else examples.of_batch(rows, x_adv, logits)
        if self.keep_probabilities:
            kept = {**kept, "scores": logits.softmax(1).cpu().numpy()}
        return {
            **kept,
            "predictions": predictions,
            "distances": np.where(predictions != self.labels[rows], moved, np.nan).astype(
                np.float32
            ),
            **work(),
        }


def matching(columns: Sequence[Column], attack: AttackSpec) -> Column | None:
    """Return the column of this attack with these settings and this seed, if there is one."""
    for column in columns:
        if column.attack == attack:
            # The column may have been measured for a curve only, and now be requested by name.
            return column if attack.curve else column.changed(curve="")
    return None
