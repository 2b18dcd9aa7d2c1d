"""The judges of a run, for its report: what was measured of them, in records and in words."""

from collections.abc import Mapping
from pathlib import Path

from alignment.judges.report import Figure, JudgeReport
from alignment.recipe.graph import judge_rewards, making
from alignment.recipe.recipe import Recipe
from alignment.records import Artifact
from alignment.report.words import count, percent, percent_range, short


def judge_reports(recipe: Recipe, artifacts: Mapping[str, Artifact]) -> dict[str, JudgeReport]:
    """What was measured of each judge, by its stage."""
    stages = [name for name in making(recipe.stages, "calibration") if name in artifacts]
    return {
        name: JudgeReport.model_validate_json((Path(artifacts[name].path) / "judge.json").read_text("utf-8"))
        for name in stages
    }


def uncalibrated(
    recipe: Recipe, artifacts: Mapping[str, Artifact], judges: Mapping[str, JudgeReport]
) -> tuple[str, ...]:
    """The stages that use a judge which nobody's votes were compared with."""

    def measured(calibrated_by: str | None) -> bool:
        return calibrated_by in judges and judges[calibrated_by or ""].calibrated

    rating = [
        name
        for name, stage in recipe.stages.items()
        if stage.evaluates() and name in artifacts and stage.judge_used() is not None
        and not measured(stage.calibration_used())
    ]  # fmt: skip
    rewarded = [
        name
        for name, stage in recipe.stages.items()
        for reward in judge_rewards(stage)
        if name in artifacts and not measured(reward.calibrated_by)
    ]  # fmt: skip
    return tuple(dict.fromkeys([*(name for name, judge in judges.items() if not judge.calibrated), *rewarded, *rating]))


def judge_rows(judges: Mapping[str, JudgeReport]) -> list[tuple[str, list[str]]]:
    """The table of judges: what each row is called, and each judge's figure."""
    rows: dict[str, list[str]] = {}
    for judge in judges.values():
        cells = {
            "is": judge.judge,
            "measured against": judge.raters if judge.calibrated else "nobody: uncalibrated",
            "pairs judged": count(judge.pairs),
            "agreement with them": _interval(judge.agreement, "percent", judge.calibrated),
            "Cohen’s κ with them": _interval(judge.kappa, "figure", judge.calibrated),
            "κ of one of them with the others (ceiling)": _interval(judge.ceiling, "figure", judge.calibrated),
            "calibration error (uncorrected)": _error(judge),
            "both orders agree": _interval(judge.position_consistency, "percent", True),
            "the same, position bias left in": _interval(judge.position_consistency_uncorrected, "percent", True),
            "bonus of the first place (log-odds)": short(judge.position_bias),
            "fitted temperature": short(judge.correction.temperature) if judge.calibrated else "uncalibrated",
            "the longer answer wins": _interval(judge.longer, "percent", True),
            "the same, by the raters": _interval(judge.raters_longer, "percent", judge.calibrated),
            "its own model’s answer wins": _interval(judge.own, "percent", True),
            "ties": count(judge.ties),
            "unparsable / no answer / not asked": f"{judge.unparsable} / {judge.failed} / {judge.unasked}",
            "answers that give orders to the judge": count(judge.suspect),
            "questions (answered from what was kept)": f"{judge.tally['asked']:,.0f} ({judge.tally['cached']:,.0f})",
            "tokens read / written": f"{judge.tally['prompt_tokens']:,.0f} / {judge.tally['answer_tokens']:,.0f}",
            "cost (paid in this run)": f"{judge.tally['money']:.4g} ({judge.tally['paid']:.4g})",
        }
        for name, cell in cells.items():
            rows.setdefault(name, []).append(cell)
    return list(rows.items())


def _interval(found: Figure | None, form: str, calibrated: bool) -> str:
    if not calibrated:
        return "uncalibrated"
    if found is None or found.value is None:
        return "–"
    if form == "percent":
        whole = "" if found.low is None or found.high is None else f" ({percent_range(found.low, found.high)})"
        return percent(found.value) + whole
    return short(found.value) + ("" if found.low is None or found.high is None else
                                 f" ({short(found.low)} to {short(found.high)})")  # fmt: skip


def _error(judge: JudgeReport) -> str:
    if not judge.calibrated:
        return "uncalibrated"
    if judge.ece is None or judge.ece_uncorrected is None:
        return "–"
    return f"{short(judge.ece)} ({short(judge.ece_uncorrected)})"
