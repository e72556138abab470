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
WISE, IR50 = "cifar10-lt-class-wise", MINI + "/{}_cifar10-lt_ir50_seed{}"
PLAIN, BSL, REAT = (
    IR50.format(*row) for row in (("at", "0-44a790f3"), ("at-bsl", "0-0e677bf7"), ("reat", "0-4be6c47b"))
)
BSLS = IR50.format("at-bsl", "?-[0-3]???????")
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
    "results/ham10000-fine-tune/about.md": """
        ham10000-fine-tune trades standard clean
        ham10000-fine-tune trades standard autoattack-fast""",
    "results/ham10000/about.md": "ham10000 taet at-bsl autoattack-fast",
    "results/digits-lt-extra/about.md": """
        digits-lt-extra held-back-seed? none-seed? pgd-20
        digits-lt-extra held-back-seed? none-seed? autoattack-fast
        digits-lt-extra copies-seed? none-seed? clean
        digits-lt-extra copies-inverse-seed? none-seed? clean
        digits-lt-extra held-back-seed? copies-inverse-seed? clean
        digits-lt-extra held-back-seed? copies-inverse-seed? autoattack-fast
        digits-lt-extra mixed-inverse-seed? copies-inverse-seed? clean
        digits-lt-extra mixed-inverse-seed? copies-inverse-seed? autoattack-fast
        digits-lt-extra gaussian-inverse-seed? copies-inverse-seed? clean
        digits-lt-extra gaussian-inverse-seed? copies-inverse-seed? autoattack-fast
        digits-lt-extra mixed-inverse-seed? mixed-seed? clean""",
    "results/cifar10-lt-class-wise/about.md": f"""
        . {WISE}/counts+at-bsl-seed0 {BSL} autoattack
        . {WISE}/dafa+at-bsl-seed0 {BSL} autoattack
        . {WISE}/cfa+at-bsl-seed0 {BSL} autoattack
        . {WISE}/counts+at-bsl-seed0 {BSL} clean
        . {WISE}/cgr-prior-alone-seed? {BSLS} autoattack
        . {WISE}/cgr-seed0 {BSL} clean
        . {WISE}/cgr-seed0 {BSL} autoattack
        . {WISE}/faal-seed? {BSLS} autoattack
        . {WISE}/faal-seed? {BSLS} clean
        . {WISE}/n-fgsm-seed? {BSLS} autoattack
        . {WISE}/faal-seed0 {PLAIN} autoattack
        . {WISE}/frl-seed0 {PLAIN} autoattack
        . {WISE}/cfa-seed0 {PLAIN} autoattack
        . {WISE}/dafa-seed0 {PLAIN} autoattack
        . {WISE}/n-fgsm-seed0 {PLAIN} autoattack
        . {WISE}/liet-seed0 {PLAIN} autoattack
        . {WISE}/wat-seed0 {BSL} autoattack
        {WISE} cgr-prior-alone-seed0 cgr-seed0 autoattack
        {WISE} cgr-seed0 cgr-prior-alone-seed0 clean""",
    "results/digits-lt-class-wise/about.md": """
        digits-lt-class-wise cfa+at-seed? at-seed? autoattack-fast
        digits-lt-class-wise cfa+at-bsl-seed? at-bsl-seed? autoattack-fast
        digits-lt-class-wise cfa+at-seed? at-seed? clean
        digits-lt-class-wise dafa+at-seed? at-seed? autoattack-fast
        digits-lt-class-wise dafa+at-bsl-seed? at-bsl-seed? autoattack-fast
        digits-lt-class-wise counts+at-seed? at-seed? autoattack-fast
        digits-lt-class-wise counts+at-bsl-seed? at-bsl-seed? autoattack-fast
        digits-lt-class-wise cgr-prior-alone-seed? cgr-seed? autoattack-fast
        digits-lt-class-wise cgr-prior-alone-seed? at-bsl-seed? autoattack-fast
        digits-lt-class-wise cgr-seed? at-bsl-seed? autoattack-fast
        digits-lt-class-wise cgr-no-prior-seed? cgr-seed? clean
        digits-lt-class-wise cgr-no-margin-seed? cgr-seed? clean
        digits-lt-class-wise cgr-no-margin-seed? cgr-seed? autoattack-fast
        digits-lt-class-wise frl-seed? at-bsl-seed? autoattack-fast
        digits-lt-class-wise dafa-seed? at-bsl-seed? autoattack-fast
        digits-lt-class-wise cfa-seed? at-bsl-seed? autoattack-fast
        digits-lt-class-wise n-fgsm-seed? at-seed? autoattack-fast
        digits-lt-class-wise n-fgsm-long-seed? at-seed? autoattack-fast
        digits-lt-class-wise n-fgsm-long-seed? at-seed? clean
        digits-lt-class-wise dafa+at-seed? n-fgsm-long-seed? autoattack-fast
        digits-lt-class-wise at-long-seed? n-fgsm-long-seed? clean
        digits-lt-class-wise at-long-seed? n-fgsm-long-seed? autoattack-fast
        digits-lt-class-wise at-long-seed? at-seed? clean
        digits-lt-class-wise at-long-seed? at-seed? autoattack-fast""",
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


LT, RA = "digits-lt-methods/{}-seed?", "digits-lt-methods/ra+bsl/{}-seed0"
FOCAL, LDAM, BALANCED = (IR50.format("at", f"0-{cell}") for cell in ("b49df1da", "30e2c483", "9644792c"))
MART, TRADES, ROBAL = (IR50.format(*cell) for cell in (("mart", "0-9*"), ("trades", "0-4*"), ("robal", "0-*")))
FAILING = [IR50.format(*cell) for cell in (("trades", "0-7*"), ("mart", "0-d*"), ("at-bsl", "0-6*"))]
EQUAL = f"{MINI}/at_cifar10-balanced-small_*"
IR10 = "reproduce/{}/{}_cifar10-lt_ir10_seed0-*"
TAETS = {
    "taet": "taet-8323d86a",
    "bcl": "taet-6e7f8955",
    "hdl": "taet-d0e33853",
    "rcel": "taet-4c602d22",
    "five steps": "taet-66c1c68b",
    "twenty steps": "taet-b738de16",
    "thirty steps": "taet-9068d699",
    "forty steps": "taet-be7b4106",
    "gamma": "taet-ca809e4c",
    "beta": "taet-ebb4cb58",
    "beta, gamma": "taet-c9c0ee45",
    "alpha": "taet-4f6fa05f",
    "alpha, gamma": "taet-6cb4c10d",
    "alpha, beta": "taet-2ccc2dae",
    "all": "taet-fc4a9818",
}
"""TAET as published, with one term of HEL, other steps, half of these weights: method and the key of the run."""


def mini10(*names: str) -> list[str]:
    """The cards of these rows at scale mini and imbalance ratio 10."""
    found = (TAETS.get(name, f"{name}-*").rpartition("-") for name in names)
    return [f"reproduce/mini/{method}_cifar10-lt_ir10_seed0-{key}" for method, _, key in found]


DISCUSSION = [  # words of results/README.md, the attack, the row of each number, or the two rows of a difference
    (
        "TRADES ends at 10.7 % of the clean images, MART and AT-BSL with weight perturbation at 33.2 and 33.2 %",
        "clean",
        FAILING,
    ),
    (
        "AT-BSL 22.7, RoBal 22.1, REAT 21.8, LAS-AT 21.6, AT 21.4, MART 21.4, ADT 21.3, HE 21.1",
        "autoattack",
        mini10("at-bsl", "robal", "reat", "las-at", "at", "mart", "adt", "he"),
    ),
    (
        "TRADES has 19.1, TAET 16.1 and GAIRAT 16.0",
        "autoattack",
        mini10("trades", "taet", "gairat"),
    ),
    (
        "REAT has 48.5, AT-BSL 47.8, RoBal 46.6, GAIRAT 44.4, TRADES 37.8, ADT 35.6, AT 34.2, MART 33.2",
        "clean",
        mini10("reat", "at-bsl", "robal", "gairat", "trades", "adt", "at", "mart"),
    ),
    ("HE 32.9, LAS-AT 31.6 and TAET 30.8", "clean", mini10("he", "las-at", "taet")),
    ("ends at 13.0 % of the clean", "clean", [IR50.format("reat", "0-baff*")]),
    ("and 2.1 % under AutoAttack: that", "autoattack", [IR50.format("reat", "0-baff*")]),
    ("are level (65.0, 64.7, 64.7;", "autoattack", [LT.format(name) for name in ("reat", "at", "at-bsl")]),
    ("21.3 against 27.7 % under AutoAttack", "autoattack", [IR10.format("cpu", name) for name in ("taet", "at-bsl")]),
    ("49.6 against 58.6 on clean images", "clean", [IR10.format("cpu", name) for name in ("taet", "at-bsl")]),
    ("(16.1 against 22.7;", "autoattack", mini10("taet", "at-bsl")),
    (
        "BCL alone 24.5, all three terms 22.3, HDL alone 3.0, RCEL alone 0.0",
        "pgd-20",
        mini10("bcl", "taet", "hdl", "rcel"),
    ),
    ("it is 30.8, 30.4, 27.0 and 29.0.", "clean", mini10("taet", "gamma", "alpha", "alpha, gamma")),
    ("is 42.9, 43.2, 35.7 and 36.4;", "clean", mini10("beta, gamma", "beta", "alpha, beta", "all")),
    ("lie between 19.6 and 23.7, and", "pgd-20", mini10("alpha", "beta, gamma")),
    ("one has 22.3. That", "pgd-20", mini10("taet")),
    ("15.5 against 16.1 under AutoAttack", "autoattack", mini10("five steps", "taet")),
    ("and 39.5 against 30.8", "clean", mini10("five steps", "taet")),
    ("level: 30.8, 30.9 with twenty, 31.6 with", "clean", mini10("taet", "twenty steps", "thirty steps")),
    ("31.6 with thirty, 33.3 with forty", "clean", mini10("thirty steps", "forty steps")),
    ("on clean images, 30.8 against 44.0 (C10)", "clean", mini10("taet", "bcl")),
    ("12.6 points better than AT on clean images", "clean", [(BSL, PLAIN)]),
    ("2.6 points worse under AutoAttack", "autoattack", [(PLAIN, BSL)]),
    ("(16.8 against 19.4)", "autoattack", [BSL, PLAIN]),
    ("AT-BSL has 17.0 and 17.4 %", "autoattack", [IR50.format("at-bsl", seed) for seed in ("1-*", "2-*")]),
    ("and REAT 17.9, 16.3 and 18.0 %", "autoattack", [REAT, *(IR50.format("reat", seed) for seed in ("1-*", "2-*"))]),
    (
        "12.7, 16.9 and 17.4 % under",
        "autoattack",
        [f"{CHOSEN}/at-bsl_*seed0*", f"{CHOSEN}/at-bsl_*seed1*", IR50.format("at-bsl", "2-*")],
    ),
    ("and REAT's 17.9, 14.7 and 18.4 %", "autoattack", [REAT, f"{CHOSEN}/reat_*seed1*", f"{CHOSEN}/reat_*seed2*"]),
    ("MART 19.5, AT 19.4, LDAM 18.9, focal 18.8,", "autoattack", [MART, PLAIN, LDAM, FOCAL]),
    (
        "REAT 17.9, TRADES 17.7, class-balanced 16.9, AT-BSL 16.8, RoBal 14.2",
        "autoattack",
        [REAT, TRADES, BALANCED, BSL, ROBAL],
    ),
    ("AT-BSL 40.0, RoBal 39.6, REAT 38.8, class-balanced 37.6,", "clean", [BSL, ROBAL, REAT, BALANCED]),
    ("focal and TRADES 28.1,", "clean", [FOCAL]),
    ("TRADES 28.1, AT 27.4, MART 26.8, LDAM 25.1", "clean", [TRADES, PLAIN, MART, LDAM]),
    (
        "the same with REAT: 18.7 focal, 16.0 class-balanced, 18.7 LDAM",
        "autoattack",
        [IR50.format("reat", f"0-{key}") for key in ("c2bb813f", "f379f0d4", "f49d4e72")],
    ),
    ("without imbalance give AT 22.6", "autoattack", [EQUAL]),
    ("which is 5.8 points above AT-BSL", "autoattack", [(EQUAL, BSL)]),
    ("on the long tail, and 45.8 on clean images", "clean", [EQUAL]),
    (
        "FAAL 19.4, N-FGSM 18.9, LIET 18.6, FRL 18.5, CFA 17.9, CGR's prior alone 17.7, AT-BSL 17.1, DAFA 16.9,",
        "autoattack",
        [
            *(f"{WISE}/{name}-seed?" for name in ("faal", "n-fgsm", "liet", "frl", "cfa", "cgr-prior-alone")),
            BSLS,
            f"{WISE}/dafa-seed?",
        ],
    ),
    ("TAET 15.6, CGR 15.1, WAT 13.5", "autoattack", [f"{WISE}/{name}-seed?" for name in ("taet", "cgr", "wat")]),
    (
        "RoBal 65.5, AT and AT-BSL, which are then the same, 63.5,",
        "autoattack",
        [RA.format(name) for name in ("robal", "at")],
    ),
    (
        "which are then the same, 63.5, ADT 63.0, REAT 62.0",
        "autoattack",
        [RA.format(name) for name in ("at-bsl", "adt", "reat")],
    ),
    ("GAIRAT and HE 59.0, LAS-AT 57.0", "autoattack", [RA.format(name) for name in ("gairat", "las-at")]),
    ("HE 59.0, LAS-AT 57.0, RobustLT 54.0", "autoattack", [RA.format(name) for name in ("he", "las-at", "robust-lt")]),
    ("MART 51.5. TRADES drops to 24.0", "autoattack", [RA.format(name) for name in ("mart", "trades")]),
]


def test_numbers_of_the_discussion_are_those_of_the_result_cards() -> None:
    text = (RESULTS / "README.md").read_text(encoding="utf-8")
    text = " ".join(text.partition("## Discussion")[2].partition("## Tables")[0].split())

    @functools.cache
    def percent(row: str, attack: str) -> float:
        paths = [path for path in RESULTS.glob(f"{row}.json") if ".embedding-" not in path.name]
        cards = [ResultCard.load(path) for path in paths]
        return 100 * sum(card.summary(attack).balanced for card in cards) / len(cards)

    checked = set()
    for words, attack, rows in DISCUSSION:
        assert words in text
        numbers = [*re.finditer(r"\d+\.\d", words)]
        for number, row in zip(numbers, rows, strict=True):
            value = percent(row, attack) if isinstance(row, str) else percent(row[0], attack) - percent(row[1], attack)
            assert f"{value:.1f}" == number[0], (words, row)
        checked |= {text.index(words) + number.start() for number in numbers}
    assert {number.start() for number in re.finditer(r"\d+\.\d", text)} == checked


def test_costs_in_texts_are_the_measured_ones() -> None:
    text = " ".join((RESULTS / "README.md").read_text(encoding="utf-8").split())
    costs = {one["name"]: one["seconds_ratio"] for one in json.loads((RESULTS / "cost.json").read_text())["costs"]}
    (words,) = re.findall(r"N-FGSM -0\.6 \(.*?\) at (\S+), LIET -0\.8 \(.*?\) at (\d\.\d+)", text)
    assert words == (f"{costs['n-fgsm']:.2f}", f"{costs['liet']:.2f}")


def test_the_runs_that_the_discussion_warns_of_have_the_flags() -> None:
    folders = ("digits-lt-methods", "cifar10-lt-methods", "cifar10-lt-ir10")
    paths = [path for folder in folders for name in ("taet", "harl") for path in RESULTS.glob(f"{folder}/{name}*.json")]
    paths += [*RESULTS.glob("reproduce/*/taet_*-c6ca4bc1.json"), *RESULTS.glob("reproduce/*/taet_*-8323d86a.json")]
    assert len(paths) == 11
    for path in paths:
        flags = {flag["flag"] for flag in ResultCard.load(path).flags}
        assert {"autoattack-far-below-pgd", "logit-scale"} <= flags, path
