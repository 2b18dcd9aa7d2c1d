"""Rejection sampling: of each prompt's responses, those with the highest reward become demonstrations.

It is the first half of rejection-sampling fine-tuning (Touvron et al. 2023, section 3.2.3); ``sft`` is the other. As
rounds, with the newest policy drawing, it is expert iteration.
"""

import math
from collections.abc import Sequence
from pathlib import Path

from alignment.data.jsonl import read_records, write_records
from alignment.digests import prompt_id
from alignment.errors import StageError
from alignment.recipe.stages.feedback.rejection_sampling import RejectionSamplingStage
from alignment.records import Demonstration, Message, Prompt, Response
from alignment.reward.factory import build_rewards
from alignment.reward.protocol import RewardInput, Rewards
from alignment.stage import Progress, StageContext, StageResult

BLOCK = 256  # responses that are scored between two reports


def run(settings: RejectionSamplingStage, context: StageContext) -> StageResult:
    """Writes ``demonstrations.jsonl``. Raises StageError where no response is good enough."""
    prompts: dict[str, Prompt] = {}
    responses: dict[tuple[str, str], Response] = {}
    count = cut = 0
    for name in settings.inputs()["responses"]:
        folder = Path(context.inputs[name].path)
        prompts |= {prompt.id: prompt for prompt in read_records(folder / "prompts.jsonl", Prompt)}
        for response in read_records(folder / "responses.jsonl", Response):
            count += 1
            cut += not response.finished
            if response.finished and response.text.strip():
                responses.setdefault((response.prompt_id, response.text), response)
    candidates = list(responses.values())
    rewards = _scored(build_rewards(settings.rewards, context), prompts, candidates, context)
    groups: dict[str, list[tuple[float, Response]]] = {}
    for response, reward in zip(candidates, rewards, strict=True):
        groups.setdefault(response.prompt_id, []).append((reward, response))
    floor = -math.inf if settings.above is None else settings.above
    chosen = [one for group in groups.values() for one in best(group, settings.keep, floor)]
    if not chosen:
        raise StageError(_why_none(settings, rewards))
    demonstrations = [_demonstration(prompts[response.prompt_id], response) for _reward, response in chosen]
    write_records(context.output / "demonstrations.jsonl", demonstrations)
    metrics = {
        "demonstrations": float(len(demonstrations)),
        "responses": float(count),
        "cut_off": float(cut),
        "repeated": float(count - cut - len(candidates)),
        "prompts": float(len(prompts)),
        "prompts_without": float(len(prompts) - len({response.prompt_id for _reward, response in chosen})),
        "reward": sum(reward for reward, _response in chosen) / len(chosen),
        "reward_of_all": sum(rewards) / len(rewards),
    }
    return StageResult("demonstrations", metrics)


def best(group: Sequence[tuple[float, Response]], keep: int, floor: float) -> list[tuple[float, Response]]:
    """The ``keep`` responses to a prompt with the highest reward above ``floor``, best first; of equals, the first."""
    ordered = sorted(group, key=lambda one: -one[0])  # sorting keeps the order of equals
    return [one for one in ordered if one[0] > floor][:keep]


def _scored(
    rewards: Rewards, prompts: dict[str, Prompt], responses: list[Response], context: StageContext
) -> list[float]:
    """The reward of each response."""
    found: list[float] = []
    with context.working():
        for begin in range(0, len(responses), BLOCK):
            block = responses[begin : begin + BLOCK]
            asked = [RewardInput(prompts[one.prompt_id], one.text, one.tokens, finished=one.finished) for one in block]
            found += rewards.total(rewards.score(asked))
            context.report(Progress(len(found), len(responses)))
    return found


def _demonstration(prompt: Prompt, response: Response) -> Demonstration:
    turns = (*prompt.messages, Message(role="assistant", content=response.text))
    return Demonstration(id=prompt_id(turns), messages=turns, kind=prompt.kind, source=response.model)


def _why_none(settings: RejectionSamplingStage, rewards: list[float]) -> str:
    if not rewards:
        return "every response was cut off or empty: raise sampling.max_new_tokens where they are drawn"
    return f"no response has a reward above {settings.above:g}; the best has {max(rewards):g}: lower above"
