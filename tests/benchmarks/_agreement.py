"""How far a judge and a reward model agree with people's choices in published preference data."""

import asyncio
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alignment.records import Artifact, PreferencePair

ROOT = Path(__file__).parents[2]
NAMES = ("hh_rlhf_harmless", "hh_rlhf_helpful", "oasst_trees_en")


def data_folder(given: str | None) -> Path:
    """``given``, else where the tests look for real data."""
    import os

    return Path(given or os.environ.get("RLHF_FLOWS_DATA") or ROOT / "shared" / "data")


def measure(name: str, path: Path, base: Artifact, arguments: Namespace, folder: Path) -> None:
    """Prints what the label-probability judge and a reward model make of one file's held-out pairs."""
    from alignment.data.preferences import load_preferences

    train, held_out, _skipped = load_preferences(path, 0.4)
    fitting = [pair for pair in held_out if _characters(pair) <= arguments.max_characters]
    left_out = f"{len(held_out) - len(fitting)} of {len(held_out)} held-out pairs are longer than --max-characters"
    print(f"{name}: {len(fitting)} held-out pairs to choose from; {left_out}", flush=True)
    if arguments.agreement_pairs:
        _judge(name, sorted(fitting, key=lambda pair: pair.id)[: arguments.agreement_pairs], base, arguments)
    if arguments.reward_pairs or arguments.reward_model:
        short = sorted((pair for pair in train if _characters(pair) <= arguments.max_characters), key=lambda p: p.id)
        asked = sorted(fitting, key=lambda pair: pair.id)[: arguments.reward_held_out]
        _reward(name, short[: arguments.reward_pairs], asked, base, arguments, folder)


def _characters(pair: PreferencePair) -> int:
    return sum(len(message.content) for message in pair.prompt) + max(len(pair.chosen), len(pair.rejected))


def _judge(name: str, pairs: Sequence[PreferencePair], base: Artifact, arguments: Namespace) -> None:
    """Both orders, the bonus of the first place taken off; a tie counts half."""
    from alignment.judges import calibration
    from alignment.judges.logprob_judge import LabelJudge
    from alignment.judges.protocol import side
    from alignment.recipe.judges import LabelProbabilitiesJudge

    known = calibration.known_from_pairs(pairs)
    model, tokenizer = _loaded(base, arguments)
    settings = LabelProbabilitiesJudge(kind="label_probabilities", question=arguments.question)
    judge = LabelJudge(settings, model, tokenizer, "embedded")
    started = time.perf_counter()
    judged = asyncio.run(judge.judge([one.comparison for one in known]))
    seconds = time.perf_counter() - started
    correction = calibration.fit(judged, {}, position=True)
    both = [(one, judgement) for one, judgement in zip(known, judged, strict=True) if judgement.read]
    decisions = [(one.decision, correction.decision(judgement)) for one, judgement in both]
    forced = [(one.decision, side((correction.probability(judgement) or 0.5) - 0.5)) for one, judgement in both]
    pairs_judged = [(one.comparison, judgement) for one, judgement in zip(known, judged, strict=True)]
    steady = calibration.consistency(pairs_judged, correction)
    print(
        f"{name}: label probabilities agree on {_rate(decisions)}, where both orders must say the same and else it is "
        f"a tie;\n    on {_rate(forced)} by the mean of both orders; the orders agree on "
        f"{_percent(steady.value or 0.0)}; {len(judged) - len(both)} not read; {len(judged) / seconds:.2f} pairs/s",
        flush=True,
    )


def _rate(decisions: Sequence[tuple[str, str | None]]) -> str:
    from alignment.evaluation.win_rate import win_rate

    if not decisions:
        return "nothing: no verdict could be read"
    found = win_rate([0.5 if ours == "tie" else float(ours == theirs) for theirs, ours in decisions])
    return f"{_percent(found.value)} ({_percent(found.low)} to {_percent(found.high)}; n = {found.n})"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _loaded(base: Artifact, arguments: Namespace) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM

    from alignment.chat import load_tokenizer

    model = AutoModelForCausalLM.from_pretrained(base.path, dtype=getattr(torch, arguments.dtype)).eval()
    return model, load_tokenizer(base.path)


def _reward(
    name: str,
    train: Sequence[PreferencePair],
    held_out: Sequence[PreferencePair],
    base: Artifact,
    arguments: Namespace,
    folder: Path,
) -> None:
    """The stage ``reward`` on so many pairs (or a reward model that is there), on pairs that it never saw."""
    from alignment.evaluation.calibration import pair_accuracy
    from alignment.models.reward_model import load_reward_model, score
    from alignment.stages.reward import _row

    started = time.perf_counter()
    recipe = _recipe(arguments)
    settings: Any = recipe.stages["reward"]
    if arguments.reward_model:
        artifact, what = _artifact(Path(arguments.reward_model)), f"the reward model {arguments.reward_model}"
    else:
        artifact, what = _trained(train, held_out, base, recipe, folder), f"a reward model of {len(train)} pairs"
    seconds = time.perf_counter() - started
    model, tokenizer = load_reward_model(artifact, recipe.run_settings())
    rows = [_row(tokenizer, pair, settings) for pair in held_out]
    scores = score(model, tokenizer, [row[side] for side in ("chosen_ids", "rejected_ids") for row in rows])
    found = pair_accuracy(scores[: len(rows)], scores[len(rows) :])
    print(
        f"{name}: {what} agrees on {_percent(found.value)} ({_percent(found.low)} to {_percent(found.high)}; "
        f"n = {len(rows)}); {seconds:.0f} s to train",
        flush=True,
    )


def _recipe(arguments: Namespace) -> Any:
    from alignment.recipe.recipe import Recipe
    from alignment.recipe.run_settings import ModelSettings
    from alignment.recipe.stages.feedback.preferences import PreferenceFileStage
    from alignment.recipe.stages.reward import RewardStage

    return Recipe(
        name="agreement",
        seed=17,
        model=ModelSettings(base="embedded:smollm2-135m", dtype=arguments.dtype),
        stages={
            "people": PreferenceFileStage(kind="preference_file"),
            "reward": RewardStage(kind="reward", preferences="people", max_length=1024, batch_size=4),
        },
    )


def _artifact(path: Path) -> Artifact:
    return Artifact(name=path.name, kind="preferences", version=1, digest="0", path=str(path), key=path.name)


def _trained(
    train: Sequence[PreferencePair], held_out: Sequence[PreferencePair], base: Artifact, recipe: Any, folder: Path
) -> Artifact:
    from alignment.data.jsonl import write_records
    from alignment.stages.reward import run
    from tests.contexts import stage_context

    for part in ("people", "output", "checkpoints"):
        (folder / part).mkdir(parents=True)
    write_records(folder / "people" / "pairs.jsonl", train)
    write_records(folder / "people" / "held_out.jsonl", held_out)
    inputs = {"base": base, "people": _artifact(folder / "people")}
    context = stage_context("reward", recipe, inputs, {}, folder / "output", folder / "checkpoints")
    run(recipe.stages["reward"], context)
    return _artifact(folder / "output")
