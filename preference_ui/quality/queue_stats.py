"""How the raters' queues stand: what is left, who votes, how far they agree so far. For dashboards and Prometheus."""

from collections.abc import Sequence
from datetime import timedelta

from sqlalchemy import case, func, select

from alignment.plain_text import markdown
from alignment.records import Record
from preference_ui.import_export import Filter, agreement
from preference_ui.store.schema import comparisons, leases, votes
from preference_ui.store.store import Store, now

RECENT = timedelta(minutes=10)  # who voted since then is at work


class QueueStanding(Record):
    """A queue: its comparisons, those that have all votes, votes cast and wanted, and Krippendorff's α so far."""

    queue: str
    comparisons: int
    complete: int
    votes: int
    wanted: int
    raters: int
    alpha: float | None = None
    units: int = 0  # comparisons that two raters or more have judged: what α rests on

    @property
    def open(self) -> int:
        """Comparisons that still want votes."""
        return self.comparisons - self.complete


class DeskStanding(Record):
    """The whole desk at one moment."""

    queues: tuple[QueueStanding, ...]
    open_leases: int
    raters_at_work: int  # who voted in the last ten minutes
    votes: int


def queue_standings(store: Store, *, agreeing: bool = True) -> list[QueueStanding]:
    """Every queue of real work, by name. ``agreeing`` reads the votes for α, which takes longer."""
    cast = select(votes.c.comparison_id, votes.c.account_id).where(
        (votes.c.purpose == "work") & (votes.c.outcome != "skipped") & votes.c.supersedes.is_(None)  # changed: once
    ).subquery()  # fmt: skip
    counted = (
        select(cast.c.comparison_id, func.count().label("votes")).group_by(cast.c.comparison_id).subquery()
    )  # of each comparison
    number, wanted = func.coalesce(counted.c.votes, 0), comparisons.c.votes_wanted
    rows = (
        select(
            comparisons.c.queue,
            func.count().label("comparisons"),
            func.sum(case((number > wanted, wanted), else_=number)).label("votes"),
            func.sum(wanted).label("wanted"),
            func.count().filter(number >= wanted).label("complete"),
        )
        .select_from(comparisons.outerjoin(counted, counted.c.comparison_id == comparisons.c.id))
        .where((comparisons.c.purpose == "work") & ~comparisons.c.withdrawn)
        .group_by(comparisons.c.queue)
        .order_by(comparisons.c.queue)
    )  # fmt: skip
    people = (
        select(comparisons.c.queue, func.count(func.distinct(cast.c.account_id)))
        .join_from(cast, comparisons, cast.c.comparison_id == comparisons.c.id)
        .group_by(comparisons.c.queue)
    )
    with store.read() as connection:
        found = connection.execute(rows).all()
        raters = {queue: int(count) for queue, count in connection.execute(people)}
    return [
        QueueStanding(
            queue=row.queue, comparisons=row.comparisons, complete=row.complete, votes=int(row.votes),
            wanted=int(row.wanted), raters=raters.get(row.queue, 0),
            **(_alpha(store, row.queue) if agreeing else {}),
        )
        for row in found
    ]  # fmt: skip


def desk_standing(store: Store, *, agreeing: bool = False) -> DeskStanding:
    """The queues, the leases in raters' hands, who is at work, and the votes so far."""
    moment = now()
    held = select(func.count()).select_from(leases).where((leases.c.state == "open") & (leases.c.expires >= moment))
    at_work = select(func.count(func.distinct(votes.c.account_id))).where(votes.c.created >= moment - RECENT)
    cast = select(func.count()).select_from(votes).where(votes.c.purpose != "trial")
    with store.read() as connection:
        numbers = [int(connection.execute(query).scalar_one()) for query in (held, at_work, cast)]
    return DeskStanding(
        queues=tuple(queue_standings(store, agreeing=agreeing)),
        open_leases=numbers[0], raters_at_work=numbers[1], votes=numbers[2],
    )  # fmt: skip


def standing_text(queues: Sequence[QueueStanding]) -> str:
    """The queues as a Markdown table."""
    if not queues:
        return "Nothing is queued for raters."
    head = (
        "| queue | comparisons | complete | votes | wanted | raters | agreement (α) |\n|---|---|---|---|---|---|---|\n"
    )
    return head + "\n".join(
        f"| {markdown(one.queue)} | {one.comparisons} | {one.complete} | {one.votes} | {one.wanted} | {one.raters} | "
        + ("–" if one.alpha is None else f"{one.alpha:.2f} on {one.units}") + " |"
        for one in queues
    )  # fmt: skip


def _alpha(store: Store, queue: str) -> dict[str, float | int | None]:
    """Krippendorff's α of the verdicts on a queue, as it is so far; None where too few were judged twice."""
    figures = agreement(store, chosen=Filter(queue=queue), bootstrap=0)
    for one in figures:
        if one.of == "verdict" and one.statistic.startswith("krippendorff"):
            return {"alpha": one.value, "units": one.units}
    return {"alpha": None, "units": 0}
