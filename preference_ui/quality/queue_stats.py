"""How the raters' queues stand: what is left, who votes, how far they agree so far. For dashboards and Prometheus."""

from collections.abc import Sequence
from datetime import timedelta

from sqlalchemy import func, select

from alignment.plain_text import markdown
from alignment.records import Record
from preference_ui.quality.standings import alpha, bring_up_to_date
from preference_ui.store.schema import leases, votes
from preference_ui.store.store import Store, now
from preference_ui.store.tallies import queue_tallies_now, total

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


def queue_standings(store: Store, *, agreeing: bool = True, at_most: int | None = None) -> list[QueueStanding]:
    """Every queue of real work, by name, out of counts.

    ``agreeing`` has α: what votes have changed since it was last asked is read for it, of ``at_most`` so many
    comparisons (None: all), so that a look in the background stays short.
    """
    if agreeing:
        bring_up_to_date(store, at_most=at_most)
    return [
        QueueStanding(
            queue=queue, comparisons=tally.comparisons, complete=tally.complete, votes=tally.filled,
            wanted=tally.wanted, raters=tally.raters,
            **({"alpha": alpha(tally), "units": tally.units} if agreeing else {}),
        )
        for queue, tally in sorted(queue_tallies_now(store).items())
        if tally.comparisons
    ]  # fmt: skip


def desk_standing(store: Store, *, agreeing: bool = False, at_most: int | None = None) -> DeskStanding:
    """The queues (as :func:`queue_standings` has them), the leases in raters' hands, who is at work, and the votes."""
    moment = now()
    held = select(func.count()).select_from(leases).where((leases.c.state == "open") & (leases.c.expires >= moment))
    at_work = select(func.count(func.distinct(votes.c.account_id))).where(votes.c.created >= moment - RECENT)
    with store.read() as connection:
        numbers = [int(connection.execute(query).scalar_one()) for query in (held, at_work)]
    return DeskStanding(
        queues=tuple(queue_standings(store, agreeing=agreeing, at_most=at_most)),
        open_leases=numbers[0], raters_at_work=numbers[1], votes=total(store, "given"),
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
