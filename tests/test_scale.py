"""What docs/scale.md says follows from what is committed, and what is counted is counted rightly."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from taet.losses import cross_entropy
from taet.losses.equalization import expected_absent_classes

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "benchmarks"
PAGE = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")


def results(name: str) -> Any:
    return json.loads((FOLDER / "results" / f"{name}.json").read_text(encoding="utf-8"))


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ModuleType]]:
    """The scripts by name; as for Python that runs one, those beside it can be imported, and only meanwhile."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(FOLDER))
    yield {name: __import__(name) for name in ("class_terms", "scale", "scale_tables")}
    for name in {path.stem for path in FOLDER.glob("*.py")} - before:
        sys.modules.pop(name, None)


def test_the_tables_are_those_of_the_results(benchmarks: dict[str, ModuleType]) -> None:
    tables = benchmarks["scale_tables"]
    assert tables.rendered(PAGE) == PAGE, "run python benchmarks/scale_tables.py --write"


def test_what_is_derived_follows_from_the_counts(benchmarks: dict[str, ModuleType]) -> None:
    committed = results("scale")
    derived = benchmarks["class_terms"].rounded(benchmarks["scale"].derive(committed["counted"]))
    assert json.loads(json.dumps(derived)) == committed["derived"], "run python benchmarks/scale.py --derive"


def test_the_results_are_of_the_sets_and_assumptions_that_the_scripts_name(benchmarks: dict[str, ModuleType]) -> None:
    scale, terms = results("scale"), results("class_terms")
    for name, about in benchmarks["class_terms"].SETS.items():
        assert about._asdict().items() <= terms["sets"][name].items()
        counted = scale["counted"][name]["operations"]
        # Ten steps of the attack, and one of training on what they give.
        assert counted["pgd_10_step"] == 10 * counted["attack_step"] + counted["clean_step"]
    assert len(terms["training"]) == len(benchmarks["class_terms"].TRAININGS)


def test_the_numbers_of_the_text_are_those_of_the_results() -> None:
    scale, terms = results("scale")["derived"], results("class_terms")
    found = terms["sets"]["inaturalist-2018"]
    small = found["batches"][0]
    fresh = small["equalization"]["fresh"]
    passes, public = scale["autoattack_passes"], scale["public"]["utilisation"]
    epoch = found["class_balanced_epoch"]
    said = (
        f"contains {100 * small['shuffled']['classes'] / found['classes']:.1f} % of them",
        f"of which {small['shuffled']['classes']:.0f} are not zero",
        f"All terms together are {100 * fresh['zero']['weight']['mean']:.1f} % of cross-entropy, equivalent to "
        f"a learning rate {1 / fresh['zero']['weight']['mean']:.0f} times smaller",
        f"keeps {100 * passes['accuracy']:.0f} % of its images: {passes['forwards']:,.0f} forward and "
        f"{passes['backwards']:.0f} backward passes per image",
        f"reaches {100 * public['A100 80 GB']:.0f} % on an A100",
        f"in float32, {100 * public['V100, float32']:.0f} % on a V100",
        f"it shows {100 * epoch['images_seen']:.0f} % of the images, and those of the smallest classes "
        f"{epoch['times_for_an_image_of_the_smallest_classes']:.0f} times each",
        f"batch {1 / small['class_balanced_effective_images']:.0f} times smaller",
        f"The price of {scale['assumed']['price']:g} per hour",
    )
    text = " ".join(PAGE.split())
    for sentence in said:
        assert sentence in text
    # "one six-hundredth": alpha B / C, which is all that is left of ema
    assert 1 / fresh["ema"]["weight"]["mean"] == pytest.approx(600, rel=0.1)


@pytest.mark.parametrize("name", ["imagenet-lt", "inaturalist-2018"])
def test_class_sizes_are_the_published_ones_and_fall(benchmarks: dict[str, ModuleType], name: str) -> None:
    terms = benchmarks["class_terms"]
    about = terms.SETS[name]
    counts = terms.power_law_counts(about)
    assert len(counts) == about.classes
    assert counts.sum() == about.images
    assert (counts[0], counts[-1]) == (about.largest, about.smallest)
    assert (np.diff(counts) <= 0).all()
    # A power law: the logarithm of the size falls by the same for each factor of the shifted rank.
    sizes, exponent = terms.power_law(about, 0.5), -0.5
    np.testing.assert_allclose(np.diff(sizes**exponent), np.diff(sizes**exponent).mean(), rtol=1e-6)


def test_the_classes_of_a_batch_are_as_many_as_chance_says(benchmarks: dict[str, ModuleType]) -> None:
    terms = benchmarks["class_terms"]
    about = terms.About(60, 40, 2, 700)
    counts = terms.power_law_counts(about)
    labels = torch.repeat_interleave(torch.arange(60), torch.from_numpy(counts))
    made = terms.make_up(terms.batches(labels, 32, "shuffled"), torch.from_numpy(counts))
    expected = 60 - expected_absent_classes(counts.tolist(), 32)
    assert made["classes"] == pytest.approx(expected, abs=1.5)
    every = terms.make_up([torch.tensor([59, 59, 59, 0])], torch.from_numpy(counts))
    assert (every["classes"], every["tail_examples"], every["partners_of_a_tail_example"]) == (2, 3, 2)


def test_weights_of_images_are_those_of_their_cross_entropies(benchmarks: dict[str, ModuleType]) -> None:
    terms = benchmarks["class_terms"]
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(6, 4, generator=generator), torch.tensor([0, 1, 2, 3, 0, 1])
    given = torch.tensor([1.0, 2, 0.5, -1, 0, 3])
    plain, value, _ = terms.gradient(lambda z: cross_entropy(z, labels).mean(), logits)
    weighted, _, _ = terms.gradient(lambda z: (given * cross_entropy(z, labels)).mean(), logits)
    assert value == pytest.approx(float(cross_entropy(logits, labels).mean()))
    np.testing.assert_allclose(terms.image_weights(weighted, plain), given.numpy(), atol=1e-6)


def test_bytes_that_are_kept_are_counted_once(benchmarks: dict[str, ModuleType]) -> None:
    x = torch.rand(10, 3, requires_grad=True)
    assert benchmarks["class_terms"].kept_by(lambda: (x * x).sum(), x)[1] == 0
    assert benchmarks["class_terms"].kept_by(lambda: x.exp().sum(), x)[1] == 10 * 3 * 4  # the result alone
    assert benchmarks["class_terms"].kept_by(lambda: (x.exp() * x.exp().detach()).sum(), x)[1] == 2 * 10 * 3 * 4


def test_operations_are_multiplications_and_additions(benchmarks: dict[str, ModuleType]) -> None:
    layer, image = nn.Conv2d(3, 4, 3, bias=False), torch.rand(1, 3, 8, 8)
    forward = 2 * 4 * 6 * 6 * 3 * 3 * 3
    assert benchmarks["scale"].operations(lambda: layer(image)) == forward
    image.requires_grad_()
    both = benchmarks["scale"].operations(lambda: layer(image).sum().backward())
    assert both == 3 * forward  # the gradients of the image and of the weights


def test_exchanged_bytes_are_those_of_the_class_sums(
    benchmarks: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    scale = benchmarks["scale"]
    monkeypatch.setattr(scale, "NETWORK", "resnet8")
    counts = (40, 20, 10, 5, 4, 3, 2, 1)
    # Sums and numbers of images of every class, there and back.
    assert scale.exchanged("harl", {}, counts, 2, sync=False) == [4 * 2 * 8] * 2
    plain = scale.exchanged("at", {}, counts, 2, sync=False)
    synchronised = scale.exchanged("at", {}, counts, 2, sync=True)
    assert len(synchronised) > len(plain)
    assert sum(plain) < 100


def test_hours_and_rings_by_hand(benchmarks: dict[str, ModuleType]) -> None:
    scale = benchmarks["scale"]
    efficiency = scale.ASSUMED["efficiency"]["8"]
    assert scale.hours(3600e12, 8, 1e12, 0.5) == pytest.approx(1 / (8 * 0.5 * efficiency))
    device = scale.DEVICES["H200"]
    assert scale.ring(device.link, 2, device) == pytest.approx(1)
    assert scale.ring(device.network, 64, device) == pytest.approx(2 * 63 / 64)
    least, most = scale.least_to_most(1e18, 1, 1e15, (0.1, 0.2))
    assert most == pytest.approx(2 * least)
    assert math.isclose(most, 1e18 / (1e15 * 0.1) / 3600)
