"""Which held-out answers the report shows: chosen by rule, losses included."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alignment.report.run_report import Answer, EvaluationReport, JudgedAnswer, Sample, Verdict

MOST, LOSSES = 12, 3
Row = dict[str, Any]


def choose_samples(folder: Path, evaluation: EvaluationReport) -> tuple[tuple[Sample, ...], str]:
    """Samples from an evaluation's ``samples.jsonl``, and how they were chosen, in a sentence.

    The order is by the digest of the prompt's id, which no figure has a part in. First one prompt of each kind (of at
    most 9 kinds), then losses until three are shown or there are no more, then further prompts up to 8.
    """
    text = (folder / "samples.jsonl").read_text("utf-8")
    rows = sorted((json.loads(line) for line in text.splitlines() if line), key=_order)
    lost = [row for row in rows if _verdict(row, evaluation) == "loss"]
    chosen: list[Row] = []
    for row in rows:
        if row["kind"] not in {other["kind"] for other in chosen} and len(chosen) < MOST - LOSSES:
            chosen.append(row)
    missing = LOSSES - sum(row in lost for row in chosen)
    chosen += [row for row in lost if row not in chosen][: max(missing, 0)]
    chosen += [row for row in rows if row not in chosen][: max(8 - len(chosen), 0)]
    shown = sorted(chosen, key=lambda row: (row["kind"], _order(row)))
    where = "prompts of the training split" if evaluation.trained else "held-out prompts"
    how = (
        f"{len(shown)} of {len(rows)} {where}, in the order of their ids' digests: "
        f"the first of each kind, then losses until {LOSSES} are shown where there are as many."
    )
    return tuple(_sample(row, list(evaluation.models), evaluation.candidate) for row in shown), how


def _order(row: Row) -> str:
    return hashlib.sha256(str(row["prompt_id"]).encode()).hexdigest()


def _verdict(row: Row, evaluation: EvaluationReport) -> Verdict | None:
    value = row["outcomes"].get(evaluation.opponent, {}).get(evaluation.judge)
    return None if value is None else _word(value)


def _word(value: float) -> Verdict:
    return "win" if value > 0.5 else "loss" if value < 0.5 else "tie"


def _sample(row: Row, models: Sequence[str], candidate: str) -> Sample:
    """One row. The candidate's answer comes last: before, then after."""
    order = sorted(models, key=lambda model: (model == candidate, model != "base"))
    turns = row["prompt"]
    prompt = turns[0]["content"] if len(turns) == 1 else "\n\n".join(f"{t['role']}: {t['content']}" for t in turns)
    return Sample(
        prompt=prompt,
        kind=row["kind"],
        reference=row["reference"],
        answers=tuple(
            Answer(
                model=model,
                text=row["texts"][model],
                finished=row["finished"][model],
                turns=row.get("turns", {}).get(model, ()),
                scores=row["scores"][model] if row.get("turns") else {},
            )
            for model in order
        ),
        judgements=tuple(
            JudgedAnswer(opponent=opponent, judge=judge, outcome=_word(value))
            for opponent, judged in row["outcomes"].items()
            for judge, value in judged.items()
        ),
    )
