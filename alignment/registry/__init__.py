"""Versions of the aligned model: what was promoted, why, and where it came from."""

from alignment.registry.records import Provenance, RegisteredVersion, VersionDetails, VersionRecord
from alignment.registry.versions import find, list_versions, promote, register, rollback, show

__all__ = [
    "Provenance",
    "RegisteredVersion",
    "VersionDetails",
    "VersionRecord",
    "find",
    "list_versions",
    "promote",
    "register",
    "rollback",
    "show",
]
