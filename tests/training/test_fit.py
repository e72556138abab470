"""A run from the request to what it delivers: what is refused, the rows, the averages, and what is left alone."""

import copy
import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.testing import assert_close

import taet
from taet import methods, protocols, statistics
from taet.data import DataFacts, Dataset
from taet.data.loader import resampled
from taet.evaluation.subject import Subject
from taet.models.view import View
from taet.randomness import generator
from taet.settings import from_json, override
from taet.training import TrainingResult, fit, prepare, resume, train
from taet.training.curve import TrainingCurve
from taet.training.environment import bf16_instructions
from taet.training.folder import RunFolder, weights_digest
from taet.training.record import CURVE, CurvePoint, Epoch
from taet.training.resolve import check_model, idle_settings, resolve, watched_epochs
from taet.training.runs import load_model, load_run
from tests.calls import one_line
from tests.training.conftest import AssertSame, BeforeStep, Tiny

VALIDATED = {"data.max_count": 40, "data.validation": 0.2, "training.epochs": 3}
LONG_TAIL = DataFacts((50, 20, 10), (3, 32, 32), {"train": 80, "test": 30})


@pytest.mark.parametrize(
    ("method", "changes", "match"),
    [
        ("at", {"training.swa": 0.9, "training.epochs": 3}, r"swa: got 0\.9; that leaves none of 3 epochs"),
        ("at", {"training.awp": 0.01, "training.awp_start": 0.9, "training.epochs": 3}, r"awp start: got 0\.9; that"),
        ("at", {"training.selection": "best-test", "training.monitor_every": 0}, "monitor every: got 0"),
        ("trades", {"threat.weighting": "rw"}, "its attack takes no class weights"),
        ("at", {"outer.drw": True, "training.milestones": (1.0,)}, "a schedule without a milestone"),
        ("robust-lt", {"settings": {"base": "standard"}}, "which attacks in no epoch"),
        ("robust-lt", {"settings": {"base": "trades"}, "threat.start": "none"}, "start none, where its attack has no"),
    ],
)
def test_what_settings_alone_decide_is_refused_with_and_without_facts(
    tiny: Tiny, method: str, changes: dict[str, Any], match: str
) -> None:
    for known in (LONG_TAIL, None):
        with one_line(match):
            resolve(tiny(method, changes), known)


def test_a_validation_split_is_required_only_where_the_splits_are_known(tiny: Tiny, tmp_path: Path) -> None:
    run = tiny("at", {"training.selection": "best-validation"})
    with one_line(r"add --data\.validation 0\.1"):
        train(run, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert resolve(run, None).split == "test"  # the source may have a validation split of its own
    assert resolve(override(run, {"data.validation": 0.1}), None).split == "validation"


def test_what_the_data_or_the_network_rule_out_is_refused(tiny: Tiny) -> None:
    with one_line(r"unknown model 'resnet9'.*did you mean"):
        check_model(resolve(tiny("at", {"model.name": "resnet9"}), None), None)
    for method in ("at", "robal", "reat"):
        check_model(resolve(tiny(method), LONG_TAIL), LONG_TAIL)
    for alone in (tiny("fare"), tiny("at", {"model.tune": "head"})):  # as in a comparison, before any cell is trained
        with one_line("got no network to begin from"):
            check_model(resolve(alone, LONG_TAIL), LONG_TAIL)


@pytest.mark.parametrize(
    ("changes", "every"),
    [
        ({}, 10),
        ({"training.selection": "best-validation"}, 1),
        ({"training.selection": "best-test", "training.monitor_every": 5}, 5),
        ({"method": "cfa", "gate": "relative"}, 1),
        ({"method": "cfa"}, 10),
    ],
)
def test_a_curve_that_decides_nothing_has_ten_points(changes: dict[str, Any], every: int) -> None:
    method, gate = changes.pop("method", "at"), changes.pop("gate", None)
    given = {} if gate is None else {"settings": methods.find(method).Config(gate=gate)}
    run = override(protocols.taet(method), changes | given)
    decides = not CURVE & idle_settings(run)
    assert list(watched_epochs(run, decides)) == [e for e in range(run.training.epochs) if (e + 1) % every == 0]


def test_the_precision_follows_the_processor_and_its_limit(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    for flags, limit, bf16 in (("fma avx512_bf16", "", True), ("fma avx512f", "", False), ("amx_bf16", "AVX2", False)):
        monkeypatch.setattr("taet.training.environment.cpuinfo", lambda *_, flags=flags: flags)
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit or "ALL")
        assert bool(bf16_instructions(cpu)) == bf16
        plan, state = prepare.prepare(tiny("at", {"training.precision": "auto"}))
        assert plan.choices["training.precision"][0] == plan.run.training.precision == ("float32", "bf16")[bf16]
        assert prepare.describe(plan, state, "").run == plan.run


def test_the_attacked_network_is_compiled_on_a_gpu_only(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[object]()
    monkeypatch.setattr(View, "compile", lambda view: asked.append(view))
    plan, state = prepare.prepare(tiny("at", {"training.compile": True}))
    assert not plan.run.training.compile
    assert plan.choices["training.compile"] == (False, "only on a GPU, and for attacks in eval mode")
    assert not asked
    view = prepare._view(tiny("at", {"training.compile": True}), state.model, plan.dataset)
    assert asked == [view]


def test_rows_and_record_say_what_was_done(result: TrainingResult) -> None:
    stored = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
    assert stored == list(result.history)
    assert [(row["epoch"], row["stage"]) for row in stored] == [(1, "clean"), (2, "adversarial"), (3, "adversarial")]
    for row in stored:
        assert row.keys() == {field.alias or name for name, field in Epoch.model_fields.items()}
        assert row["train"]["total"] == result.dataset.class_counts.tolist()
        assert sum(row["predicted"]) == sum(row["train"]["total"])
        assert min(row["seconds"], row["images_per_second"], row["peak_memory_mb"]) > 0
        assert row["monitor"].keys() == {"split", "clean", "fgsm", "pgd-1"}
    for row in stored[1:]:
        parts = dict(row["loss"])
        assert parts.pop("total") == pytest.approx(0.1 * sum(parts.values()), rel=1e-5)
        assert parts.keys() == {"bcl", "hdl", "rcel"}
    info = json.loads((result.folder / "run.json").read_text())
    for name, split in result.dataset.splits.items():
        assert info["data"]["splits"][name]["class_counts"] == split.class_counts.tolist()
        assert info["data"]["splits"][name]["sha256"] == split.sha256
        assert len(info["data"]["splits"][name]["indices"]) == len(split)
    assert (info["method_title"], info["run"]["seed"], info["threads"]) == ("TAET", 0, 1)


def test_the_last_point_of_the_curve_is_that_of_the_delivered_model(result: TrainingResult) -> None:
    test, last = result.dataset.test, result.history[-1]["monitor"]
    card = taet.evaluate(result.model, test.images, test.labels, attacks=("clean",))
    correct, total = statistics.class_counts(card.column("clean").correct, test.labels, 10)
    assert last["clean"] == {"correct": correct.tolist(), "total": total.tolist()}
    balanced = statistics.balanced_accuracy(correct, total)
    assert f"clean    balanced accuracy {100 * balanced:.2f} %" in repr(result)


def test_steps_are_counted_as_a_loop_would_and_follow_the_schedule(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps_seen: list[Any]
) -> None:
    told: list[list[float]] = []
    start = "taet.methods.at.AdversarialTraining.start_epoch"
    monkeypatch.setattr(start, lambda _, __, predicted: told.append(predicted.tolist()))
    run = tiny("at", {"training.epochs": 4, "training.milestones": (0.5, 0.75), "training.lr": 0.02})
    past = [0]  # seconds, by a clock that stands still while steps are taken
    monkeypatch.setattr(fit, "time", SimpleNamespace(monotonic=lambda: sum(past)))
    monkeypatch.setattr(fit, "drift", lambda *_: past.append(1) or {})
    monkeypatch.setattr(RunFolder, "write_metrics", lambda *_: past.append(10))
    finished = train(run, out=tmp_path / "run")
    assert [row["seconds"] for row in finished.history] == [1, 11, 11, 11]
    assert all(row["images_per_second"] > 1e9 for row in finished.history)  # training alone, not what follows it
    _, rates, labels, losses = zip(*steps_seen, strict=True)
    assert rates == pytest.approx([0.02] * 6 + [0.002] * 3 + [0.0002] * 3)
    assert [row["lr"] for row in finished.history] == pytest.approx([0.02, 0.02, 0.002, 0.0002])
    row, first = finished.history[0], slice(3)
    guesses = torch.cat([loss.logits.argmax(1) for loss in losses[first]])
    right = torch.cat(labels[first])[guesses == torch.cat(labels[first])]
    assert row["predicted"] == guesses.bincount(minlength=10).tolist()
    assert row["train"]["correct"] == right.bincount(minlength=10).tolist()
    total = sum(loss.total.item() * len(y) for loss, y in zip(losses[first], labels[first], strict=True))
    assert row["loss"]["total"] == pytest.approx(total / 78, rel=1e-9)
    before = [row["predicted"] for row in finished.history[:-1]]
    assert told == [finished.dataset.class_counts.tolist(), *before]


@pytest.mark.full
def test_distances_of_examples_from_epoch_to_epoch_change_nothing_else(tiny: Tiny, tmp_path: Path) -> None:
    plain = train(tiny("at", {"training.epochs": 3}), out=tmp_path / "plain")
    watched = train(tiny("at", {"training.epochs": 3, "training.distance_images": 3}), out=tmp_path / "run")
    assert weights_digest(watched.model) == weights_digest(plain.model)
    assert {row["distance"] for row in plain.history} == {watched.history[0]["distance"]} == {None}
    for row in watched.history[1:]:
        quartiles, mean = np.array(row["distance_quartiles"]), np.array(row["distance"])
        assert quartiles.shape == (10, 3)
        assert (mean > 0).all()
        assert (quartiles[:, 0] <= mean).all()


def test_the_same_run_repeats_bit_for_bit_and_leaves_the_callers_random_state_and_threads_alone(
    tiny: Tiny, tmp_path: Path, assert_same: AssertSame
) -> None:
    threads = torch.get_num_threads()
    torch.manual_seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    run = tiny("at", {"training.threads": threads + 1})
    first, second = (train(run, out=tmp_path / name) for name in "ab")
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == before[1:]  # noqa: NPY002
    assert torch.get_num_threads() == threads
    assert_same(second.folder, first.folder)
    other = train(override(run, {"seed": 1}), out=tmp_path / "c")
    assert weights_digest(other.model) != weights_digest(first.model)


@pytest.mark.parametrize(
    ("context", "changes"),
    [
        # Within it autocast keeps the weights that it cast, whatever a step changes.
        (torch.autocast("cpu", enabled=False), {"training.precision": "bf16"}),
        (torch.autocast("cpu", enabled=False), {"training.precision": "bf16", "training.awp": 0.01}),
        (torch.autocast("cpu", torch.bfloat16), {"training.precision": "bf16"}),
        (torch.inference_mode(), {}),
    ],
)
def test_a_context_of_the_caller_around_a_training_changes_nothing(
    context: Any, changes: dict[str, Any], tiny: Tiny, tmp_path: Path
) -> None:
    run = tiny("at", changes)
    alone = train(run, out=tmp_path / "alone")
    with context:
        within = train(run, out=tmp_path / "within")
    assert weights_digest(alone.model) == weights_digest(within.model)


def test_progress_rises_to_the_whole(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[float, float, str]] = []
    monkeypatch.setattr(fit, "LOOK_SECONDS", 0.0)
    train(tiny("taet"), out=tmp_path / "run", progress=lambda *args: told.append(args))
    done, total, texts = zip(*told, strict=True)
    assert list(done) == sorted(done)
    assert done[-1] == total[-1]
    assert len(set(total)) == 1
    assert "epoch 1/2" in texts[0]
    assert any("clean" in text for text in texts)


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Tensor]]:
    """Make the second of three points of the curve the best; return the weights at each point."""
    weights: list[dict[str, Tensor]] = []

    def measure(self: TrainingCurve, model: nn.Module, _: object) -> tuple[CurvePoint, None]:
        weights.append(copy.deepcopy(model.state_dict()))
        counts = {"correct": [(1, 3, 2)[len(weights) - 1]] * 10, "total": [4] * 10}
        return from_json(CurvePoint, {"split": self.name, "clean": counts, "pgd-1": counts}), None

    monkeypatch.setattr(TrainingCurve, "measure", measure)
    return weights


def delivered(folder: Path, name: str = "model") -> tuple[dict[str, Tensor], int]:
    path = folder / f"{name}.safetensors"
    with safe_open(path, framework="pt") as file:
        return load_file(path), json.loads(file.metadata()["taet"])["epoch"]


def same(tensors: dict[str, Tensor], others: dict[str, Tensor]) -> bool:
    return tensors.keys() == others.keys() and all(torch.equal(tensors[key], others[key]) for key in tensors)


DELIVERED = [("last", 3, "validation", "validation"), ("best-validation", 2, "validation", "balanced")]
DELIVERED += [("best-validation", 2, "validation", "validation"), ("best-test", 2, "test", "balanced")]


@pytest.mark.parametrize(("selection", "epoch", "split", "test"), DELIVERED)
def test_a_run_delivers_the_epoch_that_was_asked_for(
    tiny: Tiny, tmp_path: Path, scripted: list[dict[str, Tensor]], selection: str, epoch: int, split: str, test: str
) -> None:
    changes = VALIDATED | {"training.selection": selection, "data.test": test}
    finished = train(tiny("at", changes), out=tmp_path / "run")
    other = ("model-best", 2) if selection == "last" else ("model-last", 3)
    for name, at in (("model", epoch), other):
        tensors, told = delivered(finished.folder, name)
        assert told == at
        assert same(tensors, scripted[at - 1])
    assert same(finished.model.state_dict(), scripted[epoch - 1])
    info = json.loads((finished.folder / "run.json").read_text())
    assert info["selection"] == {"rule": selection, "split": split}
    assert {row["monitor"]["split"] for row in finished.history} == {split}
    watched = split == "test" or test == "validation"  # the images of the card chose an epoch
    rules = {"model": selection, "model-last": "last"} if selection != "last" else {"model-best": "best-validation"}
    for weights, rule in rules.items():
        model = Subject.of(finished.folder, weights=weights).about["model"]
        assert (model["selection"], model["leak"]) == (rule, watched and rule != "last")
    model = Subject.of(finished.folder, np.zeros((1, 8, 8, 1), np.uint8), np.array([0])).about["model"]
    assert model["leak"] == (split == "test" or (selection, test) == ("best-validation", "validation"))


def test_weights_that_a_run_lost_or_never_had_are_not_replaced_by_others(
    tiny: Tiny, tmp_path: Path, scripted: list[dict[str, Tensor]]
) -> None:
    lost = train(tiny("at", VALIDATED), out=tmp_path / "lost").folder
    (lost / "model-best.safetensors").unlink()
    scripted.clear()
    never = train(tiny("at", {"training.epochs": 3}), out=tmp_path / "never").folder  # its curve is of test images
    for folder in (lost, never):
        with one_line(r"holds no model-best.safetensors: it has model.safetensors"):
            load_model(folder, "model-best")
        load_model(folder, "model-last")
    (never / "model.safetensors").unlink()
    with one_line("holds no model.safetensors: they were removed after the training"):
        load_model(never)


def test_a_run_delivers_the_moving_average_of_its_steps(tiny: Tiny, tmp_path: Path, steps_seen: list[Any]) -> None:
    run = tiny("at", {"training.epochs": 3, "training.ema": 0.6, "training.batch_size": 24})
    train(run, out=tmp_path / "run")
    weights = [one[0]["head.weight"] for one in steps_seen]
    warmup, expected = round(0.025 * len(weights)), weights[0]
    for number, value in enumerate(weights):
        decay = 0.0 if number < warmup else min(0.6, (1 + number - warmup) / (10 + number - warmup))
        expected = decay * expected + (1 - decay) * value
    found = load_file(tmp_path / "run" / "model.safetensors")["head.weight"]
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, weights[-1])


@pytest.mark.full
def test_a_run_delivers_the_mean_of_its_last_epochs_with_statistics_of_its_own(
    tiny: Tiny, tmp_path: Path, steps_seen: list[Any]
) -> None:
    train(tiny("at", {"training.epochs": 4, "training.swa": 0.5, "training.batch_size": 24}), out=tmp_path / "run")
    per_epoch = len(steps_seen) // 4
    one, two = (steps_seen[(epoch + 1) * per_epoch - 1][0] for epoch in (2, 3))
    found = load_file(tmp_path / "run" / "model.safetensors")
    torch.testing.assert_close(found["head.weight"], (one["head.weight"] + two["head.weight"]) / 2)
    name = next(name for name in found if name.endswith("running_var"))
    assert not torch.allclose(found[name], (one[name] + two[name]) / 2, rtol=1e-3), "they were estimated anew"


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, calls = fit.training_step, [0]

    def breaking(*given: Any) -> Any:
        loss = step(*given)
        calls[0] += 1
        if calls[0] != 5:  # the second step of the second epoch
            return loss
        return loss._replace(parts={"hdl": torch.tensor(float("nan"))})

    monkeypatch.setattr(fit, "training_step", breaking)
    folder = tmp_path / "run"
    with one_line("the part hdl of the loss is not finite in epoch 2"):
        train(tiny("at"), out=folder)
    assert torch.load(folder / "checkpoint.pt", weights_only=True)["epoch"] == len(RunFolder(folder).metrics) == 1
    assert not (folder / "done").exists()
    assert len(resume(folder).history) == 2  # the fault is over


@pytest.mark.parametrize("sampling", ["class-balanced", "square-root"])
def test_a_loss_takes_the_prior_of_the_batches(tiny: Tiny, sampling: str) -> None:
    method = resolve(tiny("at-bsl", {"training.sampling": sampling}), LONG_TAIL).method
    labels = torch.arange(len(LONG_TAIL.class_counts)).repeat_interleave(torch.tensor(LONG_TAIL.class_counts))
    drawn = [labels[resampled(labels, generator("cpu", epoch), sampling)] for epoch in range(400)]
    torch.testing.assert_close(method.exposure, torch.cat(drawn).bincount() / 400, rtol=0.1, atol=0.1)


def test_a_folder_that_exists_is_refused_and_left_alone(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with one_line(f"{tmp_path} exists and is no run; choose another --out"):
        train(tiny("at"), out=tmp_path)
    with one_line(r"notes\.txt exists"):
        train(tiny("at"), out=tmp_path / "notes.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def network(classes: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.ReLU(), nn.Linear(16, classes))


def arrays(classes: int = 3, per_class: int = 10) -> Dataset:
    """Grey 6x6 images whose brightness tells the class."""
    draw, labels = np.random.default_rng(0), np.repeat(np.arange(classes), per_class)
    images = (80 * labels[:, None, None] + draw.integers(0, 40, (len(labels), 6, 6))).astype(np.uint8)
    return Dataset.from_arrays(images, labels, images, labels)


def test_a_plain_module_and_arrays_train_and_resume(
    tiny: Tiny, tmp_path: Path, assert_same: AssertSame, killed_before: BeforeStep
) -> None:
    run, data = tiny("taet", {"training.batch_size": 10, "training.epochs": 12, "training.lr": 0.1}), arrays()
    given, folder = network(), tmp_path / "again"
    whole = train(run, out=tmp_path / "whole", model=given, dataset=data)
    assert statistics.balanced_accuracy(**whole.history[-1]["monitor"]["clean"]) == 1.0
    with killed_before(20):
        train(run, out=folder, model=network(), dataset=data)
    for done in (folder, whole.folder):
        with one_line(r"was trained with a .* from memory: give it again"):
            resume(done)
    with one_line("the train images are not those"):
        resume(folder, model=network(), dataset=arrays(per_class=11))
    with one_line(f"{folder} holds a run; choose another --out"):
        train(run, out=folder, model=network(4), dataset=data)  # before the network is tried
    with one_line(r"\(2, 4\).*allowed: \(2, 3\), one logit per class"):
        train(run, out=tmp_path / "new", model=network(4), dataset=data)
    with one_line(r"model weights: got x\.pt and a network from memory; allowed: one of them"):
        train(override(run, {"model.weights": "x.pt"}), out=tmp_path / "new", model=network(), dataset=data)
    for wrong in ({"model": nn.Linear}, {"dataset": [torch.zeros(3, 1, 6, 6)]}):
        with one_line(r"(model|dataset): got .*; allowed: an? (nn\.Module|taet\.data\.Dataset)"):
            train(run, out=tmp_path / "new", **{"model": network(), "dataset": data, **wrong})
    with one_line("model: got probabilities, which sum to 1 .*allowed: logits"):
        train(run, out=tmp_path / "new", model=nn.Sequential(network(), nn.Softmax(1)), dataset=data)
    with one_line("model: got no parameter that needs a gradient"):
        train(run, out=tmp_path / "new", model=network().requires_grad_(False), dataset=data)
    assert not (tmp_path / "new").exists()
    resume(folder, model=given, dataset=data)
    load_run(folder, model=given, dataset=data)
    assert_close(given.state_dict(), network().state_dict(), rtol=0, atol=0)  # all of these worked on copies
    assert_same(folder, whole.folder)
