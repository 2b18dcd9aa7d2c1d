"""An encoder's reward model wherever a reward stage's is asked: each gives the plain model's score of the same text."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from alignment.chat import load_tokenizer
from alignment.errors import StageError
from alignment.judges.reward_model_judge import RewardJudge
from alignment.models.encoders.architecture import output_layer
from alignment.models.encoders.model import new_encoder
from alignment.models.reward_model import load_reward_model
from alignment.recipe.judges import RewardModelJudge
from alignment.recipe.rewards.reward_models import EnsembleReward, ModelReward
from alignment.records import Artifact, Comparison, Message, Prompt, Response, Sampling
from alignment.reward.factory import build_rewards
from alignment.reward.protocol import RewardInput
from alignment.rollouts.best_of_n import reward_model_score
from alignment.rollouts.engine import Completion
from alignment.stage import StageContext
from alignment.stages.evaluate import scorer
from alignment.stages.ppo import run as run_ppo
from flows.pipeline.uncertainty_sampling import _scores
from tests.tiny_encoders import write_encoder

MakeContext = Callable[..., StageContext]
ASKED = Prompt(id="1", messages=(Message(role="user", content="What colour is the cat?"),))
ANSWERS = ("It is red.", "Blue.", "Who saw it today?")


@pytest.fixture(scope="module")
def made(
    base: Artifact, preferences: Artifact, make_context: MakeContext, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Artifact, list[float]]:
    """A reward model with a drawn head, and the plain classes' scores of the three answers."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    root = tmp_path_factory.mktemp("use")
    context = make_context(root / "run", "reward", {"base": base, "preferences": preferences})
    model, tokenizer = new_encoder(write_encoder(root / "bert", "bert"), context.run, 96)
    with torch.no_grad():
        output_layer(model).weight.normal_(generator=torch.Generator().manual_seed(2))
    model.save_pretrained(root / "reward")
    tokenizer.save_pretrained(root / "reward")
    plain = AutoModelForSequenceClassification.from_pretrained(root / "reward").eval()
    words = AutoTokenizer.from_pretrained(root / "reward")
    with torch.inference_mode():
        expected = [
            float(plain(**words("user: What colour is the cat?", answer, return_tensors="pt")).logits)
            for answer in ANSWERS
        ]
    artifact = Artifact(
        name="reward", kind="reward_model", version=1, digest="1", path=str(root / "reward"), key="reward"
    )
    return artifact, expected


@pytest.fixture
def context(made: Any, base: Artifact, sft: Artifact, make_context: MakeContext, tmp_path: Path) -> StageContext:
    inputs = {"base": base, "sft": sft, "dpo": sft, "reward": made[0]}
    return make_context(tmp_path / "run", "evaluation", inputs)


def test_rewards_best_of_n_judges_evaluations_and_votes_score_alike(
    made: tuple[Artifact, list[float]], context: StageContext, base: Artifact
) -> None:
    artifact, expected = made
    policy = load_tokenizer(base.path)
    inputs = [RewardInput(ASKED, text, 3) for text in ANSWERS]
    alone = build_rewards((ModelReward(kind="model", model="reward"),), context, policy)
    assert alone.score(inputs)["model"] == pytest.approx(expected, abs=2e-5)
    context.inputs = {**context.inputs, "other": artifact}
    both = EnsembleReward(kind="ensemble", models=("reward", "other"))
    assert build_rewards((both,), context, policy).score(inputs)["ensemble"] == pytest.approx(expected, abs=2e-5)

    completions = [Completion(text=text, tokens=(5, 6), finished=True) for text in ANSWERS]
    best = reward_model_score(context, "reward", "sft", policy)
    assert best([ASKED] * 3, completions) == pytest.approx(expected, abs=2e-5)

    stage = context.recipe.stages["evaluation"]  # type: ignore[attr-defined]
    found = scorer(stage, context)([(ASKED, text, True) for text in ANSWERS])
    assert found == pytest.approx(expected, abs=2e-5)

    responses = [
        Response(id=text, prompt_id="1", text=text, model="sft", sampling=Sampling(), seed=1, tokens=3)
        for text in ANSWERS
    ]
    pair = Comparison(id="c", prompt=ASKED, responses=(responses[0], responses[1]))
    assert list(_scores(artifact, context.recipe, [pair]).values()) == pytest.approx(expected[:2], abs=2e-5)  # type: ignore[attr-defined]
    judge = RewardJudge(
        RewardModelJudge(kind="reward_model", model="reward"), *load_reward_model(artifact, context.run)
    )
    (judged,) = asyncio.run(judge.judge([pair]))
    assert judged.left_first == pytest.approx(expected[0] - expected[1], abs=4e-5)


def test_ppo_takes_its_reward_and_no_critic_of_it(
    made: tuple[Artifact, list[float]], base: Artifact, sft: Artifact, make_context: MakeContext, tmp_path: Path
) -> None:
    settings = {
        "kind": "ppo", "model": "sft", "reward": "reward", "steps": 1, "episodes": 4, "batch_size": 2,
        "sampling": {"max_new_tokens": 4},
    }  # fmt: skip
    for critic in ("shared", "reward"):
        inputs = {"base": base, "sft": sft, "reward": made[0]}
        changes = {"stages.ppo": settings | {"critic": critic}}
        context = make_context(tmp_path / critic, "ppo", inputs, changes=changes)
        if critic == "shared":
            result = run_ppo(context.recipe.stages["ppo"], context)  # type: ignore[attr-defined]
            assert result.curves["score"]
        else:
            with pytest.raises(StageError, match="reward is an encoder, which values no token"):
                run_ppo(context.recipe.stages["ppo"], context)  # type: ignore[attr-defined]
