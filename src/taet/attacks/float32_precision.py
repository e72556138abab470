"""The precision of float32 arithmetic, by the switches that the installed PyTorch has."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

Float32Precision = Literal["ieee", "tf32"]


@contextmanager
def float32_precision(precision: Float32Precision) -> Iterator[None]:
    """Multiply and convolve float32 numbers exactly (ieee) or with TF32; restore the switches.

    PyTorch has one switch per library and operation (`fp32_precision`); older versions, which lack
    them, have `allow_tf32`. The two kinds must not be mixed in one process.
    """
    has_fp32_precision = hasattr(torch.backends.cudnn, "conv")
    switching = _fp32_precision(precision) if has_fp32_precision else _allow_tf32(precision)
    with switching:
        yield


@contextmanager
def _fp32_precision(precision: Float32Precision) -> Iterator[None]:
    gpu, cpu = torch.backends.cudnn, torch.backends.mkldnn
    switches = [torch.backends.cuda.matmul, gpu.conv, gpu.rnn, cpu.matmul, cpu.conv, cpu.rnn]  # type: ignore[attr-defined]
    before = [switch.fp32_precision for switch in switches]
    try:
        for switch in switches:
            switch.fp32_precision = precision
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.fp32_precision = value


@contextmanager
def _allow_tf32(precision: Float32Precision) -> Iterator[None]:
    matmul_before = torch.get_float32_matmul_precision()
    cudnn_before = torch.backends.cudnn.allow_tf32
    try:
        # of cuBLAS, and of oneDNN, which takes bfloat16 under "medium"
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        torch.backends.cudnn.allow_tf32 = precision == "tf32"
        yield
    finally:
        torch.set_float32_matmul_precision(matmul_before)
        torch.backends.cudnn.allow_tf32 = cudnn_before
