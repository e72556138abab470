"""`taet push`: a finished run with its result card and a model card, as a folder or on the Hugging
Face Hub."""

import json
import os
import re
import tempfile
import textwrap
from pathlib import Path

import taet
from taet.card.card import Card
from taet.card.store import card_of
from taet.data.notes import naming_image_files
from taet.errors import UserError, needed, wrapping_user_code
from taet.files import (
    DONE,
    RUN,
    check_output,
    make_folder,
    read_bytes,
    write_atomically,
    write_json,
)
from taet.formatting import format_radius, markdown_table
from taet.models.trust import is_own
from taet.models.weight_files.checkpoint_file import MOST_BYTES
from taet.models.weight_files.location import CONFIG, FILES
from taet.report import tables
from taet.report.markup import markdown, markdown_text
from taet.report.results import results
from taet.run.folder import RunFolder
from taet.run.loading import resume_call
from taet.run.record import RunRecord

PAGE = Path(__file__).with_name("model_card.md")  # template of the page of a model


def publish(
    run_dir: str | os.PathLike[str], target: str, *, licence: str = "", private: bool = False
) -> str:
    """Publish a finished, evaluated run, and return the name by which it is used later.

    The name is a folder, or hf:USER/NAME@COMMIT.

    Args:
        run_dir: a finished run with the result card of the weights that it delivers.
        target: folder:PATH, for which no network is needed, or USER/NAME on the hub (needs
            taet[hub]).
        licence: identifier of the hub, e.g. apache-2.0; without it the model card has a
            placeholder.
        private: whether a new repository of the hub is private.

    Raises:
        UserError: an unfinished run, one without a card, another target, a folder with other files
            in it.
    """
    if licence and not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", licence):
        raise UserError(
            f"licence: got '{licence}'; allowed: an identifier of the hub in lower case, e.g. "
            "apache-2.0"
        )
    kind, _, path = target.partition(":")
    if kind == "folder" and path:
        stage(Path(run_dir), Path(path), licence, "USER/NAME")
        return path
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", target):
        raise UserError(f"target: got '{target}'; allowed: USER/NAME, or folder:PATH")
    library = needed("huggingface_hub", f"pushing to {target}", "hub", "; without it: folder:PATH")
    with tempfile.TemporaryDirectory() as place:
        stage(Path(run_dir), Path(place, "model"), licence, target)
        with wrapping_user_code(target):
            api = library.HfApi()
            api.create_repo(target, private=private, exist_ok=True)
            message = f"Upload a model of taet {taet.__version__}"
            commit = api.upload_folder(
                repo_id=target, folder_path=str(Path(place, "model")), commit_message=message
            )
    return f"hf:{target}@{commit.oid}"


def stage(run_dir: Path, out: Path, licence: str, name: str) -> None:
    """Write the folder of a published model.

    An earlier one is replaced, any other folder with files is refused.
    """
    run = RunFolder(run_dir)
    record = run.record
    if not run.is_done:
        call = "" if run.has_diverged else f": {resume_call(run)}"
        raise UserError(f"{run_dir} is not finished; {run.how_to_finish}{call}")
    run.check_weights()
    run.check_metrics()
    card = card_of(run)
    if card is None or "file_sha256" not in card.model:
        lacks = f"{run_dir} has no result card that names its file of weights"
        raise UserError(f"{lacks}; make one: taet evaluate {run_dir}")
    if out.resolve() == run_dir.resolve():
        raise UserError(f"{out}: got the folder that is to be published; allowed: another")
    if not ((out / CONFIG).is_file() and b'"library_name": "taet"' in read_bytes(out / CONFIG)):
        if out.exists() and any(out.iterdir()):
            raise UserError(
                f"{out}: got a folder with other files; allowed: a new or empty one, or one of "
                "taet push"
            )
        check_output(out)
    make_folder(out)
    for old in (CONFIG, *FILES):  # a folder without config.json is not a published model
        (out / old).unlink(missing_ok=True)
    for file in FILES:
        if file not in (RUN, DONE) and (run_dir / file).exists():
            write_atomically(out / file, read_bytes(run_dir / file, most=MOST_BYTES))
    shown = record.model_copy(update={"data": record.data.model_copy(update={"fingerprints": ""})})
    # without hashes of training images, which would reveal whose images are among them
    RunFolder(out).create(shown)
    RunFolder(out).finish()
    write_atomically(out / "README.md", model_card(record, card, licence, name).encode())
    facts = {
        "library_name": "taet",
        "taet_version": taet.__version__,
        "model": {"name": card.model["name"], "image_shape": list(record.data.image_shape)},
        "class_names": list(record.data.class_names),
        "weights_sha256": card.model["weights_sha256"],
    }
    write_json(out / CONFIG, facts)


def paths_and_file_names(run_dir: str | os.PathLike[str]) -> list[str]:
    """Return what publishing a run shows of its machine: paths, and notes that name image files."""
    record = RunFolder(Path(run_dir)).record
    texts = [record.command, record.run.data.name, record.run.data.root, record.run.model.weights]
    paths = [text for text in texts if text and os.sep in text]
    return paths + naming_image_files(record.data.notes)


def model_card(record: RunRecord, card: Card, licence: str, name: str) -> str:
    """Return the page of a model, with front matter for the hub.

    Every number comes from the result card.
    """
    rows = [("", ""), *_description(record, card)]
    rows.append(
        (
            "Licence",
            licence
            or "to be filled in by the publisher, with the licence of the training images in mind",
        )
    )
    class_tables = [
        f"{table.title}\n\n{markdown(table)}" for table in tables.classes(results(card))
    ]
    return PAGE.read_text("utf-8").format(
        licence=json.dumps(licence or "unknown"),
        tags=json.dumps(["adversarial-robustness", "long-tailed-recognition", record.run.method]),
        title=f"{markdown_text(record.method_title)} on {markdown_text(card.data['name'])}",
        about=markdown_table([[*map(markdown_text, row)] for row in rows]),
        results=textwrap.indent(repr(card), "    "),
        classes="\n\n".join(class_tables),
        norm=card.threat["norm"],
        eps=format_radius(card.threat["eps"]),
        name=name,
    )


def _description(record: RunRecord, card: Card) -> list[tuple[str, str]]:
    """Return what the page says of the method, the network, the training and the images."""
    run, data = record.run, card.data
    parameters = "" if record.parameters is None else f", {record.parameters:,} parameters"
    epoch = f"{card.model.get('epoch')} of {run.training.epochs}"
    images = f"{sum(record.data.train.class_counts):,} images"
    ratio = data.get("imbalance_ratio")
    rows = [
        ("Method", f"{record.method_title} ({record.reference})"),
        ("Network", f"{card.model['name']}{parameters}, input {record.data.image_shape}"),
        ("Protocol and threat", f"{run.protocol}, L-infinity, eps {format_radius(run.threat.eps)}"),
        ("Epoch and seed", f"{epoch}, {record.selection.rule}; {run.seed}"),
        ("Data", f"{data['name']}, {card.num_classes} classes, {images}"),
        ("Imbalance ratio", "not known" if ratio is None else f"{ratio:.4g}"),
        ("Test images", f"{len(card.labels):,}, SHA-256 {data['test_sha256']}"),
    ]
    if run.model.weights:
        rows.append(("Begins from", f"{run.model.weights}; trained: {run.model.tune}"))
    if record.data.extra:
        rows.append(("Extra images", record.data.extra["source"]))
    rows += [("Note", note) for note in data.get("notes", ())]
    for part in record.code:
        plug_in = f"the plug-in of the {part}, which TAET_PLUGINS has to name"
        rows.append(("Not in this folder", plug_in))
    if record.model_given or is_own(run.model.name):
        rows.append(("Not in this folder", "the code of the network"))
    return rows
