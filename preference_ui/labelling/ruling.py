"""An administrator decides a disputed comparison: a vote of weight, kept like every other and never rewritten."""

import secrets
import uuid
from typing import Any

from sqlalchemy import Connection, exists, insert, select

from preference_ui.labelling.vote_schema import judge, read_verdict
from preference_ui.store.errors import Refusal
from preference_ui.store.queue_settings import current_queue
from preference_ui.store.schema import accounts, comparisons, leases, votes
from preference_ui.store.store import Store, current_settings, now, record

LETTERS = "ABCDEFGHI"  # of a comparison's answers, as they are stored


def adjudicate(store: Store, account_id: str, comparison_id: str, wire: Any) -> str:
    """Stores an administrator's verdict on a comparison; an earlier one of anybody's is superseded by it.

    ``wire`` is a vote as a rater sends it; its positions are those of the comparison's answers as they are stored.
    Returns the vote's id. Raises Refusal where the account is no administrator's, there is no such comparison of real
    work, or the verdict does not fit it.
    """
    verdict = read_verdict(wire)
    if verdict.outcome in ("skipped", "edited", "scored", "marked") or verdict.correction is not None:
        raise Refusal("malformed", "A ruling says which answer is better, that they are level, or that both are bad.")
    with store.write() as connection:
        account = connection.execute(select(accounts).where(accounts.c.id == account_id)).first()
        if account is None or account.role != "administrator" or account.state != "active":
            raise Refusal("forbidden", "This is for administrators.")
        found = select(comparisons).where(comparisons.c.id == comparison_id).with_for_update(key_share=True)
        item = connection.execute(found).first()
        if item is None or item.purpose != "work":
            raise Refusal("no_record", "There is no such comparison.")
        order = [response["id"] for response in item.responses]
        asked = current_queue(connection, item.queue)[1].desk(current_settings(connection)[1])
        judgement = judge(verdict, {one["id"]: one["text"] for one in item.responses}, asked)
        earlier = _standing(connection, comparison_id)
        lease, vote, moment = secrets.token_urlsafe(16), uuid.uuid4().hex, now()
        about = {"comparison_id": comparison_id, "account_id": account_id, "purpose": "ruling", "created": moment}
        held = {
            "id": lease,
            "queue": item.queue,
            "state": "voted",
            "order": order,
            "drawn_by": "ruling",
            "holds_place": False,
        }
        connection.execute(insert(leases).values(held | about | {"revises": earlier, "expires": moment}))
        row = {"id": vote, "lease_id": lease, "seconds": 0.0, "supersedes": earlier}
        connection.execute(insert(votes).values(judgement.model_dump() | about | row))
        detail = {"vote": vote, "outcome": judgement.outcome, "ranking": judgement.ranking, "supersedes": earlier}
        record(connection, account.name, "comparison.adjudicate", comparison_id, detail)
        return vote


def read_ruling(text: Any, answers: int) -> dict[str, Any]:
    """A ruling in letters as a vote: "A > B", "B >> A" (much better), "A = B", "C > A = B", "both bad".

    Raises Refusal where it does not name each of so many ``answers`` once.
    """
    words = " ".join(str(text or "").upper().split())
    if words in ("BOTH BAD", "ALL BAD"):
        return {"outcome": "both_bad"}
    groups = [[LETTERS.find(letter.strip() or "?") for letter in group.split("=")]
              for group in words.replace(">>", ">").split(">")]  # fmt: skip
    named = sorted(at for group in groups for at in group)
    if named != list(range(answers)):
        raise Refusal("ruling", 'Write a ruling as "A > B", "A = B" or "both bad", with every answer once.')
    if answers > 2:
        return {"outcome": "ranked", "ranking": groups, "confirmed": True}
    if len(groups) == 1:
        return {"outcome": "ranked", "strength": 0}
    strength = 3 if ">>" in words else 2
    return {"outcome": "ranked", "strength": -strength if groups[0] == [0] else strength}


def _standing(connection: Connection, comparison_id: str) -> str | None:
    later = votes.alias("later")
    ruled = (votes.c.comparison_id == comparison_id) & (votes.c.purpose == "ruling")
    query = select(votes.c.id).where(ruled & ~exists().where(later.c.supersedes == votes.c.id))
    found: str | None = connection.execute(query).scalar()
    return found
