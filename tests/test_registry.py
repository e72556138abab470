"""Methods, attacks, data and models are found by reading files, and every one of them can be
loaded."""

import shutil
import typing
from pathlib import Path

import pytest

from taet import methods, registry
from taet.cli import main
from taet.files import file_sha256
from taet.registry import Kind
from taet.run.folder import RunFolder
from tests.calls import forget, one_line

KINDS = typing.get_args(Kind)
# What the project promises by name; more may come.
PROMISED = {
    "methods": "adt at at-bsl gairat harl he las-at mart reat robal robust-lt standard taet trades",
    "losses": "cross-entropy balanced-softmax logit-adjustment focal class-balanced ldam",
    "attacks": "fgsm pgd pgd-l2 cw-linf cw-l2 deepfool adaptive autoattack autoattack-fast "
    "autoattack-10 autoattack-l2",
    "data": "digits-lt cifar10-lt",
    "models": "resnet18 resnet8",
}
ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("kind", KINDS)
def test_every_promised_name_is_there_with_a_title_and_every_entry_loads(kind: Kind) -> None:
    entries = registry.entries(kind)
    assert set(entries) >= {*PROMISED[kind].split()}
    assert list(entries) == sorted(entries)
    assert not {"base", "wrapper", "init", "--init--"} & set(entries)
    for name, entry in entries.items():
        assert 10 <= len(entry.title) <= 170, name
        assert "\n" not in entry.title
        assert (name, "_" in name) == (name.lower(), False)
        module = registry.find(kind, name).load()
        assert module.__name__.split(".")[1] in registry.FOLDERS[kind]
        assert (
            name in module.NAMES
            if kind != "methods"
            else methods.find(name).__module__ == module.__name__
        )


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        (
            "methods",
            "at_bsl",
            r"unknown method 'at_bsl'; allowed: adt, at, .*did you mean 'at-bsl'\?$",
        ),
        (
            "methods",
            "prediction-balanced",
            r"taet, trades, wat; is it a plugin\? name its folder in TAET_PLUGINS$",
        ),
        ("models", "zzz", r"unknown model 'zzz'; allowed: [^;]+$"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest_match(
    kind: Kind, name: str, message: str
) -> None:
    with one_line(message):
        registry.find(kind, name)


# Plug-ins


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of a user with the method of the example."""
    (tmp_path / "methods").mkdir()
    shutil.copy(ROOT / "examples" / "add_a_method.py", tmp_path / "methods" / "own.py")
    (tmp_path / "methods" / "_shared.py").write_text("RATE = 0.1")  # no method
    monkeypatch.setenv("TAET_PLUGINS", str(tmp_path))
    return tmp_path


@pytest.mark.usefixtures("plugins")
def test_a_method_of_a_user_is_in_the_list_and_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["list", "methods"]) == 0
    shown = capsys.readouterr().out
    assert "prediction-balanced  Cross-entropy with larger weights" in shown
    assert "shared" not in shown
    short = (
        "--data.max-count 20 --model resnet8 --epochs 1 --threat.steps 1 --monitor-steps 1 "
        "--threads 1"
    )
    words = ["train", "robust-lt", "--method.base", "prediction-balanced", *short.split()]
    assert main([*words, "--out", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run" / "done").exists()
    assert main(["train", "prediction-balanced", "--method.power", "9"]) == 2
    assert "method power: got 9; allowed: a number, 0 to 4" in capsys.readouterr().err


def test_the_title_of_a_method_is_the_first_paragraph_of_its_file(plugins: Path) -> None:
    (plugins / "methods" / "long.py").write_text(
        '"""A sentence that needs more than one line\nof its file.\n\nMore about it.\n"""\n'
    )
    title = registry.entries("methods")["long"].title
    assert title == "A sentence that needs more than one line of its file"


def test_a_run_knows_the_code_of_its_method(
    plugins: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = (
        "--data.max-count 20 --model resnet8 --epochs 1 --threat.steps 1 --monitor-steps 1 "
        "--threads 1"
    )
    words = ["train", "prediction-balanced", *short.split(), "--out", str(plugins / "run")]
    assert main(words) == 0
    source = plugins / "methods" / "own.py"
    record = RunFolder(plugins / "run").record
    assert record.code == {"method": file_sha256(source)}
    source.write_text(source.read_text() + "\n")
    (plugins / "run" / "done").unlink()
    assert main(["train", "--resume", str(plugins / "run")]) == 2
    assert "the plug-in of the method is not the file that" in capsys.readouterr().err
    assert main([*words, "--data", "npz:none.npz"]) == 2  # before images are read
    assert "holds a run; choose another --out" in capsys.readouterr().err


def test_a_changed_file_is_imported_again_so_that_its_hash_is_that_of_the_code_that_runs(
    plugins: Path,
) -> None:
    first = methods.find("prediction-balanced")
    source = plugins / "methods" / "own.py"
    source.write_text(source.read_text().replace("= 0.25", "= 0.75"))  # of the same length
    assert methods.find("prediction-balanced").Config().power == 3 * first.Config().power == 0.75


def test_a_file_can_be_added_in_a_program(plugins: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TAET_PLUGINS")
    for _ in range(2):
        registry.add("methods", plugins / "methods" / "own.py")
    assert methods.find("prediction-balanced").title == "Prediction-balanced AT"
    forget("methods", plugins / "methods" / "own.py")
    assert "prediction-balanced" not in registry.entries("methods")
    with one_line("allowed: a Python file"):
        registry.add("methods", plugins / "methods" / "none.py")
    with one_line("unknown kind 'method'; .* did you mean 'methods'"):
        registry.add("method", plugins / "methods" / "own.py")  # type: ignore[arg-type]
    for place in ("nowhere", "methods"):  # one level too deep
        monkeypatch.setenv("TAET_PLUGINS", str(plugins / place))
        with one_line(rf"TAET_PLUGINS: got .*{place}; allowed: folders"):
            registry.entries("methods")


EXAMPLE = (ROOT / "examples" / "add_a_method.py").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (
            "class Config(Method.Config)",
            "class Config",
            "got 0 methods; .* whose Config extends Method.Config",
        ),
        ("def loss(", "def lose(", "got no method loss; allowed: one or more of"),
        ("] = 0.25", "]", "power without a default"),
        ("class Predict", "class Two(Method): ...\n\nclass Predict", "got 2 methods; allowed: one"),
        ("import torch\n", "import no_such_module\n", "cannot be imported: ModuleNotFoundError"),
        ('"prediction-balanced": ', '"at": ', "the method 'at' exists already; rename yours"),
    ],
)
def test_a_file_that_lacks_a_part_is_refused_in_one_line(
    plugins: Path, before: str, after: str, message: str
) -> None:
    path = plugins / "methods" / "own.py"
    assert EXAMPLE.count(before) == 1
    path.write_text(EXAMPLE.replace(before, after))
    forget("methods", path)
    with one_line(rf"own\.py:? .*{message}"):
        methods.find("prediction-balanced")
