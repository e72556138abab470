"""The contract of attacks: checks of every attack that the catalogue finds, also of ones that are
added at run time."""

import contextlib
import copy
import json
import sys
import typing
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from taet import report
from taet.attacks import catalogue
from taet.attacks.autoattack import AutoAttack
from taet.attacks.ball import distance
from taet.attacks.counting_model import WORK, CountingModel
from taet.attacks.noise import Draws
from taet.attacks.spec import AttackSpec, option_fields
from taet.cli import main
from taet.errors import UserError
from taet.evaluation import ResultCard
from taet.evaluation.runner import Runner
from taet.settings import Evaluation

EPS, COUNT, CLASSES = 0.1, 6, 4
# it has one; the gradient's sign stays
NO_EFFECT = {("cw-linf-3", "objective"), ("cw-linf-3", "factor")}
SETTINGS = Evaluation(eps=EPS, step_size=EPS / 2, eps_l2=0.6, step_size_l2=0.3, batch_size=COUNT)


def short_names() -> list[str]:
    """Every name of the catalogue, with few steps."""
    short = {"cw-l2": "cw-l2:steps=10", "deepfool": "deepfool:steps=5"}
    short |= {name: f"{name}:targets=1,near=0" for name in ("quick", "quick-l2")}
    return [short.get(name, name.replace("-N", "-3")) for name in catalogue.kinds()]


class Layer(nn.Module):
    """A layer that is a function."""

    def __init__(self, change: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.change = change

    def forward(self, x: Tensor) -> Any:
        return self.change(x)


class Network(nn.Module):
    """A smooth classifier with batch normalisation and dropout, which a wrong mode would show."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layers = nn.Sequential(
                nn.Flatten(),
                nn.Linear(75, 12),
                nn.BatchNorm1d(12),
                nn.Tanh(),
                nn.Dropout(),
                nn.Linear(12, CLASSES),
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
    return Runner(CountingModel(model), images, labels, CLASSES, COUNT, seed, torch.device("cpu"))


def examples(
    attack: AttackSpec, rows: Sequence[int] = range(COUNT), seed: int = 0
) -> tuple[Tensor, Tensor, int]:
    """Images, adversarial images and passes."""
    runner = runner_on(Network().eval(), seed)
    with runner.frozen_and_exact():
        x, y = runner.batch(np.array(rows))
        x_adv = attack.run(runner.model, x.clone(), y, Draws(seed, attack.base, np.array(rows)))
    return x, x_adv, runner.model.passes


def attacked(
    name: str, rows: Sequence[int] = range(COUNT), seed: int = 0
) -> tuple[AttackSpec, Tensor, Tensor]:
    """The attack, images and adversarial images."""
    attack = catalogue.parse(name, SETTINGS.replace(seed=seed))
    x, x_adv, _ = examples(attack, rows, seed)
    return attack, x, x_adv


def stays_inside_its_ball_and_the_image_range(name: str) -> None:
    attack, x, x_adv = attacked(name)
    assert (x_adv.shape, x_adv.dtype) == (x.shape, x.dtype)
    assert 0 <= float(x_adv.min()) <= float(x_adv.max()) <= 1
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
    before, runner = copy.deepcopy(model), runner_on(model)
    state = torch.random.get_rng_state()
    with runner.frozen_and_exact():
        runner.attack(catalogue.parse(name, SETTINGS))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert [module.training for module in model.modules()] == [
        module.training for module in before.modules()
    ]
    assert [one.requires_grad for one in model.parameters()] == [
        one.requires_grad for one in before.parameters()
    ]
    for (key, value), expected in zip(
        model.state_dict().items(), before.state_dict().values(), strict=True
    ):
        assert torch.equal(value, expected), key
    assert all(one.grad is not None and bool((one.grad == 1).all()) for one in model.parameters())


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


def counts_its_passes_and_takes_no_more_than_it_says(name: str) -> None:
    model, seen = Network().eval(), 0

    def forward(_: nn.Module, __: object, logits: Tensor) -> None:
        nonlocal seen
        seen += len(logits)

    attack, runner = catalogue.parse(name, SETTINGS), runner_on(model)
    model.register_forward_hook(forward)
    with runner.frozen_and_exact():
        work, _ = runner.attack(attack)
    assert 0 < work.forwards <= seen == runner.model.forwards
    # AutoAttack's own looks at the clean images are not part of an image's cost.
    assert work.forwards + work.backwards <= COUNT * (attack.passes(CLASSES) + 1)


def follows_a_renaming_of_the_classes(name: str) -> None:
    turned = torch.tensor([2, 0, 3, 1])
    plain, renamed = Network().eval(), Network().eval()
    last, other = plain.layers[-1], renamed.layers[-1]
    other.weight.data[turned], other.bias.data[turned] = (
        last.weight.data.clone(),
        last.bias.data.clone(),
    )
    attack, found, runner = catalogue.parse(name, SETTINGS), [], runner_on(plain)
    for model, labels in ((plain, runner.labels), (renamed, turned.numpy()[runner.labels])):
        one = replace(runner, model=CountingModel(model), labels=labels)
        with one.frozen_and_exact():
            found.append(one.attack(attack)[0].predictions)
    assert (turned.numpy()[found[0]] == found[1]).all()


def breaks_no_fewer_images_in_a_larger_ball(name: str) -> None:
    attack, runner = catalogue.parse(name, SETTINGS), runner_on(Network().eval())
    if attack.norm is None:
        return
    left = []
    for factor in (0.01, 0.3, 1.0, 3.0):
        eps = factor * (EPS if attack.norm == "linf" else 1.0)
        step = {"step_size": eps / 2} if hasattr(attack, "step_size") else {}
        with runner.frozen_and_exact():
            result, _ = runner.attack(replace(attack, eps=eps, **step))
        left.append(int(result.correct.sum()))
    assert left == sorted(left, reverse=True)
    assert left[0] == COUNT - 1  # all but the image that is wrong without an attack


def refuses_a_model_that_is_not_finite(name: str) -> None:
    attack, sound = catalogue.parse(name, SETTINGS), runner_on(Network().eval())
    with sound.frozen_and_exact():
        uses_gradients = sound.attack(attack)[0].backwards > 0
    infinite_slope = Layer(lambda x: x + 0 * (x - x.detach()).sqrt())
    for layer in [Layer(lambda x: x * torch.nan), *([infinite_slope] if uses_gradients else [])]:
        model = nn.Sequential(nn.Flatten(), nn.Linear(75, CLASSES))
        runner = runner_on(model)
        model.append(layer)
        with runner.frozen_and_exact(), pytest.raises(UserError) as error:
            runner.attack(attack)
        assert "\n" not in str(error.value)


def is_read_back_from_a_card(name: str) -> None:
    attack = catalogue.parse(name, SETTINGS)
    for one in (attack, attack.on("other", "0" * 64)):
        again = catalogue.stored(
            one.name, one.norm, one.eps, json.loads(json.dumps(one.parameters))
        )
        assert (again, again.base) == (one, attack.base)
    assert attack.on("other", "0" * 64) != attack
    assert replace(catalogue.parse(name, SETTINGS.replace(seed=1)), seed=attack.seed) == attack


def effect(attack: AttackSpec) -> tuple[bytes, int]:
    """The adversarial images, to five digits, and of a random search, which breaks none of these,
    the passes."""
    _, x_adv, passes = examples(attack)
    return x_adv.round(decimals=5).numpy().tobytes(), passes * attack.gradient_free


def is_another_attack_with_another_option(name: str) -> None:
    base, _, short = name.partition(":")
    kind = type(catalogue.parse(base, SETTINGS))
    # with which some images stay correct
    settings = SETTINGS.replace(eps=0.03, step_size=0.01, eps_l2=0.15)
    for option, field in option_fields(kind).items():
        choices = typing.get_args(typing.get_type_hints(kind)[field])
        named = [str(one) for member in choices for one in typing.get_args(member) or (member,)]
        others = [one for one in short.split(",") if one and not one.startswith(option)]
        found, effects = {}, set[object]()
        for text in ["1", "2", "300", "0.25", "0.01", *named]:
            with contextlib.suppress(UserError):
                attack = catalogue.parse(
                    f"{base}:{','.join([f'{option}={text}', *others])}", settings
                )
                found[getattr(attack, field)] = attack
        assert len(found) > 1 or (base, option) == ("cw-linf-3", "objective"), option
        for attack in found.values():
            parameters = json.loads(json.dumps(attack.parameters))
            assert catalogue.stored(attack.name, attack.norm, attack.eps, parameters) == attack, (
                option
            )
            if option == "precision":  # changes roundings only
                effects.add(attack)
            elif len(effects) < 2:  # two that differ are enough, and attacks are slow
                effects.add(effect(attack))
        assert len({replace(one, name=base) for one in found.values()}) == len(found), option
        assert len(effects) > 1 or (base, option) in NO_EFFECT, option


RUNNING: tuple[Callable[[str], None], ...] = (
    stays_inside_its_ball_and_the_image_range,
    leaves_the_model_and_the_random_state_alone,
    repeats_itself_with_the_same_seed,
    treats_an_image_alike_in_any_batch,
    counts_its_passes_and_takes_no_more_than_it_says,
    follows_a_renaming_of_the_classes,
    breaks_no_fewer_images_in_a_larger_ball,
    refuses_a_model_that_is_not_finite,
)
CHECKS = (*RUNNING, is_read_back_from_a_card, is_another_attack_with_another_option)
SUITES = [name for name in short_names() if isinstance(catalogue.parse(name, SETTINGS), AutoAttack)]


@pytest.fixture(autouse=True)
def few_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["taet.attacks.autoattack"], "QUERIES", 10)


def parameter(name: str, check: Callable[[str], None]) -> Any:
    """In make test one suite stands for the others, which are slow, in the checks that run an
    attack."""
    usual = name not in SUITES[1:] or check not in RUNNING
    return pytest.param(
        name, check, id=f"{name}-{check.__name__}", marks=() if usual else pytest.mark.full
    )


@pytest.mark.sample(3)  # which shares no factor with the number of checks: each is tried
@pytest.mark.parametrize(
    ("name", "check"), [parameter(name, check) for name in short_names() for check in CHECKS]
)
def test_an_attack(name: str, check: Callable[[str], None]) -> None:
    check(name)


@pytest.mark.sample(4)
@pytest.mark.parametrize("name", short_names())
def test_an_attack_resumes_from_its_finished_batches(name: str, tmp_path: Path) -> None:
    attack, runner = catalogue.parse(name, SETTINGS), runner_on(Network().eval())
    runner = replace(runner, batch_size=4, state_dir=tmp_path)
    with runner.frozen_and_exact():
        first, again = (runner.attack(attack)[0] for _ in range(2))
    np.testing.assert_array_equal(again.predictions, first.predictions)
    # nothing ran
    assert [getattr(again, name) for name in WORK] == [getattr(first, name) for name in WORK]


# --- attacks that are added at run time

SPECIFICATION = """
from dataclasses import dataclass
from typing import ClassVar, Literal

from taet.attacks.spec import AttackSpec
from taet.settings.types import Count

NAMES = {"nudge": "all pixels up or down by an N-th of eps"}


@dataclass(frozen=True, kw_only=True)
class Nudge(AttackSpec):
    names: ClassVar = {"nudge-N": "linf"}

    steps: Count
    way: Literal["up", "random"] = "up"

    def run(self, model, x, y, draws):
        sign = draws.start(x, 1.0).sign() if self.way == "random" else 1
        return (x + self.eps / self.steps * sign).clamp(0, 1)

    def passes(self, num_classes):
        return 1
"""
FUNCTION = """
NAMES = {"shift": "all pixels up by eps"}


def shift(model, x, y, *, eps):
    return (x + eps).clamp(0, 1)
"""
Plugged = Callable[..., AbstractContextManager[None]]


def test_an_attack_cannot_have_a_name_of_this_package(plugged: Plugged, tmp_path: Path) -> None:
    (path := tmp_path / "own.py").write_text(
        FUNCTION.replace('"shift"', '"pgd-20"'), encoding="utf-8"
    )
    with (
        plugged("attacks", path),
        pytest.raises(UserError, match="the attack 'pgd-20' exists already; rename yours"),
    ):
        catalogue.parse("pgd-20")


@pytest.mark.parametrize(
    ("name", "text", "typed"),
    [("nudge", SPECIFICATION, "nudge-3:way=random"), ("shift", FUNCTION, "shift")],
)
def test_an_attack_is_added_by_one_file(
    name: str,
    text: str,
    typed: str,
    plugged: Plugged,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path, out = tmp_path / f"{name}.py", tmp_path / "card"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=f"unknown attack '{typed.partition(':')[0]}'"):
        catalogue.parse(typed)
    with plugged("attacks", path):
        assert main(["list", "attacks"]) == 0
        assert f"{name} " in capsys.readouterr().out
        for check in CHECKS:
            check(typed)
        x, y = torch.rand(2, 3, 5, 5), torch.tensor([0, 1])
        assert (
            float(distance(catalogue.parse(typed, SETTINGS)(Network(), x, y), x).max())
            <= EPS + 1e-6
        )
        weights = [
            "--model",
            "resnet8",
            "--data",
            "digits-lt",
            "--data.max-count",
            "12",
            "--data.test-max-count",
            "4",
        ]
        assert (
            main(["evaluate", *weights, "--attacks", "clean", typed, "pgd-2", "--out", str(out)])
            == 0
        )
        column = ResultCard.load(out / "evaluation.json").column(typed)
        assert column.attack == catalogue.parse(typed, Evaluation(eps=column.eps))
        assert len(column.parameters["source_sha256"]) == 64
        assert typed in report.write([out], tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_step_that_its_ball_cannot_have_is_refused_before_anything_runs() -> None:
    with pytest.raises(
        UserError, match=r"step: got 2; allowed: a number, 0 to 1.*did you mean 2/255"
    ):
        catalogue.parse("pgd-3:step=2")
    with pytest.raises(UserError, match="step: got 2"):
        catalogue.stored("pgd-3", "linf", EPS, {"steps": 3, "step_size": 2.0, "seed": 0})
    # an L2 ball may be larger
    assert catalogue.parse("pgd-l2-3:step=2").parameters["step_size"] == 2


def test_a_custom_file_that_cannot_be_imported_does_not_hide_a_mistyped_name(
    plugged: Plugged, tmp_path: Path
) -> None:
    path = tmp_path / "broken.py"
    path.write_text('NAMES = {"broken": "fails"}\nimport absent_package\n', encoding="utf-8")
    with plugged("attacks", path):
        for wrong, nearest in (("pdg-20", "pgd-20"), ("brokn", "broken")):
            with pytest.raises(
                UserError, match=f"unknown attack '{wrong}'.*did you mean '{nearest}'"
            ):
                catalogue.parse(wrong)
        with pytest.raises(UserError, match="cannot be imported: ModuleNotFoundError"):
            catalogue.parse("broken")
