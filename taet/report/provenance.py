"""How each run was produced, in words."""

from __future__ import annotations

import dataclasses

from taet.evaluation.column import Column
from taet.formatting import count, words
from taet.report.read import ReportedRun


def provenance(run: ReportedRun) -> list[tuple[str, str]]:
    """Return the facts of a run, each with its name; unknown facts are left out."""
    record, written = run.record, run.written
    memory = max((epoch.peak_memory_mb or 0 for epoch in run.epochs), default=0)
    spent = f"{run.seconds:.1f} s" + (f", peak memory {memory:.0f} MB" if memory else "")
    planned, last = run.settings.get("training.epochs"), run.epochs[-1].epoch if run.epochs else None
    facts: list[tuple[str, object]] = [
        ("run folder", str(run.path)),
        ("method", record and record.method_title),
        ("reference", record and record.reference),
        ("deviations", "; ".join(run.deviations) or ("none" if written else None)),
        ("method settings", written.get("settings")),
        ("protocol", written.get("protocol")),
        ("model", written.get("model")),
        ("parameters", record and record.parameters),
        ("seed", run.seed),
        ("epochs", f"{len(run.epochs)} of {planned}" if planned and record is not None else last),
        ("precision", run.settings.get("training.precision")),
        ("training attack", written.get("threat")),
        ("outer loss", written.get("outer")),
        ("selection", record and dataclasses.asdict(record.selection)),
        ("data notes", "; ".join(run.data.notes) or None),
        ("versions", record and record.versions),
        ("commit", record and record.commit),
        ("device", record and record.device),
        ("started", record and record.started),
        ("training command", record and record.command),
        ("training time", run.epochs and record and spent),
        ("test set SHA-256", run.data.test_sha256),
    ]
    if run.card is None:
        facts.append(("evaluation", "none yet"))
    else:
        card = run.card
        attacks = [_attack(column) for column in card.columns]
        facts += [
            ("weights SHA-256", card.model["weights_sha256"]),
            ("weights", {k: v for k, v in card.model.items() if k not in ("weights_sha256", "answers")}),
            ("evaluation batch size", card.batch_size),
            ("attacks", "\n".join(attacks)),
            ("evaluated", card.created),
            ("evaluated on", card.environment),
            ("evaluation command", card.command),
        ]
    return [(name, words(value)) for name, value in facts if value not in (None, {}, (), "")]


def _attack(column: Column) -> str:
    curve = f" (for the curve {column.curve})" if column.curve else ""
    return (
        f"{column.name}{curve}: {words(column.parameters) or 'no parameters'}; {column.seconds:.1f} s, "
        f"{count(column.forwards)} forward and {count(column.backwards)} backward passes of one image"
    )
