"""The model of communication, against numbers worked out by hand."""

import pytest

from alignment.plan.scale import Cluster, Interconnect, fit_link, longest_answers, training_step

LINK = Interconnect(alpha=0.001, bandwidth=1000.0)
CLUSTER = Cluster(per_node=4, inside=LINK, between=Interconnect(alpha=0.01, bandwidth=100.0))


def test_a_ring_by_hand() -> None:
    """Three messages of 400 / 4 bytes: 3 × (0.001 + 0.1)."""
    assert LINK.ring(400, 4) == pytest.approx(0.303)
    assert LINK.ring(400, 1) == 0
    assert CLUSTER.all_reduce(400, 4) == pytest.approx(0.606)


def test_two_nodes_by_hand() -> None:
    """Inside 0.303; between two nodes each device has 100 bytes, sent in halves: 1 × (0.01 + 50 / 100)."""
    assert CLUSTER.half(400, 8) == pytest.approx(0.303 + 0.51)
    assert CLUSTER.broadcast(400, 8) == pytest.approx(400 / 100 + 0.01 + 400 / 1000 + 3 * 0.001)
    assert CLUSTER.broadcast(400, 1) == 0


def test_gradients_travel_beside_the_backward_pass() -> None:
    assert training_step(3.0, 400, 400, CLUSTER, 4, "ddp") == (3.0, 0.0)  # 0.606 of 2 seconds
    step, exposed = training_step(0.3, 400, 400, CLUSTER, 4, "ddp")
    assert exposed == pytest.approx(0.606 - 0.2)
    assert step == pytest.approx(0.3 + exposed)
    step, exposed = training_step(0.5, 400, 400, CLUSTER, 4, "fsdp")
    assert exposed == pytest.approx(3 * 0.303 - 0.5)


def test_everyone_waits_for_the_longest() -> None:
    assert longest_answers([7], 16, 4) == (7, 7)
    mean, most = longest_answers([10, 20], 16, 16, rounds=400)  # one answer each: 15, and 20 but for 2 of 65,536
    assert mean == pytest.approx(15, abs=0.3)
    assert most == pytest.approx(20, abs=0.05)


def test_a_link_is_found_again() -> None:
    sizes = [1e2, 1e4, 1e6, 1e8]
    found = fit_link(sizes, [2 * LINK.ring(size, 2) for size in sizes], 2)
    assert found.alpha == pytest.approx(LINK.alpha, rel=1e-6)
    assert found.bandwidth == pytest.approx(LINK.bandwidth, rel=1e-6)
