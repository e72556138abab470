"""Arithmetic of an evaluation: float32 without reduced precision."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def exact_float32(device_type: str) -> Iterator[None]:
    """Turn off autocast and the reduced precisions of float32 (TF32, bfloat16), and restore the switches afterwards.

    TF32 keeps 10 bits of the mantissa, which can flip predictions near the decision boundary, where attacks search.
    """
    backends: Any = torch.backends
    gpu, cpu = backends.cudnn, backends.mkldnn
    switches = [backends.cuda.matmul, gpu.conv, gpu.rnn, cpu.matmul, cpu.conv, cpu.rnn]
    before = [switch.fp32_precision for switch in switches]
    try:
        for switch in switches:
            switch.fp32_precision = "ieee"
        with torch.autocast(device_type, enabled=False):
            yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.fp32_precision = value
