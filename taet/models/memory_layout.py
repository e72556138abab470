"""Layers that a CPU cannot train in channels_last keep the ordinary memory layout.

The gradient of the weights of a 1x1 convolution with a stride, float32 and in channels_last, writes outside its memory
if it has fewer input channels than a vector register has floats: 8 with AVX2, 16 with AVX-512. See
https://github.com/uxlfoundation/oneDNN/issues/6035, open in November 2026.
"""

from __future__ import annotations

import platform

import torch
from torch import Tensor, nn


def guard(*networks: nn.Module) -> tuple[str, ...]:
    """Keep faulty layers in the ordinary layout, after `network.to(memory_format=...)`; return a line that names them.

    Their weights are stored in it, and a hook passes them their input in it. All other layers keep their numbers.
    """
    floats = 8 if torch.backends.cpu.get_cpu_capability() == "AVX2" else 16
    names = []
    for name, layer in (pair for network in networks for pair in network.named_modules()):
        strided = isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1) and layer.stride != (1, 1)
        on_cpu = strided and layer.weight.device.type == "cpu" and platform.machine() == "x86_64"
        if on_cpu and 1 < layer.in_channels < floats:
            names.append(name)
            for weight in layer.parameters():
                # Not `contiguous`: the strides of a 1x1 kernel satisfy both layouts, and PyTorch guesses from them.
                weight.data = weight.data.clone(memory_format=torch.contiguous_format)
            layer.register_forward_pre_hook(_ordinary_input)
    line = f"not in channels_last, where their gradient is unsafe on this CPU (oneDNN issue 6035): {', '.join(names)}"
    return (line,) if names else ()


def _ordinary_input(_: object, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (inputs[0].contiguous(), *inputs[1:])
