"""`taet push`: a finished run with its result card and a model card, as one folder or on the Hugging Face Hub."""

from __future__ import annotations

import html
import json
import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import taet
from taet.errors import UserError, custom_code, needed
from taet.evaluation import card_store
from taet.evaluation.card import ResultCard
from taet.evaluation.column import Column
from taet.files import make_folder, read_bytes, write_atomically
from taet.formatting import markdown_table, percent, percent_interval, size
from taet.models.weights import MOST_BYTES
from taet.training import published
from taet.training.folder import DONE, PUBLISHED, RunFolder
from taet.training.record import RunRecord

TO_FILL_IN = "to be filled in by the publisher"
RESULTS = ("attack", "accuracy %", "balanced %", "95 % interval", "worst class")


def publish(run_dir: str | os.PathLike[str], target: str, *, licence: str = "", private: bool = False) -> str:
    """Publish a finished, evaluated run, and return its name for later use: a folder, or hf:USER/NAME@COMMIT.

    Args:
        run_dir: a finished run with the result card of the weights that it delivers.
        target: folder:PATH, for which no network is needed, or USER/NAME on the hub (needs taet[hub]).
        licence: identifier of the hub, e.g. apache-2.0; without it the model card has a placeholder.
        private: whether a new repository of the hub is private.

    Raises:
        UserError: an unfinished run, one without a card, another target, a folder with other files in it.
    """
    if licence and not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", licence):
        raise UserError(f"licence: got '{licence}'; allowed: an identifier of the hub in lower case, e.g. apache-2.0")
    kind, _, path = target.partition(":")
    if kind == "folder" and path:
        stage(Path(run_dir), Path(path), licence)
        return path
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", target):
        raise UserError(f"target: got '{target}'; allowed: USER/NAME, or folder:PATH")
    library = needed("huggingface_hub", f"pushing to {target}", "hub", "; without it: folder:PATH")
    with tempfile.TemporaryDirectory() as place:
        staged = Path(place, "model")
        stage(Path(run_dir), staged, licence, target)
        with custom_code(target):
            api = library.HfApi()
            api.create_repo(target, private=private, exist_ok=True)
            done = api.upload_folder(
                repo_id=target, folder_path=str(staged), commit_message=f"Upload a model of taet {taet.__version__}"
            )
    return f"{published.SCHEME}{target}@{done.oid}"


def stage(run_dir: Path, out: Path, licence: str, name: str = "USER/NAME") -> None:
    """Write the folder of a published model; an earlier one is replaced, any other folder with files is refused."""
    run = RunFolder(run_dir)
    record = run.record
    if not run.is_done:
        raise UserError(f"{run_dir} is not finished; resume it first: taet train --resume {run_dir}")
    run.check_weights()
    card = card_store.of_folder(run)
    if card is None or "file_sha256" not in card.model:
        raise UserError(
            f"{run_dir} has no result card that names its file of weights; make one: taet evaluate {run_dir}"
        )
    if out.exists() and any(out.iterdir()) and not (out / published.CONFIG).exists():
        raise UserError(f"{out}: got a folder with other files; allowed: a new or empty one, or one of taet push")
    make_folder(out)
    for old in (published.CONFIG, *PUBLISHED):  # a folder without config.json is not a published model
        (out / old).unlink(missing_ok=True)
    for file in PUBLISHED:
        if file != DONE and (run_dir / file).exists():
            write_atomically(out / file, read_bytes(run_dir / file, most=MOST_BYTES, links=False))
    RunFolder(out).finish()
    write_atomically(out / published.PAGE, model_card(record, card, licence, name).encode())
    facts = {
        "taet_version": taet.__version__,
        "model": {"name": record.run.model.name, "image_shape": list(record.data.image_shape)},
        "class_names": list(record.data.class_names),
        "weights_sha256": card.model["weights_sha256"],
    }
    published.describe(out, facts)
    published.verify(out)


def named_outside(run_dir: str | os.PathLike[str]) -> list[str]:
    """Return the names from the training machine in a run, which publishing would make public."""
    record = RunFolder(Path(run_dir)).record
    found = [record.command, record.run.data.name, record.run.data.root, record.run.model.weights]
    return [text for text in found if text and os.sep in text]


def model_card(record: RunRecord, card: ResultCard, licence: str, name: str) -> str:
    """Return the page of a model, with front matter for the hub; every number comes from the result card."""
    columns = [column for column in card.columns if column.ordinary]
    run, data, shape = record.run, card.data, " x ".join(map(str, record.data.image_shape))
    trained = [
        ("Method", f"{record.method_title} ({record.reference})"),
        ("Network", f"{run.model.name}, {record.parameters:,} parameters, input {shape}"),
        ("Protocol", run.protocol + "".join(f"; leaves it: {text}" for text in record.deviations)),
        ("Training attack", f"L-infinity, eps {size(run.threat.eps)}"),
        ("Epoch", f"{card.model.get('epoch')} of {run.training.epochs}, selection {record.selection.rule}"),
        ("Seed", str(run.seed)),
    ]
    about = [
        ("Data", f"{data['name']}, {card.num_classes} classes"),
        ("Imbalance ratio", "not known" if data.get("imbalance_ratio") is None else f"{data['imbalance_ratio']:.4g}"),
        ("Training images", f"{sum(record.data.train.class_counts):,}"),
        ("Test images", f"{len(card.labels):,}, SHA-256 `{data['test_sha256']}`"),
        *((("Extra images", record.data.extra.sentence),) if record.data.extra else ()),
        *(("Note", note) for note in data.get("notes", ())),
    ]
    sections = [
        f"# {_text(record.method_title)} on {_text(data['name'])}",
        "A classifier trained by taet for adversarial robustness under long-tailed data.",
        "## Data\n\n" + _table([("", ""), *about]),
        "## Training\n\n" + _table([("", ""), *trained]),
        "## Results\n\nBalanced accuracy: the mean recall over the classes. 95 % intervals: over the test images.\n\n"
        + _table([RESULTS, *(_result(card, column) for column in columns)]),
        "### Per class\n\nAccuracy in per cent.\n\n" + _table(_per_class(card, columns)),
        "## Warnings of the evaluation\n\n"
        + ("\n".join(f"- `{flag['flag']}`: {_text(flag['text'])}" for flag in card.flags) or "None was raised."),
        _USE.format(name=name, eps=size(card.threat["eps"]), norm=card.threat["norm"]),
        f"## Licence\n\n{licence or f'*{TO_FILL_IN.capitalize()}, with the licence of the training images in mind.*'}",
    ]
    return f"---\n{_front_matter(record, card, columns, licence)}---\n\n" + "\n\n".join(sections) + "\n"


_USE = """## Intended use and limits

For research on robustness, and as a starting point for models whose data resemble these. Measure it on your own images
before you rely on it, per class: rare classes are the least accurate ones.

**Not a certificate.** The figures say which of these attacks failed, within a {norm} ball of radius {eps} around each
test image. Another attack, a larger ball or another change of the image may succeed.

## How to use it

    taet predict hf:{name}@COMMIT images/
    taet evaluate --model hf:{name}@COMMIT --data folder:./other-images

COMMIT is the full commit of this repository. Every file is checked by its SHA-256; no file is code."""


def _front_matter(record: RunRecord, card: ResultCard, columns: Sequence[Column], licence: str) -> str:
    """Return YAML with values in JSON, so that no name can change its structure."""
    metrics = [
        {
            "type": "accuracy",
            "name": f"balanced accuracy, {column.name}",
            "value": round(card.summary_of(column).balanced, 6),
        }
        for column in columns
    ]
    result = {
        "task": {"type": "image-classification"},
        "dataset": {"type": card.data["name"], "name": card.data["name"]},
        "metrics": metrics,
    }
    values = {
        "license": licence or "unknown",
        "library_name": "taet",
        "pipeline_tag": "image-classification",
        "tags": ["adversarial-robustness", "long-tailed-recognition", record.run.method],
        "model-index": [{"name": f"{record.method_title} on {card.data['name']}", "results": [result]}],
    }
    lines = [f"{key}: {json.dumps(value)}\n" for key, value in values.items()]
    return "".join([*([] if licence else [f"# license: {TO_FILL_IN}\n"]), *lines])


def _result(card: ResultCard, column: Column) -> tuple[str, ...]:
    found = card.summary_of(column)
    label, value = found.worst_class
    worst = f"{percent(value)} ({card.class_names[label]})" if label >= 0 else ""
    interval = percent_interval(*found.balanced_interval)
    return column.name, percent(found.accuracy), percent(found.balanced), interval, worst


def _per_class(card: ResultCard, columns: Sequence[Column]) -> list[tuple[str, ...]]:
    summaries = [card.summary_of(column) for column in columns]
    trained = card.data.get("train_class_counts")
    counts = [""] * card.num_classes if trained is None else [f"{count:,}" for count in trained]
    tested = np.bincount(card.labels, minlength=card.num_classes)
    return [("class", "training images", "test images", *(column.name for column in columns))] + [
        (name, count, f"{tests:,}", *(percent(s.per_class[label]) for s in summaries))
        for label, (name, count, tests) in enumerate(zip(card.class_names, counts, tested, strict=True))
    ]


def _text(value: str) -> str:
    """Return a text escaped for Markdown, on one line."""
    return re.sub(r"([\\|*_\[\]`#])", r"\\\1", html.escape(" ".join(value.split()), quote=False))


def _table(rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table with the first row as its header; `code` is not escaped."""
    return markdown_table([[cell if "`" in cell else _text(cell) for cell in row] for row in rows])
