"""The documents say what the code does: commands parse, code runs, links lead somewhere, tables are
fresh."""

import importlib
import json
import re
import shlex
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import pytest
import torch

import taet
from taet import protocols, registry
from taet.attacks import catalogue
from taet.attacks.spec import option_fields
from taet.cli import COMMANDS, check, compare, data, evaluate, export, main, predict, push, report
from taet.cli.options import Command, Options, parse
from taet.evaluation import ResultCard
from taet.evaluation.flags import FLAGS
from taet.protocols import PROTOCOLS
from taet.settings import Data, Slurm, override
from taet.training import curve
from tests.calls import configure

KINDS: dict[str, type[Command]] = {
    "check": check.CheckCommand,
    "compare": compare.Compare,
    "data": data.DataCommand,
}
KINDS |= {
    "export": export.Export,
    "predict": predict.Predict,
    "push": push.Push,
    "report": report.Report,
}
ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(DOCS.glob("*.md")),
    *sorted(ROOT.glob("results/*.md")),
]
PAGES += [ROOT / "performance" / "README.md"]
WIDEST_CODE = 90
TWICE = "taet (alpha 1, beta 0, gamma 0)"
FEWEST = "cifar10-lt-f[ae][sw]*/taet-[12][25]-epochs-none-seed?"
SHOWN = [  # differences in hand-written text: page, cards, first row, second row, attack
    ("README.md", "reproduce/cpu/*", "at-bsl", "at", "autoattack"),
    ("README.md", "reproduce/cpu/*", "at-bsl", "at", "clean"),
    ("README.md", "reproduce/gpu/*", "taet", "at-bsl", "pgd-20"),
    ("README.md", "reproduce/gpu/*", "taet", "at-bsl", "clean"),
    ("README.md", "reproduce/gpu/*", "taet", "at-bsl", "cw-linf-100"),
    ("README.md", "reproduce/cpu/*", "taet", "at", "autoattack"),
    ("docs/which-method.md", "reproduce/cpu/*", "at-bsl", "at", "autoattack"),
    ("docs/which-method.md", "ham10000/*", "at-bsl", "at", "autoattack-fast"),
    ("docs/which-method.md", "ham10000/*", "taet", "at", "autoattack-fast"),
    (
        "docs/fine-tuning.md",
        "ham10000-transfer/[rs]*-seed*",
        "at-bsl (weights run",
        "at-bsl",
        "autoattack-fast",
    ),
    ("docs/fine-tuning.md", "ham10000-few-steps/[rs]*-seed?", "at (", "at-bsl", "autoattack-fast"),
    (
        "docs/fine-tuning.md",
        "ham10000-[tf][re][aw]*/scratch-*",
        "at-bsl (step_size 3",
        "at-bsl (step_size 1",
        "pgd-20",
    ),
    (
        "docs/speed.md",
        "cifar10-lt-f[ae][sw]*/[at]*-[34][01]-epochs-none-seed?",
        TWICE[:-1],
        "at-bsl",
        "quick",
    ),
    ("docs/speed.md", FEWEST, f"{TWICE[:-1]}, epochs 12", f"{TWICE[:-1]}, epochs 25", "quick"),
    ("docs/speed.md", FEWEST, f"{TWICE[:-1]}, epochs 12", f"{TWICE[:-1]}, epochs 25", "clean"),
    (
        "docs/speed.md",
        "cifar10-lt-fast-search/bcl2-25-[bn][6o]*",
        f"{TWICE[:-1]}, augment none)",
        TWICE,
        "quick",
    ),
    ("docs/speed.md", "cifar10-lt-fast-search/at-bsl-*", "at-bsl (augment none", "at-bsl", "quick"),
    (
        "docs/speed.md",
        "cifar10-lt-fast/at-bsl-100-*-seed0",
        "at-bsl (eps 10",
        "at-bsl",
        "autoattack",
    ),
    ("docs/speed.md", "cifar10-lt-fast/at-bsl-100-*-seed0", "at-bsl (eps 10", "at-bsl", "clean"),
    ("docs/speed.md", "cifar10-lt-ir50/*", "taet", "at-bsl", "autoattack-fast"),
    ("docs/speed.md", "cifar10-lt-ir50/*", "taet", "at-bsl", "clean"),
    ("docs/notes-on-papers.md", "cifar10-lt-factors-search/*", TWICE, "taet", "quick"),
    (
        "docs/notes-on-papers.md",
        "cifar10-lt-f[ae][sw]*/taet-41-*-none-*",
        "taet (alpha 3",
        TWICE[:-1],
        "quick",
    ),
    (
        "docs/fine-tuning.md",
        "archive/ham10000-augmentation/*",
        "at-bsl (augment none",
        "at-bsl",
        "quick",
    ),
    ("docs/fine-tuning.md", "ham10000-fine-tune/*", "trades", "standard", "clean"),
    ("docs/fine-tuning.md", "ham10000-fine-tune/*", "trades", "standard", "autoattack-fast"),
]


def text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def code(path: Path, language: str = "python") -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text(path), re.S)


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files of CONTRIBUTING.md as plug-ins: each has its path in the sentence before its
    code."""
    page = text(ROOT / "CONTRIBUTING.md")
    for name, source in re.findall(
        r"^`(\w+/\w+\.py)`[^\n]*:\n\n```python\n(.*?)```", page, re.M | re.S
    ):
        path = tmp_path / "plugins" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, encoding="utf-8")
    monkeypatch.setenv("TAET_PLUGINS", str(tmp_path / "plugins"))


def commands(*pages: Path) -> list[list[str]]:
    lines = "\n".join(text(page).replace("\\\n", " ") for page in pages)
    calls = re.findall(r"^    (taet \w.*)$", lines, re.M)
    return [shlex.split(re.split(" #| > ", call)[0])[1:] for call in calls]


@pytest.mark.sample(2)
@pytest.mark.usefixtures("plugins")
@pytest.mark.parametrize("words", commands(*PAGES), ids=" ".join)
def test_a_command_in_the_documents_parses(words: list[str]) -> None:
    command, *rest = words
    assert command in COMMANDS
    if command == "train" and rest[0] != "--resume":
        rest = ["at", *rest[2:]] if rest[0] == "--config" else rest  # of a file that is not there
        assert configure(rest[0], rest[1:])[0].method == rest[0]
    elif command == "evaluate":
        assert evaluate.read(rest)
    elif command in KINDS:
        parts = {"compare": [Options("slurm", Slurm())]}
        parts |= {
            name: [Options("data", Data(), bare=name == "data")] for name in ("check", "data")
        }
        assert parse(KINDS[command], rest, f"taet {command}", parts.get(command, []))


@pytest.mark.usefixtures("plugins")
def test_what_the_contributing_guide_adds_is_trained_attacked_and_reported(tmp_path: Path) -> None:
    changes = {
        "data.name": "two-digits",
        "model.name": "linear",
        "training.epochs": 1,
        "threat.steps": 1,
    }
    changes |= {"settings": {"weight": 0.2}, "training.monitor_every": 0, "data.test_max_count": 10}
    changes |= {"outer.name": "inverse-frequency"}
    result = taet.train(override(protocols.taet("my-idea"), changes), out=tmp_path / "run")
    taet.evaluate(result.folder, attacks=["clean", "corner", "pgd-2"])
    page = text(taet.results(result.folder).report(tmp_path / "report.html"))
    assert all(
        word in page
        for word in ("AT + logit squeezing", "inverse-frequency", "corner", "on two-digits")
    )


@pytest.mark.full
def test_the_readme_and_the_first_hour_run_as_they_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first, second = code(ROOT / "README.md")
    exec(first.replace('"training.epochs": 20', '"training.epochs": 1'), {})
    names: dict[str, Any] = {"x": torch.rand(4, 1, 8, 8), "y": torch.arange(4)}
    names["model"] = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)).eval()
    exec(second, names)
    assert names["loss"].isfinite()
    page = DOCS / "first-hour.md"
    (source,), (study,) = code(page), code(page, "toml")
    exec(source, {})
    (tmp_path / "study.toml").write_text(study)
    calls = commands(page)
    assert len(calls) == 7
    for words in calls:
        assert main(words) == 0, words
    for made in (
        "report.html",
        "runs/digits/report.html",
        "runs/study/report.html",
        "predictions.csv",
    ):
        assert (tmp_path / made).exists(), made


def test_links_lead_somewhere() -> None:
    def anchors(page: Path) -> set[str]:
        titles = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text(page), flags=re.S), re.M)
        return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}

    for page in PAGES:
        for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", text(page)):
            path = page.parent / target if target else page
            assert path.exists(), f"{page.name}: {target}"
            assert not anchor or path.suffix != ".md" or anchor in anchors(path), (
                f"{page.name}: {target}#{anchor}"
            )


def test_everything_that_can_be_named_is_documented() -> None:
    written = "\n".join(map(text, PAGES))
    for kind in get_args(registry.Kind):
        for name in registry.entries(kind):
            assert re.search(rf"`{name}\b", written), f"{name} is in no document"
    assert all(f"`{name}`" in written for name in PROTOCOLS)
    page = text(DOCS / "evaluation.md")
    table = page.partition("| passes of a")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| (`[^|]*) \|.*?\| ([^|]*) \|$", table, re.M)
    found = {
        name: {*options.strip().split(", ")}
        for names, options in rows
        for name in re.findall("`(.*?)`", names)
    }
    assert found == {
        name: {*option_fields(kind)} or {""} for name, kind in catalogue.kinds().items()
    }
    flags = set(re.findall(r"`([a-z]+(?:-[a-z]+)+|randomised)`", page.partition("## Warnings")[2]))
    assert flags >= {*(flag.name for flag in FLAGS), *(flag.name for flag in curve.FLAGS)}


@pytest.mark.full
def test_every_rendered_page_is_that_of_the_code_and_of_the_cards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for path, fresh in render(monkeypatch).pages().items():
        assert text(path) == fresh, f"{path.name}: run make results"


def render(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(DOCS)  # as when it is run
    return importlib.import_module("render")


def test_code_in_documents_fits_the_column_of_the_site() -> None:
    for page in PAGES:
        for line in [*re.findall(r"^    .*$", text(page), re.M), *"".join(code(page)).splitlines()]:
            assert len(line) <= WIDEST_CODE, f"{page.name}: {line}"


def test_documents_name_one_version() -> None:
    for name, words in (
        ("CHANGELOG.md", "## {}"),
        ("CITATION.cff", "version: {}"),
        ("pyproject.toml", 'version = "{}"'),
    ):
        assert words.format(taet.__version__) in text(ROOT / name)


@pytest.mark.parametrize("page", sorted({page for page, *_ in SHOWN}))
def test_differences_in_texts_are_those_of_the_cards(page: str) -> None:
    text = " ".join((ROOT / page).read_text(encoding="utf-8").replace("−", "-").split())
    for _, cards, first, second, attack in (one for one in SHOWN if one[0] == page):
        paths = [
            path for path in ROOT.glob(f"results/{cards}.json") if ".embedding-" not in path.name
        ]
        results = taet.results(*map(str, paths))
        rows = [
            min((row for row in results.rows if row.startswith(name)), key=len)
            for name in (first, second)
        ]
        found = results.difference(*rows, attack)
        value, low, high = (100 * one for one in (found.value, found.low, found.high))
        forms = (f"{low:+.1f} to {high:+.1f}", f"{-high:.1f} to {-low:.1f}")
        assert any(form in text for form in forms), (page, first, second, forms)
        assert f"{abs(value):.1f}" in text


@pytest.mark.full
def test_the_result_cards_name_the_commands_that_made_them_and_no_machine() -> None:
    cards = [
        path
        for path in sorted((ROOT / "results").glob("*/**/*.json"))
        if ".embedding-" not in path.name
    ]
    assert cards
    for path in cards:
        card = ResultCard.load(path)
        assert card.command.startswith("taet evaluate")
        assert card.run["command"].startswith("taet ")
        assert not re.search(r"/(tmp|home|work|root)/", path.read_text(encoding="utf-8")), path


@pytest.mark.parametrize(
    ("reference", "papers"),
    [
        ("Yue et al., CVPR 2024, arXiv:2403.10073", [("2024", "CVPR", "Yue et al.", "2403.10073")]),
        ("Li et al., arXiv:2307.10205, 2023", [("2023", "arXiv", "Li et al.", "2307.10205")]),
        ("CVPR 2025, arXiv:2503.01924", [("2025", "CVPR", "", "2503.01924")]),
        (
            "A et al., ICLR 2024; B, C, AAAI 2023",
            [("2024", "ICLR", "A et al.", ""), ("2023", "AAAI", "B, C", "")],
        ),
    ],
)
def test_a_reference_has_year_venue_and_authors(
    reference: str, papers: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert render(monkeypatch).publications(reference) == papers


def test_every_golden_number_is_checked_by_a_test() -> None:
    tests = "".join(
        path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py")
    )
    families = set(re.findall(r'f"(\w+_)\{', tests))
    for path in (ROOT / "tests" / "golden").glob("*.json"):
        if path.stem == "long_tail":  # whose test runs over every key
            continue
        for key in json.loads(path.read_text(encoding="utf-8")):
            read = any(f'"{key}{end}' in tests for end in '"/') or any(
                key.startswith(family) for family in families
            )
            assert read, f"{key} has no test"
