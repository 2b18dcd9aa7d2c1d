"""Prompts that were answered, as rows of prompts for a next round: appended to a file, personal data replaced."""

import json
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alignment.data.prompts import parse_prompt, scan_prompts
from alignment.data.redaction import redact
from alignment.errors import Fault, InputError, raise_faults

OPTION = "--log-prompts"
SOURCE = "served"  # one and the same: rows of one prompt that differ in it would contradict each other
MODE = 0o600  # whoever may read what people asked is for the owner to say


class PromptLog:
    """A file of prompts that is written on. Every row is on it whole, or not at all."""

    def __init__(self, path: Path) -> None:
        """Raises InputError where the file cannot be written, or holds something other than prompts."""
        if path.suffix != ".jsonl":
            raise InputError([Fault("prompts are logged as JSON lines", "name it .jsonl", str(path), field=OPTION)])
        self.path, self._writing = path, threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, MODE)
            self._mend()
        except OSError as error:
            problem = f"the file cannot be written: {error.strerror or error}"
            raise InputError([Fault(problem, "give another", str(path), field=OPTION)]) from None
        if path.stat().st_size:
            _prompts, _duplicates, faults = scan_prompts(path)
            raise_faults(faults)

    def _mend(self) -> None:
        """Ends the last row, or takes it away where a power cut left half of it: others would not read the file."""
        data = self.path.read_bytes()
        last = data.rpartition(b"\n")[2]
        if not last:
            return
        try:
            json.loads(last)
        except ValueError:
            os.ftruncate(self._file, len(data) - len(last))
        else:
            os.write(self._file, b"\n")

    def add(self, messages: Any) -> bool:
        """Appends a request's ``messages``. Says whether they are a prompt: text alone, the user's turn last.

        Raises OSError where the file cannot be written; half a row is taken back.
        """
        row = prompt_row(messages)
        if row is None:
            return False
        line = _line(row)
        with self._writing:
            before = os.fstat(self._file).st_size
            try:
                while line:
                    line = line[os.write(self._file, line) :]
            except OSError:
                os.ftruncate(self._file, before)
                raise
        return True


def prompt_row(messages: Any) -> dict[str, Any] | None:
    """The row of a chat request's messages, redacted; None where they are no prompt of ours (tools, pictures …)."""
    try:
        turns = [{"role": _role(one), "content": redact(_text(one["content"]))} for one in messages]
        row = {"messages": turns, "source": SOURCE}
        parse_prompt(json.loads(_line(row)))
    except (InputError, KeyError, TypeError, ValueError):
        return None
    return row


def _line(row: Mapping[str, Any]) -> bytes:
    """Raises ValueError for half a surrogate pair, which is no text."""
    return (json.dumps(row, ensure_ascii=False) + "\n").encode()


def _role(message: Mapping[str, Any]) -> str:
    role = str(message["role"])
    if set(message) - {"role", "content", "name", "refusal"}:  # a call of a tool: the text is not all that was said
        raise ValueError(role)
    return "system" if role == "developer" else role  # OpenAI's newer name of it


def _text(content: str | Sequence[Mapping[str, Any]]) -> str:
    """A message's text; parts are joined as transformers' server joins them. Raises ValueError for other parts."""
    if isinstance(content, str):
        return content
    if any(part["type"] != "text" for part in content):
        raise ValueError("a part that is no text")
    return " ".join(str(part["text"]) for part in content)
