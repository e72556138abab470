"""Golden numbers: what an independent float64 implementation found, or a paper says, in the files
of tests/golden."""

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FILES = ("methods", "class_methods", "losses", "attacks", "mixture", "training")
FOLDER = Path(__file__).with_name("golden")
GOLDEN = {
    key: value
    for name in FILES
    for key, value in json.loads((FOLDER / f"{name}.json").read_text()).items()
}


def double(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


class Golden:
    """A golden number: its inputs, lists of numbers as tensors in float64, and a comparison with
    what is expected."""

    def __init__(self, key: str) -> None:
        self.expected, self.tolerance = GOLDEN[key]["expected"], GOLDEN[key].get("tolerance", 1e-8)
        self.raw = GOLDEN[key]["inputs"]

    def __getitem__(self, name: str) -> Any:
        value = self.raw[name]
        if isinstance(value, str):
            return float(Fraction(value))
        if not isinstance(value, list):
            return value
        return torch.tensor(value) if name == "labels" else double(value)

    @property
    def counts(self) -> tuple[int, ...]:
        return tuple(map(int, self.raw.get("class_counts", (100, 20, 5))))

    def check(self, value: Any, *fields: str) -> None:
        expected = self.expected
        for field in fields:
            expected = expected[field]
        torch.testing.assert_close(
            torch.as_tensor(value).double(), double(expected), rtol=0, atol=self.tolerance
        )
