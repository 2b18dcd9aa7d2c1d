"""Structured logs: one JSON object a line, with the run, stage and version that it is about.

Every run writes its own into ``runs/<run>/log.jsonl``, which ``rlhf logs`` reads. Where ``RLHF_LOG=json`` is set, every
command and every process that a deployment starts also writes its own on standard error. A line has ``time`` (UTC),
``level``, ``logger``, ``message``, whatever :func:`about` knows, what the record itself brings, and ``error``: a
traceback, where there is one.
"""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from pythonjsonlogger.json import JsonFormatter

from alignment.plain_text import indented

SWITCH = "RLHF_LOG"
OURS = ("alignment", "flows", "preference_ui", "uvicorn")
RUNS = ("alignment", "flows")  # what a run does, for the dashboard
LOG_FILE = "log.jsonl"  # of a run, in its folder
_about: ContextVar[dict[str, Any]] = ContextVar("about", default={})  # noqa: B039 - it is replaced, never changed


class AboutFormatter(JsonFormatter):
    """A record as one line of JSON, with what :func:`about` says of where it comes from."""

    def __init__(self) -> None:
        names = {"levelname": "level", "name": "logger", "exc_info": "error"}
        super().__init__(["levelname", "name", "message"], rename_fields=names, timestamp="time")

    def add_fields(self, log_data: dict[str, Any], record: logging.LogRecord, message_dict: dict[str, Any]) -> None:
        """The library's fields, and those of :func:`about` that the record does not bring itself."""
        super().add_fields(log_data, record, message_dict)
        log_data["level"] = record.levelname.lower()
        for name, value in _about.get().items():
            log_data.setdefault(name, value)


class PlainFormatter(logging.Formatter):
    """The message alone, as Python's handler of last resort writes it, but obeying and forging nothing."""

    def format(self, record: logging.LogRecord) -> str:
        """The record with its control characters shown and its further lines indented."""
        return indented(super().format(record))


def set_up() -> None:
    """Turns structured logs on where the environment asks for them: to standard error as it is now, and once only.

    Without them, warnings that nobody else writes go to standard error as plain text.
    """
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(PlainFormatter())
    if os.environ.get(SWITCH, "").lower() != "json":
        return
    for name in OURS:
        logger = logging.getLogger(name)
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(AboutFormatter())
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
def log_file(path: Path) -> Iterator[None]:
    """Inside the context, what our loggers say from level INFO on is added to a file as well."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(AboutFormatter())
    with ExitStack() as before:
        before.callback(handler.close)
        for logger in map(logging.getLogger, OURS):
            before.callback(logger.removeHandler, handler)
            before.callback(logger.setLevel, logger.level)
            logger.addHandler(handler)
            logger.setLevel(logging.INFO)
        yield


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
    logger.info(message, extra=fields)
