"""An answer that was cut off has no end of turn, and the same tokens and score, wherever it goes."""

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn.modules.module import register_module_forward_hook
from transformers import LlamaForSequenceClassification, LlamaModel, PreTrainedTokenizerFast

from alignment.chat import load_tokenizer, render_answer, render_pair, render_prompt, render_response
from alignment.data.jsonl import write_records
from alignment.data.preferences import read_preferences, write_preferences
from alignment.digests import pair_id, prompt_id
from alignment.models.reward_model import load_reward_model
from alignment.preferences.comparisons import make_comparisons
from alignment.preferences.consensus import consensus, preference_pairs
from alignment.preferences.preference_files import Correction, corrected_pairs, pairs_digest, read_comparisons
from alignment.records import Artifact, Comparison, Message, PreferencePair, Prompt, Response, Sampling, Vote
from alignment.rollouts.engine import Completion
from alignment.stage import StageContext

MakeContext = Callable[..., StageContext]
ASKED = (Message(role="user", content="What colour is the cat?"),)
PROMPT = Prompt(id=prompt_id(ASKED), messages=ASKED)
WHOLE, CUT = "It is red.", "Who saw the"
OPENING = "<|im_start|>user\nWhat colour is the cat?<|im_end|>\n<|im_start|>assistant\n"

# A vocabulary and a template small enough to write tokens by hand.
WORDS = {"<s>": 0, "</s>": 1, "user": 2, "bot": 3, "why": 4, "because": 5, "it": 6, "is": 7, "end": 8, "[UNK]": 9}
TEMPLATES = {
    "plain": "{{ m.content }}</s>",
    "trimmed": "{{ m.content | trim }} </s>",
    "more after it": "{{ m.content }} end </s> end",
    "more before it": "<s> {{ m.content }}</s>",
}


def by_hand(form: str) -> Any:
    inner = Tokenizer(models.WordLevel(WORDS, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="[UNK]")
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'user' %}user {{ m.content }} </s> {% else %}bot "
        + TEMPLATES[form]
        + "{% endif %}{% endfor %}{% if add_generation_prompt %}bot {% endif %}"
    )
    return tokenizer


@pytest.mark.parametrize(
    ("form", "whole", "cut"),
    [
        ("plain", [5, 6, 7, 1], [5, 6, 7]),
        ("trimmed", [5, 6, 7, 1], [5, 6, 7]),
        ("more after it", [5, 6, 7, 8, 1], [5, 6, 7]),
        ("more before it", [0, 5, 6, 7, 1], [0, 5, 6, 7]),
    ],
)
def test_tokens_written_by_hand(form: str, whole: list[int], cut: list[int]) -> None:
    tokenizer, asked = by_hand(form), (Message(role="user", content="why"),)
    assert render_prompt(tokenizer, asked) == [2, 4, 1, 3]
    assert render_answer(tokenizer, asked, "because it is", finished=True) == whole
    assert render_answer(tokenizer, asked, "because it is", finished=False) == cut
    assert render_response(tokenizer, asked, "because it is", finished=False) == [2, 4, 1, 3, *cut]
    pair = PreferencePair(id="1", prompt_id="1", prompt=asked, chosen="it is", rejected="because", chosen_finished=True,
                          rejected_finished=False)  # fmt: skip
    without_because, because_alone = [one for one in whole if one != 5], [one for one in cut if one not in (6, 7)]
    assert render_pair(tokenizer, pair) == ([2, 4, 1, 3], without_because, because_alone)


@given(
    form=st.sampled_from(sorted(TEMPLATES)),
    said=st.lists(st.sampled_from(["because", "it", "is", "two"]), max_size=8).map(" ".join),
)
def test_a_cut_answer_is_the_beginning_of_the_whole_one(form: str, said: str) -> None:
    """Without its ending the whole answer has the same tokens: nothing is lost, and no end is left."""
    tokenizer, asked = by_hand(form), (Message(role="user", content="why"),)
    whole, cut = (render_answer(tokenizer, asked, said, finished=finished) for finished in (True, False))
    ending = [8, 1] if form == "more after it" else [1]
    assert whole == cut + ending
    assert 1 not in cut


def response(name: str, text: str, *, finished: bool) -> Response:
    return Response(id=name, prompt_id=PROMPT.id, text=text, model="m", sampling=Sampling(), seed=0, tokens=3,
                    finished=finished)  # fmt: skip


def the_pair(prompt: tuple[Message, ...] = ASKED, *, chosen_finished: bool = True) -> PreferencePair:
    return PreferencePair(
        id=pair_id(prompt, WHOLE, CUT), prompt_id=prompt_id(prompt), prompt=prompt, chosen=WHOLE, rejected=CUT,
        chosen_finished=chosen_finished, rejected_finished=False,
    )  # fmt: skip


@contextmanager
def what_it_reads(kind: type) -> Iterator[list[list[int]]]:
    """Every row that a kind of model is called with while the context lasts, without padding."""
    read: list[list[int]] = []

    def called(module: torch.nn.Module, _args: Any, kwargs: Any, _output: Any) -> None:
        if isinstance(module, kind) and "input_ids" in kwargs:
            ids, mask = kwargs["input_ids"], kwargs.get("attention_mask")
            read.extend(
                row[keep.bool()].tolist() for row, keep in zip(ids, ids >= 0 if mask is None else mask, strict=True)
            )

    hook = register_module_forward_hook(called, with_kwargs=True)
    try:
        yield read
    finally:
        hook.remove()


@pytest.fixture(scope="module")
def expected(tiny_model: Path) -> dict[bool, list[int]]:
    """The tokens of the cut (False) and the whole answer (True) after their prompt, by the tokenizer alone."""
    tokenizer = load_tokenizer(tiny_model)

    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    return {True: ids(OPENING) + ids(f"{WHOLE}<|im_end|>"), False: ids(OPENING) + ids(CUT)}


@pytest.fixture(scope="module")
def trained(
    base: Artifact,
    make_context: MakeContext,
    tmp_path_factory: pytest.TempPathFactory,
    expected: Mapping[bool, list[int]],
) -> SimpleNamespace:
    """A reward model that learned of the pair, what it read while it did, and what it scored on held-out ones."""
    from alignment.stages.reward import run

    folder = tmp_path_factory.mktemp("finished")
    pairs = folder / "pairs"
    pairs.mkdir()
    others = [(Message(role="user", content=f"Who saw the {name} today?"),) for name in ("dog", "fox", "owl")]
    write_records(pairs / "pairs.jsonl", [the_pair(), *map(the_pair, others)])
    write_records(pairs / "held_out.jsonl", [the_pair()])
    made = Artifact(name="preferences", kind="preferences", version=1, digest="0", path=str(pairs), key="k")
    settings = {"model": "base", "epochs": 6, "batch_size": 2, "learning_rate": 5e-3, "max_length": 64}
    context = make_context(folder / "run", "reward", {"base": base, "preferences": made}, settings=settings)
    with what_it_reads(LlamaForSequenceClassification) as read:
        result = run(context.recipe.stages["reward"], context)  # type: ignore[attr-defined]
    reward = Artifact(name="reward", kind="reward_model", version=1, digest="1", path=str(context.output), key="r")
    margins = json.loads((context.output / "held_out.json").read_text())["margins"]
    model, tokenizer = load_reward_model(reward, context.run)
    return SimpleNamespace(context=context, read=read, result=result, reward=reward, margins=margins, model=model,
                           tokenizer=tokenizer, pairs=made)  # fmt: skip


def test_training_reads_the_cut_answer_without_an_end(
    trained: SimpleNamespace, expected: Mapping[bool, list[int]]
) -> None:
    rows = trained.read
    assert expected[True] in rows
    assert expected[False] in rows
    assert [*expected[False], expected[True][-1]] not in rows
    assert trained.result.metrics["cut_rejected"] == 4
    assert trained.result.metrics["cut_chosen"] == 0


def spelled(tokenizer: Any, text: str, *, finished: bool) -> tuple[int, ...]:
    """Tokens that a policy may have drawn for a text: letter by letter, which no tokenizer would."""
    ids = [token for letter in text for token in tokenizer(letter, add_special_tokens=False)["input_ids"]]
    return (*ids, tokenizer.eos_token_id) if finished else tuple(ids)


def completions(tokenizer: Any) -> list[Completion]:
    return [Completion(spelled(tokenizer, CUT, finished=False), CUT, finished=False),
            Completion(spelled(tokenizer, WHOLE, finished=True), WHOLE, finished=True)]  # fmt: skip


def place(name: str, trained: SimpleNamespace, make_context: MakeContext, base: Artifact, folder: Path) -> list[float]:
    """The scores of the cut and the whole answer, as one place in the house gives them."""
    from alignment.recipe.rewards.reward_models import ModelReward

    inputs = {"base": base, "sft": base, "dpo": base, "reward": trained.reward, "preferences": trained.pairs}
    model_reward = {"kind": "model", "model": "reward"}
    drawn = completions(trained.tokenizer)
    if name in ("ppo", "ppo's rewards"):
        from alignment.policy.online.batch import Episode
        from alignment.policy.ppo.episode_reward import episode_reward

        source = {"reward": "reward"} if name == "ppo" else {"rewards": [model_reward]}
        settings = {"kind": "ppo", "model": "base", "learning_rate": 1e-5, "episodes": 2, "minibatches": 1, **source}
        context = make_context(folder, "policy", inputs, settings=settings)
        _model, reward = episode_reward(context.recipe.stages["policy"], context, trained.tokenizer)  # type: ignore[attr-defined]
        ids = tuple(render_prompt(trained.tokenizer, ASKED))
        return list(reward([Episode(PROMPT, ids, one) for one in drawn]))
    context = make_context(folder, "evaluation", inputs)
    if name == "grpo":
        from alignment.policy.online.batch import Episode
        from alignment.policy.online.episode_reward import EpisodeReward
        from alignment.reward.factory import build_rewards

        reward = EpisodeReward(build_rewards((ModelReward(**model_reward),), context, trained.tokenizer), per_prompt=2)
        ids = tuple(render_prompt(trained.tokenizer, ASKED))
        return list(reward([Episode(PROMPT, ids, one) for one in drawn]))
    if name == "best of n":
        from alignment.rollouts.best_of_n import reward_model_score

        return list(reward_model_score(context, "reward", "base", trained.tokenizer)([PROMPT, PROMPT], drawn))
    if name == "evaluate":
        from alignment.stages.evaluate import scorer

        settings = context.recipe.stages["evaluation"]  # type: ignore[attr-defined]
        return scorer(settings, context)(((PROMPT, CUT, False), (PROMPT, WHOLE, True)))
    if name == "a metric":
        from alignment.metrics.reward_metrics import score_answers
        from alignment.reward.factory import build_rewards

        answers = {"m": [response("a", CUT, finished=False), response("b", WHOLE, finished=True)]}
        found = score_answers(build_rewards((ModelReward(**model_reward),), context), [PROMPT, PROMPT], answers)
        return found["m"]["model"]
    from flows.pipeline.uncertainty_sampling import _scores

    item = Comparison(id="c", prompt=PROMPT, responses=(response("a", CUT, finished=False),
                                                        response("b", WHOLE, finished=True)))  # fmt: skip
    found = _scores(trained.reward, context.recipe, [item])  # type: ignore[attr-defined]
    return [found["a"], found["b"]]


PLACES = ("ppo", "ppo's rewards", "grpo", "best of n", "evaluate", "a metric", "uncertainty sampling")


@pytest.mark.parametrize("name", PLACES)
def test_one_answer_has_one_score_wherever_it_is_scored(
    name: str, trained: SimpleNamespace, make_context: MakeContext, base: Artifact, tmp_path: Path,
    expected: Mapping[bool, list[int]], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    with what_it_reads(LlamaForSequenceClassification) as read:
        cut, whole = place(name, trained, make_context, base, tmp_path)
    assert sorted(read) == sorted(expected.values())
    alone = {finished: scored(trained, expected[finished]) for finished in (True, False)}
    assert cut == pytest.approx(alone[False], abs=1e-5)
    assert whole == pytest.approx(alone[True], abs=1e-5)
    [margin] = trained.margins  # the reward stage's held-out accuracy
    assert whole - cut == pytest.approx(margin, abs=1e-5)
    assert abs(scored(trained, [*expected[False], expected[True][-1]]) - alone[False]) > 1e-3  # an end would tell


def scored(trained: SimpleNamespace, ids: list[int]) -> float:
    """By the model itself, without padding or batches."""
    import torch

    with torch.inference_mode():
        row = torch.tensor([ids])
        return float(trained.model(input_ids=row, attention_mask=torch.ones_like(row)).logits)


def test_a_reward_model_as_judge_reads_the_same(
    trained: SimpleNamespace, expected: Mapping[bool, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from alignment.judges.reward_model_judge import RewardJudge
    from alignment.recipe.judges import RewardModelJudge

    judge = RewardJudge(RewardModelJudge(kind="reward_model", model="reward"), trained.model, trained.tokenizer)
    both = (response("a", CUT, finished=False), response("b", WHOLE, finished=True))
    with what_it_reads(LlamaForSequenceClassification) as read:
        [found] = asyncio.run(judge.judge([Comparison(id="c", prompt=PROMPT, responses=both)]))
    assert sorted(read) == sorted(expected.values())
    assert found.left_first == pytest.approx(-trained.margins[0], abs=1e-5)


def test_dpo_teaches_no_end_to_a_cut_answer(
    trained: SimpleNamespace, base: Artifact, make_context: MakeContext, tmp_path: Path,
    expected: Mapping[bool, list[int]], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from alignment.stages.dpo import run

    settings = {"model": "base", "epochs": 1, "lora": {"rank": 4, "alpha": 8}}
    context = make_context(tmp_path, "dpo", {"base": base, "preferences": trained.pairs}, settings=settings)
    with what_it_reads(LlamaModel) as read:
        run(context.recipe.stages["dpo"], context)  # type: ignore[attr-defined]
    rows = list(read)
    assert expected[False] in rows
    assert expected[True] in rows
    assert [*expected[False], expected[True][-1]] not in rows


def test_from_the_sampler_to_pairs() -> None:
    """Comparisons carry it, votes rank, and pairs say it of both answers; corrections too."""
    both = [response("a", CUT, finished=False), response("b", WHOLE, finished=True)]
    [comparison] = make_comparisons([PROMPT], both, 1, seed=0)
    for best, worst in (("a", "b"), ("b", "a")):
        vote = Vote(id=best, comparison_id=comparison.id, rater="r", rater_kind="human", outcome="ranked",
                    ranking=((best,), (worst,)))  # fmt: skip
        [pair] = preference_pairs(consensus([comparison], [vote]), [comparison], 0.5)
        assert (pair.chosen_finished, pair.rejected_finished) == (best == "b", best == "a")
    [corrected] = corrected_pairs([Correction(comparison, "a", "Nobody saw it.")])
    assert (corrected.chosen_finished, corrected.rejected_finished) == (True, False)


def test_of_two_answers_with_one_text_the_one_that_ended_is_compared() -> None:
    same = [
        response("a", WHOLE, finished=False),
        response("z", WHOLE, finished=True),
        response("m", CUT, finished=False),
    ]
    [comparison] = make_comparisons([PROMPT], same, 3, seed=0)
    assert {one.id: one.finished for one in comparison.responses} == {"z": True, "m": False}


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_files_say_it_and_old_ones_need_not(suffix: str, tmp_path: Path) -> None:
    other = (Message(role="user", content="Who?"),)
    plain = the_pair(other).model_copy(update={"rejected_finished": True})
    path = tmp_path / f"pairs.{suffix}"
    write_preferences(path, [the_pair(), plain])
    assert [(pair.chosen_finished, pair.rejected_finished) for pair in read_preferences(path).pairs] == [
        (True, False), (True, True)]  # fmt: skip
    assert [[one.finished for one in known.comparison.responses] for known in read_comparisons(path)] == [
        [True, False], [True, True]]  # fmt: skip
    write_preferences(path, [plain])  # none was cut: TRL's columns alone
    if suffix == "jsonl":
        assert set(json.loads(path.read_text())) == {"prompt", "chosen", "rejected"}


def test_records_from_before_are_of_finished_answers() -> None:
    old = {"id": "p", "prompt_id": "q", "prompt": [{"role": "user", "content": "Who?"}], "chosen": "A", "rejected": "B",
           "margin": None, "raters": 1, "agreement": None, "rater_kind": "human", "kind": "general"}  # fmt: skip
    pair = PreferencePair.model_validate(old)
    assert pair.chosen_finished
    assert pair.rejected_finished
    import hashlib

    frozen = hashlib.sha256(json.dumps(old, sort_keys=True).encode() + b"\n").hexdigest()
    assert pairs_digest([pair]) == frozen  # votes that were frozen then can still be read
    assert pairs_digest([pair.model_copy(update={"rejected_finished": False})]) != frozen
    told = {"id": "a", "prompt_id": "q", "text": "A", "model": "m", "sampling": {}, "seed": 0, "tokens": 1}
    assert Response.model_validate(told).finished


def test_a_comparisons_file_may_say_it_of_an_answer(tmp_path: Path) -> None:
    from alignment.errors import InputError

    path = tmp_path / "comparisons.jsonl"
    row: dict[str, Any] = {"prompt": "Who?", "responses": [{"text": "Nob", "finished": False}, "Nobody."]}
    path.write_text(json.dumps(row))
    [known] = read_comparisons(path)
    assert [one.finished for one in known.comparison.responses] == [False, True]
    row["responses"][0]["finished"] = "no"
    path.write_text(json.dumps(row))
    with pytest.raises(InputError, match="not true or false"):
        read_comparisons(path)


def test_judges_are_told_where_an_answer_was_cut_off(tiny_model: Path) -> None:
    from alignment.judges.llm_judge import _texts
    from alignment.stages.pair_classifier import both_orders

    both = (response("a", CUT, finished=False), response("b", WHOLE, finished=True))
    assert _texts(Comparison(id="c", prompt=PROMPT, responses=both), 0)[1:] == ("Who saw the […]", "It is red.")
    tokenizer = load_tokenizer(tiny_model)
    first, last = both_orders(tokenizer, the_pair(), 64)
    assert "Answer A: It is red.\n\nAnswer B: Who saw the […]" in tokenizer.decode(first["input_ids"])
    assert "Answer A: Who saw the […]\n\nAnswer B: It is red." in tokenizer.decode(last["input_ids"])
    assert (first["labels"], last["labels"]) == ([1.0], [0.0])


def test_a_users_function_is_told_where_it_asks(tmp_path: Path) -> None:
    from alignment.recipe.rewards.user_function import FunctionReward
    from alignment.reward.protocol import RewardInput
    from alignment.reward.user_function import function

    path = tmp_path / "rewards.py"
    path.write_text(
        "def asks(prompts, responses, references, finished):\n    return [float(one) for one in finished]\n"
        "def takes_all(prompts, responses, references, **more):\n    return [float(one) for one in more['finished']]\n"
        "def does_not(prompts, responses, references, *, bonus=0):\n    return [bonus for _ in responses]\n"
    )
    answers = [RewardInput(PROMPT, CUT, 3, finished=False), RewardInput(PROMPT, WHOLE, 4)]
    for name, wanted in (("asks", [0.0, 1.0]), ("takes_all", [0.0, 1.0]), ("does_not", [2.0, 2.0])):
        options = {"bonus": 2} if name == "does_not" else {}
        reward = function(FunctionReward(kind="function", function=f"rewards.py:{name}", options=options), path)
        assert asyncio.run(reward(answers)) == wanted  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="finished is what the stage tells the function itself"):
        FunctionReward(kind="function", function="rewards.py:asks", options={"finished": 1})


def test_one_function_puts_an_answer_after_its_prompt() -> None:
    """Whoever needs the border between a prompt and an answer says whether it is finished; nobody else renders any."""
    root = Path(__file__).parents[2]
    files = [path for folder in ("alignment", "flows", "preference_ui") for path in (root / folder).rglob("*.py")]
    named = {str(path.relative_to(root)) for path in files if "render_answer" in path.read_text("utf-8")}
    assert named == {
        "alignment/chat.py", "alignment/metrics/model_metrics.py", "alignment/plan/texts.py",
        "alignment/stages/compression/quantise.py", "alignment/stages/kto.py",
    }  # fmt: skip
