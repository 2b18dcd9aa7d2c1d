"""Best of n: draw several candidates, keep the one that a reward prefers (Stiennon et al. 2020, section 3.4).

It is sampling and scoring alone, no training, and the baseline that any trained policy has to beat: its KL from the
policy is at most ``log n - (n - 1) / n`` nats (Beirami et al. 2024), however far it raises the reward.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from alignment.chat import knows_template, render_response
from alignment.errors import StageError
from alignment.models.reward_model import load_reward_model
from alignment.records import Prompt, Sampling
from alignment.rollouts.engine import Completion, Engine
from alignment.rollouts.seeds import derived_seed
from alignment.stage import StageContext

Score: TypeAlias = Callable[[Sequence[Sequence[int]], Sequence[Completion]], Sequence[float]]
"""Scores completions, given the prompt (token ids) of each, in their order."""
AnswerScore: TypeAlias = Callable[[Sequence[Prompt], Sequence[Completion]], Sequence[float]]
"""The same, given the prompt itself."""


def best_of(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    *,
    candidates: int,
    score: Score,
    sampling: Sampling,
    seeds: Sequence[int],
    per_prompt: int = 1,
) -> list[list[Completion]]:
    """``per_prompt`` completions of every prompt, each the best of ``candidates``; of equals, the first.

    ``seeds`` holds one for each completion that is kept, prompt after prompt: the first candidate is drawn with it, the
    others with seeds derived from it. So one candidate is plain sampling, and more candidates are never worse.
    """
    drawn = engine.generate(
        prompts,
        sampling=sampling,
        seeds=[_candidate_seed(seed, index) for seed in seeds for index in range(candidates)],
        per_prompt=per_prompt * candidates,
    )
    flat = [completion for group in drawn for completion in group]
    scores = score([prompt for prompt, group in zip(prompts, drawn, strict=True) for _ in group], flat)
    kept = []
    for start in range(0, len(flat), candidates):
        place = max(range(start, start + candidates), key=lambda place: scores[place])  # the first of equals
        kept.append(flat[place])
    return [kept[start : start + per_prompt] for start in range(0, len(kept), per_prompt)]


def score_of(score: AnswerScore, prompts: Sequence[Prompt], ids: Sequence[Sequence[int]]) -> Score:
    """``score`` where it is told the tokens of prompts: ``ids`` are those of ``prompts``, in their order."""
    known = {tuple(one): prompt for one, prompt in zip(ids, prompts, strict=True)}
    return lambda asked, completions: score([known[tuple(one)] for one in asked], completions)


def reward_model_score(
    context: StageContext, reward: str, model: str, tokenizer: Any, *, batch_size: int = 32
) -> AnswerScore:
    """The score by the reward model that the stage ``reward`` made, of what ``model`` answers with ``tokenizer``.

    Raises StageError where the reward model was trained with another chat template.
    """
    from alignment.models.reward_model import score  # brings TRL along, which sampling does not need

    judge, its_tokenizer = load_reward_model(context.inputs[reward], context.run)
    if not knows_template(tokenizer, its_tokenizer):
        raise StageError(
            f"{reward} was trained with another chat template than {model} answers with; "
            "train the reward model from the same base"
        )

    def scored(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float]:
        whole = [
            render_response(its_tokenizer, prompt.messages, completion.text, finished=completion.finished)
            for prompt, completion in zip(prompts, completions, strict=True)
        ]
        return score(judge, its_tokenizer, whole, batch_size=batch_size)

    return scored


def _candidate_seed(seed: int, index: int) -> int:
    return seed if index == 0 else derived_seed(seed, "candidate", index)
