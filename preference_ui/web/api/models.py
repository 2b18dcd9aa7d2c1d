"""What goes over the wire of the API, and in which bounds."""

from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr, model_validator

from alignment.records import Vote
from preference_ui.labelling.vote_schema import FLAG_REASONS, SKIP_REASONS, storable
from preference_ui.quality.whole_records import WholeRecord

ROWS = 1_000  # of a request
PAGE, MOST = 100, 500  # rows of an answer: unless it is said, and at most


def _storable(value: str) -> str:
    if not storable(value):
        raise ValueError("a NUL or a broken character is in it")
    return value


Text = Annotated[str, Field(max_length=200), AfterValidator(_storable)]
Identifier = Annotated[StrictStr, Field(min_length=1, max_length=128), AfterValidator(_storable)]
QueueName = Annotated[StrictStr, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
Comment = Annotated[StrictStr, Field(max_length=2_000)]


class Sent(BaseModel):
    """What a program sends: nothing beside what is listed."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class NewRows(Sent):
    """Comparisons, or answers for a thumb, as in a file of `rlhf votes import`."""

    rows: Annotated[list[Any], Field(min_length=1, max_length=ROWS)]
    """`{"prompt", "responses"}`, `{"prompt", "chosen", "rejected"}`, `{"prompt", "response"}` or whole records."""
    queue: QueueName = "default"
    """Where they wait."""
    votes_wanted: Annotated[StrictInt, Field(ge=1, le=10_000)] | None = None
    """Raters per comparison. null: as the queue says, or 3."""
    gold: StrictBool = False
    """The better answer is known (`chosen`, `rejected`): mixed in silently to test raters."""


class RowsTaken(BaseModel):
    """What became of the rows: `new`, `repeated` (an earlier row of these) or `known` (queued before).

    Where they were sent as gold, `turned` of the known ones became gold, and `kept` did not: raters have had them.
    """

    rows: int
    new: int
    repeated: int
    known: int
    turned: int
    kept: int


class Named(Sent):
    """Records by their ids."""

    ids: Annotated[list[Identifier], Field(min_length=1, max_length=ROWS)]


class Changed(BaseModel):
    """How many records were changed, and which ids there are none of."""

    changed: int
    unknown: list[str]


class VotePage(BaseModel):
    """Votes that stand, oldest first; `next` is the cursor of the page that follows, or null."""

    votes: list[Vote]
    next: str | None


class RecordsPage(BaseModel):
    """Records by id; `next` is the cursor of the page that follows, or null."""

    records: list[WholeRecord]
    next: str | None


class QueueFigures(BaseModel):
    """A queue: its comparisons, those with all votes, votes cast and wanted, and how far they agree."""

    queue: str
    comparisons: int
    complete: int
    votes: int
    wanted: int
    raters: int
    alpha: float | None = Field(description="Krippendorff's α of the verdicts")
    units: int = Field(description="pairs of answers that two raters or more have judged")


class QueuesProgress(BaseModel):
    """Every queue, the votes ever given, comparisons in raters' hands, and who voted in the last ten minutes."""

    queues: list[QueueFigures]
    votes: int
    open_leases: int
    raters_at_work: int


class LabelShown(BaseModel):
    """What may be said of a marked part of an answer."""

    name: str
    rubric: str


class CriterionShown(BaseModel):
    """What answers may be scored by, 1 (poor) to 5 (excellent)."""

    name: str
    rubric: str


class Guidelines(BaseModel):
    """What raters are asked: all of them, or those who work on one queue whose guidelines are its own.

    `read` says that this account has read them. `mark` is sent back when they were read: it changes with the text.
    """

    queue: str | None = None
    mark: str
    version: int
    text: str
    criteria: list[CriterionShown]
    skip_reasons: list[str] = list(SKIP_REASONS)
    flag_reasons: list[str] = list(FLAG_REASONS)
    read: bool


class GuidelinesRead(Sent):
    """The guidelines that were read: their `version`, or the `queue` whose own they are with their `mark`."""

    version: StrictInt | None = None
    queue: str | None = Field(default=None, max_length=64)
    mark: str | None = Field(default=None, max_length=64)

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.version is None) == (self.queue is None) or (self.queue is None) != (self.mark is None):
            raise ValueError("send version, or queue with its mark")
        return self


class Turn(BaseModel):
    """A turn of the conversation."""

    role: str
    content: str


class AnswerShown(BaseModel):
    """An answer, by its position. Nothing says who wrote it."""

    position: int
    text: str
    names_itself: bool = Field(description="the text says which model or company wrote it")
    cut: bool = Field(description="it ended at its greatest length")


class LeaseShown(BaseModel):
    """A comparison in this rater's hands, until it expires. Answers are spoken of by their positions."""

    lease: str
    trial: bool = Field(description="the answer is known, and told after the vote")
    changes_a_vote: bool = Field(description="a vote of this rater that was opened again on the page")
    expires: datetime
    prompt: list[Turn]
    answers: list[AnswerShown]
    single: str = Field(description="what is asked where there is one answer: thumbs, rewrites, scores or spans")
    criteria: list[CriterionShown] = Field(
        description="by which answers may be scored; with single=scores, all of them"
    )
    labels: list[LabelShown] = Field(description="of marked parts, where single is spans")


class DrawnLease(BaseModel):
    """What to vote on next; null when nothing is left for this rater."""

    lease: LeaseShown | None


class Reason(Sent):
    """Why no vote is given, or what is wrong with a record, and a comment."""

    reason: StrictStr
    comment: Comment = ""


class SkipReason(Reason):
    """Why a comparison is passed by."""

    reason: Literal["cannot_judge", "language", "unclear", "uncomfortable"]


class FlagReason(Reason):
    """What is wrong with a comparison."""

    reason: Literal["unsafe", "broken", "personal_data"]


class TrialFeedback(BaseModel):
    """After a vote on the trial: whether it was right, the right ranking by position, and why."""

    right: bool
    ranking: list[list[int]]
    why: str


class VoteTaken(BaseModel):
    """A vote that is on the disk. `repeated`: it was before, and nothing was changed."""

    vote: str
    repeated: bool
    feedback: TrialFeedback | None = None


class Mine(BaseModel):
    """This rater's work: votes given, comparisons left, and minutes that they take."""

    done: int
    left: int
    minutes: int | None


class RowProblem(BaseModel):
    """What is wrong in one place. `row` counts from 1."""

    row: int | None = None
    field: str | None = None
    problem: str
    remedy: str = ""


class Problem(BaseModel):
    """Why nothing was done: `detail` for people, `code` for programs, every fault where rows or fields are wrong."""

    detail: str
    code: str
    faults: list[RowProblem] = []
