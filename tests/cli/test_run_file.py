"""A run from a file gives the run that the file was printed of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from taet.cli.run_file import text
from taet.cli.train import read
from taet.errors import UserError
from taet.settings import to_json
from taet.training.decisive_settings import run_hash

CALLS = (
    "at",
    "taet --data cifar10-lt --data.imbalance-ratio 50 --epochs 3 --seed 7 --threat.eps 4/255",
    "robal --protocol reat --method.tau-p 0.5 --data digits-lt --data.root none",
    "las-at --method.eps 1 9 --milestones 0.5 0.75 --evaluation.attacks clean pgd-20:restarts=5",
    "robust-lt --method.base taet --method.knobs absent=skip --recipe strong",
    "at-bsl --lr 1e-05 --evaluation.cw-constant None",
)


@pytest.mark.sample(3)
@pytest.mark.parametrize("call", CALLS)
def test_what_is_printed_is_read_as_the_same_run(call: str, tmp_path: Path) -> None:
    run, _ = read(call.split()).planned()
    (tmp_path / "run.toml").write_text(text(run))
    (tmp_path / "run.json").write_text(json.dumps({"schema": 2, "run": to_json(run), "command": "taet train"}))
    (tmp_path / "plain.json").write_text(json.dumps(to_json(run)))
    for name in ("run.toml", "run.json", "plain.json"):
        again, decided = read(["--config", str(tmp_path / name)]).planned()
        assert again == run
        assert run_hash(again) == run_hash(run)
        assert decided == {}


def test_what_was_decided_for_own_images_and_odd_names_are_in_the_file(tmp_path: Path) -> None:
    images, labels = np.zeros((40, 40, 50), np.uint8), np.arange(40) % 2
    place = tmp_path / 'a "b" \\ \x7f é.npz'
    np.savez(place, train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    run, decided = read(["at", "--data", str(place)]).planned()
    assert "training.epochs" in decided
    (tmp_path / "run.toml").write_text(text(run))
    again, _ = read(["--config", str(tmp_path / "run.toml")]).planned()
    assert again == run


def test_what_is_measured_where_it_trains_stays_automatic(taet: Any) -> None:
    """Else the file would be another run on another machine; the help says so."""
    assert 'precision = "auto"' in text(read(["at"]).planned()[0])
    shown = " ".join(taet("train", "--help").out.replace("│", " ").split())
    assert "threads are measured later, on the machine that trains" in shown


def test_options_and_the_method_replace_those_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('method = "trades"\nseed = 3\ntraining.epochs = 9\n[threat]\neps = "4/255"\nsteps = 2\n')
    request = read(["--config", str(path), "--threat.steps=5"])
    run = request.run()
    assert (run.method, run.seed, run.training.epochs, run.threat.eps, run.threat.steps) == ("trades", 3, 9, 4 / 255, 5)
    run = read(["at", f"--config={path}", "--seed", "0"]).run()
    assert (run.method, run.seed, run.training.epochs) == ("at", 0, 9)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[training]\nepoch = 3", "unknown key 'training.epoch'; did you mean 'training.epochs'?"),
        ("[training]\nepochs = 0", "training.epochs: got 0; allowed: 1 or more"),
        ("[training]\nepochs = true", "training.epochs: got True; allowed: a whole number, 1 or more"),
        ('[threat]\neps = "8"', "threat.eps: got '8'; allowed: a number, 0 to 1"),
        ('[data]\ntest = "balancd"', "unknown data.test 'balancd'; allowed: balanced, long-tailed, validation; did"),
        ("epochs = 3", "unknown key 'epochs'; did you mean 'training.epochs'?"),
        ('data = "digits-lt"', "data: got 'digits-lt'; allowed: a table, [data]"),
        ('method = "taett"', "unknown method 'taett'"),
        ("method = 3", "method: got 3; allowed: a text"),
        ('protocol = "taett"', "unknown protocol 'taett'; allowed: official, reat, taet; did you mean 'taet'?"),
        ("[settings]\nbeta = 3", "unknown key 'settings.beta'"),
        ("[training]\nema = 0.9\nswa = 0.5", "swa: got 0.5 with ema 0.9"),
        ("[training", "not TOML"),
        ("{", "JSON: truncated or not JSON"),
    ],
)
def test_a_mistake_names_file_key_and_nearest_match(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(content)
    with pytest.raises(UserError) as caught:
        read(["at", "--config", str(path)] if "method" not in content else ["--config", str(path)])
    assert str(caught.value).startswith(f"{path}: {message}")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--config", "--config needs a value"),
        ("--config none.toml", "cannot read none.toml"),
        ("at --config FILE --resume runs/x", "--resume takes everything from the run"),
        ("--config FILE", "which method?"),
    ],
)
def test_a_wrong_call_is_refused(words: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text("seed = 1")
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        read(words.replace("FILE", str(tmp_path / "run.toml")).split())


def test_the_command_prints_the_file_and_trains_nothing(taet: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = taet("train", "at", "--epochs", "2", "--print-config")
    assert outcome.code == 0
    (tmp_path / "run.toml").write_text(outcome.out)
    assert taet("train", "--config", "run.toml", "--print-config").out == outcome.out
    assert not (tmp_path / "runs").exists()
