"""The page of an audit: the answered checklist, in the look of the report."""

from __future__ import annotations

from taet.evaluation.audit import Audit
from taet.report.page import template


def audit_page(audit: Audit) -> str:
    """Return the page as HTML."""
    return template("audit.html.j2").render(audit=audit, card=audit.evidence.card)
