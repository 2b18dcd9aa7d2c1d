"""The stage ``human_preferences``: the snapshot of people's votes that the run waited for, as pairs to train on."""

import json
from statistics import fmean

from alignment.data.jsonl import read_records, write_records
from alignment.data.text import words
from alignment.durable_files import write_text
from alignment.errors import Fault, InputError
from alignment.preferences.preference_files import pairs_digest
from alignment.recipe.stages.feedback.preferences import HumanPreferencesStage
from alignment.records import PreferencePair
from alignment.stage import StageContext, StageResult


def run(settings: HumanPreferencesStage, context: StageContext) -> StageResult:
    """Writes ``pairs.jsonl`` and ``agreement.json`` (raters, votes, Krippendorff's α, the snapshot's digest).

    ``context.data`` holds the "snapshot" (pairs as records) and, as "collection", what was counted when it was taken.
    Raises InputError where the snapshot's file is not what was taken.
    """
    path = context.data["snapshot"]
    taken = json.loads(context.data["collection"].read_text("utf-8"))
    with context.working():
        pairs = read_records(path, PreferencePair)
    if pairs_digest(pairs) != taken["digest"]:
        problem = f"the snapshot's digest is no longer {taken['digest'][:12]}"
        raise InputError([Fault(problem, "bring the file back as it was taken", file=str(path))])
    figures = {name: taken[name] for name in ("raters", "votes", "comparisons", "digest")}
    agreement = {"rater_kind": "human", "krippendorff_alpha": taken["agreement"], **figures}
    write_records(context.output / "pairs.jsonl", pairs)
    write_text(context.output / "agreement.json", json.dumps(agreement, indent=2) + "\n")
    shares = [pair.agreement for pair in pairs if pair.agreement is not None]
    metrics = {
        "comparisons": float(taken["comparisons"]),
        "votes": float(taken["votes"]),
        "raters": float(taken["raters"]),
        "pairs": float(len(pairs)),
        "chosen_words": fmean(len(words(pair.chosen)) for pair in pairs),
        "rejected_words": fmean(len(words(pair.rejected)) for pair in pairs),
    }
    metrics |= {"agreement": fmean(shares)} if shares else {}
    metrics |= {} if taken["agreement"] is None else {"krippendorff_alpha": taken["agreement"]}
    return StageResult("preferences", metrics)
