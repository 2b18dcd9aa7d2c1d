"""Digests of what makes an artifact: its settings, and the code that runs them."""

import hashlib
import json
from typing import Any


def digest_of(value: Any) -> str:
    """SHA-256 of a JSON-able value in canonical form."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
