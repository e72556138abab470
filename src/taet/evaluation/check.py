"""`taet check`: this machine, every seal of a run folder, or what would invalidate an evaluation of
a model."""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from taet.attacks.ball import finite
from taet.attacks.noise import Draws
from taet.card.store import read_card
from taet.data import Dataset
from taet.data.downloads import roots
from taet.data.long_tail import even_sample
from taet.data.notes import repeated_in_training
from taet.errors import UserError
from taet.evaluation import flags
from taet.evaluation.attack_sets import attacks_of
from taet.evaluation.probe import Merged, deep_facts, outputs
from taet.evaluation.runner import Runner, restored
from taet.evaluation.target import ArrayOrTensor, EvaluationTarget
from taet.files import DONE, METRICS, RUN
from taet.formatting import duration, join_words, percent
from taet.machine import (
    PACKAGES,
    environment,
    float32_by_default,
    idle_threads,
    resolve_device,
    using,
)
from taet.metrics import accuracies, intervals
from taet.models.trust import check_trust
from taet.network import check_network
from taet.run.folder import DELIVERED, SUFFIX, RunFolder, folder_of
from taet.settings import Data
from taet.settings.arguments import checked_arguments

MOST_PER_CLASS = 10  # logits; a model with more was made for another data set


@dataclass(frozen=True)
class Finding:
    """The result of one test: its name, its text, and whether all is well."""

    what: str
    text: str
    ok: bool = True

    def __str__(self) -> str:
        return f"{'ok' if self.ok else '! '} {self.what:19} {self.text}"


@dataclass(frozen=True)
class Check:
    """The findings of `check`, one line for each test.

    Example:
        >>> import taet
        >>> digits, trained = taet.data.load("digits-lt"), taet.load("runs/example")
        >>> found = taet.evaluation.check(trained.model, digits.test.images, digits.test.labels)
        >>> failed = [finding for finding in found.findings if not finding.ok]
        >>> found.ok == (not failed)
        True
    """

    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        return all(finding.ok for finding in self.findings)

    def __repr__(self) -> str:
        return "\n".join(map(str, self.findings))


@checked_arguments
@float32_by_default()
def check(
    model_or_run_dir: nn.Module | str | os.PathLike[str] | None = None,
    images: ArrayOrTensor | Dataset | None = None,
    labels: ArrayOrTensor | None = None,
    *,
    class_names: Sequence[str] | None = None,
    deep: bool = False,
    attacks: Sequence[str] | None = None,
    eps: float | None = None,
    weights: str = DELIVERED,
    device: str | torch.device = "auto",
) -> Check:
    """Check this machine, the files and the model of a run folder, or a model.

    A model is tested on a batch of its test images, in eval mode and exact float32. Its state and
    modes and the random state are restored afterwards.

    Args:
        model_or_run_dir: a Module, a run folder, or nothing for this machine.
        images, labels, class_names: test images as in `taet.evaluate`. A run has images of its own,
            which these replace.
        deep: attack a randomised model also through the mean of many draws, and a model with
            several logits for each class also through the largest of each.
        attacks, eps: attacks whose time is estimated, and the radius. Default: those of the run, or
            of protocol taet.
        weights: which of a run's weights: model, model-last or model-best.
        device: auto, cpu, cuda or cuda:N.

    Raises:
        UserError: images or labels that `taet.evaluate` refuses, or a model that cannot be
            evaluated: it fails, returns anything but finite logits (N, classes), or has no gradient
            with respect to the image.

    Example:
        >>> import taet
        >>> digits, trained = taet.data.load("digits-lt"), taet.load("runs/example")
        >>> found = taet.evaluation.check(trained.model, digits.test.images, digits.test.labels)
        >>> len(found.findings) > 0
        True
    """
    files, changes = tuple[Finding, ...](), {"attacks": attacks, "eps": eps}
    if model_or_run_dir is None:
        return Check((*_machine(resolve_device(str(device))),))
    if isinstance(model_or_run_dir, nn.Module):
        check_network(model_or_run_dir)
    else:
        folder = folder_of(model_or_run_dir)
        files = verify(folder.path)
        if not all(file.ok for file in files) or not folder.is_done:
            return Check(files)
        check_trust(folder.path, folder.record.run.model.name)
    try:
        target = EvaluationTarget.of(
            model_or_run_dir, images, labels, class_names=class_names, weights=weights
        )
    except UserError as error:
        if not files or images is not None:
            raise
        return Check(
            (
                *files,
                Finding(
                    "model", f"not tried on images: {error}; --data NAME names others", ok=False
                ),
            )
        )
    return Check((*files, *_model(target.changed(changes, str(device)), deep)))


def _machine(device: torch.device) -> Iterator[Finding]:
    about = environment(device)
    for name in PACKAGES:
        version = about["versions"][name]
        yield Finding(name, version or f"missing: pip install {name}", version is not None)
    yield Finding("device", f"{about['device']}, threads: {torch.get_num_threads()}")
    yield Finding(
        "data", f"looked for in {join_words(map(str, roots(Data())))}; see taet data show NAME"
    )


def verify(path: Path) -> tuple[Finding, ...]:
    """Read every file of a run folder as its users do, and check that all belong together."""
    folder, found = RunFolder(path), list[Finding]()
    if not folder.is_run and not folder.card().exists():
        _ = folder.record  # refuses it
    for name, read in _readers(folder):
        try:
            read()
            found.append(Finding(name, "verified"))
        except UserError as error:
            found.append(Finding(name, " ".join(str(error).split()), ok=False))
    if folder.is_run and not folder.is_done:
        found.append(
            Finding(
                DONE, "missing: the run is not finished; its weights are not verified", ok=False
            )
        )
    return tuple(found)


def _readers(folder: RunFolder) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield the name of each file with a function that reads and verifies it."""
    if folder.is_run:
        yield RUN, lambda: folder.record  # its method need not be installed here
        if folder.is_done or (folder.path / METRICS).exists():
            yield METRICS, lambda: folder.metrics
        if folder.checkpoint.exists():
            yield folder.checkpoint.name, folder.load_checkpoint
        if folder.is_done:
            yield DONE, lambda: folder.sums
            names = {folder.weights().name}
            with contextlib.suppress(UserError):  # reported for `done`
                names |= {*folder.sums, *(path.name for path in folder.path.glob(f"*{SUFFIX}"))} - {
                    RUN,
                    METRICS,
                }
            yield from ((name, partial(_weights, folder, name)) for name in sorted(names))
    for path, name in folder.cards():
        yield path.name, partial(_card, folder, path, name)


def _card(folder: RunFolder, path: Path, weights: str) -> None:
    images = read_card(folder, path, weights).images
    if images is not None:
        images.read(folder.path)


def _weights(folder: RunFolder, name: str) -> None:
    folder.check_weights(name.removesuffix(SUFFIX))
    if name not in folder.sums:
        raise UserError(f"{name} was not written by this training: {DONE} does not name it")


def _model(target: EvaluationTarget, deep: bool) -> Iterator[Finding]:
    """Yield what a batch of test images shows about a model."""
    with using(idle_threads()[0]), restored(target.model.to(target.device)) as changes:
        runner = target.runner(most_per_class=MOST_PER_CLASS)
        with runner.frozen_and_exact():
            yield from _outputs(target, runner, deep)
        attacks = attacks_of(target.settings)
        seconds = runner.passes(attacks) * runner.pace(attacks[-1])
        yield Finding("time", f"{join_words(target.settings.attacks)}: {duration(seconds)}")
        changed = join_words(changes(), most=3)  # after every other test
        if changed:
            later = "later outputs are those of a different model; do not update state in eval mode"
            yield Finding(
                "eval mode", f"its state changes in eval mode ({changed}): {later}", ok=False
            )
        else:
            yield Finding("eval mode", "its state does not change")


def _outputs(target: EvaluationTarget, runner: Runner, deep: bool) -> Iterator[Finding]:
    """Yield what the outputs on a batch of test images show, and with `deep` what attacks show."""
    names, seed = target.about["data"]["class_names"], target.settings.seed
    width = runner.num_classes
    per_class = width // len(names) if names else 1
    rows = even_sample(runner.labels, runner.batch_size, seed)
    x, y = runner.batch(rows)
    facts, logits, _ = outputs(runner.model, x, y)
    not_finite = int((~finite(logits)).sum())
    if not_finite:
        raise UserError(f"model output: not finite on {not_finite} of {len(y)} clean test images")
    parameters = sum(weight.numel() for weight in target.model.parameters())
    shape = " x ".join(map(str, x.shape[1:]))
    yield Finding(
        "model",
        f"{parameters:,} parameters, {width} logits for images of {shape}; tried on {len(y)} test "
        "images",
    )
    yield _accuracy(logits, y, width // per_class)
    repeated = repeated_in_training(target.about["data"].get("notes", ()))
    if repeated:
        yield Finding("test images", f"{repeated}: they are no unseen images", ok=False)
    for flag, text in flags.raised_about("model", facts).items():
        yield Finding(flag, text, ok=False)
    random = facts.repeat_difference > flags.REPEAT_DIFFERENCE
    if deep:
        network = target.model
        attacked = Merged(network, width // per_class).eval() if per_class > 1 else network
        noise = Draws(seed, "audit", rows).start(x, target.eps)
        torch.manual_seed(seed)
        facts_of_kind = deep_facts(attacked, x, y, noise, target.eps, random=random)
        texts = flags.raised_about("kind of model", facts_of_kind)
        for flag, text in texts.items():
            yield Finding(flag, text, ok=False)
        if not texts:
            yield Finding("deep", "no attack made for this kind of model is stronger than PGD-20")
    elif per_class > 1 or random:
        what = (
            f"{width} logits, if {per_class} for each class" if per_class > 1 else "random outputs"
        )
        more = "attacks made for it tell more; check again with --deep"
        yield Finding("deep", f"{what}: {more}", ok=False)


def _accuracy(logits: Tensor, labels: Tensor, num_classes: int) -> Finding:
    """Return the balanced accuracy on clean images, which must be above chance.

    logits (N, K C) with K for each class, class by class, labels (N,).
    """
    correct = (logits.max(1).indices % num_classes == labels).cpu().numpy()
    counts = accuracies.class_counts(correct, labels.cpu().numpy(), num_classes)
    _, total = counts
    chance = 1 / int((total > 0).sum())
    low, _ = intervals.balanced_interval(*counts)
    fine = low > chance or chance == 1  # images of one class show nothing
    reached = percent(accuracies.balanced_accuracy(*counts))
    text = f"balanced accuracy {reached} %, chance is {percent(chance)} %"
    if not fine:
        right = "weights, normalisation, order of the classes and image size right"
        text += f"; are {right}, and was it trained long enough?"
    return Finding("accuracy", text, ok=fine)
