"""The settings of the stage that makes a tokenizer."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from alignment.recipe.base import Count
from alignment.recipe.stages.spec import StageSettings, StageSpec

BYTES = 256  # the alphabet: whatever stands in a text, no token is unknown
Token = Annotated[str, Field(pattern=r"""^[^\s'"\\{}%]{1,64}$""")]


class TokenizerStage(StageSettings):
    """Makes a tokenizer of a corpus: byte-level BPE (Sennrich et al. 2016; Radford et al. 2019), with a chat template.

    The template is ChatML, which ``eos_token``, ``pad_token`` and the first of ``special_tokens`` belong to, unless
    ``model.chat_template`` names another one.
    """

    spec: ClassVar[StageSpec] = StageSpec(
        run="alignment.stages.pretraining.tokenizer",
        makes=("tokenizer",),
        data=("corpus",),
        computes=False,
        headline=("vocabulary", "bytes_per_token"),
    )
    kind: Literal["tokenizer"]
    """A tokenizer, made of all documents of `data.corpus`."""
    vocabulary: Annotated[int, Field(ge=BYTES + 3, le=1_000_000)] = 8192
    """Tokens: the 256 bytes, merges of them, and the special ones. Fewer where the corpus gives no more merges."""
    min_frequency: Count = 2
    """How often a pair of tokens stands in the corpus before it is merged."""
    eos_token: Token = "<|im_end|>"
    """The token that ends a turn, and a document of the corpus."""
    pad_token: Token = "<|endoftext|>"
    """The token that fills up the rows of a batch, where stages need it."""
    special_tokens: Annotated[tuple[Token, ...], Field(min_length=1)] = ("<|im_start|>",)
    """Further tokens that are never split or merged, such as those of the chat template; the first begins a turn."""

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        tokens = self.all_special()
        if twice := next((token for token in tokens if tokens.count(token) > 1), None):
            raise ValueError(f"the special token {twice!r} stands twice")
        if self.vocabulary < BYTES + len(tokens):
            raise ValueError(f"a vocabulary of {self.vocabulary} has no room for 256 bytes and {len(tokens)} tokens")
        return self

    def all_special(self) -> list[str]:
        """Every special token, in the order of their numbers."""
        return [self.pad_token, *self.special_tokens, self.eos_token]
