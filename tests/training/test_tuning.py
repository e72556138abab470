"""A run that trains a part of a pretrained network: what is trained, kills, the weights."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import taet
from taet import models
from taet.errors import UserError
from taet.evaluation.target import EvaluationTarget
from taet.files import file_sha256
from taet.run.loading import load_model
from taet.settings import Run, override
from taet.training import TrainingResult, resume, train
from tests.training.conftest import BeforeStep, Step, Tiny


@pytest.fixture
def tuned(tiny: Tiny, result: TrainingResult) -> Run:
    """Two epochs of low-rank parts, from the delivered weights of a run."""
    weights = {
        "model.name": result.run.model.name,
        "model.weights": f"run:{result.folder}",
        "model.tune": "lora:2",
    }
    return tiny(
        "at",
        weights
        | {"training.epochs": 2, "training.decay": "cosine", "training.precision": "float32"},
    )


@pytest.mark.parametrize("mode", ["eval", "train"])  # in which the statistics are kept all the same
def test_only_the_part_is_trained(
    mode: str, tuned: Run, tmp_path: Path, steps_seen: list[Step]
) -> None:
    train(override(tuned, {"threat.bn_mode": mode}), out=tmp_path / "run")
    states = [step.weights for step in steps_seen]
    moved = {name for name in states[0] if not torch.equal(states[0][name], states[-1][name])}
    parts = {
        name for name in states[0] if name.startswith("body.") and name.endswith((".0.a", ".0.b"))
    }
    assert moved == {"head.weight", "head.bias", *parts}
    record = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
    _, model, _ = load_model(tmp_path / "run")
    part = sum(value.numel() for name, value in model.named_parameters() if name in moved)
    assert record["trained_parameters"] == part < record["parameters"]
    assert (f"trained: lora:2, {part:,} of {record['parameters']:,} parameters") in record[
        "model_notes"
    ]
    assert not any("without attacks" in note for note in record["model_notes"]), (
        "it begins from a robust run"
    )


@pytest.mark.full
@pytest.mark.sample(3)
@pytest.mark.parametrize("share", [0.5, 0.2, 0.7])
def test_a_killed_run_ends_with_the_same_weights(
    share: float, tuned: Run, tmp_path: Path, killed_before: BeforeStep, steps_seen: list[Step]
) -> None:
    run = override(tuned, {"training.save_minutes": 0})
    train(run, out=tmp_path / "whole")
    with killed_before(round(share * len(steps_seen))):
        train(run, out=tmp_path / "killed")
    # the backbone is not needed any more
    Path(str(run.model.weights)[4:]).rename(tmp_path / "moved")
    assert str(run.model.weights)[4:] in resume(tmp_path / "killed").model.notes[0]
    (tmp_path / "moved").rename(str(run.model.weights)[4:])
    first, second = (
        load_file(tmp_path / name / "model.safetensors") for name in ("whole", "killed")
    )
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_low_rank_parts_are_merged_into_an_exported_file(tuned: Run, tmp_path: Path) -> None:
    train(tuned, out=tmp_path / "run")
    path = taet.export(tmp_path / "run", "safetensors", tmp_path / "merged.safetensors")
    with pytest.raises(UserError, match="has added parts; allowed: "):
        models.build(tuned.model.name, 10, (1, 8, 8), weights=f"run:{tmp_path / 'run'}")
    _, model, record = load_model(tmp_path / "run")
    plain = models.build(tuned.model.name, 10, (1, 8, 8), weights=path)
    plain.load_state_dict(load_file(path))
    x = torch.rand(4, *record.data.image_shape)
    torch.testing.assert_close(plain.eval()(x), model(x), atol=1e-5, rtol=1e-5)


def test_a_clean_network_is_named_where_a_part_is_trained(
    tiny: Tiny, tuned: Run, tmp_path: Path
) -> None:
    clean = train(
        tiny("standard", {"model.name": tuned.model.name, "training.epochs": 1}),
        out=tmp_path / "clean",
    )
    found = train(override(tuned, {"model.weights": str(clean.folder)}), out=tmp_path / "run")
    assert "was trained without attacks does not make it robust" in found.model.notes[-1]
    of_run = EvaluationTarget.of(found.folder).about["run"]
    assert of_run["pretrained_sha256"] == file_sha256(clean.folder / "model.safetensors")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"method": "fare", "model.tune": "head"},
            "fare: got the head to train; its loss has no labels",
        ),
        ({"method": "fare"}, "fare: got no network to begin from; allowed: with --model.weights"),
        (
            {"model.tune": "adapter:4"},
            "got adapter:4; the network has no transformer blocks; allowed: head, bias, all",
        ),
        ({"model.tune": "head"}, "at: got no network to begin from; allowed: with --model.weights"),
        ({"model.weights": "run:runs/none"}, "weights: got runs/none; allowed: a file that exists"),
    ],
)
def test_what_cannot_be_tuned_is_refused_before_anything_is_written(
    changes: dict[str, Any], said: str, tiny: Tiny, tmp_path: Path
) -> None:
    run = tiny(changes.pop("method", "at"), changes)
    with pytest.raises(UserError, match=said):
        train(run, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
