"""Results: every number follows from the masks of the cards, and rows are named and compared in one place."""

import ast
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import taet
from taet import methods, protocols, statistics
from taet.errors import UserError
from taet.evaluation.card import ResultCard, compare_runs
from taet.report.results import COLUMNS, GROUPS
from taet.report.rows import named
from taet.settings import override

ROOT = Path(__file__).parents[2]
MakeCard = Callable[..., ResultCard]
PROBE = {"batch_size": 250, "images": 9, "clean_correct": 9, "distributions": 0, "zero_gradients": 0}
ATTACKS = ("clean", "fgsm", "pgd-20", "autoattack-10", "autoattack")


@pytest.fixture
def trained(make_card: MakeCard) -> MakeCard:
    """Make the card of a run of a protocol with some settings changed."""

    def make(
        method: str = "at", seed: int = 0, /, protocol: str = "taet", about: Any = (), **changes: Any
    ) -> ResultCard:
        changes = {name.replace("__", "."): value for name, value in changes.items()}
        own = {name.removeprefix("method."): changes.pop(name) for name in [*changes] if name.startswith("method.")}
        run = override(protocols.start(protocol, method), {**changes, "seed": seed})
        run = override(run, {"settings": override(methods.find(method).Config(), own)})
        card = make_card(method, seed, run={"config": json.loads(json.dumps(run.model_dump()))}, protocol=protocol)
        weights = f"{abs(hash((method, seed, protocol, *changes.items(), *own.items()))):064x}"
        model = {**card.model, "selection": run.training.selection, "weights_sha256": weights[:64], **dict(about)}
        return card.changed(model=model)

    return make


def names(*cards: ResultCard) -> list[str]:
    return [row for row, _ in named(cards)]


def right(card: ResultCard, share: float, *attacks: str) -> ResultCard:
    """The card with the first part of the images right under some attacks, and the others wrong."""
    return redrawn(card, np.arange(len(card.labels)) < share * len(card.labels), *attacks)


def redrawn(card: ResultCard, correct: np.ndarray, *attacks: str) -> ResultCard:
    lost = {"correct": correct, "predictions": np.where(correct, card.labels, (card.labels + 1) % 10)}
    columns = (column.changed(**lost) if column.name in attacks else column for column in card.columns)
    return card.changed(columns=tuple(columns))


def test_every_number_of_the_table_follows_from_the_masks(make_card: MakeCard) -> None:
    cards = [make_card("at", 0), make_card("at", 1), make_card("taet", 0)]
    table = taet.results(cards).table()
    assert tuple(table.columns) == COLUMNS
    assert len(table) == 3 * len(ATTACKS) * (len(GROUPS) + 10)
    assert not table.duplicated(["row", "seed", "attack", "group"]).any()
    for line in table.itertuples():
        card = cards[int(line.card.split()[1]) - 1]
        mask, labels = card.column(line.attack).correct, card.labels
        recalls = np.array([mask[labels == c].mean() for c in range(10)])
        order = np.argsort([-count for count in card.data["train_class_counts"]], kind="stable")
        of = {"balanced": order, "head": order[:3], "body": order[3:6], "tail": order[6:]}
        if line.group in of:
            counts = [(mask[labels == c].sum(), (labels == c).sum()) for c in of[line.group]]
            assert (line.n, str(line.correct)) == (sum(n for _, n in counts), "<NA>")
            expected = recalls[of[line.group]].mean(), *statistics.balanced_interval(*zip(*counts, strict=True))
        else:
            groups = [*card.class_names, "plain"]
            of_class = int(recalls.argmin()) if line.group == "worst" else groups.index(line.group)
            keep = (labels == of_class) | (line.group == "plain")
            assert (line.n, line.correct) == (keep.sum(), mask[keep].sum())
            expected = mask[keep].mean(), *map(float, statistics.wilson_interval(mask[keep].sum(), keep.sum()))
            if line.group == "worst":  # the lowest ends of ten intervals that all hold with 95 %
                ends = [statistics.exact_interval(mask[labels == c].sum(), sum(labels == c), 0.995) for c in range(10)]
                expected = expected[0], *(float(min(end)) for end in zip(*ends, strict=True))
        assert (line.accuracy, line.low, line.high) == pytest.approx(expected, abs=1e-12)
        assert (line.method, line.seed, line.protocol) == (card.method, card.seed, "taet")
        assert (line.data, line.model, line.imbalance_ratio) == ("digits-lt", "small", pytest.approx(10))


def test_scores_are_means_over_seeds_whose_interval_covers_seeds_and_images(make_card: MakeCard) -> None:
    cards = [make_card("taet", seed) for seed in range(3)]
    scores = taet.results(cards, make_card("at")).scores("balanced").set_index(["row", "attack"])
    values = [card.summary("pgd-20").balanced for card in cards]
    found, error = scores.loc["taet", "pgd-20"], np.std(values, ddof=1) / math.sqrt(3)
    assert (found["accuracy"], found["error"]) == pytest.approx((np.mean(values), error))
    ends = np.mean([card.summary("pgd-20").balanced_interval for card in cards], 0)
    expected = np.hypot(ends - np.mean(values), 4.302653 * error)
    assert [found["accuracy"] - found["low"], found["high"] - found["accuracy"]] == pytest.approx(expected)
    same = taet.results(right(cards[0], 1, "clean"), right(cards[1], 1, "clean")).scores("balanced").iloc[0]
    assert same["low"] < 1 == same["high"]  # seeds that agree leave the test images' error
    assert found["seeds"] == 3
    alone = scores.loc["at", "clean"]
    assert (alone["low"], alone["high"]) == pytest.approx(make_card("at").summary("clean").balanced_interval)
    assert math.isnan(alone["error"])
    wide = taet.results(right(cards[0], 0, "clean"), right(cards[1], 1, "clean")).scores("balanced").iloc[0]
    assert (wide["low"], wide["high"]) == (0, 1)  # within the range of a share


def test_predictions_have_a_column_for_each_row_seed_and_attack(make_card: MakeCard) -> None:
    cards = [make_card("at", seed) for seed in (0, 1)]
    found = taet.results(cards)
    assert found.predictions.shape == (368, 2 * len(ATTACKS))
    assert (found.predictions["at", 1, "pgd-20"] == cards[1].column("pgd-20").predictions).all()
    recalls = found.predictions.eq(found.labels, axis=0).groupby(found.labels).mean().mean()
    assert recalls["at", 0, "fgsm"] == pytest.approx(cards[0].summary("fgsm").balanced)


def test_compare_is_the_paired_difference_of_the_cards(make_card: MakeCard) -> None:
    first, second = ([make_card(method, seed) for seed in range(3)] for method in ("taet", "at"))
    found = taet.results(first, second)
    line = found.compare("taet", "at").set_index("attack").loc["autoattack"]
    expected = compare_runs(first, second, "autoattack")
    numbers = (expected.value, expected.low, expected.high, expected.p)
    assert tuple(line[["difference", "low", "high", "p"]]) == pytest.approx(numbers)
    assert (line["seeds"], line["decided"]) == (3, expected.decided)
    other = found.compare("at", "taet", "autoattack").iloc[0]
    assert (other["difference"], other["low"]) == pytest.approx((-expected.value, -expected.high))
    tail = found.compare("taet", "at", "clean", group="tail").iloc[0]
    recalls = [np.mean([card.summary("clean").per_class[6:].mean() for card in side]) for side in (first, second)]
    assert tail["difference"] == pytest.approx(recalls[0] - recalls[1])
    for wrong, group in ((("ta", "at"), "tail"), (("taet", "at", "pgd"), "tail"), (("taet", "at"), "tial")):
        with pytest.raises(UserError, match="unknown"):
            found.compare(*wrong, group=group)


def test_the_board_ranks_by_autoattack_and_ranks_are_ranges(make_card: MakeCard) -> None:
    cards = [make_card(method, seed, probe=PROBE) for method in ("at", "taet") for seed in range(3)]
    strong = [right(card.changed(method="strong"), 1, *ATTACKS) for card in cards[:3]]
    board = taet.results(cards, strong, make_card("at-bsl"), make_card("at-bsl", 1, probe=PROBE)).board()
    assert board["row"][0] == "strong"
    assert board["rank"].tolist() == ["1", "2–3", "2–3"]
    assert (np.diff(board["autoattack"]) <= 0).all()
    assert {*board.attrs["left out"].values()} == {"no probe of its gradients"}
    assert board["seeds"].tolist() == [3, 3, 3]
    columns = [one.changed(eps=0.01) if one.norm else one for one in cards[0].columns]
    half = cards[0].changed(columns=columns, threat={"norm": "linf", "eps": 0.01})
    assert taet.results(cards[0], half).board()["pgd-20"].notna().tolist() == [True, True]  # one for each radius


def test_equally_good_rows_share_all_ranks(make_card: MakeCard) -> None:
    """Of eight such rows, tests of single pairs would part some in nearly half of the boards."""
    base, rng, parted = make_card("at", probe=PROBE), np.random.default_rng(0), 0
    for _ in range(8):
        drawn = ((base.changed(method=f"m{n}"), rng.random(len(base.labels)) < 0.4) for n in range(8))
        board = taet.results(*(redrawn(*one, "clean", "autoattack") for one in drawn)).board()
        parted += {*board["rank"]} != {"1–8"}
    assert parted <= 1


def test_the_strongest_of_two_attacks_that_leave_the_same_is_the_one_with_more_steps(make_card: MakeCard) -> None:
    weak = right(right(make_card("at"), 0.3, "fgsm"), 0.3, "pgd-20")
    card = weak.changed(columns=weak.columns[:3])
    assert taet.results(card).strongest == "pgd-20"
    assert taet.results(right(card, 0.2, "fgsm")).strongest == "fgsm"
    assert taet.results(make_card("at")).strongest == "autoattack"
    short = [one.changed(columns=one.columns[:3]) for one in map(make_card, ("reat", "taet"))]
    assert taet.results(make_card("at"), *short).strongest == "pgd-20"  # which all rows have
    elsewhere = make_card("at").changed(threat={"norm": "linf", "eps": 0.5})  # no attack in the ball of the card
    assert taet.results(elsewhere).strongest == "autoattack"


def test_rows_are_called_by_the_settings_in_which_they_leave_the_protocol(trained: MakeCard) -> None:
    seeds = [trained("at", seed) for seed in range(3)]
    others = [trained("at", training__epochs=240), trained("at", outer__name="balanced-softmax"), trained("taet")]
    assert names(*seeds, *others) == ["at"] * 3 + ["at (epochs 240)", "at (balanced-softmax)", "taet"]
    short = [trained(method, training__epochs=60) for method in ("at", "trades", "mart")]
    assert names(*short, trained("taet")) == ["at", "trades", "mart", "taet (epochs 100)"]  # as most rows have it
    assert names(trained("at", training__epochs=1), short[0]) == ["at (epochs 1)", "at (epochs 60)"]  # no majority
    wider, named = trained("at").changed(threat={"norm": "linf", "eps": 0.1}), ["at (linf 0.1)", "taet (linf 8/255)"]
    assert names(wider, trained("taet")) == names(trained("taet"), wider)[::-1] == named
    assert names(trained("trades", **{"method.beta": 1.0})) == ["trades (beta 1)"]
    assert names(trained("at"), trained("at", 1, training__monitor_every=7, evaluation__batch_size=3)) == ["at"] * 2
    wide = trained("at", about={"name": "wide", "weights_sha256": "f" * 64})
    assert names(trained("at"), wide, trained("taet")) == ["at", "at (wide)", "taet"]
    alone = wide.changed(method="net", protocol="", run={})  # a model without a run
    assert "protocol" not in " ".join(names(trained("at"), trained("taet"), alone))


def test_a_best_epoch_that_is_the_last_one_is_both(trained: MakeCard) -> None:
    """Three seeds of a protocol that takes the best epoch: one row, also where the best epoch was the last."""
    seeds = [trained("at-bsl", n, protocol="reat", about={"epoch": epoch}) for n, epoch in enumerate((40, 80, 61))]
    assert names(*seeds) == ["at-bsl"] * 3
    last = {"protocol": "reat", "training__selection": "last", "about": {"epoch": 80}}
    lasts = [trained("at-bsl", seed, **last) for seed in (0, 1)]
    assert names(*lasts, seeds[1]) == ["at-bsl"] * 2 + ["at-bsl #2"]  # other weights of seed 1
    assert names(*lasts, trained("at-bsl", 2, protocol="reat", about={"epoch": 80})) == ["at-bsl"] * 3
    assert names(*lasts, *seeds[::2])[:2] == ["at-bsl (selection last)"] * 2
    hashes = ("d" * 64, seeds[1].model["weights_sha256"], "e" * 64)  # of seed 1 the best epoch is the last
    abouts = [{"selection": "last", "epoch": 80, "weights_sha256": weights} for weights in hashes]
    ends = [one.changed(model={**one.model, **about}) for one, about in zip(seeds, abouts, strict=True)]
    assert names(*seeds, *ends) == ["at-bsl"] * 3 + ["at-bsl (selection last)"] * 3


def test_equal_weights_are_one_row_and_other_weights_of_a_seed_another(trained: MakeCard, make_card: MakeCard) -> None:
    first = trained("at-bsl")
    alike = trained("at", outer__name="balanced-softmax", about={"weights_sha256": first.model["weights_sha256"]})
    assert names(first, alike) == ["at-bsl", "at (balanced-softmax)"]
    same = alike.changed(columns=first.columns)  # the same predictions as well
    assert names(first, same) == ["at-bsl"] * 2
    assert names(first, same.changed(run={**same.run, "code": {"method": "a" * 64}}))[1] == "at (balanced-softmax)"
    smaller = first.changed(threat={"norm": "linf", "eps": 4 / 255})
    assert names(first, smaller) == ["at-bsl"] * 2  # one model, attacked in two balls
    assert names(trained("at"), trained("at", about={"weights_sha256": "e" * 64})) == ["at", "at #2"]
    given, other = (make_card("my-net", seed).changed(seed=None, title="my-net") for seed in (0, 5))
    assert names(given, given, other) == ["my-net", "my-net", "my-net #2"]
    first, scaled = (given.changed(model={**given.model, "answers": [[logit]]}) for logit in (1.0, 2.0))
    assert names(first, scaled) == ["my-net", "my-net #2"]  # equal weights, in networks with other outputs
    assert names(first, scaled.changed(title="my-net scaled")) == ["my-net", "my-net scaled"]
    assert names(given, other.changed(title="my-net second")) == ["my-net", "my-net second"]  # of two files
    ours, theirs = (make_card(name, seed).changed(seed=None, title=name) for seed, name in enumerate("ab"))
    assert names(*(one.changed(model={**one.model, "name": one.method}) for one in (ours, theirs))) == ["a", "b"]


def test_the_code_of_a_plug_in_tells_rows_apart(trained: MakeCard) -> None:
    pairs = zip((trained("at", seed) for seed in (0, 1)), "ab", strict=True)
    cards = [one.changed(run={**one.run, "code": {"methods": digit * 64}}) for one, digit in pairs]
    assert sorted(names(*cards)) == ["at", "at (other code)"]
    files = zip(cards, "ab", strict=True)
    began = [one.changed(run={**one.run, "pretrained_sha256": digit * 64}) for one, digit in files]
    assert "weights SHA-256 bbbbbbbb" in "".join(names(*began))  # two files of one name
    older, newer = trained("at", 0), trained("at", 1)
    newer = newer.changed(run={**newer.run, "pretrained_sha256": "a" * 64})
    assert names(older, newer) == ["at", "at"]  # the hash is not on cards of older versions
    assert names(cards[0], trained("trades"), cards[1].changed(method="forgets")) == ["at", "trades", "forgets"]
    assert sorted(names(trained(), trained(training__augment="none"))) == ["at", "at (augment none)"]
    own = [trained("harl", method__alpha=alpha).changed(method="forgets") for alpha in (0.1, 1.0)]
    assert names(*own) == ["forgets (alpha 0.1)", "forgets (alpha 1)"]  # which one is its default is not known here


def test_a_row_says_its_outer_loss_and_nothing_that_it_does_not_use(trained: MakeCard) -> None:
    balanced = [trained("at", training__epochs=epochs, outer__name="balanced-softmax") for epochs in (60, 100)]
    bsl = trained("at-bsl", outer__name="cross-entropy")  # it trains with balanced softmax, whatever the run asks for
    assert names(*balanced, bsl) == ["at (balanced-softmax, epochs 60)", "at (balanced-softmax)", "at-bsl"]
    extra = (trained("at", data__extra=folder, data__extra_fraction=0.5) for folder in ("copies", "held-back"))
    assert names(trained("at"), *extra)[0] == "at"  # without extra images their share is nothing


def test_images_of_a_curve_that_decides_nothing_are_no_setting_of_a_row(trained: MakeCard) -> None:
    cards = [trained("at", seed) for seed in (0, 1)]
    config = cards[1].run["config"]
    old = {**config, "training": {**config["training"], "monitor_images": 20}}
    assert names(cards[0], cards[1].changed(run={**cards[1].run, "config": old})) == ["at"] * 2
    changes = ({}, {"evaluation__batch_size": 3}, {"evaluation__eps": 4 / 255}, {"evaluation__eps": 8 / 255})
    deciding = names(*(trained("at", seed, protocol="reat", **change) for seed, change in enumerate(changes)))
    assert deciding == ["at", "at (evaluation batch_size 3)", "at (evaluation eps 4/255)", "at"]


def test_without_a_common_seed_no_single_run_stands_for_several(make_card: MakeCard) -> None:
    at, taet_ = ([make_card(method, seed) for seed in range(5)] for method in ("at", "taet"))
    found = taet.results(at[:1], taet_[1:4]).difference("at", "taet", "pgd-20")
    expected = compare_runs(at[:1] * 3, taet_[1:4], "pgd-20")
    assert found is not None
    assert (found.value, found.low, found.runs) == (expected.value, expected.low, 3)
    assert taet.results(at[:2], taet_[2:]).compare("at", "taet").empty


def test_a_group_of_classes_without_images_is_no_comparison(make_card: MakeCard) -> None:
    bare = [one.changed(data=one.data | {"train_class_counts": None}) for one in map(make_card, ("at", "taet"))]
    with pytest.raises(UserError, match="group tail: it has no test images, or the training counts are not known"):
        taet.results(bare).compare("at", "taet", "clean", group="tail")


def test_attacks_of_one_name_show_the_settings_in_which_they_differ(make_card: MakeCard) -> None:
    card, other = make_card("at"), make_card("taet")
    column = other.column("pgd-20").changed(parameters={"steps": 20, "step_size": 2 / 255})
    rest = tuple(one for one in other.columns if one.name != "pgd-20")
    found = taet.results(card, other.changed(columns=(*rest, column)))
    assert [name for name in found.columns if "pgd" in name] == ["pgd-20 (step_size 1/255)", "pgd-20 (step_size 2/255)"]
    assert found.compare("at", "taet", "pgd-20 (step_size 1/255)").empty
    edited = [column.changed(parameters={**column.parameters, "source_sha256": digit * 64}) for digit in "ab"]
    found = taet.results(*(card.changed(columns=(*rest, one)) for card, one in zip((card, other), edited, strict=True)))
    assert {"pgd-20 (code aaaaaaaa)", "pgd-20 (code bbbbbbbb)"} < {*found.columns}


def test_several_test_sets_are_separate_tables(make_card: MakeCard) -> None:
    card = make_card("at")
    found = taet.results(card, make_card("taet").changed(data={**card.data, "test_sha256": "cd" * 32}))
    assert [one.rows for one in found.by_test_set()] == [("at",), ("taet",)]
    hashes = found.table().groupby("row")["test_sha256"].unique().explode().to_dict()
    assert hashes == {"at": card.data["test_sha256"][:8], "taet": "cdcdcdcd"}
    with pytest.raises(UserError, match=r"got 2 test sets: digits-lt \(1 cards\), digits-lt \(1 cards\); allowed: one"):
        found.compare("at", "taet")


def test_cards_come_from_patterns_folders_files_and_memory(
    run: Path, make_card: MakeCard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert taet.results(run.parent).rows == taet.results(str(run)).rows == ("at",)
    assert len(taet.results(f"{run.parent}/*", run / "evaluation.json", make_card("at")).cards) == 3
    (tmp_path / "deep" / "er").mkdir(parents=True)
    make_card("at").save(tmp_path / "deep" / "er" / "at.json")
    monkeypatch.chdir(tmp_path)
    found = taet.results("deep")
    assert found.table()["card"].unique().tolist() == ["deep/er/at.json"]
    assert taet.results("**/*.json").table().equals(found.table())
    for wrong in ("nowhere", "*.txt", "", []):
        with pytest.raises(UserError, match=r"no result card|got an empty path") as caught:
            taet.results(wrong)
        assert "\n" not in str(caught.value)
    for link in ("first", "second"):
        (tmp_path / "scratch" / link).parent.mkdir(exist_ok=True)
        (tmp_path / "scratch" / link).symlink_to(run)
    assert len(taet.results(tmp_path / "scratch").cards) == 1


def test_a_search_passes_over_json_that_is_no_card_and_a_path_names_it(make_card: MakeCard, tmp_path: Path) -> None:
    (tmp_path / "runs" / "other").mkdir(parents=True)
    make_card("at").save(tmp_path / "runs" / "at.json")
    for place in ("cost.json", "evaluation.json", "other/evaluation.json"):
        (tmp_path / "runs" / place).write_text('{"accuracy": 0.5}')
    assert taet.results(tmp_path / "runs").rows == taet.results(f"{tmp_path}/runs/**").rows == ("at",)
    with pytest.raises(UserError, match="not a result card"):
        taet.results(tmp_path / "runs" / "other" / "evaluation.json")
    text = (tmp_path / "runs" / "at.json").read_text()
    (tmp_path / "runs" / "at.json").write_text(text.replace('"seed": 0', '"seed": 1', 1))
    with pytest.raises(UserError, match=r"at\.json"):  # a damaged card is no foreign file
        taet.results(tmp_path / "runs")


# The page of the results and the notebook; `tests/test_docs.py` renders all pages


def test_the_page_of_the_results_is_tables() -> None:
    page = (ROOT / "results" / "README.md").read_text(encoding="utf-8")
    assert len(" ".join(line for line in page.splitlines() if not line.startswith("|")).split()) <= 600


@pytest.mark.full
def test_the_notebook_asks_five_questions_in_five_lines_each(monkeypatch: pytest.MonkeyPatch) -> None:
    path = ROOT / "examples" / "results.ipynb"
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    monkeypatch.chdir(path.parent)
    scope: dict[str, object] = {}
    codes = [cell for cell in cells if cell["cell_type"] == "code"]
    for cell in codes:
        tree = ast.parse("".join(cell["source"]))
        last = tree.body.pop()
        assert isinstance(last, ast.Expr)
        exec(compile(tree, path.name, "exec"), scope)
        shown = repr(eval(compile(ast.Expression(last.value), path.name, "eval"), scope))
        assert shown == "".join(cell["outputs"][0]["data"]["text/plain"])
        assert sum(bool(line.strip()) for line in cell["source"]) <= 5
    assert len(codes) == 6
    assert sum(cell["source"][0].startswith("## ") for cell in cells) == 5
