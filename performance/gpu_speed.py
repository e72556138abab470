"""Ten minutes on a GPU: which way of attacking, training, loading and evaluating is the fastest.

    python performance/gpu_speed.py                         on the GPU
    python performance/gpu_speed.py --device cpu --tiny     every point at a tiny size, in a minute

Each point says images a second, the share of the device's matrix rate that this is (of one large
bf16 product, the first point), the ratio beside the competent loop of plain.py with a compiled
network, and whether the loss is that of the plain way. The most promising points come first. The
results are written after every point, a call ends after --minutes, and points that are done are
not repeated on the same device at the same commit, so that the next call goes on.

On a CPU, and with --tiny, graphs are captured as on a GPU but no code is generated for them.
"""

import argparse
import contextlib
import copy
import functools
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import plain
import torch
from common import RESULTS, earlier_points, seconds, wait
from gpu_smoke import begun, epoch, settings
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode
from training import dataset

import taet
from taet import models
from taet.attacks import pgd
from taet.attacks.arithmetic import SearchPrecision
from taet.attacks.ball import frozen
from taet.attacks.noise import GAUSSIAN_SCALE
from taet.data.augmentation import as_tensor, to_unit
from taet.data.loader import Loader
from taet.errors import UserError
from taet.files import write_json
from taet.machine import environment, resolve_device
from taet.models.view import make_view
from taet.settings import Threat, override

EPS = 8 / 255
ATTACKS = {  # the attack of protocol taet, and that of recipe fast
    "PGD-10": Threat(eps=EPS, steps=10, step_size=2 / 255),
    "fast": Threat(eps=EPS, steps=2, step_size=0.75 * EPS),
}
LEARNING_RATE = 0.01  # for batches of 128, in proportion for others
LOSS_TOLERANCE = 0.05  # relative difference to the loss of the plain way after the same steps
CLASSES = 10

Mode = Literal["reduce-overhead", "max-autotune-no-cudagraphs"]
Batched = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Takes images, labels and start noise; returns adversarial images."""


class Size(NamedTuple):
    """How much is measured, and whether code is generated for captured graphs."""

    models: tuple[str, ...] = ("resnet18", "resnet8")
    batch: int = 128
    batches: tuple[int, ...] = (256, 512, 1024)
    steps: int = 20
    """Timed steps of a training; a fifth of them is timed for an attack."""
    matrix: int = 8192
    loaded: int = 20_000
    trained: int = 1280
    evaluated: int = 200
    evaluation_batches: tuple[int, ...] = (256, 2048)
    generate_code: bool = True


TINY = Size(("resnet8",), 8, (16,), 2, 128, 64, 64, 10, (5, 10), generate_code=False)


@dataclass
class Setup:
    """A network, one batch on the device, and the attack: what every way of a point works on."""

    device: torch.device
    size: Size
    model_name: str = "resnet18"
    attack: str = "PGD-10"
    batch: int = 128
    channels_last: bool = True
    model: nn.Module = field(init=False)
    x: Tensor = field(init=False)
    y: Tensor = field(init=False)
    noise: Tensor = field(init=False)

    def __post_init__(self) -> None:
        data = dataset(self.batch).train
        images = as_tensor(data.images).to(self.device)
        self.x = to_unit(images, channels_last=self.channels_last)
        self.y = torch.from_numpy(data.labels).to(self.device)
        draws = torch.Generator(self.device).manual_seed(0)
        noise = torch.empty(self.x.shape, device=self.device).normal_(generator=draws)
        self.noise = torch.empty_like(self.x).copy_(GAUSSIAN_SCALE * noise)
        model = models.build(self.model_name, CLASSES, self.x.shape[1:], seed=0).to(self.device)
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        self.model = model.to(memory_format=layout)

    @property
    def threat(self) -> Threat:
        return ATTACKS[self.attack]

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16)

    def gigaflops(self, passes: int) -> float:
        """Return the operations of `passes` forward passes of an image, in 10^9."""
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            self.model.eval()(self.x[:1])
        return passes * counter.get_total_flops() / 1e9


def captured(function: Callable[..., Any], size: Size, mode: Mode) -> Callable[..., Any]:
    """Compile a function into one graph."""
    if size.generate_code:
        return torch.compile(function, mode=mode, dynamic=False, fullgraph=True)
    return torch.compile(function, backend="eager", dynamic=False, fullgraph=True)


def recorded(function: Callable[..., Tensor], *example: Tensor) -> Callable[..., Tensor]:
    """Record all kernels that `function` launches as one CUDA graph, which is called in its place.

    Inputs have the shapes of `example`, and each call overwrites the result of the one before. The
    function is called four times. Without a GPU it stays as it is.
    """
    if example[0].device.type != "cuda":
        return function
    inputs = [value.clone() for value in example]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            function(*inputs)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = function(*inputs)

    def replay(*values: Tensor) -> Tensor:
        for held, value in zip(inputs, values, strict=True):
            held.copy_(value)
        graph.replay()
        return result

    return replay


# -- attacks


def pgd_step(
    module: nn.Module, threat: Threat, x_adv: Tensor, y: Tensor, low: Tensor, high: Tensor
) -> Tensor:
    """Return the images after one step of PGD; the gradient is taken inside, so that one graph
    holds it."""
    x_adv = x_adv.detach().requires_grad_()
    total = functional.cross_entropy(module(x_adv), y, reduction="sum")
    with torch.autocast(x_adv.device.type, enabled=False):
        (gradient,) = torch.autograd.grad(total, x_adv)
    return (x_adv.detach() + threat.step_size * gradient.sign()).clamp(low, high)


def ascend(
    step: Callable[..., Tensor], threat: Threat, x: Tensor, y: Tensor, noise: Tensor
) -> Tensor:
    """Return the images of `taet.attacks.pgd` from x + noise, by `step`: without any check."""
    low, high = (x - threat.eps).clamp(0, 1), (x + threat.eps).clamp(0, 1)
    x_adv = x + noise
    for _ in range(threat.steps):
        x_adv = step(x_adv, y, low, high)
    return x_adv.detach().clamp(low, high)


def plain_attack(setup: Setup, module: nn.Module) -> Batched:
    """Return the package's attack on `module`."""
    threat = setup.threat

    def attack(x: Tensor, y: Tensor, noise: Tensor) -> Tensor:
        sizes = {"eps": threat.eps, "steps": threat.steps, "step_size": threat.step_size}
        return pgd(module, x, y, start="gaussian", start_noise=noise, checked=True, **sizes)

    return attack


def attack_by(way: str, setup: Setup) -> Batched:
    """Return an attack on a view of the network, which it brings up to date before each batch."""
    from torch._dynamo import config as capture
    from torch._functorch import config as backward

    torch.compiler.reset()
    backward.backward_pass_autocast = "off"
    capture.trace_autograd_ops = True
    view = make_view(setup.model, tuple(setup.x.shape[1:]), torch.bfloat16)
    assert view is not None
    module = view.module
    threat, step = setup.threat, functools.partial(pgd_step, module, setup.threat)
    if way == "whole loop":
        attack = captured(functools.partial(ascend, step, threat), setup.size, "reduce-overhead")
    elif way == "recorded loop":
        compiled_step = captured(step, setup.size, "max-autotune-no-cudagraphs")
        batch = setup.x, setup.y, setup.noise
        with frozen(module), setup.autocast():
            attack = recorded(functools.partial(ascend, compiled_step, threat), *batch)
    else:
        if way != "plain":
            mode: Mode = "reduce-overhead"
            if way == "view without CUDA graphs":
                mode = "max-autotune-no-cudagraphs"
            module.forward = captured(module.forward, setup.size, mode)
        attack = plain_attack(setup, module)

    def current(x: Tensor, y: Tensor, noise: Tensor) -> Tensor:
        view.refresh()
        with frozen(module), setup.autocast():
            x_adv = attack(x, y, noise)
        torch.clear_autocast_cache()
        return x_adv.clone()  # the next call of a CUDA graph overwrites its outputs

    return current


def attack_point(way: str, setup: Setup) -> dict[str, Any]:
    """Measure the attack alone, and how many of its pixels are those of the plain way."""
    attack, batch = attack_by(way, setup), (setup.x, setup.y, setup.noise)
    rounds = max(setup.size.steps // 5, 1)
    first = seconds(lambda: [attack(*batch) for _ in range(3)], setup.device)
    took = statistics.median(seconds(lambda: attack(*batch), setup.device) for _ in range(rounds))
    x_adv = attack(*batch)
    expected = attack_by("plain", setup)(*batch)
    same = ((x_adv - expected).abs() < 1e-6).float().mean().item()
    passes = 2 * setup.threat.steps
    return rated(setup, passes, setup.batch / took) | {
        "first_seconds": round(first, 1),
        "same_pixels": round(same, 4),
    }


# -- training steps


def sgd(setup: Setup, **options: Any) -> torch.optim.SGD:
    """Return the optimiser, with a rate in proportion to the batch."""
    rate = LEARNING_RATE * setup.batch / setup.size.batch
    parameters = setup.model.parameters()
    return torch.optim.SGD(parameters, rate, momentum=0.9, weight_decay=5e-4, **options)


def update_by(way: str, setup: Setup) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the function that updates the weights on a batch and returns the loss."""
    model = setup.model.train()
    options = {"foreach": True} if way == "foreach SGD" else {"fused": True}
    optimizer = sgd(setup, **options)
    forward: Callable[[Tensor], Tensor] = model
    if way == "compiled":
        forward = captured(model.forward, setup.size, "reduce-overhead")

    def update(x: Tensor, y: Tensor) -> Tensor:
        model.train()
        with setup.autocast():
            loss = functional.cross_entropy(forward(x), y)
        torch.clear_autocast_cache()
        optimizer.zero_grad(set_to_none=way != "one CUDA graph")
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return loss.detach()

    if way != "one CUDA graph":
        return update
    before = {name: value.clone() for name, value in model.state_dict().items()}
    graph = recorded(update, setup.x, setup.y)
    model.load_state_dict(before)  # recording has trained
    for state in optimizer.state.values():
        state["momentum_buffer"].zero_()
    return lambda x, y: graph(x, y).clone()


class Trained(NamedTuple):
    """What some steps of training took, and the mean loss of the last of them."""

    first_seconds: float
    images_per_second: float
    loss: float


def trained_by(attack_way: str, update_way: str, setup: Setup) -> Trained:
    """Train on the batch of `setup`: first three steps with compiling, then those that count."""
    begun_at = time.perf_counter()
    attack, update = attack_by(attack_way, setup), update_by(update_way, setup)

    def train(steps: int) -> list[Tensor]:
        x, y, noise = setup.x, setup.y, setup.noise
        return [update(attack(x, y, noise), y).clone() for _ in range(steps)]

    train(3)
    wait(setup.device)
    first = time.perf_counter() - begun_at
    losses: list[Tensor] = []
    took = seconds(lambda: losses.extend(train(setup.size.steps)), setup.device)
    rate = setup.batch * setup.size.steps / took
    return Trained(first, rate, torch.stack(losses).mean().item())


def step_point(attack_way: str, update_way: str, setup: Setup) -> dict[str, Any]:
    """Measure whole steps, attack and update, and compare the loss with that of the plain way."""
    expected = trained_by("plain", "plain", copy.deepcopy(setup)).loss
    found = trained_by(attack_way, update_way, setup)
    return rated(setup, 3 + 2 * setup.threat.steps, found.images_per_second) | {
        "first_seconds": round(found.first_seconds, 1),
        "loss": round(found.loss, 4),
        "plain_loss": round(expected, 4),
        "same_loss": abs(found.loss - expected) <= LOSS_TOLERANCE * expected,
    }


def peer_point(setup: Setup) -> dict[str, Any]:
    """Measure the competent loop of plain.py with a network that is compiled."""
    data = dataset(setup.batch * setup.size.steps).train
    images = torch.from_numpy(np.asarray(data.images)).to(setup.device)
    labels = torch.from_numpy(data.labels).to(setup.device)
    model = setup.model
    if setup.size.generate_code:
        model = torch.compile(model)  # type: ignore[assignment]
    optimizer = sgd(setup, fused=True)

    def competent() -> float:
        return plain.competent(model, optimizer, images, labels, setup.batch, setup.threat)

    first = seconds(competent, setup.device)
    took = seconds(competent, setup.device)
    rate = len(labels) / took
    return rated(setup, 3 + 2 * setup.threat.steps, rate) | {"first_seconds": round(first, 1)}


def trainer_point(compiled: bool, setup: Setup) -> dict[str, Any]:
    """Measure an epoch of `taet train`, with its loader and its counts."""
    run = settings(
        str(setup.device),
        precision="bf16",
        batch_size=setup.batch,
        epochs=3,
        lr=LEARNING_RATE,
        compile=compiled and setup.size.generate_code,
    )
    run = override(run, {"model.name": setup.model_name, "threat.steps": setup.threat.steps})
    images = setup.batch * setup.size.steps
    with begun(run, images) as (plan, state, monitor):
        first = seconds(lambda: epoch(plan, state, monitor), setup.device)
        took = seconds(lambda: epoch(plan, state, monitor), setup.device)
    rate = images / took
    return rated(setup, 3 + 2 * setup.threat.steps, rate) | {"first_seconds": round(first, 1)}


# -- the limit, the loader, evaluation


def matrix_point(device: torch.device, size: Size) -> dict[str, Any]:
    """Measure the rate of one large bf16 product."""
    a, b = (torch.randn(size.matrix, size.matrix, device=device).bfloat16() for _ in range(2))
    for _ in range(3):
        a @ b
    took = statistics.median(seconds(lambda: a @ b, device) for _ in range(10))
    return {"teraflops": round(2 * size.matrix**3 / took / 1e12, 2)}


def loader_point(augment: str, setup: Setup) -> dict[str, Any]:
    """Measure the loader alone, with images on the device."""
    run = settings(str(setup.device), augment=augment, batch_size=setup.batch)
    data = dataset(setup.size.loaded).train
    loader = Loader(data, run.training, seed=0, mirror=True, device=setup.device)

    def load() -> None:
        for _ in loader.epoch(0):
            pass

    load()
    return {"images_per_second": round(len(data) / seconds(load, setup.device), 1)}


@functools.cache
def trained_model(device: torch.device, size: Size) -> nn.Module:
    """Return a network after three epochs, so that attacks do not succeed at once."""
    run = override(settings(str(device), epochs=3), {"model.name": size.models[0]})
    with begun(run, size.trained) as (plan, state, monitor):
        for _ in range(3):
            epoch(plan, state, monitor)
    return state.model.eval()


def evaluation_point(
    attack: str, precision: SearchPrecision, batch: int, device: torch.device, size: Size
) -> dict[str, Any]:
    """Measure an attack of an evaluation; all precisions must find as many images robust."""
    data = dataset(size.evaluated).train
    named = f"{attack}:precision={precision}"
    card = taet.evaluate(
        trained_model(device, size),
        np.asarray(data.images),
        data.labels,
        ["clean", named],
        device=device,
        probe=False,
        batch_size=batch,
    )
    (column,) = [column for column in card.columns if column.norm is not None]
    rate = size.evaluated / column.seconds
    return {
        "images_per_second": round(rate, 1),
        "seconds": round(column.seconds, 2),
        "images": size.evaluated,
        "robust": int(column.correct.sum()),
    }


# -- all points, in order of promise


def rated(setup: Setup, passes: int, rate: float) -> dict[str, Any]:
    """Return the images per second of a way, and the operations of each."""
    return {
        "images_per_second": round(rate, 1),
        "gigaflops_per_image": round(setup.gigaflops(passes), 3),
    }


STEPS = (  # ways of attacking and of updating, the most promising first
    ("recorded loop", "compiled"),
    ("recorded loop", "one CUDA graph"),
    ("view", "compiled"),
    ("view", "plain"),
    ("plain", "plain"),
    ("plain", "foreach SGD"),
)
# compiling the whole loop takes as long as all its steps together: last
ATTACK_WAYS = ("recorded loop", "view", "view without CUDA graphs", "plain", "whole loop")
Point = Callable[[], dict[str, Any]]


def all_points(device: torch.device, size: Size) -> Iterator[tuple[str, Point]]:
    """Yield the name of each point and the function that measures it."""
    first, others = size.models[0], size.models[1:]
    yield "matrix product", functools.partial(matrix_point, device, size)

    def at(point: Callable[..., dict[str, Any]], *ways: object, **changes: Any) -> Point:
        given = {"model_name": first, "batch": size.batch, **changes}
        return lambda: point(*ways, Setup(device, size, **given))

    yield f"{peer(first, 'PGD-10')}", at(peer_point)
    for attack, update in STEPS:
        yield (
            f"step {first} PGD-10: attack {attack}, update {update}",
            at(step_point, attack, update),
        )
    for compiled in (True, False):
        name = f"taet train {first} PGD-10{', compiled view' * compiled}"
        yield name, at(trainer_point, compiled)
    for batch in size.batches:
        name = f"step {first} PGD-10, batch {batch}: attack recorded loop, update compiled"
        yield name, at(step_point, "recorded loop", "compiled", batch=batch)
    for way in ATTACK_WAYS:
        for layout in (True, False):
            name = f"attack {first} PGD-10, {'channels_last' if layout else 'NCHW'}: {way}"
            yield name, at(attack_point, way, channels_last=layout)
    yield from evaluation_points(device, size)
    for augment in ("none", "crop", "crop-flip"):
        yield f"loader: {augment}", at(loader_point, augment)
    for model in (first, *others):
        for attack in ATTACKS:
            if (model, attack) == (first, "PGD-10"):
                continue
            changes = {"model_name": model, "attack": attack}
            yield peer(model, attack), at(peer_point, **changes)
            for attack_way, update in (
                ("recorded loop", "compiled"),
                ("whole loop", "compiled"),
                ("plain", "plain"),
            ):
                name = f"step {model} {attack}: attack {attack_way}, update {update}"
                yield name, at(step_point, attack_way, update, **changes)


def evaluation_points(device: torch.device, size: Size) -> Iterator[tuple[str, Point]]:
    """Yield the points of evaluation: PGD-20 by precision and batch, then the suites."""
    precisions: tuple[SearchPrecision, ...] = ("bf16", "tf32", "float32")
    if device.type != "cuda":
        precisions = ("bf16", "float32")
    cases = [("pgd-20", kind, size.evaluation_batches[-1]) for kind in precisions]
    cases += [("pgd-20", "bf16", batch) for batch in size.evaluation_batches[:-1]]
    cases += [("quick", "bf16", size.evaluation_batches[-1])]
    cases += [("autoattack", kind, size.evaluation_batches[-1]) for kind in precisions[:2]]
    for attack, kind, batch in cases:
        name = f"evaluation {attack}, {kind}, batch {batch}"
        yield name, functools.partial(evaluation_point, attack, kind, batch, device, size)


def peer(model: str, attack: str) -> str:
    """Return the name of the point of the competent loop."""
    return f"competent loop, compiled: {model} {attack}"


def line(name: str, points: dict[str, dict[str, Any]]) -> str:
    """Return what a point found, beside the limit and the competent loop where those are known."""
    point = points[name]
    if "error" in point:
        return f"{name}: FAILED, {point['error']}"
    if "teraflops" in point:
        return f"{name}: {point['teraflops']:,} TFLOP/s"
    rate = point["images_per_second"]
    words = [f"{name}: {rate:,} images a second"]
    limit = points.get("matrix product", {}).get("teraflops")
    if limit and "gigaflops_per_image" in point:
        share = rate * point["gigaflops_per_image"] / (1000 * limit)
        words.append(f"{100 * share:.1f} % of the matrix rate")
    for other, beside in points.items():
        its_case = other.removeprefix("competent loop, compiled: ")
        is_peer = its_case != other and name.startswith(
            (f"step {its_case}", f"taet train {its_case}")
        )
        if is_peer and "images_per_second" in beside:
            words.append(f"{rate / beside['images_per_second']:.2f} times the competent loop")
    if "robust" in point:
        words.append(f"{point['robust']} of {point['images']} robust, {point['seconds']} s")
    if "same_loss" in point:
        same = "as" if point["same_loss"] else "NOT as"
        words.append(f"loss {point['loss']} {same} plain, {point['plain_loss']}")
    if "same_pixels" in point:
        words.append(f"{100 * point['same_pixels']:.1f} % of the pixels as plain")
    return ", ".join(words)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu (cuda)")
    parser.add_argument("--tiny", action="store_true", help="every point at a tiny size")
    parser.add_argument(
        "--minutes", type=float, default=9.0, help="no point begins after these minutes (9)"
    )
    parser.add_argument("--out", type=Path, default=RESULTS / "gpu-speed.json", help="results")
    given = parser.parse_args()
    try:
        device = resolve_device(given.device)
    except UserError as error:
        parser.error(str(error))
    size = TINY if given.tiny else Size(generate_code=device.type == "cuda")
    done = earlier_points(given.out, {**environment(device), "tiny": given.tiny})
    points: dict[str, dict[str, Any]] = done["points"]
    torch.backends.cudnn.benchmark = True  # as in training
    begun_at, left = time.monotonic(), 0
    for name, measure in all_points(device, size):
        if name not in points:
            if time.monotonic() - begun_at > 60 * given.minutes:
                left += 1
                continue
            points[name] = measured(measure)
            given.out.parent.mkdir(parents=True, exist_ok=True)
            write_json(given.out, done)
        print(line(name, points), flush=True)
    if left:
        print(f"{left} points are left: call the command again")
    failed = any("error" in point or point.get("same_loss") is False for point in points.values())
    return int(failed)


def measured(measure: Point) -> dict[str, Any]:
    """Return what a point found, or its error: the others go on."""
    try:
        return measure()
    except Exception as error:
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}"[:500]}
    finally:
        torch.compiler.reset()
        with contextlib.suppress(AssertionError, RuntimeError):  # torch without CUDA
            torch.cuda.empty_cache()


if __name__ == "__main__":
    sys.exit(main())
