"""Who may work: a rater is past the trial after its first comparison, or, where the settings have a pass mark, with
enough of its comparisons right."""

from typing import Any

from sqlalchemy import Connection, exists, select, update

from preference_ui.store.schema import accounts, comparisons, votes
from preference_ui.store.settings import DeskSettings
from preference_ui.store.store import Store, current_settings


def settle_trial(connection: Connection, account_id: str, settings: DeskSettings) -> None:
    """After a vote on a trial comparison: lets the rater work, where that is enough."""
    right, asked, voted = _standing(connection, account_id)
    if settings.pass_mark is None or (voted == asked and right >= settings.pass_mark * asked):
        connection.execute(update(accounts).where(accounts.c.id == account_id).values(trial_passed=True))


def missed_mark(store: Store, account_id: str) -> dict[str, Any] | None:
    """How a rater did who has voted on the whole trial and is below the pass mark; None for everybody else."""
    with store.read() as connection:
        settings = current_settings(connection)[1]
        passed = select(accounts.c.trial_passed).where(accounts.c.id == account_id)
        if not settings.trial_required or settings.pass_mark is None or connection.execute(passed).scalar_one():
            return None
        right, asked, voted = _standing(connection, account_id)
        return {"right": right, "asked": asked, "mark": settings.pass_mark} if voted == asked > 0 else None


def _standing(connection: Connection, account_id: str) -> tuple[int, int, int]:
    """Trial comparisons that the rater has right, that there are, and that the rater has voted on."""
    there = (comparisons.c.purpose == "trial") & ~comparisons.c.withdrawn
    expected = {
        row.id: row.expected["ranking"]
        for row in connection.execute(select(comparisons.c.id, comparisons.c.expected).where(there))
    }
    later = votes.alias("later")
    mine = (votes.c.account_id == account_id) & (votes.c.purpose == "trial")
    standing = select(votes.c.comparison_id, votes.c.ranking).where(
        mine & ~exists().where(later.c.supersedes == votes.c.id)
    )
    said = {row.comparison_id: row.ranking for row in connection.execute(standing) if row.comparison_id in expected}
    right = sum(_same(ranking, expected[name]) for name, ranking in said.items())
    return right, len(expected), len(said)


def _same(ranking: list[list[str]], other: list[list[str]]) -> bool:
    return [set(group) for group in ranking] == [set(group) for group in other]
