"""The fastest precision and number of threads for a network on this machine, measured once and cached."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial

import torch
from torch import nn

from taet.attacks.ball import frozen
from taet.errors import UserError
from taet.files import cache, check_seal, digest, make_folder, read_json, seal, write_json
from taet.models.view import fold
from taet.settings import Training
from taet.training.choices import Chosen
from taet.training.environment import cores, instructions, on_threads, processor, version

PRECISIONS = ("bf16", "float32")
ENOUGH = 0.01  # seconds of a pass, long enough to hide the clock's resolution and the overhead of calls
ROUNDS = 4  # the options alternate; the first pass of each only fills caches, and the fastest of the others counts
HOPELESS = 3.0  # an option that takes this many times as long as the other is not measured again
CLEAR = 0.9  # bf16 or fewer threads must save a tenth: both change results, and smaller gains may be noise
Seconds = dict[str, float]


def settle(
    training: Training, model: nn.Module, image_shape: tuple[int, int, int], device: torch.device
) -> dict[str, Chosen]:
    """Return the precision for `auto`, and the number of threads if none is set and fewer are faster.

    On a GPU bf16 is used if the GPU has instructions for it; on a CPU, if it saves a tenth. On a CPU both options are
    measured on the view that attacks run on: precision in CPU seconds of one thread, which other programs hardly
    affect; threads in wall-clock seconds, only if OMP_NUM_THREADS is not set and the machine is idle. The result is
    cached in TAET_CACHE, keyed by facts about machine, software and network.
    """
    made: dict[str, Chosen] = {}
    chosen = training.precision
    with torch.random.fork_rng(devices=[]):  # a custom network may draw random numbers
        if chosen == "auto":
            made["training.precision"] = precision(model, image_shape, device, training.batch_size)
            chosen = made["training.precision"].value
        if training.threads is None and device.type == "cpu":
            fewer = _threads(model, image_shape, training.batch_size, chosen == "bf16")
            made |= {} if fewer is None else {"training.threads": fewer}
    return made


def precision(
    model: nn.Module, image_shape: tuple[int, int, int], device: torch.device, batch_size: int = 128
) -> Chosen:
    """Return bf16 if it is clearly faster than float32 for training `model`, else float32, and why."""
    if device.type == "cuda":
        has = torch.cuda.is_bf16_supported(including_emulation=False)
        name = torch.cuda.get_device_name(device)
        return Chosen(PRECISIONS[0 if has else 1], f"{name} has {'' if has else 'no '}instructions for bf16")

    def measured() -> Seconds:
        passes = {name: _pass(model, image_shape, name == "bf16") for name in PRECISIONS}
        size = _size(passes["float32"], batch_size)
        return _fastest({name: partial(work, size) for name, work in passes.items()}, time.process_time)

    try:
        with on_threads(1):
            found = _kept({"what": "precision"}, model, image_shape, measured)
    except Exception:  # a custom network may fail under autocast, for any reason
        return Chosen("float32", "this network could not be timed in bf16")
    if CLEAR * found["float32"] <= found["bf16"] <= found["float32"]:
        return Chosen("float32", "bf16 is not faster by a tenth on this processor")
    faster, slower = sorted(PRECISIONS, key=found.__getitem__)
    return Chosen(faster, f"measured {found[slower] / found[faster]:.1f} times as fast as {slower} on this processor")


def pass_seconds(model: nn.Module, image_shape: tuple[int, int, int], chosen: str, batch_size: int) -> float:
    """Return the seconds of one pass of an image if no other program is busy; `chosen`: bf16, float32 or auto."""
    if chosen == "auto":
        chosen = precision(model, image_shape, torch.device("cpu"), batch_size).value
    work = _pass(model, image_shape, chosen == "bf16")
    size = _size(work, batch_size, 10 * ENOUGH)
    seconds = _fastest({chosen: partial(work, size)}, time.process_time)[chosen]
    return seconds / (2 * size * torch.get_num_threads())


def _threads(model: nn.Module, image_shape: tuple[int, int, int], batch_size: int, bf16: bool) -> Chosen | None:
    """Return 1 thread if it is faster than torch's default; None if it is not, or if the user has set a number."""
    most = torch.get_num_threads()
    if "OMP_NUM_THREADS" in os.environ or most != cores() or most == 1 or os.getloadavg()[0] > cores() / 2:
        return None
    names = ("1", str(most))

    def on(threads: int, work: Callable[[int], None], size: int) -> None:
        with on_threads(threads):
            work(size)

    def measured() -> Seconds:
        work = _pass(model, image_shape, bf16)
        with on_threads(1):
            size = _size(work, batch_size, 10 * ENOUGH)
        return _fastest({name: partial(on, int(name), work, size) for name in names}, time.perf_counter)

    try:
        found = _kept({"what": "threads", "bf16": bf16, "batch": batch_size}, model, image_shape, measured)
    except Exception:
        return None
    if found["1"] >= CLEAR * found[names[1]]:
        return None
    faster = f"measured {found[names[1]] / found['1']:.1f} times as fast as {most}"
    return Chosen(1, f"{faster}; another number of threads changes the last bits of a run")


def _pass(model: nn.Module, image_shape: tuple[int, int, int], bf16: bool) -> Callable[[int], None]:
    """Return a function that passes n images forward and back to the images, as an attack step does."""
    try:
        attacked = fold(model, image_shape, torch.bfloat16 if bf16 else None).module
    except Exception:  # the model cannot be folded
        attacked = copy.deepcopy(model)
    noise = torch.Generator().manual_seed(0)

    def work(number: int) -> None:
        x = torch.rand(number, *image_shape, generator=noise).contiguous(memory_format=torch.channels_last)
        with frozen(attacked), torch.enable_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            attacked(x.requires_grad_()).float().sum().backward()

    return work


def _size(work: Callable[[int], None], most: int, enough: float = ENOUGH) -> int:
    """Return the number of images for a pass of about `enough` CPU seconds: 2, 4, 8, ..., at most `most`."""
    size = 2
    work(size)  # the first pass only fills caches
    while size < most:
        begun = time.process_time()
        work(size)
        if time.process_time() - begun >= enough / 2:
            break
        size *= 2
    return min(size, most)


def _fastest(sides: Mapping[str, Callable[[], None]], clock: Callable[[], float]) -> Seconds:
    """Return the seconds of each option: the minimum over a few rounds in which the options alternate."""
    found: Seconds = {}
    for number in range(ROUNDS):
        for name, work in sides.items():
            begun = clock()
            work()
            taken = max(clock() - begun, 1e-9)
            found[name] = taken if number < 2 else min(found[name], taken)
        if number and max(found.values()) > HOPELESS * min(found.values()):
            break
    return found


def _kept(
    what: Mapping[str, object], model: nn.Module, image_shape: tuple[int, int, int], measure: Callable[[], Seconds]
) -> Seconds:
    """Return the cached seconds for the same facts about machine, software and network, or measure and cache them.

    A missing, damaged or unrelated file is replaced by a new measurement; if it cannot be written, nothing is cached.
    """
    facts = {
        **what,
        "processor": processor(),
        "instructions": instructions(),
        "cores": cores(),
        "torch": version("torch"),
        "network": digest([[name, list(value.shape)] for name, value in model.state_dict().items()]),
        "image_shape": list(image_shape),
    }
    path = cache() / "speed" / f"{digest(facts)[:24]}.json"
    with suppress(UserError):
        held = read_json(path, most=1 << 16)
        if isinstance(held, dict) and check_seal(path, held) and held.get("facts") == facts:
            found: Seconds = held["seconds"]
            return found
    found = measure()
    with suppress(UserError):
        make_folder(path.parent)
        write_json(path, seal({"facts": facts, "seconds": found}))
    return found
