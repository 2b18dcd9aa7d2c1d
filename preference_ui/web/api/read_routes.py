"""The scope ``read``: votes, records, and how the queues stand, a page at a time."""

from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Query
from sqlalchemy import ColumnElement, select

from preference_ui.accounts.tokens import Bearer
from preference_ui.import_export import Filter, pseudonym
from preference_ui.labelling.ballots import left_out, read_ballots
from preference_ui.quality.queue_stats import desk_standing
from preference_ui.quality.whole_records import WholeRecord, records_after, whole_record
from preference_ui.store.errors import Refusal
from preference_ui.store.schema import comparisons, votes
from preference_ui.store.store import Store
from preference_ui.store.tallies import queue_tallies_now
from preference_ui.web.api.bearer import allowed
from preference_ui.web.api.models import MOST, PAGE, QueueFigures, QueuesProgress, RecordsPage, Text, VotePage

CHANGED = 500  # comparisons whose votes are read for α, at most: the rest at the next look
LARGE = 20  # a queue with this part of all votes is found by walking past the others'
Reader = Annotated[Bearer, Depends(allowed("read"))]
Limit = Annotated[int, Query(ge=1, le=MOST, description="Rows of a page.")]
Cursor = Annotated[Text | None, Query(description="The `next` of the page before.")]
QueueChosen = Annotated[Text | None, Query(description="Of this queue alone.")]
Since = Annotated[datetime | None, Query(description="Voted then or later; UTC where no zone is said.")]
Until = Annotated[datetime | None, Query(description="Voted before.")]


def read_routes(store: Store) -> APIRouter:
    """What a token with the scope ``read`` can do."""
    router = APIRouter(tags=["read"])

    @router.get("/votes")
    def list_votes(
        _bearer: Reader, queue: QueueChosen = None, since: Since = None, until: Until = None, cursor: Cursor = None,
        limit: Limit = PAGE,
    ) -> VotePage:  # fmt: skip
        """Votes on real work that stand and are not left out, oldest first, raters under pseudonyms: the rows of
        `rlhf votes export --what votes`."""
        chosen = [~left_out(), *_filter(None, since, until).conditions(), *_of_queue(store, queue),
                  *_later(store, cursor)]  # fmt: skip
        with store.read() as connection:
            found = read_ballots(connection, *chosen, purposes=("work",), limit=limit + 1)
        page = [one.vote.model_copy(update={"rater": pseudonym(one.account)}) for one in found[:limit]]
        return VotePage(votes=page, next=page[-1].id if len(found) > limit else None)

    @router.get("/records")
    def list_records(
        _bearer: Reader, queue: QueueChosen = None, since: Since = None, until: Until = None, cursor: Cursor = None,
        limit: Limit = PAGE,
    ) -> RecordsPage:  # fmt: skip
        """Records with their texts, the models that wrote them, every vote, comment, flag and ruling, and their trail:
        the rows of `rlhf votes export --what records`."""
        found = records_after(store, cursor, limit + 1, _filter(queue, since, until))
        page = found[:limit]
        return RecordsPage(records=page, next=page[-1].id if len(found) > limit else None)

    @router.get("/records/{identifier:path}")
    def show_record(_bearer: Reader, identifier: Text) -> WholeRecord:
        """One record."""
        found = whole_record(store, identifier)
        if found is None:
            raise Refusal("no_record", "There is no such record.")
        return found

    @router.get("/queues")
    def show_queues(_bearer: Reader) -> QueuesProgress:
        """How far each queue is, and how far its raters agree."""
        desk = desk_standing(store, agreeing=True, at_most=CHANGED)
        queues = [QueueFigures(**one.model_dump()) for one in desk.queues]
        return QueuesProgress(queues=queues, votes=desk.votes, open_leases=desk.open_leases,
                        raters_at_work=desk.raters_at_work)  # fmt: skip

    return router


def _filter(queue: str | None, since: datetime | None, until: datetime | None) -> Filter:
    start, end = (moment and moment.replace(tzinfo=moment.tzinfo or UTC) for moment in (since, until))
    return Filter(queue=queue, since=start, until=end)


def _of_queue(store: Store, queue: str | None) -> list[ColumnElement[bool]]:
    """Votes of a queue. Of one that has a good part of all votes, no index is to be used: a database that begins with
    the queue's comparisons sorts all their votes for every page, where a walk along the times finds a page at once."""
    if queue is None:
        return []
    tallies = queue_tallies_now(store)
    own = tallies[queue].votes if queue in tallies else 0
    large = own * LARGE >= sum(tally.votes for tally in tallies.values())
    return [(comparisons.c.queue.concat("") if large else comparisons.c.queue) == queue]


def _later(store: Store, cursor: str | None) -> list[ColumnElement[bool]]:
    """Votes after the one that the cursor names, in the order of times and ids."""
    if cursor is None:
        return []
    with store.read() as connection:
        when = connection.execute(select(votes.c.created).where(votes.c.id == cursor)).scalar_one_or_none()
    if when is None:
        raise Refusal("malformed", "This cursor is none: take the `next` of the page before as it is.")
    return [votes.c.created >= when, (votes.c.created > when) | (votes.c.id > cursor)]  # the first walks the index
