"""How the report says what metrics, slices and the leaderboard show, and no more than their intervals allow."""

from collections.abc import Mapping
from typing import Any

from alignment.evaluation.leaderboard import Leaderboard, Player
from alignment.report.run_report import FigureReport

METRIC_WORDS = {
    "bleu": "BLEU",
    "rouge_1": "ROUGE-1",
    "rouge_2": "ROUGE-2",
    "rouge_l": "ROUGE-L",
    "exact_match": "is the reference",
    "number_match": "right number",
    "macro_f1": "macro F1",
    "flesch_reading_ease": "Flesch reading ease",
    "flesch_kincaid_grade": "Flesch–Kincaid grade",
    "refusal": "refuses",
    "profanity": "profane words",
    "length": "length",
}


def metric_words(name: str) -> str:
    """A metric's name for people; a recipe's own name stays as it is, with spaces."""
    if name.startswith("pass_at_"):
        return f"pass@{name.removeprefix('pass_at_')}"
    return METRIC_WORDS.get(name, name.replace("_", " "))


def signed(value: float) -> str:
    """A difference to three digits, with its sign."""
    text = f"{value:+.3g}".replace("-", "−")
    return text if value else "0"


def lead_words(lead: FigureReport, better: str | None) -> str:
    """What a difference's interval allows to be said. It is never called one where the interval crosses zero."""
    if lead.open:
        return "no difference shows"
    if better is None:
        return "higher" if lead.value > 0 else "lower"
    return "better" if (lead.value > 0) == (better == "higher") else "worse"


def lead_class(lead: FigureReport, better: str | None) -> str:
    """The class that colours a difference; none where nothing may be said of it, or nobody can say which is better."""
    return {"better": "win", "worse": "loss"}.get(lead_words(lead, better), "")


def sampling_words(sampling: Mapping[str, Any]) -> str:
    """Sampling settings, those that do something."""
    temperature = sampling["temperature"]
    greedy = f"beam search with {sampling['beams']} beams" if sampling["beams"] > 1 else "greedy"
    words = [greedy if temperature == 0 else f"temperature {temperature:g}"]
    off = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}
    words += [f"{name.replace('_', '-')} {sampling[name]:g}" for name, value in off.items() if sampling[name] != value]
    if sampling["stop"]:
        words.append(f"stops at {', '.join(map(repr, sampling['stop']))}")
    return ", ".join([*words, f"at most {sampling['max_new_tokens']} tokens"])


def by_value(values: Mapping[str, str]) -> dict[str, list[str]]:
    """The names that share each value."""
    found: dict[str, list[str]] = {}
    for name, value in values.items():
        found.setdefault(value, []).append(name)
    return found


def player_words(player: Player) -> str:
    """A version's name: in the registry where it has one, else its stage and version."""
    return ", ".join(player.names) or player_place(player)


def player_place(player: Player) -> str:
    """The artifact that a version is, without its digest."""
    return player.ref.partition(":")[0] if ":" in player.ref else player.ref


def meeting_words(board: Leaderboard, row: str, column: str) -> str:
    """Wins, ties and losses of one player against another, whoever judged."""
    wins = ties = losses = 0
    for meeting in board.meetings:
        if (meeting.first, meeting.second) == (row, column):
            wins, ties, losses = wins + meeting.wins, ties + meeting.ties, losses + meeting.losses
        elif (meeting.second, meeting.first) == (row, column):
            wins, ties, losses = wins + meeting.losses, ties + meeting.ties, losses + meeting.wins
    return f"{wins} – {ties} – {losses}" if wins + ties + losses else ""
