"""Structured logs: one JSON object a line on standard error, with the run, stage and version that it is about.

They are on where ``RLHF_LOG=json`` is set, in every command and in every process that a deployment starts. A line has
``time`` (UTC), ``level``, ``logger``, ``message``, whatever :func:`about` knows, and what the record itself brings.
"""

import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

SWITCH = "RLHF_LOG"
OURS = ("alignment", "flows", "preference_ui", "uvicorn")
RUNS = ("alignment", "flows")  # what a run does, for the dashboard
_about: ContextVar[dict[str, Any]] = ContextVar("about", default={})  # noqa: B039 - it is replaced, never changed


class JsonFormatter(logging.Formatter):
    """A record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_about.get(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def set_up() -> None:
    """Turns structured logs on where the environment asks for them: to standard error as it is now, and once only."""
    if os.environ.get(SWITCH, "").lower() != "json":
        return
    for name in OURS:
        logger = logging.getLogger(name)
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(JsonFormatter())
        logger.handlers = [handler]
        logger.setLevel(logging.INFO)
        logger.propagate = False


def to_the_dashboard() -> None:
    """Has what a run logs stand in its Logs tab too, under the run or the task that says it."""
    from prefect.logging.handlers import APILogHandler

    for name in RUNS:
        logger = logging.getLogger(name)
        if not any(isinstance(handler, APILogHandler) for handler in logger.handlers):
            logger.addHandler(APILogHandler(level=logging.INFO))
        if logger.level == logging.NOTSET:
            logger.setLevel(logging.INFO)


@contextmanager
def about(**fields: Any) -> Iterator[None]:
    """Adds fields (run, stage, version …) to every line that is logged inside the context."""
    token = _about.set({**_about.get(), **fields})
    try:
        yield
    finally:
        _about.reset(token)


def say(logger: logging.Logger, message: str, **fields: Any) -> None:
    """Logs a sentence at level INFO with fields of its own."""
    logger.info(message, extra={"fields": fields})
