"""Checks of a training request by its settings and facts about the data, without weights or
images."""

import copy
import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from taet import methods, models, registry
from taet.data import DataFacts
from taet.data.extra import Mixture, mixture
from taet.data.loader import batch_bounds
from taet.errors import UserError
from taet.formatting import plural
from taet.methods import Method, Task
from taet.models import Adapter, Classifier, CosineHead
from taet.models.trust import is_own
from taet.models.tuning import extend
from taet.run.identity import CURVE, names_with
from taet.settings import Data, Run, override
from taet.settings.roles import Role
from taet.settings.schema import epoch_at

# Used instead of unknown data, so that all other settings are checked.
STAND_IN = DataFacts(tuple(range(100, 0, -10)), (3, 32, 32), {"train": 550, "test": 100})
EVALUATION = names_with(Role.EVALUATION, Role.COLUMNS)
EXTRA = {f"data.{name}" for name in Data.model_fields if name.startswith("extra_")}
# without effect if the method has no attack or its own
ATTACK = ("threat.steps", "threat.step_size", "threat.start")
POINTS = 10  # of the curve, where it does not affect the weights
ADD = "add --data.validation 0.1, or to arrays Dataset.from_arrays(validation=...)"


@dataclass(frozen=True)
class Resolved:
    """A checked training request: `run` has the complete Config of its method, `split` is that of
    the curve."""

    run: Run
    method: Method
    split: str
    mixture: Mixture | None = None


def monitored_epochs(run: Run, learns: bool) -> tuple[int, ...]:
    """Return the epochs, from 0, with a point of the curve; `learns`: the method learns from these
    points."""
    every, epochs = run.training.monitor_every, run.training.epochs
    if every is None:
        every = 1 if learns or run.training.selection != "last" else max(1, epochs // POINTS)
    if every == 0:
        return ()
    last = epochs - 1
    regular = range(every - 1, last, every)
    return (*regular, last)


def milestone_epochs(run: Run) -> tuple[int, ...]:
    """Return the milestones, which are set as shares of the epochs, as epochs from 0."""
    return tuple(epoch_at(share, run.training.epochs) for share in run.training.milestones)


def resolve(
    run: Run, facts: DataFacts | None, *, extra_counts: Sequence[int] | None = None
) -> Resolved:
    """Check a request; a request that cannot be trained raises a UserError.

    Without `facts` everything except the data is checked. `extra_counts` (C,): extra images of each
    class, if known.
    """
    training, known = run.training, facts or STAND_IN
    split = _curve_split(run, facts)
    mixed = mixture(run.data, known.class_counts, training.batch_size, extra_counts)
    if mixed is not None and training.sampling != "shuffled":
        got = f"got sampling {training.sampling}; allowed: shuffled, whose class prior is known"
        raise UserError(f"data extra: {got}")
    method = _method(run, known, mixed, extra_counts)
    if method.average_decay is not None and (training.ema or training.swa != 1):
        other = f"ema {training.ema:g}" if training.ema else f"swa {training.swa:g}"
        raise UserError(
            f"{run.method}: got {other} with its own average; allowed: one average of the weights"
        )
    if method.needs_feedback and (wrong := _no_feedback(run, method, split, facts)):
        raise UserError(f"{run.method}: {wrong}")
    if not method.uses_labels and run.model.tune == "head":
        raise UserError(
            f"{run.method}: got the head to train; its loss has no labels; allowed: --model.tune "
            "all"
        )
    if run.threat.start == "none" and not (method.label_attack or method.own_attack):
        raise UserError(
            f"{run.method}: got threat start none, where its attack has no slope; allowed: another "
            "start"
        )
    for name, share, unused in (("swa", training.swa, 1), ("awp start", training.awp_start, 0)):
        if share != unused and epoch_at(share, training.epochs) >= training.epochs:
            raise UserError(f"{name}: got {share:g}; that leaves none of {training.epochs} epochs")
    return Resolved(override(run, {"settings": method.config}), method, split, mixed)


def _method(
    run: Run,
    known: DataFacts,
    mixed: Mixture | None = None,
    extra_counts: Sequence[int] | None = None,
) -> Method:
    """Build the method, as if it learned from the curve: which epochs have a point matters to no
    other method."""
    training, counts = run.training, known.class_counts
    batches = batch_bounds(known.sizes["train"], training.batch_size, mixed is not None)
    if mixed is None:
        drawn_class_counts = _resampled(counts, training.sampling)
    else:
        drawn_class_counts = mixed.drawn_class_counts
    unique_class_counts: tuple[int, ...] = ()
    if extra_counts is not None:
        unique_class_counts = tuple(map(sum, zip(counts, extra_counts, strict=True)))
    task = Task(
        class_counts=counts,
        image_shape=known.image_shape,
        epochs=training.epochs,
        steps_per_epoch=len(batches),
        milestones=milestone_epochs(run),
        outer=run.outer,
        weighting=run.threat.weighting,
        seed=run.seed,
        monitored_epochs=monitored_epochs(run, learns=True),
        drawn_class_counts=drawn_class_counts,
        unique_class_counts=unique_class_counts,
    )
    return methods.build(run.method, run.settings, task)


def _resampled(counts: Sequence[int], sampling: str) -> tuple[float, ...]:
    """Return the class counts that have the class prior of the batches; () if that is the training
    set's."""
    shares = [0.0 if n == 0 else n**0.5 if sampling == "square-root" else 1.0 for n in counts]
    return (
        ()
        if sampling == "shuffled"
        else tuple(sum(counts) * share / sum(shares) for share in shares)
    )


def learns(run: Run) -> bool:
    """Return whether the method of a run learns from the points of its curve."""
    return methods.facts(run.method, run.settings).needs_feedback


def idle_settings(run: Run) -> frozenset[str]:
    """Return the settings that do not affect the weights: of the evaluation, or unused by curve,
    method or data."""
    method = methods.facts(run.method, run.settings)
    idle = set(EVALUATION)
    if not run.data.extra:
        idle |= EXTRA
    if not method.needs_feedback and run.training.selection == "last":
        idle |= CURVE
    if method.own_attack:
        idle |= set(ATTACK)
    if method.own_outer is not None and run.outer.name == "cross-entropy":
        idle.add("outer.name")
    return frozenset(idle)


def refuse_idle_loss(run: Run, given: Iterable[str]) -> None:
    """Refuse a loss on the labels that is `given` and that the method of the run replaces."""
    if "outer.name" in given and "outer.name" in idle_settings(run):
        raise UserError(
            f"{run.method}: got the outer loss {run.outer.name}; its own replaces it: see its "
            "--help"
        )


def _curve_split(run: Run, facts: DataFacts | None) -> str:
    rule = run.training.selection
    if rule != "last" and run.training.monitor_every == 0:
        raise UserError(
            f"selection {rule} needs the curve; monitor every: got 0; allowed: 1 or more"
        )
    if facts is None:
        has_validation = run.data.validation > 0 or run.data.validation_per_class is not None
    else:
        has_validation = "validation" in facts.sizes
    if has_validation and rule != "best-test":
        return "validation"
    if rule == "best-validation" and facts is not None:
        raise UserError(f"selection best-validation needs a validation split: {ADD}")
    return "test"


def _no_feedback(run: Run, method: Method, split: str, facts: DataFacts | None) -> str:
    """Return why a method cannot learn from the curve, e.g. for want of validation images; "" if it
    can."""
    training, first = run.training, min(method.task.monitored_epochs, default=0) + 1
    if training.selection == "best-test":
        return "got selection best-test; allowed: last, best-validation: it learns from the curve"
    if training.monitor_every == 0:
        return "got monitor every 0; allowed: 1 or more: it learns from the points of the curve"
    # A point after the last epoch only decides whether that epoch enters an average.
    learns = any(
        isinstance(m, Method) and m.needs_feedback and m.average_decay is None
        for m in method.modules()
    )
    if split != "validation" and facts is not None:
        return f"got no validation split, which it learns from (never from the test set): {ADD}"
    if learns and first >= training.epochs:
        return (
            f"got {plural(training.epochs, 'epoch')}, and it first learns from validation images "
            f"after epoch {first}; allowed: more epochs, or a smaller --monitor-every"
        )
    return ""


# the cells of a comparison share few networks
_built = functools.lru_cache(maxsize=4)(models.build)


def check_model(resolved: Resolved, facts: DataFacts | None) -> None:
    """Refuse a network that cannot be built for the images, or lacks features or the head that the
    method needs."""
    chosen, head = resolved.run.model, resolved.method.task.head
    if facts is not None:
        shape = len(facts.class_counts), facts.image_shape
        model = _built(chosen.name, *shape, head=head, stem=chosen.stem, weights=chosen.weights)
        model = model if chosen.tune == "all" else copy.deepcopy(model)  # other cells share it
        complete(model, resolved, fresh=chosen.weights is None)
    elif ":" not in chosen.name:
        registry.find("models", chosen.name)


def complete(model: Classifier | Adapter, resolved: Resolved, fresh: bool) -> None:
    """Add the parts of `tune`; refuse a network that lacks features, the method's head, or, if
    `fresh`, weights."""
    method, name, chosen = resolved.method, resolved.run.method, resolved.run.model
    head, own = method.task.head, model.head if isinstance(model, Classifier) else None
    if method.uses_features and own is None:
        which = "which a network has only if its logits come from a last linear layer"
        raise UserError(
            f"model: {name} needs features, {which}; allowed: a taet.models.Classifier(body, head, "
            "...)"
        )
    same = isinstance(own, CosineHead) and (own.scale, own.gamma) == (head.scale, head.gamma)
    if own is None and chosen.tune != "all":
        raise UserError(
            "model tune: this network is used whole, without a head of its own; allowed: all"
        )
    if head.kind != "linear" and not same:
        wanted = f"a cosine head of scale {head.scale:g} and gamma {head.gamma:g}"
        raise UserError(
            f"model: {name} needs {wanted}; give a taet.models.Classifier with a "
            "taet.models.CosineHead"
        )
    extend(model, chosen.tune, resolved.run.seed)
    if fresh and (chosen.tune != "all" or not (method.uses_labels or is_own(chosen.name))):
        raise UserError(
            f"{name}: got no network to begin from; allowed: with --model.weights, e.g. run:runs/x"
        )
