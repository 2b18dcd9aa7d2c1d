"""A stage run for its trace: loss and gradient norm of each step, and the answers that it drew."""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from alignment.data.jsonl import write_records
from alignment.digests import pair_id, prompt_id
from alignment.models import prefix_sharing
from alignment.records import Artifact, Message, PreferencePair
from alignment.rollouts.seeds import derived_seed
from alignment.rollouts.transformers_engine import TransformersEngine
from alignment.stage import Progress, StageContext
from tests.alignment.invariance.stages import Row

WORDS = ("red", "blue", "the", "cat", "saw", "an", "owl", "today", "white", "one", "who", "is", "green", "dog", "it")
SEED = 5  # of the tests' recipe
MakeContext = Callable[..., StageContext]


def answer(first: int, length: int) -> str:
    """So many words."""
    return " ".join(WORDS[(first + place) % len(WORDS)] for place in range(length)) + "."


def unequal_pairs(first: int, count: int) -> list[PreferencePair]:
    """Answers of 1 to 13 words; every third prompt is that of the pair before."""
    pairs = []
    for number in range(first, first + count):
        asked = number - (number % 3 == 2)
        prompt = (Message(role="user", content=f"What colour is the {WORDS[asked % len(WORDS)]} {asked}?"),)
        chosen, rejected = answer(number, 1 + 7 * number % 13), answer(number + 4, 1 + (5 * number + 3) % 11)
        pairs.append(
            PreferencePair(
                id=pair_id(prompt, chosen, rejected), prompt_id=prompt_id(prompt), prompt=prompt, chosen=chosen,
                rejected=rejected, margin=float(number % 4),
            )
        )  # fmt: skip
    return pairs


def write_pairs(folder: Path) -> None:
    """21 pairs to train on, and others to measure on."""
    write_records(folder / "pairs.jsonl", unequal_pairs(0, 21))
    write_records(folder / "held_out.jsonl", unequal_pairs(30, 4))


def write_demonstrations(path: Path) -> None:
    """11 conversations with answers of 1 to 17 words."""
    rows = []
    for number in range(11):
        reply = answer(number, 1 + 7 * number % 17)
        question = {"role": "user", "content": f"Name the {WORDS[number]} in one word."}
        rows.append({"messages": [question, {"role": "assistant", "content": reply}]})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def write_corpus(path: Path) -> None:
    """40 documents of 1 to 17 words."""
    path.write_text("\n\n".join(f"{number} {answer(number, 1 + 7 * number % 17)}" for number in range(40)), "utf-8")


@dataclass(frozen=True, slots=True)
class Trace:
    """``curves`` by name, a value a step; ``answers`` of each step, as tokens; ``trees`` that were grown for it."""

    curves: Mapping[str, list[float]]
    answers: list[tuple[tuple[int, ...], ...]]
    trees: int


class Ended(BaseException):
    """Ends a stage in the middle, as a death does."""


@dataclass(frozen=True, slots=True)
class Runner:
    """Runs stages in folders of their own. ``together`` and ``make_context`` are the fixtures of that name."""

    make_context: MakeContext
    together: Any
    inputs: Mapping[str, Artifact]

    def trace(
        self,
        row: Row,
        folder: Path,
        settings: Mapping[str, Any],
        changes: Mapping[str, Any],
        *,
        workers: int = 1,
        lives: int | None = None,
    ) -> Trace:
        """The trace of a row's stage. With ``lives`` it ends at each so-many-th report, and is begun again."""
        settled = {**row.settings, **settings}
        grown = []
        with self._watched(folder, grown):
            if workers > 1:
                self._in_processes(row, folder, settled, changes, workers)
            else:
                self._here(row, folder, settled, changes, lives)
        curves = json.loads((folder / "output" / "curves.json").read_text())
        names = (*row.losses, row.norm)
        found = {name: [value for _step, value in curves[name]] for name in names}
        return Trace(found, self._answers(row, folder, settled), sum(grown))

    def _context(self, row: Row, folder: Path, settings: Any, changes: Any, **more: Any) -> StageContext:
        changes = {**changes, **({"data.corpus": "corpus.txt"} if row.kind == "pretrain" else {})}
        context = self.make_context(folder, row.kind, self.inputs, settings=settings, changes=changes, **more)
        if "corpus" in context.data:
            write_corpus(context.data["corpus"])
        write_demonstrations(context.data["demonstrations"])  # type: ignore[arg-type]
        return context

    def _here(self, row: Row, folder: Path, settings: Any, changes: Any, lives: int | None) -> None:
        """In this process, life after life."""
        run = import_module(self.together.MODULES[row.kind]).run
        while True:
            reports = 0

            def report(_progress: Progress) -> None:
                nonlocal reports
                reports += 1
                if reports == lives:
                    raise Ended

            shutil.rmtree(folder / "output", ignore_errors=True)
            context = self._context(row, folder, settings, changes, report=report)
            try:
                run(context.recipe.stages[row.kind], context)  # type: ignore[attr-defined]
                return
            except Ended:
                continue

    def _in_processes(self, row: Row, folder: Path, settings: Any, changes: Any, workers: int) -> None:
        import_module(self.together.MODULES[row.kind])  # once, before the forks
        contexts = []
        for rank in range(workers):
            contexts.append(self._context(row, folder, settings, changes))
            if rank:
                contexts[-1].output = folder / f"scratch-{rank}"
        self.together.in_processes(contexts)

    @contextmanager
    def _watched(self, folder: Path, grown: list[bool]) -> Iterator[None]:
        """Has engines write down what they draw, and the trunk tell of its trees."""
        generate, pays = TransformersEngine.generate, prefix_sharing.pays
        folder.mkdir(parents=True, exist_ok=True)

        def written(engine: Any, prompts: Any, *, seeds: Any, **options: Any) -> Any:
            groups = generate(engine, prompts, seeds=seeds, **options)
            completions = [completion for group in groups for completion in group]
            with (folder / f"drawn-{os.getpid()}.jsonl").open("a") as file:
                for seed, completion in zip(seeds, completions, strict=True):
                    file.write(json.dumps([seed, list(completion.tokens)]) + "\n")
            return groups

        def told(*arguments: Any) -> bool:
            grown.append(pays(*arguments))
            return grown[-1]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(TransformersEngine, "generate", written)
            patch.setattr(prefix_sharing, "pays", told)
            yield

    def _answers(self, row: Row, folder: Path, settings: Mapping[str, Any]) -> list[tuple[tuple[int, ...], ...]]:
        drawn: dict[int, tuple[int, ...]] = {}
        for path in sorted(folder.glob("drawn-*.jsonl")):
            for line in path.read_text().splitlines():
                seed, tokens = json.loads(line)
                drawn[seed] = tuple(tokens)
        episodes = settings.get("episodes", 0)
        return [
            tuple(drawn[derived_seed(SEED, "answer", step, place)] for place in range(episodes))
            for step in range(row.steps)
        ]
