"""Wrong passwords slow down who sends them, more with each, and nobody else for good.

Failures are counted for a name from one address, for an address, and for a name wherever they come from. The first two
close the door to that address, for 1, 2, 4 … minutes up to an hour. The last is for guesses from many addresses: it
closes the door only to an address that has itself failed at this name a few times. So somebody who guesses at an
administrator's name from elsewhere does not keep the administrator out, who comes with the right password.
"""

from datetime import datetime, timedelta

from sqlalchemy import Connection, delete, select, update

from preference_ui.store.errors import Refusal
from preference_ui.store.schema import throttles
from preference_ui.store.store import Store, insert_if_absent, now, record

FREE_HERE = 5  # failures of one address at one name
FREE_ANYWHERE = 5  # failures at one name
FREE_ADDRESS = 100  # failures of one address, which may be a whole office behind one gateway
SPARED = 3  # failures of one address at a name that is locked for others
LONGEST_LOCK = timedelta(hours=1)
FORGET = timedelta(days=1)  # what is kept no longer


def refuse_while_locked(connection: Connection, name: str, address: str) -> None:
    """Raises Refusal, which says how long to wait, where no password is looked at now."""
    moment = now()
    rows = {row.subject: row for row in connection.execute(
        select(throttles).where(throttles.c.subject.in_(_subjects(name, address))))}  # fmt: skip
    anywhere, place, here = _subjects(name, address)
    own = rows.get(here)
    failed = own is not None and own.failures >= SPARED and own.last >= moment - LONGEST_LOCK
    counted = [rows.get(here), rows.get(place), rows.get(anywhere) if failed else None]
    until = max((row.locked_until for row in counted if row is not None and row.locked_until), default=moment)
    if until > moment:
        minutes = max(1, round((until - moment).total_seconds() / 60))
        wait = "a minute" if minutes == 1 else f"{minutes} minutes"
        raise Refusal("locked", f"Too many failed attempts. Please wait {wait} and try again.")


def count_failure(connection: Connection, name: str, address: str) -> None:
    """A wrong password, or a name that is not known."""
    connection.execute(delete(throttles).where(throttles.c.last < now() - FORGET))
    free = (FREE_ANYWHERE, FREE_ADDRESS, FREE_HERE)
    for subject, count in sorted(zip(_subjects(name, address), free, strict=True)):  # one order for all: no deadlock
        _count(connection, subject, count)


def forgive(connection: Connection, name: str, address: str) -> None:
    """A right password: what was counted for this name, here and altogether, is forgotten."""
    anywhere, _place, here = _subjects(name, address)
    connection.execute(delete(throttles).where(throttles.c.subject.in_((anywhere, here))))


def unlock(store: Store, name: str, *, actor: str) -> int:
    """Opens the door to a name for every address. Returns how many counts were forgotten."""
    with store.write() as connection:
        of_name = (throttles.c.subject == f"account:{name}") | throttles.c.subject.endswith(f" {name}", autoescape=True)
        forgotten = connection.execute(delete(throttles).where(of_name)).rowcount
        record(connection, actor, "account.unlock", name, {"counts": forgotten})
        return forgotten


def _subjects(name: str, address: str) -> tuple[str, str, str]:
    """The name wherever from, the address whatever name, and the name from this address."""
    return f"account:{name}", f"address:{address[:64]}", f"from:{address[:64]} {name}"


def _count(connection: Connection, subject: str, free: int) -> None:
    moment = now()
    insert_if_absent(connection, throttles, {"subject": subject, "failures": 0, "last": moment})
    row = connection.execute(select(throttles).where(throttles.c.subject == subject).with_for_update()).one()
    failures = 1 if row.last < moment - LONGEST_LOCK else row.failures + 1
    over = failures - free
    lock: datetime | None = None if over < 0 else moment + min(timedelta(minutes=1) * 2 ** min(over, 10), LONGEST_LOCK)
    values = {"failures": failures, "last": moment, "locked_until": lock}
    connection.execute(update(throttles).where(throttles.c.subject == subject).values(values))
