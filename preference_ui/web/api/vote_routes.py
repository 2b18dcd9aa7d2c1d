"""The scope ``vote``: comparisons are drawn and judged in the name of the token's account, blind as on the page.

What goes out about a comparison is listed in :func:`_shown` and nowhere else: no model's name, no id of an answer or a
comparison, and nothing that tells gold from work.
"""

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query

from preference_ui.accounts import accounts
from preference_ui.accounts.tokens import Bearer
from preference_ui.labelling.assignment import Lease, next_lease
from preference_ui.labelling.consent import asked_before_work
from preference_ui.labelling.guidelines import has_read, queue_guidelines, queue_was_read
from preference_ui.labelling.rater_progress import ProgressBook
from preference_ui.labelling.vote_schema import SubmittedVote
from preference_ui.labelling.voting import cast_vote
from preference_ui.store.errors import Refusal
from preference_ui.store.queue_settings import GENERAL, QueueSettings
from preference_ui.store.settings import Criterion, DeskSettings
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
    LabelShown,
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
    def show_guidelines(bearer: Voter, queue: Annotated[str | None, Query(max_length=64)] = None) -> Guidelines:
        """What raters are asked, and by which criteria answers may be scored: in a `queue` that has guidelines of its
        own those, else everybody's."""
        if queue is not None:
            found = queue_guidelines(store, account_of(bearer), queue)
            is_ours = found.settings.admits(bearer.account or "")
            if is_ours and found.settings.guidelines is not None and found.digest is not None:
                return _guidelines(
                    store, found.settings.guidelines, mark=found.digest, read=found.read, queue=queue,
                    criteria=found.settings.criteria,
                )  # fmt: skip
        version, settings = store.settings()
        read = has_read(store, bearer.guidelines_read, version, settings.guidelines)
        return _guidelines(store, settings.guidelines, mark=str(version), read=read)

    @router.post("/guidelines/read")
    def read_guidelines(sent: GuidelinesRead, bearer: Voter) -> Guidelines:
        """Says that the guidelines were read: before that nothing is handed out, as on the page."""
        if sent.queue is not None and sent.mark is not None:
            queue_was_read(store, account_of(bearer), sent.queue, sent.mark)
            return show_guidelines(bearer, sent.queue)
        version, settings = store.settings()
        if sent.version != version:
            raise Refusal("over", "The guidelines have changed meanwhile: read them again.")
        accounts.guidelines_were_read(store, account_of(bearer), version)
        return _guidelines(store, settings.guidelines, mark=str(version), read=True)

    @router.post("/leases")
    def draw(bearer: Voter) -> DrawnLease:
        """The comparison to vote on: the one in this rater's hands, else a new one."""
        account = account_of(bearer)
        if asked_before_work(store, account) is not None:
            raise Refusal("consent", "What is asked before work is not agreed to yet: that is done on the page.")
        version, settings = store.settings()
        lease = next_lease(store, account)
        of_queue = None if lease is None or lease.purpose == "trial" else queue_guidelines(store, account, lease.queue)
        if of_queue is None or of_queue.settings.guidelines is None:
            if not has_read(store, bearer.guidelines_read, version, settings.guidelines):
                raise Refusal("guidelines", "Read the guidelines first: GET /guidelines, then POST /guidelines/read.")
        elif lease is not None and not of_queue.read:
            words = "Read the queue's own guidelines first: GET /guidelines?queue={0}, then POST /guidelines/read."
            raise Refusal("guidelines", words.format(lease.queue))
        if lease is None:
            return DrawnLease(lease=None)
        return DrawnLease(lease=_shown(lease, GENERAL if of_queue is None else of_queue.settings, settings))

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


def _guidelines(
    store: Store, text: str, *, mark: str, read: bool, queue: str | None = None,
    criteria: Sequence[Criterion] | None = None,
) -> Guidelines:  # fmt: skip
    """Guidelines as they are told; a queue without criteria of its own has everybody's."""
    version, settings = store.settings()
    shown = [CriterionShown(**one.model_dump()) for one in (settings.criteria if criteria is None else criteria)]
    return Guidelines(queue=queue, mark=mark, version=version, text=text, criteria=shown, read=read)


def _shown(lease: Lease, queue: QueueSettings, general: DeskSettings) -> LeaseShown:
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
        single=queue.single,
        criteria=[CriterionShown(**one.model_dump()) for one in queue.desk(general).criteria],
        labels=[LabelShown(**one.model_dump()) for one in queue.labels],
    )  # fmt: skip
