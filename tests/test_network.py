"""A network without values, or through which no gradient passes, is refused wherever it is used."""

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import nn

import taet
from taet.attacks import cw_l2, pgd
from tests.calls import one_line

IMAGES, LABELS = torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(0)), torch.arange(6)
Use = Callable[[nn.Module], object]
USES: dict[str, Use] = {
    "evaluate": lambda model: taet.evaluate(model, IMAGES, LABELS % 3, attacks=["clean"]),
    "check": lambda model: taet.evaluation.check(model, IMAGES, LABELS % 3, attacks=["clean"]),
    "pgd": lambda model: pgd(model, IMAGES, LABELS % 3, eps=0.1, step_size=0.1, steps=1),
    "cw_l2": lambda model: cw_l2(model, IMAGES, LABELS % 3, steps=2),
}
each_use = pytest.mark.parametrize("use", USES.values(), ids=USES.keys())


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)).eval()


@each_use
def test_quantised_layers_are_named_and_refused(use: Use) -> None:
    with warnings.catch_warnings(action="ignore"):
        model = torch.ao.quantization.quantize_dynamic(network(), {nn.Linear}, torch.qint8)
    with one_line(r"got quantised layers \(3\), .*allowed: the network before it was quantised"):
        use(model)


@each_use
def test_a_lazy_layer_is_refused_before_its_first_batch(use: Use) -> None:
    model = nn.Sequential(nn.Flatten(), nn.LazyLinear(3)).eval()
    with one_line("got 1.weight without a shape; allowed: a lazy network after its first batch"):
        use(model)


@each_use
def test_weights_of_inference_mode_are_refused(use: Use) -> None:
    with torch.inference_mode():
        model = network()
    with one_line(r"got 0.weight made in torch.inference_mode.*allowed: copy.deepcopy"):
        use(model)


@pytest.mark.parametrize("use", [USES["evaluate"], USES["check"]], ids=["evaluate", "check"])
def test_layers_that_observe_their_inputs_are_refused_and_left_as_they_were(use: Use) -> None:
    with warnings.catch_warnings(action="ignore"):
        weights = torch.ao.quantization.PerChannelMinMaxObserver
        observed = torch.ao.quantization.FakeQuantize.with_args(observer=weights)
        model = nn.Sequential(observed(), network()).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with warnings.catch_warnings(action="ignore"), one_line("changes during a forward pass"):
        use(model)
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
