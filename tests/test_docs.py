"""The documents say what the code does: commands exist, examples run, tables are those of the result cards."""

from __future__ import annotations

import functools
import importlib.util
import json
import re
import shlex
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

import taet
from taet import methods, protocols, registry, report
from taet.attacks import catalogue
from taet.attacks.ball import frozen
from taet.attacks.noise import Source
from taet.attacks.spec import option_fields
from taet.cli import (
    COMMANDS,
    audit,
    check,
    compare,
    evaluate,
    export,
    flags,
    gate,
    main,
    predict,
    push,
    transfer,
)
from taet.evaluation import ResultCard, diagnostics
from taet.evaluation.card import compare_runs
from taet.experiments import parse, read
from taet.methods import Task
from taet.methods.base import Attack
from taet.models import build
from taet.protocols import PROTOCOLS
from taet.settings import Threat, override
from taet.training import collapse
from tests.calls import configure


def parser(command: ModuleType, options: type) -> Callable[[list[str]], object]:
    """Read a call of a command whose options are all that it checks."""
    return lambda words: flags.parse(options, words, "taet", command.DESCRIPTION, command.EXAMPLES)


READ = {
    "audit": audit.read,
    "check": check.read,
    "compare": compare.read,
    "evaluate": evaluate.read,
    "export": parser(export, export.ExportOptions),
    "gate": parser(gate, gate.GateOptions),
    "predict": predict.read,
    "push": parser(push, push.PushOptions),
    "transfer": parser(transfer, transfer.TransferOptions),
}
ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def contributed() -> dict[str, str]:
    """The files of CONTRIBUTING.md: each has its path in the sentence before its code."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    return dict(re.findall(r"^`(\w+/\w+\.py)`[^\n]*:\n\n```python\n(.*?)```", text, re.M | re.S))


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files of CONTRIBUTING.md as plug-ins."""
    folder = tmp_path / "plugins"
    for name, source in contributed().items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, encoding="utf-8")
    monkeypatch.setenv("TAET_PLUGINS", str(folder))


def commands() -> list[list[str]]:
    lines = [line for page in PAGES for line in page.read_text(encoding="utf-8").splitlines()]
    calls = [line for line in lines if re.match(r"    taet \w", line) and "|" not in line]
    return [shlex.split(re.split("#|->| > ", call)[0])[1:] for call in calls]


@pytest.mark.sample(2)
@pytest.mark.usefixtures("plugins")
@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_a_command_in_the_documents_exists_with_its_flags(words: list[str]) -> None:
    command, *rest = words
    assert command in COMMANDS
    if command == "train" and rest[0] == "--config":  # of a file that is not there
        rest = ["at", *rest[2:]]
    if command == "train" and rest[0] != "--resume":
        run, _ = configure(rest[0], rest[1:])
        assert run.method == rest[0]
    elif command in READ:
        assert READ[command](rest)


def test_every_method_attack_data_set_and_protocol_is_documented() -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    for kind in ("methods", "attacks", "data", "models"):
        for name in registry.entries(kind):
            assert re.search(rf"`{name}\b", text), f"{name} is in no document"
    for name in PROTOCOLS:
        assert f"`{name}`" in text


def test_the_table_of_attacks_has_every_name_and_option() -> None:
    text = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    table = re.search(r"\| name \| description \| passes of a robust image \| options \|\n.*?\n\n", text, re.S)
    assert table is not None
    rows = [re.split(r" (?<!\\)\| ", row.strip("|")) for row in table[0].splitlines()[2:] if row]
    written = {
        name: set(cells[-1].replace(" ", "").split(",")) for cells in rows for name in re.findall("`(.*?)`", cells[0])
    }
    assert written == {name: set(option_fields(kind)) or {""} for name, kind in catalogue.kinds().items()}


def test_every_flag_of_the_diagnostics_is_documented() -> None:
    text = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    rules = [*diagnostics.ATTACKS, *diagnostics.MODEL, *diagnostics.TEST_SET, *diagnostics.PROBE]
    assert set(re.findall(r"^\| `([\w-]+)` \|", text.partition("## Flags")[2], re.M)) == {
        *(rule.flag for rule in rules),
        diagnostics.BOUND,
        diagnostics.MISLED,
        *collapse.FLAGS,
    }


def test_every_flag_of_the_audit_alone_is_documented() -> None:
    text = (ROOT / "docs" / "audit.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `([\w-]+)` \| [a-z]", text, re.M)) == {rule.flag for rule in diagnostics.AUDIT}


def test_links_lead_somewhere() -> None:
    for page in [*PAGES, ROOT / "results" / "README.md"]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.usefixtures("plugins")
def test_the_contributing_guide_adds_one_file_of_every_kind() -> None:
    added: dict[registry.Kind, str] = {
        "methods": "my-idea",
        "attacks": "corner",
        "data": "two-digits",
        "models": "small-cnn",
    }
    assert len(contributed()) == len(added)
    for kind, name in added.items():
        assert registry.find(kind, name).path is not None


@pytest.mark.usefixtures("plugins")
@pytest.mark.usefixtures("outlined")
def test_what_the_contributing_guide_adds_is_trained_attacked_and_reported(tmp_path: Path) -> None:
    changes = {"data.name": "two-digits", "model.name": "small-cnn", "training.epochs": 1, "training.monitor_every": 0}
    changes |= {"data.max_count": 30, "data.test_max_count": 10}
    changes |= {"settings": {"smoothing": 0.2}, "threat.steps": 1, "threat.eps": 0.1}
    result = taet.train(override(protocols.taet("my-idea"), changes), out=tmp_path / "run")
    card = taet.evaluate(result.folder, attacks=["clean", "corner:tries=2", "pgd-2"])
    assert (card.title, card.data["name"]) == ("AT + label smoothing", "two-digits")
    assert [column.name for column in card.columns] == ["clean", "corner:tries=2", "pgd-2"]
    page = report.write([result.folder], tmp_path / "report.html").read_text(encoding="utf-8")
    assert "AT + label smoothing" in page
    assert "corner" in page


def test_the_contributing_guide_names_files_that_exist() -> None:
    named = re.findall(r"`(taet/[\w/.]+)`", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))
    assert named
    for path in named:
        assert (ROOT / path).exists(), path


@pytest.mark.usefixtures("plugins")
def test_the_method_of_the_contributing_guide_is_plain_training_without_smoothing() -> None:
    task = Task(class_counts=(6, 3, 2), image_shape=(1, 8, 8), epochs=2, steps_per_epoch=1)
    method = methods.build("my-idea", {"smoothing": 0.0}, task)
    model = build("small-cnn", 3, (1, 8, 8))
    x, y = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 0, 1, 1, 2, 2])
    attack = Attack(Threat(steps=2), Source(torch.Generator().manual_seed(0)))
    with frozen(model):
        adversarial = method.perturb(model, x, y, attack)
    loss = method.loss(model, x, y, adversarial)
    torch.testing.assert_close(loss.total, torch.nn.functional.cross_entropy(loss.logits, y))
    loss.total.backward()  # type: ignore[no-untyped-call]


def test_the_specifications_of_comparisons_can_be_read() -> None:
    page = (ROOT / "docs" / "compare.md").read_text(encoding="utf-8")
    source = re.search(r"```toml\n(.*?)```", page, re.S)
    assert source is not None
    assert [entry.name for entry in parse(tomllib.loads(source[1])).methods] == ["at", "taet", "trades", "harl-skip"]
    for path in (ROOT / "results").glob("*/compare.toml"):
        command = f"taet compare {path.relative_to(ROOT)} --out runs/{path.parent.name}"
        assert command in path.read_text(encoding="utf-8")
        read(path)


@pytest.mark.full
def test_the_result_cards_name_the_commands_that_made_them_and_no_machine() -> None:
    cards = [path for path in sorted((ROOT / "results").glob("*/**/*.json")) if ".embedding-" not in path.name]
    assert cards
    for path in cards:
        card = ResultCard.load(path)
        assert card.command.startswith("taet evaluate")
        assert card.run["command"].startswith("taet ")
        assert not re.search(r"/(tmp|home|work|root)/", path.read_text(encoding="utf-8")), path


@pytest.mark.full
def test_every_rendered_page_is_that_of_the_code_and_of_the_cards() -> None:
    render = load(ROOT / "docs" / "render.py")
    for path, text in render.pages().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name}: run python docs/render.py --write"


def test_every_golden_number_is_checked_by_a_test_and_named_on_a_page() -> None:
    """Averages and weight perturbation are no method's, so no page names theirs."""
    render = load(ROOT / "docs" / "render.py")
    named = {key for name in registry.entries("methods") for key in render.golden_keys(name)}
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    families = set(re.findall(r'f"(\w+_)\{', tests))
    for path in (ROOT / "tests" / "golden").glob("*.json"):
        if path.stem == "long_tail":  # whose test runs over every key
            continue
        for key in json.loads(path.read_text(encoding="utf-8")):
            assert f'"{key}"' in tests or any(key.startswith(family) for family in families), f"{key} has no test"
            if path.stem == "methods":
                assert key in named, f"{key} is on no page"


def test_the_changelog_knows_this_version() -> None:
    assert f"## {taet.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"version: {taet.__version__}" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f'version = "{taet.__version__}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


MINI, CHOSEN = "reproduce/mini", "reproduce/mini-selected"
IR50 = MINI + "/{}_cifar10-lt_ir50_seed{}"
PLAIN, BSL, REAT = (
    IR50.format(*row) for row in (("at", "0-44a790f3"), ("at-bsl", "0-0e677bf7"), ("reat", "0-4be6c47b"))
)
SHOWN = {  # paired differences in hand-written text, by page: folder of results, first row, second row, attack
    "README.md": f"""
        {MINI} taet_cifar10-lt_ir10_seed0-8323d86a at-bsl_cifar10-lt_ir10_seed0-8108faaa autoattack
        reproduce/cpu taet_cifar10-lt_ir10_seed0-c6ca4bc1 at-bsl_cifar10-lt_ir10_seed0-1790144f autoattack
        . {REAT} {CHOSEN}/at-bsl_cifar10-lt_ir50_seed0-2df819c8 autoattack
        {CHOSEN} reat_cifar10-lt_ir50_seed1-4aa0faaa at-bsl_cifar10-lt_ir50_seed1-7e9396c1 autoattack
        . {REAT} {BSL} autoattack""",
    "docs/extra-data.md": "digits-lt-extra gaussian-inverse-seed? copies-inverse-seed? autoattack-fast",
    "docs/fine-tuning.md": """
        ham10000-fine-tune trades standard clean
        ham10000-fine-tune trades standard autoattack-fast""",
}


def test_paired_intervals_in_texts_are_those_of_the_result_cards() -> None:
    """Tables and findings.md are rendered, and have tests of their own."""
    pages = [*PAGES, *(ROOT / "results").glob("*/about.md")]
    texts = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in pages}
    load_once = functools.cache(ResultCard.load)
    signed = re.compile(r"([+-]\d+\.\d)\s+to\s+([+-]\d+\.\d)(?!\d)")
    for page in texts.keys() - {"docs/findings.md"}:
        text = re.sub(r"^\|.*$", "", texts[page], flags=re.M).replace("−", "-")
        expected = {}
        for folder, *rows, column in map(str.split, SHOWN.get(page, "").strip().splitlines()):
            sides = [[load_once(path) for path in sorted((RESULTS / folder).glob(f"{row}.json"))] for row in rows]
            found = compare_runs(sides[0], sides[1], column)
            expected[f"{100 * found.low:+.1f}", f"{100 * found.high:+.1f}"] = f"{abs(100 * found.value):.1f}"
        assert set(signed.findall(text)) == expected.keys(), page
        for quoted in signed.finditer(text):
            before = text[max(0, quoted.start() - 160) : quoted.start()]
            assert expected[quoted.groups()] in re.findall(r"\d+\.\d", before), (page, quoted[0])


def test_the_example_of_the_gate_is_what_it_prints(capsys: pytest.CaptureFixture[str]) -> None:
    cards = [str(RESULTS / "digits-lt-methods" / f"{name}-seed0.json") for name in ("at", "harl")]
    assert main(["gate", *cards, "--columns", "clean", "autoattack"]) == 1
    indented = "".join(f"    {line}\n" for line in capsys.readouterr().out.splitlines())
    assert indented in (ROOT / "docs" / "gate.md").read_text(encoding="utf-8")
