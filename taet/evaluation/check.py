"""`taet check`: this machine, every seal of a run folder, or what would invalidate an evaluation of a model."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from taet import models, statistics
from taet.attacks import pgd
from taet.attacks.ball import finite
from taet.attacks.counted import Counted
from taet.attacks.draws import Draws
from taet.data.long_tail import even_sample
from taet.data.places import roots
from taet.errors import UserError
from taet.evaluation import store
from taet.evaluation.bundles import attacks_of
from taet.evaluation.facts import Merged, ModelFacts, Trial, answer, attempt, deep_facts, outputs, user_errors
from taet.evaluation.rules import REPEAT_DIFFERENCE, said
from taet.evaluation.runner import Runner, TestImages, restored
from taet.evaluation.subject import GivenImages, Subject, TestLabels, make_runner, of_module, of_run
from taet.files import is_leftover
from taet.formatting import duration, listed, percent
from taet.models.foreign import NORMALIZATIONS, Normalized, Statistics
from taet.randomness import generator
from taet.settings import Data
from taet.training.environment import PACKAGES, environment, resolve_device
from taet.training.folder import DELIVERED, DONE, METRICS, RUN, RunFolder

DATA_FILES = (
    *("cifar10.npz", "cifar-10-batches-py", "cifar100.npz", "cifar-100-python", "FashionMNIST/raw"),
    *("dermamnist.npz", "ham10000_32.npz", "tiny-imagenet-200", "gtsrb"),
)
OLD = "written by an older version, without a checksum"
MOST_EACH = 10  # logits for a class; more are those of another data set
LEVEL = 0.05  # of all tests together whether another normalisation is better


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    what: str
    text: str
    ok: bool = True

    def __str__(self) -> str:
        return f"{'ok' if self.ok else '! '} {self.what:20}{self.text}"


@dataclass(frozen=True)
class Check:
    """What was found, one line for each thing that was looked at."""

    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether no problem was found."""
        return all(finding.ok for finding in self.findings)

    @property
    def lines(self) -> list[str]:
        """The findings as text; ! marks a problem."""
        return [*map(str, self.findings)]

    def __repr__(self) -> str:
        return "\n".join(self.lines)


def check(
    model_or_run_dir: nn.Module | str | os.PathLike[str] | None = None,
    images: TestImages | Tensor | GivenImages | None = None,
    labels: TestLabels | None = None,
    *,
    deep: bool = False,
    attacks: Sequence[str] | None = None,
    eps: float | None = None,
    weights: str = DELIVERED,
    device: str = "auto",
) -> Check:
    """Check this machine; or every file of a run folder, and its model; or a model on a batch of its test images.

    A model is tested in eval mode and exact float32. Its state, its modes and the random state are restored afterwards.

    Args:
        model_or_run_dir: a Module, a run folder, or nothing for this machine.
        images: test images as in `taet.evaluate`; with a run in place of its own.
        labels: integers (N,), 0 to classes - 1.
        deep: attack a randomised model also through the mean of many draws, and a model with several logits for each
            class also through the largest of each.
        attacks, eps: attacks whose time is estimated, and the radius. Default: those of the run, or of protocol taet.
        weights: of a run: model, model-last or model-best.
        device: auto, cpu, cuda or cuda:N.

    Raises:
        UserError: images or labels that `taet.evaluate` refuses, or a model that cannot be evaluated: it fails, returns
            anything but finite logits (N, classes), or has no gradient with respect to the image.
    """
    if model_or_run_dir is None:
        return Check((*_machine(resolve_device(device)),))
    given = images if isinstance(images, GivenImages) or images is None else GivenImages(images, labels)  # type: ignore[arg-type]
    if isinstance(model_or_run_dir, nn.Module):
        if given is None:
            raise UserError("check: got a model without images and labels; allowed: both, or a run folder alone")
        subject = of_module(model_or_run_dir, given)
        return Check((*_model(subject.changed({"attacks": attacks, "eps": eps}), device, deep),))
    files = verify(Path(model_or_run_dir))
    if not all(file.ok for file in files) or not RunFolder(Path(model_or_run_dir)).is_done:
        return Check(files)
    subject = of_run(model_or_run_dir, weights, images=given)
    return Check((*files, *_model(subject.changed({"attacks": attacks, "eps": eps}), device, deep)))


def _machine(device: torch.device) -> Iterator[Finding]:
    about = environment(device)
    for name in PACKAGES:
        version = about["versions"][name]
        yield Finding(name, version or f"missing: pip install {name}", version is not None)
    yield Finding("device", f"{about['device']}, threads: {torch.get_num_threads()}")
    speeds = {name: _attack_speed(device, name == "bf16") for name in ("bf16", "float32")}
    for name, speed in speeds.items():
        yield Finding(f"PGD-10 {name}", f"{speed:.0f} images a second, ResNet-8, 32 x 32")
    places = roots(Data())
    found = [str(root / name) for root in places for name in DATA_FILES if (root / name).exists()]
    yield Finding("data", ", ".join(found) or f"no known file in {listed(f'{root}' for root in places)}")
    free = shutil.disk_usage(".").free / 1e9
    yield Finding("disk", f"{free:.1f} GB free here; a run of ResNet-18 takes about 0.2 GB", free >= 1)


def _attack_speed(device: torch.device, bf16: bool) -> float:
    """Return the images per second of PGD-10 on a batch of 128: the best of three trials after a warm-up."""
    model = models.build("resnet8", 10).to(device).to(memory_format=torch.channels_last)
    x = torch.rand(128, 3, 32, 32, device=device).contiguous(memory_format=torch.channels_last)
    y = torch.arange(128, device=device) % 10
    best = float("inf")
    for _ in range(4):
        begun = time.perf_counter()
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
            attacked = pgd(model, x, y, eps=8 / 255, step_size=2 / 255, steps=10, start="none")
        attacked.sum().item()  # waits for the device
        best = min(best, time.perf_counter() - begun)
    return len(x) / best


def verify(path: Path) -> tuple[Finding, ...]:
    """Read every file of a run folder as its users do, and check that all belong together."""
    if not path.is_dir():
        raise UserError(f"check: no such folder: '{path}'")
    folder, found = RunFolder(path), [Finding(".", "verified")]
    if not folder.is_run and not folder.card().exists():
        _ = folder.record  # refuses it
    for name, read in _readers(folder):
        try:
            found.append(Finding(name, "verified" if read() else f"on trust: {OLD}"))
        except UserError as error:
            found.append(Finding(name, " ".join(str(error).split()), ok=False))
    left = [one.name for one in path.iterdir() if is_leftover(one.name)]
    if left:
        found[0] = Finding(".", f"on trust: {len(left)} files of a process that is at work, or was killed")
    return tuple(found)


def _readers(folder: RunFolder) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield the name of each file with a function that reads it and returns whether a checksum covers all of it."""

    def weights(name: str) -> object:
        folder.check_weights(name)
        return folder.weights(name).name in folder.sums

    def card(path: Path, name: str) -> object:
        found = store.read(folder, path, name)
        if path == folder.card(name):  # earlier cards may be about earlier images
            store.read_examples(folder.examples(path), found)
        return found.sealed

    if folder.is_run:
        yield RUN, lambda: folder.record and folder.sealed  # its method need not be installed here
        if folder.is_done or (folder.path / METRICS).exists():
            yield METRICS, lambda: [folder.metrics] and (folder.sums or not folder.is_done)
        if folder.checkpoint.exists():
            yield folder.checkpoint.name, lambda: folder.load_checkpoint(folder.record.run_hash)
        if folder.is_done:
            yield DONE, lambda: folder.sums
            try:
                names = folder.weights_names
            except UserError:  # told for `done`
                names = [DELIVERED]
            yield from ((folder.weights(name).name, partial(weights, name)) for name in names)
    yield from ((path.name, partial(card, path, name)) for path, name in folder.cards())


def _model(subject: Subject, device: str, deep: bool) -> Iterator[Finding]:
    """Yield what a batch of test images shows about a model."""
    names, network = subject.about["data"]["class_names"], subject.model
    network.to(subject.device if device == "auto" else resolve_device(device))
    with restored(network) as changes:
        came = "; it was in training mode and is tested in eval mode" if network.training else ""
        batch_size, seed = subject.settings.batch_size, subject.settings.seed
        runner = make_runner(network, subject.images, subject.labels, batch_size=batch_size, seed=seed)
        width, rows = runner.num_classes, even_sample(runner.labels, runner.batch_size, seed)
        several, rest = divmod(width, len(names)) if names else (1, 0)
        if names and (rest or not 1 <= several <= MOST_EACH):
            raise UserError(f"model output: got {width} logits; allowed: {len(names)}, one per class")
        x, y = runner.batch(rows)
        with runner.still():
            tried = attempt(runner.model, x, y)
            if wrong := int((~finite(tried.logits)).sum()):
                raise UserError(f"model output: not finite on {wrong} of {len(y)} clean test images")
            facts = outputs(runner.model, x, y, tried)
            about = f"{sum(weight.numel() for weight in network.parameters()):,} parameters, {width} logits for images"
            yield Finding("model", f"{about} of {' x '.join(map(str, x.shape[1:]))}; tried on {len(y)} test images")
            yield from _outputs(runner, x, y, tried, len(names) if names else width, own=subject.card is not None)
            yield from (Finding(flag, text, ok=False) for flag, text in said("model", facts).items())
            if deep:
                yield from _deep(runner, facts, several, subject.eps)
            elif several > 1 or facts.repeat_difference > REPEAT_DIFFERENCE:
                what = f"{several} logits for each class" if several > 1 else "random outputs"
                yield Finding("deep", f"{what}: attacks made for it tell more; check again with --deep", ok=False)
        usual, most = runner.seconds(attacks_of(subject.settings, subject.eps))
        yield Finding("time", f"{listed(subject.settings.attacks)}: {duration(usual)}, at most {duration(most)[6:]}")
        if changed := listed(changes(), most=3):  # after every other test
            later = "later outputs are those of a different model; do not update state in eval mode"
            yield Finding("eval mode", f"its state changes in eval mode ({changed}): {later}", ok=False)
        else:
            yield Finding("eval mode", f"its state does not change{came}")


def _deep(runner: Runner, facts: ModelFacts, several: int, eps: float) -> Iterator[Finding]:
    rows = even_sample(runner.labels, runner.batch_size, runner.seed)
    x, y = runner.batch(rows)
    noise = Draws(runner.seed, "audit", rows).start(x, eps)
    model = runner.model.model
    seen = Merged(model, runner.num_classes // several).eval() if several > 1 else model
    torch.manual_seed(runner.seed)
    found = deep_facts(seen, x, y, noise, eps, random=facts.repeat_difference > REPEAT_DIFFERENCE)
    texts = said("deep", found)
    yield from (Finding(flag, text, ok=False) for flag, text in texts.items())
    if not texts:
        yield Finding("deep", "no attack made for this kind of model is stronger than PGD-20")


def _outputs(runner: Runner, x: Tensor, y: Tensor, tried: Trial, classes: int, own: bool) -> Iterator[Finding]:
    """Yield what the logits show beside the rules; the head of a run's own model (`own`) fits its classes."""
    model, correct = runner.model, (tried.logits.max(1).indices % classes == y).cpu().numpy()
    counts = statistics.class_counts(correct, y.cpu().numpy(), classes)
    chance, (low, _) = 1 / int((counts[1] > 0).sum()), statistics.balanced_interval(*counts)
    said_of = f"balanced accuracy {percent(statistics.balanced_accuracy(*counts))} %, chance is {percent(chance)} %"
    hint = "" if low > chance else "; are the weights, the order of the classes and the image size right?"
    yield Finding("accuracy", said_of + hint, ok=low > chance)
    highest = int(runner.labels.max())
    if not own and highest + 1 < classes and classes == runner.num_classes:
        text = f"{classes} logits, but labels 0 to {highest} only; does the head belong to another data set?"
        yield Finding("classes", text, ok=False)
    yield _normalisation(model.model, x, y, correct)
    if bool(((tried.logits >= 0) & (tried.logits <= 1)).all()):
        text = "all between 0 and 1, as after a sigmoid or a softmax, which shrink the gradients; return its input"
        yield Finding("logits", text, ok=False)
    noise = torch.rand(x[:1].shape, generator=generator("cpu", 0, "check", "noise")).to(x.device)
    corners = {"black": torch.zeros_like(noise), "white": torch.ones_like(noise), "random": noise}
    # Two of each, since a layer may need more than one image.
    broken = [name for name, one in corners.items() if not answer(model, one.repeat(2, 1, 1, 1)).isfinite().all()]
    text = f"not finite on {listed(broken)} images, which an attack may produce; look for a division by zero"
    yield Finding("range", text if broken else "finite on test images and on black, white and random ones", not broken)
    with user_errors("model: fails on two images ({reason})"), torch.no_grad():
        dtype = model.model(x[:2]).dtype
    if dtype != torch.float32:
        text = f"outputs are {dtype}: rounding hides differences that decide an attack; return float32"
        yield Finding("precision", text, ok=False)


def _normalisation(model: nn.Module, x: Tensor, y: Tensor, correct: statistics.Mask) -> Finding:
    """Return whether a usual normalisation of the input is better, by McNemar's test at `LEVEL` for all together."""
    network, channels = model.network if isinstance(model, Normalized) else model, x.shape[1]
    ways = {name: one for name, one in NORMALIZATIONS.items() if len(one.mean) == channels}
    for mean, deviation in ((0.5, 0.5), (0.0, 1 / 255)):
        name = "/".join(",".join([f"{value:.6g}"] * channels) for value in (mean, deviation))
        ways[name] = Statistics((mean,) * channels, (deviation,) * channels)
    networks = {"none": network} | {name: Normalized(network, how).to(x.device) for name, how in ways.items()}
    masks = {name: (answer(Counted(one), x).max(1).indices == y).cpu().numpy() for name, one in networks.items()}
    best = max(masks, key=lambda name: masks[name].sum())
    gained, lost = int((masks[best] & ~correct).sum()), int((correct & ~masks[best]).sum())
    given = f"{percent(correct.mean())} % correct as given"
    if gained > lost and statistics.mcnemar(gained, lost) * len(masks) < LEVEL:
        return Finding("normalisation", f"{given}, {percent(masks[best].mean())} % with --normalize {best}", ok=False)
    return Finding("normalisation", f"{given}; no usual normalisation is better")
