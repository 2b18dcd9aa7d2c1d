"""Answered prompts as a file that the next round reads."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignment.data.prompts import read_prompts
from alignment.errors import InputError
from flows.serving.prompt_log import PromptLog, prompt_row
from tests.flows.conftest import call


def asked(*texts: str) -> list[dict[str, Any]]:
    roles = ("user", "assistant")
    return [{"role": roles[place % 2], "content": text} for place, text in enumerate(texts)]


def test_the_file_is_taken_as_prompts_by_check(make_recipe: Callable[..., Path], tmp_path: Path) -> None:
    """The same prompts twice, as two clients ask them: they contradict each other in nothing."""
    path = tmp_path / "new" / "asked.jsonl"
    log = PromptLog(path)
    for _ in range(2):
        for number in range(24):
            assert log.add(asked(f"What is {number} times {number + 1}? Tell ada{number}@example.org."))
        assert log.add(asked("Who?", "Me.", "Why\u2028you?"))
    again = PromptLog(path)  # the server is started once more
    assert again.add(asked("And now?"))
    prompts = read_prompts(path)
    assert len(prompts) == 26
    assert {prompt.source for prompt in prompts} == {"served"}
    assert prompts[0].messages[0].content == "What is 0 times 1? Tell [email]."
    assert [turn.role for turn in prompts[24].messages] == ["user", "assistant", "user"]
    recipe = make_recipe(tmp_path / "recipe", stages=("sft", "responses"), changes={"data.prompts": str(path)})
    ended = call("check", recipe, "--workspace", tmp_path / "workspace")
    assert (ended.code, ended.err) == (0, "")


@pytest.mark.parametrize(
    "messages",
    [
        None, "text", [], [1], [{"role": "user"}], [{"content": "x"}], asked("Hi", "there"),
        [{"role": "tool", "content": "4"}], asked("half of a pair: \ud800"), [{"role": "user", "content": ""}],
        [*asked("Hi", "x"), {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
        [{"role": "assistant", "content": None, "tool_calls": []}, *asked("Hi")],
    ],
)  # fmt: skip
def test_what_is_no_prompt_is_not_kept(messages: Any, tmp_path: Path) -> None:
    assert prompt_row(messages) is None
    log = PromptLog(tmp_path / "asked.jsonl")
    assert not log.add(messages)
    assert log.path.read_bytes() == b""


def test_half_a_row_of_a_power_cut_is_taken_back(tmp_path: Path) -> None:
    path = tmp_path / "asked.jsonl"
    whole = json.dumps({"prompt": "One?"})
    path.write_text(f'{whole}\n{{"messages": [{{"ro', "utf-8")
    PromptLog(path).add(asked("Two?"))
    path.write_text(path.read_text("utf-8") + json.dumps({"prompt": "Three?"}), "utf-8")  # by hand, without an end
    PromptLog(path).add(asked("Four?"))
    assert [prompt.messages[-1].content for prompt in read_prompts(path)] == ["One?", "Two?", "Three?", "Four?"]


def test_a_file_that_is_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    other = tmp_path / "pairs.jsonl"
    other.write_text('{"chosen": "a", "rejected": "b"}\n', "utf-8")
    with pytest.raises(InputError, match=r"pairs.jsonl:1: no prompt among the columns chosen and rejected"):
        PromptLog(other)
    assert other.read_text("utf-8") == '{"chosen": "a", "rejected": "b"}\n'
    with pytest.raises(InputError, match=r"name it .jsonl"):
        PromptLog(tmp_path / "asked.json")
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(InputError, match="cannot be written: Is a directory; give another"):
        PromptLog(tmp_path / "folder.jsonl")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written: File exists"):
        PromptLog(tmp_path / "file" / "asked.jsonl")


def test_on_a_full_disk_no_half_row_is_left(tmp_path: Path) -> None:
    import resource
    import signal

    log = PromptLog(tmp_path / "asked.jsonl")
    log.add(asked("One?"))
    before = log.path.read_bytes()
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 10, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            log.add(asked("Two?"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert log.path.read_bytes() == before
    assert log.add(asked("Three?"))
    assert len(read_prompts(log.path)) == 2
