import sqlite3
from datetime import UTC, datetime
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import delete, insert, select, text, update
from sqlalchemy.exc import DatabaseError

from alignment.errors import InputError
from preference_ui.store import schema
from preference_ui.store.settings import DeskSettings
from preference_ui.store.store import Store, StoreError, ping, record


def test_migrations_make_the_tables_that_the_schema_describes(store: Store) -> None:
    with store.read() as connection:
        assert compare_metadata(MigrationContext.configure(connection), schema.metadata) == []


def _old_store(url: str) -> Store:
    old = Store.open(url, migrate=False)
    old.migrate("0001")
    stamp = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    common = {"at": stamp if "postgres" in url else stamp.replace(tzinfo=None).isoformat(" ") + ".000000", "no": False}
    statements = (
        "INSERT INTO accounts (id, name, role, state, created, guidelines_read, trial_passed)"
        " VALUES ('a1', 'ada', 'rater', 'active', :at, 0, :no)",
        "INSERT INTO comparisons (id, purpose, prompt, responses, votes_wanted, taken, informativeness, shuffle,"
        " self_naming, withdrawn, created) VALUES ('c1', 'work', '{}', '[]', 3, 1, 0, 0.5, '[]', :no, :at)",
        'INSERT INTO leases (id, comparison_id, account_id, purpose, state, "order", drawn_by, holds_place, created,'
        " expires) VALUES ('l1', 'c1', 'a1', 'work', 'voted', '[\"x\",\"y\"]', 'random', :no, :at, :at)",
        "INSERT INTO votes (id, lease_id, comparison_id, account_id, purpose, outcome, ranking, strength, criteria,"
        " reason, comment, seconds, created) VALUES ('v1', 'l1', 'c1', 'a1', 'work', 'ranked', '[[\"x\"],[\"y\"]]', 2,"
        " '{}', '', 'kept', 4.5, :at)",
    )
    with old.write() as connection:
        for statement in statements:
            parameters = {name: value for name, value in common.items() if f":{name}" in statement}
            connection.execute(text(statement), parameters)
    return old


def test_an_older_store_with_votes_comes_up_to_date_and_keeps_them(store_url: str) -> None:
    old = _old_store(store_url)
    old.close()
    new = Store.open(store_url)
    with new.read() as connection:
        vote = connection.execute(select(schema.votes)).one()
        assert (vote.id, vote.ranking, vote.strength, vote.comment) == ("v1", [["x"], ["y"]], 2, "kept")
        assert vote.created == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
        assert connection.execute(select(schema.comparisons.c.queue)).scalar_one() == "default"
        assert compare_metadata(MigrationContext.configure(connection), schema.metadata) == []
    new.close()


def test_leases_of_an_older_store_are_shown_as_of_their_comparisons_queues(store_url: str) -> None:
    old = _old_store(store_url)
    old.migrate("0006")
    with old.write() as connection:
        connection.execute(text("UPDATE comparisons SET queue = 'code' WHERE id = 'c1'"))
    old.close()
    new = Store.open(store_url)
    with new.read() as connection:
        assert connection.execute(select(schema.leases.c.queue)).scalars().all() == ["code"]
    new.close()


def test_votes_and_the_audit_trail_cannot_be_rewritten(store_url: str) -> None:
    _old_store(store_url).close()
    store = Store.open(store_url)
    with store.write() as connection:
        record(connection, "ada", "test", "x", {})
    for table in (schema.votes, schema.audit):
        for change in (update(table).values(id=table.c.id), delete(table)):
            with pytest.raises(DatabaseError, match="append-only"), store.write() as connection:
                connection.execute(change)
    with store.read() as connection:
        assert connection.execute(select(schema.votes.c.id)).scalars().all() == ["v1"]
    store.close()


def test_the_database_refuses_more_raters_than_wanted(store_url: str) -> None:
    _old_store(store_url).close()
    store = Store.open(store_url)
    with pytest.raises(DatabaseError, match="taken"), store.write() as connection:
        connection.execute(update(schema.comparisons).values(taken=4))
    store.close()


def test_a_transaction_that_raises_changes_nothing(store: Store) -> None:
    def half() -> None:
        with store.write() as connection:
            record(connection, "ada", "test", "x", {})
            raise RuntimeError("half-way")

    with pytest.raises(RuntimeError, match="half-way"):
        half()
    assert store.audit_trail() == []


def test_settings_are_versions_and_every_change_is_in_the_trail(store: Store) -> None:
    assert store.settings() == (0, DeskSettings())
    assert store.change_settings(DeskSettings(policy="random"), author="root") == 1
    assert store.change_settings(DeskSettings(lease_minutes=5), author="root") == 2
    version, body = store.settings()
    assert (version, body.policy, body.lease_minutes) == (2, "least_voted", 5)
    assert [(line["actor"], line["action"], line["subject"]) for line in store.audit_trail()] == [
        ("root", "settings.change", "2"),
        ("root", "settings.change", "1"),
    ]


def test_sqlite_runs_in_wal_mode_and_syncs_every_commit(sqlite_store: Store) -> None:
    with sqlite_store.read() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1


@pytest.mark.parametrize("url", ["mysql://x/y", "sqlite://", "sqlite:///:memory:", "://"])
def test_a_url_that_cannot_keep_votes_is_refused_with_a_remedy(url: str) -> None:
    with pytest.raises(InputError, match="sqlite:///FOLDER"):
        Store.open(url)


def test_a_read_only_store_says_so_and_a_locked_one_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "votes.db"
    Store.open(str(path)).close()
    monkeypatch.setattr("preference_ui.store.store.LOCK_WAIT_SECONDS", 0.2)
    store = Store.open(str(path))
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match="locked"), store.write() as connection:
        record(connection, "ada", "test", "x", {})
    other.execute("ROLLBACK")
    other.close()
    assert store.audit_trail() == []
    with store.engine.connect() as raw:
        raw.exec_driver_sql("PRAGMA query_only=ON")  # what SQLite answers on a read-only disk
        raw.invalidate()
    assert ping(store)
    store.close()


def test_a_database_that_is_gone_is_reported_and_not_half_written() -> None:
    with pytest.raises(StoreError):
        Store.open("postgresql://nobody@127.0.0.1:1/none")


def test_utc_times_come_back_aware(store: Store) -> None:
    moment = datetime(2026, 6, 1, 12, 0, 0, 123456, tzinfo=UTC)
    with store.write() as connection:
        row = {"subject": "account:x", "failures": 1, "last": moment}
        connection.execute(insert(schema.throttles).values(row))
        assert connection.execute(select(schema.throttles.c.last)).scalar_one() == moment
