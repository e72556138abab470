"""A request is checked from its settings and the facts of its data alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from taet import models, protocols
from taet.data import DataFacts, facts
from taet.errors import UserError
from taet.models import Head
from taet.settings import Run, override
from taet.training.resolve import check_model, resolve

LONG_TAIL = DataFacts((50, 20, 10), (3, 32, 32), {"train": 80, "test": 30})


def test_a_request_comes_to_its_method_its_head_and_its_stages(tiny: Callable[..., Run]) -> None:
    resolved = resolve(tiny("taet", {"training.epochs": 5}), LONG_TAIL)
    assert resolved.run.settings == resolved.method.config
    assert resolved.method.task.class_counts == LONG_TAIL.class_counts
    assert resolved.method.task.stages == ("clean",) * 2 + ("adversarial",) * 3
    assert resolve(tiny("robal"), LONG_TAIL).method.task.head == Head("cosine", scale=10, gamma=1 / 32)
    assert resolved.split == "test"
    assert not resolved.chooses


@pytest.mark.parametrize(
    ("method", "changes", "match"),
    [
        ("at", {"training.swa": 0.9, "training.epochs": 3}, r"swa: got 0\.9; that leaves none of 3 epochs"),
        ("at", {"training.selection": "best-test", "training.monitor_every": 0}, "monitor every: got 0"),
        ("trades", {"threat.weighting": "rw"}, "its attack raises no loss on labels"),
        ("harl", {"outer.name": "focal"}, "its loss already balances the classes"),
        ("at", {"outer.drw": True, "training.milestones": ()}, "a schedule without a milestone"),
        ("robust-lt", {"settings": {"base": "standard"}}, "which attacks in no epoch"),
    ],
)
@pytest.mark.parametrize("known", [LONG_TAIL, None])
def test_what_settings_alone_decide_is_refused_with_and_without_facts(
    tiny: Callable[..., Run], method: str, changes: dict[str, Any], match: str, known: DataFacts | None
) -> None:
    with pytest.raises(UserError, match=match):
        resolve(tiny(method, changes), known)


def test_a_validation_split_is_required_only_where_the_splits_are_known(tiny: Callable[..., Run]) -> None:
    run = tiny("at", {"training.selection": "best-validation"})
    with pytest.raises(UserError, match=r"add --data\.validation 0\.1"):
        resolve(run, LONG_TAIL)
    with pytest.raises(UserError, match=r"add Dataset\.from_arrays"):
        resolve(run, LONG_TAIL, arrays=True)
    assert resolve(run, None).split == "test"  # the source may have a validation split of its own
    assert resolve(override(run, {"data.validation": 0.1}), None).split == "validation"


def test_more_processes_than_images_in_a_batch_are_refused(tiny: Callable[..., Run]) -> None:
    with pytest.raises(UserError, match="batch size: got 8 for 9 processes"):
        resolve(tiny("at", {"training.batch_size": 8}), LONG_TAIL, processes=9)


def test_a_network_is_checked_once_and_without_values(
    tiny: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    for method in ("at", "robal", "reat"):
        check_model(resolve(tiny(method, {"model.name": "wrn-34-10"}), LONG_TAIL), LONG_TAIL)
    with pytest.raises(UserError, match=r"unknown model 'resnet9'.*did you mean"):
        check_model(resolve(tiny("at", {"model.name": "resnet9"}), None), None)
    built = []
    build = models.build
    monkeypatch.setattr(models, "build", lambda *given, **named: built.append(build(*given, **named)) or built[-1])
    run = tiny("at", {"model.name": "resnet8", "model.stem": "imagenet"})
    for seed in range(3):
        check_model(resolve(override(run, {"seed": seed}), LONG_TAIL), LONG_TAIL)
    (network,) = built
    assert all(tensor.is_meta for tensor in (*network.parameters(), *network.buffers())), "it takes memory"


def test_published_data_need_not_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TAET_DATA", raising=False)
    run = override(protocols.taet("at"), {"data.name": "cifar10-lt", "data.imbalance_ratio": 50})
    assert facts(run.data) is None
    assert resolve(run, None).method.task.epochs == run.training.epochs
