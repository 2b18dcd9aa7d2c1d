"""How a conversation is written for an encoder (BERT, RoBERTa, ModernBERT), which has a tokenizer and no chat template.

One rule, made of what the tokenizer itself writes around a pair of texts (``[CLS] a [SEP] b [SEP]``,
``<s> a </s></s> b </s>``):

* What comes before the answer is one segment for each message, ``role: text``. Segments, the answer's last, are parted
  by what the tokenizer writes between a pair's texts. With one message before it, that is ``tokenizer("user: …", …)``.
* The answer is its text alone. One that ended has behind it what the tokenizer writes after a pair; one that was cut
  off at its longest length ends with its last word.
* The tokenizer alone writes its control tokens. One that stands in somebody's text is tokenised as its letters.
* What is longer than ``tokenizer.model_max_length`` loses tokens of its prompt, from the left and behind the first
  control token, so that the answer is whole. An answer that does not fit by itself is read up to there, as one that
  was cut off; training leaves such pairs out.
"""

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from transformers import PreTrainedTokenizerBase

from alignment.control_tokens import cover, token_ids, uncovered_ids
from alignment.records import Message

_log = logging.getLogger(__name__)


class PairFrame(NamedTuple):
    """The token ids that a tokenizer writes before, between and after the two texts of a pair."""

    before: list[int]
    between: list[int]
    after: list[int]

    @property
    def shortest(self) -> int:
        """Tokens before an answer whose prompt is cut away."""
        return len(self.before) + len(self.between)


_FRAMES: WeakKeyDictionary[PreTrainedTokenizerBase, PairFrame | None] = WeakKeyDictionary()


def pair_frame(tokenizer: PreTrainedTokenizerBase) -> PairFrame | None:
    """What a tokenizer writes around a pair; None where it writes nothing before, between or after its texts."""
    if tokenizer not in _FRAMES:
        written = tokenizer("a", "a", return_special_tokens_mask=True)
        runs: list[list[int]] = [[]]
        inside = False
        for token, special in zip(written["input_ids"], written["special_tokens_mask"], strict=True):
            if special and inside:
                runs.append([])
            if special:
                runs[-1].append(token)
            inside = not special
        whole = len(runs) == 3 and all(runs)
        _FRAMES[tokenizer] = PairFrame(*runs) if whole else None
    return _FRAMES[tokenizer]


def reads_as_encoder(tokenizer: Any) -> bool:
    """Whether conversations are written for this tokenizer by the rule above: it has no template that writes them."""
    return not tokenizer.chat_template and pair_frame(tokenizer) is not None


def encoder_prompt(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[int]:
    """Token ids of a conversation that waits for the assistant, up to where the answer's segment begins."""
    frame = _frame(tokenizer)
    ids = list(frame.before)
    for message in messages:
        ids += _text_ids(tokenizer, f"{message.role}: {message.content}") + frame.between
    return ids


def encoder_answer(tokenizer: PreTrainedTokenizerBase, answer: str, *, finished: bool) -> list[int]:
    """Token ids of an answer, which follow :func:`encoder_prompt`."""
    return _text_ids(tokenizer, answer) + (_frame(tokenizer).after if finished else [])


def encoder_row(tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int], answer: Sequence[int]) -> list[int]:
    """A prompt and an answer within ``tokenizer.model_max_length`` tokens, the prompt cut from the left.

    ``prompt`` and ``answer`` are token ids of :func:`encoder_prompt` and :func:`encoder_answer`.
    """
    frame, longest = _frame(tokenizer), tokenizer.model_max_length
    most = longest - frame.shortest
    if len(answer) > most:
        _log.warning("an answer of %d tokens is read up to the encoder's %d", len(answer), longest)
        return [*frame.before, *frame.between, *answer[: max(0, most)]][:longest]
    kept = list(prompt[len(frame.before) :])
    return [*frame.before, *kept[max(0, len(prompt) + len(answer) - longest) :], *answer]


def encoder_comparison(
    tokenizer: PreTrainedTokenizerBase, question: str, answers: tuple[str, str], max_answer_tokens: int
) -> list[int]:
    """Token ids of a question and two answers to it, a segment each, within ``tokenizer.model_max_length`` tokens.

    Each answer is cut after ``max_answer_tokens``, or after half of what can be read where that is less; the question
    from the left, to what is left.
    """
    frame = _frame(tokenizer)
    around = frame.shortest + len(frame.between) + len(frame.after)
    longest = max(1, min(max_answer_tokens, (tokenizer.model_max_length - around) // 2))
    first, second = (_text_ids(tokenizer, answer.strip())[:longest] for answer in answers)
    room = tokenizer.model_max_length - around - len(first) - len(second)
    asked = _text_ids(tokenizer, question)
    kept = asked[max(0, len(asked) - max(0, room)) :]
    return [*frame.before, *kept, *frame.between, *first, *frame.between, *second, *frame.after]


def shortest_prompt(tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int]) -> int:
    """Tokens that are left at the least of a prompt that is cut."""
    return min(len(prompt), _frame(tokenizer).shortest)


def _frame(tokenizer: PreTrainedTokenizerBase) -> PairFrame:
    frame = pair_frame(tokenizer)
    if frame is None:
        raise ValueError("the tokenizer writes no control tokens around a pair of texts")
    return frame


def _text_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    (covered,), written = cover(tokenizer, [Message(role="user", content=text)])
    return uncovered_ids(tokenizer, covered.content, written) if written else token_ids(tokenizer, text)
