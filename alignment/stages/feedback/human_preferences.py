"""The stage ``human_preferences``: the snapshot of people's votes that the run waited for, as what others train on."""

import json
from collections import Counter
from collections.abc import Callable, Mapping
from statistics import fmean
from typing import Any

from alignment.data.jsonl import read_records, write_records
from alignment.data.text import words
from alignment.durable_files import write_text
from alignment.errors import Fault, InputError
from alignment.preferences.preference_files import pairs_digest, rewritten_demonstrations
from alignment.preferences.single_answers.scores import ScoredAnswer, score_pairs
from alignment.preferences.single_answers.spans import AnswerSpans
from alignment.preferences.thumbs import LabelledAnswer, records_digest
from alignment.recipe.stages.feedback.preferences import HumanPreferencesStage
from alignment.records import FeedbackKind, PreferencePair
from alignment.stage import StageContext, StageResult

Figures = dict[str, float]


def run(settings: HumanPreferencesStage, context: StageContext) -> StageResult:
    """Writes what the votes come to, and ``agreement.json`` (raters, votes, Krippendorff's α, the snapshot's digest).

    That is ``pairs.jsonl`` of comparisons, ``feedback.jsonl`` of thumbs, ``pairs.jsonl`` and ``demonstrations.jsonl``
    of rewrites, ``scores.jsonl`` with the ``pairs.jsonl`` that follow from it, and ``spans.jsonl``. ``context.data``
    holds the "snapshot" (records) and, as "collection", what was counted when it was taken. Raises InputError where the
    snapshot's file is not what was taken.
    """
    taken = json.loads(context.data["collection"].read_text("utf-8"))
    with context.working():
        figures = _MADE[settings.feedback](context, taken)
    counted = {name: taken[name] for name in ("raters", "votes", "comparisons", "digest")}
    agreement = {"rater_kind": "human", "feedback": settings.feedback, "krippendorff_alpha": taken["agreement"]}
    write_text(context.output / "agreement.json", json.dumps(agreement | counted, indent=2) + "\n")
    metrics = {name: float(taken[name]) for name in ("comparisons", "votes", "raters")} | figures
    metrics |= {} if taken["agreement"] is None else {"krippendorff_alpha": taken["agreement"]}
    return StageResult(MADE_KIND[settings.feedback], metrics)


def _pairs(context: StageContext, taken: Mapping[str, Any]) -> Figures:
    pairs = read_records(context.data["snapshot"], PreferencePair)
    _require_digest(pairs_digest(pairs), context, taken)
    write_records(context.output / "pairs.jsonl", pairs)
    shares = [pair.agreement for pair in pairs if pair.agreement is not None]
    figures = {
        "pairs": float(len(pairs)),
        "chosen_words": fmean(len(words(pair.chosen)) for pair in pairs),
        "rejected_words": fmean(len(words(pair.rejected)) for pair in pairs),
    }
    return figures | ({"agreement": fmean(shares)} if shares else {})


def _thumbs(context: StageContext, taken: Mapping[str, Any]) -> Figures:
    answers = read_records(context.data["snapshot"], LabelledAnswer)
    _require_digest(records_digest(answers), context, taken)
    write_records(context.output / "feedback.jsonl", [one.feedback() for one in answers])
    return {
        "answers": float(len(answers)),
        "desirable": float(sum(one.label for one in answers)),
        "agreement": fmean(one.agreement for one in answers),
    }


def _rewrites(context: StageContext, taken: Mapping[str, Any]) -> Figures:
    """What people wrote is a demonstration, and preferred to the answer that it was made from."""
    pairs = read_records(context.data["snapshot"], PreferencePair)
    _require_digest(pairs_digest(pairs), context, taken)
    write_records(context.output / "pairs.jsonl", pairs)
    examples = rewritten_demonstrations(pairs)
    write_records(context.output / "demonstrations.jsonl", examples)
    return {
        "pairs": float(len(pairs)),
        "demonstrations": float(len(examples)),
        "rewritten_words": fmean(len(words(pair.chosen)) for pair in pairs),
        "shown_words": fmean(len(words(pair.rejected)) for pair in pairs),
    }


def _scores(context: StageContext, taken: Mapping[str, Any]) -> Figures:
    answers = read_records(context.data["snapshot"], ScoredAnswer)
    _require_digest(records_digest(answers), context, taken)
    write_records(context.output / "scores.jsonl", answers)
    pairs = score_pairs(answers)
    write_records(context.output / "pairs.jsonl", pairs)
    names = sorted({name for one in answers for name in one.scores})
    means = {f"score.{name}": fmean(one.scores[name] for one in answers if name in one.scores) for name in names}
    return {"answers": float(len(answers)), "pairs": float(len(pairs))} | means


def _spans(context: StageContext, taken: Mapping[str, Any]) -> Figures:
    answers = read_records(context.data["snapshot"], AnswerSpans)
    _require_digest(records_digest(answers), context, taken)
    write_records(context.output / "spans.jsonl", answers)
    labels = Counter(span.label for one in answers for span in one.spans)
    counted = {f"spans.{label}": float(count) for label, count in sorted(labels.items())}
    marked = sum(bool(one.spans) for one in answers)
    return {"answers": float(len(answers)), "marked": float(marked), "spans": float(labels.total())} | counted


def _require_digest(digest: str, context: StageContext, taken: Mapping[str, Any]) -> None:
    if digest != taken["digest"]:
        problem = f"the snapshot's digest is no longer {taken['digest'][:12]}"
        path = str(context.data["snapshot"])
        raise InputError([Fault(problem, "bring the file back as it was taken", file=path)])


_MADE: dict[FeedbackKind, Callable[[StageContext, Mapping[str, Any]], Figures]] = {
    "pairs": _pairs, "thumbs": _thumbs, "rewrites": _rewrites, "scores": _scores, "spans": _spans,
}  # fmt: skip
MADE_KIND: dict[FeedbackKind, str] = {  # of the artifact
    "pairs": "preferences", "thumbs": "feedback", "rewrites": "preferences", "scores": "scores", "spans": "spans",
}  # fmt: skip
