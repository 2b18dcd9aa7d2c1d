"""Work in pieces: results in their order whoever does them and when, what is kept is not done again, and a local
judge's pieces are the same artifact however they are done."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from alignment.data.jsonl import write_records
from alignment.durable_files import folder_digest
from alignment.parallel_map import Each, all_of, here
from alignment.recipe.stages.feedback.judge import JudgeStage
from alignment.records import Artifact, Message, Prompt, Response, Sampling
from alignment.stage import StageContext
from alignment.stages.feedback.judge import run

MakeContext = Callable[..., StageContext]


@contextmanager
def backwards(build: Any, settings: Any, context: Any) -> Iterator[Each]:
    """A pool of two, of which the second is the quicker: pieces come back in another order, done by two that were
    built apart."""
    workers = [build(settings, context), build(settings, context)]

    def each(pieces: Mapping[int, Any]) -> Iterator[tuple[int, Any]]:
        for number, place in enumerate(reversed(pieces)):
            yield place, workers[number % 2](pieces[place])

    yield each


class Plain:
    """As much of a context as pieces need."""

    def __init__(self, pool: Any) -> None:
        self.pool = pool

    @contextmanager
    def working(self) -> Iterator[None]:
        yield


def squares(_settings: Any, _context: Any) -> Callable[[int], int]:
    return lambda piece: piece * piece


@pytest.mark.parametrize("pool", [here, backwards])
def test_results_stand_in_the_order_of_their_pieces(pool: Any) -> None:
    kept, heard, written = {1: -1}, [], {}
    found: list[int] = all_of(
        [2, 3, 4, 5], squares, None, Plain(pool), read=kept.get, write=written.__setitem__, heard=heard.append
    )
    assert found == [4, -1, 16, 25]  # what was kept is taken, whatever it is
    assert written == {0: 4, 2: 16, 3: 25}
    assert heard == ([-1, 4, 16, 25] if pool is here else [-1, 25, 16, 4])


def test_where_all_is_kept_nothing_is_built() -> None:
    def never(_settings: Any, _context: Any) -> Any:
        raise AssertionError

    assert all_of([1], never, None, Plain(here), read=lambda _place: 7, write=print, heard=lambda _one: None) == [7]


@pytest.fixture(scope="module")
def answered(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Twenty prompts with four answers each: 120 pairs, in four pieces."""
    folder = tmp_path_factory.mktemp("answered")
    prompts = [
        Prompt(id=f"p{n:02}", messages=(Message(role="user", content=f"What colour is number {n}?"),))
        for n in range(20)
    ]
    texts = ("Red.", "It is red.", "The cat is blue.", "Who saw it?")
    answers = [
        Response(id=f"p{n:02}r{k}", prompt_id=f"p{n:02}", text=f"{text} {n}", model="m@1", sampling=Sampling(), seed=k,
                 tokens=3, finished=True)
        for n in range(20) for k, text in enumerate(texts)
    ]  # fmt: skip
    write_records(folder / "prompts.jsonl", prompts)
    write_records(folder / "responses.jsonl", answers)
    return Artifact(name="responses", kind="responses", version=1, digest="0", path=str(folder), key="k")


STAGE = {
    "kind": "judge", "responses": "responses", "comparisons_per_prompt": 6,
    "judge": {"kind": "label_probabilities", "model": "base", "min_label_mass": 0.0, "batch_size": 8},
}  # fmt: skip


def test_a_judges_pieces_make_one_artifact_however_they_are_done(
    make_context: MakeContext, base: Artifact, answered: Artifact, tmp_path: Path
) -> None:
    inputs = {"base": base, "responses": answered}
    stage = JudgeStage.model_validate(STAGE)
    contexts = [make_context(tmp_path / name, "responses", inputs) for name in ("here", "backwards", "resumed")]
    first, other, resumed = contexts
    result = run(stage, first)
    kept = sorted(first.checkpoints.glob("judged-*.json"))
    assert len(kept) == 4
    assert result.metrics["asked"] == 240  # both orders of every pair
    other.pool = backwards
    assert run(stage, other).metrics == result.metrics
    for path in kept[::2]:  # as a run leaves it that was killed in the middle
        (resumed.checkpoints / path.name).write_bytes(path.read_bytes())
    (resumed.checkpoints / kept[1].name).write_text('{"judge": "half')
    assert run(stage, resumed).metrics == result.metrics
    assert len({folder_digest(context.output) for context in contexts}) == 1
