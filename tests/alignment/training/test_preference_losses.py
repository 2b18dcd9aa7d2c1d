"""Mixtures of DPO's losses, a reference that follows, SimPO and ORPO: against TRL's own, and by hand from the texts."""

import json
import math
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset

from alignment.chat import render_pair
from alignment.data.jsonl import read_records
from alignment.models.adapters import add_lora
from alignment.models.load import load_policy
from alignment.recipe.base import Lora
from alignment.records import Artifact, PreferencePair
from alignment.stage import StageContext
from alignment.training.arguments import trainer_arguments
from alignment.training.preference.reference_free import AnswerLogprobs, odds_ratio_loss, simpo_loss
from alignment.training.setup import seed_everything

MakeContext = Callable[..., StageContext]
BATCH = {
    "model": "base", "preferences": "preferences", "epochs": 3, "batch_size": 24, "learning_rate": 1e-2, "warmup": 0,
    "schedule": "constant", "beta": 0.3,
}  # fmt: skip


def train(context: StageContext) -> list[float]:
    """The losses of a stage's steps."""
    settings = context.recipe.stages[context.name]  # type: ignore[attr-defined]
    import_module(settings.spec.run).run(settings, context)
    return curve(context)


def curve(context: StageContext, name: str = "loss") -> list[float]:
    return [value for _step, value in json.loads((context.output / "curves.json").read_text())[name]]


@pytest.fixture
def stage(base: Artifact, preferences: Artifact, make_context: MakeContext, tmp_path: Path) -> Any:
    """The context of a stage on the hand-made pairs; its kind is its name."""
    inputs = {"base": base, "preferences": preferences}

    def make(kind: str, /, **settings: Any) -> StageContext:
        folder = tmp_path / f"{kind}-{len(list(tmp_path.iterdir()))}"
        return make_context(folder, kind, inputs, settings={"kind": kind, **BATCH, **settings})

    return make


def of_trl(context: StageContext, **options: Any) -> list[float]:
    """The losses of TRL's own trainer on the same pairs, weights and seed, with its own head and no changes."""
    from trl import DPOConfig, DPOTrainer

    from alignment.training.dropout import switch_off_dropout

    settings: Any = context.recipe.stages[context.name]  # type: ignore[attr-defined]
    seed_everything(context.run)
    base = context.inputs["base"]
    model, tokenizer = load_policy(base, base, context.run, trainable=True)
    reference = None
    if settings.lora is None:
        reference, _tokenizer = load_policy(base, base, context.run)
    else:
        model = add_lora(model, Lora.model_validate(settings.lora.model_dump()))
    switch_off_dropout(model)
    pairs = read_records(Path(context.inputs["preferences"].path) / "pairs.jsonl", PreferencePair)
    rows = [render_pair(tokenizer, pair) for pair in pairs]
    columns = [{"prompt_ids": row.prompt, "chosen_ids": row.chosen, "rejected_ids": row.rejected} for row in rows]

    class Untouched(DPOTrainer):  # type: ignore[misc]
        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

    arguments = trainer_arguments(settings, context) | {
        "output_dir": str(context.checkpoints / "trl"), "lr_scheduler_type": "constant", "warmup_steps": 0,
    }  # fmt: skip
    trainer = Untouched(
        model=model, ref_model=reference, args=DPOConfig(**arguments, beta=settings.beta, **options),
        train_dataset=Dataset.from_list(columns), processing_class=tokenizer,
    )  # fmt: skip
    trainer.train()
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def text_logprobs(context: StageContext) -> list[tuple[list[float], list[float]]]:
    """log p of each token of each pair's answers under the base, EOS included, from the texts, in float64."""
    base = context.inputs["base"]
    model, tokenizer = load_policy(base, base, context.run)
    pairs = read_records(Path(context.inputs["preferences"].path) / "pairs.jsonl", PreferencePair)

    def logprobs(pair: PreferencePair, answer: str) -> list[float]:
        before = f"<|im_start|>user\n{pair.prompt[0].content}<|im_end|>\n<|im_start|>assistant\n"
        prompt = tokenizer(before, add_special_tokens=False)["input_ids"]
        tokens = tokenizer(f"{answer}<|im_end|>", add_special_tokens=False)["input_ids"]
        with torch.inference_mode():
            found = model(input_ids=torch.tensor([prompt + tokens])).logits[0].double().log_softmax(-1)
        return [float(found[len(prompt) + i - 1, token]) for i, token in enumerate(tokens)]

    return [(logprobs(pair, pair.chosen), logprobs(pair, pair.rejected)) for pair in pairs]


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def test_a_mixture_is_trls_on_the_same_batch(stage: Any) -> None:
    """Three steps of [sigmoid, sft] with weights; the first by hand: ln 2 and the tokens' mean log-likelihood."""
    context = stage("dpo", loss=["sigmoid", "sft"], loss_weights=[1.0, 0.3])
    ours = train(context)
    theirs = of_trl(context, loss_type=["sigmoid", "sft"], loss_weights=[1.0, 0.3])
    assert ours == pytest.approx(theirs, abs=1e-5)
    tokens = [value for chosen, _rejected in text_logprobs(context) for value in chosen]
    assert ours[0] == pytest.approx(math.log(2) - 0.3 * mean(tokens), abs=1e-4)
    assert ours[-1] < ours[0]


@pytest.mark.parametrize("lora", [None, {"rank": 4, "alpha": 8}])
def test_a_reference_that_follows_at_every_step_never_differs(stage: Any, lora: Any) -> None:
    """Before each step the policy is its reference: each loss is ln 2, each margin 0, and the policy learns on."""
    context = stage("dpo", refresh_reference=1, lora=lora, learning_rate=1e-3)
    assert train(context) == pytest.approx([math.log(2)] * 3, abs=1e-6)
    assert curve(context, "rewards/margins") == pytest.approx([0.0] * 3, abs=1e-6)
    likelier = [a - b for a, b in zip(curve(context, "logps/chosen"), curve(context, "logps/rejected"), strict=True)]
    assert likelier[-1] > likelier[0] + 0.1


def test_a_reference_that_follows_is_trls_where_trl_has_one(stage: Any) -> None:
    """Whole weights, refreshed after steps 2 and 4: TRL's `sync_ref_model` with a mix of 1."""
    context = stage("dpo", refresh_reference=2, lora=None, learning_rate=1e-3, epochs=5)
    ours = train(context)
    theirs = of_trl(context, sync_ref_model=True, ref_model_sync_steps=2, ref_model_mixup_alpha=1.0)
    assert ours == pytest.approx(theirs, abs=1e-5)
    assert [step for step, loss in enumerate(ours) if abs(loss - math.log(2)) < 1e-5] == [0, 2, 4]


CHOSEN, REJECTED = torch.tensor([-0.3, -2.0, -0.001, -5.0]), torch.tensor([-0.9, -0.4, -4.0, -5.0])


def test_simpos_loss_is_trls_and_the_papers() -> None:
    from trl.experimental.cpo import CPOTrainer

    itself = SimpleNamespace(
        alpha=0.0, beta=2.0, simpo_gamma=0.7, label_smoothing=0.0, loss_type="simpo",
        accelerator=SimpleNamespace(device="cpu"),
    )  # fmt: skip
    theirs, *_rewards = CPOTrainer.cpo_loss(itself, CHOSEN, REJECTED)
    ours = simpo_loss(AnswerLogprobs(CHOSEN, REJECTED), beta=2.0, gamma=0.7)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)
    assert ours[0] == pytest.approx(math.log1p(math.exp(-(2 * 0.6 - 0.7))), abs=1e-6)


def test_orpos_loss_is_trls_and_the_papers() -> None:
    from trl.experimental.orpo import ORPOTrainer

    itself = SimpleNamespace(beta=1.0, accelerator=SimpleNamespace(device="cpu"))
    theirs, *_rest = ORPOTrainer.odds_ratio_loss(itself, CHOSEN, REJECTED)  # negated there, and subtracted
    ours = odds_ratio_loss(AnswerLogprobs(CHOSEN, REJECTED))
    torch.testing.assert_close(ours, -theirs, atol=1e-5, rtol=0)
    p, q = math.exp(-0.3), math.exp(-0.9)
    ratio = p / (1 - p) / (q / (1 - q))
    assert ours[0] == pytest.approx(math.log1p(1 / ratio), abs=1e-6)
    certain = odds_ratio_loss(AnswerLogprobs(torch.zeros(1), torch.zeros(1)))
    assert certain.item() == pytest.approx(math.log(2), abs=1e-6)  # two answers of probability 1: the same odds


def test_simpos_first_loss_is_the_formula_on_the_texts(stage: Any) -> None:
    context = stage("simpo", beta=2.0, gamma=0.5)
    losses = train(context)
    margins = [2.0 * (mean(chosen) - mean(rejected)) - 0.5 for chosen, rejected in text_logprobs(context)]
    assert losses[0] == pytest.approx(mean([math.log1p(math.exp(-margin)) for margin in margins]), abs=1e-4)
    assert losses[-1] < losses[0]
    assert curve(context, "rewards/accuracies")[-1] > curve(context, "rewards/accuracies")[0] - 1e-9


def test_orpos_first_loss_is_the_formula_on_the_texts(stage: Any) -> None:
    """The negative log-likelihood of the chosen answers' tokens, and λ times the odds ratio's term."""
    context = stage("orpo", **{"kind": "orpo", "beta": 0.4})
    losses = train(context)
    texts = text_logprobs(context)
    nll = -mean([value for chosen, _rejected in texts for value in chosen])

    def odds(logprob: float) -> float:
        return math.exp(logprob) / (1 - math.exp(logprob))

    terms = [math.log1p(odds(mean(rejected)) / odds(mean(chosen))) for chosen, rejected in texts]
    assert losses[0] == pytest.approx(nll + 0.4 * mean(terms), abs=1e-4)
    assert losses[-1] < losses[0]


def test_a_policy_that_is_an_adapter_already_is_trained_on_without_a_copy(
    base: Artifact, sft: Artifact, preferences: Artifact, make_context: MakeContext, tmp_path: Path
) -> None:
    inputs = {"base": base, "sft": sft, "preferences": preferences}
    context = make_context(tmp_path, "simpo", inputs, settings={"kind": "simpo", **BATCH, "model": "sft"})
    losses = train(context)
    assert losses[-1] < losses[0]
    names = [path.name for path in context.output.rglob("*")]
    assert "ref" not in names
    assert "adapter_model.safetensors" in names
