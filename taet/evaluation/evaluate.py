"""Attacking a model of a run folder, or any other, and making its result card."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor, nn

from taet.attacks.counted import Counted
from taet.attacks.progress import Progress
from taet.config import Evaluation, Threat
from taet.data import Dataset
from taet.data.dataset import images_sha256
from taet.distributed import rank
from taet.errors import UserError
from taet.evaluation import diagnostics, probe
from taet.evaluation.attack import Attack, check_attacks, expand, parse_attacks
from taet.evaluation.columns import Bench, Images, as_arrays, as_unit, attack_split, count_classes
from taet.evaluation.curves import curve_attacks
from taet.evaluation.result import Column, Ints, ResultCard
from taet.files import write_atomically
from taet.training.checkpoint import load_run, weights_digest
from taet.training.environment import environment, resolve_device

MOST_EXAMPLES = 24  # images kept for the figures of a report


def evaluate(
    model_or_run_dir: nn.Module | str | os.PathLike[str],
    images: Images | Tensor | None = None,
    labels: NDArray[Any] | Tensor | None = None,
    *,
    attacks: Sequence[str] | str | None = None,
    curves: Sequence[str] = (),
    worst_case: bool = False,
    eps: float | None = None,
    step_size: float | None = None,
    eps_l2: float | None = None,
    step_size_l2: float | None = None,
    batch_size: int | None = None,
    seed: int | None = None,
    device: str = "auto",
    name: str | None = None,
    class_names: Sequence[str] | None = None,
    train_class_counts: Sequence[int] | None = None,
    data_about: Mapping[str, Any] | None = None,
    out: str | os.PathLike[str] | None = None,
    weights: str = "model",
    model: nn.Module | None = None,
    dataset: Dataset | None = None,
    state_dir: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    command: str = "",
) -> ResultCard:
    """Attack a model on test images and return the result card, which prints itself as a table.

    Everything is float32. Every attack faces all images, the clean ones are always the first column, and finished
    batches are kept, so that an evaluation that was killed goes on where it was.

    Args:
        model_or_run_dir: a run folder, or any Module from images (N, C, H, W) in [0, 1] to logits (N, classes).
        images: with a Module, or in place of a run's own: uint8 (N, H, W, C), grey levels 0 to 255, or floating point
            (N, C, H, W) in [0, 1].
        labels: of those images: integers (N,), 0 to classes - 1.
        attacks: one or more names of `taet list attacks`, with options where wanted (pgd-20:restarts=5), or a protocol,
            taet or reat, for all columns of its paper. Not given: the run's, or those of `taet.config.Evaluation`; so
            too eps to seed.
        curves: of steps, eps and logit-scale, those to be measured; each point is a column of its own.
        worst_case: run the attacks one after another, each on the images that those before it left correct, and
            return that one column beside the clean one: cheaper, where only the worst case is asked for.
        eps: radius of the L-infinity ball in units of the image range, e.g. 8/255.
        step_size: step of PGD, same units.
        eps_l2: radius of the L2 ball, same units.
        step_size_l2: length of a step of PGD in the L2 ball.
        batch_size: images per batch; stored, since AutoAttack's result depends on it in a few examples.
        seed: seed of every random start, drawn per image and attack.
        device: auto (for a Module where it is, for a run CUDA where there is one), cpu, cuda or cuda:N.
        name: with a Module, what the card calls it; its class where not given.
        class_names: with a Module, names of the classes; their numbers where not given.
        train_class_counts: with a Module, training images per class, which decide head, body and tail.
        data_about: what the card says about images that were given: name, imbalance_ratio, notes.
        out: folder of the card and its examples. Not given: the run's; with a Module nothing is kept.
        weights: with a run folder, which of its weights: model, model-last or model-best.
        model: with the folder of a run that was trained from a Module, one like it; it is given the run's weights.
        dataset: with the folder of a run that was trained on arrays in memory, those arrays again.
        state_dir: with a Module, where finished batches are kept; in `out`, or nowhere, if not given.
        progress: called as progress(done, total, label), in estimated passes of an image through the model.
        command: how this was started; stored in the card.

    Returns:
        The card; a run folder also gets it as evaluation.json, and images for figures in artifacts/examples.npz. What
        that file holds already is not measured again: columns with the same settings are taken from it, others stay in
        it, and a card about another ball, batch size or software is kept beside it under the time of its making.

    Raises:
        UserError: no, unknown or repeated attacks, images out of range, labels that do not fit the model, a model that
            returns anything but finite logits (N, classes).
    """
    asked = [attacks] if isinstance(attacks, str) else attacks
    if asked is not None:  # a typing mistake is told before anything is loaded
        check_attacks(Evaluation(attacks=tuple(asked)))
    curve_attacks(curves, Evaluation(), Threat().eps)
    path: Path | None = None
    if not isinstance(model_or_run_dir, nn.Module):
        folder = Path(model_or_run_dir)
        path = (folder if out is None else Path(out)) / f"evaluation{weights.removeprefix('model')}.json"
        if (images is None) != (labels is None) or (images is not None and out is None):
            raise UserError("evaluate: got images beside a run, which has its own; allowed: with labels= and out=")
        subject = _from_run(folder, weights, model, dataset)
        if images is not None and labels is not None:
            subject = _on_other_images(subject, images, labels, data_about)
    elif model is not None or dataset is not None:
        raise UserError("evaluate: got model= or dataset= beside a Module; allowed: with a run folder that needs them")
    elif images is None or labels is None:
        raise UserError("evaluate: got a model without images and labels; allowed: both, or a run folder alone")
    else:
        subject = _from_module(
            model_or_run_dir,
            images,
            labels,
            name or type(model_or_run_dir).__name__,
            class_names,
            train_class_counts,
            data_about,
        )
        path = None if out is None else Path(out) / "evaluation.json"
    if path is not None:
        state_dir = path.with_name(f"{path.stem}-state")
    chosen: dict[str, Any] = {
        "eps": eps,
        "step_size": step_size,
        "eps_l2": eps_l2,
        "step_size_l2": step_size_l2,
        "batch_size": batch_size,
        "seed": seed,
    }
    given = {name: value for name, value in chosen.items() if value is not None}
    settings = dataclasses.replace(
        expand(subject.settings.attacks if asked is None else asked, subject.settings), **given
    )
    radius = subject.train_eps if settings.eps is None else settings.eps
    listed = parse_attacks(["clean", *(name for name in settings.attacks if name != "clean")], settings, radius)
    where = subject.place if device == "auto" else resolve_device(device)
    with _on(subject.model, where):
        names = _class_names(subject, where)
        counted, size = Counted(subject.model), settings.batch_size
        bench = Bench(counted, subject.images, subject.labels, len(names), size, settings.seed, where)
        machine = environment(where)
        model_about = {
            **subject.model_about,
            "weights_sha256": weights_digest(subject.model),
            "parameters": sum(parameter.numel() for parameter in subject.model.parameters()),
        }
        threat = {"norm": "linf", "eps": radius}
        facts = {
            "model": {"weights_sha256": model_about["weights_sha256"]},
            "data": {"test_sha256": subject.test_sha256},
            "threat": threat,
            "batch_size": settings.batch_size,
            "environment": {"versions": machine["versions"], "device": machine["device"]},
        }
        known = None if path is None else _known(path, facts)
        known_columns = () if known is None else known.columns
        probed = {} if known is None or known.probe.get("seed") != settings.seed else known.probe
        probing = not probed and len(listed) > 1
        drawn = [attack for attack in curve_attacks(curves, settings, radius) if attack.name not in settings.attacks]
        columns = (listed[:1] if worst_case else listed) + drawn
        meter = _Meter(progress, probe.passes(bench) if probing else 0)
        measured = attack_split(bench, columns, known=known_columns, state_dir=state_dir, progress=meter.attacks)
        if worst_case:
            clean = measured[0]
            measured = (*measured, bench.run_worst_case(listed[1:], clean, state_dir, meter.attacks))
        if probing:
            probed = probe.probe(bench, radius, state_dir, meter.probe)
        here = {column.name for column in measured}
        card = ResultCard(
            **subject.about,
            threat=threat,
            model=model_about,
            data={
                **subject.data_about,
                "class_names": names,
                "train_class_counts": subject.train_class_counts,
                "test_sha256": subject.test_sha256,
            },
            batch_size=settings.batch_size,
            labels=subject.labels,
            columns=(*measured, *(column for column in known_columns if column.name not in here)),
            probe=probed,
            created=machine.pop("started"),
            environment=machine,
            command=command,
        )
        card = dataclasses.replace(card, flags=diagnostics.flags(card))
        if path is not None and rank() == 0:
            _save_examples(path.parent / "artifacts" / "examples.npz", card, bench, listed)
            if path.exists() and known is None:  # about another ball, batch size or software: kept beside the new one
                stamp = re.sub("[^0-9]", "", ResultCard.load(path).created)
                path.replace(path.with_name(f"{path.stem}-{stamp}.json"))
            card.save(path)
            shutil.rmtree(path.with_name(f"{path.stem}-state"), ignore_errors=True)
    return card


@dataclass
class _Meter:
    """Adds the probe, which comes last, to the progress of the attacks; all in passes of an image."""

    report: Progress | None
    probe_passes: int
    attack_passes: float = 0

    def attacks(self, done: float, total: float, label: str) -> None:
        self.attack_passes = total
        if self.report is not None:
            self.report(done, total + self.probe_passes, label)

    def probe(self, done: float) -> None:
        if self.report is not None:
            self.report(self.attack_passes + done, self.attack_passes + self.probe_passes, "probe")


def _known(path: Path, facts: dict[str, Any]) -> ResultCard | None:
    """Return the card at `path`, if it agrees with `facts` about what was tested and how."""
    if not path.exists():
        return None
    card = ResultCard.load(path)
    for name, wanted in facts.items():
        found = getattr(card, name)
        if isinstance(wanted, dict):
            found = {key: found.get(key) for key in wanted}
        if found != wanted:
            return None
    return card


@dataclass(frozen=True)
class _Subject:
    """What is evaluated: a model with its test images, and what the card says about where both come from."""

    model: nn.Module
    images: Images
    labels: Ints
    test_sha256: str
    class_names: list[str] | None
    train_class_counts: list[int] | None
    settings: Evaluation
    train_eps: float
    place: torch.device
    """Where the work is done unless the caller says otherwise."""
    about: dict[str, Any]
    model_about: dict[str, Any]
    data_about: dict[str, Any]


def _from_module(
    model: nn.Module,
    images: Images | Tensor,
    labels: NDArray[Any] | Tensor,
    name: str,
    class_names: Sequence[str] | None,
    train_class_counts: Sequence[int] | None,
    data_about: Mapping[str, Any] | None,
) -> _Subject:
    pixels, classes = as_arrays(images, labels)
    return _Subject(
        model=model,
        images=pixels,
        labels=classes,
        test_sha256=images_sha256(pixels, classes),
        class_names=None if class_names is None else list(class_names),
        train_class_counts=None if train_class_counts is None else [int(count) for count in train_class_counts],
        settings=Evaluation(),
        train_eps=Threat().eps,
        place=next((tensor.device for tensor in model.state_dict().values()), torch.device("cpu")),
        about={"method": name, "title": name, "protocol": "", "seed": None},
        model_about={"name": name, "selection": None, "epoch": None, "leak": False},
        data_about={"name": "arrays", **(data_about or {})},
    )


def _from_run(folder: Path, weights: str, given: nn.Module | None, arrays: Dataset | None) -> _Subject:
    run, model, dataset, info = load_run(folder, weights, model=given, dataset=arrays)
    return _Subject(
        model=model,
        images=dataset.test.images,
        labels=dataset.test.labels,
        test_sha256=dataset.test.sha256,
        class_names=list(dataset.class_names),
        train_class_counts=[int(count) for count in dataset.class_counts],
        settings=run.evaluation,
        train_eps=run.threat.eps,
        place=resolve_device("auto"),
        about={
            "method": run.method,
            "title": info["method_title"],
            "protocol": run.protocol,
            "seed": run.seed,
            "run": {"config": info["run"], "command": info["command"], "deviations": info["deviations"]},
        },
        model_about={
            "name": run.model.name if given is None else type(given).__name__,
            "selection": info["selection"]["rule"],
            "epoch": _epoch(folder / f"{weights}.safetensors"),
            "leak": info["selection"]["leak"],
        },
        data_about={
            "name": dataset.name,
            "imbalance_ratio": dataset.imbalance_ratio,
            "notes": list(dataset.notes),
        },
    )


def _on_other_images(
    subject: _Subject, images: Images | Tensor, labels: NDArray[Any] | Tensor, data_about: Mapping[str, Any] | None
) -> _Subject:
    pixels, classes = as_arrays(images, labels)
    about = {"name": "arrays", **(data_about or {})}
    sha256 = images_sha256(pixels, classes)
    return dataclasses.replace(subject, images=pixels, labels=classes, test_sha256=sha256, data_about=about)


def _epoch(path: Path) -> int:
    """Return the epoch that weights of a run were saved after, as their file says."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    try:
        return int(json.loads(metadata["taet"])["epoch"])
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{path} was not written by taet train: its metadata name no epoch") from None


def _class_names(subject: _Subject, device: torch.device) -> list[str]:
    """Return the names of the classes, which must be as many as the model has logits; numbers where none are given."""
    width = count_classes(subject.model, subject.images, subject.labels, device)
    names = subject.class_names
    if names is not None and len(names) != width:
        raise UserError(f"model output: got {width} logits; allowed: {len(names)}, one per class")
    counts = subject.train_class_counts
    if counts is not None and len(counts) != width:
        raise UserError(f"training counts: got {len(counts)}; allowed: {width}, one per class")
    return [str(label) for label in range(width)] if names is None else names


@contextmanager
def _on(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Keep the model on a device, and bring it back afterwards."""
    before = next((tensor.device for tensor in model.state_dict().values()), device)
    model.to(device)
    try:
        yield
    finally:
        model.to(before)


def _save_examples(path: Path, card: ResultCard, bench: Bench, attacks: Sequence[Attack]) -> None:
    """Save a few images of each class under the PGD with most steps: first those that it breaks, then any others."""
    chains = [attack for attack in attacks if attack.kind == "pgd" and attack.norm == "linf"]
    chains = [attack for attack in chains if any(column.name == attack.name for column in card.columns)]
    if not chains:
        return
    attack = max(chains, key=lambda chain: chain.parameters["steps"])
    if path.exists():
        with np.load(path) as stored:
            before = [column for column in card.columns if column.name == str(stored["attack"])]
        if before and before[0].parameters["steps"] > attack.parameters["steps"]:
            return  # of a stronger attack, whose column the card still has
    clean = card.column("clean")
    rows = _example_rows(card.labels, clean, card.column(attack.name), card.num_classes)
    with bench.still():
        _, x_adv = bench.perturb(attack, rows)
        predictions = bench.answers(attack, x_adv, rows).argmax(1)
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        images=np.rint(255 * as_unit(bench.images[rows]).permute(0, 2, 3, 1).numpy()).astype(np.uint8),
        adversarial=x_adv.permute(0, 2, 3, 1).cpu().numpy(),
        labels=card.labels[rows],
        clean_predictions=clean.predictions[rows],
        adversarial_predictions=predictions.cpu().numpy(),
        attack=np.array(attack.name),
        eps=np.array(attack.eps),
    )
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, buffer.getvalue())


def _example_rows(labels: Ints, clean: Column, attacked: Column, num_classes: int) -> Ints:
    """Choose at most 24 images, as many of each class, in the order of the classes."""
    interest = clean.correct.astype(int) + (clean.correct & ~attacked.correct)
    rows: list[int] = []
    for label in range(num_classes):
        members = np.flatnonzero(labels == label)
        best = members[np.argsort(-interest[members], kind="stable")]
        rows.extend(best[: max(1, MOST_EXAMPLES // num_classes)])
    return np.asarray(rows[:MOST_EXAMPLES], dtype=np.int64)
