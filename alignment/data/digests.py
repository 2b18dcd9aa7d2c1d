"""Ids that are digests of the content: the same text has the same id in every file, run and machine."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from alignment.records import Message


def content_digest(value: Any) -> str:
    """SHA-256 of the value as canonical JSON, the first 16 hex digits (64 bits)."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def prompt_id(messages: Sequence[Message]) -> str:
    """The id of a prompt: the digest of its messages."""
    return content_digest([message.model_dump() for message in messages])


def pair_id(prompt: Sequence[Message], chosen: str, rejected: str) -> str:
    """The id of a preference pair: the digest of its prompt and both answers, in their order."""
    return content_digest([[message.model_dump() for message in prompt], chosen, rejected])
