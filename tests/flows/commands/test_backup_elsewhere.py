"""A backup has what is not in the workspace's folder: votes in PostgreSQL; or it says what it lacks, and who copies it.

On a real PostgreSQL server, a real Prefect server and a real MLflow database; what is restored is counted against
what was there, by other means than the copy's own.
"""

import json
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import create_engine, text

from alignment.errors import InputError
from alignment.records import Comparison, Message, Prompt, Response, Sampling
from alignment.workspace import Workspace
from flows.commands.backup import backup_command, restore_command
from preference_ui.import_export import Filter, export_votes
from preference_ui.labelling.assignment import next_lease
from preference_ui.labelling.queue import queue_comparisons
from preference_ui.labelling.revision import reopen
from preference_ui.labelling.voting import cast_vote
from preference_ui.snapshots.collections import CollectionTarget, open_collection
from preference_ui.store.schema import accounts, metadata
from preference_ui.store.settings import DeskSettings
from preference_ui.store.store import Store, now


@pytest.fixture(autouse=True)
def no_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI", "RLHF_STORE"):
        monkeypatch.delenv(name, raising=False)


def comparison(number: int) -> Comparison:
    prompt = Prompt(id=f"p{number}", messages=(Message(role="user", content=f"Question {number}: naïve? 😀"),))
    texts = (f"Yes, {number}.", f"No\n\t{number} times, “quoted”.")
    return Comparison(
        id=f"c{number}", prompt=prompt,
        responses=tuple(
            Response(id=f"c{number}-{side}", prompt_id=prompt.id, text=said, model="m", sampling=Sampling(), seed=1,
                     tokens=3, finished=True)
            for side, said in zip("ab", texts, strict=True)
        ),
    )  # fmt: skip


def filled(url: str) -> Store:
    """A store with 40 comparisons and 31 votes as the app casts them: comments, corrections, an undone one, a skip."""
    store = Store.open(url)
    store.change_settings(DeskSettings(gold_share=0, repeat_share=0), author="root")
    queue_comparisons(store, [comparison(number) for number in range(40)], votes_wanted=3, queue="q", actor="test")
    row = {"role": "rater", "state": "active", "created": now(), "guidelines_read": 99, "trial_passed": True}
    with store.write() as connection:
        for rater in ("ann", "ben"):
            connection.execute(accounts.insert().values(row | {"id": f"id-{rater}", "name": rater}))
    for rater in ("ann", "ben"):
        for number in range(15):
            lease = next_lease(store, f"id-{rater}")
            assert lease is not None
            wire: dict[str, Any] = {"outcome": "ranked", "strength": number % 7 - 3, "comment": f"“{number}” 😀\n"}
            if number % 5 == 0:
                wire["correction"] = {"position": 1, "text": "Better."}
            if number % 4 == 3:
                wire = {"outcome": "skipped", "reason": "unclear"}
            cast_vote(store, f"id-{rater}", lease.id, wire)
    undone = reopen(store, "id-ann")
    cast_vote(store, "id-ann", undone.id, {"outcome": "both_bad"})
    open_collection(store, "q", CollectionTarget(votes_per_comparison=3, pairs=40, min_agreement=0.0), actor="test")
    return store


def by_hand(url: str) -> dict[str, int]:
    """Rows by table, counted by plain SQL over a connection of its own."""
    engine = create_engine(url)
    with engine.connect() as connection:
        counts = {
            name: int(connection.execute(text(f'SELECT count(*) FROM "{name}"')).scalar_one())
            for name in metadata.tables
        }
    engine.dispose()
    return counts


def contents(url: str) -> dict[str, list[Any]]:
    """Every row of every table, as Python values, in the order of their text."""
    store = Store.open(url, migrate=False)
    with store.read() as connection:
        found = {
            table.name: sorted(tuple(map(str, row)) for row in connection.execute(table.select()))
            for table in metadata.sorted_tables
        }
    store.close()
    return found


def workspace(folder: Path) -> Path:
    root = folder / "workspace"
    Workspace(root).folder("artifacts")
    (root / "artifacts" / "note.txt").write_text("kept")
    return root


def test_votes_in_postgresql_are_in_the_backup_and_come_back_counted(
    new_database: Callable[[], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Backup, restore into an empty database: every row of every table, the next vote, and the same export."""
    url, empty = new_database(), new_database()
    store = filled(url)
    counts = by_hand(url)
    assert counts["votes"] == 31
    assert counts["comparisons"] == 40
    monkeypatch.setenv("RLHF_STORE", url)
    root = workspace(tmp_path)
    backup_command(root, tmp_path / "kept.tar", as_json=True)
    assert (tmp_path / "kept.tar").stat().st_mode & 0o077 == 0  # nobody else's to read

    monkeypatch.setenv("RLHF_STORE", empty)
    capsys.readouterr()
    restore_command(tmp_path / "kept.tar", tmp_path / "new", as_json=True)
    assert json.loads(capsys.readouterr().out)["votes"] == 31
    assert by_hand(empty) == counts == by_hand(url)
    assert contents(empty) == contents(url)
    assert not (tmp_path / "new" / "raters" / "votes.db").exists()
    again = Store.open(empty)
    lease = next_lease(again, "id-ben")  # the app goes on, and its audit trail is numbered on
    assert lease is not None
    cast_vote(again, "id-ben", lease.id, {"outcome": "both_bad"})
    assert by_hand(empty)["votes"] == 32
    digests = []
    for one, name in ((store, "old"), (again, "new")):
        until = store.audit_trail(limit=1)[0]["at"]
        digests.append(export_votes(one, tmp_path / f"{name}.jsonl", what="votes", chosen=Filter(until=until)).digest)
        one.close()
    assert digests[0] == digests[1]


def test_votes_in_postgresql_come_back_as_sqlite_where_no_store_is_named(
    new_database: Callable[[], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = new_database()
    filled(url).close()
    root = workspace(tmp_path)
    backup_command(root, tmp_path / "kept.tar", as_json=True, store=url)
    restore_command(tmp_path / "kept.tar", tmp_path / "new", as_json=True)
    file = f"sqlite:///{tmp_path}/new/raters/votes.db"
    assert by_hand(file) == by_hand(url)
    assert contents(file) == contents(url)


def test_a_store_in_sqlite_elsewhere_is_in_the_backup(tmp_path: Path) -> None:
    """And the file of the same name in the workspace, which is not in use, is kept apart."""
    elsewhere = f"sqlite:///{tmp_path}/elsewhere/votes.db"
    (tmp_path / "elsewhere").mkdir()
    filled(elsewhere).close()
    root = workspace(tmp_path)
    Store.open(f"sqlite:///{Workspace(root).folder('raters')}/votes.db").close()
    backup_command(root, tmp_path / "kept.tar", as_json=True, store=elsewhere)
    restore_command(tmp_path / "kept.tar", tmp_path / "new", as_json=True)
    assert contents(f"sqlite:///{tmp_path}/new/raters/votes.db") == contents(elsewhere)
    assert by_hand(f"sqlite:///{tmp_path}/new/raters/votes-not-in-use.db")["votes"] == 0


def test_a_restore_into_a_store_with_rows_changes_nothing(new_database: Callable[[], str], tmp_path: Path) -> None:
    url = new_database()
    filled(url).close()
    root = workspace(tmp_path)
    backup_command(root, tmp_path / "kept.tar", as_json=True, store=url)
    before = contents(url)
    with pytest.raises(InputError, match="store: the store has rows already"):
        restore_command(tmp_path / "kept.tar", tmp_path / "new", as_json=True, store=url)
    assert contents(url) == before
    assert not (tmp_path / "new").exists()


def test_databases_on_other_servers_are_named_with_what_copies_them(
    prefect_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A Prefect server that has a run, and an MLflow server's answers: neither is in the folder, and both are said."""
    created = httpx.post(f"{prefect_server}/flows/", json={"name": "any"}, timeout=20).json()
    httpx.post(
        f"{prefect_server}/flow_runs/", json={"flow_id": created["id"], "state": {"type": "PENDING"}}, timeout=20
    )
    monkeypatch.setenv("PREFECT_API_URL", prefect_server)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://me:s3cret@db/mlflow")
    root = workspace(tmp_path)
    with pytest.raises(InputError) as told:
        backup_command(root, tmp_path / "kept.tar", as_json=True)
    prefect, mlflow = str(told.value).splitlines()
    assert prefect_server in prefect
    assert "PREFECT_API_URL" in prefect
    assert "pg_dump" in prefect
    assert "rlhf deploy" in prefect
    assert "MLFLOW_TRACKING_URI" in mlflow
    assert "pg_dump" in mlflow
    assert "s3cret" not in mlflow
    assert not (tmp_path / "kept.tar").exists()
    backup_command(root, tmp_path / "kept.tar", as_json=True, without=["prefect", "mlflow"])
    assert json.loads(capsys.readouterr().out)["without"] == "prefect, mlflow"
    with pytest.raises(InputError, match="--without: no part 'vote'"):
        backup_command(root, tmp_path / "other.tar", as_json=True, without=["vote"])


@pytest.mark.slow  # starts a server
@pytest.mark.timeout(300)
def test_prefects_database_of_the_workspace_is_in_it_and_open_runs_are_told_as_crashed(tmp_path: Path) -> None:
    """The database of a real server with a deployment and a run under way."""
    root = workspace(tmp_path)
    Workspace(root).folder("prefect")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT")}
    environment |= {"PREFECT_HOME": str(root / "prefect"), "PREFECT_API_URL": "",
                    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "200"}  # fmt: skip
    code = (
        "from prefect import flow, get_client\n"
        "from prefect.states import Running\n"
        "@flow\ndef some(): ...\n"
        "with get_client(sync_client=True) as client:\n"
        "    run = client.create_flow_run(some, state=Running())\n"
        "    client.create_deployment(client.create_flow(some), name='nightly')\n"
        "    print(run.id)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    run = done.stdout.split()[-1]
    backup_command(root, tmp_path / "kept.tar", as_json=True)
    restore_command(tmp_path / "kept.tar", tmp_path / "new", as_json=True)
    with closing(sqlite3.connect(tmp_path / "new" / "prefect" / "prefect.db")) as database:
        assert database.execute("select name from deployment").fetchall() == [("nightly",)]
    [waiting] = [json.loads(path.read_text()) for path in (tmp_path / "new/services/outbox").glob("*.json")]
    assert waiting["flow_run"] == run
    assert waiting["body"]["state"]["type"] == "CRASHED"


def test_an_mlflow_server_on_the_workspaces_own_file_is_recognised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in the containers of `infra`: the address is another, the database is the file here."""
    root = workspace(tmp_path)
    with closing(sqlite3.connect(root / "mlflow.db")) as database:
        database.execute("create table experiments (experiment_id integer, name text, creation_time bigint)")
        database.execute("insert into experiments values (3, 'policy', 1700000000123)")
        database.commit()
    rows = [{"experiment_id": "3", "creation_time": 1700000000123}]

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"experiments": rows}).encode())

        def log_message(self, *_: Any) -> None:
            """Says nothing."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_address[1]}")
    backup_command(root, tmp_path / "kept.tar", as_json=True)
    rows.append({"experiment_id": "4", "creation_time": 1700000000999})
    with pytest.raises(InputError, match="MLFLOW_TRACKING_URI: MLflow's registry is at"):
        backup_command(root, tmp_path / "again.tar", as_json=True)
    server.shutdown()
