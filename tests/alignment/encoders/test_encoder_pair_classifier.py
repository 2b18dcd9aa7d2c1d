"""The pair classifier on an encoder: three segments, both orders, and the judge that asks it."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignment.data.jsonl import read_records
from alignment.judges.pair_classifier import ClassifierJudge, encoded
from alignment.models.encoders.model import load_encoder_tokenizer
from alignment.models.reward_model import load_reward_model
from alignment.recipe.judges import PairClassifierJudge
from alignment.records import Artifact, Comparison, PreferencePair, Prompt, Response, Sampling
from alignment.stage import StageContext
from alignment.stages.pair_classifier import run
from alignment.text_rules.encoder import encoder_comparison
from tests.tiny_encoders import ENCODERS, write_encoder

MakeContext = Callable[..., StageContext]


@pytest.mark.parametrize("name", ENCODERS)
def test_question_and_answers_are_a_segment_each(name: str, tmp_path: Path) -> None:
    """By hand from the tokens of each text alone; too long, the answers keep as much as each other."""
    tokenizer = load_encoder_tokenizer(write_encoder(tmp_path / name, name))

    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    begin, end = [tokenizer.cls_token_id], [tokenizer.sep_token_id]
    between = end * (2 if name == "roberta" else 1)
    expected = begin + ids("Who?") + between + ids("The cat.") + between + ids("Blue.") + end
    assert encoded(tokenizer, "Who?", ["The cat. ", "Blue."], 50) == expected
    tokenizer.model_max_length = 40
    cut = encoder_comparison(tokenizer, "Who saw it? " * 30, ("The cat. " * 3, "It is blue. " * 50), 50)
    half = (40 - 1 - 2 * len(between) - 1) // 2
    assert len(cut) == 40
    assert cut[-1 - half : -1] == ids("It is blue. " * 50)[:half]


def test_it_learns_and_judges(base: Artifact, preferences: Artifact, make_context: MakeContext, tmp_path: Path) -> None:
    folder = write_encoder(tmp_path / "encoder", "bert")
    settings: dict[str, Any] = {
        "kind": "pair_classifier", "encoder": {"folder": str(folder)}, "preferences": "preferences", "epochs": 12,
        "batch_size": 8, "learning_rate": 5e-3, "warmup": 0, "max_length": 96, "max_answer_tokens": 32,
    }  # fmt: skip
    inputs = {"base": base, "preferences": preferences}
    changes = {"stages.pair_classifier": settings}
    context = make_context(tmp_path / "run", "pair_classifier", inputs, changes=changes)
    context.data = {**context.data, "encoder": folder}
    result = run(context.recipe.stages["pair_classifier"], context)  # type: ignore[attr-defined]
    assert result.metrics["accuracy"] == 1.0
    trained = Artifact(
        name="pair_classifier", kind="pair_classifier", version=1, digest="1", path=str(context.output), key="p"
    )
    judge = ClassifierJudge(
        PairClassifierJudge(kind="pair_classifier", model="pair_classifier"),
        context.output,
        *load_reward_model(trained, context.run),
    )
    pairs = read_records(Path(preferences.path) / "pairs.jsonl", PreferencePair)
    comparisons = []
    for pair in pairs[:6]:
        prompt = Prompt(id=pair.prompt_id, messages=pair.prompt)
        responses = tuple(
            Response(id=text, prompt_id=prompt.id, text=text, model="m", sampling=Sampling(), seed=1, tokens=3)
            for text in (pair.chosen, pair.rejected)
        )
        comparisons.append(Comparison(id=pair.id, prompt=prompt, responses=responses))
    for judged in asyncio.run(judge.judge(comparisons)):
        assert judged.left_first > 0
        assert judged.left_last > 0
