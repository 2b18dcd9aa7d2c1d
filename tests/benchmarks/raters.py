"""100 raters at once over real HTTP: how long from a vote to the next comparison, and is every vote there.

    python tests/benchmarks/raters.py --database sqlite --seconds 120
    python tests/benchmarks/raters.py --database postgresql --seconds 120
    python tests/benchmarks/raters.py --database postgresql://USER@HOST/DATABASE

The bare word starts a PostgreSQL server of its own, as Debian installs it, with its defaults: every commit is synced.

Every rater is a session of its own that votes, reads for a while (``--think`` seconds on average, exponential) and
votes again; they arrive over the first ``--arrive`` seconds, which do not count. With 2 seconds of reading 100 raters
cast 50 votes a second, more than people could; with 0 they vote without reading, and what is measured is how many votes
the machine can take. The load generator shares the machine's cores with the app. Prints one JSON object; exits with 1
where a vote was lost or doubled, a comparison has more votes than wanted, or a request failed.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from sqlalchemy import func, insert, select

from alignment.records import Comparison, Message, Prompt, Response, Sampling
from preference_ui.accounts.auth import open_session
from preference_ui.labelling.queue import queue_comparisons
from preference_ui.store import schema
from preference_ui.store.store import Store, now
from preference_ui.web.middleware import COOKIE

VOTES_WANTED = 3


@dataclass
class Tally:
    """What the raters saw. ``acknowledged`` are the leases whose vote the app confirmed; the measuring starts at
    ``begin``, when all have arrived."""

    begin: float
    seconds: list[float] = field(default_factory=list)
    acknowledged: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    idle: int = 0


def main() -> int:
    arguments = _arguments()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        url = stack.enter_context(database(arguments.database, Path(folder)))
        store = Store.open(url)
        tokens = prepare(store, arguments.raters, arguments.comparisons)
        with running(url, Path(folder) / "log") as address:
            tally = asyncio.run(_rate(address, tokens, arguments))
        result = summary(store, tally, arguments.seconds) | vars(arguments)
        store.close()
    print(json.dumps(result, indent=2))
    return int(any(result[name] for name in ("errors", "lost", "doubled", "over_wanted")))


@contextlib.contextmanager
def database(given: str, folder: Path) -> Iterator[str]:
    """The URL of an empty store: a file, a server that lives as long as the context, or the one given."""
    if given == "sqlite":
        yield f"sqlite:///{folder}/votes.db"
    elif given == "postgresql":
        found = shutil.which("initdb")
        binaries = Path(found).parent if found else max(Path("/usr/lib/postgresql").glob("*/bin"), default=None)
        if binaries is None:
            raise SystemExit("PostgreSQL's server is not installed (Debian: postgresql)")
        home = Path(tempfile.mkdtemp(prefix="raters-pg-"))
        as_user: dict[str, Any] = {"stdout": subprocess.DEVNULL, "cwd": home}
        if os.geteuid() == 0:  # the server refuses to run as root
            shutil.chown(home, "postgres", "postgres")
            as_user |= {"user": "postgres", "group": "postgres"}
        make = [binaries / "initdb", "-D", home / "data", "-U", "rlhf", "--auth=trust", "-E", "UTF8"]
        subprocess.run(make, check=True, **as_user)
        control = [binaries / "pg_ctl", "-D", home / "data", "-w", "-l", home / "log"]
        subprocess.run([*control, "-o", f"-k {home} -c listen_addresses=''", "start"], check=True, **as_user)
        try:
            yield f"postgresql+psycopg://rlhf@/postgres?host={home}"
        finally:
            subprocess.run([*control, "-m", "fast", "stop"], check=True, **as_user)
            shutil.rmtree(home, ignore_errors=True)
    else:
        yield given


def prepare(store: Store, raters: int, comparisons: int) -> list[str]:
    """Fills a store with comparisons and raters. Returns a session's token for each rater."""
    queue_comparisons(store, [_comparison(at) for at in range(comparisons)], votes_wanted=VOTES_WANTED)
    tokens = []
    with store.write() as connection:
        for at in range(raters):
            name = f"rater{at}-{uuid.uuid4().hex[:4]}"
            row = {"id": uuid.uuid4().hex, "name": name, "role": "rater", "state": "active", "created": now(),
                   "guidelines_read": 1, "trial_passed": True}  # fmt: skip
            connection.execute(insert(schema.accounts).values(row))
            tokens.append(open_session(connection, str(row["id"]), name))
    return tokens


def _comparison(at: int) -> Comparison:
    prompt = Prompt(
        id=f"p{at}", messages=(Message(role="user", content=f"Question {at}: explain `sorted` in Python."),)
    )
    texts = (
        f"**Answer {at}**: it returns a new list.\n\n```python\nsorted([3, 1])\n```",
        f"It sorts. See $n \\log n$, {at}.",
    )
    responses = tuple(
        Response(id=f"r{at}-{side}", prompt_id=prompt.id, text=text, model="m", sampling=Sampling(), seed=0, tokens=9,
                 finished=True)
        for side, text in enumerate(texts)
    )  # fmt: skip
    return Comparison(id=f"c{at}", prompt=prompt, responses=responses)


@contextlib.contextmanager
def running(store_url: str, log: Path, port: int | None = None) -> Any:
    """The app as its own process. Yields its address."""
    if port is None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
    process = start(store_url, log, port)
    try:
        wait_for(port)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=30)


def start(store_url: str, log: Path, port: int) -> subprocess.Popen[bytes]:
    """Starts the app without waiting for it."""
    code = f"from preference_ui.app import serve; serve({store_url!r}, port={port})"
    with log.open("a") as file:
        return subprocess.Popen([sys.executable, "-c", code], stdout=file, stderr=file)


def wait_for(port: int, seconds: float = 120) -> None:
    """Waits until the app answers."""
    import urllib.request

    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
            return
        time.sleep(0.1)
    raise TimeoutError("the app did not start")


async def _rate(address: str, tokens: list[str], arguments: argparse.Namespace) -> Tally:
    tally = Tally(begin=time.perf_counter() + arguments.arrive)
    async with asyncio.TaskGroup() as group:
        for at, token in enumerate(tokens):
            rng = random.Random(at)
            arrival = asyncio.sleep(arguments.arrive * 0.8 * rng.random())
            group.create_task(rater(address, token, tally, arguments.seconds, arguments.think, rng, arrival))
    return tally


async def rater(
    address: str, token: str, tally: Tally, seconds: float, think: float, rng: random.Random, arrival: Any
) -> None:
    """One person: arrives, looks, thinks, votes, and sees the next comparison in the answer to the vote."""
    await arrival
    end = tally.begin + seconds
    timeout = aiohttp.ClientTimeout(total=60)
    async with aiohttp.ClientSession(address, cookies={COOKIE: token}, timeout=timeout) as session:
        async with session.get("/rate/config") as reply:
            parts = (await reply.json())["components"]
        component = next(part["id"] for part in parts if part["type"] == "html")
        screen = (await _call(session, component, "begin", None))["screen"]
        while time.perf_counter() < end and screen["lease"] is not None:
            await asyncio.sleep(rng.expovariate(1 / think) if think else 0)
            data = {"lease": screen["lease"], "verdict": {"outcome": "ranked", "strength": rng.randint(-3, 3)}}
            before = time.perf_counter()
            try:
                reply = await _call(session, component, "vote", data)
            except (aiohttp.ClientError, TimeoutError, ValueError) as error:
                tally.errors.append(repr(error)[:200])
                continue
            if not reply["ok"]:
                tally.errors.append(str(reply)[:200])
                continue
            if tally.begin <= before < end:
                tally.seconds.append(time.perf_counter() - before)
            tally.acknowledged.append(screen["lease"])
            screen = reply["screen"]
        tally.idle += screen["lease"] is None


async def _call(session: aiohttp.ClientSession, component: int, function: str, data: Any) -> Any:
    body = {"data": data, "component_id": component, "fn_name": function, "session_hash": str(id(session))}
    async with session.post("/rate/gradio_api/component_server/", json=body) as reply:
        if reply.status != 200:
            raise ValueError(f"status {reply.status}")
        return await reply.json()


def summary(store: Store, tally: Tally, elapsed: float) -> dict[str, Any]:
    """Latencies, and the count of votes that should not be as they are."""
    votes, items = schema.votes, schema.comparisons
    with store.read() as connection:
        stored = list(connection.execute(select(votes.c.lease_id).where(votes.c.purpose != "trial")).scalars())
        count = func.count(votes.c.id)
        counted = select(count).where((votes.c.purpose == "work") & (votes.c.outcome != "skipped"))
        over = connection.execute(counted.group_by(votes.c.comparison_id).having(count > VOTES_WANTED)).all()
        same = select(count).where(votes.c.purpose == "work").group_by(votes.c.comparison_id, votes.c.account_id)
        twice = connection.execute(same.having(count > 1)).all()
        taken = connection.execute(select(func.max(items.c.taken)).where(items.c.purpose == "work")).scalar_one()
    kept = set(stored)
    ordered = sorted(tally.seconds) or [0.0]

    def quantile(share: float) -> float:
        return round(1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))], 1)

    return {
        "p50_ms": quantile(0.5), "p95_ms": quantile(0.95), "p99_ms": quantile(0.99), "max_ms": quantile(1.0),
        "votes": len(tally.acknowledged), "votes_per_second": round(len(tally.seconds) / elapsed, 1),
        "stored": len(stored), "errors": len(tally.errors), "first_errors": tally.errors[:3],
        "lost": sum(lease not in kept for lease in tally.acknowledged),
        "doubled": len(stored) - len(kept) + len(twice), "over_wanted": len(over), "most_taken": taken,
        "raters_out_of_work": tally.idle,
    }  # fmt: skip


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--database", default="sqlite", help="sqlite, postgresql, or the URL of an empty database")
    parser.add_argument("--raters", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument(
        "--think", type=float, default=2.0, help="seconds between a comparison and its vote, on average"
    )
    parser.add_argument("--arrive", type=float, default=10.0, help="seconds over which the raters come in")
    parser.add_argument("--comparisons", type=int, default=5000)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
