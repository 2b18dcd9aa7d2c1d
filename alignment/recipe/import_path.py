"""A user's function or class, as a recipe names it: ``file.py:name`` or ``package.module:name``."""

import importlib
import importlib.util
from pathlib import Path


def is_file(named: str) -> bool:
    """Whether the module of ``module:name`` is named by its file (else by the name that Python imports it under)."""
    return module_of(named).endswith(".py")


def module_of(named: str) -> str:
    """The module of a user's function or class, which is named as ``file.py:name`` or ``package.module:name``."""
    return named.rpartition(":")[0]


def attribute_of(named: str) -> str:
    """The name of a user's function or class within its module."""
    return named.rpartition(":")[2]


def module_file(named: str) -> Path | None:
    """The source of a module that is named by import; None where it cannot be found."""
    try:
        spec = importlib.util.find_spec(module_of(named))
    except (ImportError, ValueError):
        return None
    return Path(spec.origin) if spec is not None and spec.origin is not None and spec.has_location else None
