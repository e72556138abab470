"""The speed of a training step relative to the peak of the device, and the share of time of each kind of operation.

The peak is measured: the fastest of some products of square matrices and of the network's convolutions, and the
bandwidth of a copy larger than the caches. It is compared with the floating-point operations per second of a step of
PGD adversarial training (convolutions and matrix products, forwards and backwards), and of each convolution alone.

    python benchmarks/roofline.py                                        ResNet-18, a few minutes on two cores
    python benchmarks/roofline.py --device cuda --batch-size 512
"""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from statistics import median
from typing import Any, NamedTuple

import torch
from common import arguments, record, seconds
from profiles import kinds, profiled
from steps import Steps
from torch import Tensor, nn

from taet.training.environment import keep_freed_memory, resolve_device

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
SQUARES = (1024, 2048, 4096)  # side of the matrices
COPIED = 2**28  # bytes: far more than a cache holds
COUNTS = (100,) * 10


class Shape(NamedTuple):
    """What determines the work of a convolution: channels, kernel, stride, padding, side of its input."""

    inputs: int
    outputs: int
    kernel: int
    stride: int
    padding: int
    side: int

    def flops(self, batch: int) -> int:
        """Floating-point operations of one pass, 2 per multiplication and addition."""
        out = (self.side + 2 * self.padding - self.kernel) // self.stride + 1
        return 2 * batch * self.inputs * self.outputs * self.kernel**2 * out**2

    def __str__(self) -> str:
        stride = f" /{self.stride}" if self.stride > 1 else ""
        return f"{self.kernel}x{self.kernel}{stride}, {self.inputs} to {self.outputs}, {self.side} x {self.side}"


def main() -> int:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet18", help="network (resnet18)")
    parser.add_argument("--batch-size", type=int, default=128, help="images per step (128)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (cpu)")
    arguments(parser, out="roofline.json", rounds=3)
    given = parser.parse_args()
    device = resolve_device(given.device)
    torch.set_num_threads(given.threads)
    keep_freed_memory(device)
    load = os.getloadavg()
    precisions = {}
    for name, dtype in DTYPES.items():
        steps = Steps(
            "at", counts=COUNTS, model=given.model, batch_size=given.batch_size, bf16=name == "bf16", device=device
        )

        def best(work: Callable[[], object]) -> float:
            work()
            return min(seconds(work, device) for _ in range(given.rounds))

        layers = list(convolutions(steps, given.batch_size, dtype, best))
        products = {f"{side}": 2 * side**3 / best(product(side, dtype, device)) / 1e9 for side in SQUARES}
        peak = max(*products.values(), *(layer["forward"] for layer in layers))
        steps.run()
        took = median(seconds(steps.run, device) for _ in range(given.rounds))
        flops = steps.flops()
        achieved = flops / took / 1e9
        precisions[name] = {
            "products": {side: round(value, 1) for side, value in products.items()},
            "peak": round(peak, 1),
            "seconds_per_step": round(took, 4),
            "flops_per_step": flops,
            "achieved": round(achieved, 1),
            "fraction": round(achieved / peak, 3),
            "layers": layers,
            "kinds": kinds(profiled(steps.run, device).rows),
        }
    place = torch.empty(COPIED // 4, device=device)
    values = torch.ones_like(place)
    copy = min(seconds(lambda: place.copy_(values), device) for _ in range(1 + given.rounds))
    result = record(
        given.out,
        device,
        {},
        load,
        model=given.model,
        batch_size=given.batch_size,
        threads=given.threads,
        copy_gb_per_second=round(2 * COPIED / copy / 1e9, 1),
        precisions=precisions,
    )
    show(result)
    return 0


def product(side: int, dtype: torch.dtype, device: torch.device) -> Callable[[], Tensor]:
    """Multiply two square matrices."""
    a, b = torch.randn(2, side, side, device=device).to(dtype)
    return lambda: a @ b


def convolutions(
    steps: Steps, batch: int, dtype: torch.dtype, best: Callable[[Callable[[], object]], float]
) -> Iterator[dict[str, Any]]:
    """Return for each kind of convolution in the network its number and the 10^9 operations/s of its three passes.

    They are those for the output, for the gradient by the input and for that by the weights.
    """
    for shape, number in shapes(steps.model, steps.batch.x).items():
        x = torch.randn(batch, shape.inputs, shape.side, shape.side, device=steps.device).to(dtype)
        weight = torch.randn(shape.outputs, shape.inputs, shape.kernel, shape.kernel, device=steps.device).to(dtype)
        x, weight = (value.contiguous(memory_format=torch.channels_last) for value in (x, weight))
        like: list[Any] = [[shape.stride] * 2, [shape.padding] * 2, [1, 1], False, [0, 0], 1]
        gradient = torch.ones_like(torch.ops.aten.convolution(x, weight, None, *like))

        backward = partial(torch.ops.aten.convolution_backward, gradient, x, weight, None, *like)
        passes: dict[str, Callable[[], object]] = {
            "forward": partial(torch.ops.aten.convolution, x, weight, None, *like),
            "input": partial(backward, (True, False, False)),
            "weights": partial(backward, (False, True, False)),
        }
        speeds = {name: round(shape.flops(batch) / best(work) / 1e9, 1) for name, work in passes.items()}
        yield {"layer": str(shape), "number": number, "flops": shape.flops(batch), **speeds}


def shapes(model: nn.Module, x: Tensor) -> Counter[Shape]:
    """Count the convolutions that images pass, by shape."""
    found: Counter[Shape] = Counter()

    def after(layer: nn.Conv2d, given: tuple[Tensor, ...], _: Tensor) -> None:
        kernel, stride, padding = layer.kernel_size[0], layer.stride[0], layer.padding[0]
        assert isinstance(padding, int)
        shape = Shape(layer.in_channels, layer.out_channels, kernel, stride, padding, given[0].shape[-1])
        found[shape] += 1

    handles = [layer.register_forward_hook(after) for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    with torch.no_grad():
        model.eval()(x[:1])
    for handle in handles:
        handle.remove()
    return found


def show(result: Mapping[str, Any]) -> None:
    """Print the peaks, the speed of a step, and the layers."""
    print(f"{result['environment']['device']}; a copy moves {result['copy_gb_per_second']} GB a second")
    for name, row in result["precisions"].items():
        print(f"{name}: {row['achieved']} of {row['peak']} GFLOP/s, {100 * row['fraction']:.0f} %")
        for layer in row["layers"]:
            speeds = "".join(f"{layer[way]:9.1f}" for way in ("forward", "input", "weights"))
            print(f"  {layer['number']} x {layer['layer']:36}{speeds}")
        print("  " + ", ".join(f"{kind} {100 * share:.1f} %" for kind, share in row["kinds"].items()))


if __name__ == "__main__":
    sys.exit(main())
