"""Digests of values, and ids that are digests: the same text has the same id in every file, run and machine."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from alignment.records import Message

ID_DIGITS = 16  # hex: 64 bits, so that a million prompts collide with a chance of 3e-8


def digest_of(value: Any) -> str:
    """SHA-256 of a JSON-able value in canonical form."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def content_id(value: Any) -> str:
    """The first 16 hex digits of the SHA-256 of ``value`` as canonical JSON."""
    return digest_of(value)[:ID_DIGITS]


def prompt_id(messages: Sequence[Message]) -> str:
    """The id of a prompt (or of a whole conversation): the digest of its messages."""
    return content_id([message.model_dump() for message in messages])


def pair_id(prompt: Sequence[Message], chosen: str, rejected: str) -> str:
    """The id of a preference pair: the digest of its prompt and both answers, in their order."""
    return content_id([[message.model_dump() for message in prompt], chosen, rejected])
