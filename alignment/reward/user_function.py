"""A user's own function as a reward, loaded from a file beside the recipe or from an installed package."""

import ast
import asyncio
import json
from collections.abc import Sequence
from pathlib import Path

from alignment.errors import StageError
from alignment.recipe.import_path import attribute_of, is_file, module_of
from alignment.recipe.rewards.settings import reward_name
from alignment.recipe.rewards.user_function import FunctionReward
from alignment.reward.protocol import FunctionError, Reward, RewardInput, Scores
from alignment.reward.side_process import SideProcess


def problem_of(named: str, path: Path | None) -> str | None:
    """What is wrong with a function or class ``module:name`` that ``path`` should define, known without running it;
    None where nothing is."""
    name = attribute_of(named)
    if path is None or not path.is_file():
        return f"no module {module_of(named)}" if path is None else f"no file {path}"
    try:
        tree = ast.parse(path.read_text("utf-8"))
    except (SyntaxError, UnicodeDecodeError, OSError) as error:
        return f"{path} cannot be read as Python: {error}"
    if is_file(named) and not any(name in _defines(node) for node in tree.body):
        return f"{path.name} defines no {name}"
    return None


def methods_problem(named: str, path: Path, methods: Sequence[str] = ("reset", "step")) -> str | None:
    """Which of ``methods`` a class ``module:name`` lacks, as far as it can be seen without running it: a class that is
    made elsewhere, or stands on another, is taken as it is."""
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == attribute_of(named):
            return f"{path.name} defines {node.name} as a function, and a class is wanted"
        if not isinstance(node, ast.ClassDef) or node.name != attribute_of(named) or node.bases:
            continue
        defined = {name for statement in node.body for name in _defines(statement)}
        if missing := [method for method in methods if method not in defined]:
            return f"the class {node.name} of {path.name} has no method {missing[0]}"
    return None


def user_process(program: str, named: str, path: Path | None, what: str) -> SideProcess:
    """A process that runs :data:`LOADING` and then ``program`` on the user's function or class ``module:name``.

    Raises StageError, naming ``what`` it is, where it cannot be loaded.
    """
    file = str(path) if is_file(named) and path else ""
    process = SideProcess(LOADING + program, f"the {what} {named}", [module_of(named), file, attribute_of(named)])
    greeting = json.loads(process.start())
    if greeting:  # the module is the user's: it may raise anything
        process.close()
        raise StageError(f"the {what} {named} cannot be loaded: {greeting}")
    return process


def function(settings: FunctionReward, path: Path | None) -> Reward:
    """The reward of :class:`FunctionReward`, in a process of its own. Raises StageError where there is none.

    A call that takes longer than ``settings.seconds`` ends the process and raises StageError.
    """
    process = user_process(_PROGRAM, settings.function, path, "reward")

    def call(answers: Sequence[RewardInput]) -> Scores:
        question = {
            "prompts": [[message.model_dump() for message in answer.prompt.messages] for answer in answers],
            "responses": [answer.text for answer in answers],
            "references": [answer.prompt.reference for answer in answers],
            "finished": [answer.finished for answer in answers],
            "options": settings.options,
        }
        told = process.ask(question, settings.seconds)
        if told is None:
            problem = f"did not answer within {settings.seconds:g} s for {len(answers)} answers, or ended its process"
            raise StageError(f"the reward {reward_name(settings)} {problem}; mend it, or raise its `seconds`")
        if "error" in told:
            raise FunctionError(*told["error"])
        scores: Scores = told["scores"]
        return scores

    return lambda answers: asyncio.to_thread(call, answers)


# Loads what is the user's as `called`, and says on the first line what stands against it. What that prints goes to
# standard error: standard output is for the answers.
LOADING = r"""
import importlib, importlib.util, json, os, sys
answers, sys.stdout = os.fdopen(os.dup(1), "w"), sys.stderr
os.dup2(2, 1)
module, file, name = sys.argv[1:]
sys.argv[1:] = []

def load():
    if not file:
        return importlib.import_module(module)
    sys.path.insert(0, os.path.dirname(os.path.abspath(file)))  # it may import what lies beside it
    spec = importlib.util.spec_from_file_location("user_" + os.path.basename(file).removesuffix(".py"), file)
    loaded = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # where dataclasses look for it
    spec.loader.exec_module(loaded)
    return loaded

def said(error):
    return [type(error).__name__, str(error)]

try:
    called, problem = getattr(load(), name), ""
except BaseException as error:
    problem = ": ".join(said(error))
print(json.dumps(problem), file=answers, flush=True)
"""

_PROGRAM = r"""
import asyncio, inspect

def told(asked):
    try:
        parameters = inspect.signature(called).parameters
    except (TypeError, ValueError):  # some that are written in C have none
        return asked["options"]
    kinds = {one.kind for one in parameters.values()}
    wanted = "finished" in parameters or inspect.Parameter.VAR_KEYWORD in kinds
    return asked["options"] | ({"finished": asked["finished"]} if wanted else {})

def scores(asked):
    found = called(asked["prompts"], asked["responses"], asked["references"], **told(asked))
    if inspect.isawaitable(found):
        async def wait():
            return await found
        found = asyncio.run(wait())
    return [None if score is None else float(score) for score in found]

for line in sys.stdin:
    try:
        answer = {"scores": scores(json.loads(line))}
    except BaseException as error:
        answer = {"error": said(error)}
    print(json.dumps(answer), file=answers, flush=True)
"""


def _defines(node: ast.stmt) -> set[str]:
    """The names that a statement at a module's top defines."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {node.name}
    if isinstance(node, ast.Import | ast.ImportFrom):
        return {alias.asname or alias.name for alias in node.names}
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)}
