"""What `taet train` says before it trains: data, network, choices, and the expected time."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from taet import protocols
from taet.evaluation.evaluate import LONG_SECONDS, WORTH, attack_seconds
from taet.experiments import own_choices
from taet.experiments.own_choices import Chosen
from taet.formatting import duration, format_radius, plural
from taet.settings.step_sizes import reaches
from taet.training.prepare import TrainingPlan, expected_seconds
from taet.training.state import State

FEW = 100  # test images of each class, which shorten an evaluation that takes hours


class Shortening(NamedTuple):
    """Options that shorten training or evaluation: expected seconds with and without them."""

    options: str
    seconds: float
    seconds_now: float


def introduction(
    plan: TrainingPlan, state: State, chosen: Mapping[str, Chosen], *, evaluates: bool = True
) -> str:
    """Return the text before training.

    It names the data, the network, the settings that were chosen, the expected time, and options
    that cut it. `evaluates`: whether the run will be attacked, which takes time as well.
    """
    lines = [_data_line(plan), _run_line(plan)]
    lines += [f"  {note}" for note in _notes(plan, state)]
    choices = own_choices.choice_lines({**chosen, **_mirroring(plan), **plan.choices})
    if choices:
        lines.append("decided; each can be set by its option:")
        lines += [f"  {choice}" for choice in choices]
    training = expected_seconds(plan, state)
    evaluation = attack_seconds(plan, state.model) if evaluates else 0.0
    takes = f"training will take {duration(training)}"
    lines.append(f"{takes}, its evaluation {duration(evaluation)}" if evaluates else takes)
    shorter = [
        f"{way.options} ({duration(way.seconds)})"
        for way in _shortenings(plan, state, training, evaluation)
        if way.seconds < WORTH * way.seconds_now
    ]
    if shorter:
        lines.append(f"shorter: {', '.join(shorter)}")
    return "\n".join(lines)


def _data_line(plan: TrainingPlan) -> str:
    """Return the number of images of each split, and the most and least frequent class."""
    dataset = plan.dataset
    images = " + ".join(f"{len(split):,} {name}" for name, split in dataset.splits.items())
    classes = sorted(zip(dataset.class_counts.tolist(), dataset.class_names, strict=True))
    least, rare = classes[0]
    most, common = classes[-1]
    return (
        f"{dataset.name}: {images} images of {dataset.num_classes} classes, {most} '{common}' to "
        f"{least} '{rare}' to train on (imbalance {dataset.imbalance_ratio:.4g})"
    )


def _run_line(plan: TrainingPlan) -> str:
    """Return the method, epochs, network and radius."""
    run = plan.run
    epochs = plural(run.training.epochs, "epoch")
    return f"{run.method}: {epochs} of {run.model.name}, eps {format_radius(run.threat.eps)}"


def _notes(plan: TrainingPlan, state: State) -> Iterator[str]:
    """Yield the notes on images, network, attack and method."""
    yield from plan.dataset.notes
    yield from state.model.notes
    yield from _notes_on_attack(plan, state)
    counts = plan.dataset.class_counts.tolist()
    yield from state.method.warnings(counts, plan.run.training.batch_size)


def _notes_on_attack(plan: TrainingPlan, state: State) -> Iterator[str]:
    """Yield a note if the settings of the attack have no effect, or its steps are too short."""
    threat = plan.run.threat
    if state.method.own_attack:
        usual = protocols.start(plan.run.protocol, plan.run.method).threat
        if (usual.steps, usual.step_size, usual.start) != (
            threat.steps,
            threat.step_size,
            threat.start,
        ):
            yield (
                f"steps and start of --threat change nothing: {state.method.title} has no attack, "
                "or one of its own"
            )
        return
    starts_at_image = threat.start in ("gaussian", "none")
    if starts_at_image and not reaches(threat.eps, threat.steps, threat.step_size):
        steps = f"{plural(threat.steps, 'attack step')} of {format_radius(threat.step_size)}"
        yield (
            f"! {steps} cannot reach eps {format_radius(threat.eps)}; see --threat.steps and "
            "--threat.step-size"
        )


def _mirroring(plan: TrainingPlan) -> dict[str, Chosen]:
    """Return whether images are mirrored, where the augmentation mirrors at all."""
    if plan.run.training.augment in ("none", "crop"):
        return {}
    return own_choices.mirroring(plan.run.data, plan.dataset)


def _shortenings(
    plan: TrainingPlan, state: State, training: float, evaluation: float
) -> Iterator[Shortening]:
    """Yield what shortens a training and an evaluation that take hours; both times in seconds."""
    if training > LONG_SECONDS:
        epochs = plan.run.training.epochs
        fewer = max(1, round(epochs * LONG_SECONDS / training))
        yield Shortening(f"--epochs {fewer}", training * fewer / epochs, training)
    if evaluation > LONG_SECONDS:
        quick = "clean", "quick"
        seconds = attack_seconds(plan, state.model, quick)
        yield Shortening(f"--evaluation.attacks {' '.join(quick)}", seconds, evaluation)
        if plan.run.data.test != "validation":
            test = plan.dataset.test
            few = test.class_counts.clip(max=FEW).sum()
            seconds = evaluation * few / len(test)
            yield Shortening(f"--data.test-max-count {FEW}", seconds, evaluation)
