"""Several processes give the gradients of one, however unevenly they share the batch, and decide
together.

The losses that compare classes are tried in methods/test_processes.py, with the methods that use
them.
"""

import itertools
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from taet.cli.end_in_time import leave
from taet.distributed import (
    any_rank,
    average_gradients,
    batch_slice,
    broadcast_from_rank_zero,
    gather,
    global_mean,
    global_sum,
    rank,
    rank_zero_first,
    reporting_peer_exit,
    run_on_rank_zero,
)
from taet.errors import UserError
from taet.losses import cross_entropy
from taet.losses.outer import OuterLoss
from taet.settings import Outer
from tests.calls import met

CLASSES, SAMPLES = 5, 11
# Where the batch is cut. The labels leave class 4 out of the whole batch and others out of one
# share only.
CUTS = {"uneven": 7, "one-image": 10, "all-on-one": 11}
LABELS = torch.tensor([0, 1, 0, 0, 1, 0, 2, 3, 3, 0, 2])
COUNTS = torch.tensor([50, 30, 2, 3, 20])


def outer(name: str, **settings: Any) -> Callable[[Tensor, Tensor], Tensor]:
    loss = OuterLoss(Outer(name=name, **settings), COUNTS, scale=5.0, drw_from=0)
    return lambda logits, labels: global_mean(loss(logits, labels))


LOSSES = {
    "cross-entropy": lambda logits, labels: global_mean(cross_entropy(logits, labels)),
    "class-balanced-over-batch": outer("class-balanced", divide_by="batch"),
    "deferred-ldam": outer("ldam", drw=True),
}


def gradients(loss: Callable[[Tensor, Tensor], Tensor], share: slice) -> dict[str, Tensor]:
    """The loss of one small network on one share of the batch, and the gradient of each
    parameter."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(SAMPLES, 3, generator=generator, dtype=torch.float64)
    model = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, CLASSES)).double()
    for parameter in model.parameters():
        parameter.data.normal_(generator=generator)
    value = loss(model(x[share]), LABELS[share])
    value.backward()
    return {
        "loss": value.detach(),
        **{name: p.grad for name, p in model.named_parameters() if p.grad is not None},
    }


def outcome(work: Callable[[], Any]) -> Any:
    """What it returns, or the text of its mistake."""
    try:
        return work()
    except UserError as error:
        return str(error)


def mistaken(number: int, result: str) -> Callable[[], str]:
    """Work that fails on the process of this number."""

    def work() -> str:
        if rank() == number:
            raise UserError(f"mistake of {number}")
        return f"{result} of {rank()}"

    return work


def decide(number: int, folder: Path) -> dict[str, Any]:
    """What a process finds when it decides with the others."""
    value = torch.full((2, 3), float(number)).T
    broadcast_from_rank_zero([value])
    journal = folder / "journal"

    def written() -> list[str]:
        with journal.open("a") as file:
            print(number, file=file)
        return journal.read_text().split()

    return {
        "first": [outcome(partial(run_on_rank_zero, mistaken(n, "result"))) for n in (0, 1)],
        "in turn": [outcome(partial(rank_zero_first, mistaken(n, "result"))) for n in (0, 1, 2)],
        "journal": rank_zero_first(written),
        "in any": any_rank(True, number == 0, number == 1, False),
        "copied": value.tolist(),
        "sum": global_sum(torch.tensor([1.0, 10.0]) * (number + 1)).tolist(),
        "gathered": gather([number, 10] * (number + 1)),  # of unequal lengths
    }


def work(number: int, folder: Path) -> None:
    """What each process does: its share of every batch under every loss, then the average of the
    gradients."""
    with met(folder, number):
        found = {}
        for cut_name, cut in CUTS.items():
            share = slice(0, cut) if number == 0 else slice(cut, SAMPLES)
            for loss_name, loss in LOSSES.items():
                values = gradients(loss, share)
                average_gradients([value for name, value in values.items() if name != "loss"])
                found[f"{cut_name}/{loss_name}"] = values
        found["decided"] = decide(number, folder)
        if number == 1:
            torch.save(found, folder / "1.pt")
            os._exit(0)  # without a word
        found["left"] = outcome(alone_at_last)
        torch.save(found, folder / "0.pt")
        leave(0)


def alone_at_last() -> None:
    with reporting_peer_exit("; go on"):
        gather(None)


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("loss", LOSSES)
def test_two_processes_give_the_gradients_of_one(
    loss: str, cut: str, two_processes: list[dict[str, dict[str, Tensor]]]
) -> None:
    expected = gradients(LOSSES[loss], slice(0, SAMPLES))
    assert len(expected) == 5
    for found in two_processes:
        assert found[f"{cut}/{loss}"].keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(
                found[f"{cut}/{loss}"][name], value, rtol=0, atol=1e-12, msg=name
            )


def test_what_is_summed_gathered_and_decided_is_the_same_on_every_process(
    two_processes: list[dict[str, Any]],
) -> None:
    for number, found in enumerate(two_processes):
        assert found["decided"] == {
            "first": ["mistake of 0", "result of 0"],
            "in turn": ["mistake of 0", "mistake of 1", f"result of {number}"],
            "journal": ["0", "1"][: number + 1],
            "in any": (True, True, True, False),
            "copied": [[0.0] * 2] * 3,
            "sum": [3, 30],
            "gathered": [[0, 10], [1, 10, 1, 10]],
        }


def test_that_another_process_has_ended_is_one_line(two_processes: list[dict[str, Any]]) -> None:
    found = two_processes[0]["left"]
    assert found.startswith("another process of this job has ended (")
    assert found.endswith("); go on")
    assert "\n" not in found


def test_shares_follow_each_other_and_differ_by_one_at_most() -> None:
    for total, processes in itertools.product((0, 1, 7, 64), (1, 2, 3, 8)):
        slices = [batch_slice(total, rank, processes) for rank in range(processes)]
        shares = [list(range(total))[of_rank] for of_rank in slices]
        assert [*itertools.chain(*shares)] == [*range(total)]
        sizes = [len(share) for share in shares]
        assert max(sizes) - min(sizes) <= 1
