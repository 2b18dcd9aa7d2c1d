"""Registered versions as contestants: on a tiny model, what is streamed is what the engine gives."""

from collections.abc import Callable, Generator
from pathlib import Path

import pytest

from alignment.errors import InputError
from alignment.records import Message, Sampling
from alignment.workspace import Workspace
from preference_ui.store.errors import Refusal

ASKED = [Message(role="user", content="What colour is the cat?"), Message(role="assistant", content="Red."),
         Message(role="user", content="And the dog?")]  # fmt: skip


@pytest.fixture(scope="module")
def folders(make_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root = tmp_path_factory.mktemp("versions")
    return [str(make_model(root / f"m{seed}", seed=seed)) for seed in range(2)]


def _drained(coming: Generator[str, None, bool]) -> tuple[list[str], bool]:
    """What a generator yields, and what it returns."""
    texts = []
    while True:
        try:
            texts.append(next(coming))
        except StopIteration as end:
            return texts, end.value


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("stop", [(), ("e",)])
def test_the_stream_ends_with_what_the_engine_gives(
    folders: list[str], tmp_path: Path, temperature: float, stop: tuple[str, ...]
) -> None:
    from alignment.chat import render_prompt
    from alignment.models.families import stop_ids
    from alignment.rollouts.stream import stream
    from alignment.rollouts.transformers_engine import TransformersEngine
    from flows.services.model_version import load_version

    model, tokenizer = load_version(folders[0], Workspace(tmp_path))
    engine = TransformersEngine(model, tokenizer, stop_ids=stop_ids(model, tokenizer))
    sampling = Sampling(temperature=temperature, max_new_tokens=12, stop=stop)
    prompt = render_prompt(tokenizer, ASKED)
    for seed in range(4):
        [[whole]] = engine.generate([prompt], sampling=sampling, seeds=[seed])
        came, finished = _drained(stream(engine, prompt, sampling=sampling, seed=seed))
        assert finished == whole.finished
        assert came[-1] == (whole.text if whole.finished else whole.text.rstrip("�"))
        assert len(came) == len(whole.tokens)  # after every token
    with pytest.raises(ValueError, match="one token after another"):
        next(stream(engine, prompt, sampling=Sampling(temperature=0, beams=2), seed=0))


def test_two_streams_in_turns_do_not_disturb_each_other(folders: list[str], tmp_path: Path) -> None:
    from flows.services.arena_models import contestants

    ring = contestants(folders, Workspace(tmp_path), Sampling(max_new_tokens=8))
    alone = [list(one.answer(ASKED, 3)) for one in ring]
    together = zip(*(one.answer(ASKED, 3) for one in ring), strict=False)
    length = min(map(len, alone))
    assert [list(side) for side in zip(*together, strict=True)] == [side[:length] for side in alone]


def test_the_same_version_twice_and_a_talk_too_long_are_refused(folders: list[str], tmp_path: Path) -> None:
    from flows.services.arena_models import contestants

    with pytest.raises(InputError, match="same version"):
        contestants([folders[0], folders[0]], Workspace(tmp_path), Sampling())
    ring = contestants(folders, Workspace(tmp_path), Sampling(max_new_tokens=250))  # the model reads 256 tokens
    with pytest.raises(Refusal, match="longer than one of the two can read"):
        next(ring[0].answer(ASKED, 0))
