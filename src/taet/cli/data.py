"""`taet data show NAME` and `taet data prepare NAME`: print what a data set holds; download and
check its files."""

from typing import Annotated, Literal

from taet.cli.named_model import OF_TRAINING
from taet.cli.options import POSITIONAL, Command, Options, parse
from taet.settings import Data, Run, override

USUAL = (
    "root",
    "imbalance_ratio",
    "profile",
    "max_count",
    "test",
    "folds",
    "fold",
    "validation",
    "group",
    "group_pattern",
    "path_column",
    "label_column",
    "transparent",
    "size",
    "seed",
)


class DataCommand(Command):
    """show: print class counts of every split, imbalance ratio, checksums and notes, as a run would
    use the set.

    prepare: download the official files (without a network: print which file to put where), check
    and read them.
    """

    examples = (
        "taet data show cifar10-lt --root ~/data --imbalance-ratio 50",
        "taet data show folder:./lesions --size 32",
        "taet data prepare tiny-imagenet-lt --root ~/data",
    )

    action: Annotated[Literal["show", "prepare"], POSITIONAL]
    """show or prepare."""
    set: Annotated[str, POSITIONAL]
    """Name of a data set, or your own images: folder:PATH, csv:PATH, npz:PATH."""


def run(words: list[str]) -> None:
    """Show or prepare a data set."""
    command, given = parse(
        DataCommand,
        words,
        "taet data",
        [Options("data", Data(), True, USUAL, frozenset({"name"}) | OF_TRAINING)],
    )

    from taet import protocols
    from taet.data import load
    from taet.data.dataset import render
    from taet.data.sources import prepare
    from taet.experiments import own_choices
    from taet.progress import reporting_to, say, shown

    given = {**given, "data.name": command.set}
    if command.action == "prepare":
        with shown("prepare") as report:
            dataset, done = prepare(override(Run(), given).data, report)
        counts = ", ".join(f"{len(split)} {name}" for name, split in dataset.splits.items())
        lines = [*done, f"{dataset.name}: {counts} images, imbalance {dataset.imbalance_ratio:.4g}"]
        print("\n".join(lines))
        return
    with shown("read") as report, reporting_to(report):
        run, chosen = own_choices.chosen(protocols.taet(), given, network_too=False)
        dataset = load(run.data)
    choices = {name: made for name, made in chosen.items() if name.startswith("data.")}
    if choices := choices | own_choices.mirroring(run.data, dataset):
        say(
            "\n".join(
                ["decided; each can be set by its option:", *own_choices.choice_lines(choices)]
            )
        )
    print(render(dataset))
