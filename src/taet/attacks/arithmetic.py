"""The arithmetic of searching attacks, of judging their results, and of training."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Literal

import torch
from torch import nn

from taet.attacks.ball import frozen
from taet.attacks.float32_precision import float32_precision
from taet.errors import UserError

SearchPrecision = Literal["float32", "bf16", "tf32"]


@contextmanager
def arithmetic(device_type: str, precision: SearchPrecision = "float32") -> Iterator[None]:
    """Compute in a precision within this context: exact float32, bfloat16 or TF32.

    bfloat16 is by autocast, TF32 on NVIDIA GPUs alone; the switches are restored. TF32 keeps 10
    bits of the mantissa, which can flip predictions near the decision boundary, where attacks
    search.
    """
    if precision == "tf32" and device_type != "cuda":
        raise UserError(
            f"search precision: got tf32 on {device_type}; allowed: float32 or bf16 (tf32 needs "
            "CUDA)"
        )
    with (
        float32_precision("tf32" if precision == "tf32" else "ieee"),
        torch.autocast(device_type, torch.bfloat16, precision == "bf16"),
    ):
        yield


@contextmanager
def frozen_and_exact(device_type: str, *models: nn.Module) -> Iterator[None]:
    """Put models in eval mode with frozen parameters and exact float32, within this context.

    All is restored afterwards, the random state too.
    """
    exact, random = arithmetic(device_type), torch.random.fork_rng(range(torch.cuda.device_count()))
    # gradients exist inside inference mode too
    with torch.inference_mode(False), ExitStack() as stack, exact, random:
        for model in models:
            stack.enter_context(frozen(model))
        yield


@contextmanager
def training_arithmetic(device_type: str) -> Iterator[None]:
    """On NVIDIA GPUs use cuDNN's fastest algorithms and exact float32, within this context.

    The default of torch is TF32.
    """
    if device_type != "cuda":
        yield
        return
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True
    try:
        with arithmetic(device_type):
            yield
    finally:
        torch.backends.cudnn.benchmark = before
