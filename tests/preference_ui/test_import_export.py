import gzip
import json
import random
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from sqlalchemy import select, update

from alignment.data.preferences import read_preferences
from alignment.errors import InputError
from alignment.records import Comparison, Vote
from preference_ui.import_export import Filter, agreement, export_votes, pseudonym
from preference_ui.importing import import_comparisons
from preference_ui.labelling.assignment import next_lease
from preference_ui.labelling.exclusion import exclude_rater
from preference_ui.labelling.queue import Gold, insert_batch, queue_comparisons, queue_gold
from preference_ui.labelling.revision import reopen
from preference_ui.labelling.voting import cast_vote
from preference_ui.quality.queue_stats import queue_standings
from preference_ui.store import schema
from preference_ui.store.queue_settings import QueueSettings, change_queue
from preference_ui.store.schema import IS_KNOWN
from preference_ui.store.settings import DeskSettings
from preference_ui.store.store import Store, now

Make = Callable[..., Comparison]
Add = Callable[..., str]


def _vote(store: Store, account: str, best: str, strength: int = 2, **more: object) -> None:
    rng = random.Random(account)
    while (lease := next_lease(store, account, rng=rng)) is not None:
        first = lease.order[0].endswith(f"-{best}")
        wire = {"outcome": "ranked", "strength": -strength if first else strength, **more}
        cast_vote(store, account, lease.id, wire)


@pytest.fixture
def voted(sqlite_store: Store, comparison: Make, add_rater: Add) -> Store:
    """Two comparisons, three raters: two for a (strengths 3 and 1), one for b (1); and gold, which is not exported."""
    sqlite_store.change_settings(DeskSettings(gold_share=0.5, repeat_share=0, random_share=0), author="root")
    items = [comparison(name, "Paris.", "Lyon.", question=f"{name}?") for name in ("c0", "c1")]
    queue_comparisons(sqlite_store, items, votes_wanted=3, queue="first")
    queue_gold(sqlite_store, [Gold(comparison("gold", "x", "y"), (("gold-a",), ("gold-b",)))])
    for name, best, strength in (("ada", "a", 3), ("bob", "a", 1), ("eve", "b", 1)):
        _vote(sqlite_store, add_rater(sqlite_store, name), best, strength)
    return sqlite_store


def test_pairs_have_trls_columns_margins_counts_and_agreement(voted: Store, tmp_path: Path) -> None:
    export = export_votes(voted, tmp_path / "pairs.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    assert (export.rows, export.votes, export.raters, export.comparisons) == (2, 6, 3, 2)
    for row in rows:
        assert row["chosen"] == [{"role": "assistant", "content": "Paris."}]
        assert row["rejected"] == [{"role": "assistant", "content": "Lyon."}]
        assert (row["margin"], row["raters"]) == (1.0, 3)  # (3 + 1 - 1) / 3
        assert row["agreement"] == pytest.approx(2 / 3)
    assert {row["prompt"][0]["content"] for row in rows} == {"c0?", "c1?"}
    assert len(read_preferences(tmp_path / "pairs.jsonl").pairs) == 2  # training reads it back


def test_the_same_votes_give_the_same_bytes_and_one_digest_in_both_formats(voted: Store, tmp_path: Path) -> None:
    first = export_votes(voted, tmp_path / "one.jsonl")
    second = export_votes(voted, tmp_path / "two.jsonl")
    parquet = export_votes(voted, tmp_path / "three.parquet", form="text")
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "two.jsonl").read_bytes()
    assert first.digest == second.digest == parquet.digest
    table = pq.read_table(tmp_path / "three.parquet").to_pylist()
    assert table[0]["chosen"] == "Paris."
    assert (table[0]["margin"], table[0]["raters"]) == (1.0, 3)


def test_filters_by_rater_time_agreement_count_and_queue(voted: Store, tmp_path: Path) -> None:
    def rows(**chosen: object) -> int:
        return export_votes(voted, tmp_path / "out.jsonl", what="votes", chosen=Filter(**chosen)).rows

    assert rows() == 6
    assert rows(raters=("ada",)) == 2
    assert rows(queue="first") == 6
    assert rows(since=now() - timedelta(minutes=5)) == 6
    for nothing in ({"until": now() - timedelta(days=1)}, {"queue": "other"}, {"min_votes": 4}, {"raters": ("zoe",)}):
        with pytest.raises(InputError, match="no vote is left"):
            rows(**nothing)
    with pytest.raises(InputError, match="no vote is left"):
        export_votes(voted, tmp_path / "out.jsonl", chosen=Filter(min_agreement=0.9))


def test_votes_name_no_rater_and_leave_out_what_is_excluded_or_superseded(voted: Store, tmp_path: Path) -> None:
    exclude_rater(voted, "id-eve", actor="root", reason="test")
    undone = reopen(voted, "id-bob")
    cast_vote(voted, "id-bob", undone.id, {"outcome": "ranked", "strength": 0})
    export_votes(voted, tmp_path / "votes.jsonl", what="votes")
    votes = [Vote.model_validate_json(line) for line in (tmp_path / "votes.jsonl").read_text().splitlines()]
    assert {vote.rater for vote in votes} == {pseudonym("id-ada"), pseudonym("id-bob")}
    assert len(votes) == 4
    assert "ada" not in (tmp_path / "votes.jsonl").read_text()
    assert sum(vote.supersedes is not None for vote in votes) == 1


def test_a_correction_is_a_demonstration_and_a_preference_over_the_original(
    sqlite_store: Store, comparison: Make, add_rater: Add, tmp_path: Path
) -> None:
    queue_comparisons(sqlite_store, [comparison("c0", "Paris.", "Lyon.")], votes_wanted=1)
    ada = add_rater(sqlite_store, "ada")
    lease = next_lease(sqlite_store, ada)
    assert lease is not None
    at = lease.order.index("c0-b")
    better = {"position": at, "text": "Paris, on the Seine."}
    cast_vote(sqlite_store, ada, lease.id, {"outcome": "both_bad", "correction": better})
    export_votes(sqlite_store, tmp_path / "sft.jsonl", what="demonstrations")
    (shown,) = [json.loads(line) for line in (tmp_path / "sft.jsonl").read_text().splitlines()]
    assert shown["messages"][-1] == {"role": "assistant", "content": "Paris, on the Seine."}
    export_votes(sqlite_store, tmp_path / "pairs.jsonl", form="text")
    (pair,) = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    assert (pair["chosen"], pair["rejected"]) == ("Paris, on the Seine.", "Lyon.")


ROWS = (
    {"prompt": "Name a river.", "responses": ["Rhine", {"text": "Nile", "model": "m1"}]},
    {"prompt": [{"role": "user", "content": "Hi"}], "responses": ["a", "b", "c"]},
    {"prompt": "2+2?", "chosen": "4", "rejected": "5"},
)


def test_comparisons_come_in_from_a_file_once(sqlite_store: Store, comparison: Make, tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    whole = comparison("whole").model_dump(mode="json")
    path.write_text("".join(json.dumps(row) + "\n" for row in (*ROWS, whole)))
    first = import_comparisons(sqlite_store, path, votes_wanted=2)
    assert (first.rows, first.new, first.repeated, first.known) == (4, 4, 0, 0)
    path.write_text(
        "".join(json.dumps(row) + "\n" for row in (*ROWS, ROWS[0], {"prompt": "New?", "responses": ["a", "b"]}))
    )
    again = import_comparisons(sqlite_store, path, votes_wanted=2)
    assert (again.rows, again.new, again.repeated, again.known) == (5, 1, 1, 3)


def test_gold_needs_a_known_answer(sqlite_store: Store, tmp_path: Path) -> None:
    path = tmp_path / "gold.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    with pytest.raises(InputError, match="gold needs to know"):
        import_comparisons(sqlite_store, path, gold=True)
    path.write_text(json.dumps(ROWS[2]) + "\n")
    assert import_comparisons(sqlite_store, path, gold=True).new == 1


@pytest.mark.parametrize(
    "row",
    [{"prompt": "x", "responses": ["one"]}, {"prompt": "x", "responses": ["a", "a"]},
     {"prompt": "x", "responses": "ab"}, {"prompt": "x", "responses": ["a", ""]},
     {"responses": ["a", "b"]}, {"prompt": "x", "responses": ["a", 7]},
     {"prompt": {"id": "p"}, "responses": []}, {"text": "x"}],
)  # fmt: skip
def test_a_wrong_row_is_a_fault_with_its_row(sqlite_store: Store, tmp_path: Path, row: dict[str, object]) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text(json.dumps(ROWS[0]) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(InputError, match=r"in\.jsonl:2"):
        import_comparisons(sqlite_store, path)


def test_the_faults_of_all_rows_come_at_once(sqlite_store: Store, tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    rows = [{"prompt": "x", "responses": ["a", "b\0"]}, ROWS[0], {"prompt": "x", "responses": ["a", "b" * 100_001]}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError) as caught:
        import_comparisons(sqlite_store, path)
    assert [(fault.file, fault.row) for fault in caught.value.faults] == [(str(path), 1), (str(path), 3)]


def test_agreement_has_intervals(voted: Store) -> None:
    alpha = next(one for one in agreement(voted, bootstrap=50) if one.statistic == "krippendorff_alpha")
    assert alpha.units == 2
    assert alpha.value is not None


def test_an_import_says_how_far_it_is_and_holds_few_rows(
    sqlite_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """2,500 rows, the last of them a repeated one: batches of 1,000, and never more of them at once."""
    path, told, batches = tmp_path / "in.jsonl", [], []
    rows = [{"prompt": f"{at}?", "responses": ["a", "b"]} for at in range(2_499)]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[0]]))

    def insert(store: Store, batch: list[dict[str, object]], actor: str) -> int:
        batches.append(len(batch))
        return insert_batch(store, batch, actor)

    monkeypatch.setattr("preference_ui.importing.insert_batch", insert)
    found = import_comparisons(sqlite_store, path, progress=lambda what, rows: told.append((what, rows)))
    assert (found.rows, found.new, found.repeated, found.known) == (2_500, 2_499, 1, 0)
    assert told == [("checked", 1000), ("checked", 2000), ("queued", 1000), ("queued", 2000), ("queued", 2499)]
    assert batches == [1000, 1000, 499]


def test_an_id_of_another_question_is_a_fault_with_its_row_and_nothing_is_queued(
    sqlite_store: Store, comparison: Make, tmp_path: Path
) -> None:
    queue_comparisons(sqlite_store, [comparison("c1")], votes_wanted=1)
    path = tmp_path / "in.jsonl"
    other = comparison("c1", question="Another?").model_dump(mode="json")
    path.write_text(json.dumps(ROWS[0]) + "\n" + json.dumps(other) + "\n")
    with pytest.raises(InputError, match=r"in\.jsonl:2.*already taken"):
        import_comparisons(sqlite_store, path)
    assert queue_standings(sqlite_store)[0].comparisons == 1


def test_a_gzip_file_that_is_cut_off_queues_nothing(sqlite_store: Store, tmp_path: Path) -> None:
    """What is wrong shows only behind rows that could be read."""
    path = tmp_path / "in.jsonl.gz"
    rows = [{"prompt": f"{at} {random.random()}?", "responses": ["a", "b"]} for at in range(3_000)]
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode())[:-2_000])
    with pytest.raises(InputError, match="not a whole gzip file"):
        import_comparisons(sqlite_store, path)
    assert queue_standings(sqlite_store) == []


def test_gold_turns_what_nobody_has_had_and_says_what_stays(store: Store, add_rater: Add, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"Why {at}?", "chosen": "Because.", "rejected": "No."} for at in range(3)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    store.change_settings(DeskSettings(gold_share=0, repeat_share=0), author="root")
    import_comparisons(store, path, queue="code", votes_wanted=2)
    ada = add_rater(store, "ada")
    lease = next_lease(store, ada)
    assert lease is not None
    found = import_comparisons(store, path, queue="code", gold=True)
    assert (found.new, found.known, found.turned, found.kept) == (0, 3, 2, 1)
    [standing] = queue_standings(store)
    assert (standing.comparisons, standing.wanted) == (1, 2)  # gold is no work
    again = import_comparisons(store, path, queue="code", gold=True)
    assert (again.known, again.turned, again.kept) == (3, 0, 1)
    cast_vote(store, ada, lease.id, {"outcome": "both_bad"})
    store.change_settings(DeskSettings(gold_share=1, repeat_share=0), author="root")
    bob, seen = add_rater(store, "bob"), []
    while (shown := next_lease(store, bob)) is not None:
        seen.append((shown.purpose, shown.queue))
        cast_vote(store, bob, shown.id, {"outcome": "both_bad"})
    assert seen == [*[("gold", "code")] * 2, ("work", "code")]


def test_gold_of_another_order_is_a_fault(sqlite_store: Store, comparison: Make, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({"prompt": "Why?", "chosen": "Because.", "rejected": "No."}) + "\n")
    import_comparisons(sqlite_store, path, gold=True)
    with sqlite_store.write() as connection:
        turned = {"ranking": [["x"], ["y"]], "why": ""}
        connection.execute(update(schema.comparisons).where(IS_KNOWN).values(expected=turned))
    with pytest.raises(InputError, match="another known order"):
        import_comparisons(sqlite_store, path, gold=True)


def test_a_queue_says_how_many_votes_its_new_rows_want(sqlite_store: Store, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    change_queue(sqlite_store, "code", QueueSettings(votes_wanted=5), author="root")
    for at, (queue, asked, wanted) in enumerate((("code", None, 5), ("code", 2, 2), ("other", None, 3))):
        path.write_text(json.dumps({"prompt": f"Why {at}?", "responses": ["A", "B"]}) + "\n")
        import_comparisons(sqlite_store, path, queue=queue, votes_wanted=asked)
        with sqlite_store.read() as connection:
            newest = select(schema.comparisons.c.votes_wanted, schema.comparisons.c.queue)
            rows = connection.execute(newest.order_by(schema.comparisons.c.created.desc()).limit(1)).all()
        assert [tuple(row) for row in rows] == [(wanted, queue)]
