"""``rlhf votes queues`` and ``rlhf votes queue``: how the raters' queues stand, and how they are changed."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from alignment.errors import Fault, InputError
from flows.commands.rate import raters_store
from flows.console import PlainConsole, print_json

if TYPE_CHECKING:
    from preference_ui.quality.queue_progress import QueueProgress
NOTHING = "-"  # takes a setting of a queue away: the general one holds again


@dataclass(frozen=True, slots=True)
class QueueChange:
    """What is changed of a queue; None leaves as it is."""

    guidelines: str | None  # a file, or NOTHING
    criteria: str | None  # a JSON file of names and what they mean, or NOTHING
    votes_wanted: int | None
    raters: str | None  # names with commas, or NOTHING
    priority: int | None
    deadline: datetime | None
    no_deadline: bool
    is_open: bool | None
    single: str | None = None
    labels: str | None = None  # a JSON file of names and what they mean, or NOTHING

    def values(self) -> dict[str, Any]:
        """The settings that it names. Raises InputError for a file that cannot be read."""
        found: dict[str, Any] = {}
        if self.guidelines is not None:
            found["guidelines"] = None if self.guidelines == NOTHING else _text(self.guidelines, "--guidelines")
        if self.criteria is not None:
            found["criteria"] = None if self.criteria == NOTHING else _named(self.criteria, "--criteria")
        if self.labels is not None:
            found["labels"] = () if self.labels == NOTHING else _named(self.labels, "--labels")
        if self.raters is not None:
            names = () if self.raters == NOTHING else tuple(name for name in self.raters.split(",") if name.strip())
            found["raters"] = names
        if self.deadline is not None:
            found["deadline"] = self.deadline.replace(tzinfo=self.deadline.tzinfo or UTC)
        elif self.no_deadline:
            found["deadline"] = None
        plain = {
            "votes_wanted": self.votes_wanted,
            "priority": self.priority,
            "open": self.is_open,
            "single": self.single,
        }
        return found | {name: value for name, value in plain.items() if value is not None}


def votes_queues_command(workspace: Path, url: str | None, *, as_json: bool) -> None:
    """Prints every queue."""
    from preference_ui.quality.queue_progress import queue_progress

    with raters_store(workspace, url) as store:
        found = queue_progress(store)
    if as_json:
        print_json(json.dumps([one.model_dump(mode="json") for one in found], indent=2))
        return
    for one in found:
        PlainConsole().print(_line(one))


def votes_queue_command(workspace: Path, url: str | None, name: str, change: QueueChange, *, as_json: bool) -> None:
    """Changes a queue's settings where ``change`` names some, and prints them."""
    from preference_ui.store.queue_settings import QueueSettings, change_queue, current_queue, require_queue_name

    require_queue_name(name)
    values = change.values()
    with raters_store(workspace, url) as store:
        with store.read() as connection:
            version, settings = current_queue(connection, name)
        if values:
            try:
                settings = QueueSettings.model_validate(settings.model_dump() | values)
            except ValidationError as error:
                raise InputError([_fault(dict(one)) for one in error.errors()]) from None
            version = change_queue(store, name, settings, author="shell", seen=version)
    said = {"queue": name, "version": version} | settings.model_dump(mode="json")
    if as_json:
        print_json(json.dumps(said, indent=2))
        return
    for field, value in said.items():
        PlainConsole().print(f"{field:<14} {_shown(field, value)}")


def _line(one: "QueueProgress") -> str:
    parts = [one.queue, one.state, f"priority {one.priority}", f"{one.given} of {one.wanted} votes",
             f"{one.complete} of {one.comparisons} complete", f"{one.an_hour:.1f} votes an hour"]  # fmt: skip
    if one.hours_left is not None:
        parts.append(f"{one.hours_left:.1f} hours left")
    parts.append(f"{one.hours_worked:.2f} hours worked" + ("" if one.cost is None else f", cost {one.cost:.2f}"))
    if one.deadline is not None:
        parts.append(f"until {one.deadline:%Y-%m-%d %H:%M} UTC")
    return "  ".join([*parts, "for " + (", ".join(one.raters) or "everybody")])


def _shown(field: str, value: Any) -> str:
    if value is None:
        return {"votes_wanted": "as queued", "deadline": "none"}.get(field, "the general ones")
    if field == "raters":
        return ", ".join(value) or "everybody"
    if field in ("criteria", "labels"):
        return "; ".join(f"{one['name']}: {one['rubric']}" for one in value) or "none"
    return str(value)


def _text(path: str, field: str) -> str:
    try:
        return Path(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise InputError([Fault(f"cannot be read: {reason}", "name a text file", path, field=field)]) from None


def _named(path: str, option: str) -> list[dict[str, str]]:
    """Names with what they mean: criteria, or labels."""
    remedy = 'write {"name": "what it means", …}'
    try:
        found = json.loads(_text(path, option))
    except ValueError as error:
        raise InputError([Fault(f"not JSON ({error})", remedy, path, field=option)]) from None
    if not isinstance(found, Mapping) or not all(isinstance(one, str) for one in found.values()):
        raise InputError([Fault("not an object of texts", remedy, path, field=option)])
    return [{"name": str(name), "rubric": rubric} for name, rubric in found.items()]


def _fault(error: Mapping[str, Any]) -> Fault:
    problem = str(error["msg"]).removeprefix("Value error, ")
    return Fault(problem, "see docs/people.md", field=".".join(map(str, error["loc"])) or None)
