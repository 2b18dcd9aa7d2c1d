"""A user's own function as a reward, loaded from a file beside the recipe or from an installed package."""

import ast
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from alignment.errors import StageError
from alignment.recipe.rewards import FunctionReward, is_file, module_of
from alignment.reward.protocol import Answer, Reward, Scores


def problem_of(settings: FunctionReward, path: Path | None) -> str | None:
    """What is wrong with a function that ``path`` should define, known without running it; None where nothing is."""
    name = settings.function.rpartition(":")[2]
    if path is None or not path.is_file():
        return f"no module {module_of(settings)}" if path is None else f"no file {path}"
    try:
        tree = ast.parse(path.read_text("utf-8"))
    except (SyntaxError, UnicodeDecodeError, OSError) as error:
        return f"{path} cannot be read as Python: {error}"
    if is_file(settings) and not any(name in _defines(node) for node in tree.body):
        return f"{path.name} defines no {name}"
    return None


def function(settings: FunctionReward, path: Path | None) -> Reward:
    """The reward of :class:`FunctionReward`. Raises StageError where there is no such function."""
    name = settings.function.rpartition(":")[2]
    try:
        module = _load(path) if is_file(settings) and path else importlib.import_module(module_of(settings))
        called: Callable[..., Any] = getattr(module, name)
    except Exception as error:  # the module is the user's: it may raise anything
        problem = f"the reward {settings.function} cannot be loaded: {type(error).__name__}: {error}"
        raise StageError(problem) from error

    def reward(answers: Sequence[Answer]) -> Scores | Awaitable[Scores]:
        prompts = [[message.model_dump() for message in answer.prompt.messages] for answer in answers]
        references = [answer.prompt.reference for answer in answers]
        scores = called(prompts, [answer.text for answer in answers], references, **settings.options)
        return scores if inspect.isawaitable(scores) else list(scores)

    return reward


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"reward_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    beside = str(path.resolve().parent)
    sys.path.insert(0, beside)  # it may import what lies beside it
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(beside)
    return module


def _defines(node: ast.stmt) -> set[str]:
    """The names that a statement at a module's top defines."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {node.name}
    if isinstance(node, ast.Import | ast.ImportFrom):
        return {alias.asname or alias.name for alias in node.names}
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)}
