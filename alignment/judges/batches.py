"""A judge's work in pieces: comparisons that it judges by itself, whoever does it and in whatever order.

A local judge's pieces may be done side by side (:mod:`alignment.parallel_map`), and each is kept as a checkpoint. A
judge behind an endpoint is asked from the stage's own process, since what waits there is the network and its budget is
one account; its answers are kept by themselves, so that nothing is paid for twice.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from alignment.digests import content_id
from alignment.durable_files import write_text
from alignment.judges.factory import build_judge
from alignment.judges.protocol import JudgeUsage, PairJudgement, wait_for
from alignment.parallel_map import all_of, here
from alignment.recipe.judges import pays
from alignment.records import Comparison, Record
from alignment.stage import StageContext

BLOCK = 32  # comparisons in a piece
Block = tuple[Comparison, ...]


class Verdicts(Record):
    """Judgements in the order of what was judged; who judged; and what that took, whenever it was."""

    judge: str
    judgements: tuple[PairJudgement, ...]
    tally: JudgeUsage


def asker(settings: Any, context: StageContext) -> Callable[[Block], Verdicts]:
    """What judges a piece with the judge that the stage's settings name, wherever it is called."""
    judge = build_judge(settings.judge, context)

    def ask(block: Block) -> Verdicts:
        before = judge.tally.copy()
        judgements = wait_for(judge.judge(block))
        return Verdicts(judge=judge.name, judgements=tuple(judgements), tally=judge.tally - before)

    return ask


def blocks_of(comparisons: Sequence[Comparison], size: int = BLOCK) -> list[Block]:
    """Comparisons in pieces, in their order."""
    return [tuple(comparisons[start : start + size]) for start in range(0, len(comparisons), size)]


def judge_all(
    settings: Any, context: StageContext, blocks: Sequence[Block], heard: Callable[[Verdicts], None]
) -> Verdicts:
    """The judgements of all blocks by ``settings.judge``; ``heard`` is told of each block. Raises StageError where the
    judge cannot be asked."""
    paid = pays(settings.judge)  # what was answered before must be counted again, and costs nothing

    paths = [context.checkpoints / f"judged-{content_id([one.id for one in block])}.json" for block in blocks]

    def read(place: int) -> Verdicts | None:
        return None if paid else _read(paths[place])

    def write(place: int, judged: Verdicts) -> None:
        if not paid:
            write_text(paths[place], judged.model_dump_json() + "\n")

    found = all_of(blocks, asker, settings, context, read=read, write=write, heard=heard, pool=here if paid else None)
    tally = JudgeUsage()
    for judged in found:
        tally = tally + judged.tally
    name = found[0].judge if found else build_judge(settings.judge, context).name
    judgements = tuple(one for judged in found for one in judged.judgements)
    return Verdicts(judge=name, judgements=judgements, tally=tally)


def _read(path: Path) -> Verdicts | None:
    try:
        return Verdicts.model_validate_json(path.read_text("utf-8"))
    except (FileNotFoundError, ValidationError):
        return None
