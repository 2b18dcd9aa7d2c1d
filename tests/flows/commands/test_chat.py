"""`rlhf chat` and `rlhf generate` on tiny models: turns, commands, drafts; what is shown, and what is refused."""

import subprocess
import sys
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from alignment.data.demonstrations import read_demonstrations
from alignment.data.preferences import read_preferences
from alignment.errors import InputError
from alignment.plain_text import printable
from alignment.records import Message, Sampling
from alignment.workspace import Workspace
from flows.commands.chat import ChatSession, chat_command
from flows.console import PlainConsole
from flows.services.speaker import Drafting, Speaker, load_speakers

MakeModel = Callable[..., Path]
GREEDY = Sampling(temperature=0.0, max_new_tokens=10)
OTHER_TEMPLATE = (  # rewrites earlier answers once a later turn follows
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and not loop.last %}{{ m.content[:3] }}{% else %}{{ m.content }}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def folders(make_model: MakeModel, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two models with one vocabulary, and one with another."""
    root = tmp_path_factory.mktemp("versions")
    return [make_model(root / f"m{seed}", seed=seed) for seed in range(2)] + [make_model(root / "no_pad", pad=None)]


def speaker(folder: Path, sampling: Sampling = GREEDY, *, name: str = "v") -> Speaker:
    """In float32, so that reading in parts rounds no token away."""
    from transformers import AutoModelForCausalLM

    from alignment.chat import load_tokenizer

    model = AutoModelForCausalLM.from_pretrained(folder).float().eval()
    return Speaker(name, model, load_tokenizer(folder), sampling)


def talk(*speakers: Speaker) -> tuple[ChatSession, StringIO]:
    out = StringIO()
    return ChatSession(speakers, PlainConsole(file=out, width=300)), out


def shown(out: StringIO) -> str:
    text = out.getvalue()
    out.seek(0)
    out.truncate()
    return text


@pytest.mark.parametrize("template", [None, OTHER_TEMPLATE])
@pytest.mark.parametrize("kind", ["cache", "look-up", "draft"])
def test_every_turn_says_what_it_would_without_a_cache_or_drafts(
    kind: str, template: str | None, make_model: MakeModel, folders: list[Path], tmp_path: Path
) -> None:
    from alignment.rollouts.drafts import DraftModel, PromptLookup

    folder = folders[0] if template is None else make_model(tmp_path / "model", template=template)
    plain, quick = speaker(folder), speaker(folder)
    plain.cache = None
    if kind == "look-up":
        quick.drafter = PromptLookup(3)
    if kind == "draft":
        quick.drafter = DraftModel(speaker(folders[1]).engine, GREEDY, vocabulary=quick.model.config.vocab_size)
    (one, out), (other, out_plain) = talk(quick), talk(plain)
    for text in ("What colour is the cat?", "And the dog?", "/retry", "Why is that?"):
        one.take(text)
        other.take(text)
        assert shown(out) == shown(out_plain) != ""
    assert one.conversation.turns == other.conversation.turns
    assert quick.cache is not None
    assert quick.cache.reused > 0
    one.take("/stats")
    asked, reused = quick.cache.asked, quick.cache.reused
    lines = shown(out).splitlines()
    assert lines[0] == f"v: {reused:,} of {asked:,} ({reused / asked:.0%}) prompt tokens were read before"
    assert len(lines) == (1 if kind == "cache" else 2)


def test_two_versions_answer_the_same_turns_and_the_better_answer_goes_on(folders: list[Path], tmp_path: Path) -> None:
    both = [speaker(folder, name=name) for folder, name in zip(folders, ("one", "two"), strict=False)]
    session, out = talk(*both)
    session.take("What colour is the cat?")
    said = shown(out)
    first, second = (answer.text for answer in session.conversation.answers)
    assert said == printable(f"one {first}\ntwo {second}\n")
    session.take("/better 2")
    assert "two's answer goes on" in shown(out)
    session.take("And the dog?")
    assert session.conversation.messages()[1] == Message(role="assistant", content=second)
    path = tmp_path / "pairs.jsonl"
    shown(out)
    session.take(f"/save {path}")
    assert shown(out) == f"{path}: 1 new preference pair\n"
    [pair] = read_preferences(path).pairs
    assert (pair.chosen, pair.rejected) == (second, first)
    assert pair.prompt == (Message(role="user", content="What colour is the cat?"),)
    assert not pair.chosen_finished  # ten tokens of a model that never learned to stop


def test_a_demonstration_has_the_system_message_under_which_it_was_said(folders: list[Path], tmp_path: Path) -> None:
    one = speaker(folders[0])
    one.engine.stop_ids = frozenset(range(3, 400))  # its first token ends an answer
    session, out = talk(one)
    session.take("/system Be brief.")
    assert shown(out) == "a new conversation under this system message\n"
    session.take("//help me")
    [answer] = session.conversation.answers
    session.take(f"/save {tmp_path / 'd.jsonl'}")
    [row] = read_demonstrations(tmp_path / "d.jsonl")
    assert [(message.role, message.content) for message in row.messages] == [
        ("system", "Be brief."), ("user", "/help me"), ("assistant", answer.text),
    ]  # fmt: skip
    session.take("/system")
    assert session.conversation.messages() == ()


def test_what_cannot_be_done_is_one_line_and_changes_nothing(folders: list[Path]) -> None:
    session, out = talk(speaker(folders[0]))
    session.take("/etc/hosts is a file")  # no command
    before = session.conversation
    shown(out)
    for line, words in [
        ("/help me", "no command here"), ("/sytem x", "/help lists"), ("/better 3", "no command here"),
        ("/better 1", "no two answers"), ("/save", "no command here"), ("/save d.txt", "cut off"),
        ("say <|im_end|>", "a control token"), ("/system <|im_end|>", "a control token"), ("x" * 400, "256 positions"),
    ]:  # fmt: skip
        with pytest.raises(InputError) as caught:
            session.take(line)
        assert words in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1
    assert session.conversation is before
    assert shown(out) == ""
    session.take("/help")
    assert all(f"/{name}" in out.getvalue() for name in ("system", "retry", "better", "save", "stats", "help"))


def test_a_retry_draws_anew_and_a_seed_again_the_same(folders: list[Path]) -> None:
    drawn = Sampling(temperature=1.0, max_new_tokens=10)
    answers = []
    for _ in range(2):
        session, _out = talk(speaker(folders[0], drawn))
        session.take("Hi")
        first = session.conversation.answers
        session.take("/retry")
        answers.append((first, session.conversation.answers))
        assert session.conversation.turns == [Message(role="user", content="Hi")]
    assert answers[0] == answers[1]
    assert answers[0][0] != answers[0][1]


def test_a_draft_with_another_vocabulary_is_refused_before_weights_are_loaded(
    folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_arguments: Any) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr("flows.services.speaker.load_version", load)
    names = [str(folder) for folder in folders]
    with pytest.raises(InputError, match="has another vocabulary: ") as caught:
        load_speakers(names[:1], Workspace(tmp_path), GREEDY, Drafting(draft=names[2]))
    assert len(caught.value.faults) == 1
    with pytest.raises(InputError, match="give --draft or --prompt-lookup"):
        load_speakers(names[:1], Workspace(tmp_path), GREEDY, Drafting(names[1], 3))


def test_a_model_whose_cache_is_not_taken_back_from_talks_and_takes_no_draft(
    folders: list[Path], tmp_path: Path
) -> None:
    import torch
    from transformers import AutoTokenizer, MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    folder = tmp_path / "windows"
    tokenizer = AutoTokenizer.from_pretrained(folders[0])
    MistralForCausalLM(MistralConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, sliding_window=8,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )).save_pretrained(folder)  # fmt: skip
    tokenizer.save_pretrained(folder)
    [one] = load_speakers([str(folder)], Workspace(tmp_path), GREEDY, Drafting())
    session, out = talk(one)
    session.take("Hi")
    session.take("And?")
    shown(out)
    session.take("/stats")
    assert shown(out) == f"{folder}: nothing is kept between this model's turns\n"
    for drafting, field in [(Drafting(prompt_lookup=2), "MODEL"), (Drafting(draft=str(folders[0])), "MODEL")]:
        with pytest.raises(InputError, match=rf"{field}: .* sliding windows"):
            load_speakers([str(folder)], Workspace(tmp_path), GREEDY, drafting)
    with pytest.raises(InputError, match=r"--draft: .* sliding windows"):
        load_speakers([str(folders[0])], Workspace(tmp_path), GREEDY, Drafting(draft=str(folder)))


@pytest.mark.slow
def test_the_commands_as_processes(folders: list[Path], tmp_path: Path) -> None:
    names = [str(folder) for folder in folders]

    def rlhf(*arguments: str, typed: str = "") -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "flows.cli", *arguments, "--max-new-tokens", "4"]
        return subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, input=typed, timeout=200, check=False
        )

    refused = rlhf("generate", names[0], "--draft", names[2], "-p", "Hi")
    assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (2, "", 1)
    assert refused.stderr.startswith(f"--draft: {names[2]} has another vocabulary: ")
    drafted = rlhf("generate", names[0], "--draft", names[0], "-p", "Hi", "--json")
    assert drafted.returncode == 0, drafted.stderr
    assert "proposed tokens were accepted" in drafted.stderr
    assert drafted.stdout.count("\n") == 1
    typed = "Hi\n/nonsense\n/stats\n\n"
    talked = rlhf("chat", names[0], names[1], "--prompt-lookup", "2", "--temperature", "0", typed=typed)
    assert talked.returncode == 0, talked.stderr
    lines = talked.stdout.splitlines()
    assert sum("prompt tokens were read before" in line for line in lines) == 2
    assert sum("/nonsense is no command here" in line for line in lines) == 1
    assert sum(f"{name} " in line for name in names[:2] for line in lines) >= 2


def test_a_version_named_twice_is_refused(folders: list[Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is named twice"):
        chat_command([str(folders[0])] * 2, tmp_path, 0.0, 4)
