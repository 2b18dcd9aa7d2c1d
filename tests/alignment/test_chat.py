"""Text to tokens: what is trained on is what sampling sees, and the mask covers what the assistant says."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from alignment.chat import load_tokenizer, render_answer, render_example, render_prompt, template_digest
from alignment.errors import InputError
from alignment.records import Message

MakeModel = Callable[..., Path]
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="<|>"), min_size=1, max_size=20)


def turns(*contents: str) -> tuple[Message, ...]:
    """User and assistant in turn."""
    return tuple(Message(role=("user", "assistant")[i % 2], content=text) for i, text in enumerate(contents))


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Any:
    return load_tokenizer(tiny_model)


@pytest.fixture(scope="module")
def trapped(make_model: MakeModel, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tokenizer whose pad token is its EOS, with no other token to spare."""
    return load_tokenizer(make_model(tmp_path_factory.mktemp("trap") / "model", pad=None))


def test_the_rendered_text_is_the_templates(tokenizer: Any) -> None:
    ids, _mask = render_example(tokenizer, turns("What colour is the cat?", "Red."))
    assert tokenizer.decode(ids) == (
        "<|im_start|>user\nWhat colour is the cat?<|im_end|>\n<|im_start|>assistant\nRed.<|im_end|>"
    )
    assert tokenizer.decode(render_prompt(tokenizer, turns("Hi"))) == (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


@settings(max_examples=60, deadline=None)
@given(st.lists(TEXT, min_size=2, max_size=6).filter(lambda texts: len(texts) % 2 == 0))
def test_a_prompts_tokens_are_a_prefix_of_its_examples(tokenizer: Any, texts: list[str]) -> None:
    messages = turns(*texts)
    ids, mask = render_example(tokenizer, messages)
    assert len(ids) == len(mask)
    for turn in range(1, len(messages), 2):
        prompt = render_prompt(tokenizer, messages[:turn])
        assert ids[: len(prompt)] == prompt
        answer = render_answer(tokenizer, messages[:turn], messages[turn].content)
        assert ids[: len(prompt) + len(answer)] == prompt + answer
        assert all(mask[len(prompt) : len(prompt) + len(answer)])
        assert tokenizer.decode(answer) == f"{messages[turn].content}<|im_end|>"


@settings(max_examples=60, deadline=None)
@given(st.lists(TEXT, min_size=2, max_size=6).filter(lambda texts: len(texts) % 2 == 0))
def test_the_mask_covers_the_assistants_words_and_eos_and_nothing_else(tokenizer: Any, texts: list[str]) -> None:
    ids, mask = render_example(tokenizer, turns(*texts))
    kept = tokenizer.decode([token for token, keep in zip(ids, mask, strict=True) if keep])
    assert kept == "".join(f"{answer}<|im_end|>" for answer in texts[1::2])
    assert mask[-1]
    assert ids[-1] == tokenizer.eos_token_id


def test_a_border_merges_no_tokens(tokenizer: Any) -> None:
    """ "\\n" and what follows it would become one token if prompt and answer were tokenised in one piece."""
    answer = render_answer(tokenizer, turns("Who?"), " The cat")
    alone = tokenizer(" The cat<|im_end|>", add_special_tokens=False)["input_ids"]
    assert answer == alone


def test_the_mask_survives_a_pad_token_that_is_eos(trapped: Any) -> None:
    assert trapped.pad_token_id == trapped.eos_token_id
    ids, mask = render_example(trapped, turns("Who?", "The cat.", "And?", "A dog."))
    learned = [place for place, token in enumerate(ids) if token == trapped.eos_token_id and mask[place]]
    assert len(learned) == 2  # both of the assistant's, though the id is padding's
    assert ids.count(trapped.eos_token_id) == 4  # the user's turns end with it too, and are not learned


def test_a_pad_token_that_is_eos_is_replaced_where_there_is_one_to_spare(make_model: MakeModel, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = make_model(tmp_path / "model", pad="<|endoftext|>")
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|im_start|>", "<|endoftext|>"]})
    tokenizer.save_pretrained(folder)
    loaded = load_tokenizer(folder)
    assert loaded.pad_token == "<|endoftext|>"
    assert loaded.pad_token_id != loaded.eos_token_id
    assert len(loaded) == len(tokenizer)  # none was added: the model has no embedding for a new one


def test_a_pad_token_of_its_own_is_left_alone(tokenizer: Any) -> None:
    assert tokenizer.pad_token == "<pad>"
    assert tokenizer.padding_side == "right"


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        (None, "no chat template"),
        ("{% for m in messages %}<|im_start|>{{ m.content }}\n{% endfor %}", "assistant turn has no EOS"),
        ("{% for m in messages %}{{ m.content }<|im_end|>{% endfor %}", "the chat template fails"),
        ("{{ messages[0].content }}<|im_end|>", "drops or moves the assistant's answer"),
        ("{% for m in messages | reverse %}{{ m.content }}<|im_end|>{% endfor %}", "the chat template fails"),
    ],
)
def test_a_template_that_cannot_be_trained_with_is_a_fault(
    make_model: MakeModel, tmp_path: Path, template: str | None, problem: str
) -> None:
    folder = make_model(tmp_path / "model", template=template)
    with pytest.raises(InputError, match=problem) as caught:
        load_tokenizer(folder)
    assert len(caught.value.faults) == 1
    assert caught.value.faults[0].file == str(folder)


def test_a_template_file_replaces_the_models_own(make_model: MakeModel, tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model", template=None)
    own = tmp_path / "own.jinja"
    own.write_text(
        "{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    tokenizer = load_tokenizer(folder, own)
    ids, mask = render_example(tokenizer, turns("Hi", "Ho"))
    assert tokenizer.decode(ids) == "user: Hi<|im_end|>assistant: Ho<|im_end|>"
    assert tokenizer.decode([token for token, keep in zip(ids, mask, strict=True) if keep]) == "Ho<|im_end|>"


def test_the_digest_follows_what_shapes_a_conversation(tiny_model: Path, trapped: Any) -> None:
    tokenizer = load_tokenizer(tiny_model)
    first = template_digest(tokenizer)
    assert template_digest(load_tokenizer(tiny_model)) == first
    assert template_digest(trapped) != first  # another pad token
    tokenizer.chat_template = tokenizer.chat_template.replace("\n", "\n\n", 1)
    assert template_digest(tokenizer) != first


def test_the_digest_survives_saving(tiny_model: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tiny_model)
    tokenizer.save_pretrained(tmp_path)
    assert template_digest(load_tokenizer(tmp_path)) == template_digest(tokenizer)


def test_behind_turns_that_a_template_rewrites_the_last_answer_is_learned(tiny_model: Path) -> None:
    """Templates of reasoning models drop earlier thoughts once a later turn follows, and the model sees them so."""
    changed = load_tokenizer(tiny_model)
    changed.chat_template = (
        "{% for m in messages %}<|im_start|>{% if m.role == 'assistant' and not loop.last %}(cut){% else %}"
        "{{ m.content }}{% endif %}<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>{% endif %}"
    )
    ids, mask = render_example(changed, turns("a", "b", "c", "d"))
    said = ("a", "(cut)", "c", "d")
    assert changed.decode(ids) == "".join(f"<|im_start|>{text}<|im_end|>" for text in said)
    assert changed.decode([token for token, keep in zip(ids, mask, strict=True) if keep]) == "d<|im_end|>"


def test_a_template_that_writes_todays_date_says_the_same_on_every_day(tiny_model: Path, tmp_path: Path) -> None:
    own = str(load_tokenizer(tiny_model).chat_template)
    template = tmp_path / "dated.jinja"
    template.write_text("{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }}{% endif %}" + own)
    dated = load_tokenizer(tiny_model, template)
    messages = (Message(role="user", content="What colour is the cat?"),)
    assert dated.decode(render_prompt(dated, messages)).replace(" ", "").startswith("26Jul2024")
    dated.save_pretrained(tmp_path / "saved")  # whoever loads it elsewhere renders the same
    assert "26 Jul 2024" in str(AutoTokenizer.from_pretrained(tmp_path / "saved").chat_template)


def test_a_template_whose_date_cannot_be_fixed_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    template = tmp_path / "dated.jinja"
    own = str(load_tokenizer(tiny_model).chat_template)
    template.write_text("{% set form = '%Y' %}{{ strftime_now(form) }}" + own)
    with pytest.raises(InputError, match="writes the date of the day"):
        load_tokenizer(tiny_model, template)
