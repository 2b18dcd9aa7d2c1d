"""The settings of quantisation: a policy's weights in fewer bits, checked against the policy."""

from typing import ClassVar, Literal

from alignment.recipe.base import Count, Fraction, Name, NotNegative
from alignment.recipe.stages.spec import StageSettings, StageSpec

TORCHAO = ("int8", "int8_dynamic", "int4")
BITSANDBYTES = ("nf4", "bnb_int8")
GGUF = ("q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
Scheme = Literal["int8", "int8_dynamic", "int4", "nf4", "bnb_int8", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"]


class QuantiseStage(StageSettings):
    """A policy with quantised weights, read again from disk and held against the policy on held-out prompts.

    What it makes is a policy like any other: later stages sample from it, evaluate and gate it. None trains it.
    No scheme needs calibration data. An export that does not agree with the policy is not published.
    """

    spec: ClassVar[StageSpec] = StageSpec(
        run="alignment.stages.compression.quantise",
        makes=("policy",),
        reads={"model": "policy"},
        data=("prompts",),
        headline=("equal_greedy", "kl_per_token"),
    )
    kind: Literal["quantise"]
    """Quantisation."""
    model: Name
    """The policy whose weights are quantised: a stage, or `base`. An adapter is merged first."""
    scheme: Scheme
    """How weights are kept. torchao: `int8` (weights alone, one scale a row), `int8_dynamic` (activations too, as they
    come), `int4` (weights alone, in groups; on GPUs). bitsandbytes: `nf4` (Dettmers et al. 2023), `bnb_int8` (Dettmers
    et al. 2022). A GGUF file, in blocks of 32: `q8_0`, `q5_1`, `q5_0`, `q4_1`, `q4_0`."""
    min_equal: Fraction = 0.99
    """Share of greedy tokens in which the export, read again, has to equal the policy, unless its KL is within
    `max_kl`."""
    max_kl: NotNegative = 0.05
    """Mean KL divergence of the policy from the export, in nats a token, up to which the export is published although
    fewer greedy tokens are equal. 0.05: the next-token distributions then differ in total variation by 0.16 at most
    (Pinsker's inequality), on the mean."""
    limit: Count = 200
    """Held-out prompts that both are asked."""
    max_new_tokens: Count = 64
    """Tokens of the policy's greedy answer to each, on which both are compared."""
    batch_size: Count = 16
    """Answers sampled and compared together."""

    def evaluates(self) -> bool:
        """Whether it measures policies, on prompts that none was trained on."""
        return True

    def asks_held_out(self) -> bool:
        """Whether it asks held-out prompts of the recipe's data."""
        return True

    def quantises(self) -> str:
        """The scheme of the weights that it leaves."""
        return self.scheme
