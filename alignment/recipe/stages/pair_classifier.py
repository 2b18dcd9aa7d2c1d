"""The settings of the pair classifier."""

from typing import ClassVar, Literal

from alignment.recipe.base import BASE, Count, Name, Positive
from alignment.recipe.stages.scoring import ScoreModelStage
from alignment.recipe.stages.spec import StageSpec


class PairClassifierStage(ScoreModelStage):
    """A discriminative judge: a classifier that reads a prompt and two answers and says which one people prefer.

    It is trained on both orders of every pair, so that the place of an answer teaches it nothing (cross-entropy on the
    log-odds that the first answer is better). The judge of kind ``pair_classifier`` asks it.
    """

    spec: ClassVar[StageSpec] = StageSpec(
        run="alignment.stages.pair_classifier",
        makes=("pair_classifier",),
        reads={"model": "policy", "preferences": "preferences"},
        sharing="batches",
        headline=("accuracy",),
    )
    kind: Literal["pair_classifier"]
    """A classifier of answer pairs."""
    model: Name = BASE
    """The model whose trunk it starts from: a stage, or `base`; not with `encoder`."""
    preferences: Name
    """The stage that makes the preference pairs."""
    learning_rate: Positive = 1e-4
    """Peak learning rate. 1e-4, for LoRA: that of the reward model."""
    max_answer_tokens: Count = 256
    """Tokens at which each answer is truncated, in training and when it judges."""

    def answers_shortened_to(self) -> int:
        """Tokens at which it cuts an answer before it reads both."""
        return self.max_answer_tokens
