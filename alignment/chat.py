"""The chat template, EOS and padding rules: the one place where text becomes tokens.

Every stage tokenises through here, so that a policy is trained on exactly what it will see when it answers. Rules:

* A conversation is tokenised in segments: what comes before an assistant's answer (generation prompt included), then
  the answer up to and including its EOS. A prompt's tokens are thus always a prefix of its example's tokens, and no
  token merges across the border, which would train on a context that sampling never produces.
* A mask marks the tokens to learn from by position, never by token id; so a model whose pad token equals its EOS
  (SmolLM2 and many others) still learns to stop. Where the vocabulary has a spare special token, it becomes the pad
  token, because sequence classification finds the end of a text by its pad token's id.
* Control tokens are the template's alone to write. Where a message's own text holds one (an answer, a judge's words,
  what somebody typed), it is tokenised as the letters that it is written with: no text ends a turn or begins one.

* The token that ends an assistant's turn is EOS, whatever the tokenizer's files say (:mod:`alignment.turn_end`).
* What a template writes at the end to have the assistant begin is a prefix of the answer, also where it writes another
  beginning once the answer is there (DeepSeek, Nemotron): the model is trained behind what it will answer behind.
* Where a template writes earlier turns otherwise once later ones follow (Qwen 3, GPT-OSS), a conversation's last answer
  is learned, behind the earlier turns as the model will then see them; the earlier answers are not.

An answer that was cut off at its longest length has no EOS, wherever it is trained on, scored or compared:
:func:`render_response` makes its tokens for everybody.

The template's digest travels with every model; stages compare it. A reward model or pair classifier that is an encoder
has a tokenizer of its own and no template: what it reads is written by :mod:`alignment.text_rules.encoder`. An
encoder-decoder has none either, and is given one (:mod:`alignment.text_rules.encoder_decoder`).
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from alignment.control_tokens import COVERS, control_pattern, cover, forget_pattern, token_ids, uncovered_ids
from alignment.errors import Fault, InputError
from alignment.records import Message, PreferencePair
from alignment.text_rules.encoder import encoder_answer, encoder_prompt, encoder_row, reads_as_encoder
from alignment.text_rules.encoder_decoder import write_by_rule
from alignment.turn_end import adopt_turn_end, text_between_turns

DATE = datetime(2024, 7, 26, tzinfo=UTC)
"""The date in prompts of templates that write today's (Llama 3 and others): fixed in the template, which is saved with
every model, so that one conversation has the same tokens on every day and a stage's key says all that decides its
artifact. It is the day that Llama 3's own template names where it is told none."""
_NOW = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")
_OPENED = re.compile(r"(<\w+>)\s*$")
_TAGS = re.compile(r"<[^<>]*>")
PROBE = (Message(role="user", content="one"), Message(role="assistant", content="two"))


def load_tokenizer(folder: str | Path, chat_template: str | Path | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder, with a pad token that is not its EOS where there is one to spare.

    ``chat_template`` is a Jinja file that replaces the model's own. Raises InputError where the template or the EOS
    that everything else relies on is missing.
    """
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    if chat_template is not None:
        tokenizer.chat_template = Path(chat_template).read_text("utf-8")
    template_of_encoder_decoder(tokenizer, folder)
    if isinstance(tokenizer.chat_template, str):
        tokenizer.chat_template = _with_fixed_date(tokenizer.chat_template)
    end_turns(tokenizer, folder)
    faults = template_faults(tokenizer, str(folder))
    if faults:
        raise InputError(faults)
    if tokenizer.pad_token is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        tokenizer.pad_token = _spare_token(tokenizer)
    tokenizer.padding_side = "right"  # samplers that need the left side pad by themselves
    return tokenizer


def end_turns(tokenizer: PreTrainedTokenizerBase, folder: str | Path) -> None:
    """Makes the token that ends an assistant's turn the EOS of a tokenizer that was read from ``folder``."""
    adopt_turn_end(tokenizer, Path(folder), control_pattern(tokenizer))
    forget_pattern(tokenizer)


def template_of_encoder_decoder(tokenizer: PreTrainedTokenizerBase, folder: str | Path) -> None:
    """Gives the tokenizer of an encoder-decoder in ``folder`` the template of its rule, where it has none."""
    if tokenizer.chat_template or not (Path(folder) / "config.json").is_file():
        return
    try:
        config = AutoConfig.from_pretrained(str(folder))
    except (OSError, ValueError):  # of no model that transformers knows, which its loading says
        return
    if config.is_encoder_decoder:
        write_by_rule(tokenizer)


def _with_fixed_date(template: str) -> str:
    """A template in which each ``strftime_now("format")`` is :data:`DATE` in that format."""
    return _NOW.sub(lambda call: repr(DATE.strftime(call[2])), template)


def _spare_token(tokenizer: PreTrainedTokenizerBase) -> str:
    """A special token that no text and no template uses, else EOS."""
    rendered = _text(tokenizer, PROBE)
    for token in sorted(
        tokenizer.all_special_tokens, key=lambda token: ("pad" not in token, "end" not in token, token)
    ):
        if token not in rendered and token != tokenizer.eos_token:
            return str(token)
    return str(tokenizer.eos_token)


def template_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 of everything that shapes a rendered conversation: template, EOS, BOS and pad token."""
    parts = (tokenizer.chat_template, tokenizer.eos_token, tokenizer.bos_token, tokenizer.pad_token)
    return hashlib.sha256("\0".join(str(part) for part in parts).encode()).hexdigest()


def knows_template(policy: PreTrainedTokenizerBase, scoring: PreTrainedTokenizerBase) -> bool:
    """Whether a scoring model's tokenizer shapes conversations as the policy's does; an encoder's has its own rule."""
    return reads_as_encoder(scoring) or template_digest(policy) == template_digest(scoring)


def render_prompt(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[int]:
    """Token ids of a conversation that waits for the assistant, generation prompt included."""
    if reads_as_encoder(tokenizer):
        return encoder_prompt(tokenizer, messages)
    ids, _mask = _render(tokenizer, messages, add_generation_prompt=True)
    return ids


def render_example(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> tuple[list[int], list[bool]]:
    """Token ids of a conversation that ends with the assistant's EOS, and the mask of the assistant's tokens.

    The mask is True for every assistant turn's content and EOS. What a template writes after the last EOS is left out.
    """
    return _render(tokenizer, messages, add_generation_prompt=False)


def render_answer(
    tokenizer: PreTrainedTokenizerBase, prompt: Sequence[Message], answer: str, *, finished: bool = True
) -> list[int]:
    """Token ids of one answer to ``prompt``; they follow ``render_prompt(prompt)`` in the example.

    A ``finished`` answer ends with EOS. One that was cut off ends with its last word: neither EOS nor anything else
    that the template writes after an answer.
    """
    if reads_as_encoder(tokenizer):
        return encoder_answer(tokenizer, answer, finished=finished)
    whole = [*prompt, Message(role="assistant", content=answer)]
    ids, _mask = _render(tokenizer, whole, add_generation_prompt=False, finished=finished)
    return ids[len(render_prompt(tokenizer, prompt)) :]


def render_response(
    tokenizer: PreTrainedTokenizerBase, prompt: Sequence[Message], answer: str, *, finished: bool
) -> list[int]:
    """Token ids of a prompt and one answer to it (:func:`render_answer`): what every model that scores it reads."""
    rendered = render_prompt(tokenizer, prompt), render_answer(tokenizer, prompt, answer, finished=finished)
    return joined(tokenizer, *rendered)


def joined(tokenizer: PreTrainedTokenizerBase, prompt: list[int], answer: list[int]) -> list[int]:
    """The row of a prompt's token ids and an answer's; an encoder's prompt is cut where the row would be too long."""
    return encoder_row(tokenizer, prompt, answer) if reads_as_encoder(tokenizer) else prompt + answer


def render_conversation(tokenizer: PreTrainedTokenizerBase, prompt: Sequence[Message], answer: str) -> list[int]:
    """Token ids of a prompt and a whole answer as the template writes them, to the end of what it writes after it.

    It is what a model from outside was trained to read; our own read no further than EOS (:func:`render_response`).
    """
    covered, written = cover(tokenizer, [*prompt, Message(role="assistant", content=answer)])
    text = _text(tokenizer, covered, add_generation_prompt=False)
    return uncovered_ids(tokenizer, text, written) if written else token_ids(tokenizer, text)


def render_observation(
    tokenizer: PreTrainedTokenizerBase, prompt: Sequence[Message], observation: Message
) -> list[int]:
    """Token ids of an ``observation`` behind an answer to ``prompt`` that has ended: what the template writes from the
    answer's EOS to the beginning of the next answer.

    They are appended to the tokens of the conversation, none of which is rendered again: an answer's own tokens are
    kept as they were drawn, however its text would be tokenised.

    Raises ValueError where the template does not write them so, and whatever the template raises.
    """
    covered, written = cover(tokenizer, [*prompt, observation])
    whole = "".join(message.content for message in covered)
    said = next(chr(code) for code in reversed(COVERS) if chr(code) not in whole)
    turns = [*covered[:-1], Message(role="assistant", content=said), covered[-1]]
    text, eos = _text(tokenizer, turns, add_generation_prompt=True), str(tokenizer.eos_token)
    _before, answered, following = text.rpartition(said)
    _rest, ended, following = following.partition(eos)
    if not (answered and ended):
        raise ValueError(
            f"the chat template does not end an answer with {eos} before a message of the {turns[-1].role}"
        )
    if turns[-1].content.strip() not in following:
        raise ValueError(f"the chat template leaves out a part of a message of the {turns[-1].role}")
    return uncovered_ids(tokenizer, following, written) if written else token_ids(tokenizer, following)


class PairTokens(NamedTuple):
    """Token ids of a preference pair: the prompt, and each answer after it."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]


def render_pair(tokenizer: PreTrainedTokenizerBase, pair: PreferencePair) -> PairTokens:
    """A pair's tokens: :func:`render_prompt`, and :func:`render_answer` of both its answers."""
    sides = ((pair.chosen, pair.chosen_finished), (pair.rejected, pair.rejected_finished))
    answers = [render_answer(tokenizer, pair.prompt, text, finished=finished) for text, finished in sides]
    return PairTokens(render_prompt(tokenizer, pair.prompt), *answers)


def template_faults(tokenizer: PreTrainedTokenizerBase, file: str | None = None) -> list[Fault]:
    """What makes a tokenizer unfit for conversations; empty where it is fit."""
    if tokenizer.eos_token is None:
        return [Fault("the tokenizer has no EOS token", "use a model whose tokenizer names one", file)]
    if not tokenizer.chat_template:
        remedy = "use a chat model, or set model.chat_template to a Jinja file"
        return [Fault("the model has no chat template", remedy, file)]
    if "strftime_now(" in str(tokenizer.chat_template):
        problem = "the chat template writes the date of the day in a format that it computes"
        return [Fault(problem, "write the format as text, such as strftime_now('%d %b %Y')", file)]
    try:
        before, answer = _segments(tokenizer, PROBE, 1)
    except Exception as error:
        return [Fault(f"the chat template fails: {error}", "mend the template", file)]
    if "two" not in answer or "two" in before:
        return [Fault("the chat template drops or moves the assistant's answer", "mend the template", file)]
    if str(tokenizer.eos_token) not in answer:
        remedy = (
            f"end the assistant's turn in the template with {tokenizer.eos_token!r}, or the model never learns to stop"
        )
        return [Fault("the chat template's assistant turn has no EOS", remedy, file)]
    return _generation_prompt_faults(tokenizer, before, answer, file)


def _generation_prompt_faults(
    tokenizer: PreTrainedTokenizerBase, before: str, answer: str, file: str | None
) -> list[Fault]:
    """A template that ignores ``add_generation_prompt`` although a header stands before the assistant's words.

    The header would be learned as part of the answer, and sampling would begin without it.
    """
    without = _text(tokenizer, PROBE[:1], add_generation_prompt=False)
    header = answer[: answer.index("two")].strip()
    if before != without or not header:
        return []
    problem = f"the chat template ignores add_generation_prompt, and writes {header!r} before the assistant's words"
    remedy = "have it write that header at the end where add_generation_prompt is set"
    return [Fault(problem, remedy, file)]


def _dicts(messages: Sequence[Message]) -> list[dict[str, str]]:
    return [message.model_dump() for message in messages]


def _segments(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], turn: int) -> tuple[str, str]:
    """The rendered text before the assistant's message number ``turn``, and that message's own text with its EOS."""
    before = _text(tokenizer, messages[:turn], add_generation_prompt=True)
    whole = _text(tokenizer, messages[: turn + 1], add_generation_prompt=False)
    if whole.startswith(before):
        return before, _ended(tokenizer, whole[len(before) :], messages[turn].content)
    prompt = _text(tokenizer, messages[:turn], add_generation_prompt=False)
    if not (whole.startswith(prompt) and before.startswith(prompt) and before != prompt):
        raise ValueError("the rendered prompt is not a prefix of the rendered conversation")
    # The template has the answer begin in one way and shows it in another: the way in which it begins is kept.
    said, shown = messages[turn].content, _text(tokenizer, [*messages[:turn], PROBE[-1]], add_generation_prompt=False)
    if not _differ_in_tags(before[len(prompt) :], shown[len(prompt) :].partition(PROBE[-1].content)[0]):
        raise ValueError("the rendered prompt is not a prefix of the rendered conversation")
    ending = shown[shown.rindex(PROBE[-1].content) + len(PROBE[-1].content) :]
    return before, _ended(tokenizer, _unrepeated(before[len(prompt) :], said) + ending, said)


def _differ_in_tags(beginning: str, header: str) -> bool:
    """Whether two beginnings of an answer differ in no word, but in the tags of a thought such as ``<think>``."""
    pairs = enumerate(zip(beginning, header, strict=False))
    same = next((place for place, (one, other) in pairs if one != other), min(len(beginning), len(header)))
    opened, closed = beginning.rfind("<", 0, same), beginning.rfind(">", 0, same)
    start = opened if opened > closed else same
    return not any(_TAGS.sub("", text[start:]).strip() for text in (beginning, header))


def _ended(tokenizer: PreTrainedTokenizerBase, answer: str, said: str) -> str:
    """An answer with the EOS behind it that a template leaves to the next turn's beginning."""
    eos = str(tokenizer.eos_token)
    if eos in answer or not said.strip() or not answer.rstrip().endswith(said.strip()):
        return answer
    following = text_between_turns(tokenizer)
    return answer + eos if following is not None and following.startswith(eos) else answer


def _unrepeated(beginning: str, said: str) -> str:
    """What is said without the opening tag, such as ``<think>``, that the ``beginning`` before it ends with."""
    opened = _OPENED.search(beginning)
    if opened is None or not said.lstrip().startswith(opened[1]):
        return said
    return said.lstrip().removeprefix(opened[1]).lstrip("\n")


def _ending(tokenizer: PreTrainedTokenizerBase, prompt: Sequence[Message]) -> str:
    """What the template writes after an answer to ``prompt``, up to and including its EOS."""
    _before, answer = _segments(tokenizer, [*prompt, PROBE[-1]], len(prompt))
    eos, said = str(tokenizer.eos_token), PROBE[-1].content
    return answer[answer.rindex(said) + len(said) : _end(answer, said, eos)]


def _end(answer: str, said: str, eos: str) -> int:
    """Where an answer's first EOS behind what is said in it ends; 0 where there is none."""
    place = answer.find(said.strip())  # a template may have left out a part of it, such as a thought
    found = answer.find(eos, 0 if place < 0 else place + len(said.strip()))
    return 0 if found < 0 else found + len(eos)


def _text(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], **options: Any) -> str:
    return str(tokenizer.apply_chat_template(_dicts(messages), tokenize=False, **options))


def _render(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool,
    finished: bool = True,
) -> tuple[list[int], list[bool]]:
    ids: list[int] = []
    mask: list[bool] = []
    covered, written = cover(tokenizer, messages)
    pieces = rendered_pieces(tokenizer, covered, add_generation_prompt=add_generation_prompt, finished=finished)
    for text, keep in pieces:
        tokens = token_ids(tokenizer, text) if not written else uncovered_ids(tokenizer, text, written)
        ids.extend(tokens)
        mask.extend([keep] * len(tokens))
    return ids, mask


def rendered_pieces(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool,
    finished: bool = True,
) -> Iterator[tuple[str, bool]]:
    """A conversation's text in the pieces that are tokenised apart, each with whether the assistant says it.

    Where it is not ``finished``, the last turn ends with the assistant's last word.

    Raises ValueError where a turn has no end, and whatever the template raises.
    """
    done = ""  # the rendered text that is tokenised already
    eos = str(tokenizer.eos_token)
    for turn, (before, answer) in _turns(tokenizer, messages, add_generation_prompt=add_generation_prompt):
        if eos not in answer:
            raise ValueError(f"the chat template ends an assistant's turn without {eos}")
        said = answer[: _end(answer, messages[turn].content, eos)]
        if not finished and turn == len(messages) - 1:
            said = said.removesuffix(_ending(tokenizer, messages[:turn])).removesuffix(eos)
        yield before[len(done) :], False
        yield said, True
        done = before + said
    if add_generation_prompt:
        yield _text(tokenizer, messages, add_generation_prompt=True)[len(done) :], False


def _turns(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, add_generation_prompt: bool
) -> list[tuple[int, tuple[str, str]]]:
    """The assistant's turns that are learned: (place, what stands before it and its text).

    All of them where each is written the same once later turns follow; else the last, or none where a conversation
    waits for another answer.
    """
    eos = str(tokenizer.eos_token)
    turns = [
        (turn, _segments(tokenizer, messages, turn))
        for turn, message in enumerate(messages)
        if message.role == "assistant"
    ]
    later = [before for _turn, (before, _answer) in turns[1:]]
    if add_generation_prompt:
        later.append(_text(tokenizer, messages, add_generation_prompt=True))
    written = [before + answer[: _end(answer, messages[turn].content, eos)] for turn, (before, answer) in turns]
    if all(text.startswith(done) for done, text in zip(written, later, strict=False)):
        return turns
    return [] if add_generation_prompt else turns[-1:]
