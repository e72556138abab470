"""`taet push RUN TARGET`: publish a finished run with its result card and a model card."""

from pathlib import Path
from typing import Annotated

from taet.cli.options import POSITIONAL, Command, parse


class Push(Command):
    """Write weights, settings, curve and result card of a finished run, with a model card, as a
    folder in the layout of the Hugging Face Hub, and print the name under which evaluate --model,
    check and predict read it: the folder, or hf:USER/NAME@COMMIT. The hub needs the package
    huggingface_hub (pip install 'taet[hub]') and its login.
    """

    examples = (
        "taet push runs/x folder:published/x",
        "taet push runs/x user/name --license apache-2.0 --private",
    )

    run: Annotated[Path, POSITIONAL]
    """Run folder with a result card."""
    target: Annotated[str, POSITIONAL]
    """USER/NAME on the hub, or folder:PATH."""
    license: str = ""
    """Licence, by its identifier on the hub, e.g. apache-2.0. Default: left blank in the model
    card."""
    private: bool = False
    """Make a new repository on the hub private."""


def run(words: list[str]) -> None:
    """Publish a run and print its name."""
    command, _ = parse(Push, words, "taet push")

    from taet.deployment.hub import paths_and_file_names, publish
    from taet.run.folder import RunFolder

    name = publish(command.run, command.target, licence=command.license, private=command.private)
    for part in RunFolder(Path(command.run)).record.code:
        print(
            f"note: the plug-in of its {part} is not published, and nobody can load the run "
            "without it"
        )
    for text in paths_and_file_names(command.run):
        print(f"note: this is published with it: {text}")
    if not command.license:
        print("note: the licence in README.md is left blank; --license fills it in")
    print(name)
