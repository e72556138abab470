"""The view that attacks run on: the model's function, folded; what it shares, and when there is
none."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from taet import models
from taet.errors import UserError
from taet.models.view import can_compile, make_view

SHAPE = (3, 16, 16)
compiles = pytest.mark.skipif(not can_compile(), reason="this PyTorch compiles no view")
EVERY = [  # one of each kind: the others differ in numbers only, and take long in float64
    pytest.param(
        name,
        marks=() if name in ("resnet8", "preact-resnet18", "vit-mini-p4") else pytest.mark.full,
    )
    for name in (
        "resnet8",
        "preact-resnet18",
        "vit-mini-p4",
        "resnet18",
        "resnet50",
        "wrn-28-10",
        "vit-small-p4",
    )
]


def settled(model: nn.Module) -> nn.Module:
    """The model with statistics and gains that differ from those it was made with."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                for value in (module.weight, module.bias, module.running_mean, module.running_var):
                    value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
    return model.eval()


def small(name: str = "resnet8") -> nn.Module:
    return settled(models.build(name, 10, SHAPE))


def images(number: int = 4) -> Tensor:
    return torch.rand(number, *SHAPE, generator=torch.Generator().manual_seed(1))


def gradient(model: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    (found,) = torch.autograd.grad(model(x).logsumexp(1).sum(), x)
    return found


@pytest.mark.parametrize("name", EVERY)
def test_the_view_of_every_model_gives_its_logits_and_gradients(name: str) -> None:
    model, x = small(name).double(), images(2).double()
    view = make_view(model, SHAPE)
    torch.testing.assert_close(view.module(x), model(x), rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(gradient(view.module, x), gradient(model, x), rtol=1e-9, atol=1e-11)


def test_in_bf16_the_view_is_as_near_to_float32_as_the_model_under_autocast() -> None:
    """Folded weights are rounded once, where the model's outputs are before they are normalised:
    errors of one size."""
    found: dict[str, list[float]] = {"view": [], "model": []}
    for seed in range(5):
        model = settled(models.build("resnet8", 10, SHAPE, seed=seed))
        view = make_view(model, SHAPE, torch.bfloat16)
        types = {name: parameter.dtype for name, parameter in view.module.named_parameters()}
        assert all(
            kind == torch.bfloat16 for name, kind in types.items() if name.startswith("body.")
        )
        assert types["head.weight"] == torch.float32
        with torch.no_grad():
            exact = model(images())
            with torch.autocast("cpu", torch.bfloat16):
                assert view.module(images()).dtype == torch.float32
                for name, module in (("view", view.module), ("model", model)):
                    error = (module(images()) - exact).abs().mean() / (
                        exact - exact.mean(1, keepdim=True)
                    ).abs().mean()
                    found[name].append(float(error))
    means = {name: sum(values) / len(values) for name, values in found.items()}
    assert 0 < means["view"] < 2 * means["model"] < 0.1


@compiles
def test_logits_of_a_compiled_view_stay_when_its_graph_runs_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def graph(forward: Callable[[Tensor], Tensor], **_: object) -> Callable[[Tensor], Tensor]:
        """Writes every result into the same memory, as a CUDA graph does."""
        result = torch.zeros(4, 10)
        return lambda x: result.copy_(forward(x))

    monkeypatch.setattr(torch, "compile", graph)
    view = make_view(small(), SHAPE)
    view.compile(batch_size=4)
    with torch.no_grad():
        first = view.module(images())
        expected = first.clone()
        assert not torch.equal(view.module(1 - images()), expected)
    assert torch.equal(first, expected)


@compiles
def test_a_compiled_view_fills_a_short_batch_up(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    def graph(forward: Callable[[Tensor], Tensor], **_: object) -> Callable[[Tensor], Tensor]:
        return lambda x: (sizes.append(len(x)), forward(x))[1]

    monkeypatch.setattr(torch, "compile", graph)
    view = make_view(small(), SHAPE)
    x = images().requires_grad_()
    expected = view.module(x[:3])
    (slope,) = torch.autograd.grad(expected.sum(), x)
    view.compile(batch_size=4)
    logits = view.module(x[:3])
    assert sizes == [4]
    torch.testing.assert_close(logits, expected)
    torch.testing.assert_close(torch.autograd.grad(logits.sum(), x)[0], slope)
    view.stop_compiling()
    view.module(x[:3])
    assert sizes == [4]


@pytest.mark.full
@compiles
def test_one_process_compiles_any_number_of_views(monkeypatch: pytest.MonkeyPatch) -> None:
    compile_, views = torch.compile, 9  # torch stops at 8 graphs of a function

    def capture(forward: Callable[[Tensor], Tensor], **_: object) -> Callable[[Tensor], Tensor]:
        return compile_(forward, backend="eager", dynamic=False)

    monkeypatch.setattr(torch, "compile", capture)
    counters.clear()
    for number in range(views):
        view = make_view(small(), SHAPE)
        view.compile(batch_size=4 + number)
        view.module(images())
    torch.compiler.reset()
    assert counters["stats"]["unique_graphs"] == views


def test_a_pytorch_that_would_round_the_gradients_of_a_compiled_view_compiles_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("taet.models.view.can_compile", lambda: False)
    with pytest.raises(UserError, match="would round the gradients of a compiled network"):
        make_view(small(), SHAPE).compile(batch_size=4)


def test_a_step_of_the_model_reaches_the_view() -> None:
    model, x = small(), images()
    view = make_view(model, SHAPE)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.train()(x).square().mean().backward()
    optimizer.step()
    expected = model.eval()(x).detach()
    assert not torch.allclose(view.module(x), expected, rtol=1e-3)
    view.refresh()
    torch.testing.assert_close(view.module(x), expected, rtol=1e-5, atol=1e-5)
    own = {tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    shared = dict(view.module.named_parameters()) | dict(view.module.named_buffers())
    assert {shared[name].data_ptr() for name in ("head.weight", "mean")} <= own
    assert not any(parameter.requires_grad for parameter in view.module.parameters())


def test_making_a_view_leaves_the_model_and_the_random_state_alone() -> None:
    model = small().train()
    before, state = (
        {name: value.clone() for name, value in model.state_dict().items()},
        torch.get_rng_state(),
    )
    assert make_view(model, SHAPE) is not None
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


class Activated(nn.BatchNorm2d):
    """A normalisation with its activation, as timm has it."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


class Twice(nn.Module):
    """Convolutions and normalisations in every arrangement that must not be folded."""

    def __init__(self, habit: str) -> None:
        super().__init__()
        self.habit = habit
        self.first, self.second = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        kind = Activated if habit == "with activation" else nn.BatchNorm2d
        self.norm = kind(3, track_running_stats=habit != "batch statistics")
        self.rest = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 10))

    def forward(self, x: Tensor) -> Tensor:
        made = self.first(x)
        out = self.norm(made.relu() if self.habit == "something between" else made)
        if self.habit == "used beside":
            out = out + made
        elif self.habit == "normalised twice":
            out = out + self.norm(self.second(x))
        elif self.habit == "convolved twice":
            out = out + self.first(2 * x)
        logits: Tensor = self.rest(out)
        return logits


@pytest.mark.parametrize(
    "habit",
    [
        "used beside",
        "normalised twice",
        "convolved twice",
        "something between",
        "batch statistics",
        "with activation",
        "plain",
    ],
)
def test_only_a_convolution_that_goes_into_one_normalization_and_nowhere_else_is_folded(
    habit: str,
) -> None:
    model = Twice(habit).eval()
    if habit != "batch statistics":
        settled(model)
    view = make_view(model, SHAPE)
    torch.testing.assert_close(view.module(images()), model(images()), rtol=1e-5, atol=1e-5)
    folded = not any(isinstance(module, nn.BatchNorm2d) for module in view.module.modules())
    assert folded == (habit == "plain")


class Reads(nn.Module):
    """A network that reads the type of its normalisation: without it, it gives something else."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, 10, 16), nn.BatchNorm2d(10)

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm(self.convolution(x)).flatten(1)
        return out * 2 if isinstance(self.norm, nn.BatchNorm2d) else out


class Unlike(nn.Module):
    """A network that no copy can be made of."""

    def __deepcopy__(self, _: object) -> nn.Module:
        raise TypeError("no")


class KeptOut(nn.Linear):
    """A layer of which autocast is kept out, so that its weights must stay in float32."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return super().forward(x.float().flatten(1))


@pytest.mark.parametrize(
    "model",
    [
        Reads(),
        Unlike(),
        models.Classifier(nn.Sequential(KeptOut(768, 4)), nn.Linear(4, 10), 10, channels=3),
    ],
)
def test_a_view_that_would_not_be_the_model_is_not_made(
    model: nn.Module, caplog: pytest.LogCaptureFixture
) -> None:
    assert (
        make_view(
            model.eval(), SHAPE, torch.bfloat16 if isinstance(model, models.Classifier) else None
        )
        is None
    )
    assert "attacks run on the model itself" in caplog.text
