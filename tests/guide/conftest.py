"""The stage on which the programs of the documentation run."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator

import pytest
import redis

from tests.servers import Server

from .stage import Stage


def pytest_itemcollected(item: pytest.Item) -> None:
    """Programs end with their process, so some leave their Redis client open."""
    if "stage" in getattr(item, "fixturenames", ()):
        item.add_marker(pytest.mark.filterwarnings("ignore::ResourceWarning"))


@pytest.fixture
def stage(environment: pytest.MonkeyPatch, redis_server: Server) -> Iterator[Stage]:
    """An empty Redis, an empty directory, and a Telegram that takes everything."""
    with redis.Redis(port=redis_server.port) as client:
        client.flushall()
    yield Stage(environment, redis_server)
    # What they leave open must not fail a later test.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()
