"""The arithmetic of a plan, against numbers worked out by hand. No weight is loaded and nothing is trained."""

import math
from dataclasses import replace
from typing import Any, get_args

import pytest

from alignment.plan.hardware import GIB, GPUS, Machine, matrix_rate
from alignment.plan.memory import layer_activations, peak_memory
from alignment.plan.plan import make_plan
from alignment.plan.sizes import ModelSize, model_size
from alignment.plan.stages import Planner
from alignment.plan.texts import Pair, Texts, TokenLengths
from alignment.plan.work import Pass, SamplingPass, StageWork, flops, key_value_bytes, largest_batch, seconds
from alignment.recipe.base import Lora
from alignment.recipe.recipe import Recipe, Stage
from alignment.recipe.resources import Resources

SMOLLM2 = {
    "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True,
}  # fmt: skip
TEXTS = Texts(
    prompts=TokenLengths(8, (10,) * 8),
    held_out_prompts=TokenLengths(4, (10,) * 4),
    demonstrations=TokenLengths(4, ((20, 8),) * 4),
    pairs=TokenLengths(6, (Pair(10, 5, 7),) * 6),
    held_out_pairs=TokenLengths(2, (Pair(10, 5, 7),) * 2),
    corpus=TokenLengths(100, (40,) * 100),
    beginning=2,
    put_prompts={"asked": {"plain": TokenLengths(5, (12,) * 5), "voted": TokenLengths(5, (30,) * 5)}},
)
EXACT = {"kind": "exact"}
STAGES: dict[str, dict[str, Any]] = {
    "sft": {"kind": "sft", "batch_size": 2, "epochs": 3},
    "responses": {"kind": "sample", "model": "sft", "per_prompt": 2, "sampling": {"max_new_tokens": 6}},
    "preferences": {"kind": "preferences", "responses": "responses", "raters": {"rubric": "rubric.yaml"}},
    "people": {"kind": "human_preferences", "responses": "responses", "pairs": 5, "votes_per_comparison": 2},
    "file": {"kind": "preference_file"},
    "judged": {"kind": "judge", "responses": "responses", "judge": {"kind": "label_probabilities", "model": "base"}},
    "reward": {"kind": "reward", "preferences": "file", "batch_size": 3},
    "dpo": {"kind": "dpo", "model": "sft", "preferences": "file", "batch_size": 2},
    "kto": {"kind": "kto", "model": "sft", "preferences": "file", "batch_size": 2},
    "simpo": {"kind": "simpo", "model": "sft", "preferences": "file", "batch_size": 2},
    "orpo": {"kind": "orpo", "model": "sft", "preferences": "file", "batch_size": 2},
    "best": {"kind": "rejection_sampling", "responses": "responses", "rewards": [{"kind": "exact"}]},
    "ppo": {"kind": "ppo", "model": "sft", "reward": "reward", "steps": 2, "episodes": 4, "batch_size": 2, "epochs": 1},
    "grpo": {"kind": "grpo", "model": "base", "rewards": [EXACT], "steps": 2, "per_prompt": 2, "episodes": 4,
             "batch_size": 2},
    "rloo": {"kind": "rloo", "model": "base", "rewards": [EXACT], "steps": 2, "per_prompt": 2, "episodes": 4,
             "batch_size": 2},
    "evaluation": {"kind": "evaluate", "model": "dpo", "against": ["base", "sft"], "kl_prompts": 2,
                   "sampling": {"temperature": 0.0, "max_new_tokens": 6}},
    "play": {"kind": "tournament", "policies": ["dpo", "ppo"], "model": "sft", "raters": {"rubric": "rubric.yaml"},
             "reward": "reward", "best_of": 4, "kl_prompts": 2, "sampling": {"temperature": 0.0, "max_new_tokens": 6}},
    "classifier": {"kind": "pair_classifier", "preferences": "file", "batch_size": 3},
    "revised": {"kind": "constitution", "responses": "responses", "writer": {"model": "base", "max_tokens": 7},
                "principles": [{"name": "short", "critique": "c", "revision": "r"}], "rounds": 2},
    "made": {"kind": "synthesis", "models": ["base", "sft"], "principles": {"brief": "Be brief."}, "per_prompt": 3,
             "sampling": {"max_new_tokens": 6}},
    "taught": {"kind": "distil", "teacher": "sft", "batch_size": 2},
    "small": {"kind": "quantise", "model": "dpo", "scheme": "q8_0", "max_new_tokens": 6},
    "ways": {"kind": "overoptimisation", "policies": ["ppo"], "model": "sft", "raters": {"rubric": "rubric.yaml"},
             "reward": "reward", "best_of": 4, "max_new_tokens": 6},
    "asked": {"kind": "benchmark", "models": ["base", "sft"], "sampling": {"temperature": 0.0, "max_new_tokens": 6},
              "tasks": {"sums": {"questions": "sums.jsonl", "answer": "number"}},
              "forms": {"plain": {}, "voted": {"votes": 3, "max_new_tokens": 20}}},
    "words": {"kind": "tokenizer"},
    "outside": {"kind": "outside_model", "folder": "teacher"},
    "reads_on": {"kind": "pretrain", "model": "base", "batch_size": 2, "max_length": 64},
}  # fmt: skip
CPU = Machine("cpu", 8 * GIB, 100e9, 50e9, 10e9, share=0.5, step_seconds=0.0, program=0, gpu=False)


def recipe(**changes: dict[str, Any]) -> Recipe:
    stages = {name: stage | changes.get(name, {}) for name, stage in STAGES.items()}
    return Recipe.model_validate({"name": "test", "model": {"base": "x"}, "stages": stages})


@pytest.fixture(scope="module")
def smollm2() -> ModelSize:
    from transformers import LlamaConfig

    return model_size(LlamaConfig(**SMOLLM2))


TINY = ModelSize(
    parameters=1000, vocabulary=50, hidden=4, layers=2, linears=((4, 4), (4, 8), (4, 4), (4, 8)), query_width=4,
    key_width=2, inner=8, gated=True, tied=True,
)  # fmt: skip


def test_held_out_prompts_of_their_own_are_counted_where_they_are_asked() -> None:
    """Ten in place of four: three models answer ten at 6 tokens, and two of the candidate's measure its KL."""
    own = replace(TEXTS, own_held_out_prompts=TokenLengths(10, (10,) * 10))
    assert Planner(recipe(), TINY, TEXTS).work("evaluation").sampled == (4 * 3 + 2) * 6
    assert Planner(recipe(), TINY, own).work("evaluation").sampled == (10 * 3 + 2) * 6
    # A tournament asks half of them: three players' answers, four of best-of-n, two KLs of two prompts.
    assert Planner(recipe(), TINY, own).work("play").sampled == (5 * 3 + 2 * 2 + 5 * 4) * 6
    watching = recipe(ppo={"raters": {"rubric": "rubric.yaml"}, "watch_prompts": 8})
    work = [Planner(watching, TINY, texts).work("ppo").activities for texts in (TEXTS, own)]
    assert work[0] == work[1]  # PPO watches the share, which settings are chosen by


def test_what_people_say_of_single_answers_is_counted_at_most_and_at_its_longest() -> None:
    """Eight prompts of 10 tokens with two answers of 6: 16 tokens each."""

    def trained(stage: str, epochs: int, people: dict[str, Any], **settings: Any) -> float:
        asked = {"pairs": 100, "comparisons_per_prompt": 2} | people
        planned = Planner(recipe(people=asked, **{stage: settings | {"epochs": epochs}}), TINY, TEXTS).work(stage)
        assert planned.at_most
        return planned.trained

    thumbs = {"preferences": None, "feedback": "people"}
    assert trained("kto", 2, {"feedback": "thumbs"}, **thumbs) == 2 * 8 * 2 * 16
    assert trained("kto", 1, {"feedback": "thumbs", "answers": 5}, **thumbs) == 5 * 16
    rewrites = {"feedback": "rewrites", "answers": 3}
    assert trained("sft", 3, rewrites, demonstrations="people") == 3 * 3 * 16
    assert trained("dpo", 1, rewrites, preferences="people") == 3 * 2 * 16
    scores = {"feedback": "scores", "criteria": {"warm": "1: cold; 5: kind."}}
    assert trained("dpo", 1, scores, preferences="people") == 8 * 2 * 16  # one pair of each prompt's two answers
    remarks = Planner(recipe(people={"pairs": 100, "feedback": "thumbs", "answers": 5}), TINY, TEXTS).work("people")
    assert remarks.remarks == ["people judge 5 answers or more, 10 votes; the run takes no compute meanwhile"]


def test_an_environments_episodes_are_counted_at_their_longest() -> None:
    """Three answers of 6 tokens, 40 in all: each turn reads the prompt of 10 and what was said so far, 17 of the 34
    that are not the first answer, then 34. Two steps of 4 episodes; whole episodes of 10 + 40 tokens are trained on."""
    environment = {"kind": "calculator", "max_turns": 3, "max_tokens": 40}
    sampling = {"max_new_tokens": 6}
    work = Planner(recipe(grpo={"environment": environment, "sampling": sampling}), TINY, TEXTS).work("grpo")
    turns = [one for one in work.activities if isinstance(one, SamplingPass)]
    assert [(one.rows, one.new, one.longest) for one in turns] == [(8, 6, 10), (8, 6, 27), (8, 6, 44)]
    # The first turn reads each of 4 prompts once, for both of its answers; later ones each of 8 conversations.
    assert [one.prompt_tokens for one in turns] == [40, 8 * 27, 8 * 44]
    assert work.sampled == 8 * 40
    assert work.trained == 8 * (10 + 40)
    trained = [one for one in work.activities if isinstance(one, Pass) and one.trains]
    assert [one.answers for one in trained] == [8 * 40]
    assert any("3 answers, 40 tokens" in remark for remark in work.remarks)
    evaluation = recipe(evaluation={"environment": environment})
    planned = Planner(evaluation, TINY, TEXTS).work("evaluation")
    assert planned.sampled == 4 * 3 * 40 + 2 * 6  # three models on four prompts, and the KL's answers of 6 tokens
    assert sum(isinstance(one, SamplingPass) for one in planned.activities) == 3 * 3 + 1


def test_the_embedded_models_size(smollm2: ModelSize) -> None:
    """Embedding 49,152 × 576; per layer q and o 576 × 576, k and v 576 × 192, three of 576 × 1536, two norms of 576."""
    layer = 2 * 576 * 576 + 2 * 576 * 192 + 3 * 576 * 1536
    assert smollm2.parameters == 49152 * 576 + 30 * (layer + 2 * 576) + 576 == 134_515_008
    assert smollm2.matrix == 30 * layer == 106_168_320
    assert smollm2.adapter(Lora(rank=16)) == 30 * 16 * (2 * 1152 + 2 * 768 + 3 * 2112) == 4_884_480
    assert (smollm2.query_width, smollm2.key_width, smollm2.inner, smollm2.gated) == (576, 192, 1536, True)
    assert smollm2.tied
    assert smollm2.trunk == smollm2.parameters
    assert smollm2.shares_prefixes


def test_a_gpt2_and_an_untied_head() -> None:
    """GPT-2 small: 124,439,808 (Radford et al. 2019), whose linear layers are convolutions of width 1."""
    from transformers import GPT2Config, LlamaConfig

    small = model_size(GPT2Config())
    assert small.parameters == 124_439_808
    assert small.matrix == 12 * 12 * 768 * 768
    assert small.adapter(Lora(rank=1)) == 12 * (768 + 2304 + 768 + 768 + 768 + 3072 + 3072 + 768)
    assert (small.key_width, small.inner, small.gated, small.shares_prefixes) == (768, 3072, False, False)
    untied = model_size(LlamaConfig(**SMOLLM2 | {"tie_word_embeddings": False}))
    assert untied.parameters == 134_515_008 + 49152 * 576
    assert untied.trunk == 134_515_008


def test_constants_are_those_of_the_code_that_is_planned() -> None:
    from alignment.models import prefix_sharing
    from alignment.plan import memory, stages
    from alignment.training import token_logprobs

    assert prefix_sharing.NODES["cpu"] == stages.NODES
    assert (memory.CHUNK_ENTRIES, memory.CHUNK_TOKENS) == (token_logprobs.CHUNK_ENTRIES, token_logprobs.CHUNK_TOKENS)


def test_the_known_configuration_of_the_embedded_model_is_this_one() -> None:
    from alignment.checks.model import EMBEDDED_SHAPE

    assert SMOLLM2.items() <= EMBEDDED_SHAPE["smollm2-135m"].items()


def test_every_kind_of_stage_has_a_plan(smollm2: ModelSize) -> None:
    kinds = {get_args(kind.model_fields["kind"].annotation)[0] for kind in get_args(get_args(Stage)[0])}
    assert kinds == {stage["kind"] for stage in STAGES.values()}
    plans = {plan.name: plan for plan in make_plan(recipe(), smollm2, TEXTS, (CPU, *GPUS))}
    assert list(plans) == list(STAGES)
    for name, plan in plans.items():
        works = name not in ("preferences", "people", "file", "best", "words", "outside")
        assert (plan.flops > 0) == works == (plan.parameters > 0), name
        assert all((on.seconds > 0) == works and on.fits for on in plan.machines), name


def test_a_forms_votes_and_a_servers_answers_by_hand() -> None:
    """8 prompts, 2 responses each, of 3 votes, of 5 tokens; a server draws as many and takes nothing here."""
    form = {"kind": "sample", "model": "sft", "per_prompt": 2, "sampling": {"max_new_tokens": 6},
            "prompting": {"reasoning": True, "keep": "answer", "votes": 3, "max_new_tokens": 5}}  # fmt: skip
    served = form | {"model": "base", "endpoint": {"url": "http://x/v1", "model": "m"}}
    here = Planner(recipe(responses=form), TINY, TEXTS).work("responses")
    there = Planner(recipe(responses=served), TINY, TEXTS).work("responses")
    assert here.sampled == there.sampled == 8 * 2 * 3 * 5
    assert (len(here.activities), len(there.activities)) == (1, 0)
    asked = STAGES["evaluation"] | {"prompting": form["prompting"]}
    assert Planner(recipe(evaluation=asked), TINY, TEXTS).work("evaluation").sampled == 3 * 4 * 3 * 5 + 2 * 6


def test_tokens_by_hand() -> None:
    work = {name: Planner(recipe(), TINY, TEXTS).work(name) for name in STAGES}
    assert work["sft"].trained == 4 * 20 * 3
    assert work["responses"].sampled == 8 * 2 * 6
    assert work["dpo"].trained == work["reward"].trained == 6 * (2 * 10 + 5 + 7)
    assert (work["ppo"].sampled, work["ppo"].trained) == (2 * 4 * 64, 2 * 4 * (10 + 64))
    assert work["evaluation"].sampled == (3 * 4 + 2) * 6
    assert work["classifier"].trained == 6 * 2 * (10 + 5 + 7)  # both orders, and both answers in each
    assert work["revised"].sampled == 2 * 2 * (8 * 2) * 7  # rounds, a critique and a revision, responses, tokens
    assert work["made"].sampled == 8 * 3 * 6
    assert work["asked"].sampled == 2 * (5 * 6 + 5 * 3 * 20)  # models; questions, votes, tokens
    # Two rows of 20 tokens share their first two, in each of 6 batches.
    [sft] = work["sft"].activities
    assert isinstance(sft, Pass)
    assert (sft.batches, sft.tokens, sft.answers, sft.batch_tokens) == (6, 12 * 18 + 6 * 2, 12 * 8, 38)
    # A pair's prompt is computed once: 10 + 5 + 7, less the beginning.
    reference, learned = work["dpo"].activities
    assert isinstance(learned, Pass)
    assert isinstance(reference, Pass)
    assert (learned.tokens, learned.answers, learned.trains) == (6 * 20 + 3 * 2, 6 * 12, True)
    assert not reference.trains


def test_pairs_of_people_are_bounded_by_what_is_sampled() -> None:
    """8 prompts make 8 comparisons, of which 5 pairs are asked for, at 10 + 6 tokens a side; a fifth is held out."""
    work = Planner(recipe(reward={"preferences": "people"}), TINY, TEXTS).work("reward")
    assert work.trained == pytest.approx(5 * 0.8 * 2 * 16)
    assert work.at_most


def test_pairs_of_several_policies() -> None:
    """Two answers of each of two policies make six comparisons of a prompt; the longer answers count."""
    longer = {"kind": "sample", "model": "base", "per_prompt": 2, "sampling": {"max_new_tokens": 9}}
    stages = {"responses": STAGES["responses"], "more": longer} | {
        "preferences": STAGES["preferences"] | {"responses": ["responses", "more"], "comparisons_per_prompt": 10},
        "reward": STAGES["reward"] | {"preferences": "preferences"},
    }
    several = Recipe.model_validate({"name": "test", "model": {"base": "x"}, "stages": stages})
    assert Planner(several, TINY, TEXTS).work("reward").trained == pytest.approx(8 * 6 * 0.8 * 2 * (10 + 9))


def test_what_a_constitution_makes() -> None:
    """16 revisions of 7 tokens to prompts of 10: demonstrations, and pairs of which a fifth is held out."""
    stages = {name: STAGES[name] for name in ("sft", "responses", "revised", "reward")}
    stages["reward"] = stages["reward"] | {"preferences": "revised"}
    stages["again"] = STAGES["sft"] | {"demonstrations": "revised", "epochs": 1}
    made = Recipe.model_validate({"name": "test", "model": {"base": "x"}, "stages": stages})
    assert Planner(made, TINY, TEXTS).work("reward").trained == pytest.approx(16 * 0.8 * 2 * (10 + 7))
    assert Planner(made, TINY, TEXTS).work("again").trained == 16 * (10 + 7)


def test_operations_by_hand() -> None:
    """Matrices: 4·4 + 4·8 + 4·4 + 4·8 = 96. Attention: 4 × 2 layers × width 4 × context 10 = 320 a token."""
    adapted, full = StageWork("a", "sft", trainable=10), StageWork("b", "sft", trainable=1000, full=True)
    read = Pass(tokens=100, answers=20, batches=1, length=10, batch_tokens=100, batch_answers=20)
    assert flops(read, TINY, full) == 100 * (2 * 96 + 320) + 20 * 2 * 200
    learn = replace(read, trains=True)
    assert flops(learn, TINY, full) == 100 * (6 * 96 + 960) + 20 * 8 * 200
    assert flops(learn, TINY, adapted) == 100 * (4 * 96 + 6 * 10 + 960) + 20 * 4 * 200
    again = replace(learn, checkpointed=True)
    assert flops(again, TINY, full) == flops(learn, TINY, full) + flops(read, TINY, full)


def test_decoding_waits_for_the_weights(smollm2: ModelSize) -> None:
    """One row of 10 tokens: each reads 2 bytes of 134,479,872 matrix weights and its cache, at 10 GB/s."""
    draw = SamplingPass(rows=1, batch=64, new=10, prompt_tokens=5, longest=5)
    work = StageWork("draw", "sample")
    cache = 2 * 30 * 192 * 2
    assert key_value_bytes(smollm2, "bfloat16") == cache == 23040
    read = 2 * (106_168_320 + 49152 * 576) + 10 * cache
    slow = replace(CPU, bfloat16=1e18)
    assert seconds(draw, smollm2, work, slow, "bfloat16") == pytest.approx(10 * read / 10e9)


def test_memory_of_an_adapter_and_of_all_weights(smollm2: ModelSize) -> None:
    adapted = Planner(recipe(), smollm2, TEXTS).work("sft")
    memory = peak_memory(adapted, smollm2, CPU, "bfloat16")
    assert memory.weights == 2 * 134_515_008 + 4 * 4_884_480
    assert (memory.gradients, memory.optimizer) == (4 * 4_884_480, 8 * 4_884_480)
    full = Planner(recipe(sft={"lora": None}), smollm2, TEXTS).work("sft")
    halves = Planner(recipe(sft={"lora": None, "gradient_accumulation": 2}), smollm2, TEXTS).work("sft")
    narrowed = 2 * (106_168_320 + 28_311_552)  # every matrix and the head, cast for its products
    for precision, copies in (("bfloat16", narrowed), ("float32", 0)):  # whose weights are in float32 as well
        memory = peak_memory(halves, smollm2, CPU, precision)
        assert memory.weights - copies == memory.gradients == 4 * 134_515_008
        assert memory.optimizer == 8 * 134_515_008
        # Where nothing is accumulated, gradients come while activations go: never both.
        alone = peak_memory(full, smollm2, CPU, precision)
        assert (alone.weights, alone.optimizer) == (memory.weights, memory.optimizer)
        passing = memory.activations + memory.logits
        assert alone.total == memory.total - min(memory.gradients, passing) < memory.total


def test_workers_that_shard_hold_parts(smollm2: ModelSize) -> None:
    """Four workers: a quarter each, and of the others' three quarters the embedding (49,152 × 576) and two layers."""
    layers = 2 * (134_515_008 - 28_311_552) / 30

    stages = ("sft", "dpo", "ppo", "grpo", "responses")

    def on_four(sharding: str, **changes: dict[str, Any]) -> dict[str, StageWork]:
        resources = {"workers": 4, "sharding": sharding}
        sharded = recipe(**changes).model_copy(update={"resources": Resources(**resources)})
        return {name: Planner(sharded, smollm2, TEXTS).work(name) for name in stages}

    everything = {"sft": {"lora": None}, "dpo": {"lora": None}, "grpo": {"lora": None, "beta": 0.1}}
    full = peak_memory(on_four("fsdp", **everything)["sft"], smollm2, CPU, "bfloat16")
    gathered = round(4 * (28_311_552 + layers) * 0.75 * 2)  # and their gradients, before they are added up
    narrowed = 2 * (106_168_320 + 28_311_552)  # every matrix and the head, cast for its products
    assert full.weights == 134_515_008 + gathered + narrowed
    assert full.gradients == 134_515_008
    assert full.optimizer == 2 * 134_515_008
    adapted = peak_memory(on_four("fsdp")["sft"], smollm2, CPU, "bfloat16")
    assert adapted.weights == (2 * 134_515_008 + 4 * 4_884_480) // 4 + round(2 * (28_311_552 + layers) * 0.75)
    assert (adapted.gradients, adapted.optimizer) == (4_884_480, 2 * 4_884_480)
    dpo = peak_memory(on_four("fsdp", **everything)["dpo"], smollm2, CPU, "bfloat16")
    assert dpo.weights == 2 * 134_515_008 + gathered + narrowed  # the reference is there while the policy trains
    grpo = peak_memory(on_four("fsdp", **everything)["grpo"], smollm2, CPU, "bfloat16")
    trained = round((2 + 2 + 4) * (28_311_552 + layers) * 0.75)  # in bfloat16, their gradients, and those in float32
    assert grpo.weights == 2 * 2 * 134_515_008 // 4 + trained > 2 * 134_515_008 * 0.75  # more than it samples with
    assert grpo.optimizer == 12 * 134_515_008 // 4
    trunk = 134_515_008  # of the critic, and of the reward model, which nobody trains and everybody holds
    head = {"critic": "policy", "reward": "reward"}
    ppo = peak_memory(on_four("fsdp", **everything, ppo={"lora": None} | head)["ppo"], smollm2, CPU, "bfloat16")
    both = 2 * 28_311_552 + layers  # two embeddings: in bfloat16, their gradients, and those added up in float32
    assert ppo.weights == 2 * 3 * trunk // 4 + 2 * (trunk + 576) + round((2 + 2 + 4) * both * 0.75)
    trained = 2 * trunk + 577  # the value head has a bias
    assert ppo.optimizer == math.ceil(12 * trained / 4)
    adapted = peak_memory(on_four("fsdp", ppo=head)["ppo"], smollm2, CPU, "bfloat16")
    adapters = 4 * (4_884_480 + 2 * 4_884_480 + 577)  # the reference's, and those of policy and critic
    assert adapted.weights == math.ceil((2 * 2 * trunk + adapters) / 4) + 2 * (trunk + 576) + round(2 * trunk * 0.75)
    whole = peak_memory(on_four("none", **everything)["sft"], smollm2, CPU, "bfloat16")
    assert (whole.weights, whole.optimizer) == (4 * 134_515_008 + narrowed, 8 * 134_515_008)
    assert peak_memory(on_four("fsdp")["responses"], smollm2, CPU, "bfloat16").weights == (
        2 * 134_515_008 + 4 * 4_884_480
    )


def test_ppo_of_all_weights_has_masters_and_a_reference(smollm2: ModelSize) -> None:
    work = Planner(recipe(sft={"lora": None}, ppo={"lora": None}), smollm2, TEXTS).work("ppo")
    assert work.trainable == 134_515_008 + 577
    assert work.models == [134_515_008, 134_515_008 + 576, 134_515_008]  # policy, reward model, reference
    assert peak_memory(work, smollm2, CPU, "bfloat16").optimizer == 12 * work.trainable


def test_the_reference_of_dpo_after_sft_is_a_copy_of_the_adapter(smollm2: ModelSize) -> None:
    after = Planner(recipe(), smollm2, TEXTS).work("dpo")
    first = Planner(recipe(dpo={"model": "base"}), smollm2, TEXTS).work("dpo")
    assert (after.adapters, first.adapters) == (4_884_480, 0)
    further = Planner(recipe(sft={"lora": {"rank": 4}}), smollm2, TEXTS).work("dpo")
    assert further.trainable == 4_884_480 // 4  # the adapter that SFT made is trained on, at its rank


def test_activations_by_hand() -> None:
    """bfloat16 on a processor, per token and layer: norms 2·4·4; attention 4·2·(4 + 2); feed-forward 2·8·3; inputs."""
    adapted, full = StageWork("a", "sft", trainable=10), StageWork("b", "sft", full=True)
    shared = 32 + 48 + 48
    assert layer_activations(TINY, adapted, CPU, "bfloat16") == shared + 2 * 16 / 2
    assert layer_activations(TINY, adapted, CPU, "bfloat16", autocast=False) == shared + 4 * 16 / 2
    assert layer_activations(TINY, full, CPU, "bfloat16") == shared + 16 + 2 * (2 * 4 + 4 + 8)


def test_checkpoints_keep_one_state_a_layer(smollm2: ModelSize) -> None:
    plain = peak_memory(Planner(recipe(), smollm2, TEXTS).work("sft"), smollm2, CPU, "bfloat16")
    changed = Planner(recipe(sft={"gradient_checkpointing": True}), smollm2, TEXTS).work("sft")
    saved = peak_memory(changed, smollm2, CPU, "bfloat16")
    layer = layer_activations(smollm2, changed, CPU, "bfloat16")
    assert plain.activations == round(38 * 31 * layer)
    assert saved.activations == round(38 * (30 * 2 * 576 + layer))


def test_largest_batch() -> None:
    assert largest_batch([], 4) == 0
    assert largest_batch([5, 5, 5], 2) == 10
    assert largest_batch([1, 9], 4) == 10  # there are no more rows
    many = [1.0] * 99 + [100.0]
    assert largest_batch(many, 1) == pytest.approx(1.99 + 3 * 9.8504, abs=1e-3)


def test_what_does_not_fit_gets_settings_that_do(smollm2: ModelSize) -> None:
    """All weights need more in bfloat16 than there is: an adapter is what is left."""
    long = replace(TEXTS, demonstrations=TokenLengths(64, ((1000, 500),) * 64))
    small = replace(CPU, memory=round(1.35 * GIB))
    everything = recipe(sft={"lora": None, "batch_size": 16, "max_length": 1024})
    [on] = make_plan(everything, smollm2, long, (small,))[0].machines
    assert not on.fits
    changes = dict(line.removeprefix("stages.sft.").split("=") for line in on.remedies)
    assert changes["gradient_checkpointing"] == "true"
    values: dict[str, Any] = {name: int(value) for name, value in changes.items() if value.isdecimal()}
    values |= {"gradient_checkpointing": True} | ({"lora": Lora()} if "lora" in changes else {})
    mended = everything.stages["sft"].model_copy(update=values)
    assert peak_memory(Planner(everything, smollm2, long).work("sft", mended), smollm2, small, "bfloat16").total <= (
        0.9 * small.memory
    )
    [on] = make_plan(everything, smollm2, long, (replace(CPU, memory=GIB // 10),))[0].machines
    [remedy] = on.remedies
    assert "a device with" in remedy


def test_compute_optimal_tokens_are_a_remark_on_training_all_weights(smollm2: ModelSize) -> None:
    [remark] = Planner(recipe(sft={"lora": None}), smollm2, TEXTS).work("sft").remarks
    assert "2,690,300,160 tokens" in remark  # 20 × 134,515,008
    assert Planner(recipe(), smollm2, TEXTS).work("sft").remarks == []


def test_a_measured_rate_is_that_of_this_processor() -> None:
    """Whatever it is: above a single operation per cycle, and below what any processor does."""
    assert 1e8 < matrix_rate("float32", size=128, seconds=0.02) < 1e15


def test_cost_is_time_at_the_price() -> None:
    [on] = make_plan(recipe(), TINY, TEXTS, (replace(GPUS[0], price=7.2),))[0].machines
    assert on.cost == pytest.approx(on.seconds * 7.2 / 3600)
    assert on.precision == "bfloat16"
