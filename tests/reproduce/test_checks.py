"""A mistyped name or number in a file of the manifest is one line that says where it is."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from taet.cli import reproduce
from taet.errors import UserError
from taet.reproduce import checks, claims, costs, manifest

CACHED = (manifest.items_file, manifest.scales, manifest.published, manifest.items, claims.claims, costs.costs)
LINE = "TAET\t1\tcifar10-lt\t10\tresnet18\tat-bsl\tAT-BSL\t\tbalanced\tlast\tclean\t\t72.74"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the manifest that the package reads."""
    for path in (*manifest.FOLDER.glob("*.toml"), manifest.FOLDER / "published.tsv"):
        shutil.copy(path, tmp_path)
    for module in (manifest, claims, costs):
        monkeypatch.setattr(module, "FOLDER", tmp_path)
    for one in (*CACHED, checks.check_manifest):
        one.cache_clear()
    yield tmp_path
    for one in (*CACHED, checks.check_manifest):
        one.cache_clear()


def test_the_manifest_has_no_mistake(folder: Path) -> None:
    assert (folder / "published.tsv").exists()
    checks.check_manifest()


@pytest.mark.parametrize(
    ("file", "old", "new", "words"),
    [
        ("published.tsv", LINE, LINE.replace("TAET", "TEAT"), "line 2: unknown paper 'TEAT'"),
        ("published.tsv", LINE, LINE.replace("cifar10-lt", "cifar10-tl"), "line 2: unknown data set 'cifar10-tl'"),
        ("published.tsv", LINE, LINE.replace("resnet18", "resnet81"), "line 2: unknown network 'resnet81'"),
        ("published.tsv", LINE, LINE.replace("at-bsl", "at-bls"), "line 2: unknown method 'at-bls'"),
        ("published.tsv", LINE, LINE.replace("clean", "claen"), "line 2: unknown attack 'claen'"),
        ("published.tsv", LINE, LINE.replace("balanced", "balance"), "line 2: unknown average 'balance'"),
        (
            "published.tsv",
            LINE,
            LINE.replace("72.74", "7274"),
            "line 2: value: got '7274'; allowed: a number",
        ),
        ("published.tsv", LINE, LINE.replace("\t10\t", "\t0.1\t"), "line 2: imbalance_ratio: got '0.1'"),
        ("published.tsv", LINE, f"{LINE}\t\t\t1", "line 2: got more fields"),
        ("items.toml", '"training.awp" = 0.01', '"training.apw" = 0.01', "reat/table7: methods: at: unknown setting"),
        ("items.toml", "dermamnist = true", "dermamnits = true", "unknown data set in natural 'dermamnits'"),
        ("items.toml", '"adaptive-pgd-20:factor=0.1"', '"adaptive-pdg-20"', "unknown attack 'adaptive-pdg-20'"),
        ("items.toml", '"REAT robal cifar10-lt pgd-20"', '"REAT robal pgd-20"', "columns: REAT robal pgd-20"),
        ("scales.toml", "seeds = {TAET", "seeds = {TEAT", "full: unknown paper in seeds 'TEAT'"),
        ("scales.toml", 'resnet18 = "resnet8"', 'resnet81 = "resnet8"', "cpu: unknown network in models 'resnet81'"),
        ("scales.toml", '{"pgd-100" = "",', '{"pdg-100" = "",', "cpu: unknown column in attacks 'pdg-100'"),
        ("scales.toml", '"TAET cw-l2" = "cw', '"TAET cw-l2" = "wc', "cpu: unknown attack 'wc-linf-100'"),
        ("scales.toml", "cifar100-lt = {", "cifar101-lt = {", "cpu: unknown key of settings 'cifar101-lt'"),
        ("scales.toml", '"training.monitor_every"', '"training.monitor_evry"', "cpu: methods: at: unknown setting"),
        ("published.tsv", "paper\t", "papr\t", "got the columns papr"),
        ("scales.toml", "cifar10 = {name =", "cifar10 = {nmae =", "smoke: unknown key of data 'nmae'"),
        ("scales.toml", "seeds = {all = [0]}", "seeds = {all = []}", "cpu: seeds: got none"),
        ("claims.toml", '"autoattack-10", "autoattack"]', '"autoattack-10"]', "C25: attacks or separable"),
        (
            "items.toml",
            '"REAT robal cifar10-lt pgd-20"',
            '"REAT robal cifar10 pgd-20"',
            "columns: REAT robal cifar10 pgd-20: no number of published.tsv has this paper, method, data",
        ),
        ("claims.toml", '{method = "mart"}', '{method = "matr"}', "C4: methods: matr: unknown method"),
        ("claims.toml", "columns = {autoattack = 5.31}", "columns = {autoatack = 5.31}", "C1: unknown attack"),
        ("claims.toml", 'column = "autoattack"}', 'column = "autoatack"}', "C3: unknown column of order 'autoatack'"),
        ("claims.toml", "imbalance = 20}, {", "imbalance = -20}, {", "C17: imbalance: got -20; allowed: 1 or more"),
        (
            "claims.toml",
            'beside = [{method = "reat"',
            'beside = [{method = "raet"',
            "R5: methods: raet",
        ),
        ("claims.toml", "[C2]", "[X2]", "X2: unknown name; allowed: C (TAET) or R (REAT) and a number"),
        ("items.toml", "epochs = [10, 30, 60]", "epochs = [10, -30, 60]", "reat/figure6: epochs: got '-30'"),
        ("items.toml", "epochs = [10, 30, 60]", "epochs = [10, 30, 81]", "got '81'; allowed: a number, 1 to 80"),
        (
            "items.toml",
            'rows = [{method = "at-bsl"}, {method = "taet"}]',
            'rows = [{method = "taet"}, {method = "taet"}]',
            "figures: taet/figure1: got a row twice",
        ),
        (
            "claims.toml",
            'settled = "undecided"\n',
            'settled = "undecided"\nmost = {autoattack = 1}\n',
            "unknown key of a claim with settled 'most'",
        ),
        (
            "items.toml",
            'costs_of = "taet/table1"',
            'costs_of = "taet/tabel1"',
            "unknown item in costs_of 'taet/tabel1'",
        ),
        (
            "claims.toml",
            "columns = {autoattack = 5.31}",
            "columns = {autoattack = -5.31}",
            "C1: points under autoattack",
        ),
        ("claims.toml", "chances = 2", "chances = 0.2", "R11: chances: got '0.2'; allowed: a number, 1 or more"),
        ("claims.toml", "most = 0.05", "most = 5", "R4: most of steady: got '5'; allowed: a number, 0 to 1"),
        ("claims.toml", 'columns = ["clean", "autoattack"]}', "columns = []}", "C26: reversed: got no columns"),
        ("items.toml", "dog = 5", "dog = 6", "classes: got the labels 6, 6, 7"),
        ("items.toml", "dermamnist = true", "dermamnist = false", "natural: got false"),
        ("items.toml", '[figures."reat/figure9"]', '[figures."reat/figur9"]', "figures: reat/figur9: allowed"),
        (
            "items.toml",
            '"2/255"',
            '"2/25S"',
            "rows: at eps=2/255 decay=linear: threat.eps: got '2/25S'; allowed: a number, e.g. 8/255",
        ),
        ("published.tsv", LINE, LINE.replace("balanced\t", "per-class\t"), "line 2: class: got '' with the average"),
        (
            "scales.toml",
            "seeds = {TAET = [0], REAT = [0, 1, 2]}",
            "seeds = {TAET = [0]}",
            "full: seeds: got those of TAET",
        ),
        ("scales.toml", "REAT = [0, 1, 2]", "REAT = [0, 1, 1]", "full: seeds: got none, a negative one or one twice"),
        ("scales.toml", "imbalance = 1}", 'imbalance = "1"}', "smoke: imbalance of data: got ''1''"),
        ("scales.toml", '"TAET cw-l2" = "cw-linf-100"', '"TAET cw-l2" = "seconds_per_epoch"', "cpu: unknown attack"),
        ("claims.toml", "columns = {autoattack = 5.31}", "columns = {}", "C1: columns or most: got none"),
        ("claims.toml", 'less = "autoattack"', 'less = "clean"', "R17: less: got clean, which is also a column"),
        (
            "claims.toml",
            '[{method = "mart"}, {method = "at"}]',
            '[{method = "at"}, {method = "at"}]',
            "C4: pairs: got a run",
        ),
        (
            "claims.toml",
            '[{method = "mart"}, {method = "at"}]',
            '[{method = "mart"}, {method = "he"}]',
            "C4: pairs: got a pair",
        ),
        (
            "claims.toml",
            'steady = {rows = [{method = "at-bsl"}, {method = "reat"}]',
            "steady = {rows = []",
            "R4: steady: got no",
        ),
        ("claims.toml", ', settings = {"method.form" = "paper"}}]', "}]", "R5: beside: allowed: other rows than those"),
        ("costs.toml", "resnet8 = {", "resnet9 = {", "unknown network 'resnet9'"),
        ("costs.toml", "at-bsl = ", "at-bls = ", "unknown key of methods 'at-bls'"),
        ("costs.toml", "at-bsl = ", "at-bsl = -", "at-bsl: got -0.983; allowed: a number above 0"),
        ("costs.toml", '"n-fgsm", "liet"]', '"n-fgms", "liet"]', "unknown method in without_steps 'n-fgms'"),
        ("costs.toml", "pgd-20 = ", "pdg-20 = ", "unknown attack 'pdg-20'"),
        ("costs.toml", "standard = ", "standrad = ", "unknown key of methods 'standrad'"),
        ("costs.toml", "cores = 1}", "cores = 0}", "cores of resnet8: got 0"),
        ("claims.toml", "theorem = true", "theorem = false", "R18: theorem: got false"),
        ("claims.toml", "worth = 5", "worth = -5", "C1: worth: got -5; allowed: more than 0"),
    ],
)
def test_a_mistake_is_one_line(folder: Path, file: str, old: str, new: str, words: str) -> None:
    text = (folder / file).read_text(encoding="utf-8")
    assert old in text
    (folder / file).write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(UserError) as caught:
        reproduce.read(["taet/table1"])
    said = str(caught.value)
    assert said.startswith(file)
    assert words in said
    assert "\n" not in said


def test_two_attacks_that_a_mistyped_column_makes_the_same_are_refused(folder: Path) -> None:
    text = (folder / "items.toml").read_text(encoding="utf-8")
    new = text.replace('"REAT robal cifar10-lt pgd-20"', '"REAT robal cifar100-lt pgd-20"')
    (folder / "items.toml").write_text(new, encoding="utf-8")
    with pytest.raises(UserError, match=r"R12: attacks: got .*; columns of items\.toml make both pgd-20 at scale full"):
        reproduce.read(["taet/table1"])
