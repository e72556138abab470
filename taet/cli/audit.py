"""`taet audit MODEL`: a checklist on whether attacks on a model can be trusted."""

from __future__ import annotations

import html
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from taet.cli import flags
from taet.cli.processes import together
from taet.cli.progress import progress
from taet.cli.subject import OfNamed, OfRun, folder_for, here, opened, parse
from taet.errors import UserError
from taet.evaluation.audit import IMAGES, Audit, audit
from taet.evaluation.bundles import attacks_of
from taet.fields import Count, Radius, Whole
from taet.models import trusted
from taet.settings import Evaluation
from taet.training.environment import resolve_device
from taet.training.finished import load_model
from taet.training.folder import DELIVERED, RunFolder

EXAMPLES = (
    "taet audit runs/x",
    "taet audit runs/x --surrogate runs/y --attacks autoattack --images 1000",
    "taet audit torchvision:resnet18 --weights net.pt --data cifar10-lt --normalize cifar10 --out audits/resnet18",
    "taet audit mynets.wide:build --data npz:test.npz --eps 4/255 --json",
)
DESCRIPTION = """Check a model against the checklist of Carlini et al. (2019): have the attacks converged, does accuracy
reach zero as eps grows, do gradient-based attacks break more images than gradient-free ones, is the model randomised or
quantised? Every answer is pass, FAIL or n/a, with the measured numbers. Writes OUT/audit.json, with a result card of
the sample, and OUT/audit.html. An interrupted audit continues where it stopped. Exit status 1 if a question fails.

MODEL is a run folder (with its own data, unless --data is given), or a model as for taet evaluate --model."""


@dataclass(frozen=True, kw_only=True)
class AuditOptions:
    """The sample and the attacks of an audit."""

    attacks: tuple[str, ...] = ()
    """Attacks in addition to those of the audit, e.g. autoattack."""
    images: Count = IMAGES
    """Test images in the sample, spread as evenly over the classes as possible."""
    eps: Annotated[Radius, Field(gt=0)] | None = None
    """Radius of the L-infinity ball, e.g. 8/255. Default: that of the run, or of protocol taet."""
    step_size: Annotated[Radius, Field(gt=0)] | None = None
    """Step of PGD. Default: that of the run, in proportion to eps, and at least eps / 8."""
    batch_size: Count | None = None
    """Images per batch."""
    seed: Whole | None = None
    """Seed of the sample and of random starts."""
    surrogate: Path | None = None
    """Folder of a run whose adversarial examples are also evaluated on this model."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    out: flags.RunPath | None = None
    """Folder of audit.json and audit.html. Default: the run, or runs/audit-NAME."""
    json: bool = False
    """Print audit.json instead of the checklist."""


@dataclass(frozen=True, kw_only=True)
class RunAudit(AuditOptions, OfRun):
    """A run."""


@dataclass(frozen=True, kw_only=True)
class ModelAudit(AuditOptions, OfNamed):
    """A model and its test images."""


def run(arguments: list[str]) -> int:
    """Audit a run or a model, write and print the checklist."""
    parsed = here(read(arguments), "audit")
    weights: str
    if isinstance(parsed, RunAudit):
        name, weights, out = str(parsed.run), parsed.weights, parsed.out or parsed.run
    else:
        name, weights, out = parsed.model, DELIVERED, parsed.out or folder_for("audit", parsed.model, parsed)
    folder = RunFolder(out)
    if folder.is_run and not (isinstance(parsed, RunAudit) and out.resolve() == parsed.run.resolve()):
        raise UserError(f"audit: {out} is a run folder, only for the audit of that run; allowed: another folder")
    with together(parsed.device), trusted(parsed.trust_model), folder.own():
        state = folder.state("audit")
        with progress(f"audit {name}") as report:
            settings: dict[str, Any] = {"state_dir": state, "progress": report, "device": parsed.device}
            found = _audited(parsed, settings | {"command": flags.call_text(["audit", *arguments])})
        folder.save_audit(found.to_json(), f"<!doctype html>\n<pre>{html.escape(str(found))}</pre>\n", weights)
        shutil.rmtree(state, ignore_errors=True)
    path = folder.audit(weights)
    print(path.read_text(encoding="utf-8") if parsed.json else f"{found}\n\n{folder.audit(weights, 'html')}")
    return 0 if found.ok else 1


def _audited(parsed: RunAudit | ModelAudit, settings: dict[str, Any]) -> Audit:
    names = ("eps", "step_size", "batch_size", "seed")
    changes = {name: value for name in names if (value := getattr(parsed, name)) is not None}
    if parsed.surrogate is not None:
        settings["surrogate"] = (parsed.surrogate.resolve().name, load_model(parsed.surrogate)[1])
    settings |= {"attacks": parsed.attacks, "count": parsed.images, "settings": changes}
    if isinstance(parsed, RunAudit):
        return audit(parsed.run, weights=parsed.weights, **settings)
    model, dataset, name, notes = opened(parsed.model, parsed)
    settings |= {"device": str(resolve_device(parsed.device)), "name": name, "notes": notes}
    return audit(model, dataset.test.images, dataset.test.labels, class_names=dataset.class_names, **settings)


def read(arguments: list[str]) -> RunAudit | ModelAudit:
    """Parse a call; mistakes are refused before model and data are loaded."""
    parsed = parse(RunAudit, ModelAudit, arguments, "audit", DESCRIPTION, EXAMPLES)
    if parsed.attacks:
        attacks_of(Evaluation().replace(attacks=parsed.attacks))
    resolve_device(parsed.device)
    return parsed
