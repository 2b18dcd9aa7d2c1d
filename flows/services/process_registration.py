"""How a process that works in a workspace says so: what it runs, what it serves, what it asked a server to make.

Standard library alone, as :mod:`flows.services.process_records`.
"""

import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from flows.services.process_records import ProcessIdentity, ProcessRecord, processes_folder, write_json
from flows.services.server_outbox import BEFORE_WORK, post, state_message, unmade_message

_current: list["ProcessRegistration"] = []  # of this process, the newest last


def answer_for(flow_run: str | None) -> None:
    """This process answers for a flow run until :func:`at_work` ends."""
    if flow_run and _current:
        _current[-1].begin(flow_run)


@contextmanager
def making_run(name: str) -> Iterator[Callable[[str], None]]:
    """While the server is asked to make a flow run of this name, and then the run, whose id is told, is at work.

    However this process ends meanwhile, a run that was made is not left pending: by a kill, its record says so.
    """
    if not _current:
        yield lambda flow_run: None
        return
    registration = _current[-1]
    record, root = registration.record, registration.path.parent.parent.parent
    address = {"api": record.api, "ours": record.ours}
    registration.make(name)
    made: list[str] = []

    def told(flow_run: str) -> None:
        made.append(flow_run)
        record.unmade.remove(name)
        registration.begin(flow_run)

    try:
        yield told
    except BaseException:
        for flow_run in made:
            post(root, state_message(flow_run, "CRASHED", "Crashed", BEFORE_WORK, force=False, **address))
        if not made:
            post(root, unmade_message(name, **address))
        raise


@contextmanager
def at_work(root: Path, api: str, *, ours: bool) -> Iterator["ProcessRegistration"]:
    """Records this process for as long as the context lasts, however it is left; only a kill leaves the record."""
    identity = ProcessIdentity.of(os.getpid())
    assert identity is not None
    registration = ProcessRegistration(processes_folder(root), ProcessRecord(identity, api, ours))
    registration.write()
    _current.append(registration)
    try:
        yield registration
    finally:
        _current.remove(registration)
        registration.path.unlink(missing_ok=True)


class ProcessRegistration:
    """The record of this process, kept on the disk as it changes."""

    def __init__(self, folder: Path, record: ProcessRecord) -> None:
        self.record = record
        self.path = folder / f"{record.identity.pid}-{uuid.uuid4().hex[:8]}.json"

    def write(self) -> None:
        write_json(self.path, asdict(self.record))

    def begin(self, flow_run: str) -> None:
        """This process answers for a flow run."""
        if flow_run not in self.record.flow_runs:
            self.record.flow_runs.append(flow_run)
            self.write()

    def make(self, name: str) -> None:
        """This process asks the server to make a flow run of this name."""
        self.record.unmade.append(name)
        self.write()

    def serve(self, deployment: str) -> None:
        """This process serves a deployment: without it nobody does the deployment's work."""
        self.record.deployment = deployment
        self.write()
