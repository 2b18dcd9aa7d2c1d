"""The fake endpoint of :mod:`fake_server`, one for each test."""

from collections.abc import Iterator

import pytest

from tests.alignment.judges.fake_server import FakeServer


@pytest.fixture
def server() -> Iterator[FakeServer]:
    fake = FakeServer()
    yield fake
    fake.stop()
