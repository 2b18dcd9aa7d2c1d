"""Whether answers follow IFEval's verifiable instructions (Zhou et al. 2023), by the checkers of lm-eval.

They run in a process of their own: keywords of a row are regular expressions, which may never end on an answer, and
lm-eval imports a great deal. Sentences are split by NLTK's Punkt with its English data, which is looked for and never
downloaded; the language is told by ``langdetect`` with a seed, as by itself it says now one thing and now another.
"""

import importlib.util
import json
import logging
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from alignment.errors import Fault, InputError, StageError, shortened
from alignment.recipe.rewards.verifiable import InstructionsReward
from alignment.records import Prompt
from alignment.reward.protocol import Reward, RewardInput, shown
from alignment.reward.side_process import SideProcess

EXTRA = "pip install 'rlhf-flows[ifeval]'"
PUNKT = "python -m nltk.downloader punkt_tab, or pip install --no-deps llama-index-core, which carries it"
SECONDS = 20.0  # for all instructions of one answer, in eight variants where they are checked loosely
_log = logging.getLogger(__name__)


def instructions(settings: InstructionsReward) -> Reward:
    """See :class:`InstructionsReward`. Raises InputError where what checks them is not installed."""
    checker = InstructionChecker()

    def scores(answers: Sequence[RewardInput]) -> list[float]:
        followed = []
        for answer in answers:
            if (asked := instructions_of(answer.prompt)) is None:
                raise StageError(f"the prompt has no instructions to check; {shown(answer)}")
            followed.append(checker.followed(asked, answer.text, loose=settings.loose))
        if settings.counts == "share":
            return [sum(each) / len(each) for each in followed]
        return [float(all(each)) for each in followed]

    return scores


def instructions_of(prompt: Prompt) -> dict[str, Any] | None:
    """``{"prompt", "instructions", "kwargs"}`` of a prompt whose reference holds instructions; None for any other."""
    try:
        asked = json.loads(prompt.reference or "")
        named, kwargs = asked["instruction_id_list"], asked["kwargs"]
    except (ValueError, TypeError, KeyError):
        return None
    return {"prompt": prompt.messages[-1].content, "instructions": named, "kwargs": kwargs}


class InstructionChecker:
    """Asks lm-eval's checkers, in a process that starts with the first question and is every checker's."""

    def __init__(self) -> None:
        self._process = _process()
        self.unended = 0  # answers on which a checker did not end

    def followed(self, asked: dict[str, Any], text: str, *, loose: bool) -> list[bool]:
        """For each instruction of ``{"prompt", "instructions", "kwargs"}``, whether ``text`` follows it.

        ``loose`` as in IFEval: also where it does without its first line, its last, or its asterisks. None is followed
        where a checker does not end in time. Raises InputError where the checkers are not installed, StageError where
        they cannot check with these arguments.
        """
        self._start()
        answer = self._process.ask({**asked, "text": text, "loose": loose}, SECONDS)
        if answer is None:
            self.unended += 1
            words = "the checkers of %s did not end within %g s on an answer of %d characters, which gets 0 (%d so far)"
            _log.warning(words, ", ".join(asked["instructions"]), SECONDS, len(text), self.unended)
            return [False] * len(asked["instructions"])
        if isinstance(answer, str):
            raise StageError(f"the instructions of the prompt {asked['prompt']!r} cannot be checked: {answer}")
        return [bool(one) for one in answer]

    def problems(self, rows: Iterable[dict[str, Any]]) -> list[str | None]:
        """What is wrong with each row's instructions, in a line; None where they can be checked."""
        self._start()
        said = [self._process.ask({**row, "text": None}, SECONDS) for row in rows]
        return ["its checkers do not end on a word" if one is None else one or None for one in said]

    def close(self) -> None:
        """Ends the process."""
        self._process.close()

    def _start(self) -> None:
        if (said := self._process.start().strip()) != "ready":
            self._process.close()
            raise InputError([Fault(f"IFEval's instructions cannot be checked: {said}", _remedy(said))])


def checked_instructions(rows: Sequence[tuple[int, Prompt]], file: Path, otherwise: str) -> list[Fault]:
    """The faults of numbered prompts whose references should be instructions; ``otherwise`` is what to do instead.

    A fault that names no file is of the machine: the checkers are not installed.
    """
    instructed = [(row, found) for row, prompt in rows if (found := instructions_of(prompt)) is not None]
    known = {row for row, _found in instructed}
    remedy = f"give the row IFEval's instruction_id_list and kwargs, or {otherwise}"
    faults = [
        Fault("the reference holds no instructions", remedy, str(file), row, "reference")
        for row, _prompt in rows if row not in known
    ]  # fmt: skip
    checker = InstructionChecker()
    try:
        problems = checker.problems([found for _row, found in instructed])
    except InputError as error:
        return list(error.faults)
    finally:
        checker.close()  # it holds some memory, and a check is often all that is wanted
    faults += [
        Fault(problem, "mend it, or remove the row", str(file), row, "kwargs")
        for (row, _found), problem in zip(instructed, problems, strict=True) if problem is not None
    ]  # fmt: skip
    return shortened(sorted(faults, key=lambda fault: fault.row or 0))


def _remedy(said: str) -> str:
    return PUNKT if "punkt" in said else EXTRA


@cache
def _process() -> SideProcess:
    return SideProcess(_PROGRAM, "the process of lm-eval's checkers", _punkt_folders())


def _punkt_folders() -> tuple[str, ...]:
    """Where NLTK's data may lie beside its own places: llama-index-core carries it. Nothing of it is imported."""
    found = importlib.util.find_spec("llama_index")
    places = found.submodule_search_locations if found is not None else None
    folders = [Path(place) / "core" / "_static" / "nltk_cache" for place in places or ()]
    return tuple(str(folder) for folder in folders if folder.is_dir())


# An argument that is left out, or 0, is drawn at random by the checkers: an answer would be held to another figure than
# the prompt names. Every argument has to be there.
_PROGRAM = r"""
import json, logging, sys
answers, sys.stdout = sys.stdout, sys.stderr
logging.disable(logging.CRITICAL)

def load():
    import langdetect, nltk
    nltk.data.path[:0] = sys.argv[1:]
    nltk.data.find("tokenizers/punkt_tab/english/")
    langdetect.DetectorFactory.seed = 0
    from lm_eval.tasks.ifeval import utils
    return utils

def given(kwargs):
    return {name: value for name, value in kwargs.items() if value is not None}

def problem(asked):
    for name, kwargs in zip(asked["instructions"], asked["kwargs"], strict=True):
        kind = checkers.instructions_registry.INSTRUCTION_DICT.get(name)
        if kind is None:
            return f"IFEval knows no instruction {name!r}"
        wanted = set(kind(name).get_instruction_args_keys())
        kwargs = given(kwargs)
        if absent := sorted(key for key in wanted if not kwargs.get(key)):
            return f"{name} wants {', '.join(absent)}"
        if more := sorted(kwargs.keys() - wanted):
            return f"{name} knows no {', '.join(more)}"
        try:
            checker = kind(name)
            checker.build_description(**kwargs)
            checker.check_following("A word.")
        except Exception as error:
            return f"{name} cannot be checked with {kwargs}: {type(error).__name__}: {error}"
    return ""

def followed(asked):
    check = checkers.test_instruction_following_loose if asked["loose"] else checkers.test_instruction_following_strict
    kwargs = [given(one) for one in asked["kwargs"]]
    example = checkers.InputExample(0, asked["instructions"], asked["prompt"], kwargs)
    try:
        return check(example, asked["text"]).follow_instruction_list
    except Exception as error:
        return f"{type(error).__name__}: {error}"

try:
    checkers = load()
except Exception as error:
    said = f"{type(error).__name__}: {error}"
    if isinstance(error, LookupError):
        said = "NLTK's punkt_tab is not on this machine"
    print(" ".join(said.split()), file=answers, flush=True)
    sys.exit(1)
print("ready", file=answers, flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    print(json.dumps(problem(asked) if asked["text"] is None else followed(asked)), file=answers, flush=True)
"""
