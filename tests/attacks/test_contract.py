"""The contract of attacks: checks of every attack that the catalogue finds, also of ones that are added at run time."""

from __future__ import annotations

import contextlib
import copy
import inspect
import json
import sys
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import taet.attacks
from taet import registry, report
from taet.attacks import catalogue
from taet.attacks.ball import distance
from taet.attacks.counted import Counted
from taet.attacks.spec import AttackSpec, option_fields
from taet.attacks.suite import Suite
from taet.cli import main
from taet.errors import UserError
from taet.evaluation import ResultCard
from taet.evaluation.runner import Runner
from taet.settings import Evaluation

EPS, COUNT, CLASSES = 0.1, 6, 4
SETTINGS = Evaluation(eps=EPS, step_size=EPS / 2, eps_l2=0.6, step_size_l2=0.3, batch_size=COUNT)


def short_names() -> list[str]:
    """Every name of the catalogue, with few steps."""
    short = {"cw-l2": "cw-l2:steps=10", "deepfool": "deepfool:steps=5"}
    short |= {name: f"{name}:targets=1,near=0" for name in ("quick", "quick-l2")}
    return [short.get(name, name.replace("-N", "-3")) for name in catalogue.kinds()]


class Network(nn.Module):
    """A smooth classifier with batch normalisation and dropout, which a wrong mode would show."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layers = nn.Sequential(
                nn.Flatten(), nn.Linear(75, 12), nn.BatchNorm1d(12), nn.Tanh(), nn.Dropout(), nn.Linear(12, CLASSES)
            )

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layers(x - 0.5)
        return logits


def runner_on(model: nn.Module, seed: int = 0) -> Runner:
    """Images that the model classifies correctly, except one."""
    images = np.random.default_rng(1).uniform(0, 1, (COUNT, 3, 5, 5)).astype(np.float32)
    with torch.no_grad():
        labels = copy.deepcopy(model).eval()(torch.from_numpy(images)).argmax(1).numpy()
    labels[0] = (labels[0] + 1) % CLASSES
    return Runner(Counted(model), images, labels, CLASSES, COUNT, seed, torch.device("cpu"))


def attacked(name: str, rows: Sequence[int] = range(COUNT), seed: int = 0) -> tuple[AttackSpec, Tensor, Tensor]:
    """The attack, images and adversarial images."""
    attack = catalogue.parse(name, SETTINGS.replace(seed=seed))
    runner = runner_on(Network().eval(), seed)
    with runner.still():
        x, x_adv = runner.perturb(attack, np.array(rows))
    return attack, x, x_adv


def stays_inside_its_ball_and_the_image_range(name: str) -> None:
    attack, x, x_adv = attacked(name)
    assert x_adv.shape == x.shape
    assert x_adv.dtype == x.dtype
    assert float(x_adv.min()) >= 0
    assert float(x_adv.max()) <= 1
    if attack.norm is None:
        assert torch.equal(x_adv, x)
    if attack.eps is not None:
        assert float(distance(x_adv, x, attack.norm or "linf").max()) <= attack.eps + 1e-6


def leaves_the_model_and_the_random_state_alone(name: str) -> None:
    model = Network().train()
    model.layers[3].eval()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    model.layers[1].bias.requires_grad_(False)
    before = copy.deepcopy(model)
    runner = runner_on(model)
    attack = catalogue.parse(name, SETTINGS)
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    with runner.still():
        runner.attack(attack)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert [module.training for module in model.modules()] == [module.training for module in before.modules()]
    for (key, value), (_, expected) in zip(model.state_dict().items(), before.state_dict().items(), strict=True):
        assert torch.equal(value, expected), key
    for parameter in model.parameters():
        assert parameter.grad is not None
        assert bool((parameter.grad == 1).all())
    assert [one.requires_grad for one in model.parameters()] == [one.requires_grad for one in before.parameters()]


def repeats_itself_with_the_same_seed(name: str) -> None:
    attack, _, first = attacked(name)
    torch.manual_seed(9)
    assert torch.equal(attacked(name)[2], first)
    if attack.seed is None:
        assert torch.equal(attacked(name, seed=1)[2], first)


def treats_an_image_alike_in_any_batch(name: str) -> None:
    attack, _, whole = attacked(name)
    if attack.batch_independent:
        parts = torch.cat([attacked(name, range(4))[2], attacked(name, range(4, COUNT))[2]])
        torch.testing.assert_close(parts, whole, rtol=0, atol=1e-4)


def takes_no_more_passes_than_it_says(name: str) -> None:
    attack, runner = catalogue.parse(name, SETTINGS), runner_on(Network().eval())
    with runner.still():
        result = runner.attack(attack)
    # AutoAttack's own looks at the clean images are not part of an image's cost.
    assert 0 < result.work["forwards"] + result.work["backwards"] <= COUNT * (attack.passes(CLASSES) + 1)


def counts_the_passes_that_a_hook_counts(name: str) -> None:
    model, seen = Network().eval(), {"forwards": 0, "backwards": 0}

    def forward(_: nn.Module, __: object, logits: Tensor) -> None:
        seen["forwards"] += len(logits)
        if logits.requires_grad:
            logits.register_hook(backward)  # type: ignore[no-untyped-call]

    def backward(gradient: Tensor) -> None:
        seen["backwards"] += len(gradient)

    runner = runner_on(model)
    model.register_forward_hook(forward)
    before = dict(seen)
    with runner.still():
        for attack in (catalogue.parse(name, SETTINGS), catalogue.parse(name, SETTINGS.replace(seed=1))):
            counted = runner.model.measure()
            result = runner.attack(attack)
            found = {what: seen[what] - before[what] for what in seen}
            assert {what: int(counted()[what]) for what in found} == found
            # A suite finds the number of classes, and makes its clean predictions, before its parts.
            assert all(result.work[what] <= found[what] for what in found)
            if not isinstance(attack, Suite):
                assert {what: result.work[what] for what in found} == found
            before = dict(seen)


def follows_a_renaming_of_the_classes(name: str) -> None:
    turned = torch.tensor([2, 0, 3, 1])
    plain, renamed = Network().eval(), Network().eval()
    last, other = plain.layers[-1], renamed.layers[-1]
    other.weight.data[turned], other.bias.data[turned] = last.weight.data.clone(), last.bias.data.clone()
    attack, found = catalogue.parse(name, SETTINGS), []
    for model in (plain, renamed):
        runner = runner_on(plain)
        labels = runner.labels if model is plain else turned.numpy()[runner.labels]
        runner = replace(runner, model=Counted(model), labels=labels)
        with runner.still():
            found.append(runner.attack(attack).predictions)
    assert (turned.numpy()[found[0]] == found[1]).all()


def breaks_no_fewer_images_in_a_larger_ball(name: str) -> None:
    attack, runner = catalogue.parse(name, SETTINGS), runner_on(Network().eval())
    if attack.norm is None:
        return
    left = []
    for factor in (0.01, 0.3, 1.0, 3.0):
        eps = factor * (EPS if attack.norm == "linf" else 1.0)
        step = {"step_size": eps / 2} if hasattr(attack, "step_size") else {}
        with runner.still():
            result = runner.attack(replace(attack, eps=eps, **step))
        left.append(int((result.predictions == runner.labels).sum()))
    assert left == sorted(left, reverse=True)
    assert left[0] == COUNT - 1  # all but the image that is wrong without an attack


def refuses_a_model_that_is_not_finite(name: str) -> None:
    attack, sound = catalogue.parse(name, SETTINGS), runner_on(Network().eval())
    with sound.still():
        uses_gradients = sound.attack(attack).work["backwards"] > 0
    infinite_slope = Layer(lambda x: x + 0 * (x - x.detach()).sqrt())
    for layer in [Layer(lambda x: x * torch.nan), *([infinite_slope] if uses_gradients else [])]:
        model = nn.Sequential(nn.Flatten(), nn.Linear(75, CLASSES))
        runner = runner_on(model)
        model.append(layer)
        with runner.still(), pytest.raises(UserError) as error:
            runner.attack(attack)
        assert "\n" not in str(error.value)


def is_read_back_from_a_card(name: str) -> None:
    attack = catalogue.parse(name, SETTINGS)
    parameters = json.loads(json.dumps(attack.parameters))
    assert catalogue.stored(attack.name, attack.norm, attack.eps, parameters) == attack
    moved = attack.on("other", "0" * 64)
    again = catalogue.stored(moved.name, moved.norm, moved.eps, json.loads(json.dumps(moved.parameters)))
    assert (again, again.base, again.noise_key) == (moved, attack.base, attack.noise_key)
    assert again != attack
    one, two = (catalogue.parse(name, SETTINGS.replace(seed=seed)) for seed in (0, 1))
    assert one.identity == two.identity


def is_another_attack_with_another_option(name: str) -> None:
    base = name.partition(":")[0]
    kind = type(catalogue.parse(base, SETTINGS))
    for option, field in option_fields(kind).items():
        choices = typing.get_args(typing.get_type_hints(kind)[field])
        named = [str(one) for member in choices for one in typing.get_args(member) or (member,)]
        found = {}
        for text in ["2", "3", "0.25", "0.125", "true", "false", *named]:
            with contextlib.suppress(UserError):
                attack = catalogue.parse(f"{base}:{option}={text}", SETTINGS)
                found[getattr(attack, field)] = attack
        assert len(found) >= 2, option
        for attack in found.values():
            parameters = json.loads(json.dumps(attack.parameters))
            assert catalogue.stored(attack.name, attack.norm, attack.eps, parameters) == attack, option
        identities = {replace(one.identity, name=base) for one in found.values()}
        assert len(identities) == len(found), option


def is_listed_and_has_a_place(name: str) -> None:
    attack = catalogue.parse(name, SETTINGS)
    assert any(attack.base == entry or attack.base.startswith(f"{entry}-") for entry in registry.entries("attacks"))
    assert catalogue.place(name) == catalogue.place(attack.base)
    assert attack.passes(CLASSES) >= 1
    attack.check_classes(CLASSES)


def resumes_from_its_finished_batches(name: str, folder: Path) -> None:
    attack, runner = catalogue.parse(name, SETTINGS), runner_on(Network().eval())
    runner = replace(runner, batch_size=4)
    with runner.still():
        results = [replace(runner, state_dir=folder).attack(attack, keep=True) for _ in range(2)]
    first, again = (SimpleNamespace(**vars(result)) for result in results)
    np.testing.assert_array_equal(again.predictions, first.predictions)
    assert again.work == first.work  # of the stored batches: nothing was run
    if isinstance(attack, Suite):
        assert tuple(again.parts) == attack.parts(CLASSES)


class Layer(nn.Module):
    """A layer that is a function."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        return self.change(x)


CHECKS: tuple[Callable[[str], None], ...] = (
    stays_inside_its_ball_and_the_image_range,
    leaves_the_model_and_the_random_state_alone,
    repeats_itself_with_the_same_seed,
    treats_an_image_alike_in_any_batch,
    takes_no_more_passes_than_it_says,
    counts_the_passes_that_a_hook_counts,
    follows_a_renaming_of_the_classes,
    breaks_no_fewer_images_in_a_larger_ball,
    refuses_a_model_that_is_not_finite,
    is_read_back_from_a_card,
    is_another_attack_with_another_option,
    is_listed_and_has_a_place,
)


@pytest.fixture(autouse=True)
def few_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["taet.attacks.autoattack"], "QUERIES", 10)


# In make test the suites, which are the slow ones, are shown by one of them in the checks that run an attack.
RUN_IT = CHECKS[:9]


def parameter(name: str, check: Callable[[str], None]) -> Any:
    suite = isinstance(catalogue.parse(name, SETTINGS), Suite)
    usual = not suite or name == SUITES[0] or check not in RUN_IT
    return pytest.param(name, check, id=f"{name}-{check.__name__}", marks=() if usual else pytest.mark.full)


SUITES = [name for name in short_names() if isinstance(catalogue.parse(name, SETTINGS), Suite)]


@pytest.mark.sample(2)
@pytest.mark.parametrize(("name", "check"), [parameter(name, check) for name in short_names() for check in CHECKS])
def test_an_attack(name: str, check: Callable[[str], None]) -> None:
    check(name)


@pytest.mark.sample(4)
@pytest.mark.parametrize("name", short_names())
def test_an_attack_resumes(name: str, tmp_path: Path) -> None:
    resumes_from_its_finished_batches(name, tmp_path)


# --- attacks that are added at run time ------------------------------------------------------------------------------

SPECIFICATION = """
from dataclasses import dataclass
from typing import ClassVar, Literal

from taet.attacks.spec import AttackSpec, option_fields
from taet.fields import Count

NAMES = {"nudge": "all pixels one step up or down, N times"}


@dataclass(frozen=True, kw_only=True)
class Nudge(AttackSpec):
    names: ClassVar = {"nudge-N": "linf"}

    steps: Count
    way: Literal["up", "down", "random"] = "up"

    def run(self, model, x, y, draws):
        sign = draws.start(x, 1.0).sign() if self.way == "random" else 1 if self.way == "up" else -1
        return (x + self.eps * sign).clamp(0, 1)

    def passes(self, num_classes):
        return 1
"""
FUNCTION = """
NAMES = {"shift": "all pixels up by eps"}


def shift(model, x, y, *, eps):
    return (x + eps).clamp(0, 1)
"""


@pytest.fixture(params=["TAET_PLUGINS", "registry.add"])
def add(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str, str], None]]:
    """Return a function that adds an attack's file in one of the two ways."""
    (tmp_path / "attacks").mkdir()

    def put(name: str, text: str) -> None:
        path = tmp_path / "attacks" / f"{name}.py"
        path.write_text(text, encoding="utf-8")
        if request.param == "TAET_PLUGINS":
            monkeypatch.setenv("TAET_PLUGINS", str(tmp_path))
        else:
            registry.add("attacks", path)

    yield put
    for path in (tmp_path / "attacks").iterdir():
        registry.forget("attacks", path)


@pytest.mark.sample(2)
@pytest.mark.diagonal("add", "name")
@pytest.mark.parametrize(
    ("name", "text", "typed"), [("nudge", SPECIFICATION, "nudge-3:way=random"), ("shift", FUNCTION, "shift")]
)
@pytest.mark.usefixtures("outlined")
def test_an_attack_is_added_by_one_file(
    name: str,
    text: str,
    typed: str,
    add: Callable[[str, str], None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(UserError, match=f"unknown attack '{typed.partition(':')[0]}'"):
        catalogue.parse(typed)
    add(name, text)
    assert main(["list", "attacks"]) == 0
    assert f"{name} " in capsys.readouterr().out
    assert name in " ".join(catalogue.kinds())
    for check in CHECKS:
        check(typed)
    resumes_from_its_finished_batches(typed, tmp_path)
    weights = ["--model", "resnet8", "--data", "digits-lt", "--data.max-count", "12", "--data.test-max-count", "4"]
    out = tmp_path / "card"
    assert main(["evaluate", *weights, "--attacks", "clean", typed, "pgd-2", "--out", str(out)]) == 0
    column = ResultCard.load(out / "evaluation.json").column(typed)
    assert column.attack == catalogue.parse(typed, eps=column.eps)
    assert len(column.parameters["source_sha256"]) == 64
    assert typed in report.write([out], tmp_path / "report.html").read_text(encoding="utf-8")
    assert main(["evaluate", *weights, "--attacks", f"{typed.partition(':')[0]}:way=sideways", "--out", str(out)]) == 2
    assert "allowed: up, down, random" in capsys.readouterr().err or name == "shift"


def test_a_custom_file_that_cannot_be_imported_does_not_hide_a_mistyped_name(add: Callable[[str, str], None]) -> None:
    add("broken", 'NAMES = {"broken": "fails"}\nimport absent_package\n')
    with pytest.raises(UserError, match=r"unknown attack 'pdg-20'.*did you mean 'pgd-20'"):
        catalogue.parse("pdg-20")
    with pytest.raises(UserError, match=r"unknown attack 'brokn'.*did you mean 'broken'"):
        catalogue.parse("brokn")
    with pytest.raises(UserError, match="cannot be imported: ModuleNotFoundError"):
        catalogue.parse("broken")


def test_a_card_whose_custom_attack_is_gone_is_still_read(
    add: Callable[[str, str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add("nudge", SPECIFICATION)
    model, images = Network().eval(), runner_on(Network().eval())
    card = taet.evaluate(model, images.images, images.labels, attacks=["nudge-2", "pgd-2"], eps=EPS)
    card.save(tmp_path / "card.json")
    monkeypatch.delenv("TAET_PLUGINS", raising=False)
    registry.forget("attacks", tmp_path / "attacks" / "nudge.py")
    again = ResultCard.load(tmp_path / "card.json")
    assert again.to_json() == card.to_json()
    column = again.column("nudge-2")
    assert column.identity == card.column("nudge-2").identity
    assert (column.attack.parameters, column.attack.eps) == (column.parameters, EPS)
    with pytest.raises(UserError, match="is it a plugin"):
        column.attack.run(model, torch.zeros(1), torch.zeros(1), images.draws(column.attack, np.arange(1)))


# --- the public functions --------------------------------------------------------------------------------------------


def call(name: str, x: Tensor, **settings: Any) -> Tensor:
    """Run a public function on a linear model, with three steps where it asks for a number of them."""
    function = getattr(taet.attacks, name)
    parameters = inspect.signature(function).parameters.values()
    needs_steps = any(
        one.kind is one.VAR_KEYWORD or (one.name == "step_size" and one.default is one.empty) for one in parameters
    )
    chain = {"steps": 3, "step_size": EPS / 2} if needs_steps else {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(75, 4)).eval()
    result: Tensor = function(model, x, model(x.float()).argmax(1), **chain, **settings)
    return result


def images() -> Tensor:
    return torch.rand(6, 3, 5, 5, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", sorted(taet.attacks.__all__))
def test_a_function_takes_a_ball_per_image_or_says_that_it_does_not(name: str) -> None:
    x, eps = images(), torch.tensor([0.02, 0.05, 0.1, 0.3, 0.6, 0.9])
    if name == "autoattack":
        with pytest.raises(UserError, match=r"got a tensor of shape \(6,\); allowed: one number"):
            call(name, x, eps=eps)
        return
    x_adv = call(name, x, eps=eps)
    norm = "l2" if name in ("cw_l2", "deepfool") else "linf"
    assert bool((distance(x_adv, x, norm) <= eps + 1e-6).all())
    assert float(distance(x_adv, x, norm).max()) > 0
    with pytest.raises(UserError, match="eps: got a tensor of shape"):
        call(name, x, eps=eps[:2])
