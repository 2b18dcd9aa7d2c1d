"""200,000 comparisons in the raters' store: raters' votes, the app's looks in the background, and an import.

    python tests/benchmarks/raters_at_scale.py --database sqlite
    python tests/benchmarks/raters_at_scale.py --database postgresql --seconds 20
    python tests/benchmarks/raters_at_scale.py --only import

The store is filled with ``--comparisons``, of which one in twenty has three votes, and a collection waits for more
pairs than there are votes for. Then, one after another, so that none disturbs the other: an import of as many rows from
a JSONL file, in a process of its own; ``--raters`` raters over real HTTP, as ``raters.py`` has them, for each policy,
while the app looks after the collection; and the app's looks from this process, each after a vote. Prints JSON.
"""

import argparse
import asyncio
import contextlib
import json
import resource
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import raters
from sqlalchemy import insert

from preference_ui.labelling.assignment import next_lease
from preference_ui.labelling.queue import waiting
from preference_ui.labelling.voting import cast_vote
from preference_ui.quality.queue_stats import desk_standing, queue_standings
from preference_ui.snapshots.collections import CollectionTarget, open_collection, settle_collections
from preference_ui.store import schema
from preference_ui.store.settings import DeskSettings
from preference_ui.store.store import Store, now

BATCH = 5_000
_DRAW = "draw and vote, most_informative"
VOTED = 20  # of so many comparisons one has all its votes
_IMPORT = """
import json, resource, sys, time
from pathlib import Path
from preference_ui.importing import import_comparisons
from preference_ui.store.store import Store
store, begin = Store.open(sys.argv[1]), time.perf_counter()
found = import_comparisons(store, Path(sys.argv[2]), votes_wanted=3)
print(json.dumps({"new": found.new, "seconds": round(time.perf_counter() - begin, 1),
                  "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}))
"""


def main() -> int:
    arguments = _arguments()
    found: dict[str, Any] = {"database": arguments.database, "comparisons": arguments.comparisons}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        here = Path(folder)
        if arguments.only in (None, "import"):
            url = stack.enter_context(raters.database(arguments.database, here / "import"))
            found["import"] = imported(url, here, arguments.comparisons)
        if arguments.only != "import":
            url = stack.enter_context(raters.database(arguments.database, here / "desk"))
            found |= desk(url, here, arguments)
    print(json.dumps(found, indent=2))
    return 0


def imported(url: str, folder: Path, comparisons: int) -> dict[str, Any]:
    """Seconds and peak memory of an import, in a process of its own."""
    (folder / "import").mkdir(exist_ok=True)
    path = folder / "rows.jsonl"
    with path.open("w") as file:
        for at in range(comparisons):
            prompt, texts = f"Question {at}: explain `sorted` in Python.", _texts(at)
            file.write(json.dumps({"prompt": prompt, "responses": texts}) + "\n")
    done = subprocess.run([sys.executable, "-c", _IMPORT, url, str(path)], stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def desk(url: str, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Raters over HTTP, then the looks."""
    (folder / "desk").mkdir(exist_ok=True)
    store = Store.open(url)
    begin = time.perf_counter()
    tokens = fill(store, arguments.comparisons, arguments.raters)
    found: dict[str, Any] = {"fill_seconds": round(time.perf_counter() - begin, 1)}
    told("filled")
    open_collection(store, "default", CollectionTarget(pairs=arguments.comparisons // VOTED * 2))
    if arguments.only != "raters":
        found |= looks(store, folder)
        told(json.dumps(found))
    for policy in arguments.policies if arguments.only != "looks" else ():
        store.change_settings(DeskSettings(policy=policy, trial_required=False, random_share=0), author="benchmark")
        load = SimpleNamespace(arrive=arguments.arrive, seconds=arguments.seconds, think=arguments.think)
        with running(url, folder) as address:
            tally = asyncio.run(raters._rate(address, tokens, load))  # type: ignore[arg-type]
        figures = raters.summary(store, tally, arguments.seconds)
        found[policy] = {name: figures[name] for name in ("p50_ms", "p95_ms", "p99_ms", "votes", "errors", "lost",
                                                          "doubled", "over_wanted", "first_errors")}  # fmt: skip
        told(json.dumps(found[policy]))
    store.close()
    found["this_process_peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return found


@contextlib.contextmanager
def running(url: str, folder: Path) -> Iterator[str]:
    """The app as its own process, looking after its collections. Yields its address."""
    kept = raters.start

    def start(store_url: str, log: Path, port: int) -> subprocess.Popen[bytes]:
        code = (
            f"from pathlib import Path; from preference_ui.app import serve; "
            f"serve({store_url!r}, port={port}, snapshots=Path({str(folder / 'snapshots')!r}))"
        )
        with log.open("a") as file:
            return subprocess.Popen([sys.executable, "-c", code], stdout=file, stderr=file)

    raters.start = start
    try:
        with raters.running(url, folder / "log") as address:
            yield address
    finally:
        raters.start = kept


def fill(store: Store, comparisons: int, people: int) -> list[str]:
    """Comparisons and votes straight into the tables. Returns a session's token for each rater."""
    tokens = raters.prepare(store, people, 0)
    with store.write() as connection:
        connection.execute(schema.accounts.update().values(guidelines_read=99))
        accounts = list(connection.execute(schema.accounts.select()).scalars())
    moment = now() - timedelta(days=1)
    for start in range(0, comparisons, BATCH):
        items = range(start, min(start + BATCH, comparisons))
        rows = [_row(at, moment) for at in items]
        voted = [_vote(at, side, accounts, moment) for at in items if at % VOTED == 0 for side in range(3)]
        with store.write() as connection:
            connection.execute(insert(schema.comparisons), rows)
            connection.execute(insert(schema.leases), [lease for lease, _vote in voted])
            connection.execute(insert(schema.votes), [vote for _lease, vote in voted])
    if not store.is_sqlite:
        with store.write() as connection:
            connection.exec_driver_sql("ANALYZE")
    return tokens


def _texts(at: int) -> list[str]:
    body = f"It returns a new list, and leaves the old one as it is; the order is stable. Case {at}. "
    return [f"**Answer {at}**: {body}\n\n```python\nsorted([3, 1])\n```", f"It sorts. See $n \\log n$, {at}. {body}"]


def _row(at: int, moment: Any) -> dict[str, Any]:
    sampling = {"temperature": 1.0}
    answers = [
        {"id": f"r{at}-{side}", "prompt_id": f"p{at}", "text": text, "model": "m", "sampling": sampling, "seed": 0,
         "tokens": 9, "finished": True}
        for side, text in enumerate(_texts(at))
    ]  # fmt: skip
    prompt = {"id": f"p{at}", "messages": [{"role": "user", "content": f"Question {at}: explain `sorted` in Python."}]}
    return {"id": f"c{at}", "purpose": "work", "prompt": prompt, "responses": answers, "votes_wanted": 3,
            "taken": 3 if at % VOTED == 0 else 0, "informativeness": 0.0, "shuffle": (at * 0.6180339887) % 1,
            "self_naming": [], "withdrawn": False, "created": moment, "queue": "default", "expected": None}  # fmt: skip


def _vote(at: int, side: int, accounts: list[str], moment: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    account, created = accounts[(at + side * 7) % len(accounts)], moment + timedelta(seconds=at / 100)
    lease: dict[str, Any] = {"id": uuid.uuid4().hex, "comparison_id": f"c{at}", "account_id": account,
                             "purpose": "work", "created": created}  # fmt: skip
    best = (at // VOTED * 7 + side) % 3 == 0
    order = [[f"r{at}-{int(best)}"], [f"r{at}-{int(not best)}"]]
    vote = lease | {"id": uuid.uuid4().hex, "lease_id": lease["id"], "outcome": "ranked", "ranking": order,
                    "strength": 1 + at % 3, "criteria": {}, "seconds": 9.0}  # fmt: skip
    lease |= {"state": "voted", "order": [f"r{at}-0", f"r{at}-1"], "drawn_by": "random", "holds_place": False,
              "expires": created}  # fmt: skip
    return lease, vote


def told(text: str) -> None:
    """Says how far it is: a run that is cut short has said what it found."""
    print(text, file=sys.stderr, flush=True)


def looks(store: Store, folder: Path) -> dict[str, dict[str, float]]:
    """The slowest of five of each look that the app takes, each after a vote, in milliseconds: by the clock, and of
    the processor, which a busy machine does not change much. The first is left out: it is the one after the filling."""
    account = raters.prepare(store, 1, 0)
    with store.read() as connection:
        newest = schema.accounts.select().order_by(schema.accounts.c.created.desc()).limit(1)
        account = connection.execute(newest).scalars().one()

    def nobody(*_said: Any) -> None:
        raise AssertionError("the collection is not to be ready")

    asked: dict[str, Callable[[], Any]] = {
        "collection": lambda: settle_collections(store, folder / "snapshots", nobody),
        "queues": lambda: queue_standings(store),
        "desk": lambda: desk_standing(store),
        "waiting": lambda: waiting(store),
    }
    slowest, work = (dict.fromkeys((*asked, _DRAW), 0.0) for _ in range(2))
    store.change_settings(DeskSettings(policy="most_informative", trial_required=False, random_share=0), author="b")
    for turn in range(6):
        for name, look in asked.items():
            for what, act in ((_DRAW, lambda: _draw_and_vote(store, account)), (name, look)):
                begin, used = time.perf_counter(), time.process_time()
                act()
                if turn:
                    slowest[what] = max(slowest[what], round(1000 * (time.perf_counter() - begin), 1))
                    work[what] = max(work[what], round(1000 * (time.process_time() - used), 1))
    return {"looks_ms": slowest, "looks_cpu_ms": work}


def _draw_and_vote(store: Store, account: str) -> None:
    lease = next_lease(store, account)
    assert lease is not None
    cast_vote(store, account, lease.id, {"outcome": "ranked", "strength": 1})


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--database", default="sqlite", help="sqlite, postgresql, or the URL of an empty database")
    parser.add_argument("--comparisons", type=int, default=200_000)
    parser.add_argument("--raters", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--think", type=float, default=2.0)
    parser.add_argument("--arrive", type=float, default=10.0)
    parser.add_argument("--policies", nargs="+", default=["least_voted", "most_informative"])
    parser.add_argument("--only", choices=["import", "raters", "looks"])
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
