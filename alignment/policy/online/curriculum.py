"""Which prompts a step asks: all in turn, or those less often that have little to teach (a curriculum by pass rate)."""

from collections.abc import Sequence

from alignment.policy.online.answers import choose_prompts
from alignment.recipe.stages.online import Difficulty
from alignment.rollouts.engine import PromptIds
from alignment.rollouts.seeds import derived_seed


class Curriculum:
    """Takes prompts from the stream in their turn, and passes over some whose measured pass rate is out of the band.

    ``rates`` are the pass rates by prompt, ``position`` where in the stream the next step begins: with the seed they
    are all that decides, so a checkpoint that holds them goes on with the same prompts. ``passed_over`` counts those of
    the newest step.
    """

    def __init__(self, prompts: Sequence[PromptIds], settings: Difficulty, *, seed: int) -> None:
        self.prompts, self.settings, self.seed = prompts, settings, seed
        self.rates: dict[str, float] = {}
        self.position = 0
        self.passed_over = 0

    def take(self, count: int) -> list[PromptIds]:
        """The next ``count`` prompts."""
        chosen: list[PromptIds] = []
        self.passed_over = 0
        while len(chosen) < count:
            (prompt,) = choose_prompts(self.prompts, self.position, 1, self.seed)
            if self._asked(prompt[0].id):
                chosen.append(prompt)
            else:
                self.passed_over += 1
            self.position += 1
        return chosen

    def measure(self, ids: Sequence[str], scores: Sequence[Sequence[float]]) -> None:
        """Takes in the ``scores`` of each prompt's newest group."""
        for name, group in zip(ids, scores, strict=True):
            self.rates[name] = sum(score >= self.settings.passes_at for score in group) / len(group)

    def _asked(self, name: str) -> bool:
        rate = self.rates.get(name)
        if rate is None or self.settings.low <= rate <= self.settings.high:
            return True
        return derived_seed(self.seed, "difficulty", self.position) < self.settings.chance * 2**32
