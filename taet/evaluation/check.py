"""`taet check`: this machine, every seal of a run folder, or what would invalidate an evaluation of a model."""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

from taet import models, statistics
from taet.attacks.ball import finite
from taet.attacks.noise import Draws
from taet.data import Dataset
from taet.data.downloads import roots
from taet.data.long_tail import even_sample
from taet.errors import UserError
from taet.evaluation import rules
from taet.evaluation.bundles import attacks_of
from taet.evaluation.card import read_card
from taet.evaluation.facts import Merged, deep_facts, outputs
from taet.evaluation.runner import restored
from taet.evaluation.subject import ArrayOrTensor, Subject
from taet.files import DONE, METRICS, RUN
from taet.formatting import duration, listed, percent
from taet.settings import Data
from taet.training.environment import PACKAGES, environment, resolve_device
from taet.training.folder import DELIVERED, SUFFIX, RunFolder, folder_of

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
    """The findings of `check`, one line for each test."""

    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        return all(finding.ok for finding in self.findings)

    def __repr__(self) -> str:
        return "\n".join(map(str, self.findings))


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
    device: str = "auto",
) -> Check:
    """Check this machine; or every file of a run folder, and its model; or a model on a batch of its test images.

    A model is tested in eval mode and exact float32. Its state and modes and the random state are restored afterwards.

    Args:
        model_or_run_dir: a Module, a run folder, or nothing for this machine.
        images, labels, class_names: test images as in `taet.evaluate`; of a run in place of its own.
        deep: attack a randomised model also through the mean of many draws, and a model with several logits for each
            class also through the largest of each.
        attacks, eps: attacks whose time is estimated, and the radius. Default: those of the run, or of protocol taet.
        weights: of a run: model, model-last or model-best.
        device: auto, cpu, cuda or cuda:N.

    Raises:
        UserError: images or labels that `taet.evaluate` refuses, or a model that cannot be evaluated: it fails, returns
            anything but finite logits (N, classes), or has no gradient with respect to the image.
    """
    files, changes = tuple[Finding, ...](), {"attacks": attacks, "eps": eps}
    if model_or_run_dir is None:
        return Check((*_machine(resolve_device(device)),))
    if not isinstance(model_or_run_dir, nn.Module):
        folder = folder_of(model_or_run_dir)
        files = verify(folder.path)
        if not all(file.ok for file in files) or not folder.is_done:
            return Check(files)
        models.check_trust(folder.path, folder.record.run.model.name)
    try:
        subject = Subject.of(model_or_run_dir, images, labels, class_names=class_names, weights=weights)
    except UserError as error:
        if not files or images is not None:
            raise
        return Check((*files, Finding("model", f"not tried on images: {error}; --data NAME names others", ok=False)))
    return Check((*files, *_model(subject.changed(changes, device), deep)))


def _machine(device: torch.device) -> Iterator[Finding]:
    about = environment(device)
    for name in PACKAGES:
        version = about["versions"][name]
        yield Finding(name, version or f"missing: pip install {name}", version is not None)
    yield Finding("device", f"{about['device']}, threads: {torch.get_num_threads()}")
    yield Finding("data", f"looked for in {listed(map(str, roots(Data())))}; see taet data show NAME")


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
        found.append(Finding(DONE, "missing: the run is not finished; its weights are not verified", ok=False))
    return tuple(found)


def _readers(folder: RunFolder) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield the name of each file with a function that reads and verifies it."""
    if folder.is_run:
        yield RUN, lambda: folder.record  # its method need not be installed here
        if folder.is_done or (folder.path / METRICS).exists():
            yield METRICS, lambda: folder.metrics
        if folder.checkpoint.exists():
            yield folder.checkpoint.name, lambda: folder.load_checkpoint()
        if folder.is_done:
            yield DONE, lambda: folder.sums
            names = {folder.weights().name}
            with contextlib.suppress(UserError):  # reported for `done`
                names |= {*folder.sums, *(path.name for path in folder.path.glob(f"*{SUFFIX}"))} - {RUN, METRICS}
            yield from ((name, partial(_weights, folder, name)) for name in sorted(names))
    for path, name in folder.cards():
        yield path.name, partial(read_card, folder, path, name)


def _weights(folder: RunFolder, name: str) -> None:
    folder.check_weights(name.removesuffix(SUFFIX))
    if name not in folder.sums:
        raise UserError(f"{name} was not written by this training: {DONE} does not name it")


def _model(subject: Subject, deep: bool) -> Iterator[Finding]:
    """Yield what a batch of test images shows about a model."""
    names, seed = subject.about["data"]["class_names"], subject.settings.seed
    network = subject.model.to(subject.device)
    with restored(network) as changes:
        runner = subject.runner(most_per_class=MOST_PER_CLASS)
        width, rows = runner.num_classes, even_sample(runner.labels, runner.batch_size, seed)
        per_class = width // len(names) if names else 1
        x, y = runner.batch(rows)
        with runner.still():
            facts, logits, _ = outputs(runner.model, x, y)
            if wrong := int((~finite(logits)).sum()):
                raise UserError(f"model output: not finite on {wrong} of {len(y)} clean test images")
            random = facts.repeat_difference > rules.REPEAT_DIFFERENCE
            about = f"{sum(weight.numel() for weight in network.parameters()):,} parameters, {width} logits for images"
            yield Finding("model", f"{about} of {' x '.join(map(str, x.shape[1:]))}; tried on {len(y)} test images")
            correct = (logits.max(1).indices % (width // per_class) == y).cpu().numpy()
            counts = statistics.class_counts(correct, y.cpu().numpy(), width // per_class)
            chance, (low, _) = 1 / int((counts[1] > 0).sum()), statistics.balanced_interval(*counts)
            fine = low > chance or chance == 1  # images of one class show nothing
            reached = percent(statistics.balanced_accuracy(*counts))
            hint = "" if fine else "; are weights, normalisation, order of the classes and image size right?"
            text = f"balanced accuracy {reached} %, chance is {percent(chance)} %{hint}"
            yield Finding("accuracy", text, ok=fine)
            if repeated := rules.repeated(subject.about["data"].get("notes", ())):
                yield Finding("test images", f"{repeated}: they are no unseen images", ok=False)
            yield from (Finding(flag, text, ok=False) for flag, text in rules.of_model(facts).items())
            if deep:
                attacked = Merged(network, width // per_class).eval() if per_class > 1 else network
                noise = Draws(seed, "audit", rows).start(x, subject.eps)
                torch.manual_seed(seed)
                texts = rules.of_deep(deep_facts(attacked, x, y, noise, subject.eps, random=random))
                yield from (Finding(flag, text, ok=False) for flag, text in texts.items())
                if not texts:
                    yield Finding("deep", "no attack made for this kind of model is stronger than PGD-20")
            elif per_class > 1 or random:
                what = f"{width} logits, if {per_class} for each class" if per_class > 1 else "random outputs"
                yield Finding("deep", f"{what}: attacks made for it tell more; check again with --deep", ok=False)
        attacks = attacks_of(subject.settings)
        seconds = runner.passes(attacks) * runner.pace(attacks[-1])
        yield Finding("time", f"{listed(subject.settings.attacks)}: {duration(seconds)}")
        if changed := listed(changes(), most=3):  # after every other test
            later = "later outputs are those of a different model; do not update state in eval mode"
            yield Finding("eval mode", f"its state changes in eval mode ({changed}): {later}", ok=False)
        else:
            yield Finding("eval mode", "its state does not change")
