"""Addresses that work for whoever reads them: of a run's report, and of a run on the dashboard.

A page on the dashboard, and a notice in somebody's mail, cannot open a file of this machine: where no server shows the
report, its path is said and no link is made.
"""

import json
import os
from pathlib import Path

from prefect.utilities.urls import url_for

from flows.services.process_records import ProcessIdentity

PAGES = "RLHF_PAGES"  # the variable that says where the reports of a workspace are served, as `rlhf up` does


def report_link(page: Path) -> str:
    """The address of a run's page on the server of `rlhf up`, or of whoever :data:`PAGES` names; else empty."""
    base = os.environ.get(PAGES) or _pages_of(page.resolve().parents[2])
    return f"{base.rstrip('/')}/runs/{page.parent.name}/{page.name}" if base else ""


def report_place(page: Path) -> str:
    """The address of a run's page, or its path on the machine that the run was on."""
    return report_link(page) or str(page.resolve())


def run_link(flow_run: str | None) -> str:
    """Where a run is shown on the dashboard; empty where Prefect knows no address of its pages."""
    return (url_for("flow-run", obj_id=flow_run) or "") if flow_run else ""


def note_pages(root: Path, url: str) -> Path:
    """Writes down where `rlhf up` shows the reports of a workspace; the file is to be removed at its end."""
    path = root / "services" / "pages.json"
    identity = ProcessIdentity.of(os.getpid())
    assert identity is not None
    values = {
        "url": url,
        "pid": identity.pid,
        "started": identity.started,
        "boot": identity.boot,
        "host": identity.host,
    }
    path.write_text(json.dumps(values), "utf-8")
    return path


def _pages_of(root: Path) -> str:
    try:
        record = json.loads((root / "services" / "pages.json").read_text("utf-8"))
        url = str(record.pop("url"))
        return "" if ProcessIdentity(**record).is_gone else url
    except (OSError, ValueError, KeyError, TypeError):
        return ""
