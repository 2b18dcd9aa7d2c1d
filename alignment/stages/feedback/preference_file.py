"""The stage ``preference_file``: pairs that the user brings, split into train and held out by content."""

from collections.abc import Iterable

from alignment.data.jsonl import write_records
from alignment.data.preferences import load_preferences
from alignment.errors import StageError
from alignment.recipe.stages.feedback.preferences import PreferenceFileStage
from alignment.records import PreferencePair, Prompt
from alignment.stage import StageContext, StageResult


def run(settings: PreferenceFileStage, context: StageContext) -> StageResult:
    """Writes ``pairs.jsonl`` (to train on), ``held_out.jsonl`` and ``prompts.jsonl`` (the held-out prompts).

    Raises InputError where the file is wrong, StageError where one side of the split is empty.
    """
    share = context.run.held_out
    with context.working():
        train, held_out, skipped = load_preferences(context.data["preferences"], share, settings.format, settings.limit)
    if not train or not held_out:
        raise StageError(
            f"{len(train)} pairs to train on and {len(held_out)} held out (data.held_out={share}); "
            "both must be more than none: give more pairs, or change the share"
        )
    prompts = pair_prompts(held_out)
    write_records(context.output / "pairs.jsonl", train)
    write_records(context.output / "held_out.jsonl", held_out)
    write_records(context.output / "prompts.jsonl", prompts)
    metrics = {
        "pairs": float(len(train)),
        "held_out_pairs": float(len(held_out)),
        "held_out_prompts": float(len(prompts)),
    }
    metrics |= {f"skipped.{reason.name.lower()}": float(count) for reason, count in skipped.items()}
    return StageResult("preferences", metrics)


def pair_prompts(pairs: Iterable[PreferencePair]) -> list[Prompt]:
    """The prompts of pairs, each once, in the order of their first pair."""
    prompts = {pair.prompt_id: Prompt(id=pair.prompt_id, messages=pair.prompt, kind=pair.kind) for pair in pairs}
    return list(prompts.values())
