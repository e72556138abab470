"""`taet train`: runs from files, what is chosen for images and machine, and what is said before the
first step."""

import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
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
from tests.conftest import write_lesions

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


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    """A file of settings."""
    path = tmp_path / "run.toml"
    path.write_text(
        'method = "trades"\nseed = 3\ntraining.epochs = 9\n[threat]\neps = "4/255"\nsteps = 2\n'
    )
    return path


def test_an_option_replaces_its_setting_of_the_file_and_leaves_the_others(toml: Path) -> None:
    run = read(["--config", str(toml), "--threat.steps=5"]).run()
    assert run.threat.steps == 5
    assert (run.method, run.seed, run.training.epochs) == ("trades", 3, 9)
    assert run.threat.eps == 4 / 255


def test_the_method_of_the_call_replaces_that_of_the_file(toml: Path) -> None:
    run = read(["at", f"--config={toml}", "--seed", "0"]).run()
    assert (run.method, run.seed, run.training.epochs) == ("at", 0, 9)


def test_a_recipe_sets_what_the_file_does_not(toml: Path) -> None:
    assert read(["at", f"--config={toml}", "--recipe", "fast"]).run().training.lr == 0.2


@pytest.mark.parametrize("words", [["--recipe", "fast"], ["--protocol", "reat"]])
def test_a_recipe_or_protocol_that_could_set_nothing_is_refused(
    words: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "run.toml"
    path.write_text(json.dumps({"run": read(["at"]).run().model_dump(mode="json")}))
    message = f"^{words[0]}: would change nothing, as .*run.toml sets .* more; allowed"
    with pytest.raises(UserError, match=message):
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


@pytest.fixture
def files_with_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """run.toml and run.json with a model whose module leaves the file `touched` when imported."""
    monkeypatch.chdir(tmp_path)
    Path("evil.py").write_text(
        "from pathlib import Path\nPath('touched').touch()\ndef N(num_classes): ...\n"
    )
    Path("run.toml").write_text('method = "at"\nmodel.name = "evil:N"\n')
    Path("run.json").write_text(json.dumps({"run": {"method": "at", "model": {"name": "evil:N"}}}))
    yield
    sys.modules.pop("evil", None)
    CUSTOM.discard("evil")


@pytest.mark.usefixtures("files_with_code")
@pytest.mark.parametrize("words", [[], ["--trust-model", "evil:M"], ["--print-config"]])
@pytest.mark.parametrize("name", ["run.toml", "run.json"])
def test_a_file_alone_never_chooses_code(taet: Any, name: str, words: list[str]) -> None:
    outcome = taet("train", "--config", name, *words)
    assert outcome.code == 2
    assert (
        f"{name}: got the model 'evil:N', which is code outside this package; allowed: with"
    ) in outcome.err
    assert not Path("touched").exists()


@pytest.mark.usefixtures("files_with_code")
@pytest.mark.parametrize("option", ["--trust-model", "--model"])
def test_code_that_the_call_names_too_is_allowed_and_not_run_to_print_settings(
    taet: Any, option: str
) -> None:
    assert taet("train", "--config", "run.toml", option, "evil:N", "--print-config").code == 0
    assert not Path("touched").exists()


@pytest.mark.usefixtures("files_with_code")
def test_trusted_code_that_builds_no_network_is_refused(taet: Any) -> None:
    assert taet("train", "--config", "run.toml", "--trust-model", "evil:N").code == 2
    assert Path("touched").exists()


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


@pytest.fixture(scope="module")
def not_evaluated(tmp_path_factory: pytest.TempPathFactory, taet: Any) -> tuple[Path, Any]:
    """A run of one epoch on own images without its evaluation, and what the command printed."""
    folder = tmp_path_factory.mktemp("own")
    images = write_lesions(folder / "lesions")
    short = ("--epochs", "1", "--monitor-every", "0", "--threat.steps", "1")
    words = ("train", "at", "--data", images, *short, "--no-evaluate", "--out", folder / "run")
    outcome = taet(*words)
    assert outcome.code == 0, outcome.err
    return folder / "run", outcome


@pytest.mark.full
def test_a_run_that_is_not_evaluated_is_told_so(not_evaluated: tuple[Path, Any]) -> None:
    folder, outcome = not_evaluated
    assert not (folder / "evaluation.json").exists()
    assert "next: taet evaluate" in outcome.out
    assert "training will take about" in outcome.err
    assert "its evaluation" not in outcome.err


@pytest.mark.full
def test_resume_evaluates_a_trained_run_and_then_knows_it(
    not_evaluated: tuple[Path, Any], taet: Any
) -> None:
    folder = shutil.copytree(not_evaluated[0], not_evaluated[0].with_name("resumed"))
    assert taet("train", "--resume", folder).code == 0
    assert (folder / "report.html").is_file()
    again = taet("train", "--resume", folder, "--no-evaluate")
    assert f"next: taet report {folder}" in again.out, "it has been evaluated"


@pytest.mark.full
def test_a_run_on_a_known_set_is_evaluated_where_the_call_says_so(
    small: list[str], tmp_path: Path, taet: Any
) -> None:
    words = ["standard", *small, "--epochs", "1", "--evaluation.attacks", "clean", "--evaluate"]
    assert taet("train", *words, "--out", tmp_path / "run").code == 0
    assert (tmp_path / "run" / "report.html").is_file()
