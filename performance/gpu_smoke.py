"""Ten minutes on a new GPU: what must hold there, a line PASS or FAIL for each point.

    python performance/gpu_smoke.py                  on the GPU
    python performance/gpu_smoke.py --device cpu     as far as it goes without one

Results are written after every point; points that have passed are not repeated when the command is
called again on the same device, with the same versions, at the same commit.
"""

import argparse
import contextlib
import io
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import RESULTS, earlier_points, seconds, wait
from training import dataset

import taet
from taet import methods, protocols, registry
from taet.errors import UserError
from taet.files import write_json
from taet.machine import environment, resolve_device
from taet.run.folder import RunFolder
from taet.settings import Run, override
from taet.training.compilation import with_compiled_view
from taet.training.loop import TrainingMonitor, epoch_row, train_epoch
from taet.training.prepare import prepare
from taet.training.state import State
from taet.training.step import training_step

STEPS = 20  # of every method without a synchronisation
# largest difference of a weight between two devices after a few steps, which may turn signs of an
# attack
CLOSE = 5e-3

Point = Callable[[str], str]
"""Takes the device; returns what was found, "" if it has no use there; raises an AssertionError
where it is wrong."""


def settings(device: str, method: str = "at", **more: Any) -> Run:
    """Return a run of a few small batches."""
    changes = {
        "model.name": "resnet8",
        "training.epochs": 2,
        "training.batch_size": 64,
        "training.lr": 0.01,
    }
    changes |= {"training.monitor_every": 0, "training.device": device, "threat.steps": 3}
    # none within an epoch: the folders of `begun` are no runs
    changes |= {"training.save_minutes": 1e4}
    changes |= {f"training.{name}": value for name, value in more.items()}
    return override(protocols.start("taet", method), changes)


@contextlib.contextmanager
def begun(run: Run, images: int = 640) -> Iterator[tuple[Any, State, TrainingMonitor]]:
    """Yield a prepared run on generated images, within its surroundings."""
    plan, state = prepare(run, dataset=dataset(images))
    plan = with_compiled_view(plan, state)
    if run.training.compile:
        compiled, reason = plan.choices["training.compile"]
        assert compiled, reason
    with tempfile.TemporaryDirectory() as folder, plan.surroundings():
        yield plan, state, TrainingMonitor(plan, state, RunFolder(Path(folder)))


def epoch(plan: Any, state: State, monitor: TrainingMonitor) -> None:
    """Train for an epoch, without a curve and checkpoints."""
    train_epoch(plan, state, monitor)
    row = epoch_row(plan, state, state.sums.counts, None, {})
    state.rows.append(row.model_dump(mode="json"))
    state.end_epoch(state.sums.counts[2])


def versions(device: str) -> str:
    """What is installed, and that tensors reach the device."""
    assert torch.ones(3, device=device).sum().item() == 3
    found = environment(torch.device(device))
    libraries = {
        "torch": torch.__version__,
        "CUDA": torch.version.cuda,
        "cuDNN": torch.backends.cudnn.version(),
    }
    return f"{found['device']}, {libraries}"


def no_synchronisation(device: str) -> str:
    """Steps of every method, in its last epoch, under which a wait for the device is an error."""
    done, steps = list[str](), 1 if device == "cpu" else STEPS
    for name in registry.entries("methods"):
        run = settings(device, name, epochs=10, batch_size=32, ema=0.999)
        # need validation images or a network
        if methods.find(name).needs_feedback or name in ("cfa", "fare"):
            continue
        with begun(run, images=32 * (steps + 2)) as (plan, state, _):
            state.epoch = last = run.training.epochs - 1
            state.begin_epoch()
            for step, batch in enumerate(plan.loader.epoch(last)):
                if step == 2 and device != "cpu":  # the first steps build caches
                    torch.cuda.set_sync_debug_mode("error")
                try:
                    loss = training_step(
                        state, batch, state.attack(plan.loader.shard(step), "attack", last, step)
                    )
                    state.sums.add(loss, batch.y, total=len(batch.y))
                    state.step += 1
                    assert state.average is not None
                    state.average.update_parameters(state.model)
                finally:
                    if device != "cpu":
                        torch.cuda.set_sync_debug_mode("default")
            assert not state.not_finite()
        done.append(name)
    return f"{steps} steps of each of {len(done)} methods"


def learning(device: str) -> str:
    """A network learns in bf16 as it does on the CPU, also by a compiled attack: clean accuracy in
    eval mode."""
    found = {}
    for place, compiled in dict.fromkeys(
        (("cpu", False), (device, False), (device, device != "cpu"))
    ):
        with begun(settings(place, precision="bf16", epochs=4, compile=compiled), images=1280) as (
            plan,
            state,
            monitor,
        ):
            for _ in range(4):
                epoch(plan, state, monitor)
            model = state.model.eval()
            data = plan.dataset.train
            card = taet.evaluate(
                model, np.asarray(data.images), data.labels, ["clean"], device=place, probe=False
            )
            found[f"{place}{', compiled' * compiled}"] = round(
                100 * card.summary("clean").balanced, 1
            )
    assert min(found.values()) >= found["cpu"] - 5 >= 60, f"clean accuracy in %: {found}"
    return f"clean accuracy in %: {found}"


def speed(device: str) -> str:
    """Images per second of a step in float32 and bf16, with and without the search for algorithms,
    and compiled."""
    model, count, size = ("resnet8", 2, 128) if device == "cpu" else ("resnet18", 40, 128)
    found: dict[str, float] = {}
    for name, precision, benchmark, compiled in (
        ("float32", "float32", True, False),
        ("bf16", "bf16", True, False),
        ("bf16, no search", "bf16", False, False),
        ("bf16, compiled view", "bf16", True, True),
    ):
        if device == "cpu" and (compiled or not benchmark):
            continue
        more = {"precision": precision, "batch_size": size, "epochs": 3, "compile": compiled}
        run = override(settings(device, **more), {"model.name": model})
        with begun(run, images=size * count) as (plan, state, monitor):
            torch.backends.cudnn.benchmark = benchmark
            epoch(plan, state, monitor)
            found[name] = size * count / seconds(lambda: train_epoch(plan, state, monitor), device)
    return ", ".join(f"{name} {rate:,.0f} images a second" for name, rate in found.items())


def memory(device: str) -> str:
    """TAET's change of stage leaves no memory behind: the second adversarial epoch takes what the
    first did."""
    if device == "cpu":
        return ""
    peaks = []
    with begun(settings(device, "taet", epochs=5)) as (plan, state, monitor):
        for _ in range(5):
            torch.cuda.reset_peak_memory_stats(device)
            epoch(plan, state, monitor)
            peaks.append(torch.cuda.max_memory_allocated(device) / 1e6)
    assert peaks[-1] <= 1.02 * peaks[-2], f"peaks of the epochs: {peaks} MB"
    return f"peaks of the epochs: {', '.join(f'{peak:.0f}' for peak in peaks)} MB"


def resume(device: str) -> str:
    """A run that is interrupted goes on as if nothing had happened, there and on the CPU; AdamW
    too."""
    worst = 0.0
    for optimizer in ("sgd", "adamw"):
        run = settings(
            device,
            precision="float32",
            optimizer=optimizer,
            lr=0.01 if optimizer == "sgd" else 1e-3,
        )
        with begun(run) as (plan, state, monitor):
            epoch(plan, state, monitor)
            stream = io.BytesIO()
            torch.save(state.state_dict(), stream)
            train_epoch(plan, state, monitor)
            wait(device)
            whole = [value.detach().cpu().clone() for value in state.model.parameters()]
        for place in dict.fromkeys((device, "cpu")):
            with begun(override(run, {"training.device": place})) as (plan, state, monitor):
                stream.seek(0)
                state.load_state_dict(
                    torch.load(stream, map_location=plan.device, weights_only=True)
                )
                train_epoch(plan, state, monitor)
                apart = max(
                    float((one.detach().cpu() - other).abs().max())
                    for one, other in zip(state.model.parameters(), whole, strict=True)
                )
                assert apart <= CLOSE, (
                    f"{optimizer}, resumed on {place}: weights differ by {apart:.2g}"
                )
                worst = max(worst, apart)
    return f"weights differ by at most {worst:.2g}"


def verdicts(device: str) -> str:
    """PGD-20 and AutoAttack have the same verdict on every image when they search in TF32 or
    bf16."""
    images = 50 if device == "cpu" else 500
    run = settings(device, epochs=3, batch_size=64)
    with begun(run, images=1280) as (plan, state, monitor):
        for _ in range(3):
            epoch(plan, state, monitor)
        model = state.model.eval()
    data = dataset(images)
    kinds = ["float32", "bf16"] if device == "cpu" else ["float32", "tf32", "bf16"]
    suite = "quick" if device == "cpu" else "autoattack"
    found = {}
    for kind in kinds:
        attacks = [f"pgd-20:precision={kind}", f"{suite}:precision={kind}"]
        x, y = np.asarray(data.train.images), data.train.labels
        card = taet.evaluate(model, x, y, ["clean", *attacks], device=device, probe=False)
        found[kind] = [column.correct for column in card.columns if column.norm is not None]
    flips = {
        kind: [int((a != b).sum()) for a, b in zip(found["float32"], of, strict=True)]
        for kind, of in found.items()
    }
    assert max(map(max, flips.values())) <= images // 100, f"verdicts that differ: {flips}"
    return f"verdicts that differ of {images}, PGD-20 and {suite}: {flips}"


POINTS: dict[str, Point] = {
    "versions": versions,
    "no synchronisation": no_synchronisation,
    "learning": learning,
    "speed": speed,
    "memory": memory,
    "resume": resume,
    "verdicts": verdicts,
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu (cuda)")
    parser.add_argument("--points", nargs="+", choices=POINTS, default=[*POINTS], help="only these")
    parser.add_argument(
        "--out",
        type=Path,
        default=RESULTS / "gpu-smoke.json",
        help="results (results/gpu-smoke.json)",
    )
    given = parser.parse_args()
    try:
        here = environment(resolve_device(given.device))
    except UserError as error:
        parser.error(str(error))
    done = earlier_points(given.out, here)
    for name in given.points:
        if done["points"].get(name, {}).get("passed"):
            print(f"PASS  {name}, before")
            continue
        began = time.perf_counter()
        try:
            text, passed = POINTS[name](given.device), True
        except Exception as error:
            text, passed = f"{type(error).__name__}: {error}", False
            if not isinstance(error, AssertionError | UserError):
                traceback.print_exc()
        done["points"][name] = {
            "passed": passed,
            "text": text,
            "seconds": round(time.perf_counter() - began, 1),
        }
        given.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(given.out, done)
        word = "FAIL" if not passed else "PASS" if text else "SKIP"
        print(f"{word}  {name}: {text} ({done['points'][name]['seconds']:.0f} s)", flush=True)
    return int(not all(point["passed"] for point in done["points"].values()))


if __name__ == "__main__":
    sys.exit(main())
