"""Extra images of a run: read, filtered by a model on request, and recorded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from taet.data import Dataset, Split, repeats
from taet.data.augmentation import to_unit
from taet.data.extra import Extra, read_extra, saw_removed_tail
from taet.data.image_store import pieces
from taet.errors import UserError
from taet.files import file_sha256
from taet.settings import EXTRA_COPIES, Data
from taet.training.finished import load_model
from taet.training.folder import RunFolder
from taet.training.record import ExtraRecord, RunRecord
from taet.training.resolve import Resolved

BATCH = 500
"""Images per batch of a filter."""
COPIES = "copies of the training images"


def load_extra(data: Data, dataset: Dataset, device: torch.device) -> Extra:
    """Return the extra images of a run that its filter keeps."""
    extra = read_extra(data, dataset)
    if data.extra_filter_model is None:
        return extra
    folder = Path(data.extra_filter_model)
    _, model, record = load_model(folder)
    if more := _more_seen(record, dataset):
        why = "allowed: a run on the same training images alone, so that the filter has seen no others"
        raise UserError(f"data extra filter model: '{folder}' was trained {more}; {why}")
    kept = kept_by(model.to(device), extra.split, data.extra_filter, device)
    return replace(extra, split=extra.split.choose(kept), judge_sha256=file_sha256(RunFolder(folder).weights()))


def _more_seen(record: RunRecord, dataset: Dataset) -> str | None:
    """Return in words what a run was trained on besides the training images, or None."""
    if record.data.train.sha256 != dataset.train.sha256:
        return "on other images"
    if record.data.extra is not None and record.run.data.extra != EXTRA_COPIES:
        return "with extra images"
    return None if record.run.model.weights is None else "from pretrained weights"


@torch.no_grad()
def kept_by(model: nn.Module, split: Split, share: float, device: torch.device) -> NDArray[np.int64]:
    """Return the positions of the ceil(share n_c) images of each class with the most likely labels.

    The likelihood is the softmax output of `model` on the clean image; ties are resolved by position.
    """
    found, begin = [], 0
    for piece in pieces(split.images):
        labels = torch.from_numpy(split.labels[begin : begin + len(piece)]).to(device)
        begin += len(piece)
        parts = torch.split(torch.from_numpy(np.ascontiguousarray(piece)), BATCH), torch.split(labels, BATCH)
        for images, of in zip(*parts, strict=True):
            likely = model(to_unit(images.to(device), channels_last=False)).double().log_softmax(1)
            found.append(likely.gather(1, of[:, None])[:, 0].cpu())
    score = torch.cat(found).numpy()
    order = np.lexsort((np.arange(len(score)), -score, split.labels))  # by class, the likeliest first
    counts = split.class_counts
    place = np.arange(len(order)) - np.repeat(counts.cumsum() - counts, counts)
    return np.sort(order[place < np.repeat(np.ceil(share * counts - 1e-9), counts)])


def describe_extra(extra: Extra, resolved: Resolved) -> ExtraRecord:
    """Return the record of the extra images of a new run; every table repeats its sentence."""
    data, mixture = resolved.run.data, resolved.mixture
    assert mixture is not None
    return ExtraRecord(
        source=data.extra_source or COPIES,
        trained_on="this-set" if extra.copies else data.extra_trained_on,
        saw_removed_tail=saw_removed_tail(data),
        labels=data.extra_labels,
        sha256=extra.split.sha256,
        class_counts=tuple(extra.split.class_counts.tolist()),
        per_batch=mixture.extra,
        batch_size=mixture.batch,
        classes=data.extra_classes,
        draw=mixture.draw,
        exposure=mixture.exposure,
        kept=data.extra_filter,
        judge_sha256=extra.judge_sha256,
        left_out={name: (exact, near) for name, exact, near in extra.repeats},
        left_out_by=f"pixels, and {repeats.SIDE} x {repeats.SIDE} means within {repeats.NEAR:g} (root mean square)",
        test_sha256=extra.test_sha256,
    )
