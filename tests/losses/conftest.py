"""The golden numbers of the losses, which come from an independent float64 implementation of the formulas."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "losses.json").read_text())


class Golden:
    """One golden number: its inputs as tensors (labels int64, other lists `dtype`), and a comparison to what is due."""

    def __init__(self, key: str, dtype: torch.dtype) -> None:
        self.record = GOLDEN[key]
        self.dtype = dtype
        self.inputs: dict[str, Any] = {
            name: torch.tensor(value, dtype=torch.int64 if name == "labels" else dtype)
            if isinstance(value, list)
            else value
            for name, value in self.record["inputs"].items()
        }

    def check(self, value: Tensor, field: str | None = None) -> None:
        """At the file's own tolerance in float64, at 1e-5 of the value in float32."""
        expected = self.record["expected"] if field is None else self.record["expected"][field]
        exact = self.dtype == torch.float64
        tolerance = {"atol": self.record["tolerance"], "rtol": 0} if exact else {"atol": 0, "rtol": 1e-5}
        torch.testing.assert_close(value, torch.tensor(expected, dtype=self.dtype), **tolerance)


@pytest.fixture(params=[torch.float64, torch.float32], ids=["float64", "float32"])
def golden(request: pytest.FixtureRequest) -> Any:
    """Return the golden number of a key, in both precisions."""
    return lambda key: Golden(key, request.param)
