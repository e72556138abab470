"""Exact float32 also with a PyTorch that has only `allow_tf32`."""

from types import SimpleNamespace
from typing import Any

import pytest

from taet.attacks import float32_precision as module
from taet.attacks.float32_precision import Float32Precision, float32_precision


@pytest.fixture
def old_torch(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A PyTorch without `fp32_precision`, whose caller allowed TF32."""
    state = {"matmul": "medium"}
    torch = SimpleNamespace(
        backends=SimpleNamespace(cudnn=SimpleNamespace(allow_tf32=True)),
        get_float32_matmul_precision=lambda: state["matmul"],
        set_float32_matmul_precision=lambda precision: state.update(matmul=precision),
    )
    monkeypatch.setattr(module, "torch", torch)
    return torch


@pytest.mark.parametrize(
    ("precision", "matmul", "convolution"), [("ieee", "highest", False), ("tf32", "high", True)]
)
def test_an_old_torch_is_switched_by_allow_tf32(
    old_torch: Any, precision: Float32Precision, matmul: str, convolution: bool
) -> None:
    with float32_precision(precision):
        assert old_torch.get_float32_matmul_precision() == matmul
        assert old_torch.backends.cudnn.allow_tf32 is convolution


def test_an_old_torch_gets_its_switches_back(old_torch: Any) -> None:
    with pytest.raises(KeyError), float32_precision("ieee"):
        raise KeyError
    assert old_torch.get_float32_matmul_precision() == "medium"
    assert old_torch.backends.cudnn.allow_tf32 is True
