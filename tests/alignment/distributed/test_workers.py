"""How workers share a batch: every share equally large, every row equally often."""

from collections import Counter

import pytest
import torch

from alignment.distributed.workers import ALONE, SharedCollator, Team, share


@pytest.mark.parametrize("workers", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("rows", [1, 2, 3, 5, 8, 12])
def test_every_row_counts_the_same(rows: int, workers: int) -> None:
    shares = [share(range(rows), rank, workers) for rank in range(workers)]
    assert len({len(one) for one in shares}) == 1
    times = Counter(row for one in shares for row in one)
    assert set(times) == set(range(rows))
    assert len(set(times.values())) == 1


def test_a_batch_that_divides_evenly_is_done_once() -> None:
    assert [list(share("abcdef", rank, 3)) for rank in range(3)] == [["a", "b"], ["c", "d"], ["e", "f"]]


def test_three_rows_and_two_workers() -> None:
    """gcd 1: both do all three, and the mean of the two is the batch's."""
    assert list(share("abc", 0, 2)) == list(share("abc", 1, 2)) == ["a", "b", "c"]


def test_six_rows_and_four_workers() -> None:
    """gcd 2: two shares of three, each done twice."""
    assert ["".join(share("abcdef", rank, 4)) for rank in range(4)] == ["abc", "def", "abc", "def"]


def test_the_collator_is_given_the_share() -> None:
    assert SharedCollator(sum, rank=1, workers=2)([1, 2, 4, 8]) == 12


@pytest.mark.parametrize("workers", [1, 2, 3, 6])
@pytest.mark.parametrize("rows", [0, 1, 2, 5, 8])
def test_a_teams_parts_are_the_whole_and_nearly_equal(rows: int, workers: int) -> None:
    teams = [Team(rank, workers) for rank in range(workers)]
    parts = [list(team.mine(range(rows))) for team in teams]
    assert sum(parts, []) == list(range(rows))  # noqa: RUF017 a few short lists
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    dealt = [list(team.dealt(range(rows))) for team in teams]
    assert sorted(row for part in dealt for row in part) == list(range(rows))
    assert [len(part) for part in dealt] == [len(part) for part in parts]


def test_a_teams_groups_stay_together() -> None:
    rows = "aabbccddee"
    assert ["".join(Team(rank, 3).mine_of(rows, 5, 2)) for rank in range(3)] == ["aabb", "ccdd", "ee"]
    assert ["".join(Team(rank, 3).mine_of("aa", 1, 2)) for rank in range(3)] == ["aa", "", ""]


def test_one_alone_gathers_and_adds_its_own() -> None:
    tensors = [torch.ones(2)]
    ALONE.add(tensors)
    assert ALONE.gather("ab") == ["a", "b"]
    assert tensors[0].tolist() == [1, 1]
