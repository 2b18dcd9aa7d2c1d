from collections.abc import Callable
from pathlib import Path

import pytest

from alignment.preferences.rubric import Rubric, load_rubric
from alignment.records import Comparison, Message, Prompt, Response, Sampling

QUICKSTART = Path(__file__).parents[3] / "flows" / "recipes" / "quickstart"


def make_prompt(text: str = "Which planet is red?", kind: str = "question_answering", reference: str | None = None,
                id: str = "p") -> Prompt:  # fmt: skip # noqa: A002
    return Prompt(id=id, messages=(Message(role="user", content=text),), kind=kind, reference=reference)


def make_response(text: str, id: str = "r", prompt_id: str = "p", finished: bool = True) -> Response:  # noqa: A002
    return Response(
        id=id, prompt_id=prompt_id, text=text, model="m", sampling=Sampling(), seed=0, tokens=1, finished=finished
    )


def make_comparison(*texts: str, prompt: Prompt | None = None, id: str = "c") -> Comparison:  # noqa: A002
    responses = tuple(make_response(text, id=name) for name, text in zip("abcdefghi", texts, strict=False))
    return Comparison(id=id, prompt=prompt or make_prompt(), responses=responses)


@pytest.fixture
def prompt() -> Callable[..., Prompt]:
    return make_prompt


@pytest.fixture
def response() -> Callable[..., Response]:
    return make_response


@pytest.fixture
def comparison() -> Callable[..., Comparison]:
    return make_comparison


@pytest.fixture(scope="session")
def house_rubric() -> Rubric:
    """The quickstart's own rubric."""
    return load_rubric(QUICKSTART / "rubric.yaml")
