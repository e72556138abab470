"""Arithmetic of an evaluation: exact float32 for verdicts, and any precision for the search before them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch

from taet.errors import UserError

SearchPrecision = Literal["float32", "bf16", "tf32"]


@contextmanager
def exact_float32(device_type: str) -> Iterator[None]:
    """Turn off autocast and the reduced precisions of float32 (TF32, bfloat16), and restore the switches afterwards.

    TF32 keeps 10 bits of the mantissa, which can flip predictions near the decision boundary, where attacks search.
    """
    with _float32_as("ieee"), torch.autocast(device_type, enabled=False):
        yield


@contextmanager
def arithmetic(device_type: str, precision: SearchPrecision) -> Iterator[None]:
    """Compute in a precision: exact float32, bfloat16 by autocast, or the TF32 of NVIDIA GPUs.

    Raises:
        UserError: TF32 on another device, where it would mean nothing.
    """
    if precision == "tf32" and device_type != "cuda":
        raise UserError(
            f"search precision: got tf32 on {device_type}; allowed: float32 or bf16 (tf32 is of NVIDIA GPUs)"
        )
    bf16 = precision == "bf16"
    with _float32_as("tf32" if precision == "tf32" else "ieee"), torch.autocast(device_type, torch.bfloat16, bf16):
        yield


@contextmanager
def _float32_as(mode: str) -> Iterator[None]:
    """Set how the libraries multiply float32."""
    backends: Any = torch.backends
    gpu, cpu = backends.cudnn, backends.mkldnn
    switches = [backends.cuda.matmul, gpu.conv, gpu.rnn, cpu.matmul, cpu.conv, cpu.rnn]
    before = [switch.fp32_precision for switch in switches]
    try:
        for switch in switches:
            switch.fp32_precision = mode
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.fp32_precision = value
