"""A vote is written once, whole, and only then acknowledged. Sending it twice changes nothing."""

import uuid
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, bindparam, delete, exists, insert, select, update

from alignment.records import Vote
from preference_ui.labelling.assignment import (
    Lease,
    give_back,
    hand_over,
    hold,
    lease_time,
    lock_rater,
    next_lease,
    take_place_late,
)
from preference_ui.labelling.qualification import settle_trial
from preference_ui.labelling.queue_access import refuse_others
from preference_ui.labelling.vote_schema import Judgement, SubmittedVote, judge, read_verdict, storable
from preference_ui.store.errors import Refusal
from preference_ui.store.queue_settings import GENERAL, current_queue
from preference_ui.store.schema import accounts, comparisons, drafts, exclusions, leases, votes
from preference_ui.store.settings import DeskSettings
from preference_ui.store.store import Store, current_settings, now, record
from preference_ui.webhooks.outbox import vote_given

MAX_DRAFT = 120_000  # characters of a draft as JSON
_OWN_LEASE = (
    select(leases)
    .where((leases.c.id == bindparam("lease")) & (leases.c.account_id == bindparam("account")))
    .with_for_update(key_share=True)
)
_CLOSE = update(leases).where(leases.c.id == bindparam("lease")).values(state="voted", holds_place=False)
_VOTE = insert(votes)
_FORGET_DRAFT = delete(drafts).where(drafts.c.lease_id == bindparam("lease"))


@dataclass(frozen=True, slots=True)
class Receipt:
    """A committed vote. ``feedback`` is what a trial comparison answers: the right ranking by position, and why."""

    vote_id: str
    repeated: bool
    feedback: dict[str, Any] | None = None


def cast_vote(store: Store, account_id: str, lease_id: str, wire: Any, *, token: str | None = None) -> Receipt:
    """Stores a rater's verdict on a lease. Returns after the commit; the same lease again returns the same receipt.

    ``token`` is the id of the API's token that it came through, for the audit trail.
    Raises Refusal where the lease is another's, is over, or the verdict does not fit it; StoreError where the database
    failed and nothing was stored.
    """
    verdict = read_verdict(wire)
    with store.write() as connection:
        account = lock_rater(connection, account_id)
        return _cast(connection, account, current_settings(connection)[1], lease_id, verdict, token)


def cast_and_draw(store: Store, account_id: str, lease_id: str, wire: Any) -> tuple[Receipt, Lease | None]:
    """:func:`cast_vote`, and what the rater sees next, in one transaction: half the time on the disk."""
    verdict = read_verdict(wire)
    with store.write() as connection:
        account = lock_rater(connection, account_id)
        settings = current_settings(connection)[1]
        receipt = _cast(connection, account, settings, lease_id, verdict)
        if receipt.feedback is not None:
            account = lock_rater(connection, account_id)  # past the trial now
        lease = hand_over(connection, account, settings, wait=False)
    return receipt, lease or next_lease(store, account_id)


def _cast(
    connection: Connection, account: Row[Any], settings: DeskSettings, lease_id: str, verdict: SubmittedVote,
    token: str | None = None,
) -> Receipt:  # fmt: skip
    lease = _own_lease(connection, account.id, lease_id)
    if lease.state == "voted":
        stored = connection.execute(select(votes.c.id).where(votes.c.lease_id == lease.id)).scalar_one()
        return Receipt(stored, repeated=True)
    refuse_others(connection, account.name, lease)
    queue = GENERAL if lease.purpose == "trial" else current_queue(connection, lease.queue)[1]
    judgement = judge(verdict, _shown(connection, lease), queue.desk(settings), queue)
    _settle_place(connection, lease, judgement)
    identifier = _write(connection, account.name, lease, judgement, token)
    return Receipt(identifier, repeated=False, feedback=_feedback(connection, lease, judgement, settings))


def _shown(connection: Connection, lease: Row[Any]) -> dict[str, str]:
    """The answers in the order in which the rater has them: by their ids, and the text of one that stands alone, on
    which alone a verdict may depend."""
    if len(lease.order) > 1:
        return dict.fromkeys(lease.order, "")
    one = connection.execute(
        select(comparisons.c.responses).where(comparisons.c.id == lease.comparison_id)
    ).scalar_one()
    texts = {response["id"]: response["text"] for response in one}
    return {name: texts[name] for name in lease.order}


def save_draft(store: Store, account_id: str, lease_id: str, body: Any) -> None:
    """Keeps an unfinished vote, and the lease with it. Raises Refusal where the lease is another's or is over."""
    if not isinstance(body, dict) or not storable(body) or len(repr(body)) > MAX_DRAFT:
        raise Refusal("malformed", "This draft is too long to be kept.")
    with store.write() as connection:
        lease = _own_lease(connection, account_id, lease_id)
        name = connection.execute(select(accounts.c.name).where(accounts.c.id == account_id)).scalar_one()
        refuse_others(connection, name, lease)
        if lease.state != "open":
            raise Refusal("over", "This comparison is no longer open.")
        connection.execute(delete(drafts).where(drafts.c.lease_id == lease_id))
        connection.execute(insert(drafts).values(lease_id=lease_id, body=body, saved=now()))
        prolonged = now() + lease_time(current_settings(connection)[1])
        connection.execute(update(leases).where(leases.c.id == lease_id).values(expires=prolonged))


def read_draft(store: Store, lease_id: str, revises: str | None) -> dict[str, Any] | None:
    """What the rater had filled in: the draft, or for an undone vote what was voted."""
    with store.read() as connection:
        body = connection.execute(select(drafts.c.body).where(drafts.c.lease_id == lease_id)).scalar_one_or_none()
    return body if body is not None or revises is None else read_wire(store, revises)


def read_wire(store: Store, vote_id: str) -> dict[str, Any]:
    """A stored vote as the browser would have sent it."""
    with store.read() as connection:
        return as_wire(connection, connection.execute(select(votes).where(votes.c.id == vote_id)).one())


def to_record(row: Any, rater: str) -> Vote:
    """A stored vote as the record that the rest of the system reads. Criteria are named "criterion:response id"."""
    comment = ": ".join(part for part in (row.reason, row.comment) if part)
    return Vote(
        id=row.id,
        comparison_id=row.comparison_id,
        rater=rater,
        rater_kind="human",
        outcome=row.outcome,
        ranking=tuple(tuple(group) for group in row.ranking),
        strength=row.strength,
        criteria=row.criteria,
        comment=comment,
        seconds=row.seconds,
        created=row.created,
        supersedes=row.supersedes,
    )


def _own_lease(connection: Connection, account_id: str, lease_id: str) -> Row[Any]:
    if not isinstance(lease_id, str) or len(lease_id) > 64:
        raise Refusal("no_lease", "This comparison is not yours. Please reload the page.")
    row: Row[Any] | None = connection.execute(_OWN_LEASE, {"lease": lease_id, "account": account_id}).first()
    if row is None:  # another's lease and one that never was get the same answer
        raise Refusal("no_lease", "This comparison is not yours. Please reload the page.")
    return row


def _settle_place(connection: Connection, lease: Row[Any], judgement: Judgement) -> None:
    """Takes or gives back the place among the comparison's raters, so that it matches the vote about to be written."""
    earlier = None
    if lease.revises is not None:
        earlier = connection.execute(select(votes).where(votes.c.id == lease.revises)).one()
        later = votes.alias("later")
        if connection.execute(select(exists().where(later.c.supersedes == earlier.id))).scalar_one():
            raise Refusal("over", "This vote was already changed elsewhere. Please reload the page.")
        if connection.execute(select(exists().where(exclusions.c.vote_id == earlier.id))).scalar_one():
            raise Refusal("excluded", "This vote was set aside by an administrator and can no longer be changed.")
    if lease.purpose != "work":
        _refuse_if_taken_again(connection, lease)
        return
    has = lease.holds_place or (earlier is not None and earlier.outcome != "skipped")
    needs = judgement.outcome != "skipped"
    if lease.state == "expired" and not has and not take_place_late(connection, lease.account_id, lease.comparison_id):
        sentence = "You were away for a while and this comparison has gone to somebody else. Here is another one."
        raise Refusal("expired", sentence)
    if not needs and (has or lease.state == "expired"):
        give_back(connection, lease.comparison_id)


def _refuse_if_taken_again(connection: Connection, lease: Row[Any]) -> None:
    if lease.state != "expired" or lease.revises is not None:
        return
    same = (leases.c.account_id == lease.account_id) & (leases.c.comparison_id == lease.comparison_id)
    live = same & (leases.c.purpose == lease.purpose) & leases.c.state.in_(["open", "voted"])
    if connection.execute(select(leases.c.id).where(live)).first() is not None:
        raise Refusal("expired", "You were away for a while and this comparison was closed. Here is another one.")


def _write(connection: Connection, name: str, lease: Row[Any], judgement: Judgement, token: str | None) -> str:
    identifier, moment = uuid.uuid4().hex, now()
    values = judgement.model_dump() | {
        "id": identifier,
        "lease_id": lease.id,
        "comparison_id": lease.comparison_id,
        "account_id": lease.account_id,
        "purpose": lease.purpose,
        "seconds": round((moment - lease.created).total_seconds(), 3),
        "created": moment,
        "supersedes": lease.revises,
    }
    connection.execute(_CLOSE, {"lease": lease.id})
    connection.execute(_VOTE, values)
    connection.execute(_FORGET_DRAFT, {"lease": lease.id})
    detail = {"comparison": lease.comparison_id, "outcome": judgement.outcome, "supersedes": lease.revises}
    detail |= {"token": token} if token is not None else {}
    record(connection, name, "vote.change" if lease.revises else "vote.cast", identifier, detail)
    if judgement.reason == "personal_data" and lease.purpose != "trial":
        hold(connection, lease.comparison_id, name)
    if lease.purpose == "work":
        vote_given(connection, identifier, lease.comparison_id, judgement.outcome, judgement.reason, lease.revises)
    return identifier


def _feedback(
    connection: Connection, lease: Row[Any], judgement: Judgement, settings: DeskSettings
) -> dict[str, Any] | None:
    if lease.purpose != "trial":
        return None
    settle_trial(connection, lease.account_id, settings)
    expected = connection.execute(
        select(comparisons.c.expected).where(comparisons.c.id == lease.comparison_id)
    ).scalar_one()
    ranking = [[lease.order.index(one) for one in group] for group in expected["ranking"]]
    right = [set(group) for group in judgement.ranking] == [set(group) for group in expected["ranking"]]
    return {"right": right, "ranking": ranking, "why": expected["why"]}


def as_wire(connection: Connection, vote: Row[Any]) -> dict[str, Any]:
    """A stored vote as the browser would have sent it, to be shown again after an undo."""
    order = connection.execute(select(leases.c.order).where(leases.c.id == vote.lease_id)).scalar_one()
    wire: dict[str, Any] = {"outcome": vote.outcome, "reason": vote.reason, "comment": vote.comment}
    ranking = [[order.index(one) for one in group] for group in vote.ranking]
    if vote.strength is not None:
        wire["strength"] = vote.strength if ranking[0][0] == 1 else -vote.strength
    elif ranking:
        wire["ranking"] = ranking
    names = {key.split(":", 1)[0] for key in vote.criteria}
    wire["criteria"] = {name: [vote.criteria.get(f"{name}:{one}") for one in order] for name in sorted(names)}
    if vote.correction is not None:
        at = order.index(vote.correction["response"])
        wire["correction"] = {"position": at, "text": vote.correction["text"]}
    if vote.spans is not None:
        wire["spans"] = [{name: value for name, value in one.items() if name != "response"} for one in vote.spans]
    return wire
