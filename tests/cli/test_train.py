"""`taet train`: runs from files, what is chosen for images and machine, and what is said before the
first step."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from taet.cli.introduction import introduction
from taet.cli.train import read
from taet.errors import CUSTOM, UserError
from taet.formatting import duration
from taet.run.identity import run_hash
from taet.settings import Data, Run
from taet.training.prepare import expected_seconds, prepare

CALLS = (
    "at",
    "taet --data cifar10-lt --data.imbalance-ratio 50 --epochs 3 --seed 7 --threat.eps 4/255",
    "robal --protocol reat --method.tau-p 0.5 --data digits-lt --data.root none",
    "las-at --method.eps 1 9 --milestones 0.5 0.75 --evaluation.attacks clean pgd-20:restarts=5",
    "at-bsl --lr 1e-05 --evaluation.cw-constant none",
    "robust-lt --method.base trades --method.base-settings.beta 3",
)


@pytest.mark.parametrize("call", CALLS)
def test_what_is_printed_is_read_as_the_same_run(call: str, tmp_path: Path) -> None:
    run, _ = read(call.split()).planned()
    old = run.model_dump()
    old["training"] |= {"capture": False, "workers": 2, "tensorboard": True}  # of version 0.1.0
    old["data"] |= Data.retired
    (tmp_path / "run.json").write_text(
        json.dumps({"schema": 2, "run": old, "command": "taet train"})
    )
    (tmp_path / "plain.json").write_text(json.dumps(run.model_dump()))
    for name in ("run.json", "plain.json"):
        again, decided = read(["--config", str(tmp_path / name)]).planned()
        assert (again, run_hash(again.model_dump()), decided) == (
            run,
            run_hash(run.model_dump()),
            {},
        )


def test_options_and_the_method_replace_those_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(
        'method = "trades"\nseed = 3\ntraining.epochs = 9\n[threat]\neps = "4/255"\nsteps = 2\n'
    )
    run = read(["--config", str(path), "--threat.steps=5"]).run()
    assert (run.method, run.seed, run.training.epochs, run.threat.eps, run.threat.steps) == (
        "trades",
        3,
        9,
        4 / 255,
        5,
    )
    run = read(["at", f"--config={path}", "--seed", "0"]).run()
    assert (run.method, run.seed, run.training.epochs) == ("at", 0, 9)
    assert read(["at", f"--config={path}", "--recipe", "fast"]).run().training.lr == 0.2
    # has all that they could set
    path.write_text(json.dumps({"run": read(["at"]).run().model_dump(mode="json")}))
    for words in (["--recipe", "fast"], ["--protocol", "reat"]):
        with pytest.raises(
            UserError,
            match=f"^{words[0]}: would change nothing, as .*run.toml sets .* more; allowed",
        ):
            read(["at", f"--config={path}", *words])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('method = "taett"', "unknown method 'taett'"),
        (
            "training.probing = 0.5",
            "training probing: got 0.5; this setting has left, see CHANGELOG.md",
        ),
        ('methods = ["at"]', "is a comparison; run it with taet compare "),
        ("{", "truncated or not JSON"),
    ],
)
def test_a_mistake_in_a_file_names_the_file_and_the_key(
    content: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "run.toml"
    path.write_text(content)
    with pytest.raises(UserError) as caught:
        read(
            ["at", "--config", str(path)] if "method =" not in content else ["--config", str(path)]
        )
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)


def test_a_loss_that_the_method_replaces_is_refused() -> None:
    with pytest.raises(
        UserError, match="reat: got the outer loss cross-entropy; its own replaces it"
    ):
        read(["reat", "--outer", "cross-entropy"])


def test_consent_to_code_goes_with_a_run_or_a_file() -> None:
    with pytest.raises(UserError, match="--trust-model goes with --resume or --config"):
        read(["at", "--trust-model", "a:b"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("train at --out=-x", "out: got"),
        ("compare s.toml --out=-x", "out: got"),
        ("data show digits-lt --name other", "unknown option --name"),
        ("data show digits-lt --extra x.npz", "unknown option --extra"),
        ("check resnet8 --data digits-lt --data.extra x.npz", "unknown option --data.extra"),
        ("evaluate --model resnet8 --data.extra x.npz", "unknown option --data.extra"),
        ("evaluate --model resnet8 --data digits-lt --trust-model a:b", "without a run; allowed"),
        ("train --config run.toml --trust-model a:b", "allowed: the model of run.toml, if it is"),
    ],
)
def test_an_option_without_effect_and_a_name_that_no_command_can_print_are_refused(
    taet: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run.toml").write_text('method = "at"\n')
    outcome = taet(*words.split())
    assert outcome.code == 2
    assert message in outcome.err
    assert {path.name for path in tmp_path.iterdir()} == {"run.toml"}


def test_a_run_of_a_network_of_ours_needs_no_trust(taet: Any, finished: Any) -> None:
    outcome = taet("evaluate", finished.folder, "--trust-model", "junk:junk", "--attacks", "clean")
    assert outcome.code == 2
    assert "has the model resnet8, which needs no trust" in outcome.err


def test_a_file_alone_never_chooses_code(
    taet: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("evil.py").write_text(
        "from pathlib import Path\nPath('touched').touch()\ndef N(num_classes): ...\n"
    )
    Path("run.toml").write_text('method = "at"\nmodel.name = "evil:N"\n')
    Path("run.json").write_text(json.dumps({"run": {"method": "at", "model": {"name": "evil:N"}}}))
    for name in ("run.toml", "run.json"):
        for words in ([], ["--trust-model", "evil:M"], ["--print-config"]):
            outcome = taet("train", "--config", name, *words)
            assert outcome.code == 2
            assert (
                f"{name}: got the model 'evil:N', which is code outside this package; allowed: with"
            ) in outcome.err
    assert (
        taet("train", "--config", "run.toml", "--trust-model", "evil:N", "--print-config").code == 0
    )
    assert taet("train", "--config", "run.toml", "--model", "evil:N", "--print-config").code == 0
    assert not Path("touched").exists()
    # it builds no network
    assert taet("train", "--config", "run.toml", "--trust-model", "evil:N").code == 2
    assert Path("touched").exists()
    sys.modules.pop("evil")
    CUSTOM.discard("evil")


# -- what is chosen and said


@pytest.mark.parametrize(
    ("words", "network"),
    [
        ("at", "resnet8"),
        ("at --model resnet18", "resnet18"),
        ("at --protocol taet", "resnet18"),
        ("at --protocol reat --data cifar10-lt", "resnet18"),
    ],
)
def test_the_network_suits_images_and_machine_unless_it_or_its_protocol_is_named(
    words: str, network: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    run, decided = read(words.split()).planned()
    assert run.model.name == network
    assert ("data.name" in decided) == ("--data" not in words)
    assert ("model.name" in decided) == (network == "resnet8")
    assert all(
        "--protocol taet has resnet18" in made.why
        for name, made in decided.items()
        if name == "model.name"
    )


def test_a_run_on_the_cpu_is_planned_for_it_on_a_machine_with_a_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    run, decided = read(["at", "--data", "cifar10-lt", "--device", "cpu"]).planned()
    assert run.model.name == "resnet8"
    assert decided["model.name"].why == "training is on the CPU; --protocol taet has resnet18"


def test_what_may_go_wrong_is_said_first(tiny: Callable[..., Run]) -> None:
    text = introduction(*prepare(tiny("taet", {"training.batch_size": 4})), {})
    said = "--method.alpha 1 was more robust", "a batch of 4 misses about 7 of 10 classes"
    assert [part in text for part in (*said, "shorter: ")] == [True, True, False]
    seven = {"training.batch_size": 7}  # of even batches 4.8 classes are missed, less than half
    found = [
        prepare(tiny("taet", {**seven, "training.sampling": of}))
        for of in ("shuffled", "class-balanced")
    ]
    assert ["misses" in introduction(*of, {}) for of in found] == [True, False]
    short = " cannot reach eps 0.05; see --threat.steps and --threat.step-size"
    whole = introduction(*prepare(tiny("at", {"threat.step_size": 0.05})), {})
    # without an attack
    own = introduction(*prepare(tiny("standard", {"threat.start": "none"})), {})
    assert [short in told for told in (text, whole, own)] == [True, False, False]
    assert "steps and start of --threat change nothing" in own


@pytest.mark.parametrize(
    ("attacks", "few", "ways"),
    [
        (["clean", "autoattack"], 1, ["epochs", "evaluation.attacks", "data.test-max-count"]),
        (["clean", "quick"], 100, ["epochs"]),
        (["clean", "pgd-100"], 1, ["epochs", "data.test-max-count"]),
    ],
)
def test_hours_name_what_shortens_them_and_nothing_else(
    attacks: list[str],
    few: int,
    ways: list[str],
    tiny: Callable[..., Run],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for place in ("taet.training.prepare", "taet.evaluation.runner"):
        monkeypatch.setattr(f"{place}.seconds_of", lambda *_: 4000.0)
    monkeypatch.setattr("taet.cli.introduction.FEW", few)
    plan, state = prepare(tiny("at", {"training.epochs": 4, "evaluation.attacks": attacks}))
    *_, shorter = introduction(plan, state, {}).splitlines()
    assert re.findall(r"--(\S+)", shorter) == ways
    assert read(["at", *re.sub(r"shorter: |,|\(.*?\)", "", shorter).split()])
    assert f"--epochs 1 ({duration(expected_seconds(plan, state) / 4)})" in shorter


@pytest.mark.full
def test_own_images_need_no_other_options_and_are_attacked_and_reported(
    lesions: Path, monkeypatch: pytest.MonkeyPatch, taet: Any
) -> None:
    monkeypatch.setattr("taet.experiments.own_choices.FEWEST_EPOCHS", 2)
    monkeypatch.setattr("taet.experiments.own_choices.STEPS", 2)
    folder = lesions.parent / "run"
    outcome = taet("train", "taet", "--data", f"folder:{lesions}", "--out", folder)
    assert outcome.code == 0, outcome.err
    said = outcome.err + outcome.out
    for part in (
        "14 train + 3 test images of 2 classes",
        "10 'naevus' to 4 'melanoma' to train on",
        "--epochs",
    ):
        assert part in said
    assert f"report: {folder / 'report.html'}" in said
    assert (folder / "evaluation.json").is_file()
    assert (folder / "report.html").is_file()


@pytest.mark.full
def test_a_run_goes_on_where_it_was_stopped_and_is_attacked_as_it_is_told(
    lesions: Path, small: list[str], tmp_path: Path, taet: Any
) -> None:
    folder = lesions.parent / "run"
    short = ("--epochs", "1", "--monitor-every", "0", "--threat.steps", "1")
    outcome = taet("train", "at", "--data", lesions, *short, "--no-evaluate", "--out", folder)
    assert outcome.code == 0, outcome.err
    assert not (folder / "evaluation.json").exists()
    assert "next: taet evaluate" in outcome.out
    assert "training will take about" in outcome.err
    assert "its evaluation" not in outcome.err
    assert taet("train", "--resume", folder).code == 0
    assert (folder / "report.html").is_file()
    again = taet("train", "--resume", folder, "--no-evaluate")
    assert f"next: taet report {folder}" in again.out, "it has been evaluated"
    words = [
        "train",
        "standard",
        *small,
        "--epochs",
        "1",
        "--evaluation.attacks",
        "clean",
        "--evaluate",
        "--out",
    ]
    assert taet(*words, tmp_path / "b").code == 0
    assert (tmp_path / "b" / "report.html").is_file()
