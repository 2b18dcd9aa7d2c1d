"""The raters that a judge is measured against: what they found, on which answers, and their votes where they are kept.

Answers are known again by their text, whichever stage asked about them and on whichever side they stand.
"""

from dataclasses import dataclass
from pathlib import Path

from alignment.data.jsonl import read_records
from alignment.judges import calibration
from alignment.judges.calibration import Known, content_key
from alignment.judges.protocol import Decision
from alignment.preferences.consensus import current_votes
from alignment.recipe.stages.feedback.judge import JudgeStage
from alignment.records import Comparison, PreferencePair, Vote
from alignment.stage import StageContext


@dataclass(frozen=True, slots=True)
class Raters:
    """The calibration's raters: what they found, by content; their votes by the same; and who they are."""

    known: dict[str, Known]
    votes: dict[str, list[tuple[Comparison, Vote]]]
    who: str

    def votes_on(self, mine: dict[str, Comparison]) -> list[Vote]:
        """Their votes on these comparisons, in the comparisons' own ids."""
        return [
            _as_vote_on(mine[key], theirs, vote)
            for key in mine
            if key in self.votes
            for theirs, vote in self.votes[key]
        ]


def raters_of(settings: JudgeStage, context: StageContext) -> Raters:
    """What the calibration's stage knows; its votes where it has them, else its pairs."""
    if settings.calibration is None:
        return Raters({}, {}, "")
    folder = Path(context.inputs[settings.calibration].path)
    if not (folder / "votes.jsonl").exists():
        pairs = read_records(folder / "pairs.jsonl", PreferencePair)
        found = {content_key(one.comparison): one for one in calibration.known_from_pairs(pairs)}
        kinds = {pair.rater_kind for pair in pairs}
        who = "people" if kinds == {"human"} else "the raters of a file"
        votes = {} if kinds != {"human"} else {key: [(one.comparison, _pair_vote(one))] for key, one in found.items()}
        return Raters(found, votes, f"{who} ({len(pairs)} pairs)")
    comparisons = read_records(folder / "comparisons.jsonl", Comparison)
    cast = [vote for vote in current_votes(read_records(folder / "votes.jsonl", Vote)) if vote.rater_kind != "judge"]
    by_id = {comparison.id: comparison for comparison in comparisons}
    by_key: dict[str, list[tuple[Comparison, Vote]]] = {}
    for vote in cast:
        comparison = by_id[vote.comparison_id]
        by_key.setdefault(content_key(comparison), []).append((comparison, vote))
    known = {content_key(one.comparison): one for one in calibration.known_from_votes(comparisons, cast)}
    names = {vote.rater for vote in cast}
    kind = next((vote.rater_kind for vote in cast), "simulated")
    return Raters(known, by_key, calibration.rater_kinds(kind, len(names)))


def turned(known: Known, comparison: Comparison) -> Known:
    """What raters found, for a comparison of the same answers that may have them the other way round."""
    if known.comparison.responses[0].text.strip() == comparison.responses[0].text.strip():
        return known
    swap: dict[Decision, Decision] = {"left": "right", "right": "left", "tie": "tie"}
    return known.model_copy(
        update={
            "decision": swap[known.decision],
            "by_rater": {rater: swap[decision] for rater, decision in known.by_rater.items()},
            "probability": 1 - known.probability,
        }
    )


def _as_vote_on(mine: Comparison, theirs: Comparison, vote: Vote) -> Vote:
    """A vote on the same answers under other ids."""
    ids = {response.id: next(r.id for r in mine.responses if r.text.strip() == response.text.strip())
           for response in theirs.responses}  # fmt: skip
    ranking = tuple(tuple(sorted(ids[response] for response in group)) for group in vote.ranking)
    return vote.model_copy(update={"comparison_id": mine.id, "ranking": ranking, "supersedes": None})


def _pair_vote(known: Known) -> Vote:
    """People's consensus on a pair of whose votes only it is left."""
    left, right = (response.id for response in known.comparison.responses)
    best, worst = (left, right) if known.decision == "left" else (right, left)
    return Vote(id=f"consensus-{known.comparison.id}", comparison_id=known.comparison.id, rater="people",
                rater_kind="human", outcome="ranked", ranking=((best,), (worst,)))  # fmt: skip
