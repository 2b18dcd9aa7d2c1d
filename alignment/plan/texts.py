"""How many tokens a recipe's texts have, by the model's own tokenizer and template."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from alignment.chat import render_answer, render_example, render_pair, render_prompt
from alignment.checks.data import RecipeData
from alignment.data.split import opening, split_by_digest
from alignment.training.pretraining.rows import encode_document

SAMPLE = 2000  # rows of a file that are tokenised; of longer files, as many, evenly spread
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Pair:
    """The lengths of a preference pair in tokens, the EOS of whole answers included."""

    prompt: int
    chosen: int
    rejected: int


@dataclass(frozen=True, slots=True)
class TokenLengths:
    """The lengths of some rows: of ``count`` rows, those that were tokenised."""

    count: int
    lengths: tuple[Any, ...]  # int, or (whole, answer), (prompt, answer) of thumbs, or Pair

    @property
    def scale(self) -> float:
        """How many rows each measured one stands for."""
        return self.count / len(self.lengths) if self.lengths else 0.0


@dataclass(frozen=True, slots=True)
class Texts:
    """A recipe's texts.

    ``held_out_prompts`` are the share of the prompts, ``own_held_out_prompts`` those of a file of their own.
    ``beginning`` is how many tokens every prompt starts with alike: the template's own.
    ``put_prompts`` are those of each form, by the benchmark's stage.
    """

    prompts: TokenLengths = TokenLengths(0, ())
    held_out_prompts: TokenLengths = TokenLengths(0, ())
    own_held_out_prompts: TokenLengths | None = None
    demonstrations: TokenLengths = TokenLengths(0, ())
    feedback: TokenLengths = TokenLengths(0, ())
    corpus: TokenLengths = TokenLengths(0, ())
    pairs: TokenLengths = TokenLengths(0, ())
    held_out_pairs: TokenLengths = TokenLengths(0, ())
    beginning: int = 0
    put_prompts: Mapping[str, Mapping[str, TokenLengths]] = field(default_factory=dict)

    @property
    def asked_prompts(self) -> TokenLengths:
        """The held-out prompts that evaluations ask."""
        return self.held_out_prompts if self.own_held_out_prompts is None else self.own_held_out_prompts


def measure_texts(data: RecipeData, held_out: float, tokenizer: Any) -> Texts:
    """Tokenises a recipe's data, split as its stages split it."""
    prompts = split_by_digest([prompt for _row, prompt in data.prompts], held_out, key=opening)
    pairs = split_by_digest(data.preferences.pairs, held_out, key=opening)

    def prompt(one: Any) -> int:
        return len(render_prompt(tokenizer, one.messages))

    def demonstration(one: Any) -> tuple[int, int]:
        ids, answer_mask = render_example(tokenizer, one.messages)
        return len(ids), sum(answer_mask)

    def pair(one: Any) -> Pair:
        return Pair(*map(len, render_pair(tokenizer, one)))

    def marked(one: Any) -> tuple[int, int]:
        answer = render_answer(tokenizer, one.prompt, one.completion, finished=one.finished)
        prompt_tokens = len(render_prompt(tokenizer, one.prompt))
        return prompt_tokens, len(answer)

    own = [one for _row, one in data.held_out_prompts]
    demonstrations = [one for _row, one in data.demonstrations]
    openings = [one.messages for one in prompts[0][:50]] + [one.prompt for one in pairs[0][:50]]
    feedback = [one for _row, one in data.feedback]
    openings += [one.prompt for one in feedback[:50]]
    openings += [one.messages[:-1] for one in demonstrations[:50]]
    return Texts(
        prompts=_measured(prompts[0], prompt),
        held_out_prompts=_measured(prompts[1], prompt),
        own_held_out_prompts=_measured(own, prompt) if own else None,
        demonstrations=_measured(demonstrations, demonstration),
        feedback=_measured(feedback, marked),
        corpus=_measured(data.corpus, lambda document: len(encode_document(tokenizer, document))),
        pairs=_measured(pairs[0], pair),
        held_out_pairs=_measured(pairs[1], pair),
        put_prompts={
            stage: {form: _measured(prompts, prompt) for form, prompts in forms.items()}
            for stage, forms in data.put_prompts.items()
        },
        beginning=_common([render_prompt(tokenizer, messages) for messages in openings]),
    )


def _common(rows: list[list[int]]) -> int:
    """How many tokens all rows begin with alike: as many as the least and the greatest of them do."""
    if not rows:
        return 0
    both = list(zip(min(rows), max(rows), strict=False))
    return next((place for place, (left, right) in enumerate(both) if left != right), len(both))


def _measured(rows: Sequence[T], length: Callable[[T], Any]) -> TokenLengths:
    stride = -(-len(rows) // SAMPLE) or 1
    return TokenLengths(len(rows), tuple(length(row) for row in rows[::stride]))
