"""The scope ``vote``: comparisons are drawn and judged in the name of the token's account, blind as on the page.

What goes out about a comparison is listed in :func:`_shown` and nowhere else: no model's name, no id of an answer or a
comparison, and nothing that tells gold from work.
"""

from typing import Annotated, Any

from fastapi import APIRouter, Depends

from preference_ui.accounts import accounts
from preference_ui.accounts.tokens import Bearer
from preference_ui.labelling.assignment import Lease, next_lease
from preference_ui.labelling.guidelines import has_read
from preference_ui.labelling.rater_progress import ProgressBook
from preference_ui.labelling.vote_schema import SubmittedVote
from preference_ui.labelling.voting import cast_vote
from preference_ui.store.errors import Refusal
from preference_ui.store.store import Store
from preference_ui.web.api.bearer import allowed
from preference_ui.web.api.models import (
    AnswerShown,
    CriterionShown,
    DrawnLease,
    FlagReason,
    Guidelines,
    GuidelinesRead,
    Identifier,
    LeaseShown,
    Mine,
    SkipReason,
    TrialFeedback,
    Turn,
    VoteTaken,
)

Voter = Annotated[Bearer, Depends(allowed("vote"))]


def vote_routes(store: Store) -> APIRouter:
    """What a token with the scope ``vote`` can do."""
    router = APIRouter(tags=["vote"])
    progress = ProgressBook(store)

    def account_of(bearer: Bearer) -> str:
        if bearer.account_id is None or bearer.state != "active":
            raise Refusal("paused", "Your work is paused by an administrator. Nothing you did is lost.")
        return bearer.account_id

    def cast(bearer: Bearer, lease: str, wire: dict[str, Any]) -> VoteTaken:
        receipt = cast_vote(store, account_of(bearer), lease, wire, token=bearer.id)
        told = None if receipt.feedback is None else TrialFeedback.model_validate(receipt.feedback)
        return VoteTaken(vote=receipt.vote_id, repeated=receipt.repeated, feedback=told)

    @router.get("/guidelines")
    def show_guidelines(bearer: Voter) -> Guidelines:
        """What raters are asked, and by which criteria answers may be scored."""
        version, settings = store.settings()
        criteria = [CriterionShown(**criterion.model_dump()) for criterion in settings.criteria]
        read = has_read(store, bearer.guidelines_read, version, settings.guidelines)
        return Guidelines(version=version, text=settings.guidelines, criteria=criteria, read=read)

    @router.post("/guidelines/read")
    def read_guidelines(sent: GuidelinesRead, bearer: Voter) -> Guidelines:
        """Says that the guidelines were read: before that nothing is handed out, as on the page."""
        version, settings = store.settings()
        if sent.version != version:
            raise Refusal("over", "The guidelines have changed meanwhile: read them again.")
        accounts.guidelines_were_read(store, account_of(bearer), version)
        criteria = [CriterionShown(**criterion.model_dump()) for criterion in settings.criteria]
        return Guidelines(version=version, text=settings.guidelines, criteria=criteria, read=True)

    @router.post("/leases")
    def draw(bearer: Voter) -> DrawnLease:
        """The comparison to vote on: the one in this rater's hands, else a new one."""
        account = account_of(bearer)
        version, settings = store.settings()
        if not has_read(store, bearer.guidelines_read, version, settings.guidelines):
            raise Refusal("guidelines", "Read the guidelines first: GET /guidelines, then POST /guidelines/read.")
        lease = next_lease(store, account)
        return DrawnLease(lease=None if lease is None else _shown(lease))

    @router.post("/leases/{lease}/vote")
    def vote(lease: Identifier, sent: SubmittedVote, bearer: Voter) -> VoteTaken:
        """Gives the verdict. Sent again, it changes nothing and says so."""
        return cast(bearer, lease, sent.model_dump(mode="json", exclude_unset=True))

    @router.post("/leases/{lease}/skip")
    def skip(lease: Identifier, sent: SkipReason, bearer: Voter) -> VoteTaken:
        """Passes a comparison by: somebody else gets it."""
        return cast(bearer, lease, {"outcome": "skipped", "reason": sent.reason, "comment": sent.comment})

    @router.post("/leases/{lease}/flag")
    def flag(lease: Identifier, sent: FlagReason, bearer: Voter) -> VoteTaken:
        """Says what is wrong with a comparison. One with personal data is handed out no more until an administrator
        has looked at it."""
        return cast(bearer, lease, {"outcome": "flagged", "reason": sent.reason, "comment": sent.comment})

    @router.get("/progress")
    def show_progress(bearer: Voter) -> Mine:
        """How far this rater is."""
        return Mine(**progress.of(account_of(bearer)))

    return router


def _shown(lease: Lease) -> LeaseShown:
    by_id = {response.id: response for response in lease.comparison.responses}
    return LeaseShown(
        lease=lease.id,
        trial=lease.purpose == "trial",
        changes_a_vote=lease.revises is not None,
        expires=lease.expires,
        prompt=[Turn(role=turn.role, content=turn.content) for turn in lease.comparison.prompt.messages],
        answers=[
            AnswerShown(position=at, text=by_id[one].text, names_itself=one in lease.self_naming,
                        cut=not by_id[one].finished)
            for at, one in enumerate(lease.order)
        ],
    )  # fmt: skip
