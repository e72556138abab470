"""The memory layout of convolutions: channels_last, except where the CPU library writes outside its memory.

oneDNN issue 6035 (https://github.com/uxlfoundation/oneDNN/issues/6035, open in November 2026; PyTorch 2.15 holds oneDNN
3.13.3): the gradient of the weights of a 1x1 convolution with a stride, in channels_last, copies its input into a
workspace. Offsets in it are multiples of the vector width (8 floats with AVX2, 16 with AVX-512), but its size follows
the true number of input channels. With fewer channels than the vector width it writes beyond the end. The result is
"free(): invalid pointer", a segmentation fault, a hang, or, with several threads, a wrong gradient without a message.

Conditions, each tried with guarded allocations: x86; float32 (float64, bfloat16 and float16 are sound); groups 1; no
padding; 2 to 7 input channels with AVX2, 2 to 15 with AVX-512; a large enough image or batch (AVX2: from 8 x 8 pixels
and 2 images; AVX-512: from 56 x 56); the weights need a gradient. Attacks on frozen weights are sound. To reproduce:

    ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 python -c "
    import torch
    layer = torch.nn.Conv2d(4, 8, 1, stride=2)
    for _ in range(20):
        x = torch.rand(8, 4, 32, 32).contiguous(memory_format=torch.channels_last)
        layer(x).sum().backward()"
"""

from __future__ import annotations

import platform
from typing import Any

import torch
from torch import Tensor, nn


def guard(*networks: nn.Module) -> tuple[str, ...]:
    """Keep layers that this CPU cannot train in channels_last in the ordinary layout; return a line that names them.

    Their weights are stored in the ordinary layout, and a hook passes them their input in it. All other layers and
    their numbers stay as they are. Call it after `network.to(memory_format=...)`; calling it twice changes nothing.
    Convolutions that a network calls as functions, without a layer, are not found.
    """
    guarded = [(name, layer) for network in networks for name, layer in network.named_modules() if _is_faulty(layer)]
    for _, layer in guarded:
        for weight in layer.parameters():
            # Not `contiguous`: the strides of a 1x1 kernel satisfy both layouts, and PyTorch guesses from them.
            weight.data = weight.data.clone(memory_format=torch.contiguous_format)
        if _ordinary_input not in layer._forward_pre_hooks.values():
            layer.register_forward_pre_hook(_ordinary_input)
    names = ", ".join(name for name, _ in guarded)
    line = f"not in channels_last, where their gradient is unsafe on this CPU (oneDNN issue 6035): {names}"
    return (line,) if guarded else ()


def _is_faulty(layer: nn.Module) -> bool:
    if not isinstance(layer, nn.Conv2d) or layer.kernel_size != (1, 1) or layer.stride == (1, 1):
        return False
    if layer.weight.device.type != "cpu":
        return False
    return layer.groups == 1 and layer.padding in ((0, 0), "valid") and 1 < layer.in_channels < _vector_width()


def _vector_width() -> int:
    """Floats in a register of the faulty kernels; 0 where there are none."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return 0
    return 8 if torch.backends.cpu.get_cpu_capability() == "AVX2" else 16


def _ordinary_input(layer: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    x, *others = inputs
    needs_gradient = torch.is_grad_enabled() and any(weight.requires_grad for weight in layer.parameters())
    if not needs_gradient or torch.is_autocast_enabled("cpu"):
        return None
    return (x.contiguous(), *others)
