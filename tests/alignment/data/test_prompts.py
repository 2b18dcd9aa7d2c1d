import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignment.data.demonstrations import read_demonstrations
from alignment.data.prompts import load_prompts, read_prompts
from alignment.errors import InputError
from alignment.records import Message

Writer = Callable[..., Path]
USER = {"role": "user", "content": "hi"}
BOT = {"role": "assistant", "content": "hello"}
KNOWN = (
    'name the column "prompt" (text or messages) or "messages"; '
    '"system", "kind", "source" and "reference" may stand beside it'
)


def test_the_forms_of_a_prompt(write_rows: Writer) -> None:
    prompts = read_prompts(
        write_rows(
            [
                {"prompt": "hi", "kind": "greeting", "source": "me", "reference": "hello", "other": 1},
                {"prompt": [USER, BOT, USER]},
                {"messages": [USER], "system": "Be brief."},
            ]
        )
    )
    user, bot = Message(role="user", content="hi"), Message(role="assistant", content="hello")
    assert prompts[0].messages == (user,)
    assert (prompts[0].kind, prompts[0].source, prompts[0].reference) == ("greeting", "me", "hello")
    assert prompts[1].messages == (user, bot, user)
    assert (prompts[1].kind, prompts[1].source, prompts[1].reference) == ("general", "", None)
    assert prompts[2].messages == (Message(role="system", content="Be brief."), user)


def test_the_id_is_the_digest_of_the_messages(write_rows: Writer) -> None:
    (prompt,) = read_prompts(write_rows([{"prompt": "hi", "kind": "greeting"}]))
    assert prompt.id == hashlib.sha256(b'[{"content":"hi","role":"user"}]').hexdigest()[:16]


def test_duplicates_are_left_out_and_counted(write_rows: Writer, caplog: pytest.LogCaptureFixture) -> None:
    path = write_rows([{"prompt": "a"}, {"prompt": "b"}, {"messages": [{"role": "user", "content": "a"}]}])
    with caplog.at_level(logging.WARNING):
        assert [prompt.messages[0].content for prompt in read_prompts(path)] == ["a", "b"]
    assert caplog.messages == [f"{path}: 1 duplicate prompts left out"]


@pytest.mark.parametrize(
    ("row", "line"),
    [
        ({"question": "q", "answer": "a"}, f": no prompt among the columns question and answer; {KNOWN}"),
        ({"prompt": None}, ":prompt: null, not text; write text, or remove the row"),
        ({"prompt": 3}, ":prompt: int, not text; write text, or remove the row"),
        ({"prompt": " \n"}, ":prompt: empty; write the text, or remove the row"),
        ({"prompt": []}, ':prompt: no messages; write messages as [{"role": "user", "content": "…"}, …]'),
        (
            {"messages": "hi"},
            ':messages: not a list of messages; write messages as [{"role": "user", "content": "…"}, …]',
        ),
        ({"prompt": ["hi"]}, ':prompt.0: not a message; write messages as [{"role": "user", "content": "…"}, …]'),
        ({"prompt": [USER, BOT]}, ":prompt: the last message is of the assistant; end with a message of the user"),
        (
            {"prompt": [{"role": "human", "content": "hi"}]},
            ":prompt.0.role: unknown role 'human'; use system, user, assistant and tool",
        ),
        (
            {"prompt": [{"role": "user", "content": None}]},
            ":prompt.0.content: null, not text; write text, or remove the row",
        ),
        ({"prompt": [USER | {"tool_calls": [1]}]}, ":prompt.0: unknown part tool_calls; keep role and content only"),
        (
            {"prompt": [USER, {"role": "system", "content": "s"}, USER]},
            ":prompt: a system message comes after the first; put one system message first",
        ),
        (
            {"prompt": [{"role": "system", "content": "s"}, USER], "system": "t"},
            ":system: a system message stands both here and in the messages; keep one of them",
        ),
        ({"prompt": "hi", "reference": 4}, ":reference: int, not text; write text, or remove the row"),
        (
            '{"prompt": "\\ud800"}',
            ":prompt: holds half a character (a lone surrogate); save the text as UTF-8 again",
        ),
    ],
)
def test_a_bad_prompt_is_one_line(write_rows: Writer, row: Any, line: str) -> None:
    path = write_rows([{"prompt": "good"}, row])
    with pytest.raises(InputError) as caught:
        read_prompts(path)
    assert str(caught.value) == f"{path}:2{line}"


def test_all_bad_rows_are_reported_at_once(write_rows: Writer) -> None:
    path = write_rows([{"prompt": ""}, {"prompt": "fine"}, {"prompt": 1}])
    with pytest.raises(InputError) as caught:
        read_prompts(path)
    assert [fault.row for fault in caught.value.faults] == [1, 3]


def test_one_prompt_with_two_references(write_rows: Writer) -> None:
    path = write_rows([{"prompt": "a", "reference": "1"}, {"prompt": "a", "reference": "2"}])
    with pytest.raises(InputError) as caught:
        read_prompts(path)
    assert (
        str(caught.value)
        == f"{path}:2:reference: the prompt of row 1 again, with another reference; keep one of the two rows"
    )


def test_prompts_are_split_into_all_of_them(write_rows: Writer) -> None:
    path = write_rows([{"prompt": f"prompt {n}"} for n in range(200)])
    train, held_out = load_prompts(path, 0.2)
    assert len(train) + len(held_out) == 200
    assert 20 <= len(held_out) <= 60  # 40 expected; the digests do not change
    assert {prompt.id for prompt in train} | {p.id for p in held_out} == {p.id for p in read_prompts(path)}


def test_the_forms_of_a_demonstration(write_rows: Writer, caplog: pytest.LogCaptureFixture) -> None:
    rows = [
        {"messages": [USER, BOT]},
        {"prompt": "hi", "completion": "hello", "kind": "greeting"},
        {"prompt": [USER], "response": "hello", "system": "s"},
        {"prompt": [USER], "completion": [BOT, USER, BOT]},
    ]
    path = write_rows(rows)
    with caplog.at_level(logging.WARNING):
        found = read_demonstrations(path)
    assert caplog.messages == [f"{path}: 1 duplicate demonstrations left out"]
    roles = [[message.role for message in demonstration.messages] for demonstration in found]
    assert roles == [["user", "assistant"], ["system", "user", "assistant"], ["user", "assistant", "user", "assistant"]]
    assert found[0].kind == "general"  # the second row is the first again


@pytest.mark.parametrize(
    ("row", "line"),
    [
        (
            {"question": "q", "answer": "a"},
            ": no demonstration among the columns question and answer; "
            'name the columns "messages", or "prompt" and "completion" (or "response")',
        ),
        ({"messages": [USER]}, ":messages: the last message is of the user; end with a message of the assistant"),
        ({"messages": None}, ':messages: no messages; write messages as [{"role": "user", "content": "…"}, …]'),
        ({"messages": [BOT]}, ":messages: no message is the user's; put the user's message before the assistant's"),
        (
            {"messages": [USER, {"role": "assistant", "content": " "}]},
            ":messages: the assistant's last message is empty; write the text, or remove the row",
        ),
        ({"prompt": "hi", "completion": ""}, ":completion: empty; write the text, or remove the row"),
        ({"prompt": "hi", "response": None}, ":response: null, not text; write text, or remove the row"),
        (
            {"prompt": "hi", "response": "a", "completion": "b"},
            ":response: both completion and response are there; keep one of them",
        ),
    ],
)
def test_a_bad_demonstration_is_one_line(write_rows: Writer, row: Any, line: str) -> None:
    path = write_rows([row])
    with pytest.raises(InputError) as caught:
        read_demonstrations(path)
    assert str(caught.value) == f"{path}:1{line}"


def test_grade_school_maths_needs_its_columns_named(real_data: Path) -> None:
    with pytest.raises(InputError) as caught:
        read_prompts(real_data / "gsm8k_train_2000.jsonl.gz")
    assert len(caught.value.faults) == 21
    assert str(caught.value.faults[0]).endswith(f"1: no prompt among the columns question and answer; {KNOWN}")
