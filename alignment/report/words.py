"""The report's sentences and how it writes numbers."""

from collections.abc import Mapping

from alignment.evaluation import gate
from alignment.evaluation.gate import GateCheck, GateLook
from alignment.recipe.error_messages import STAGE_KINDS
from alignment.report.run_report import RunReport, StageReport

HEADLINES = {  # how a stage's headline metric is said; one that is not here stands with its name
    "loss": "loss {:.3f}",
    "perplexity": "held-out perplexity {:.2f}",
    "vocabulary": "{:,.0f} tokens",
    "bytes_per_token": "{:.2f} bytes each",
    "demonstrations": "{:,.0f} demonstrations",
    "responses": "{:,.0f} responses",
    "pairs": "{:,.0f} pairs",
    "answers": "{:,.0f} answers",
    "raters": "{:,.0f} raters",
    "revised": "{:,.0f} responses revised",
    "accuracy": "{:.0%} of held-out pairs right",
    "score": "score {:.3f}",
    "rewards/accuracies": "{:.0%} of training pairs right",
    "rewards/margins": "rewards {:.3f} apart",
    "reward": "reward {:.3f}",
    "players": "{:.0f} players",
    "divergence": "{:.3f} nats a token from its teacher",
    "equal_greedy": "{:.1%} of greedy tokens equal",
    "kl_per_token": "KL {:.3f} nats a token",
    "questions": "{:,.0f} questions",
    "points": "{:.0f} points measured",
    "parameters": "{:,.0f} parameters",
}


DATA_WORDS = {  # what the figures of a preference stage are called
    "agreement": "of votes agree with the winner",
    "answers": "single answers to train on",
    "desirable": "of them found good",
    "rewritten_words": "words, rewritten (mean)",
    "shown_words": "words, as shown (mean)",
    "marked": "of them with a mark",
    "spans": "marked parts",
    "krippendorff_alpha": "Krippendorff’s α",
    "ties": "votes for a tie",
    "both_bad": "votes for “both bad”",
    "pairs": "pairs to train on",
    "raters": "people",
    "chosen_words": "words, chosen (mean)",
    "rejected_words": "words, rejected (mean)",
    "held_out_pairs": "pairs held out",
    "held_out_prompts": "prompts held out",
    "kappa": "Cohen’s κ with the raters",
}
DATA_SOURCES = (  # other figures of the data: a kind of stage, its metric, and what it is called
    ("pretrain", "documents", "documents to pretrain on"),
    ("pretrain", "tokens", "tokens of them"),
    ("sft", "demonstrations", "demonstrations"),
    ("sample", "prompts", "prompts to train on"),
    ("sample", "responses", "responses to them"),
    ("kto", "answers", "answers found good or bad"),
)


JUDGED = ("comparisons", "votes", "pairs", "ties", "kappa", "chosen_words", "rejected_words")


def data_facts(report: RunReport) -> list[tuple[str, str]]:
    """How much data there was: figures and what they count."""
    facts = [
        (count(stage.metrics[metric]), name)
        for kind, metric, name in DATA_SOURCES
        for stage in report.stages
        if stage.kind == kind and metric in stage.metrics
    ]
    if (evaluation := report.evaluation) is None:
        return facts
    if evaluation.trained:
        return [*facts, (count(evaluation.prompts), "prompts of the training split asked")]
    where = f" in {evaluation.prompts_file}" if evaluation.prompts_file else ""
    return [*facts, (count(evaluation.prompts), f"prompts held out{where}")]


def preference_facts(figures: Mapping[str, float]) -> list[tuple[str, str]]:
    """A preference stage's figures and what they count; a judge's own figures have a table of their own."""
    facts = []
    for name, value in figures.items():
        if ("calibrated" in figures and name not in JUDGED) or name.startswith("left_out."):
            continue  # a table of their own has them
        text = percent(value) if name == "agreement" else count(value) if value == round(value) else short(value)
        facts.append((text, DATA_WORDS.get(name, _plain(name))))
    return facts


def _plain(name: str) -> str:
    """A figure's name that has no words of its own."""
    for kind, words in (("skipped.", "skipped: "), ("spans.", "marked: "), ("score.", "mean score: ")):
        name = name.replace(kind, words)
    return name.replace("_", " ")


def percent(share: float) -> str:
    """A share as a whole percentage, with a thin space."""
    return f"{100 * share:.0f}\u202f%"


def percent_range(low: float, high: float) -> str:
    """An interval as whole percentages."""
    return f"{100 * low:.0f}–{100 * high:.0f}\u202f%"


def duration(seconds: float) -> str:
    """Seconds as a person says them: 0.4 s, 12 s, 3 min 20 s, 2 h 5 min."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(round(whole / 60), 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


def count(number: float) -> str:
    """A count with thin spaces between the thousands."""
    return f"{number:,.0f}".replace(",", "\u202f")


def figure(value: float) -> str:
    """Any other number, to four digits, with a true minus sign."""
    return f"{value:.4g}".replace("-", "−")


def short(value: float) -> str:
    """A number to three digits, for where many stand together."""
    return f"{value:.3g}".replace("-", "−")


def model_words(model: str, candidate: str) -> str:
    """A model's stage, and what it is in this run."""
    if model == "base":
        return "base model"
    return f"{model} (candidate)" if model == candidate else model


def key_metric(stage: StageReport) -> str:
    """What a stage has to say in a few words; empty where it has no figure of note."""
    for name, value in stage.metrics.items():
        if name.startswith("win_rate.") and name.endswith(".value") and stage.kind == "evaluate":
            return f"wins {percent(value)} against {name.split('.')[1]}"
    for name, value in stage.metrics.items():
        if name.startswith("reward.") and name.endswith(".value") and stage.kind == "evaluate":  # the candidate's first
            return f"{name.split('.')[2]} {short(value)}"
    for name in headline_metrics(stage.kind):
        if name in stage.metrics:
            words = HEADLINES.get(name, f"{name.replace('_', ' ')} {{:.3g}}")
            return words.format(stage.metrics[name]).replace("%", "\u202f%")
    return ""


def row_words(stage: StageReport) -> str:
    """Which of its rows a stage left out, or learned little from; empty where that is none."""
    from alignment.training.row_counts import describe_counts  # brings transformers along

    counts = describe_counts(stage.metrics)
    return f"of its rows {counts}" if counts else ""


def headline_metrics(kind: str) -> tuple[str, ...]:
    """The metrics that say most of a stage of this kind; none where the kind is of another version."""
    return STAGE_KINDS[kind].spec.headline if kind in STAGE_KINDS else ()


def outcome(report: RunReport) -> str:
    """How the run ended: promoted, waiting, refused, failed or finished; also the class that colours the verdict."""
    if any(stage.status == "failed" for stage in report.stages):
        return "failed"
    if report.gate is None:
        return "finished"
    if report.gate.waits:
        approved = report.registered is not None and "champion" in report.registered.aliases
        return "promoted" if approved else "waiting"
    return "promoted" if report.gate.passed else "refused"


def headline(report: RunReport) -> str:
    """The verdict in one plain sentence."""
    how = outcome(report)
    if how == "failed":
        failed = next(stage for stage in report.stages if stage.status == "failed")
        return f"Stage {failed.name} failed, so nothing was decided."
    version = f"{report.registered.name} v{report.registered.version}" if report.registered else "The candidate"
    if how == "promoted":
        is_champion = report.registered is not None and "champion" in report.registered.aliases
        verb = "promoted to champion" if is_champion else "passed the gate"
        return f"{version} {verb}{_evidence(report)}."
    if how == "waiting":
        return f"{version} holds every condition and waits for a person's approval{_evidence(report)}."
    if how == "refused" and report.gate is not None:
        failed_checks = [check for check in report.gate.checks if not check.passed]
        return f"{version} refused: {'; '.join(_shortfall(check) for check in failed_checks)}."
    return f"The run finished; no gate decided{_evidence(report)}."


def check_words(check: GateCheck) -> str:
    """By how much a condition was met or missed, or why it could not be checked."""
    if check.problem is not None or check.by is None:
        return check.problem or check.note
    if not check.passed and check.by > 0:
        return "missed by the exact test"
    return f"{'met' if check.passed else 'missed'} by {abs(check.by):.2g}"


def level_words(level: float | None) -> str:
    """The one-sided level that a condition was held to; a dash for what is no end of an interval."""
    return "–" if level is None else gate.level_words(level).replace(" %", "\u202f%")


def look_words(look: GateLook) -> str:
    """Which look at its held-out prompts a verdict is, and what it spends, as the rest of "This is …"."""
    told = f"{look}".replace(" %", "\u202f%")
    why = "with each look at the same prompts chance has another go, so each is held to less"
    return f"{told}: {why}." if look.spends else f"{told}."


def _evidence(report: RunReport) -> str:
    if report.evaluation is None or not report.evaluation.win_rates:
        return ""
    rates = report.evaluation.win_rates
    rate = next((rate for rate in rates if rate.opponent == "base"), rates[0])
    whom = "the base model" if rate.opponent == "base" else rate.opponent
    return (
        f": it wins {percent(rate.value)} of {report.evaluation.prompts} held-out prompts against {whom} "
        f"(95\u202f% interval {percent_range(rate.low, rate.high)})"
    )


def _shortfall(check: GateCheck) -> str:
    if check.value is None or check.threshold is None or check.by is None:
        return f"{check.name} could not be checked ({check.problem})"
    if check.by > 0:
        return f"{check.name} was {figure(check.value)}, and the exact test does not bear it out ({check.test})"
    digits = next((d for d in range(3, 8) if f"{check.value:.{d}g}" != f"{check.threshold:.{d}g}"), 8)
    was, short_by = f"{check.value:.{digits}g}".replace("-", "−"), f"{abs(check.by):.2g}"
    return f"{check.name} was {was}, wanted {check.bound} {figure(check.threshold)} (short by {short_by})"
