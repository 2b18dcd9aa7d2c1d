"""What was measured of a judge, as it is written beside its verdicts and shown in a run's report."""

from collections.abc import Mapping

from alignment.judges.protocol import JudgeCorrection
from alignment.records import Record


class Figure(Record):
    """A figure, its 95 % interval where it has one, and over how many pairs."""

    value: float | None  # None: undefined
    low: float | None = None
    high: float | None = None
    n: int = 0


class JudgeReport(Record):
    """Everything that was measured of a judge: ``judge.json`` is this record.

    Without raters, ``calibrated`` is False and what needs them is None. Shares lie in [0, 1]. ``longer`` is how often
    the judge's winner is the longer answer, ``raters_longer`` the same of the raters on the pairs both decided.
    ``own`` is how often an answer of the judge's own model wins against another's.
    """

    judge: str
    kind: str
    digest: str  # of the judge's settings: a reward that names this calibration must have the same
    correction: JudgeCorrection
    calibrated: bool
    raters: str = ""  # who they are
    pairs: int  # judged
    agreement: Figure | None = None
    kappa: Figure | None = None
    ceiling: Figure | None = None  # κ of one rater with the others' consensus, mean over raters
    ece: float | None = None
    ece_uncorrected: float | None = None
    position_consistency: Figure
    position_consistency_uncorrected: Figure
    position_bias: float  # log-odds for the first place
    longer: Figure | None = None
    raters_longer: Figure | None = None
    own: Figure | None = None
    ties: int
    unparsable: int
    failed: int
    unasked: int
    suspect: int
    tally: Mapping[str, float]


def judge_words(judge: str, report: JudgeReport | None) -> str:
    """Who an AI judge is, and how far it may be trusted; ``report`` is of its calibration, where there is one."""
    if report is None or not report.calibrated or report.kappa is None or report.kappa.value is None:
        return f"an AI judge, uncalibrated ({judge}): no rater's votes say how far to trust it"
    return f"an AI judge ({judge}), whose κ with {report.raters} is {report.kappa.value:.2f}"
